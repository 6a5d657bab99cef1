"""Offline HTML report of a finished run of inference: its inputs, metrics, and detections to review.

The page needs nothing else: no network, no server, no file beside it. A reviewer marks detections as true or false and
exports the marks as CSV, which `stage1 train --marks` takes. The same run and options give the same page.
"""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stage1.data.reader import ClipReader
from stage1.inference.attention_data import load_attention_data
from stage1.inference.outputs import Detection, OutputFiles, read_anomalies
from stage1.metrics import clips as metrics
from stage1.metrics import relative_scores
from stage1.model.checkpoint import load_checkpoint
from stage1.review.config import ReportConfig as ReportConfig
from stage1.review.film_strip import shown_positions, time_texts
from vidshard.shards import layout
from vidshard.storage import urls
from vidshard.util import atomic, console
from vidshard.util.errors import FormatError, UserError

MAX_IMAGE_BYTES = 40 * 2**20  # of all pictures, so that the page stays below 60 MB when they are written as text
MAX_POINTS = 500  # of the score of a video: longer ones keep the highest second of each stretch
FRAME_PIXELS = (96, 72)  # height of a frame; the second where there are many items
MANY_ITEMS = 400
JPEG_QUALITY = 72
RESAMPLES = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportResult:
    """Result: the page that was written."""

    path: Path
    num_shown: int
    num_left_out: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """A clip of the run: a row of predictions.csv."""

    row: int
    key: str
    source: str
    clip_index: int
    class_name: str | None
    label: int  # 0 normal, 1 crime, -1 unknown
    confidence: float | None
    predicted: bool
    seconds: tuple[float, float] | None

    @property
    def outcome(self) -> str | None:
        """Outcome: hit, alarm (false), miss, or unknown (a detection without a label); None if not shown."""
        if self.confidence is None:
            return None
        if self.predicted:
            return {layout.CRIME_LABEL: "hit", layout.NORMAL_LABEL: "alarm"}.get(self.label, "unknown")
        return "miss" if self.label == layout.CRIME_LABEL else None


def write_report(config: ReportConfig) -> ReportResult:
    """Write the page, and return its path and counts.

    Raises UserError if the folder has no finished run, and FormatError if its files are damaged or of different runs.
    """
    files = OutputFiles(folder=config.folder)
    if not files.run.is_file():
        raise UserError(
            f"{config.folder} contains no finished run of stage1 infer; run `stage1 infer --out {config.folder}` first"
        )
    run, events = _read_json(files.run), _read_json(files.events)
    evaluation = _read_evaluation(config.evaluation, run) if config.evaluation is not None else None
    clips = read_predictions(files.predictions)
    detections = read_anomalies(files.anomalies)
    _check_one_run(files, clips, detections)

    reader = _open_shards(run)
    pictures = Pictures(files, reader, clips, detections)
    chosen = _choose(clips, config.max_items)
    num_shown = sum(clip.outcome is not None for clip in clips)
    data = {
        "run": run_name(run),
        "threshold": run["threshold"],
        "items": list(_items(chosen, {d.key: d for d in detections}, pictures)),
        "videos": [_video(row, video) for row, video in enumerate(events["videos"])],
    }
    page = _template().render(
        name=_name(run),
        about=_about(run),
        warnings=_warnings(run, evaluation),
        tiles=list(_tiles(run, clips, reader)),
        tables=[*_tables(clips), *(_evaluation_tables(evaluation) if evaluation else [])],
        charts=_charts(run),
        items_note=_items_note(len(chosen), num_shown, pictures),
        videos_note=_videos_note(events),
        failures=[
            *run["unscored"].items(),
            *((failure["path"], f"{failure['message']} ({failure['reason']})") for failure in run["failures"]),
        ],
        facts=list(_facts(run)),
        data=data,
    )
    atomic.write_bytes(config.path, page.encode("utf-8", "backslashreplace"))
    return ReportResult(path=config.path, num_shown=len(chosen), num_left_out=num_shown - len(chosen))


