"""Exchange of detections and review labels with annotation tools: one reader and one writer for each format.

A file holds segments of videos, in seconds or in frames. An imported segment takes the exact times of the clip of the
run whose times it has, so formats that count frames lose nothing.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stage1.common import schema
from stage1.common.earlier_results import write_file
from stage1.common.files import hold_out
from stage1.data.review_labels import CSV_COLUMNS, LABEL_OF_ANSWER, read_answers
from stage1.inference.outputs import RUN_AGAIN, OutputFiles, Prediction, read_predictions, without_formulas
from stage1.review.config import ReviewExportConfig, ReviewImportConfig
from stage1.review.run_videos import Video, Videos, without_suffix
from vidshard.util import lists
from vidshard.util.errors import UserError
from vidshard.util.text import counted

# Label in a file → answer of a reviewer. A detection is a proposal of the model, which nobody has answered.
LABELS = {"Crime": "true", "Normal": "false", "Unsure": "unsure"}
DETECTION = "Detection"
_LABEL_OF_ANSWER = {answer: label for label, answer in LABELS.items()}
_ANSWER_OF_NUMBER = {number: answer for answer, number in LABEL_OF_ANSWER.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
    """Labelled span of a video: the times of its first and its last frame."""

    source: str
    start_seconds: float
    end_seconds: float
    label: str  # a key of LABELS, DETECTION, or a class
    note: str = ""
    confidence: float | None = None  # of a detection

    @property
    def answer(self) -> str | None:
        """Answer of a reviewer; None for a detection. A class of another tool's own is a crime, unless it is normal."""
        name = self.label.lower()
        if name == DETECTION.lower():
            return None
        if name == "unsure":
            return "unsure"
        return "false" if lists.sounds_normal(name) else "true"


# --- Label Studio: timeline labels of videos, in frames from 1 ----------------------------------------------------


def write_label_studio(segments: Sequence[Segment], videos: Videos) -> str:
    """Return tasks to import: labels as annotations, detections as predictions."""
    tasks = []
    for video, found in _by_video(segments, videos):
        results = [_label_studio_result(number, video, segment) for number, segment in enumerate(found)]
        labels = [result for result, segment in zip(results, found, strict=True) if segment.label != DETECTION]
        proposals = [result for result, segment in zip(results, found, strict=True) if segment.label == DETECTION]
        tasks.append(
            {
                "data": {"video": video.path, "source": video.source, "fps": video.fps},
                "annotations": [{"result": labels}] if labels else [],
                "predictions": [{"model_version": "stage1", "result": proposals}] if proposals else [],
            }
        )
    return _json(tasks)


def _label_studio_result(number: int, video: Video, segment: Segment) -> dict[str, Any]:
    span = {"start": video.frame(segment.start_seconds) + 1, "end": video.frame(segment.end_seconds) + 1}
    return {
        "id": f"segment-{number}",
        "from_name": "review",
        "to_name": "video",
        "type": "timelinelabels",
        "value": {"ranges": [span], "timelinelabels": [segment.label]},
        **({"score": segment.confidence} if segment.confidence is not None else {}),
        **({"meta": {"text": [segment.note]}} if segment.note else {}),
    }


def read_label_studio(text: str, videos: Videos) -> Iterator[Segment]:
    """Read an export in the format JSON, without cancelled annotations and regions without a label."""
    tasks = ((task["data"].get("source") or task["data"]["video"], task) for task in json.loads(text))
    for video, task in videos.found(tasks):
        annotations = [one for one in task.get("annotations", ()) if not one.get("was_cancelled")]
        for result in (one for annotation in annotations for one in annotation["result"]):
            if result["type"] == "timelinelabels" and result["value"].get("timelinelabels"):
                yield from _of_result(result, video)


def _of_result(result: Mapping[str, Any], video: Video) -> Iterator[Segment]:
    value = result["value"]
    for span in value["ranges"]:
        yield Segment(
            source=video.source,
            start_seconds=video.seconds(span["start"] - 1),
            end_seconds=video.seconds(span["end"] - 1),
            label=value["timelinelabels"][0],
            note="\n".join(result.get("meta", {}).get("text", ())),
        )


# --- FiftyOne: FiftyOneTemporalDetectionDataset, in seconds or in frames from 1 -----------------------------------


