"""What inference writes, and how it is read again: docs/OUTPUTS.md is the normative text.

Row i of the attention data belongs to entry i of anomalies.json; both stand in index order, that is video by video
and in time, not by confidence.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vidshard import atomic, shard_format
from vidshard.errors import FormatError, UserError

SCHEMA_VERSION = 1
NUM_TOP_FRAMES = 5
MAX_CLIP_BYTES = 8 * 2**30  # of clips in one attention file: it is built, and later read, in memory
PREDICTION_COLUMNS = (
    "key",
    "source",
    "clip_index",
    "class",
    "label",
    "split",
    "confidence",
    "predicted",
    "start_seconds",
    "end_seconds",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputFiles:
    """Every file name below the folder that `stage1 infer` writes to."""

    folder: Path

    @property
    def anomalies(self) -> Path:
        return self.folder / "anomalies.json"

    @property
    def predictions(self) -> Path:
        return self.folder / "predictions.csv"

    @property
    def attention_data(self) -> Path:
        return self.folder / "attention_data" / "stage1_attention_data.pt"

    @property
    def picture(self) -> Path:
        return self.folder / "attention_visualization.png"

    @property
    def run(self) -> Path:
        """Written last, removed first: where it is, the others belong together."""
        return self.folder / "run.json"

    def remove_old(self) -> None:
        """Remove what an earlier run left, and nothing else, so that no two runs mix."""
        for path in (self.run, self.picture, self.attention_data, self.anomalies, self.predictions):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """The score of one clip: a row of predictions.csv."""

    key: str
    source: str  # path of the video relative to SOURCE, with forward slashes
    clip_index: int
    class_name: str | None
    label: int  # 0 normal, 1 crime, -1 unknown
    split: str | None
    confidence: float | None  # P(crime); None where the clip could not be read
    start_seconds: float | None  # of the first frame of the clip
    end_seconds: float | None  # of the last

    def is_crime(self, threshold: float) -> bool:
        return self.confidence is not None and self.confidence >= threshold


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detection:
    """A clip with a confidence at or above the threshold: an entry of anomalies.json."""

    video_path: str  # opens as it stands
    key: str
    source: str
    clip_index: int
    class_name: str | None
    label: int
    split: str | None
    confidence: float
    attention_weights: tuple[float, ...]  # one a frame, sum 1: relative within the clip, not an anomaly score
    frame_indices: tuple[int, ...]  # in the video, presentation order
    seconds: tuple[float, ...]  # of these frames, from the start of the video

    @property
    def top_attention_indices(self) -> list[int]:
        """Positions in the clip of the most attended frames, highest first."""
        return top_indices(self.attention_weights)

    @property
    def frame_importance(self) -> list[float]:
        """Attention over its maximum, in [0, 1]: what to threshold for "important frames"."""
        highest = max(self.attention_weights)
        return [round(weight / highest, 6) for weight in self.attention_weights]

    def to_json(self) -> dict[str, Any]:
        return {
            "video_path": self.video_path,
            "confidence": self.confidence,
            "attention_weights": list(self.attention_weights),
            "top_attention_indices": self.top_attention_indices,
            "frame_importance": self.frame_importance,
            "key": self.key,
            "source": self.source,
            "clip_index": self.clip_index,
            "class": self.class_name,
            "label": self.label,
            "split": self.split,
            "frame_indices": list(self.frame_indices),
            "seconds": list(self.seconds),
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Detection:
        """Raises KeyError or TypeError where `fields` is no entry of anomalies.json."""
        values: dict[str, Any] = {"class_name": fields["class"]}
        for name in (field.name for field in dataclasses.fields(cls) if field.name != "class_name"):
            values[name] = tuple(fields[name]) if isinstance(fields[name], list) else fields[name]
        return cls(**values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionData:
    """The detections as tensors, for stage 2. N detections of T frames; N may be 0."""

    video_paths: list[str]
    keys: list[str]
    classes: list[str | None]
    splits: list[str | None]
    labels: torch.Tensor  # int64 [N]
    confidences: torch.Tensor  # float32 [N]
    attention_weights: torch.Tensor  # float32 [N, T]
    frame_indices: torch.Tensor  # int64 [N, T]
    seconds: torch.Tensor  # float64 [N, T]
    clips: torch.Tensor  # uint8 [N, T, H, W, 3]
    checkpoint_sha256: str
    shards_digest: str

    def __len__(self) -> int:
        return len(self.keys)


def top_indices(weights: Sequence[float], count: int = NUM_TOP_FRAMES) -> list[int]:
    """Positions of the `count` highest weights, highest first; of equal ones the earlier first.

    >>> top_indices([0.1, 0.5, 0.1, 0.3], count=3)
    [1, 3, 0]
    """
    return sorted(range(len(weights)), key=lambda i: (-weights[i], i))[:count]


def shortest_floats(values: npt.NDArray[np.float32]) -> list[float]:
    """The shortest decimals that give back these float32 values: what is printed is what is compared.

    >>> shortest_floats(np.array([0.1, 0.7], np.float32))
    [0.1, 0.7]
    """
    return [float(str(value)) for value in values.astype(np.float32)]


def write_predictions(path: Path, predictions: Iterable[Prediction], *, threshold: float) -> None:
    """Every clip as a CSV row; an unreadable one has no confidence and no prediction."""
    text = io.StringIO()
    writer = csv.DictWriter(text, PREDICTION_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in predictions:
        writer.writerow(
            {
                "key": row.key,
                "source": row.source,
                "clip_index": row.clip_index,
                "class": row.class_name,
                "label": row.label,
                "split": row.split,
                "confidence": row.confidence,
                "predicted": None if row.confidence is None else int(row.is_crime(threshold)),
                "start_seconds": row.start_seconds,
                "end_seconds": row.end_seconds,
            }
        )
    atomic.write_text(path, text.getvalue())


def write_anomalies(path: Path, detections: Sequence[Detection]) -> None:
    atomic.write_json(path, [detection.to_json() for detection in detections])


def read_anomalies(path: Path) -> list[Detection]:
    """The entries of anomalies.json. Raises UserError where there is none, FormatError where it cannot be read."""
    try:
        entries = json.loads(path.read_bytes())
        return [Detection.from_json(fields) for fields in entries]
    except FileNotFoundError:
        raise UserError(f"no {path}: run `stage1 infer --out {path.parent}` first") from None
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{path} is no list of detections written by stage1 infer: {error!r}") from error


def write_attention_data(
    path: Path,
    detections: Sequence[Detection],
    clips: torch.Tensor,
    *,
    checkpoint_sha256: str,
    shards_digest: str,
) -> None:
    """Write the detections and their `clips`, uint8 [N, T, H, W, 3], for `torch.load(weights_only=True)`."""
    shape = (len(detections), clips.shape[1])
    fields = {
        "schema_version": SCHEMA_VERSION,
        "video_paths": [detection.video_path for detection in detections],
        "keys": [detection.key for detection in detections],
        "classes": [detection.class_name for detection in detections],
        "splits": [detection.split for detection in detections],
        "labels": torch.tensor([detection.label for detection in detections], dtype=torch.int64),
        "confidences": torch.tensor([detection.confidence for detection in detections], dtype=torch.float32),
        "attention_weights": torch.tensor(
            [detection.attention_weights for detection in detections], dtype=torch.float32
        ).reshape(shape),
        "frame_indices": torch.tensor([detection.frame_indices for detection in detections], dtype=torch.int64).reshape(
            shape
        ),
        "seconds": torch.tensor([detection.seconds for detection in detections], dtype=torch.float64).reshape(shape),
        "clips": clips,
        "checkpoint_sha256": checkpoint_sha256,
        "shards_digest": shards_digest,
    }
    with atomic.atomic_open(path) as file:
        torch.save(fields, file)


def load_attention_data(path: Path) -> AttentionData:
    """Read what `stage1 infer` wrote for stage 2; the clips stay on disk until they are touched.

    Raises UserError where there is no such file, FormatError where it is another one.
    """
    try:
        fields = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise UserError(f"no {path}: run `stage1 infer --out {path.parent.parent}` first") from None
    except OSError:
        raise
    except Exception as error:  # torch raises half a dozen kinds on files that are not its own
        reason = str(error).partition("\n")[0]
        raise FormatError(f"{path} is no attention data written by stage1 infer: {reason}") from error
    version = fields.pop("schema_version", None) if isinstance(fields, dict) else None
    if version != SCHEMA_VERSION:
        raise FormatError(
            f"{path} has schema version {version!r}, this stage1 reads {SCHEMA_VERSION}; run `stage1 infer` again"
        )
    try:
        data = AttentionData(**fields)
    except TypeError as error:
        raise FormatError(f"{path} lacks or has an unknown field: {error}") from error
    fault = _wrong_length(data)
    if fault:
        raise FormatError(f"{path} is damaged: {fault}; run `stage1 infer` again")
    return data


def _wrong_length(data: AttentionData) -> str | None:
    """Which field has not one entry for each of the N detections, or of their T frames; None if all have."""
    if data.clips.ndim != 5:
        return f"clips has the shape {tuple(data.clips.shape)}, expected (N, T, H, W, 3)"
    shape_NT = (len(data), data.clips.shape[1])
    for name in ("video_paths", "classes", "splits", "labels", "confidences", "clips"):
        if len(getattr(data, name)) != len(data):
            return f"{name} has {len(getattr(data, name))} entries, expected {len(data)} as keys has"
    for name in ("attention_weights", "frame_indices", "seconds"):
        if tuple(getattr(data, name).shape) != shape_NT:
            return f"{name} has the shape {tuple(getattr(data, name).shape)}, expected {shape_NT}"
    return None


def check_clip_bytes(num_detections: int, clip_shape: shard_format.ClipShape, *, threshold: float) -> None:
    """Refuse attention data that would not fit in memory. Raises UserError."""
    total = num_detections * clip_shape.num_bytes
    if total > MAX_CLIP_BYTES:
        raise UserError(
            f"the clips of {num_detections:,} detections are {total / 2**30:.1f} GiB, the attention data holds at most "
            f"{MAX_CLIP_BYTES / 2**30:.0f} GiB; predictions.csv and anomalies.json are written: look at them, and "
            f"choose a --threshold above {threshold:g}"
        )
