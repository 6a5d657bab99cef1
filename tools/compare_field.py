"""Build your own videos with every decoder and compare them with what ffmpeg shows.

    python tools/compare_field.py FOLDER … [--out report.json] [--decoders auto,decord,opencv,pyav]
                                  [--sampling uniform,dense] [--fps 7.5] [--max-frames 5000] [--limit N]

Every file of the folders in which ffprobe sees a video is built by `vidshard` with each decoder and each sampling, and
read by two plain loops as people write them (`cv2.VideoCapture`, `decord.VideoReader`). The `ffmpeg` program (5.1 or
newer, on PATH) says what is right. A result is *refused*, *wrong* or *right*; it is wrong where

- the number of frames is not ffmpeg's;
- another frame of the video fits clearly better than the one that was asked for;
- a frame is more than half a frame earlier or later than ffmpeg shows it (not checked where the loops or ffmpeg have no
  times, or ffmpeg's run backwards);
- the pixels of a frame are below 26 dB of PSNR.

Videos that ffmpeg cannot read, or reads with an error message, are listed and not counted. Of long videos only the
first `--max-frames` frames are compared. Shards go into a folder for temporary files, 64 videos at a time.

Exit code: 1 if vidshard gave anything wrong or `auto` refused a video, else 0.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vidshard import BuildConfig, SamplingConfig, build
from vidshard.shards.layout import FAILURES_NAME, MANIFEST_NAME, decode_clip, read_record
from vidshard.shards.manifest import ShardSet, log_folder, open_shards
from vidshard.util.errors import UserError
from vidshard.util.lists import VIDEO_SUFFIXES
from vidshard.video.decoders import AUTO, LIBRARIES, decoder_versions

Pictures = npt.NDArray[np.uint8]  # (N, SIDE, SIDE, 3) RGB
Floats = npt.NDArray[np.float64]

SIDE = 112  # height and width of the frames that are compared, pixels
# The last two filters and the clock of the output number the frames: how far apart they are is no error of the output.
FILTERS = f"scale={SIDE}:{SIDE}:flags=area+accurate_rnd+full_chroma_int,format=gbrp,format=rgb24,settb=1/1000,setpts=N"
LOWEST_DB = 26.0
SAME_DB = 99.0  # PSNR of two equal frames, which is infinite
CLOCK_TICK_SECONDS = 0.001  # containers round times, some to milliseconds
LOOP_FRAMES = 16  # how many frames of a video the plain loops are asked for
LOOP_SECONDS = 600.0  # time limit of a plain loop for one video
BATCH_VIDEOS = 64  # so many videos are built at once: it bounds the disk space
BATCH_FRAMES = 256  # so many frames are compared at once: it bounds the memory

# What ffprobe calls a video stream too: pictures, text and playlists.
NO_CONTAINERS = ("image2", "gif", "tty", "concat", "hls", "dash", "webvtt")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of one reader for one video."""

    verdict: Literal["right", "wrong", "refused"]
    why: str = ""  # which checks failed, or the reason of the refusal
    frames: int = 0  # that were compared
    lowest_db: float | None = None  # PSNR of the worst of them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """A video as ffmpeg shows it."""

    num_frames: int
    pictures: Pictures  # the first ones: all, or as many as were asked for
    seconds: Floats | None  # when each of `num_frames` is shown, from the first; None: not known
    errors: str = ""  # what ffmpeg printed at level error

    @property
    def half_frame(self) -> float:
        """Half the median time from frame to frame, seconds."""
        if self.seconds is None or len(self.seconds) < 2:
            return 0.0
        return float(np.median(np.diff(self.seconds))) / 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """Frames that a reader gave: which ones they should be, their pictures, and when they are shown if it says so."""

    indices: npt.NDArray[np.int64]  # (N,)
    pictures: Pictures
    seconds: Floats | None = None  # (N,)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--out", type=Path, help="write all results as JSON")
    parser.add_argument("--decoders", type=_names(AUTO, *LIBRARIES), default=[AUTO, *LIBRARIES], metavar="NAMES")
    parser.add_argument("--sampling", type=_names("uniform", "dense"), default=["uniform", "dense"], metavar="NAMES")
    parser.add_argument("--fps", type=float, default=7.5, help="of dense sampling; 0: every frame (default: 7.5)")
    parser.add_argument("--max-frames", type=int, default=5000, help="compare so many frames of a video at most")
    parser.add_argument("--limit", type=int, help="compare the first N videos only")
    parser.add_argument("--workers", type=int)
    options = parser.parse_args()
    if missing := [program for program in ("ffmpeg", "ffprobe") if shutil.which(program) is None]:
        parser.error(f"{' and '.join(missing)} not found on PATH; install ffmpeg 5.1 or newer")
    for decoder in [name for name in options.decoders if decoder_versions().get(name) == "absent"]:
        print(f"{decoder} is not installed and is left out", file=sys.stderr)
        options.decoders.remove(decoder)

    videos, unreadable = find_videos(options.folders)
    if not videos and not unreadable:
        parser.error(f"no video in {', '.join(map(str, options.folders))}")
    results: dict[Path, dict[str, Outcome]] = {}
    set_aside = {path: f"ffprobe says: {message}" for path, message in unreadable.items()}
    videos = videos[: options.limit]
    for start in range(0, len(videos), BATCH_VIDEOS):
        for path, outcomes in compare_batch(videos[start : start + BATCH_VIDEOS], options):
            if isinstance(outcomes, str):
                set_aside[path] = f"ffmpeg says: {outcomes}"
            else:
                results[path] = outcomes
            print(f"{len(results) + len(set_aside):,} {path}", file=sys.stderr, flush=True)
    print(to_text(results, set_aside))
    if options.out is not None:
        options.out.write_text(json.dumps(to_json(results, set_aside), indent=1) + "\n", encoding="utf-8")
    return 0 if is_good(results) else 1


