"""Events in time: overlap, and average precision compared with figures computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from stage1.metrics.events import Prediction, average_precision, best_overlaps, temporal_iou


def test_iou_equals_that_of_sets_of_frames() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        a, b = (tuple(sorted(generator.integers(0, 30, 2).tolist())) for _ in range(2))
        frames = [set(range(first, last + 1)) for first, last in (a, b)]
        expected = len(frames[0] & frames[1]) / len(frames[0] | frames[1])
        assert temporal_iou(a, b) == pytest.approx(expected)  # type: ignore[arg-type]


def test_a_true_event_is_matched_once() -> None:
    twice = [Prediction("v", (0, 9), 0.9), Prediction("v", (0, 9), 0.8)]
    assert average_precision(twice, [("v", (0, 9))], min_iou=0.5) == 1
    worse_first = [Prediction("v", (0, 5), 0.9), Prediction("v", (0, 9), 0.8)]
    assert average_precision(worse_first, [("v", (0, 9))], min_iou=0.9) == 0.5


def test_a_prediction_takes_the_event_that_it_overlaps_most() -> None:
    predictions = [Prediction("v", (8, 30), 0.9), Prediction("v", (0, 9), 0.5)]
    assert average_precision(predictions, [("v", (0, 9)), ("v", (10, 30))], min_iou=0.05) == 1


def test_nothing_predicted_or_nothing_to_find() -> None:
    assert average_precision([], [("v", (0, 9))], min_iou=0.5) == 0
    assert average_precision([Prediction("v", (0, 9), 0.9)], [], min_iou=0.5) is None
    assert average_precision([Prediction("other", (0, 9), 0.9)], [("v", (0, 9))], min_iou=0.1) == 0
    assert best_overlaps([(0, 9)], []) == [0]
