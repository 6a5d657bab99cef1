"""Offline HTML report of a finished run of inference: its inputs, metrics, and detections to review.

The page is a single file, which needs neither a network nor a server. A reviewer marks detections as true or false and
exports these review labels as CSV, for `stage1 train --marks`. The same run and options give the same page.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from stage1.common import schema
from stage1.common.earlier_results import write_file
from stage1.common.files import METRICS_NAME, holds
from stage1.common.plots import parts_of_model
from stage1.data.reader import ClipReader
from stage1.inference.attention_data import load_attention_data
from stage1.inference.outputs import RUN_AGAIN, Detection, OutputFiles, Prediction, read_anomalies, read_predictions
from stage1.metrics import centred_scores
from stage1.metrics import clips as metrics
from stage1.metrics.clips import interval_text
from stage1.model.checkpoint import load_checkpoint
from stage1.review.attention_note import attention_note
from stage1.review.config import ReportConfig as ReportConfig
from stage1.review.event_clips import clip_name
from stage1.review.film_strip import attended, shown_positions, time_texts
from stage1.review.run_videos import Recorded, Videos, read_start_times
from vidshard.storage import urls
from vidshard.storage.urls import Location
from vidshard.util import console, pages
from vidshard.util.errors import FormatError, UserError, fault_in

MAX_IMAGE_BYTES = 40 * 2**20  # of all pictures, so that the page stays below 60 MB in base64
MAX_POINTS = 500  # in the score curve of a video; longer curves keep the maximum of each segment
FRAME_PIXELS = (112, 80, 56)  # heights of a frame: the largest whose strip is small enough
STRIP_BYTES = 18_000  # of a JPEG, 24 kB in base64, where a lower quality reaches that
STRIP_QUALITIES = (72, 60, 48, 36)
RESAMPLES = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportResult:
    """Result: the page that was written."""

    path: Path
    num_shown: int
    num_left_out: int
    attention: str  # how far attention can be trusted


@holds(lambda config: config.path.parent)
def write_report(config: ReportConfig) -> ReportResult:
    """Write the page, and return its path and counts.

    Raises UserError if the folder has no finished run, and FormatError if its files are damaged or belong to
    different runs.
    """
    files = OutputFiles(folder=config.folder)
    files.check_finished()
    run = schema.read_json(files.run, "run", again=RUN_AGAIN)
    events = schema.read_json(files.events, "events", again=RUN_AGAIN)
    evaluation = _read_evaluation(config.evaluation, run) if config.evaluation is not None else None
    clips = read_predictions(files.predictions)
    detections = read_anomalies(files.anomalies)
    if [clip.key for clip in clips if clip.predicted] != [detection.key for detection in detections]:
        raise FormatError(
            f"{files.anomalies} and {files.predictions} come from different runs; run `stage1 infer` again"
        )

    reader = _open_shards(run, config.shards)
    pictures = Pictures(files, reader, clips, detections)
    recorded = read_start_times(config.start_times, Videos.of(events)) if config.start_times is not None else {}
    shown = [row for row, clip in enumerate(clips) if clip.outcome is not None]  # detections and misses
    chosen = sorted(sorted(shown, key=lambda row: -(clips[row].confidence or 0.0))[: config.max_items])
    attention = attention_note(files)
    items = []
    with console.Progress("Report", total=len(chosen), unit="clip") as progress:
        for item in _items(chosen, clips, {d.key: d for d in detections}, pictures, recorded):
            items.append(item)
            progress.advance()
    data = {
        "run": run_name(run),
        "shards": run["shards"]["digest"],
        "threshold": run["threshold"],
        "items": items,
        "videos": [
            _video(row, video, files, config.path, recorded.get(video["source"]))
            for row, video in enumerate(events["videos"])
        ],
    }
    page = pages.template("stage1.review", "report.html").render(
        name=_name(run),
        about=_about(run),
        warnings=_warnings(run, evaluation),
        tiles=list(_tiles(run, clips, reader)),
        tables=[*_tables(clips), *(_evaluation_tables(evaluation) if evaluation else [])],
        charts=_charts(run),
        attention=attention,
        items_note=_items_note(len(chosen), len(shown), pictures),
        videos_note=_videos_note(events),
        failures=[
            *run["unscored"].items(),
            *((failure["path"], f"{failure['message']} ({failure['reason']})") for failure in run["failures"]),
        ],
        facts=list(_facts(run)),
        data=data,
    )
    write_file(config.path, page.encode("utf-8", "backslashreplace"))
    num_left_out = len(shown) - len(chosen)
    return ReportResult(path=config.path, num_shown=len(chosen), num_left_out=num_left_out, attention=attention)


def _open_shards(run: Mapping[str, Any], given: Location | None) -> ClipReader | None:
    """Open the scored shards, which hold the frames of misses; return None if they are missing or have changed.

    A URL that only the run names is not opened: the run may be a stranger's.
    """
    place = given if given is not None else urls.location(run["shards"]["path"] or "")
    if given is None and (not run["shards"]["path"] or not isinstance(place, Path)):
        return None
    try:
        reader = ClipReader(place)
    except (UserError, OSError) as error:
        if given is not None or fault_in(error):
            raise
        return None
    if reader.manifest.digest == run["shards"]["digest"]:
        return reader
    if given is not None:
        raise UserError(f"`shards` {given} are not those that this run scored; pass those, or omit `shards`")
    return None


# --- the detections -----------------------------------------------------------------------------------------------


def _items(
    rows: Sequence[int],
    clips: Sequence[Prediction],
    detections: Mapping[str, Detection],
    pictures: Pictures,
    recorded: Mapping[str, Recorded],
) -> Iterator[dict[str, Any]]:
    """Return the data of each clip that the page shows."""
    for row in rows:
        clip, detection = clips[row], detections.get(clips[row].key)
        seconds = list(detection.seconds) if detection else pictures.seconds(row)
        attention = list(detection.attention_weights) if detection else None
        positions = shown_positions(attention or [0.0] * len(seconds))
        image, no_image = pictures.strip(row, positions)
        top = attended(detection) if detection else []
        times = time_texts(seconds)
        known = recorded.get(clip.source)
        yield {
            "row": row,
            "key": clip.key,
            "source": clip.source,
            "clip_index": clip.clip_index,
            "class": clip.class_name,
            "label": clip.label,
            "outcome": clip.outcome,
            "confidence": clip.confidence,
            "seconds": [seconds[0], seconds[-1]],
            "when": f"{times[0]} to {times[-1]}",
            "clock": None if known is None else known.clock(seconds[0]),
            "began": None if known is None else known.timestamp(seconds[0]),
            "times": [times[i] for i in positions],
            "attention": [round(attention[i], 4) for i in positions] if attention else None,
            "top": [place for place, i in enumerate(positions) if i in top],
            "image": image,
            "aspect": pictures.aspect,
            "no_image": no_image,
        }


class Pictures:
    """JPEG film strips of clips, from the scored shards or else from the attention data."""

    def __init__(
        self,
        files: OutputFiles,
        reader: ClipReader | None,
        clips: Sequence[Prediction],
        detections: Sequence[Detection],
    ) -> None:
        self._clips = clips
        self._reader = reader if reader is not None and len(reader) == len(clips) else None
        self._detection_of_key = {detection.key: i for i, detection in enumerate(detections)}
        self._attention_data = None
        if self._reader is None and detections:
            self._attention_data = load_attention_data(files.folder)
        self._bytes = 0
        self.aspect = 1.0  # width of a frame divided by its height
        self.num_left_out = 0  # because of the limit on the size of the page

    def seconds(self, row: int) -> list[float]:
        """Return the times of a clip's frames, or only of its first and last one."""
        if self._reader is not None:
            with contextlib.suppress(FormatError):
                return list(self._reader.read_record(row).timestamps_seconds)
        return [self._clips[row].start_seconds or 0.0, self._clips[row].end_seconds or 0.0]

    def strip(self, row: int, positions: Sequence[int]) -> tuple[str | None, str]:
        """Return frames side by side as a base64 JPEG, or None and the reason."""
        if self._bytes > MAX_IMAGE_BYTES:
            self.num_left_out += 1
            return None, "No picture: the page would become too large. Show fewer with `max_items`."
        try:
            frames = self._frames(row)
        except FormatError as error:
            return None, f"No picture: {error}"
        if frames is None:
            return None, (
                "No picture: the shards were moved or deleted, or are at a URL: pass `shards`. The attention data "
                "contains detections only."
            )
        self.aspect = round(frames.shape[2] / frames.shape[1], 4)
        data = encode_strip(frames[list(positions)])
        self._bytes += len(data)
        return base64.b64encode(data).decode("ascii"), ""

    def _frames(self, row: int) -> npt.NDArray[np.uint8] | None:
        if self._reader is not None:
            return self._reader[row]
        number = self._detection_of_key.get(self._clips[row].key)
        if self._attention_data is None or number is None:
            return None
        frames: npt.NDArray[np.uint8] = self._attention_data.clips[number].numpy()
        return frames


