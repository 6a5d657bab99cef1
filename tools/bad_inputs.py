"""Build a tree of hostile and damaged videos and check the result against what is known of each.

    python tools/bad_inputs.py TREE [--decoder auto] [--workers 2]

TREE is made by a generator of bad inputs that is not part of this repository. It writes down in TREE/manifest.jsonl
what each input is: `decode` (sound, however odd), `refuse`, or `either` (damaged: refused, right, or flagged, but never
wrong and silent). Each input may take as long as its limit and GRACE_SECONDS more; the one that comes nearest is shown.
Needs ffmpeg on the PATH for the truth about real videos.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt

from vidshard import BuildConfig, SamplingConfig, build
from vidshard.execution import base
from vidshard.execution.base import Executor, ExecutorConfig, Task, TaskResult
from vidshard.shards.layout import decode_clip, read_shard
from vidshard.shards.manifest import open_shards

SIZE = 112
MAX_DIFFERENCE = 8.0  # mean over a 32 × 24 grid of points, grey levels
GRID = (24, 32)
DENSE = SamplingConfig(mode="dense")
GRACE_SECONDS = 2.0  # over its limit, to end a child and start another

Pictures = npt.NDArray[np.uint8]  # (T, H, W, 3) RGB


@dataclass(frozen=True)
class Time:
    """Wall time of one task, from its assignment to its result."""

    path: Path
    seconds: float
    limit_seconds: float

    @property
    def over_seconds(self) -> float:
        return self.seconds - self.limit_seconds


class Stopwatch:
    """Wrapper of an executor that records the time of each task."""

    def __init__(self, executor: Executor, times: list[Time]) -> None:
        self.executor, self.times = executor, times

    @property
    def config(self) -> ExecutorConfig:
        return self.executor.config

    def __enter__(self) -> Stopwatch:
        self.executor.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self.executor.__exit__(*exc)

    def run(self, function: Callable[[Any], Any], tasks: Iterable[Task]) -> Iterator[TaskResult]:
        started: dict[int, float] = {}

        def handed_out() -> Iterator[Task]:
            for task in tasks:
                started[id(task)] = time.monotonic()
                yield task

        for result in self.executor.run(function, handed_out()):
            task = result.task
            tries = self.config.attempts if result.crash else 1
            seconds = time.monotonic() - started.pop(id(task))
            self.times.append(Time(task.argument.video_path, seconds, tries * task.timeout_seconds))
            yield result


@dataclass
class Seen:
    """Outcome of a build for one video."""

    num_frames: int = 0
    frames: dict[int, Pictures] = field(default_factory=dict)  # frame index → picture
    flagged: bool = False
    decoder: str = ""


# short: frames are missing, and the rest are correct; crashed: a worker died or took too long.
VERDICTS = ("right", "refused", "flagged", "wrong", "short", "crashed", "lost")
CRASHES = ("timeout", "exited", "killed_by_")


@dataclass(frozen=True)
class Verdict:
    path: str
    cls: str
    expect: str
    verdict: str  # one of VERDICTS
    why: str

    @property
    def is_bad(self) -> bool:
        """True if this verdict is not acceptable for such an input."""
        allowed = {"decode": {"right"}, "refuse": {"refused"}, "either": {"right", "refused", "flagged"}}
        return self.verdict not in allowed[self.expect]


def judge(
    tree: Path,
    *,
    decoder: str = "auto",
    workers: int = 2,
    timeout_seconds: float = 30.0,
    sampling: SamplingConfig = DENSE,
) -> tuple[list[Verdict], list[Time]]:
    """Build `tree`; return a verdict on each input of its manifest, and how long the tasks took."""
    rows = [json.loads(line) for line in (tree / "manifest.jsonl").read_text().splitlines()]
    with tempfile.TemporaryDirectory(prefix="bad-inputs-") as folder:
        config = BuildConfig(
            source=tree,
            out=Path(folder, "out"),
            sampling=sampling,
            frame_size=SIZE,
            decoder=decoder,
            workers=workers,
            timeout_seconds=timeout_seconds,
            yes=True,
        )
        times: list[Time] = []
        make_executor = base.make_executor
        with mock.patch.object(base, "make_executor", lambda *given: Stopwatch(make_executor(*given), times)):
            report = build(config)
        assert report.videos["found"] == sum(n for name, n in report.videos.items() if name != "found")
        failures = {f.path: f"{f.outcome}: {f.reason}: {f.message}" for s in report.sets for f in s.manifest.failures}
        seen = read_back(report.folders[0])
    unique = {(row["path_hex"], row["cls"]): row for row in rows}
    rows = [row for row in unique.values() if not (row.get("nonroot") and may_read_all())]
    return [verdict(row, tree, seen, failures) for row in rows], times


def may_read_all() -> bool:
    """Return True if this process is root, which no permission restricts."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def read_back(folder: Path) -> dict[str, Seen]:
    """Read the frames of each video, by path, from the shards of `folder`."""
    shards = open_shards(folder)
    seen: dict[str, Seen] = {}
    for shard in shards.manifest.shards:
        with open(folder / shard.name, "rb") as file:
            for key, payload, record, _ in read_shard(file):
                clip = decode_clip(payload, shards.manifest.clip_shape, where=key)
                video = seen.setdefault(record.path, Seen())
                video.num_frames, video.decoder = record.num_frames, record.decoder
                video.flagged |= "damaged" in record.flags
                video.frames.update(zip(record.frame_indices, clip, strict=True))
    return seen


