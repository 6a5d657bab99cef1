"""Temporal agreement of predicted and true events. Pure functions.

A segment is the first and the last frame of an event, both included.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

Segment = tuple[int, int]


class Prediction(NamedTuple):
    """Predicted event of a video."""

    video: Hashable
    segment: Segment
    confidence: float


def temporal_iou(a: Segment, b: Segment) -> float:
    """Return the intersection of two segments divided by their union, 0 to 1.

    >>> temporal_iou((0, 9), (5, 14)), temporal_iou((0, 9), (10, 19))
    (0.3333333333333333, 0.0)
    """
    shared = min(a[1], b[1]) - max(a[0], b[0]) + 1
    return max(0, shared) / (a[1] - a[0] + b[1] - b[0] + 2 - max(0, shared))


def best_overlaps(true: Sequence[Segment], predicted: Sequence[Segment]) -> list[float]:
    """Return, for each true event, its temporal IoU with the best predicted one; 0 if there is none.

    >>> best_overlaps([(0, 9), (50, 59)], [(0, 4), (0, 19)])
    [0.5, 0.0]
    """
    return [max((temporal_iou(event, other) for other in predicted), default=0.0) for event in true]


def average_precision(
    predictions: Sequence[Prediction], true: Sequence[tuple[Hashable, Segment]], *, min_iou: float
) -> float | None:
    """Return the average precision of event detection at a temporal IoU of `min_iou`; None without true events.

    Predictions are matched by falling confidence, each with the best event of its video that is not matched yet; any
    other is a false alarm. Precision is interpolated, as in ActivityNet (Caba Heilbron et al., CVPR 2015).

    >>> found = [Prediction("v", (0, 9), 0.9), Prediction("w", (0, 9), 0.8), Prediction("v", (50, 69), 0.7)]
    >>> round(average_precision(found, [("v", (0, 9)), ("v", (50, 59))], min_iou=0.5), 4)
    0.8333
    >>> average_precision(found, [("v", (0, 9)), ("v", (50, 59))], min_iou=0.6)
    0.5
    """
    if not true:
        return None
    unmatched: dict[Hashable, list[Segment]] = {}
    for video, segment in true:
        unmatched.setdefault(video, []).append(segment)
    hits = []
    for prediction in sorted(predictions, key=lambda one: -one.confidence):
        rest = unmatched.get(prediction.video, [])
        best = max(rest, key=lambda segment: temporal_iou(segment, prediction.segment), default=None)
        hit = best is not None and temporal_iou(best, prediction.segment) >= min_iou
        if best is not None and hit:
            rest.remove(best)
        hits.append(hit)
    if not hits:
        return 0.0
    found = np.cumsum(hits)
    precision = found / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(precision[np.array(hits)]) / len(true))