def write_fiftyone(segments: Sequence[Segment], videos: Videos) -> str:
    """Return labels.json, whose names are those of the videos without suffix."""
    by_video = _by_video(segments, videos)
    labels = {
        without_suffix(video.source): [
            {
                "label": segment.label,
                "timestamps": [segment.start_seconds, segment.end_seconds],
                **({"confidence": segment.confidence} if segment.confidence is not None else {}),
                **({"attributes": {"note": segment.note}} if segment.note else {}),
            }
            for segment in found
        ]
        for video, found in by_video
    }
    if len(labels) < len(by_video):
        raise UserError("some videos differ in their suffix alone, which FiftyOne ignores; export to another `format`")
    return _json({"classes": [*LABELS, DETECTION], "labels": labels})


def read_fiftyone(text: str, videos: Videos) -> Iterator[Segment]:
    """Read labels.json; a label may be a number of a class, too."""
    fields = json.loads(text)
    for video, found in videos.found(fields["labels"].items()):
        for one in found or ():
            label = one["label"]
            start, end = one["timestamps"] if "timestamps" in one else _of_support(one["support"], video)
            yield Segment(
                source=video.source,
                start_seconds=start,
                end_seconds=end,
                label=fields["classes"][label] if isinstance(label, int) else label,
                note=(one.get("attributes") or {}).get("note", ""),
            )


def _of_support(support: Sequence[int], video: Video) -> tuple[float, float]:
    """Return the times of the first and the last frame, which FiftyOne spreads over the whole duration."""
    start, end = ((frame - 1) / max(1, video.num_frames - 1) * video.duration_seconds for frame in support)
    return start, end


# --- ActivityNet: the ground truth of its challenges, in seconds --------------------------------------------------


def write_activitynet(segments: Sequence[Segment], videos: Videos) -> str:
    """Return a database, whose names are the sources of the videos."""
    database = {
        video.source: {
            "duration": video.duration_seconds,
            "subset": {"Train": "training", "Validation": "validation"}.get(video.split or "", "testing"),
            "annotations": [
                {
                    "segment": [segment.start_seconds, segment.end_seconds],
                    "label": segment.label,
                    **({"score": segment.confidence} if segment.confidence is not None else {}),
                    **({"note": segment.note} if segment.note else {}),
                }
                for segment in found
            ],
        }
        for video, found in _by_video(segments, videos)
    }
    return _json({"version": "stage1", "taxonomy": [], "database": database})


def read_activitynet(text: str, videos: Videos) -> Iterator[Segment]:
    """Read a database."""
    for video, entry in videos.found(json.loads(text)["database"].items()):
        for one in entry["annotations"]:
            start, end = one["segment"]
            yield Segment(
                source=video.source,
                start_seconds=start,
                end_seconds=end,
                label=one["label"],
                note=one.get("note", ""),
            )


# --- UCF-Crime: Temporal_Anomaly_Annotation, in frames from 0, two events in a line -------------------------------


def write_ucf_crime(segments: Sequence[Segment], videos: Videos) -> str:
    """Return lines of a name, a label and two events; further events follow in further lines."""
    lines = []
    for video, found in _by_video(segments, videos):
        for label in dict.fromkeys(segment.label for segment in found):
            spans = [
                f"{video.frame(segment.start_seconds)}  {video.frame(segment.end_seconds)}"
                for segment in found
                if segment.label == label
            ]
            lines += [_ucf_crime_line(video.source, label, spans[i : i + 2]) for i in range(0, len(spans), 2)]
    return "".join(lines)


def _ucf_crime_line(source: str, label: str, spans: Sequence[str]) -> str:
    line = "  ".join([source, label, *[*spans, "-1  -1"][:2]])
    try:
        names = _ucf_crime_names(line)
    except ValueError:
        names = None
    if names != (source, label):
        raise UserError(
            f"the name {source!r} cannot be told from the rest of a line of UCF-Crime; export to another `format`"
        )
    return f"{line}\n"


