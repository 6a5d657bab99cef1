"""Outputs of inference, and their reader. docs/OUTPUTS.md is the specification.

Row i of the attention data belongs to entry i of anomalies.json. Both are in index order: by video and time, not by
confidence.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from stage1.common import schema
from stage1.common.earlier_results import set_aside
from stage1.inference.events import Event
from vidshard.shards import layout
from vidshard.shards.layout import SampleRecord
from vidshard.util import atomic, files
from vidshard.util.errors import FormatError, UserError

SCHEMA_VERSION = 1
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
RUN_AGAIN = "run `stage1 infer` again"
NUM_TOP_FRAMES = 5
PREDICTION_COLUMNS = (
    *("key", "source", "clip_index", "class", "label", "split"),
    *("confidence", "predicted", "start_seconds", "end_seconds"),
)
DETECTION_FIELDS = (
    *("video_path", "confidence", "attention_weights", "top_attention_indices", "frame_importance", "key", "source"),
    *("clip_index", "class", "label", "split", "frame_indices", "seconds", "fps"),
)
_VIDEO_FACTS = ("source", "video_path", "class", "label", "split", "num_frames", "fps", "duration_seconds")
VIDEO_COLUMNS = (
    *_VIDEO_FACTS,
    *("num_clips", "num_unscored"),
    *("confidence", "mean_confidence", "predicted", "num_events", "event_seconds"),
)
NORMAL_CLASS = "Normal"  # class of false alarms, for stage 2


class OutputFiles:
    """Paths of all files in the output folder of `stage1 infer`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.anomalies = folder / "anomalies.json"
        self.predictions = folder / "predictions.csv"
        self.videos = folder / "videos.csv"
        self.events = folder / "events.json"
        self.attention_data = folder / "attention_data" / "stage1_attention_data.pt"
        self.attention_shards = folder / "attention_data" / "shards"
        self.score_log = folder / ".unfinished"
        self.picture = folder / "attention_visualization.png"
        self.report = folder / "report.html"
        self.clips = folder / "clips"
        self.explanation = folder / "explanation" / "explanation.json"  # of stage1 explain, if it was run there
        # Written last and moved first, so that the other files of a folder with run.json are of a single run.
        self.run = folder / "run.json"

    def check_finished(self) -> None:
        """Raise UserError if the folder has no finished run."""
        if not self.run.is_file():
            raise UserError(
                f"{self.folder} contains no finished run of stage1 infer; run `stage1 infer --out {self.folder}` first"
            )

    def set_old_aside(self) -> None:
        """Move the files of an earlier run aside, and remove those of a run that was killed while it wrote them."""
        files = (self.run, self.anomalies, self.predictions, self.videos, self.events, self.picture, self.report)
        pages = sorted(path.name for path in self.folder.glob("report-*.html"))
        set_aside(self.folder, [*(path.name for path in files), "attention_data", self.clips.name, *pages])
        self._remove_old()

    def _remove_old(self) -> None:
        texts = (self.anomalies, self.predictions, self.videos, self.events)
        for path in (self.run, self.picture, self.report, self.attention_data, *texts):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        for pattern in ("manifest.json", "shard-*.tar"):
            for path in self.attention_shards.glob(pattern):
                path.unlink()
        with contextlib.suppress(OSError):  # it does not exist, or contains other files
            self.attention_shards.rmdir()


