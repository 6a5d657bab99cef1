"""Make small surveillance-like MP4s in the UCF-Crime layout, with the true event windows.

    python tools/synthetic_videos.py OUT [--videos Train=120 --videos Validation=40 --videos Test=60] [--seed 0]

writes `OUT/SPLIT/CLASS/NAME_x264.mp4` and `OUT/temporal_annotations.txt`, whose lines are those of UCF-Crime
(`name.mp4  Class  start  end  -1  -1`, frames from 0, both ends included; `-1 -1 -1 -1` for a normal video).

**Why one frame cannot tell the classes apart.** Every video, normal or crime, draws a scene, people and one
*encounter* from the same distribution: two people close to each other in the open (`Fighting`), or one who goes to
another at a kiosk, takes a bag and goes away (`Robbery`). So any frame may tell which encounter it is, and none whether
it is a crime. An encounter is a function of a clock and of uniform random phases, so its
picture is distributed alike at any reading of the clock. In a normal video the clock runs slowly all the time; in
a crime video it runs some fifteen times faster during the event. Nothing else differs: not the number, looks or
places of the people, not the length, noise or coding of the video. Frames are sharp (no motion blur), and camera
noise, drawn for each video, decides the size of the file.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import io
import itertools
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from vidshard.util import atomic

NORMAL = "NormalVideos"
CRIMES = ("Fighting", "Robbery")
ANNOTATIONS_NAME = "temporal_annotations.txt"
DEMO_VIDEOS = {"Train": 120, "Validation": 40, "Test": 60}

SUPERSAMPLING = 4  # people and scenery are drawn this much larger and averaged down: smooth, sub-pixel motion
SLOW_RATE = (0.25, 0.6)  # radians of the encounter's clock per second, outside an event …
FAST_RATE = (8.0, 11.0)  # … and during one

Colour = tuple[int, int, int]
Frames = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """Properties shared by all videos of a set. Lengths are in frames; `num_frames` and `event_fraction` are ranges
    to draw from."""

    width: int = 160
    height: int = 120
    fps: int = 16
    num_frames: tuple[int, int] = (64, 96)
    event_fraction: tuple[float, float] = (0.16, 0.38)  # of the frames of the video
    noise: tuple[float, float] = (2.0, 7.0)  # standard deviation of the camera noise, in grey levels

    def __post_init__(self) -> None:
        if self.width % 2 or self.height % 2 or min(self.width, self.height) < 32:
            raise ValueError(f"size {self.width}x{self.height}: H.264 needs even sides, and people at least 32 pixels")
        if not 8 <= self.num_frames[0] <= self.num_frames[1]:
            raise ValueError(f"num_frames {self.num_frames}: expected 8 <= shortest <= longest")
        if not 0 < self.event_fraction[0] <= self.event_fraction[1] < 1:
            raise ValueError(f"event_fraction {self.event_fraction}: expected 0 < least <= most < 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoPlan:
    """One video before it is drawn. `event` holds its first and last frame; the seed decides everything else."""

    path: str  # relative to the root of the set
    class_name: str
    encounter: str  # one of CRIMES: what the two people do, slowly in a normal video
    num_frames: int
    event: tuple[int, int] | None
    seed: tuple[int, ...]

    @property
    def annotation(self) -> str:
        first, last = self.event if self.event else (-1, -1)
        class_name = self.class_name if self.event else "Normal"
        return f"{Path(self.path).name}  {class_name}  {first}  {last}  -1  -1"


# ---------------------------------------------------------------------------------------------------------- the set


def make_dataset(
    out: Path,
    *,
    num_videos: Mapping[str, int] = DEMO_VIDEOS,
    seed: int = 0,
    config: VideoConfig | None = None,
    workers: int | None = None,
) -> list[VideoPlan]:
    """Write `num_videos` of each split under `out`, half of them normal, and the annotations; returns the plans.

    The same arguments (but `workers`) and library versions give the same bytes.
    """
    config = config or VideoConfig()
    plans = plan_dataset(num_videos, seed=seed, config=config)
    run_jobs(_write_video, [(out, plan, config) for plan in plans], workers)
    atomic.write_text(out / ANNOTATIONS_NAME, "".join(f"{plan.annotation}\n" for plan in plans))
    return plans


def plan_dataset(num_videos: Mapping[str, int], *, seed: int, config: VideoConfig) -> list[VideoPlan]:
    """Names, lengths and event windows. Numbers continue across the splits, because annotations identify a video by
    its name alone.

    >>> plans = plan_dataset({"Train": 4, "Test": 2}, seed=0, config=VideoConfig())
    >>> [plan.path for plan in plans][:3]
    ['Train/NormalVideos/Normal_Videos001_x264.mp4', 'Train/Fighting/Fighting001_x264.mp4', \
'Train/NormalVideos/Normal_Videos002_x264.mp4']
    """
    plans: list[VideoPlan] = []
    numbers = dict.fromkeys((NORMAL, *CRIMES), 0)
    for split, count in num_videos.items():
        for position in range(count):
            encounter = CRIMES[position // 2 % len(CRIMES)]
            class_name = encounter if position % 2 else NORMAL
            numbers[class_name] += 1
            stem = "Normal_Videos" if class_name == NORMAL else class_name
            video_seed = (seed, len(plans))
            num_frames, event = _draw_window(np.random.default_rng((*video_seed, 0)), config)
            plans.append(
                VideoPlan(
                    path=f"{split}/{class_name}/{stem}{numbers[class_name]:03d}_x264.mp4",
                    class_name=class_name,
                    encounter=encounter,
                    num_frames=num_frames,
                    event=None if class_name == NORMAL else event,
                    seed=video_seed,
                )
            )
    return plans


def read_annotations(path: Path) -> dict[str, list[tuple[int, int]]]:
    """File name → event windows (first and last frame, both included), from a file in UCF-Crime's format."""
    windows: dict[str, list[tuple[int, int]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip():
            name, _, *bounds = line.split()
            starts_ends = zip(map(int, bounds[::2]), map(int, bounds[1::2]), strict=True)
            windows[name] = [(start, end) for start, end in starts_ends if start >= 0]
    return windows


def _draw_window(rng: np.random.Generator, config: VideoConfig) -> tuple[int, tuple[int, int]]:
    """Length of the video, and first and last frame of the event. Drawn for normal videos too, and unused there."""
    num_frames = int(rng.integers(config.num_frames[0], config.num_frames[1] + 1))
    length = max(2, round(num_frames * rng.uniform(*config.event_fraction)))
    first = int(rng.integers(1, num_frames - length))
    return num_frames, (first, first + length - 1)


def run_jobs(function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], workers: int | None) -> list[Any]:
    """Call `function(*job)` for every job, in processes when there are several workers; results in order."""
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    if workers <= 1:
        return [function(*job) for job in jobs]
    # spawn, as on every platform: a fork of a process that holds torch's or OpenCV's threads can hang
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        return list(pool.map(function, *zip(*jobs, strict=True), chunksize=4))


def _write_video(out: Path, plan: VideoPlan, config: VideoConfig) -> None:
    atomic.write_bytes(out / plan.path, encode(render_video(plan, config), plan, config))


# -------------------------------------------------------------------------------------------------------- one video


def encode(frames: Frames, plan: VideoPlan, config: VideoConfig) -> bytes:
    """Frames uint8 (N, H, W, 3) RGB → an MP4 with H.264; its settings are drawn without regard to the class."""
    import av

    rng = np.random.default_rng((*plan.seed, 1))
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=config.fps)
        stream.width, stream.height, stream.pix_fmt = config.width, config.height, "yuv420p"
        stream.options = {
            "preset": "veryfast",
            "crf": str(rng.integers(20, 26)),
            "g": str(rng.integers(16, 49)),
            "sc_threshold": "0",  # no keyframe where motion is fast: keyframes would give the event away
            "threads": "1",  # the same bytes on any number of cores
        }
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def render_video(plan: VideoPlan, config: VideoConfig) -> Frames:
    """All frames of a video, uint8 (N, H, W, 3), RGB."""
    rng = np.random.default_rng((*plan.seed, 2))
    scene = draw_scene(rng, config)
    encounter, kiosk_place = draw_encounter(rng, plan, config)
    actors = [*encounter, *_draw_passers_by(rng, plan, config)]
    if kiosk_place is not None:
        _draw_kiosk(rng, scene, kiosk_place, config)
    seconds = np.arange(plan.num_frames) / config.fps
    overlay = _draw_clock_overlay(rng, config)
    add_noise = _draw_camera(rng, config)

    frames = np.empty((plan.num_frames, config.height, config.width, 3), np.uint8)
    for number in range(plan.num_frames):
        canvas = scene.copy()
        for person, poses in sorted(actors, key=lambda actor: actor[1][number].y):  # the nearest last
            _draw_person(canvas, person, poses[number])
        frame = cv2.resize(canvas, (config.width, config.height), interpolation=cv2.INTER_AREA)
        frames[number] = overlay(add_noise(frame), float(seconds[number]))
    return frames


