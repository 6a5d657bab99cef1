"""Extraction of the frames of highest attention: pictures in class folders, and shards to train stage 2."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stage1.common import files
from stage1.data import from_videos
from stage1.inference.attention_data import TRAINED_ON, AttentionData, load_attention_data
from stage1.inference.config import ExtractConfig as ExtractConfig
from stage1.inference.outputs import OutputFiles, csv_text, top_indices
from vidshard import __version__
from vidshard.shards import codecs
from vidshard.shards.layout import SampleRecord, frame_gap_seconds
from vidshard.shards.set_writer import ShardSetWriter
from vidshard.util import atomic, console, lists
from vidshard.util.errors import UserError
from vidshard.util.text import counted

COLUMNS = (
    *("file", "class", "label", "split", "key", "source", "video_path", "clip_index", "position", "frame_index"),
    *("seconds", "attention", "rank", "confidence", "trained_on"),
)
NO_CLASS = "unknown"

Frames = npt.NDArray[np.uint8]  # (k, H, W, 3)

_UNFINISHED_NAME = ".unfinished"  # in the output folder, until all is written


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """Result of a run."""

    folder: Path
    num_frames: int
    classes: dict[str, int]  # class → detections
    missed_crimes: int
    failures: dict[str, str]  # key of the detection → why its frames could not be read
    warnings: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        return console.EXIT_PARTLY_FAILED if self.failures else console.EXIT_OK

    @property
    def problems(self) -> list[str]:
        return [f"warning: {warning}" for warning in self.warnings] + list(self.failures.values())

    @property
    def summary(self) -> str:
        counts = ", ".join(f"{name} {count:,}" for name, count in self.classes.items()) or "none"
        return (
            f"✓ {counted(self.num_frames, 'frame')} of {counted(sum(self.classes.values()), 'detection')} in "
            f"{self.folder} ({counts}); {self.missed_crimes:,} crime clips were missed by stage 1 and are not included"
        )


@files.holds_out
def extract(config: ExtractConfig) -> ExtractReport:
    """Write `frames/<Class>/<key>-<position>.jpg`, `frames.csv` and `shards/` below ``config.out``.

    Raises UserError if ``config.out`` is not empty, or if the data must not be used for training.
    """
    unfinished = config.out / _UNFINISHED_NAME
    if unfinished.exists():  # a run that was killed
        _clear(config.out)
    elif any(not path.name.startswith(files.LOCK_NAME) for path in config.out.iterdir()):
        raise UserError(f"`out` {config.out} is not empty; choose another folder, or remove this one")
    try:
        unfinished.touch()
        report = _extract(config)
        unfinished.unlink()
    except BaseException:  # so that the same command can be repeated
        _clear(config.out)
        raise
    return report


def _clear(folder: Path) -> None:
    for path in sorted(folder.iterdir(), key=lambda path: path.name == _UNFINISHED_NAME):  # that last
        if path.name != files.LOCK_NAME:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _extract(config: ExtractConfig) -> ExtractReport:
    data = load_attention_data(config.folder, for_training=not config.for_looking)
    warnings = leak_warnings(config, {name for name in data.classes if name})
    num_frames_of = _lengths(config.folder)
    k = min(config.top_k, data.clips.shape[1])
    size = (data.clips.shape[2], data.clips.shape[3]) if config.frame_size is None else (config.frame_size,) * 2
    settings = {"mode": "attention", "clip_len": k, "top_k": config.top_k, "frames_from": config.frames_from}
    shard_set = ShardSetWriter(
        config.out / "shards", clip_len=k, size=size, settings=settings, packages={"vidshard": __version__}
    )
    failures: dict[str, str] = {}
    rows: list[dict[str, object]] = []
    with (
        contextlib.nullcontext() if config.for_looking else shard_set as shards,
        console.Progress("Extracting", total=len(data), unit="detection") as progress,
    ):
        for i in range(len(data)):
            weights = data.attention_weights[i].tolist()
            ranked = top_indices(weights, k)
            positions = sorted(ranked)
            try:
                frames = _frames(config, data, i, positions)
            except UserError as error:
                failures[data.keys[i]] = str(error)
                progress.advance()
                continue
            for position, frame in zip(positions, frames, strict=True):
                row = _row(data, i, position, rank=ranked.index(position) + 1)
                _write_picture(config.out / str(row["file"]), frame)
                rows.append(row)
            if shards is not None:
                small = np.stack(
                    [from_videos.resized(frame, *size) if frame.shape[:2] != size else frame for frame in frames]
                )
                shards.append(_record(data, i, positions, num_frames_of), small)
            progress.advance()
    atomic.write_text(config.out / "frames.csv", csv_text(COLUMNS, rows))
    done = [i for i in range(len(data)) if data.keys[i] not in failures]
    names = [data.classes[i] or NO_CLASS for i in done]
    return ExtractReport(
        folder=config.out,
        num_frames=len(rows),
        classes={name: names.count(name) for name in sorted(set(names))},
        missed_crimes=data.missed_crimes,
        failures=failures,
        warnings=tuple(warnings),
    )


def _write_picture(path: Path, frame: npt.NDArray[np.uint8]) -> None:
    """Write a JPEG atomically, but without fsync: frames.csv, written last, proves that all pictures are complete."""
    with atomic.replacing(path) as temporary, atomic.create(temporary) as file:
        file.write(codecs.jpeg_encode(frame))


def leak_warnings(config: ExtractConfig, classes: set[str]) -> list[str]:
    """Return warnings about lists by which stage 2 would train on test videos."""
    warnings = []
    if config.test_list is not None:
        tested = lists.read_list(config.test_list)
        for path in config.stage2_lists:
            listed = lists.read_list(path)
            shared = sorted(set(listed) & set(tested))
            if shared:
                warnings.append(
                    f"{path} would leak: {len(shared):,} of its {len(listed):,} videos are test videos of stage 1 "
                    f"({config.test_list}), such as {shared[0]}: stage 2 must not be tested on its training videos"
                )
    elif not classes.isdisjoint(lists.CRIME_CLASSES):
        warnings.append(
            "these are classes of UCF-Crime: its official folds for stage 2 (action recognition) contain 121 to 145 of "
            "the 290 videos that stage 1 is tested on; compare yours by `stage2_list` FILE `test_list` Anomaly_Test.txt"
        )
    return warnings


def _frames(config: ExtractConfig, data: AttentionData, i: int, positions: list[int]) -> list[Frames]:
    """Read the frames of a detection at `positions` (ascending), from its clip or from its video."""
    if config.frames_from == "clip":
        return [frame.numpy() for frame in data.clips[i][positions]]
    wanted = [int(data.frame_indices[i][position]) for position in positions]
    unique = sorted(set(wanted))  # a short video repeats its last frame
    decoded = dict(zip(unique, from_videos.read_frames(Path(data.video_paths[i]), unique), strict=True))
    return [decoded[frame] for frame in wanted]


def _row(data: AttentionData, i: int, position: int, *, rank: int) -> dict[str, object]:
    name = data.classes[i] or NO_CLASS
    words = {number: word for word, number in TRAINED_ON.items()}
    return {
        "file": f"frames/{folder_name(name)}/{data.keys[i]}-{position:03d}.jpg",
        "class": data.classes[i],
        "label": int(data.labels[i]),
        "split": data.splits[i],
        "key": data.keys[i],
        "source": data.sources[i],
        "video_path": data.video_paths[i],
        "clip_index": int(data.clip_indices[i]),
        "position": position,
        "frame_index": int(data.frame_indices[i][position]),
        "seconds": round(float(data.seconds[i][position]), 6),
        "attention": round(float(data.attention_weights[i][position]), 8),
        "rank": rank,
        "confidence": round(float(data.confidences[i]), 8),
        "trained_on": words[int(data.trained_on[i])],
    }


def folder_name(class_name: str) -> str:
    """Convert a class to a folder name, with underscores for characters that a path cannot contain.

    >>> folder_name("Road Accidents"), folder_name("../a:b")
    ('Road Accidents', '.._a_b')
    """
    name = re.sub(r'[\\/:*?"<>|\x00-\x1f]', "_", class_name).rstrip(". ")
    return name if name.strip(".") else "_"


def _record(data: AttentionData, i: int, positions: list[int], num_frames_of: dict[str, int]) -> SampleRecord:
    """Return the sample of a detection for stage 2, with the same key and the chosen frames."""
    seconds = tuple(float(data.seconds[i][position]) for position in positions)
    frames = tuple(int(data.frame_indices[i][position]) for position in positions)
    return SampleRecord(
        path=data.sources[i],
        class_name=data.classes[i],
        label=int(data.labels[i]),
        split=data.splits[i],
        clip_index=int(data.clip_indices[i]),
        frame_indices=frames,
        timestamps_seconds=seconds,
        frame_gap_seconds=frame_gap_seconds(seconds),
        fps=float(data.fps[i]),
        num_frames=num_frames_of.get(data.sources[i], max(frames) + 1),
        decoder="stage1",
        repeated_frames=int((np.diff(frames) == 0).sum()),
    )


def _lengths(folder: Path) -> dict[str, int]:
    """Read the number of frames of each video from the run's videos.csv; {} without the file."""
    path = OutputFiles(folder=folder).videos
    if not path.is_file():
        return {}
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return {row["source"]: int(row["num_frames"]) for row in csv.DictReader(file)}