def _names(*allowed: str) -> Callable[[str], list[str]]:
    """Return a parser of comma-separated names."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(allowed):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: expected some of {','.join(allowed)}")
        return names

    return parse


# ----------------------------------------------------------------------------------------------- which files are videos


def find_videos(folders: Iterable[Path]) -> tuple[list[Path], dict[Path, str]]:
    """Return the files that ffprobe accepts as videos, sorted, and the reasons for those that it rejects."""
    videos, unreadable = [], {}
    for path in sorted({file.absolute() for folder in folders for file in _files(folder)}):
        try:
            if has_video(path):
                videos.append(path)
        except ValueError as error:
            if path.suffix.lower() in VIDEO_SUFFIXES:
                unreadable[path] = str(error)
    return videos, unreadable


def _files(folder: Path) -> Iterator[Path]:
    if folder.is_file():
        yield folder
    for parent, _, names in os.walk(folder):
        yield from (path for name in names if (path := Path(parent, name)).is_file())


def has_video(path: Path) -> bool:
    """Return True if the file is a container with a video stream other than a cover picture. Raises ValueError if
    unreadable."""
    entries = "format=format_name:stream=codec_type:stream_disposition=attached_pic"
    command = ["ffprobe", "-v", "error", "-show_entries", entries, "-of", "json", f"file:{path}"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise ValueError(one_line(done.stderr) or f"exit code {done.returncode}")
    about = json.loads(done.stdout)
    formats = about["format"]["format_name"].split(",")
    if any(name.endswith("_pipe") or name in NO_CONTAINERS for name in formats):
        return False
    return any(
        stream.get("codec_type") == "video" and not stream.get("disposition", {}).get("attached_pic")
        for stream in about.get("streams", [])
    )


def one_line(text: bytes, length: int = 300) -> str:
    """Join the output of a program into one line."""
    return " / ".join(text.decode("utf-8", "replace").split("\n")).strip(" /")[:length]


# ---------------------------------------------------------------------------------------------------- what ffmpeg shows


def read_reference(path: Path, max_frames: int) -> Reference:
    """Decode a video with the ffmpeg program; the pictures of the first `max_frames` frames are kept."""
    command = ["ffmpeg", "-nostdin", "-v", "error", "-i", f"file:{path}", "-map", "0:V:0", "-fps_mode", "passthrough"]
    command += ["-enc_time_base", "1:1000", "-vf", FILTERS, "-f", "rawvideo", "-"]
    kept, num_frames = bytearray(), 0
    with (
        tempfile.TemporaryFile() as messages,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages) as ffmpeg,
    ):
        assert ffmpeg.stdout is not None
        while len(picture := ffmpeg.stdout.read(SIDE * SIDE * 3)) == SIDE * SIDE * 3:
            if num_frames < max_frames:
                kept += picture
            num_frames += 1
        exit_code = ffmpeg.wait()
        messages.seek(0)
        errors = one_line(messages.read())
    if not errors and (exit_code or not num_frames):
        errors = f"{num_frames} frames, exit code {exit_code}"
    return Reference(
        num_frames=num_frames,
        pictures=np.frombuffer(kept, np.uint8).reshape(-1, SIDE, SIDE, 3),
        seconds=usable_seconds(frame_seconds(path), num_frames),
        errors=errors,
    )


def usable_seconds(seconds: Floats, num_frames: int) -> Floats | None:
    """Return the times from the first frame on, or None if some are missing or run backwards (no answer is right)."""
    if len(seconds) != num_frames or not num_frames or np.isnan(seconds).any() or (np.diff(seconds) < 0).any():
        return None
    shifted: Floats = seconds - seconds[0]
    return shifted


def frame_seconds(path: Path) -> Floats:
    """When ffprobe shows each frame, seconds; not a number where it does not say."""
    command = ["ffprobe", "-v", "error", "-select_streams", "V:0", "-show_entries", "frame=best_effort_timestamp_time"]
    done = subprocess.run([*command, "-of", "csv=p=0", f"file:{path}"], capture_output=True, check=False)
    words = [line.strip(b",") for line in done.stdout.split()]
    return np.array([float(word) if word[-1:].isdigit() else np.nan for word in words if word])


# ------------------------------------------------------------------------------------------------------- the comparison


def judge(num_frames: int, asked: Iterable[Asked], reference: Reference) -> Outcome:
    """Compare what a reader gave of a video with the reference.

    `num_frames`: how many frames the reader counts, `asked`: the frames that it gave, in portions.
    """
    faults: dict[str, str] = {}  # the first fault of each check
    compared, lowest = 0, SAME_DB
    if num_frames != reference.num_frames:
        faults["count"] = f"count: {num_frames} frames, ffmpeg has {reference.num_frames}"
    for frames in asked:
        there = np.flatnonzero(frames.indices < len(reference.pictures))
        indices, pictures = frames.indices[there], frames.pictures[there]
        if not len(indices):
            continue
        errors = squared_errors(pictures, reference.pictures[indices])
        compared += len(indices)
        lowest = min(lowest, float(to_decibels(errors).min()))
        worst = int(errors.argmax())
        if to_decibels(errors)[worst] < LOWEST_DB:
            faults.setdefault("pixels", f"pixels: frame {indices[worst]} has {to_decibels(errors)[worst]:.1f} dB")
        for index, other in better_frames(pictures, errors, reference.pictures):
            faults.setdefault("order", f"order: in place of frame {indices[index]} came frame {other}")
        if frames.seconds is not None and reference.seconds is not None:
            late = frames.seconds[there] - reference.seconds[indices]
            worst = int(np.abs(late).argmax())
            if abs(late[worst]) > reference.half_frame + CLOCK_TICK_SECONDS:
                faults.setdefault("time", f"time: frame {indices[worst]} is {late[worst]:+.3f} s from ffmpeg's")
    return Outcome(
        verdict="wrong" if faults else "right",
        why="; ".join(faults.values()),
        frames=compared,
        lowest_db=round(lowest, 1) if compared else None,
    )


def squared_errors(pictures: Pictures, others: Pictures) -> Floats:
    """Mean squared difference of each two frames, (N,)."""
    difference = pictures.astype(np.float32) - others.astype(np.float32)
    errors: Floats = np.mean(difference * difference, axis=(1, 2, 3), dtype=np.float64)
    return errors


def to_decibels(errors: Floats) -> Floats:
    """Peak signal to noise ratio of mean squared errors."""
    with np.errstate(divide="ignore"):
        decibels: Floats = np.minimum(10 * np.log10(255.0**2 / errors), SAME_DB)
    return decibels


def better_frames(pictures: Pictures, errors: Floats, reference: Pictures) -> list[tuple[int, int]]:
    """Which of `pictures` another frame of the reference fits clearly better: (position, that frame).

    `errors`: the mean squared error of each picture against the frame that it should be, (N,).
    """
    limits = 0.6 * errors - 1  # below this another frame fits clearly better
    suspects = np.flatnonzero(limits > 0)
    if not len(suspects):
        return []
    wanted = pictures[suspects].reshape(len(suspects), -1).astype(np.float32)
    best_error, best_frame = np.full(len(suspects), np.inf), np.zeros(len(suspects), np.int64)
    for start in range(0, len(reference), BATCH_FRAMES):
        frames = reference[start : start + BATCH_FRAMES].reshape(-1, wanted.shape[1]).astype(np.float32)
        squares = np.einsum("ij,ij->i", frames, frames)[:, None] + np.einsum("ij,ij->i", wanted, wanted)[None]
        distances = (squares - 2 * frames @ wanted.T) / wanted.shape[1]  # (frames, suspects)
        nearest = distances.argmin(0)
        error = distances[nearest, np.arange(len(suspects))]
        closer = error < best_error
        best_error[closer], best_frame[closer] = error[closer], nearest[closer] + start
    exact = squared_errors(pictures[suspects], reference[best_frame])
    found = exact < limits[suspects]
    return list(zip(suspects[found].tolist(), best_frame[found].tolist(), strict=True))


# ------------------------------------------------------------------------------------------------ the builds, the loops


def compare_batch(
    videos: Sequence[Path], options: argparse.Namespace
) -> Iterator[tuple[Path, dict[str, Outcome] | str]]:
    """Each video with the outcome of every reader, or with what ffmpeg says where it finds fault with the video."""
    with tempfile.TemporaryDirectory(prefix="compare-field-", ignore_cleanup_errors=True) as temporary:
        staged = stage(videos, Path(temporary, "videos"))
        builds = {
            decoder: {
                mode: VidshardBuild(staged.root, Path(temporary, f"{decoder}-{mode}"), decoder, mode, options)
                for mode in options.sampling
            }
            for decoder in options.decoders
        }
        for video in videos:
            reference = read_reference(video, options.max_frames)
            if reference.errors:
                yield video, reference.errors
                continue
            outcomes = {
                f"vidshard {decoder}": merge(
                    {mode: one.outcome(staged.names[video], reference) for mode, one in of_decoder.items()}
                )
                for decoder, of_decoder in builds.items()
            }
            for name, loop in LOOPS.items():
                outcomes[f"{name} loop"] = run_loop(loop, video, reference, options.max_frames)
            yield video, outcomes


def merge(outcomes: Mapping[str, Outcome]) -> Outcome:
    """Merge the outcomes of all samplings of a video; wrong takes precedence over refused, refused over right."""
    verdict = max((outcome.verdict for outcome in outcomes.values()), key=("right", "refused", "wrong").index)
    modes: dict[str, list[str]] = {}  # what went wrong → where
    for mode, outcome in outcomes.items():
        if outcome.verdict == verdict != "right":
            modes.setdefault(outcome.why, []).append(mode)
    decibels = [outcome.lowest_db for outcome in outcomes.values() if outcome.lowest_db is not None]
    return Outcome(
        verdict=verdict,
        why=" | ".join(f"{', '.join(names)}: {why}" for why, names in modes.items()),
        frames=sum(outcome.frames for outcome in outcomes.values()),
        lowest_db=min(decibels, default=None),
    )


@dataclasses.dataclass(frozen=True)
class Staged:
    """Videos of any folders as links in one folder that `vidshard build` takes."""

    root: Path
    names: Mapping[Path, str]  # video → path relative to `root`, with forward slashes


def stage(videos: Iterable[Path], root: Path) -> Staged:
    """Link each video under its own name into the first of NormalVideos/, NormalVideos-2/, … that has no such name."""
    names: dict[Path, str] = {}
    for video in videos:
        number = 1
        while (link := root / ("NormalVideos" if number == 1 else f"NormalVideos-{number}") / video.name).is_symlink():
            number += 1
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(video)
        names[video] = link.relative_to(root).as_posix()
    return Staged(root, names)


class VidshardBuild:
    """One build of the staged videos, opened: what became of each."""

    def __init__(self, source: Path, out: Path, decoder: str, mode: Any, options: argparse.Namespace) -> None:
        fps = options.fps if mode == "dense" and options.fps else None
        self.stopped = ""  # why there is no build at all
        try:
            build(
                BuildConfig(
                    source=source,
                    out=out,
                    sampling=SamplingConfig(mode=mode, fps=fps),
                    frame_size=SIDE,
                    decoder=decoder,
                    workers=options.workers,
                    follow_links=True,
                    yes=True,
                )
            )
        except UserError as error:
            self.stopped = str(error)
        self.shards = open_shards(out) if (out / MANIFEST_NAME).is_file() else None
        self.rows = {path: row for row, path in enumerate(self.shards.index.paths)} if self.shards else {}
        self.refusals = read_refusals(out, self.shards)

    def outcome(self, name: str, reference: Reference) -> Outcome:
        """`name`: path of the video in the staging folder."""
        if self.shards is None or name not in self.rows:
            why = self.refusals.get(name) or self.stopped or "it is mentioned nowhere"
            return Outcome(verdict="refused", why=why)
        row = self.rows[name]
        num_frames = int(self.shards.index.videos["num_frames"][row])
        return judge(num_frames, read_frames(self.shards, row), reference)


def read_refusals(out: Path, shards: ShardSet | None) -> dict[str, str]:
    """Path → reason and message of each video that a build refused or skipped."""
    if shards is not None:
        return {failure.path: f"{failure.reason}: {failure.message}" for failure in shards.manifest.failures}
    path = log_folder(out) / FAILURES_NAME  # of a build in which every video failed
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    return {row["path"]: f"{row['reason']}: {row['message']}" for row in csv.DictReader(io.StringIO(text))}


def read_frames(shards: ShardSet, video: int) -> Iterator[Asked]:
    """Yield the frames of all clips of a video, some hundreds at a time. `video` is its row in the index."""
    clips = shards.index.clips
    rows = np.flatnonzero(clips["video"] == video)
    clips_at_once = max(1, BATCH_FRAMES // shards.manifest.clip_shape.num_frames)
    for start in range(0, len(rows), clips_at_once):
        indices: list[int] = []
        seconds: list[float] = []
        pictures = []
        for row in rows[start : start + clips_at_once].tolist():
            offset, size = int(clips["offset"][row]), int(clips["size"][row])
            with shards.open_shard(int(clips["shard"][row])) as file:
                file.seek(offset)
                pictures.append(decode_clip(file.read(size), shards.manifest.clip_shape, where=shards.index.key(row)))
                record = read_record(file, offset, size)
            indices += record.frame_indices
            seconds += record.timestamps_seconds
        yield Asked(indices=np.array(indices), pictures=np.concatenate(pictures), seconds=np.array(seconds))


def opencv_loop(path: Path, max_frames: int) -> tuple[int, Asked]:
    """Read until there is no more; of the frames, some spread over the video."""
    import cv2

    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise ValueError("cv2.VideoCapture does not open it")
    kept, num_frames = [], 0
    while True:
        there, frame = capture.read()
        if not there:
            break
        if num_frames < max_frames:
            kept.append(_small(frame[..., ::-1]))
        num_frames += 1
    if not kept:
        raise ValueError("cv2.VideoCapture gives no frame")
    indices = np.linspace(0, len(kept) - 1, LOOP_FRAMES).astype(np.int64)
    return num_frames, Asked(indices=indices, pictures=np.stack([kept[index] for index in indices]))


def decord_loop(path: Path, max_frames: int) -> tuple[int, Asked]:
    """Ask for some frames spread over the video."""
    import decord

    reader = decord.VideoReader(str(path))
    indices = np.linspace(0, min(len(reader), max_frames) - 1, LOOP_FRAMES).astype(np.int64)
    frames = reader.get_batch(indices).asnumpy()
    return len(reader), Asked(indices=indices, pictures=np.stack([_small(frame) for frame in frames]))


def _small(frame: Any) -> Any:
    import cv2

    return cv2.resize(np.ascontiguousarray(frame), (SIDE, SIDE), interpolation=cv2.INTER_AREA)


Loop = Callable[[Path, int], tuple[int, Asked]]
LOOPS: dict[str, Loop] = {"OpenCV": opencv_loop, "decord": decord_loop}


def run_loop(loop: Loop, video: Path, reference: Reference, max_frames: int) -> Outcome:
    """Judge a plain loop. It runs in a process of its own: on some videos the library kills it."""
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads can hang
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run_and_send, args=(loop, video, max_frames, theirs))
    process.start()
    theirs.close()
    answer: tuple[int, Asked] | str
    try:
        answer = ours.recv() if ours.poll(LOOP_SECONDS) else f"no answer after {LOOP_SECONDS:.0f} s"
    except EOFError:
        process.join()
        answer = f"the process died (exit code {process.exitcode})"
    process.kill()
    process.join()
    if isinstance(answer, str):
        return Outcome(verdict="refused", why=answer)
    num_frames, asked = answer
    return judge(num_frames, [asked], reference)


def _run_and_send(loop: Loop, video: Path, max_frames: int, connection: Any) -> None:
    try:
        connection.send(loop(video, max_frames))
    except Exception as error:  # a library's own kinds of error
        connection.send(one_line(f"{type(error).__name__}: {error}".encode()))


# ----------------------------------------------------------------------------------------------------------- the report


def is_good(results: Mapping[Path, Mapping[str, Outcome]]) -> bool:
    """Return True if vidshard returned nothing wrong and `auto` refused nothing."""
    return not any(
        reader.startswith("vidshard")
        and (outcome.verdict == "wrong" or (outcome.verdict == "refused" and reader == f"vidshard {AUTO}"))
        for outcomes in results.values()
        for reader, outcome in outcomes.items()
    )


def to_text(results: Mapping[Path, Mapping[str, Outcome]], set_aside: Mapping[Path, str]) -> str:
    """Format the table of all readers, then every result that is not right, then the videos that were not counted."""
    lines = [f"{'':<18}{'right':>8}{'wrong':>8}{'refused':>9}{'lowest PSNR':>14}"]
    for reader, of_reader in by_reader(results).items():
        count = Counter(outcome.verdict for outcome in of_reader.values())
        decibels = [outcome.lowest_db for outcome in of_reader.values() if outcome.lowest_db is not None]
        lowest = f"{min(decibels):.1f} dB" if decibels else "–"
        lines.append(f"{reader:<18}{count['right']:>8,}{count['wrong']:>8,}{count['refused']:>9,}{lowest:>14}")
    for reader, of_reader in by_reader(results).items():
        bad = {path: outcome for path, outcome in of_reader.items() if outcome.verdict != "right"}
        lines += ["", f"{reader}:"] if bad else []
        lines += [f"  {outcome.verdict:<8}{path}: {outcome.why}" for path, outcome in bad.items()]
    if set_aside:
        lines += ["", f"not counted ({len(set_aside):,}):", *(f"  {path}: {why}" for path, why in set_aside.items())]
    return "\n".join(lines)


def by_reader(results: Mapping[Path, Mapping[str, Outcome]]) -> dict[str, dict[Path, Outcome]]:
    """Regroup the results as reader → video → outcome."""
    turned: dict[str, dict[Path, Outcome]] = {}
    for path, outcomes in results.items():
        for reader, outcome in outcomes.items():
            turned.setdefault(reader, {})[path] = outcome
    return turned


def to_json(results: Mapping[Path, Mapping[str, Outcome]], set_aside: Mapping[Path, str]) -> dict[str, Any]:
    """All results for programs."""
    return {
        "packages": decoder_versions(),
        "totals": {
            reader: dict(Counter(outcome.verdict for outcome in of_reader.values()))
            for reader, of_reader in by_reader(results).items()
        },
        "videos": [
            {"path": str(path), "outcomes": {reader: dataclasses.asdict(one) for reader, one in outcomes.items()}}
            for path, outcomes in results.items()
        ],
        "not_counted": [{"path": str(path), "why": why} for path, why in set_aside.items()],
    }


if __name__ == "__main__":
    sys.exit(main())