# --------------------------------------------------------------------------------------------- motion: who is where


@dataclasses.dataclass(frozen=True, kw_only=True)
class Person:
    """Appearance of a person; the height is in pixels at the lower edge of the picture."""

    height: float
    width: float  # of the shoulders, as a part of the height
    shirt: Colour
    trousers: Colour
    skin: Colour
    bag: Colour


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pose:
    """Where somebody stands (pixels; y is that of the feet) and how the limbs are."""

    x: float
    y: float
    scale: float  # of the height: perspective
    stride: float  # phase of the step, radians
    swing: float  # how wide legs and arms swing, 0 to 1
    lean: float  # of the upper body, as a part of the height
    has_bag: bool = False


Actor = tuple[Person, list[Pose]]


def encounter_clock(plan: VideoPlan, config: VideoConfig) -> npt.NDArray[np.float64]:
    """Return the encounter's clock at each frame, in radians: the only thing that an event changes.

    >>> config = VideoConfig()
    >>> plan = plan_dataset({"Train": 2}, seed=0, config=config)[1]
    >>> steps = np.diff(encounter_clock(dataclasses.replace(plan, event=(20, 29)), config))
    >>> bool(steps[19:29].min() > 5 * steps[:19].max())
    True
    """
    rng = np.random.default_rng((*plan.seed, 3))
    slow, fast = rng.uniform(*SLOW_RATE), rng.uniform(*FAST_RATE)
    rates = slow * rng.uniform(0.7, 1.3, plan.num_frames)
    jitter = rng.uniform(0.6, 1.4, plan.num_frames)
    if plan.event:
        first, last = plan.event
        rates[first : last + 1] = (fast * jitter)[first : last + 1]
    return np.cumsum(rates) / config.fps