def read_predictions(path: Path) -> list[Clip]:
    """Read the rows of predictions.csv. Raises FormatError if it cannot be parsed."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return [_clip(row, fields) for row, fields in enumerate(csv.DictReader(file))]
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise FormatError(f"{path} is no table of predictions written by stage1 infer: {error!r}") from error


def _clip(row: int, fields: Mapping[str, str]) -> Clip:
    times = fields["start_seconds"], fields["end_seconds"]
    return Clip(
        row=row,
        key=fields["key"],
        source=fields["source"],
        clip_index=int(fields["clip_index"]),
        class_name=fields["class"] or None,
        label=int(fields["label"]),
        confidence=float(fields["confidence"]) if fields["confidence"] else None,
        predicted=fields["predicted"] == "1",
        seconds=(float(times[0]), float(times[1])) if all(times) else None,
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} cannot be read ({error}); run `stage1 infer` again") from error
    if not isinstance(fields, dict):
        raise FormatError(f"{path} holds no JSON object; run `stage1 infer` again")
    return fields


def _check_one_run(files: OutputFiles, clips: Sequence[Clip], detections: Sequence[Detection]) -> None:
    if [clip.key for clip in clips if clip.predicted] != [detection.key for detection in detections]:
        raise FormatError(
            f"{files.anomalies} and {files.predictions} come from different runs; run `stage1 infer` again"
        )


def _open_shards(run: Mapping[str, Any]) -> ClipReader | None:
    """Open the scored shards, which hold the frames of misses; return None if they are missing or have changed."""
    path = run["shards"]["path"]
    try:
        reader = ClipReader(urls.location(path)) if path else None
    except (UserError, OSError):
        return None
    return reader if reader is not None and reader.manifest.digest == run["shards"]["digest"] else None


def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("stage1.review", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")


# --- the detections -----------------------------------------------------------------------------------------------


def _choose(clips: Sequence[Clip], max_items: int) -> list[Clip]:
    """Choose the clips to show, in index order: the detections and misses of highest confidence."""
    shown = [clip for clip in clips if clip.outcome is not None]
    strongest = sorted(shown, key=lambda clip: (-(clip.confidence or 0.0), clip.row))[:max_items]
    return sorted(strongest, key=lambda clip: clip.row)


def _items(chosen: Sequence[Clip], detections: Mapping[str, Detection], pictures: Pictures) -> Iterator[dict[str, Any]]:
    """Return the data of each clip that the page shows."""
    height = FRAME_PIXELS[len(chosen) > MANY_ITEMS]
    for clip in chosen:
        detection = detections.get(clip.key)
        seconds = list(detection.seconds) if detection else pictures.seconds(clip)
        attention = list(detection.attention_weights) if detection else None
        positions = shown_positions(attention or [0.0] * len(seconds))
        image, no_image = pictures.strip(clip, positions, height)
        top = detection.top_attention_indices if detection else []
        times = time_texts(seconds)
        yield {
            "row": clip.row,
            "key": clip.key,
            "source": clip.source,
            "clip_index": clip.clip_index,
            "class": clip.class_name,
            "label": clip.label,
            "outcome": clip.outcome,
            "confidence": clip.confidence,
            "seconds": [seconds[0], seconds[-1]],
            "when": f"{times[0]} to {times[-1]}",
            "times": [times[i] for i in positions],
            "attention": [round(attention[i], 4) for i in positions] if attention else None,
            "top": [place for place, i in enumerate(positions) if i in top],
            "image": image,
            "no_image": no_image,
        }


class Pictures:
    """JPEG film strips of clips, from the scored shards or else from the attention data."""

    def __init__(
        self, files: OutputFiles, reader: ClipReader | None, clips: Sequence[Clip], detections: Sequence[Detection]
    ) -> None:
        self._reader = reader if reader is not None and len(reader) == len(clips) else None
        self._place = {detection.key: i for i, detection in enumerate(detections)}
        self._attention_data = None
        if self._reader is None and detections:
            path = files.attention_data if files.attention_data.is_file() else files.attention_shards
            self._attention_data = load_attention_data(path)
        self._bytes = 0
        self.num_left_out = 0  # for want of room

    def seconds(self, clip: Clip) -> list[float]:
        """Return the times of a clip's frames, or only of its first and last one."""
        if self._reader is not None:
            try:
                return list(self._reader.read_record(clip.row).timestamps_seconds)
            except FormatError:
                pass
        return list(clip.seconds or (0.0, 0.0))

    def strip(self, clip: Clip, positions: Sequence[int], height: int) -> tuple[str | None, str]:
        """Return frames side by side as a base64 JPEG, or None and the reason."""
        if self._bytes > MAX_IMAGE_BYTES:
            self.num_left_out += 1
            return None, "No picture: the page would become too large. Show fewer with `max_items`."
        try:
            frames = self._frames(clip)
        except FormatError as error:
            return None, f"No picture: {error}"
        if frames is None:
            return None, "No picture: the shards are not where they were, and the attention data holds detections only."
        data = encode_strip(frames[list(positions)], height)
        self._bytes += len(data)
        return base64.b64encode(data).decode("ascii"), ""

    def _frames(self, clip: Clip) -> npt.NDArray[np.uint8] | None:
        if self._reader is not None:
            clips = np.empty((1, *self._reader.clip_shape.thwc), np.uint8)
            self._reader.read_clips([clip.row], clips)
            frames: npt.NDArray[np.uint8] = clips[0]
            return frames
        if self._attention_data is None or clip.key not in self._place:
            return None
        held: npt.NDArray[np.uint8] = self._attention_data.clips[self._place[clip.key]].numpy()
        return held