def verdict(row: dict[str, Any], tree: Path, seen: dict[str, Seen], failures: dict[str, str]) -> Verdict:
    path = os.path.relpath(os.fsdecode(bytes.fromhex(row["path_hex"])), tree)
    told = functools.partial(Verdict, path, row["cls"], row["expect"])
    if path in failures:
        crashed = failures[path].partition(": ")[2].startswith(CRASHES)
        return told("crashed" if crashed else "refused", failures[path])
    if path not in seen:
        return told("lost", "it is not in the ledger")
    wrong = what_is_wrong(row, seen[path])
    if wrong is None:
        return told("right", seen[path].decoder)
    name = "short" if row.get("ref") and is_part(seen[path], true_thumbs(row["src"])) else "wrong"
    return told("flagged" if seen[path].flagged else name, f"{seen[path].decoder}: {wrong}")


def what_is_wrong(row: dict[str, Any], video: Seen) -> str | None:
    """Describe how the frames of a build differ from the truth; None if they do not."""
    if row["frames"] is None:
        return "it is no video"
    if video.num_frames != row["frames"]:
        return f"{video.num_frames} frames, expected {row['frames']}"
    if row.get("coded"):
        got = {i: read_code(np.rot90(frame, -row.get("rotate", 0) // 90)) for i, frame in video.frames.items()}
        bad = sorted(i for i, code in got.items() if code != row["ids"][i])
        return f"{len(bad)} frames are others, the first is {bad[0]}" if bad else None
    if row.get("ref"):
        truth = true_thumbs(row["src"])
        thumbs = {i: thumb(frame) for i, frame in video.frames.items()}
        differences = {i: difference(picture, truth[i]) for i, picture in thumbs.items()}
        bad = sorted(i for i, value in differences.items() if value > MAX_DIFFERENCE)
        if bad:
            return f"{len(bad)} frames differ, by up to {max(differences.values()):.0f}"
        for i, value in differences.items():
            limit = 0.6 * value - 1  # below it, another frame fits clearly better
            if limit > 0 and (found := min(difference(thumbs[i], other) for other in truth)) < limit:
                return f"another frame fits frame {i} better, {found:.1f} against {value:.1f}"
    return None


def is_part(video: Seen, truth: npt.NDArray[np.float32]) -> bool:
    """Return True if a video lacks frames, and those that it has are frames of `truth`, in order."""
    place = -1
    for _, frame in sorted(video.frames.items()):
        picture = thumb(frame)
        later = (j for j in range(place + 1, len(truth)) if difference(picture, truth[j]) <= MAX_DIFFERENCE)
        place = next(later, len(truth))
    return place < len(truth) > video.num_frames


def difference(picture: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """Return the mean absolute difference of two thumbnails in grey levels."""
    return float(np.abs(picture - other).mean())


@functools.lru_cache(maxsize=64)
def true_thumbs(path: str) -> npt.NDArray[np.float32]:
    """Decode the thumbnails of all frames of a sound video with the ffmpeg command."""
    command = ["ffmpeg", "-nostdin", "-v", "error", "-i", path, "-map", "0:v:0", "-vsync", "passthrough"]
    command += ["-vf", f"scale={SIZE}:{SIZE}:flags=area+accurate_rnd", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.stack([thumb(frame) for frame in np.frombuffer(raw, np.uint8).reshape(-1, SIZE, SIZE, 3)])


def thumb(frame: Pictures) -> npt.NDArray[np.float32]:
    """Sample a picture (H, W, 3) on the grid that the generator of bad inputs uses for comparison."""
    height, width = frame.shape[:2]
    ys = ((np.arange(GRID[0]) + 0.5) * height / GRID[0]).astype(int)
    xs = ((np.arange(GRID[1]) + 0.5) * width / GRID[1]).astype(int)
    return frame[ys][:, xs].astype(np.float32).mean(-1)


def read_code(frame: Pictures) -> int:
    """Return the number that a generated frame carries in 4 × 4 blocks, or -1 if it cannot be read."""
    height, width = frame.shape[:2]
    number = 0
    for bit in range(16):
        y, x = bit // 4 * height // 4, bit % 4 * width // 4
        block = frame[y + height // 10 : y + height // 4 - height // 10, x + width // 10 : x + width // 4 - width // 10]
        if 90 < block.mean() < 165:
            return -1
        number |= int(block.mean() >= 128) << bit
    return number


def table(verdicts: list[Verdict]) -> str:
    """Format the counts of the verdicts for each expectation, and list every bad one by name."""
    counts = Counter((v.expect, v.verdict) for v in verdicts)
    lines = [f"{'':8}" + "".join(f"{name:>9}" for name in VERDICTS)]
    for expect in ("decode", "refuse", "either"):
        lines.append(f"{expect:8}" + "".join(f"{counts[expect, name]:9}" for name in VERDICTS))
    lines += [f"  {v.expect} {v.verdict}: {v.path!a}: {v.why}" for v in verdicts if v.is_bad]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", type=Path)
    parser.add_argument("--decoder", default="auto")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--verbose", action="store_true", help="also why each damaged input was refused")
    options = parser.parse_args()
    start = time.monotonic()
    verdicts, times = judge(options.tree.absolute(), decoder=options.decoder, workers=options.workers)
    if options.verbose:
        for v in verdicts:
            print(f"{v.expect} {v.verdict}: {v.path!a}: {v.why[:150]!a}")
    print(f"{options.decoder}: {len(verdicts)} inputs in {time.monotonic() - start:.0f} s\n{table(verdicts)}")
    worst, slowest = max(times, key=lambda t: t.over_seconds), max(times, key=lambda t: t.seconds)
    for what, t in (("nearest to its limit", worst), ("slowest", slowest)):
        print(f"{what} of {len(times)} tasks: {t.seconds:.2f} s of {t.limit_seconds:.0f} s, {t.path.name!a}")
    return int(any(v.is_bad for v in verdicts) or worst.over_seconds > GRACE_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