def draw_encounter(
    rng: np.random.Generator, plan: VideoPlan, config: VideoConfig
) -> tuple[list[Actor], tuple[float, float] | None]:
    """Return the two people of the encounter and the position of the kiosk (pixels; None if there is none)."""
    clock = encounter_clock(plan, config)
    people = [_draw_looks(rng, config), _draw_looks(rng, config)]
    centre = np.array([rng.uniform(0.36, 0.64) * config.width, rng.uniform(0.66, 0.86) * config.height])
    move = _fight_paths if plan.encounter == "Fighting" else _robbery_paths
    paths, bags, kiosk_x = move(rng, clock, reach=0.5 * people[0].height)
    actors = []
    for person, path, bag in zip(people, paths, bags, strict=True):
        strides = 2.0 * clock + rng.uniform(0, 2 * np.pi)
        leans = 0.12 * np.sin(1.3 * clock + rng.uniform(0, 2 * np.pi))
        places = np.stack([np.clip(centre[0] + path[:, 0], 6, config.width - 6), centre[1] + path[:, 1]], axis=1)
        actors.append((person, _poses(places, strides, 0.8, leans, bag, config)))
    return actors, None if kiosk_x is None else (float(centre[0] + kiosk_x), float(centre[1]))


def _fight_paths(rng: np.random.Generator, clock: npt.NDArray[np.float64], *, reach: float) -> tuple[Any, Any, None]:
    """Two people who run into each other, part, and circle; the distances in units of `reach`, about a body's width."""
    gap = reach * (1.0 + 0.8 * _wave(rng, clock, 1.0))
    turn = 0.5 * _wave(rng, clock, 0.6) + (np.pi if rng.random() < 0.5 else 0.0)
    middle = reach * np.stack([1.1 * _wave(rng, clock, 0.7), 0.25 * _wave(rng, clock, 0.9)], axis=1)
    offset = 0.5 * np.stack([gap * np.cos(turn), 0.6 * gap * np.sin(turn)], axis=1)
    holder = rng.integers(3)  # somebody may carry a bag here as well
    return (middle + offset, middle - offset), [np.full(len(clock), holder == i) for i in range(2)], None


