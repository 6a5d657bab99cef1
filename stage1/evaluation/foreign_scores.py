"""Frame metrics of scores from any model, under all published conventions; without scores, those of oracles.

It needs no video and no model: `stage1 evaluate --annotations FILE [--frame-counts FILE] [--scores DIR|CSV]`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from stage1.common import files
from stage1.evaluation import plots, score_files
from stage1.evaluation.config import ScoresConfig as ScoresConfig
from stage1.evaluation.score_files import ForeignScores
from stage1.evaluation.text import EvaluationReport, table
from stage1.metrics import clips
from stage1.metrics import frames as frame_metrics
from stage1.metrics.annotations import (
    DEFAULT_CONVENTION,
    EVENT_CONVENTIONS,
    Annotations,
    VideoGroundTruth,
    make_annotations,
    read_annotations,
    refuse_overlap,
)
from stage1.metrics.clips import Array, interval_text
from stage1.metrics.frames import ScoredVideo
from vidshard.util.errors import UserError

Spread = Callable[[ForeignScores, int], Array]  # scores of a video and its number of frames → a score a frame

SEGMENTS = 32
KEPT = "scores on their frames, all frames"
WHOLE = "whole snippets only"
SEGMENTED = f"mean over {SEGMENTS} segments"
EVEN = "spread evenly"
_INTERVALS = "95 % percentile bootstrap over videos"


class ScoresReport(EvaluationReport):
    """Results of `evaluate_scores`."""


@files.holds_out
def evaluate_scores(config: ScoresConfig) -> ScoresReport:
    """Evaluate, write evaluation.json and evaluation.png into ``config.out``, and return the report.

    Raises UserError on unusable files, and if a list of training videos names a test video.
    """
    listed = read_annotations(config.annotations, config.frame_counts)
    refuse_overlap(listed, config.trained_on)
    scores = score_files.read_scores(config.scores, fps=config.fps) if config.scores is not None else None
    lengths = {} if scores is None else _lengths(scores, config.snippet_frames)
    by_convention = {name: make_annotations(listed, num_frames=lengths, convention=name) for name in EVENT_CONVENTIONS}
    annotations = by_convention[DEFAULT_CONVENTION]
    notes = list(annotations.notes)
    if scores is not None:
        notes += _check_scores(scores, annotations, config)
        if any(video.num_frames is None for video in listed):
            notes.append(f"videos without a known number of frames have {config.snippet_frames} frames per score")
    references = _reference_rows(by_convention, config)
    rows = [] if scores is None else _score_rows(scores, by_convention, config)
    far = None if scores is None else _false_alarm_share(scores, annotations, config)
    fields = {
        "annotations": annotations.counts,
        "conventions": {"events": EVENT_CONVENTIONS, "default": DEFAULT_CONVENTION, "intervals": _INTERVALS},
        "references": references,
        "scores": rows,
        "false_alarm_share": far,
        "notes": notes,
    }
    title = str(config.scores or "Oracles, which know the ground truth")
    report = ScoresReport(text=_text(annotations, fields, config), fields=fields)
    report.write(config.out, lambda picture: plots.plot_conventions(rows or references, picture, title=title))
    return report


def _lengths(scores: Mapping[str, ForeignScores], snippet_frames: int) -> dict[str, int]:
    """Return the number of frames of each video according to its scores, for videos that no list contains."""
    return {
        stem: int(video.frames[:, 1].max()) + 1 if video.frames is not None else snippet_frames * len(video.scores)
        for stem, video in scores.items()
    }


def _check_scores(scores: Mapping[str, ForeignScores], annotations: Annotations, config: ScoresConfig) -> list[str]:
    """Return notes. Raises UserError unless every annotated video has scores that fit its length."""
    missing = [video.stem for video in annotations.videos if video.stem not in scores]
    if missing:
        raise UserError(
            f"{config.scores} lacks {len(missing):,} of the {len(annotations.videos):,} annotated videos "
            f"({', '.join(missing[:3])}); expected a file or rows for each, because omitting any changes the metrics"
        )
    for video in annotations.videos:
        _layout(scores[video.stem], video.num_frames, config.snippet_frames, where=video.stem)
    layouts = sorted({_layout(scores[v.stem], v.num_frames, config.snippet_frames) for v in annotations.videos})
    unused = len(scores.keys() - {video.stem for video in annotations.videos})
    notes = [f"scores are read as: {', '.join(layouts)}"]
    return notes + ([f"{unused:,} videos with scores are not annotated, and are ignored"] if unused else [])


def _layout(scores: ForeignScores, num_frames: int, snippet_frames: int, *, where: str = "") -> str:
    """Return the layout of a video's scores. Raises UserError if it is ambiguous."""
    count = len(scores.scores)
    if scores.frames is not None:
        return "clips with their frames"
    if count == num_frames:
        return "frames"
    if count == SEGMENTS and abs(count - num_frames / snippet_frames) > 1:
        return f"{SEGMENTS} segments"
    if abs(count - num_frames / snippet_frames) <= 1:
        return f"{snippet_frames}-frame snippets"
    raise UserError(
        f"{where} has {count:,} scores for {num_frames:,} frames: neither one per frame nor one for each "
        f"{snippet_frames} frames ({num_frames / snippet_frames:.1f}), nor {SEGMENTS} segments; pass the snippet "
        "length as `snippet_frames`, or a CSV with first_frame and last_frame"
    )


