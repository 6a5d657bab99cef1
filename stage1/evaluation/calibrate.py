"""Choice of a threshold on normal footage of the user's cameras."""

from __future__ import annotations

from typing import Any

import numpy as np

from stage1.data.reader import ClipReader
from stage1.evaluation import run as evaluation
from stage1.evaluation.config import CalibrateConfig as CalibrateConfig
from stage1.evaluation.config import EvaluateConfig
from stage1.evaluation.run import ScoredClips
from stage1.evaluation.text import EvaluationReport, table
from stage1.metrics.calibration import Target
from stage1.metrics.clips import interval_text
from stage1.model.checkpoint import check_clip_shape, load_checkpoint
from vidshard.shards.layout import CRIME_LABEL
from vidshard.util.errors import UserError


def calibrate(config: CalibrateConfig) -> EvaluationReport:
    """Choose the threshold on normal footage, store it in the checkpoint, and return the false alarms by camera.

    It is the lowest threshold at which `stage1 infer` reports at most ``config.false_alarms_per_hour`` events per hour
    of this footage. Raises UserError if the footage is too short to support the rate, or not entirely normal.
    """
    checkpoint = load_checkpoint(config.checkpoint)
    reader = ClipReader(config.normal_shards)
    check_clip_shape(checkpoint, config.checkpoint, reader.clip_shape, where=str(config.normal_shards))
    crimes = int((reader.labels == CRIME_LABEL).sum())
    if crimes:
        raise UserError(f"{crimes} clips of {config.normal_shards} are labelled crime, expected normal footage only")
    scoring = EvaluateConfig(
        checkpoint=config.checkpoint,
        shards=config.normal_shards,
        batch_size=config.batch_size,
        device=config.device,
        num_resamples=config.num_resamples,
    )
    raw = evaluation.score_clips(reader, checkpoint, scoring)
    clips = raw.with_scores(evaluation.shown_scores(checkpoint.build_calibration(), raw.scores))
    target = Target(name="false-alarms-per-hour", value=config.false_alarms_per_hour)
    threshold = evaluation.choose_threshold(clips, target)
    evaluation.store(config.checkpoint, checkpoint.build_calibration(), threshold, target)
    before, after = (
        {
            **evaluation.false_alarms_by_camera(clips, value, scoring),
            "all": evaluation.false_alarms_of(clips, value, scoring),
        }
        for value in (checkpoint.threshold, threshold)
    )
    cameras = np.array(clips.groups, object)
    own = {name: _own_threshold(clips.part(cameras == name), target) for name in after if name != "all"}
    fields = {
        "target": str(target),
        "threshold_before": checkpoint.threshold,
        "threshold": threshold,
        "cameras": {
            name: {**_before_and_after(before[name], after[name]), "own_threshold": own.get(name, threshold)}
            for name in after
        },
    }
    return EvaluationReport(text=_text(fields, config), fields=fields)


def _own_threshold(clips: ScoredClips, target: Target) -> float | None:
    """Return the threshold that a camera needs if it is judged alone; None if its footage is too short for that."""
    try:
        return evaluation.choose_threshold(clips, target)
    except UserError:
        return None


def _before_and_after(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Merge what is known of a camera at two thresholds."""
    changing = ("called_crime", "false_alarms")
    return {"clips": after["clips"], **{f"{name}_before": before[name] for name in changing}} | {
        name: after[name] for name in changing
    }


def _text(fields: dict[str, Any], config: CalibrateConfig) -> str:
    rows = [("camera", "clips", "called crime", "false alarms per hour", "its own threshold")]
    for name, found in fields["cameras"].items():
        alarms = [found[key] for key in ("false_alarms_before", "false_alarms")]
        rates = [one.get("reason") or interval_text(one["per_hour"], 1) for one in alarms]
        called = f"{found['called_crime_before']} → {found['called_crime']}"
        own = "too little footage" if (threshold := found["own_threshold"]) is None else f"{threshold:.4f}"
        rows.append((name, f"{found['clips']:,}", called, " → ".join(dict.fromkeys(rates)), own))
    lines = [
        f"Threshold on P(crime): {fields['threshold_before']:.4f} → {fields['threshold']:.4f}, for at most "
        f"{config.false_alarms_per_hour:g} false alarms per hour of {config.normal_shards}",
        *table(rows),
        "The figures after the arrow are on the footage that chose the threshold; new footage will give more.",
        "To use a camera's own threshold, score that camera separately: `stage1 infer --threshold`.",
        f"✓ Threshold stored in {config.checkpoint}",
    ]
    return "\n".join(lines)