def _robbery_paths(rng: np.random.Generator, clock: npt.NDArray[np.float64], *, reach: float) -> tuple[Any, Any, float]:
    """One goes to the other, takes the bag and goes away, round a long loop; the other one is pushed aside.

    The third value is where the other one's kiosk stands, whatever the clock reads.
    """
    phase = clock + rng.uniform(0, 2 * np.pi)  # 0: far away, π: at the victim
    side = 1.0 if rng.random() < 0.5 else -1.0
    far = side * reach * rng.uniform(3.0, 3.8)
    thief = np.stack([far * (0.5 + 0.5 * np.cos(phase)) - 0.5 * far, 0.5 * reach * np.sin(phase)], axis=1)
    pushed = reach * np.exp(-2.0 * (1 + np.cos(phase))) * -side  # only while the thief is near
    victim = np.stack([-0.5 * far + 0.9 * pushed, 0.15 * pushed], axis=1)
    has_bag = np.sin(phase) < 0  # from π to 2π the thief has it
    return (thief, victim), [has_bag, ~has_bag], -0.5 * far


def _draw_passers_by(rng: np.random.Generator, plan: VideoPlan, config: VideoConfig) -> list[Actor]:
    """Up to three others who walk by at a steady slow pace, or stand; they know nothing of the event."""
    seconds = np.arange(plan.num_frames) / config.fps
    actors = []
    for _ in range(rng.integers(0, 4)):
        person = _draw_looks(rng, config)
        speed = rng.choice([-1.0, 1.0]) * rng.choice([0.0, rng.uniform(0.03, 0.1)]) * config.width  # pixels per second
        start = rng.uniform(0.0, 1.0) * config.width
        xs = start + speed * seconds
        ys = np.full(plan.num_frames, rng.uniform(0.58, 0.96) * config.height) + 0.1 * speed * seconds
        strides = rng.uniform(0, 2 * np.pi) + 5.0 * seconds * (speed != 0)
        swing = rng.uniform(0.3, 0.7)
        leans = 0.03 * np.sin(0.5 * seconds + rng.uniform(0, 2 * np.pi))
        bag = np.full(plan.num_frames, rng.random() < 0.3)
        actors.append((person, _poses(np.stack([xs, ys], axis=1), strides, swing, leans, bag, config)))
    return actors


def _wave(rng: np.random.Generator, clock: npt.NDArray[np.float64], frequency: float) -> npt.NDArray[np.float64]:
    """Evaluate a smooth random function of the clock, in −1 to 1, with the same distribution at any reading.

    Two sines with uniform phases and no common period: sampling frames at a fixed distance cannot hide the motion.
    """
    phases = rng.uniform(0, 2 * np.pi, 2)
    return 0.7 * np.sin(frequency * clock + phases[0]) + 0.3 * np.sin(2.3 * frequency * clock + phases[1])


def _poses(places: Any, strides: Any, swing: float, leans: Any, bag: Any, config: VideoConfig) -> list[Pose]:
    return [
        Pose(
            x=float(x),
            y=float(y),
            scale=float(0.35 + 0.65 * y / config.height),
            stride=float(stride),
            swing=swing,
            lean=float(lean),
            has_bag=bool(has_bag),
        )
        for (x, y), stride, lean, has_bag in zip(places, strides, leans, bag, strict=True)
    ]


# ----------------------------------------------------------------------------------------------------------- looks

