"""Text of evaluation reports: tables, metrics with their intervals, and conventions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from stage1.evaluation.config import EvaluateConfig
from stage1.inference.config import EventConfig
from stage1.metrics import calibration, centred_scores
from stage1.metrics.annotations import DEFAULT_CONVENTION, EVENT_CONVENTIONS
from stage1.metrics.clips import interval_text
from vidshard.util.text import aligned, counted

MAX_CAMERAS = 10  # that the text lists
METRIC_CONVENTIONS = {
    "intervals": "95 % percentile bootstrap over source groups (recordings), else videos",
    "clip labels": "the label of the video; in untrimmed video most clips of a crime video show no crime",
    "video score": "mean of the highest 1/16 of the clip scores of a video, at least one clip",
    "frame score": "mean over the clips that contain the frame, or the score of the nearest frame in a clip",
    "frames": EVENT_CONVENTIONS[DEFAULT_CONVENTION],
    "within recording": "pairs of a crime and a normal clip or video of the same source group, equally weighted",
    "events": f"as in stage1 infer: scores per second, mean over {EventConfig().smooth_seconds:g} s, at least "
    f"{EventConfig().min_seconds:g} s long; a true event is found if one of its frames lies in a predicted event",
    "false alarms": f"predicted events in normal videos of {calibration.MIN_ALARM_SECONDS:g} s or more, one "
    "for each started minute; interval: the wider of exact Poisson and bootstrap over recordings at each end",
    "relative": centred_scores.CONVENTION,
    "ece": f"{calibration.NUM_BINS} bins of equal width in P(crime)",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """Results as text, and as a dictionary for JSON."""

    text: str
    fields: dict[str, Any]


def table(cells: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, indented."""
    return [f"  {line}" for line in aligned(cells)]


def evaluation_text(fields: Mapping[str, Any], config: EvaluateConfig) -> str:
    """Format the report of `stage1 evaluate`: every metric with its interval, and the conventions."""
    lines = [f"{fields['checkpoint']} on {fields['shards']['path']}"]
    if fields["relative"]:
        lines.append(f"Scores are centred per video: {METRIC_CONVENTIONS['relative']}.")
    lines += [f"Intervals: {METRIC_CONVENTIONS['intervals']}.", "", *_level_table(fields)]
    if fields["frames"] is not None:
        lines += _frame_lines(fields["frames"])
    if (events := fields["events"]) is not None:
        share = interval_text(events["share"])
        lines.append(f"Events found: {events['found']} of {events['events']}, a share of {share}")
        precisions = ", ".join(
            f"{'n/a' if value is None else f'{value:.3f}'} at {iou}"
            for iou, value in events["average_precision"].items()
        )
        lines.append(f"  temporal IoU {interval_text(events['mean_iou'])}; AP at IoU: {precisions}")
    lines += [_false_alarm_line(fields["false_alarms"]), *_camera_table(fields["cameras"], config), ""]
    lines += [_threshold_line(fields["threshold"], config), _calibration_line(fields["calibration"])]
    lines += ["", "By class:", *_class_table(fields)]
    if fields["baselines"]:
        lines += ["", "Shortcut baselines, on the same videos (fitted on the training shards):"]
        lines += _baseline_table(fields["baselines"], with_frames=fields["frames"] is not None)
    lines += ["", *(f"FLAG: {flag}" for flag in fields["flags"])]
    lines += [f"WARNING: {warning}" for warning in fields["warnings"]]
    unused = set() if fields["frames"] is not None else {"frame score", "frames", "events"}
    unused |= set() if fields["relative"] else {"relative"}
    unused |= set() if fields["recordings"] else {"within recording"}
    conventions = [f"  {name}: {text}" for name, text in METRIC_CONVENTIONS.items() if name not in unused]
    lines += ["", "Conventions:", *conventions]
    lines += ["", f"✓ {config.out / 'evaluation.json'} and {config.out / 'evaluation.png'}"]
    return "\n".join(lines)


def _level_table(fields: Mapping[str, Any]) -> list[str]:
    columns = {"accuracy": "accuracy", "auc": "AUC", "average_precision": "AP", "f1": "F1"}
    if fields["recordings"] is not None:
        columns["auc_within_recording"] = "AUC within recording"
    cells = [["", "n", "crime", *columns.values()]]
    for level, row in fields["levels"].items():
        cells.append(
            [level, f"{row['num']:,}", f"{row['num_crime']:,}", *(interval_text(row[name]) for name in columns)]
        )
    return table(cells)