def read_ucf_crime(text: str, videos: Videos) -> Iterator[Segment]:
    """Read lines; the class of a line is the label of its events."""
    lines = filter(str.strip, text.splitlines())
    for video, line in videos.found((_ucf_crime_names(line)[0], line) for line in lines):
        found = lists.parse_line(line)
        for first, last in found.events or ():
            yield Segment(
                source=video.source,
                start_seconds=video.seconds(first),
                end_seconds=video.seconds(last),
                label=found.class_name or "Crime",
            )


def _ucf_crime_names(line: str) -> tuple[str, str | None]:
    """Return the name of the video, with its suffix, and the class of a line."""
    found = lists.parse_line(line)
    rest = line.replace("\\", "/").strip().removeprefix(found.name)
    return found.name + (rest.split()[0] if rest.startswith(".") else ""), found.class_name


# --- export and import --------------------------------------------------------------------------------------------


class Format(NamedTuple):
    """Format of a file: its default name, its writer and its reader."""

    file_name: str
    write: Callable[[Sequence[Segment], Videos], str]
    read: Callable[[str, Videos], Iterator[Segment]]


FORMATS = {
    "label-studio": Format("label_studio.json", write_label_studio, read_label_studio),
    "fiftyone": Format("fiftyone.json", write_fiftyone, read_fiftyone),
    "activitynet": Format("activitynet.json", write_activitynet, read_activitynet),
    "ucf-crime": Format("ucf_crime.txt", write_ucf_crime, read_ucf_crime),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExchangeResult:
    """Result: the file that was written, and notes on what was left out."""

    path: Path
    num_segments: int
    notes: tuple[str, ...]
    shards: str | None = None  # to train on with imported labels; None if they are a test set, or temporary


def export_segments(config: ReviewExportConfig) -> ExchangeResult:
    """Write the detections of a run or, with ``config.marks``, review labels of its clips.

    Raises UserError if the folder has no finished run, or if none of the labels is of its clips.
    """
    run = _Run(config.folder)
    notes = []
    if config.marks is None:
        segments = [_segment(clip, DETECTION, confidence=clip.confidence) for clip in run.clips if clip.predicted]
    else:
        answers = read_answers(config.marks)
        segments = []
        for clip in run.clips:
            answer = answers.get((run.digest, clip.key)) or answers.get(("", clip.key))
            if answer is not None:
                label = _LABEL_OF_ANSWER[_ANSWER_OF_NUMBER[answer.label]]
                segments.append(_segment(clip, label, note=answer.note))
        if not segments:
            raise UserError(
                f"`marks` {config.marks} has no label of a clip of {config.folder}; export from the run that was "
                "reviewed"
            )
        if len(segments) < len(answers):
            notes.append(f"{counted(len(answers) - len(segments), 'label')} of no clip of {config.folder}")
    form = FORMATS[config.format]
    path = config.out or config.folder / form.file_name
    _write(path, form.write(segments, run.videos))
    return ExchangeResult(path=path, num_segments=len(segments), notes=tuple(notes))


def import_segments(config: ReviewImportConfig) -> ExchangeResult:
    """Write the labels of a file as a CSV of review labels, as a report exports them.

    A segment labels the clip of the run that has its times. One that no clip has labels all clips whose middle it
    contains. Raises UserError if the file cannot be read, labels no clip, or contradicts itself.
    """
    run = _Run(config.run)
    text = lists.read_text(config.file)
    try:
        segments = list(FORMATS[config.format].read(text, run.videos))
        if not all(0 <= one.start_seconds <= one.end_seconds < math.inf for one in segments):
            raise ValueError("a segment ends before it begins")
        answered = [segment for segment in segments if segment.answer is not None]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"{config.file} cannot be read as `format` {config.format} ({error!r:.200}); expected an export of this "
            "tool"
        ) from error
    clips, num_unmatched = match_clips(answered, run.clips, run.videos)
    if not clips:
        raise UserError(
            f"{config.file} labels no clip of {config.run}; expected segments of its videos, labelled "
            f"{', '.join(LABELS)} or by a class"
        )
    notes = [
        (len(segments) - len(answered), "still labelled Detection, so nobody has answered them"),
        (num_unmatched, "without a clip of the run"),
    ]
    said = [f"{counted(count, 'segment')} {what}" for count, what in notes if count]
    if run.videos.unknown:
        said.append(f"{counted(len(run.videos.unknown), 'video')} of the file not in {config.run}")
    _write(config.out, _as_csv(clips, run.digest))
    return ExchangeResult(path=config.out, num_segments=len(clips), notes=tuple(said), shards=run.shards)


