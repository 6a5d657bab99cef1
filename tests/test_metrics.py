"""Metrics against figures worked out by hand."""

from __future__ import annotations

from stage1.metrics import roc_auc, score


def test_scores_by_hand() -> None:
    scores = score([0, 0, 1, 1, 1], [0.6, 0.1, 0.5, 0.4, 0.9])
    assert scores.accuracy == 3 / 5
    assert scores.confusion == ((1, 1), (1, 2))
    assert scores.auc == 4 / 6


def test_the_threshold_belongs_to_crime() -> None:
    assert score([1], [0.7], threshold=0.7).accuracy == 1.0


def test_unknown_labels_do_not_count() -> None:
    assert score([-1, 0, 1], [0.9, 0.1, 0.9]) == score([0, 1], [0.1, 0.9])


def test_what_is_undefined_is_none() -> None:
    assert roc_auc([0, 0], [0.1, 0.9]) is None
    nothing = score([], [])
    assert (nothing.accuracy, nothing.auc, nothing.num_clips) == (None, None, 0)