def _spread(scores: ForeignScores, num_frames: int, snippet_frames: int) -> Array:
    if scores.frames is not None:
        first, last = np.minimum(scores.frames, num_frames - 1).T
        return frame_metrics.spread_clips(scores.scores, first, last, num_frames)
    layout = _layout(scores, num_frames, snippet_frames)
    if layout == "frames":
        return scores.scores
    if layout == f"{SEGMENTS} segments":
        return frame_metrics.spread_evenly(scores.scores, num_frames)
    return frame_metrics.spread_snippets(scores.scores, num_frames, snippet_frames=snippet_frames)


def _score_rows(
    scores: Mapping[str, ForeignScores], by_convention: Mapping[str, Annotations], config: ScoresConfig
) -> list[dict[str, Any]]:
    """Return one row for each conversion of scores to frames and each convention of events."""
    snippet = config.snippet_frames
    spreads: dict[str, Spread] = {
        KEPT: lambda video, num_frames: _spread(video, num_frames, snippet),
        WHOLE: lambda video, num_frames: _spread(video, num_frames, snippet),
        EVEN: lambda video, num_frames: frame_metrics.spread_evenly(video.scores, num_frames),
        SEGMENTED: lambda video, num_frames: frame_metrics.spread_evenly(
            frame_metrics.mean_over_segments(video.scores, SEGMENTS), num_frames
        ),
    }
    rows = []
    for name, spread in spreads.items():
        for convention in EVENT_CONVENTIONS if name == KEPT else (DEFAULT_CONVENTION,):
            scored = []
            for video in by_convention[convention].videos:
                whole = max(snippet, video.num_frames // snippet * snippet)
                num_kept = whole if name == WHOLE else video.num_frames
                scored.append(_scored(video, spread(scores[video.stem], video.num_frames), num_kept))
            headline = name == KEPT and convention == DEFAULT_CONVENTION
            rows.append(_row(name, convention, scored, config, intervals=headline))
    return rows


def _reference_rows(by_convention: Mapping[str, Annotations], config: ScoresConfig) -> list[dict[str, Any]]:
    rows = []
    for convention, labelled in by_convention.items():
        scored: dict[str, list[ScoredVideo]] = {}
        for video in labelled.videos:
            for name, values in frame_metrics.reference_scores(video, snippet_frames=config.snippet_frames).items():
                scored.setdefault(name, []).append(_scored(video, values))
        rows += [_row(name, convention, videos, config, intervals=False) for name, videos in scored.items()]
    return sorted(rows, key=lambda row: list(scored).index(row["name"]))  # rows of the same name are adjacent


def _scored(video: VideoGroundTruth, scores: Array, num_frames: int | None = None) -> ScoredVideo:
    """Return the first `num_frames` frames of a video, by default all."""
    labels = video.frame_labels()[:num_frames]
    return ScoredVideo(group=video.stem, is_crime=video.is_crime, labels=labels, scores=scores[:num_frames])


def _row(
    name: str, convention: str, videos: Sequence[ScoredVideo], config: ScoresConfig, *, intervals: bool
) -> dict[str, Any]:
    found = frame_metrics.frame_metrics(
        videos, num_resamples=config.num_resamples if intervals else 0, seed=config.seed
    )
    return {"name": name, "events": convention, **dataclasses.asdict(found)}


def _false_alarm_share(
    scores: Mapping[str, ForeignScores], annotations: Annotations, config: ScoresConfig
) -> dict[str, Any]:
    """Return the share of frames of normal videos at or above the threshold, which papers report with frame AUC."""
    normal = [video for video in annotations.videos if not video.is_crime]
    flagged = [
        float((_spread(scores[video.stem], video.num_frames, config.snippet_frames) >= config.threshold).sum())
        for video in normal
    ]
    share = clips.ratio_statistic(flagged, [video.num_frames for video in normal])
    found = clips.bootstrap(share, [v.stem for v in normal], num_resamples=config.num_resamples, seed=config.seed)
    return {"threshold": config.threshold, "normal_videos": len(normal), **dataclasses.asdict(found)}


def _text(annotations: Annotations, fields: Mapping[str, Any], config: ScoresConfig) -> str:
    lines = [annotations.describe(), *(f"Note: {note}" for note in fields["notes"])]
    if fields["scores"]:
        lines += ["", f"{config.scores}, {_INTERVALS} where shown:", *_table(fields["scores"])]
    if (far := fields["false_alarm_share"]) is not None:
        share = {name: value for name, value in far.items() if name not in ("threshold", "normal_videos")}
        lines.append(
            f"In {far['normal_videos']} normal videos, a share of {interval_text(share, 4)} of the frames "
            f"scores {far['threshold']:g} or more (the published false alarm rate; no calibration)"
        )
    lines += ["", "Oracles, which know the ground truth (a frame AUC close to that of the first one means little):"]
    lines += _table(fields["references"])
    lines += ["", "Conventions of events:", *(f"  {name}: {text}" for name, text in EVENT_CONVENTIONS.items())]
    lines += ["", f"✓ {config.out / 'evaluation.json'} and {config.out / 'evaluation.png'}"]
    return "\n".join(lines)


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = ("auc", "average_precision", "auc_anomalous", "average_precision_anomalous")
    cells = [["frame scores", "events", "AUC", "AP", "AUC, anomalous videos", "AP, anomalous videos"]]
    cells += [[row["name"], row["events"], *(interval_text(row[name], 5) for name in columns)] for row in rows]
    return table(cells)