def is_run_on(folder: Path, digest: str) -> bool:
    """Return True if `folder` contains a finished run on the shard set with this digest."""
    try:
        return bool(json.loads(OutputFiles(folder=folder).run.read_bytes())["shards"]["digest"] == digest)
    except (OSError, ValueError, KeyError, TypeError):
        return False


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ScoredClip:
    """Identity of a clip, shared by predictions and detections."""

    key: str
    source: str  # path of the video relative to SOURCE, with forward slashes
    clip_index: int
    class_name: str | None
    label: int  # 0 normal, 1 crime, -1 unknown
    split: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction(_ScoredClip):
    """Score of one clip: a row of predictions.csv."""

    confidence: float | None  # P(crime); this and the fields below are None if the clip could not be read
    predicted: bool | None  # True if the confidence is at or above the threshold
    start_seconds: float | None  # of the first frame of the clip
    end_seconds: float | None  # of the last

    @property
    def outcome(self) -> str | None:
        """Outcome: hit, alarm (false), miss, or unknown (a detection without a label); None for other clips."""
        if self.predicted:
            return {layout.CRIME_LABEL: "hit", layout.NORMAL_LABEL: "alarm"}.get(self.label, "unknown")
        return "miss" if self.label == layout.CRIME_LABEL and self.predicted is not None else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detection(_ScoredClip):
    """A clip with a confidence at or above the threshold: an entry of anomalies.json."""

    video_path: str  # path to open
    confidence: float
    attention_weights: tuple[float, ...]  # one per frame, sum 1: relative to the clip, not an anomaly score
    frame_indices: tuple[int, ...]  # in the video, presentation order
    seconds: tuple[float, ...]  # of these frames, from the start of the video
    fps: float  # mean frames per second of the video

    @classmethod
    def of_record(cls, record: SampleRecord, **fields: Any) -> Detection:
        """Return the detection of the clip that `record` describes, with the other `fields`."""
        return cls(
            key=record.key,
            source=record.path,
            clip_index=record.clip_index,
            class_name=record.class_name,
            label=record.label,
            split=record.split,
            frame_indices=record.frame_indices,
            seconds=record.timestamps_seconds,
            **fields,
        )

    @property
    def stage2_class(self) -> str | None:
        """Class for stage 2: Normal for a false alarm, regardless of its folder's name."""
        return NORMAL_CLASS if self.label == layout.NORMAL_LABEL else self.class_name

    @property
    def top_attention_indices(self) -> list[int]:
        """Positions in the clip of the frames of highest attention, highest first."""
        return top_indices(self.attention_weights)

    @property
    def frame_importance(self) -> list[float]:
        """Attention divided by its maximum, in [0, 1], for thresholds on "important frames"."""
        highest = max(self.attention_weights)
        return [round(weight / highest, 6) for weight in self.attention_weights]

    def to_json(self) -> dict[str, Any]:
        fields = {
            **vars(self),
            "class": self.class_name,
            "top_attention_indices": self.top_attention_indices,
            "frame_importance": self.frame_importance,
        }
        found = {name: fields[name] for name in DETECTION_FIELDS}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Detection:
        """Build a detection from an entry of anomalies.json. Raises KeyError or TypeError if a field is wrong."""
        values: dict[str, Any] = {"class_name": fields["class"]}
        for name in (field.name for field in dataclasses.fields(cls) if field.name != "class_name"):
            values[name] = tuple(fields[name]) if isinstance(fields[name], list) else fields[name]
        return cls(**values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoScore:
    """Scores and events of a video: a row of videos.csv, and an entry of events.json."""

    source: str
    video_path: str
    class_name: str | None
    label: int
    split: str | None
    num_frames: int
    fps: float
    duration_seconds: float
    num_clips: int
    num_unscored: int
    scores: tuple[float | None, ...]  # of each second, smoothed; None without a clip
    events: tuple[Event, ...]
    true_events: tuple[tuple[int, int], ...] | None  # first and last frame of each; None without ground truth

    @property
    def confidence(self) -> float | None:
        """Highest score of any second; None if no second has a score."""
        return max((score for score in self.scores if score is not None), default=None)

    @property
    def mean_confidence(self) -> float | None:
        known = [score for score in self.scores if score is not None]
        return round(math.fsum(known) / len(known), 6) if known else None

    @property
    def event_seconds(self) -> float:
        return round(math.fsum(event.end_seconds - event.start_seconds for event in self.events), 6)

    def to_json(self) -> dict[str, Any]:
        fields = {**vars(self), "class": self.class_name}
        return {
            **{name: fields[name] for name in _VIDEO_FACTS},
            "events": [dataclasses.asdict(event) for event in self.events],
            "truth": None if self.true_events is None else [self._true_event(*frames) for frames in self.true_events],
            "scores": list(self.scores),
        }

    def _true_event(self, first: int, last: int) -> dict[str, Any]:
        seconds_a_frame = self.duration_seconds / self.num_frames
        return {
            "start_frame": first,
            "end_frame": last,
            "start_seconds": round(first * seconds_a_frame, 6),
            "end_seconds": round((last + 1) * seconds_a_frame, 6),
        }


def top_indices(weights: Sequence[float], count: int = NUM_TOP_FRAMES) -> list[int]:
    """Return the positions of the `count` highest weights, highest first; among equal ones, the earlier first.

    >>> top_indices([0.1, 0.5, 0.1, 0.3], count=3)
    [1, 3, 0]
    """
    return sorted(range(len(weights)), key=lambda i: (-weights[i], i))[:count]


def shortest_floats(values: npt.NDArray[np.float32]) -> list[float]:
    """Return the shortest decimals that round-trip to these float32 values, so that printed and compared values agree.

    >>> shortest_floats(np.array([0.1, 0.7], np.float32))
    [0.1, 0.7]
    """
    return [shortest_float(value) for value in values.astype(np.float32)]


def shortest_float(value: np.float32) -> float:
    """Return the shortest decimal that round-trips to this float32 value.

    >>> shortest_float(np.float32(0.7))
    0.7
    """
    return float(str(value))


def decided(confidences: npt.NDArray[np.float32], threshold: float) -> npt.NDArray[np.bool_]:
    """Compare confidences, as written to files, with the threshold: True at or above it, False for NaN.

    >>> decided(np.array([0.7, np.nan], np.float32), 0.7)
    array([ True, False])
    """
    return np.array([value >= threshold for value in shortest_floats(confidences)], np.bool_)


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write every clip as a CSV row."""
    with _text_file(path) as text:
        writer = csv.DictWriter(text, PREDICTION_COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for row in predictions:
            predicted = None if row.predicted is None else int(row.predicted)
            writer.writerow(without_formulas({**vars(row), "class": row.class_name, "predicted": predicted}))


def read_predictions(path: Path) -> list[Prediction]:
    """Read predictions.csv. Raises FormatError if it cannot be parsed."""
    try:
        with io.TextIOWrapper(files.open_file(path), "utf-8", "surrogateescape", newline="") as file:
            return [_prediction(fields) for fields in csv.DictReader(file)]
    except (OSError, KeyError, ValueError, TypeError, AttributeError, csv.Error) as error:
        raise FormatError(f"{path} is not a table of predictions written by stage1 infer: {error!r:.300}") from error


def _prediction(fields: Mapping[str, str]) -> Prediction:
    key, source, class_name = (_unquoted(fields[name]) for name in ("key", "source", "class"))
    confidence, start, end = (
        float(fields[name]) if fields[name] else None for name in ("confidence", "start_seconds", "end_seconds")
    )
    label, clip_index = int(fields["label"]), int(fields["clip_index"])
    is_right = layout.KEY_PATTERN.fullmatch(key) and abs(label) <= 1 and 0 <= clip_index < 1 << 63
    is_right = is_right and 0 <= (confidence or 0) <= 1 and 0 <= (start or 0) <= (end or 0) < math.inf
    if not is_right or fields["predicted"] not in ("", "0", "1"):
        raise ValueError(f"a row is {fields}")
    return Prediction(
        key=key,
        source=source,
        clip_index=clip_index,
        class_name=class_name or None,
        label=label,
        split=fields["split"] or None,
        confidence=confidence,
        predicted=fields["predicted"] == "1" if fields["predicted"] else None,
        start_seconds=start,
        end_seconds=end,
    )


def write_anomalies(path: Path, detections: Iterable[Detection]) -> None:
    """Write a JSON list with one detection per line."""
    with _text_file(path) as text:
        _write_list(text, (detection.to_json() for detection in detections))
        text.write("\n")


def read_anomalies(path: Path) -> list[Detection]:
    """Read anomalies.json. Raises UserError if it does not exist, and FormatError if it cannot be parsed."""
    if not path.exists():
        raise UserError(f"no {path}: run `stage1 infer --out {path.parent}` first")
    detections = [Detection.from_json(fields) for fields in schema.read_json(path, "anomalies", again=RUN_AGAIN)]
    for detection in detections:
        frames = (detection.attention_weights, detection.frame_indices, detection.seconds)
        if len({*map(len, frames)}) != 1 or list(detection.seconds) != sorted(detection.seconds):
            raise FormatError(f"{path}: the fields of {detection.key!r} contradict each other; {RUN_AGAIN}")
    return detections


def write_videos(
    csv_path: Path, events_path: Path, videos: Iterable[VideoScore], *, threshold: float, settings: Mapping[str, Any]
) -> None:
    """Write videos.csv and events.json. `settings` are the options of event detection, for the head of events.json."""
    with _text_file(csv_path) as table, _text_file(events_path) as text:
        writer = csv.DictWriter(table, VIDEO_COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        head = {"schema_version": SCHEMA_VERSION, "threshold": threshold, **settings}
        text.write("{\n" + "".join(f"{json.dumps(name)}: {json.dumps(head[name])},\n" for name in head))
        text.write('"videos": ')
        _write_list(text, (_write_row(video, writer, threshold) for video in videos))
        text.write("\n}\n")


def _write_row(video: VideoScore, writer: csv.DictWriter[str], threshold: float) -> dict[str, Any]:
    """Write the row of a video to videos.csv, and return its entry for events.json."""
    confidence = video.confidence
    row = {
        **vars(video),
        "class": video.class_name,
        "confidence": confidence,
        "mean_confidence": video.mean_confidence,
        "predicted": None if confidence is None else int(confidence >= threshold),
        "num_events": len(video.events),
        "event_seconds": video.event_seconds,
    }
    writer.writerow(without_formulas(row))
    return video.to_json()


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Return a table as CSV, without what a spreadsheet would run; the rows may have more fields than `columns`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(without_formulas, rows))
    return text.getvalue()


def without_formulas(row: Mapping[str, Any]) -> dict[str, Any]:
    """Quote the texts of a CSV row that a spreadsheet would run, which a name may be.

    >>> without_formulas({"source": "=1+1.mp4", "label": -1})
    {'source': "'=1+1.mp4", 'label': -1}
    """
    quoted = {name: f"'{text}" for name, text in row.items() if isinstance(text, str) and _FORMULA.match(text)}
    return {**row, **quoted}


def _unquoted(text: str) -> str:
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def _write_list(text: TextIO, entries: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON list with one entry per line, without keeping it in memory."""
    separator = "[\n"
    for entry in entries:
        text.write(separator + json.dumps(entry, allow_nan=False))
        separator = ",\n"
    text.write("[]" if separator == "[\n" else "\n]")


@contextlib.contextmanager
def _text_file(path: Path) -> Iterator[TextIO]:
    """Open a text file that is written atomically. Names that are not UTF-8 are written as their raw bytes."""
    with atomic.atomic_open(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        try:
            yield text
        finally:
            text.detach()