def _frame_lines(frames: Mapping[str, Any]) -> list[str]:
    text = {name: interval_text(value) for name, value in frames.items() if isinstance(value, Mapping)}
    return [
        "",
        f"Frames: {frames['num_frames']:,} in {counted(frames['num_videos'], 'video')}, "
        f"{frames['num_event_frames']:,} in events",
        f"  all videos:             AUC {text['auc']}, AP {text['average_precision']}",
        f"  anomalous videos alone: AUC {text['auc_anomalous']}, AP {text['average_precision_anomalous']}, "
        f"mean AUC of single videos {text['mean_auc_of_anomalous_videos']}",
    ]


def _false_alarm_line(alarms: Mapping[str, Any]) -> str:
    line = "False alarms per hour of normal footage: "
    if alarms["per_hour"] is None:
        return line + f"not available, {alarms['reason']}"
    line += f"{interval_text(alarms['per_hour'], 1)}, {alarms['alarms']} in {alarms['hours']:.2f} hours"
    return line + f" of {counted(alarms['videos'], 'video')}"


def _camera_table(cameras: Mapping[str, Any], config: EvaluateConfig) -> list[str]:
    """Return the cameras with the largest shares of normal clips detected as crime."""
    if len(cameras) < 2:
        return []
    worst = sorted(cameras.items(), key=lambda item: (-item[1]["share"]["value"], item[0]))[:MAX_CAMERAS]
    rows = [["camera", "normal clips", "called crime", "share", "false alarms per hour"]]
    for name, found in worst:
        rate = found["false_alarms"]["per_hour"]
        counts = [f"{found[key]:,}" for key in ("clips", "called_crime")]
        rows.append([name, *counts, interval_text(found["share"], 2), interval_text(rate, 1) if rate else "n/a"])
    title = f"False alarms by camera (recording or, if unknown, video), {len(worst)} of {len(cameras)}, worst first"
    rest = f"; all are in {config.out / 'evaluation.json'}" if len(cameras) > len(worst) else ""
    return ["", f"{title}{rest}:", *table(rows)]


def _threshold_line(threshold: Mapping[str, Any], config: EvaluateConfig) -> str:
    line = f"Threshold on P(crime): {threshold['value']:.4f}, from {threshold['chosen_for']}"
    if config.target is not None:
        line += "; stored in the checkpoint, with the calibration"
        line += ", for `stage1 infer --relative`" if config.relative else ""
    return line


def _calibration_line(fields: Mapping[str, Any]) -> str:
    before, after = fields["before"]["ece"], fields["after"]["ece"]
    share = f"evaluated clips: {_share(fields['prior_of_evaluated_clips'])}"
    if fields["prior"] is None:
        return f"Not calibrated; ECE {after:.3f} (share of crime in the {share})"
    return (
        f"Calibration: temperature {fields['temperature']:.3f}, for a share of crime of {_share(fields['prior'])} "
        f"({share}); ECE {before:.3f} before, {after:.3f} after"
    )


def _class_table(fields: Mapping[str, Any]) -> list[str]:
    has_recordings = fields["recordings"] is not None
    cells = [["", "videos", *["recordings"] * has_recordings, "accuracy", "AUC against normal"]]
    for row in fields["classes"]:
        auc = row["auc_against_normal"]
        counts = [str(row["videos"]), *[str(row["recordings"])] * has_recordings]
        cells.append(
            [row["class"] or "(no class)", *counts, interval_text(row["right"]), "" if auc is None else f"{auc:.3f}"]
        )
    return table(cells)


def _baseline_table(rows: Sequence[Mapping[str, Any]], *, with_frames: bool) -> list[str]:
    cells = [["", "accuracy", "video AUC", "model minus shortcut", *["frame AUC, anomalous videos"] * with_frames]]
    for row in rows:
        values = [f"{row['accuracy']:.3f}", interval_text(row["auc"]), interval_text(row["model_above"])]
        anomalous = row["frame_auc_anomalous"]
        cells.append([row["name"], *values, *["" if anomalous is None else f"{anomalous:.3f}"] * with_frames])
    return table(cells)


def _share(value: float) -> str:
    return f"{value:.2f}" if value in (0, 1) or 0.01 <= value <= 0.99 else f"{value:.3g}"