_CLOTHES = ((38, 44, 60), (120, 32, 36), (70, 92, 60), (200, 196, 186), (52, 84, 140), (150, 120, 70), (28, 28, 30))
_AWNINGS = ((180, 40, 40), (40, 110, 60), (40, 70, 150))
_SKINS = ((232, 190, 160), (196, 148, 112), (142, 98, 70), (96, 64, 48))


def _draw_looks(rng: np.random.Generator, config: VideoConfig) -> Person:
    return Person(
        height=config.height * rng.uniform(0.40, 0.52),
        width=rng.uniform(0.24, 0.32),
        shirt=_shade(rng, _CLOTHES),
        trousers=_shade(rng, _CLOTHES),
        skin=_shade(rng, _SKINS),
        bag=_shade(rng, _CLOTHES),
    )


def _shade(rng: np.random.Generator, palette: Sequence[Colour]) -> Colour:
    red, green, blue = palette[rng.integers(len(palette))]
    shift = rng.integers(-14, 15, 3)
    return tuple(int(np.clip(v, 0, 255)) for v in np.array([red, green, blue]) + shift)  # type: ignore[return-value]


def _draw_person(canvas: Frames, person: Person, pose: Pose) -> None:
    """Shadow, legs, arms, body and head as round-ended strokes, at SUPERSAMPLING times the size of the video."""
    size = person.height * pose.scale * SUPERSAMPLING
    x, y = pose.x * SUPERSAMPLING, pose.y * SUPERSAMPLING
    swing = 0.16 * size * pose.swing * np.sin(pose.stride)
    hip = (x, y - 0.46 * size)
    neck = (x + pose.lean * size, y - 0.8 * size)
    body = person.width * size

    def stroke(start: tuple[float, float], end: tuple[float, float], width: float, colour: Colour) -> None:
        a, b = (round(start[0]), round(start[1])), (round(end[0]), round(end[1]))
        cv2.line(canvas, a, b, colour, max(1, round(width)), cv2.LINE_8)

    _darken_ellipse(canvas, (x, y), (0.9 * body, 0.28 * body))
    stroke(hip, (x - swing - 0.05 * size, y), 0.11 * size, person.trousers)
    stroke(hip, (x + swing + 0.05 * size, y), 0.11 * size, person.trousers)
    back_arm = (neck[0] - 0.4 * body, neck[1] + 0.05 * size)
    stroke(back_arm, (back_arm[0] - 0.7 * swing, back_arm[1] + 0.32 * size), 0.07 * size, person.skin)
    stroke((hip[0], hip[1] - 0.06 * size), (neck[0], neck[1] + 0.1 * size), body, person.shirt)
    front_arm = (neck[0] + 0.4 * body, neck[1] + 0.08 * size)
    hand = (front_arm[0] + 0.9 * swing, front_arm[1] + 0.3 * size)
    dark = tuple(int(0.75 * v) for v in person.shirt)
    stroke(front_arm, hand, 0.08 * size, dark)  # type: ignore[arg-type]
    if pose.has_bag:
        stroke((hand[0], hand[1] + 0.05 * size), (hand[0], hand[1] + 0.09 * size), 0.14 * size, person.bag)
    head = (round(neck[0] + 0.02 * size), round(neck[1] - 0.1 * size))
    cv2.circle(canvas, head, round(0.095 * size), person.skin, -1)
    cv2.ellipse(canvas, head, (round(0.1 * size),) * 2, 0, 180, 360, (40, 32, 28), -1)  # hair


def _darken_ellipse(canvas: Frames, centre: tuple[float, float], axes: tuple[float, float]) -> None:
    """Draw a shadow: dim the floor to two thirds of its brightness."""
    x, y, a, b = round(centre[0]), round(centre[1]), max(1, round(axes[0])), max(1, round(axes[1]))
    top, bottom, left, right = max(0, y - b), min(canvas.shape[0], y + b), max(0, x - a), min(canvas.shape[1], x + a)
    if top < bottom and left < right:
        region = canvas[top:bottom, left:right]
        black = region.copy()
        cv2.ellipse(black, (x - left, y - top), (a, b), 0, 0, 360, (0, 0, 0), -1)
        region[...] = cv2.addWeighted(region, 2 / 3, black, 1 / 3, 0)