class _Run:
    """Clips and videos of a finished run, as the formats need them."""

    def __init__(self, folder: Path) -> None:
        files = OutputFiles(folder=folder)
        files.check_finished()
        shards = schema.read_json(files.run, "run", again=RUN_AGAIN)["shards"]
        self.digest: str = shards["digest"]
        self.clips = [clip for clip in read_predictions(files.predictions) if clip.confidence is not None]
        self.videos = Videos.of(schema.read_json(files.events, "events", again=RUN_AGAIN))
        is_test = any(clip.split == "Test" for clip in self.clips)
        self.shards: str | None = None if is_test else shards["path"]


def match_clips(
    segments: Iterable[Segment], clips: Sequence[Prediction], videos: Videos
) -> tuple[list[tuple[Prediction, Segment]], int]:
    """Return the labelled ones of `clips` in their order, each with its segment, and the number of unused segments."""
    of_video: dict[str, list[Prediction]] = defaultdict(list)
    for clip in clips:
        of_video[clip.source].append(clip)
    labelled: dict[str, Segment] = {}
    drawn = []  # segments with times of their own
    for segment in segments:
        found = _clip_at(segment, of_video[segment.source], videos[segment.source])
        if found is None:
            drawn.append(segment)
        else:
            _label(labelled, found, segment)
    by_times = set(labelled)
    unmatched = 0
    for segment in drawn:
        start, end, clips_of_video = segment.start_seconds, segment.end_seconds, of_video[segment.source]
        inside = [clip for clip in clips_of_video if start <= sum(_times(clip)) / 2 <= end]
        unmatched += not inside
        for clip in inside:
            if clip.key not in by_times:
                _label(labelled, clip, segment)
    return [(clip, labelled[clip.key]) for clip in clips if clip.key in labelled], unmatched


def _clip_at(segment: Segment, clips: Iterable[Prediction], video: Video) -> Prediction | None:
    """Return the clip whose first and last frame are nearest to those of the segment, less than one frame away."""

    def distance(clip: Prediction) -> tuple[float, float]:
        start, end = _times(clip)
        apart = sorted((abs(start - segment.start_seconds), abs(end - segment.end_seconds)))
        return apart[1], apart[0]

    nearest = min(clips, key=distance, default=None)
    return nearest if nearest is not None and distance(nearest)[0] < video.seconds(1) else None


def _times(clip: Prediction) -> tuple[float, float]:
    """Return the times of the first and the last frame of a scored clip."""
    return clip.start_seconds or 0.0, clip.end_seconds or 0.0


def _label(labelled: dict[str, Segment], clip: Prediction, segment: Segment) -> None:
    before = labelled.setdefault(clip.key, segment)
    if before.answer != segment.answer:
        start, end = _times(clip)
        raise UserError(
            f"{clip.source} from {start:g} to {end:g} s is labelled {before.label} and "
            f"{segment.label}; remove one of them in the tool and export again"
        )


def _segment(clip: Prediction, label: str, *, note: str = "", confidence: float | None = None) -> Segment:
    start, end = _times(clip)
    return Segment(
        source=clip.source,
        start_seconds=start,
        end_seconds=end,
        label=label,
        note=note,
        confidence=confidence,
    )


def _by_video(segments: Iterable[Segment], videos: Videos) -> list[tuple[Video, list[Segment]]]:
    found: dict[str, list[Segment]] = defaultdict(list)
    for segment in segments:
        found[segment.source].append(segment)
    return [(videos[source], one) for source, one in found.items()]


def _as_csv(clips: Iterable[tuple[Prediction, Segment]], digest: str) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for clip, segment in clips:
        fields = {"shards": digest, "mark": segment.answer, "class": clip.class_name, "note": segment.note}
        writer.writerow({**without_formulas({**vars(clip), **fields}), "key": clip.key})
    return text.getvalue()


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _write(path: Path, text: str) -> None:
    """Write a file; an earlier one with other content moves to a numbered name."""
    with hold_out(path.parent):
        write_file(path, text.encode("utf-8", "surrogateescape"))