def encode_strip(frames: npt.NDArray[np.uint8]) -> bytes:
    """Encode frames, uint8 (N, H, W, 3) RGB, side by side as one JPEG of at most STRIP_BYTES, if possible.

    >>> encode_strip(np.zeros((2, 8, 8, 3), np.uint8))[:3]
    b'\\xff\\xd8\\xff'
    """
    from PIL import Image

    whole = Image.fromarray(np.concatenate(list(frames), axis=1))
    for height, quality in itertools.product(FRAME_PIXELS, STRIP_QUALITIES):
        width = max(1, round(frames.shape[2] * height / frames.shape[1])) * len(frames)  # frames of whole pixels
        buffer = io.BytesIO()
        whole.resize((width, height), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= STRIP_BYTES:
            break
    return buffer.getvalue()


def _items_note(num_chosen: int, num_shown: int, pictures: Pictures) -> str:
    note = "Clips that were detected as crime, and crime clips that were missed."
    if num_chosen < num_shown:
        note += f" The {num_chosen:,} of highest confidence; {num_shown - num_chosen:,} more are in predictions.csv."
    if pictures.num_left_out:
        note += f" {pictures.num_left_out:,} have no picture, to limit the size of the page."
    return note


# --- the videos ---------------------------------------------------------------------------------------------------


def _video(
    row: int, video: Mapping[str, Any], files: OutputFiles, page: Path, recorded: Recorded | None
) -> dict[str, Any]:
    scores = [None if score is None else round(score, 4) for score in video["scores"]]
    known = [score for score in scores if score is not None]
    return {
        "row": row,
        "source": video["source"],
        "class": video["class"],
        "camera": "" if recorded is None else recorded.camera,
        "clocks": None if recorded is None else [recorded.clock(at) for at in (0.0, video["duration_seconds"])],
        "duration": max(video["duration_seconds"], 1e-3),
        "length": console.time_text(video["duration_seconds"]),
        "highest": max(known, default=None),
        "scores": thinned(scores, MAX_POINTS),
        "uri": path.as_uri() if (path := Path(video["video_path"])).is_absolute() and path.is_file() else None,
        "events": [
            {
                **_span(event, "predicted", recorded),
                "clip": _link(files.clips / clip_name(video["source"], number), page),
            }
            for number, event in enumerate(video["events"])
        ],
        "truth": None if video["truth"] is None else [_span(event, "true", recorded) for event in video["truth"]],
    }


def _link(clip: Path, page: Path) -> str | None:
    """Return a relative link from the page to an event clip; None if `stage1 clips` has not written it."""
    return quote(os.path.relpath(clip, page.parent).replace(os.sep, "/")) if clip.is_file() else None


def _span(event: Mapping[str, Any], kind: str, recorded: Recorded | None) -> dict[str, Any]:
    start, end = event["start_seconds"], event["end_seconds"]
    text = f"{kind} event from {console.time_text(start)} to {console.time_text(end)}"
    text += f" ({recorded.clock(start)} to {recorded.clock(end)})" if recorded is not None else ""
    text += f", peak {event['peak_confidence']:.1%}" if "peak_confidence" in event else ""
    return {"start": start, "end": end, "text": text}


def thinned(scores: Sequence[float | None], count: int) -> list[float | None]:
    """Reduce scores to at most `count`: the highest in each of `count` segments.

    >>> thinned([0.1, 0.9, None, 0.2], 2), thinned([0.5], 2)
    ([0.9, 0.2], [0.5])
    """
    if len(scores) <= count:
        return list(scores)
    edges = [len(scores) * i // count for i in range(count + 1)]
    segments = (scores[a:b] for a, b in itertools.pairwise(edges))
    return [max((score for score in segment if score is not None), default=None) for segment in segments]


def _videos_note(events: Mapping[str, Any]) -> str:
    share = events.get("top_share", 1)  # files of earlier versions lack it
    more = f", raised in a video where more than {100 * share:g} % of the seconds (or 6) reach it" if share < 1 else ""
    return (
        f"An event reaches a score of {events['threshold']:.3g}{more}. It stays above "
        f"{100 * events['low_ratio']:g} % of that and lasts {events['min_seconds']:g} s or more. Scores are means over "
        f"{events['smooth_seconds']:g} s. A clip that spans a whole video gives a single score; use dense sampling to "
        "locate events in time."
    )


# --- the figures --------------------------------------------------------------------------------------------------


def _tiles(run: Mapping[str, Any], clips: Sequence[Prediction], reader: ClipReader | None) -> Iterator[dict[str, str]]:
    counts = run["clips"]
    outcomes = [clip.outcome for clip in clips]
    yield _tile(f"{counts['scored']:,}", "clips scored", f"of {counts['found']:,} found")
    yield _tile(f"{counts['detected']:,}", "detections", f"at a confidence of {run['threshold']:.3g} or more")
    if run["metrics"]:
        yield _tile(f"{outcomes.count('alarm'):,}", "false alarms", "normal clips detected as crime")
        yield _tile(f"{outcomes.count('miss'):,}", "missed", "crime clips below the threshold")
        yield from _interval_tiles(clips, reader)
    videos = run["video_counts"]
    yield _tile(f"{videos['events']:,}", "events", f"in {videos['with_events']:,} of {videos['videos']:,} videos")


def _interval_tiles(clips: Sequence[Prediction], reader: ClipReader | None) -> Iterator[dict[str, str]]:
    """Yield accuracy and AUC with intervals over recordings, or over videos if recordings are unknown."""
    known = [(row, clip) for row, clip in enumerate(clips) if clip.label >= 0 and clip.confidence is not None]
    labels = [clip.label for _, clip in known]
    groups, unit = [clip.source for _, clip in known], "videos"
    if reader is not None and len(reader) == len(clips) and reader.recordings:
        groups, unit = [reader.recording_or_video(int(reader.videos[row])) for row, _ in known], "recordings"
    for name, statistic, form in (
        ("accuracy", metrics.mean_statistic([clip.predicted == clip.label for _, clip in known]), "{:.1%}"),
        ("ROC-AUC", metrics.roc_auc_statistic(labels, [clip.confidence or 0.0 for _, clip in known]), "{:.3f}"),
    ):
        interval = metrics.bootstrap(statistic, groups, num_resamples=RESAMPLES if len(known) <= 20_000 else 200)
        if interval.value is None:
            continue
        note = f"{interval.num_units} {unit}"
        if interval.low is not None and interval.high is not None:
            note = f"95 %: {form.format(interval.low)} to {form.format(interval.high)} ({note})"
        yield _tile(form.format(interval.value), f"{name} of clips", note)


def _tile(value: str, name: str, note: str = "") -> dict[str, str]:
    return {"value": value, "name": name, "note": note}


def _tables(clips: Sequence[Prediction]) -> Iterator[dict[str, Any]]:
    known = [clip for clip in clips if clip.label >= 0 and clip.confidence is not None]
    if not known:
        return
    rows = []
    for class_name in sorted({clip.class_name or "" for clip in known}):
        members = [clip for clip in known if (clip.class_name or "") == class_name]
        detected = sum(bool(clip.predicted) for clip in members)
        rows.append((class_name or "no class", f"{len(members):,}", f"{detected:,}", f"{detected / len(members):.0%}"))
    yield {
        "wide": False,
        "title": "Clips detected as crime, by class",
        "head": ("class", "clips", "detected as crime", "share"),
        "rows": rows,
        "note": "High is good for crime classes, low for normal ones.",
    }


def _charts(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the training curves: those of the whole run, or up to the kept epoch if its metrics are missing."""
    try:
        path = Path(run["checkpoint"]["path"])
        history = kept = load_checkpoint(path).run_state.get("history", [])
        with contextlib.suppress(OSError, ValueError):
            lines = (path.parent / METRICS_NAME).read_text(encoding="utf-8").splitlines()
            history = [json.loads(line) for line in lines]
            if history[: len(kept)] != kept:  # of a later run in the same folder
                history = kept
        if not all(isinstance(row, dict) for row in history):
            return []
    except (UserError, OSError, TypeError) as error:
        if fault_in(error):
            raise
        return []
    train, validation = parts_of_model(history)
    charts = [
        line_chart(
            "Loss by epoch",
            [(f"training{train}", _column(history, "loss")), (f"validation{validation}", _column(history, "val_loss"))],
        ),
        line_chart(
            "Accuracy and AUC by epoch",
            [
                (f"training accuracy{train}", _column(history, "accuracy")),
                (f"validation AUC{validation}", _column(history, "val_auc")),
            ],
            top=1.0,
        ),
    ]
    return [chart for chart in charts if chart is not None]


def _column(history: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    points = [(row.get("epoch"), row.get(name)) for row in history]
    return [(x, y) for x, y in points if isinstance(x, int) and isinstance(y, int | float)]


def line_chart(
    title: str, lines: Sequence[tuple[str, Sequence[tuple[float, float]]]], *, top: float | None = None
) -> dict[str, Any] | None:
    """Scale lines of (x, y) to a drawing of 400 × 150; return None if there are no points.

    The y axis begins at 0 (or below) and ends at `top` or, without it, at the highest value.
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
            {"name": f"{name}: {points[-1][1]:.3f}", "points": [place(x, y) for x, y in points]}
            for name, points in lines
        ],
    }


def _read_evaluation(folder: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    """Read the results of `stage1 evaluate`. Raises UserError if they belong to different shards."""
    path = folder / "evaluation.json"
    if not path.is_file():
        raise UserError(f"no {path}: run `stage1 evaluate --out {folder}` first, or omit `evaluation`")
    fields: dict[str, Any] = schema.read_json(path, "evaluation", again="run `stage1 evaluate` again")
    if fields["shards"]["digest"] != run["shards"]["digest"]:
        raise UserError(
            f"{path} evaluates different shards from those that this run scored ({run['shards']['path']}); evaluate "
            "those, or omit `evaluation`"
        )
    return fields


# Name of each metric in evaluation.json → its name in the report.
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
        (name, *(interval_text(level.get(key)) for level in (levels["clips"], levels["videos"], frames or {})))
        for key, name in _LEVEL_METRICS.items()
    ]
    if frames:
        rows.append(("ROC-AUC on anomalous videos alone", "", "", interval_text(frames["auc_anomalous"])))
    chosen = evaluation["threshold"]
    rows = [row for row in rows if any(row[1:])]
    width = 4 if frames else 3  # frame metrics need annotations
    yield {
        "wide": True,
        "title": "Metrics, each with its 95 % interval",
        "head": ("metric", "clips", "videos", "frames")[:width],
        "rows": [row[:width] for row in rows],
        "note": f"At a threshold of {chosen['value']:.3g}, from {chosen['chosen_for']}. Intervals: "
        f"{evaluation['conventions']['intervals']}."
        + (
            f" Scores are centred per video: {evaluation['conventions']['relative']}."
            if evaluation.get("relative")
            else ""
        ),
    }
    if evaluation["baselines"]:
        yield {
            "wide": True,
            "title": "Shortcut baselines on the same videos",
            "head": ("shortcut", "video ROC-AUC", "model minus shortcut"),
            "rows": [
                (row["name"], interval_text(row["auc"]), interval_text(row["model_above"]))
                for row in evaluation["baselines"]
            ],
            "note": "A model that is not clearly better than a shortcut may rely on that shortcut alone.",
        }
    alarms = evaluation["false_alarms"]
    if alarms["per_hour"] is not None:
        yield {
            "wide": True,
            "title": "False alarms",
            "head": ("", "per hour of normal footage", "hours"),
            "rows": [
                ("predicted events in normal videos", interval_text(alarms["per_hour"], 1), f"{alarms['hours']:.2f}")
            ],
            "note": evaluation["conventions"]["false alarms"],
        }


def _warnings(run: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> list[str]:
    warnings = [
        *run["warnings"],
        *(f"from the training: {text}" for model in _models(run) for text in model["warnings"]),
    ]
    trained_on = run["clips"]["trained_on"]
    if trained_on:
        warnings.append(
            f"{trained_on:,} of these clips are from videos that the model was trained on, so the metrics say nothing "
            "about new videos"
        )
    if run["clips"]["unscored"] or run["failures"]:
        warnings.append(
            f"{run['clips']['unscored']:,} clips could not be read and {len(run['failures']):,} videos could not be "
            "decoded: see Not scored"
        )
    if evaluation is not None:
        warnings += [*evaluation["flags"], *evaluation["warnings"]]
    return [console.with_flags(text) for text in dict.fromkeys(warnings)]


def _models(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [run["checkpoint"]] if run["checkpoint"] else run["folds"] or []


def _facts(run: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if run["videos"]:
        yield "videos", ", ".join(run["videos"])
    else:
        yield "shards", f"{run['shards']['path']}"
    yield "digest of the shards", run["shards"]["digest"]
    for model in _models(run):
        yield "checkpoint", f"{model['path']} (epoch {model['epoch']}, SHA-256 {model['sha256']})"
    for name in ("threshold", "device", "precision", "batch_size", "annotations", "stage1_version"):
        if run.get(name) is not None:
            yield name.replace("_", " "), str(run[name])
    if run.get("relative"):
        yield "scores", f"centred per video: {centred_scores.CONVENTION}"


def _name(run: Mapping[str, Any]) -> str:
    return Path(run["shards"]["path"]).name if run["shards"]["path"] else "videos"


def _about(run: Mapping[str, Any]) -> str:
    data = f"shards {run['shards']['path']}" if run["shards"]["path"] else f"{', '.join(run['videos'])}"
    model = f"checkpoint {run['checkpoint']['path']}" if run["checkpoint"] else "models of several folds"
    return f"{data}, scored by {model}"


def run_name(run: Mapping[str, Any]) -> str:
    """Return an identifier of the run, under which a browser stores review labels."""
    return f"{run['shards']['digest'][:12]}-{'-'.join(model['sha256'][:8] for model in _models(run))}"