# ------------------------------------------------------------------------------------------------- scene and camera


def draw_scene(rng: np.random.Generator, config: VideoConfig) -> Frames:
    """Draw an empty room or street: uint8 (S·H, S·W, 3) with S = SUPERSAMPLING."""
    height, width = config.height * SUPERSAMPLING, config.width * SUPERSAMPLING
    horizon = int(height * rng.uniform(0.3, 0.42))
    wall, floor = (rng.uniform(90, 200, 1) + rng.uniform(-25, 25, 3) for _ in range(2))
    scene = np.empty((height, width, 3), np.float32)
    scene[:horizon] = wall * np.linspace(0.8, 1.0, horizon)[:, None, None]
    scene[horizon:] = floor * np.linspace(0.75, 1.1, height - horizon)[:, None, None]

    def clipped(colour: Any) -> tuple[float, ...]:
        return tuple(float(v) for v in np.clip(colour, 0, 255))

    vanishing_x = width * rng.uniform(0.3, 0.7)
    for x in np.linspace(-width, 2 * width, int(rng.integers(8, 22))):  # joints of the paving
        far_x = vanishing_x + 0.35 * (x - vanishing_x)
        cv2.line(scene, (int(far_x), horizon), (int(x), height), clipped(floor * 0.8), 3)
    for depth in np.linspace(0, 1, int(rng.integers(4, 8)))[1:]:
        y = int(horizon + (height - horizon) * depth**1.7)
        cv2.line(scene, (0, y), (width, y), clipped(floor * 0.82), 3)
    cv2.rectangle(scene, (0, horizon - 8), (width, horizon), clipped(wall * 0.55), -1)  # skirting

    for _ in range(rng.integers(2, 6)):  # doors, windows, posters
        x, w = rng.uniform(0, width), rng.uniform(0.08, 0.2) * width
        top, bottom = horizon * rng.uniform(0.1, 0.35), horizon * rng.choice([0.65, 0.8, 0.985])
        colour = rng.uniform(40, 230, 1) + rng.uniform(-30, 30, 3)
        box = ((int(x), int(top)), (int(x + w), int(bottom)))
        cv2.rectangle(scene, *box, clipped(colour), -1)
        cv2.rectangle(scene, *box, clipped(wall * 0.5), 6)
        if rng.random() < 0.5:
            cv2.line(scene, (int(x + w / 2), int(top)), (int(x + w / 2), int(bottom)), clipped(wall * 0.5), 4)
    for _ in range(rng.integers(0, 4)):  # boxes, counters, cars: things that stand at the edges
        x = rng.choice([rng.uniform(-0.05, 0.15), rng.uniform(0.85, 1.0)]) * width
        y, w, h = rng.uniform(0.5, 1.0) * height, rng.uniform(0.1, 0.25) * width, rng.uniform(0.1, 0.25) * height
        colour = rng.uniform(50, 200, 1) + rng.uniform(-35, 35, 3)
        cv2.rectangle(scene, (int(x), int(y - h)), (int(x + w), int(y)), clipped(colour * 0.75), -1)
        cv2.rectangle(scene, (int(x), int(y - 1.25 * h)), (int(x + w), int(y - h)), clipped(colour), -1)

    stains = rng.normal(0, 1, (12, 16, 1)).astype(np.float32)
    scene *= 1 + 0.07 * cv2.resize(stains, (width, height), interpolation=cv2.INTER_CUBIC)[..., None]
    grain = rng.normal(0, 4, (config.height, config.width)).astype(np.float32)
    scene += cv2.resize(grain, (width, height), interpolation=cv2.INTER_LINEAR)[..., None]
    return np.clip(scene, 0, 255).astype(np.uint8)