def encode_strip(frames: npt.NDArray[np.uint8], height: int) -> bytes:
    """Encode frames, uint8 (N, H, W, 3) RGB, side by side as one JPEG of this height.

    >>> encode_strip(np.zeros((2, 8, 8, 3), np.uint8), 8)[:3]
    b'\\xff\\xd8\\xff'
    """
    from PIL import Image

    gap = np.full((frames.shape[1], max(1, frames.shape[2] // 56), 3), 255, np.uint8)
    parts = [part for frame in frames for part in (frame, gap)]
    strip = Image.fromarray(np.concatenate(parts[:-1], axis=1))
    strip = strip.resize((round(strip.width * height / strip.height), height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    strip.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _items_note(num_chosen: int, num_shown: int, pictures: Pictures) -> str:
    note = "Clips called a crime, and the crimes that were missed."
    if num_chosen < num_shown:
        note += f" The {num_chosen:,} of highest confidence; {num_shown - num_chosen:,} more are in predictions.csv."
    if pictures.num_left_out:
        note += f" {pictures.num_left_out:,} are without picture, to keep the page small."
    return note


# --- the videos ---------------------------------------------------------------------------------------------------


def _video(row: int, video: Mapping[str, Any]) -> dict[str, Any]:
    scores = [None if score is None else round(score, 4) for score in video["scores"]]
    known = [score for score in scores if score is not None]
    return {
        "row": row,
        "source": video["source"],
        "class": video["class"],
        "duration": max(video["duration_seconds"], 1e-3),
        "length": console.time_text(video["duration_seconds"]),
        "highest": max(known, default=None),
        "scores": thinned(scores, MAX_POINTS),
        "events": [{**_span(event), "text": _span_text("found", event)} for event in video["events"]],
        "truth": None
        if video["truth"] is None
        else [{**_span(event), "text": _span_text("true", event)} for event in video["truth"]],
    }


def _span(event: Mapping[str, Any]) -> dict[str, float]:
    return {"start": event["start_seconds"], "end": event["end_seconds"]}


def _span_text(kind: str, event: Mapping[str, Any]) -> str:
    text = f"{kind} event from {console.time_text(event['start_seconds'])} to {console.time_text(event['end_seconds'])}"
    return f"{text}, peak {event['peak_confidence']:.1%}" if "peak_confidence" in event else text


def thinned(scores: Sequence[float | None], count: int) -> list[float | None]:
    """Reduce scores to at most `count`: the highest of each of as many segments.

    >>> thinned([0.1, 0.9, None, 0.2], 2), thinned([0.5], 2)
    ([0.9, 0.2], [0.5])
    """
    if len(scores) <= count:
        return list(scores)
    edges = [len(scores) * i // count for i in range(count + 1)]
    stretches = (scores[a:b] for a, b in itertools.pairwise(edges))
    return [max((score for score in stretch if score is not None), default=None) for stretch in stretches]


def _videos_note(events: Mapping[str, Any]) -> str:
    return (
        f"An event reaches a score of {events['threshold']:.3g}, stays above {events['low_ratio']:.0%} of that and "
        f"lasts {events['min_seconds']:g} s or more; scores are means over {events['smooth_seconds']:g} s. One clip "
        "spread over a whole video gives one score for all of it: sample densely to see when something happens."
    )


# --- the figures --------------------------------------------------------------------------------------------------


def _tiles(run: Mapping[str, Any], clips: Sequence[Clip], reader: ClipReader | None) -> Iterator[dict[str, str]]:
    counts = run["clips"]
    outcomes = [clip.outcome for clip in clips]
    yield _tile(f"{counts['scored']:,}", "clips scored", f"of {counts['found']:,} found")
    yield _tile(f"{counts['detected']:,}", "detections", f"at a confidence of {run['threshold']:.3g} or more")
    if run["metrics"]:
        yield _tile(f"{outcomes.count('alarm'):,}", "false alarms", "normal clips called a crime")
        yield _tile(f"{outcomes.count('miss'):,}", "missed", "clips of crimes below the threshold")
        yield from _interval_tiles(clips, reader)
    videos = run["video_counts"]
    yield _tile(f"{videos['events']:,}", "events", f"in {videos['with_events']:,} of {videos['videos']:,} videos")


def _interval_tiles(clips: Sequence[Clip], reader: ClipReader | None) -> Iterator[dict[str, str]]:
    """Yield accuracy and AUC with intervals over recordings, or over videos if recordings are unknown."""
    known = [clip for clip in clips if clip.label >= 0 and clip.confidence is not None]
    labels = np.array([clip.label for clip in known])
    predicted = np.array([clip.predicted for clip in known], np.int64)
    confidences = np.array([clip.confidence for clip in known], np.float64)
    groups, unit = [clip.source for clip in known], "videos"
    if reader is not None and len(reader) == len(clips):
        names = [reader.index.recording(int(reader.index.clips["video"][clip.row])) for clip in known]
        if any(names):
            groups = [f"group {name}" if name else source for name, source in zip(names, groups, strict=True)]
            unit = "recordings"
    resamples = RESAMPLES if len(known) <= 20_000 else RESAMPLES // 5

    right: metrics.Statistic = lambda weights: metrics.accuracy(labels, predicted, weights)  # noqa: E731
    for name, statistic, form in (
        ("accuracy", right, "{:.1%}"),
        ("ROC-AUC", metrics.roc_auc_statistic(labels, confidences), "{:.3f}"),
    ):
        interval = metrics.bootstrap(statistic, groups, num_resamples=resamples)
        if interval.value is None:
            continue
        note = f"{interval.num_units} {unit}"
        if interval.low is not None and interval.high is not None:
            note = f"95 %: {form.format(interval.low)} to {form.format(interval.high)} ({note})"
        yield _tile(form.format(interval.value), f"{name} of clips", note)


def _tile(value: str, name: str, note: str = "") -> dict[str, str]:
    return {"value": value, "name": name, "note": note}


def _tables(clips: Sequence[Clip]) -> Iterator[dict[str, Any]]:
    known = [clip for clip in clips if clip.label >= 0 and clip.confidence is not None]
    if not known:
        return
    rows = []
    for class_name in sorted({clip.class_name or "" for clip in known}):
        members = [clip for clip in known if (clip.class_name or "") == class_name]
        called = sum(clip.predicted for clip in members)
        rows.append((class_name or "no class", f"{len(members):,}", f"{called:,}", f"{called / len(members):.0%}"))
    yield {
        "wide": False,
        "title": "Clips called a crime, by class",
        "head": ("class", "clips", "called a crime", "share"),
        "rows": rows,
        "note": "Of crimes high is good, of normal classes low.",
    }


def _charts(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the training curves, if the checkpoint has not changed since the run."""
    try:
        history = load_checkpoint(Path(run["checkpoint"]["path"])).run_state.get("history", [])
    except (UserError, OSError, TypeError):
        return []
    charts = [
        line_chart(
            "Loss by epoch", [("training", _column(history, "loss")), ("validation", _column(history, "val_loss"))]
        ),
        line_chart(
            "Accuracy and AUC by epoch",
            [("training accuracy", _column(history, "accuracy")), ("validation AUC", _column(history, "val_auc"))],
            top=1.0,
        ),
    ]
    return [chart for chart in charts if chart is not None]


def _column(history: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    return [(row["epoch"], row[name]) for row in history if row.get(name) is not None]


def line_chart(
    title: str, lines: Sequence[tuple[str, Sequence[tuple[float, float]]]], *, top: float | None = None
) -> dict[str, Any] | None:
    """Scale lines of (x, y) to a drawing of 400 × 150; return None without points.

    The axis of y begins at 0 (or below) and ends at `top`, else at the highest value.
    """
    lines = [(name, points) for name, points in lines if points and all(math.isfinite(y) for _, y in points)]
    if not lines:
        return None
    xs, ys = zip(*(point for _, points in lines for point in points), strict=True)
    low, high, left, right = min(0.0, *ys), top or max(ys) or 1.0, min(xs), max(xs)

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            round(44 + 352 * (x - left) / max(right - left, 1e-9), 1),
            round(126 - 114 * (y - low) / max(high - low, 1e-9), 1),
        )

    ends = "; ".join(f"{name} ends at {points[-1][1]:.3f}" for name, points in lines)
    return {
        "title": title,
        "description": f"{title}, epochs {left:g} to {right:g}: {ends}",
        "low": f"{low:.2g}",
        "high": f"{high:.2f}",
        "left": f"epoch {left:g}",
        "right": f"{right:g}",
        "lines": [
            {"name": f"{name} ({points[-1][1]:.3f})", "points": [place(x, y) for x, y in points]}
            for name, points in lines
        ],
    }


def _read_evaluation(folder: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    """Read the results of `stage1 evaluate`. Raises UserError if they are of different shards."""
    path = folder / "evaluation.json"
    if not path.is_file():
        raise UserError(f"no {path}: run `stage1 evaluate --out {folder}` first, or leave out `evaluation`")
    fields = _read_json(path)
    digest = fields["shards"]["digest"] if "levels" in fields else None
    if digest != run["shards"]["digest"]:
        raise UserError(
            f"{path} is about other shards than this run scored ({run['shards']['path']}); evaluate these, or "
            "omit `evaluation`"
        )
    return fields


# Of each level: name in evaluation.json → what it is called here.
_LEVEL_METRICS = {
    "accuracy": "accuracy",
    "auc": "ROC-AUC",
    "average_precision": "average precision",
    "f1": "F1",
    "auc_within_recording": "ROC-AUC within recordings",
}


def _evaluation_tables(evaluation: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Return metrics of clips, videos and frames with intervals, and those of shortcuts on the same videos."""
    levels, frames = evaluation["levels"], evaluation["frames"]
    rows = [
        (name, *(_interval_text(levels[level].get(key)) for level in ("clips", "videos")), _interval_text(of_frames))
        for key, name in _LEVEL_METRICS.items()
        for of_frames in [(frames or {}).get(key)]
    ]
    if frames:
        rows.append(("ROC-AUC on anomalous videos alone", "", "", _interval_text(frames["auc_anomalous"])))
    chosen = evaluation["threshold"]
    rows = [row for row in rows if any(row[1:])]
    width = 4 if frames else 3  # without annotations nothing is known of frames
    yield {
        "wide": True,
        "title": "Metrics, each with its 95 % interval",
        "head": ("metric", "clips", "videos", "frames")[:width],
        "rows": [row[:width] for row in rows],
        "note": f"At a threshold of {chosen['value']:.3g}, from {chosen['chosen_for']}. Intervals: "
        f"{evaluation['conventions']['intervals']}."
        + (f" Scores are relative: {evaluation['conventions']['relative']}." if evaluation.get("relative") else ""),
    }
    if evaluation["baselines"]:
        yield {
            "wide": True,
            "title": "What shortcuts reach on the same videos",
            "head": ("shortcut", "video ROC-AUC", "the model is above it by"),
            "rows": [
                (row["name"], _interval_text(row["auc"]), _interval_text(row["model_above"]))
                for row in evaluation["baselines"]
            ],
            "note": "A model that is not clearly above a shortcut may have learnt nothing else.",
        }
    alarms = evaluation["false_alarms"]
    if alarms["per_hour"] is not None:
        yield {
            "wide": True,
            "title": "False alarms",
            "head": ("", "per hour of normal footage", "hours"),
            "rows": [("events told of normal videos", _interval_text(alarms["per_hour"], 1), f"{alarms['hours']:.2f}")],
            "note": evaluation["conventions"]["false alarms"],
        }


def _interval_text(fields: Mapping[str, Any] | None, digits: int = 3) -> str:
    return "" if fields is None else metrics.Interval(**fields).text(digits)


def _warnings(run: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> list[str]:
    warnings = [*run["warnings"], *(f"from the training: {text}" for text in _checkpoint_entries(run, "warnings"))]
    trained_on = run["clips"]["trained_on"]
    if trained_on:
        warnings.append(
            f"{trained_on:,} of these clips are of videos that the model was trained on: the figures say nothing about "
            "new videos"
        )
    if run["clips"]["unscored"] or run["failures"]:
        warnings.append(
            f"{run['clips']['unscored']:,} clips could not be read and {len(run['failures']):,} videos not be decoded: "
            "see Not scored"
        )
    if evaluation is not None:
        warnings += [*evaluation["flags"], *evaluation["warnings"]]
    return list(dict.fromkeys(warnings))


def _checkpoint_entries(run: Mapping[str, Any], name: str) -> list[str]:
    models = [run["checkpoint"]] if run["checkpoint"] else run["folds"] or []
    return [text for model in models for text in model[name]]


def _facts(run: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if run["videos"]:
        yield "videos", ", ".join(run["videos"])
    else:
        yield "shards", f"{run['shards']['path']}"
    yield "digest of the shards", run["shards"]["digest"]
    for model in [run["checkpoint"]] if run["checkpoint"] else run["folds"] or []:
        yield "checkpoint", f"{model['path']} (epoch {model['epoch']}, SHA-256 {model['sha256']})"
    for name in ("threshold", "device", "precision", "batch_size", "annotations", "stage1_version"):
        if run.get(name) is not None:
            yield name.replace("_", " "), str(run[name])
    if run.get("relative"):
        yield "scores", f"relative: {relative_scores.CONVENTION}"


def _name(run: Mapping[str, Any]) -> str:
    return Path(run["shards"]["path"]).name if run["shards"]["path"] else "videos"


def _about(run: Mapping[str, Any]) -> str:
    what = f"shards {run['shards']['path']}" if run["shards"]["path"] else f"{', '.join(run['videos'])}"
    model = f"checkpoint {run['checkpoint']['path']}" if run["checkpoint"] else "models of several folds"
    return f"{what}, scored by {model}"


def run_name(run: Mapping[str, Any]) -> str:
    """Return an identifier of the run, under which a browser stores review labels."""
    models = [run["checkpoint"]] if run["checkpoint"] else run["folds"] or []
    return f"{run['shards']['digest'][:12]}-{'-'.join(model['sha256'][:8] for model in models)}"