def _draw_kiosk(rng: np.random.Generator, scene: Frames, place: tuple[float, float], config: VideoConfig) -> None:
    """Draw a stall with a striped awning behind the people who stand at `place` (pixels; y at their feet)."""
    height = 0.46 * config.height * (0.35 + 0.65 * place[1] / config.height) * SUPERSAMPLING  # of a person there
    x, foot = place[0] * SUPERSAMPLING, (place[1] - 2) * SUPERSAMPLING
    wall, cloth = _shade(rng, _CLOTHES), _shade(rng, _AWNINGS)
    half, top = 0.8 * height, foot - 1.25 * height

    def box(left: float, upper: float, right: float, lower: float, colour: Colour) -> None:
        cv2.rectangle(scene, (round(left), round(upper)), (round(right), round(lower)), colour, -1)

    box(x - half, top, x + half, foot, wall)
    box(x - 0.85 * half, top + 0.3 * height, x + 0.85 * half, foot - 0.45 * height, (225, 214, 176))  # lit inside
    box(x - 1.05 * half, foot - 0.45 * height, x + 1.05 * half, foot - 0.38 * height, (96, 72, 52))  # the counter
    stripes = np.linspace(x - 1.15 * half, x + 1.15 * half, 10)
    for i, (left, right) in enumerate(itertools.pairwise(stripes)):
        box(left, top - 0.1 * height, right, top + 0.22 * height, cloth if i % 2 else (238, 236, 230))


def _draw_camera(rng: np.random.Generator, config: VideoConfig) -> Callable[[Frames], Frames]:
    """Draw a camera (light, tint, vignette, noise) and return the function that applies it to clean frames."""
    height, width = config.height, config.width
    ys, xs = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    vignette = 1 - rng.uniform(0.1, 0.35) * (xs**2 + ys**2) / 2
    saturation = rng.uniform(0.45, 1.0)
    tint = saturation * np.eye(3) + (1 - saturation) / 3
    gain = (rng.uniform(0.6, 1.1) * rng.uniform(0.92, 1.08, 3) * vignette[..., None]).astype(np.float32)
    # One sheet of noise, cut at another place for each frame: as random to the eye and to the encoder, and fast.
    margin = 64
    sheet = rng.normal(0, rng.uniform(*config.noise), (height + margin, width + margin, 3)).astype(np.float32)
    sheet = 0.8 * sheet.mean(axis=2, keepdims=True) * np.sqrt(3) + 0.4 * sheet

    def take(frame: Frames) -> Frames:
        y, x = rng.integers(0, margin, 2)
        image = cv2.transform(frame, tint).astype(np.float32) * gain + sheet[y : y + height, x : x + width]
        return np.clip(image, 0, 255).astype(np.uint8)

    return take


def _draw_clock_overlay(rng: np.random.Generator, config: VideoConfig) -> Callable[[Frames, float], Frames]:
    """Draw the recorder's text (camera number and time of day in a corner) in two of three videos."""
    shown = rng.random() < 2 / 3
    start, camera = rng.integers(0, 86400), rng.integers(1, 17)
    place = (3, 9) if rng.random() < 0.5 else (3, config.height - 4)

    def write(frame: Frames, seconds: float) -> Frames:
        if shown:
            now = int(start + seconds) % 86400
            text = f"CAM{camera:02d} {now // 3600:02d}:{now // 60 % 60:02d}:{now % 60:02d}"
            for shift, colour in ((1, (0, 0, 0)), (0, (235, 235, 235))):  # its shadow, then the text
                corner = (place[0] + shift, place[1] + shift)
                cv2.putText(frame, text, corner, cv2.FONT_HERSHEY_PLAIN, 0.62, colour, 1, cv2.LINE_AA)
        return frame

    return write


# ------------------------------------------------------------------------------------------------------ the command


def _split_count(text: str) -> tuple[str, int]:
    split, _, count = text.partition("=")
    return split, int(count)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make surveillance-like MP4s in the UCF-Crime layout.")
    parser.add_argument("out", type=Path, help="folder to write SPLIT/CLASS/*.mp4 and the annotations to")
    parser.add_argument(
        "--videos",
        type=_split_count,
        action="append",
        metavar="SPLIT=N",
        help="videos of a split, half of them normal; may be repeated (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one a core)")
    options = parser.parse_args(arguments)
    plans = make_dataset(
        options.out, num_videos=dict(options.videos or DEMO_VIDEOS), seed=options.seed, workers=options.workers
    )
    print(f"{len(plans)} videos and {ANNOTATIONS_NAME} written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
