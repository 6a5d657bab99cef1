"""Metrics compared with figures computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics

from stage1.metrics import clips
from stage1.metrics.clips import roc_auc, score


def test_scores_by_hand() -> None:
    scores = score([0, 0, 1, 1, 1], [0.6, 0.1, 0.5, 0.4, 0.9])
    assert scores.accuracy == 3 / 5
    assert scores.confusion == ((1, 1), (1, 2))
    assert scores.auc == 4 / 6


def test_the_threshold_belongs_to_crime() -> None:
    assert score([1], [0.7], threshold=0.7).accuracy == 1.0


def test_unknown_labels_do_not_count() -> None:
    assert score([-1, 0, 1], [0.9, 0.1, 0.9]) == score([0, 1], [0.1, 0.9])


def test_undefined_metrics_are_none() -> None:
    assert roc_auc([0, 0], [0.1, 0.9]) is None
    nothing = score([], [])
    assert (nothing.accuracy, nothing.auc, nothing.num_clips) == (None, None, 0)


def test_average_precision_and_f1_by_hand() -> None:
    scores = score([0, 0, 1, 1, 1], [0.6, 0.1, 0.5, 0.4, 0.9])
    assert scores.average_precision == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)  # crimes at ranks 1, 3 and 4
    assert scores.f1 == pytest.approx(2 * (2 / 3) * (2 / 3) / (2 / 3 + 2 / 3))


def test_weights_are_repetitions() -> None:
    labels, scores = [0, 0, 1, 1], [0.1, 0.5, 0.4, 0.9]
    weights = np.array([3.0, 1.0, 2.0, 0.0])
    labels_repeated, scores_repeated = [0, 0, 0, 0, 1, 1], [0.1, 0.1, 0.1, 0.5, 0.4, 0.4]
    assert clips.roc_auc_statistic(labels, scores)(weights) == pytest.approx(roc_auc(labels_repeated, scores_repeated))
    assert clips.accuracy_statistic(labels, scores)(weights) == pytest.approx(3 / 6)
    expected = score(labels_repeated, scores_repeated)
    assert clips.f1_statistic(labels, scores)(weights) == expected.f1
    assert clips.average_precision_statistic(labels, scores)(weights) == pytest.approx(expected.average_precision)


def test_statistics_of_weights_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    labels, scores = generator.integers(0, 2, 200), generator.integers(0, 40, 200) / 40  # many ties
    for _ in range(20):
        weights = generator.integers(0, 4, 200).astype(float)
        for statistic, metric in (
            (clips.roc_auc_statistic, sklearn.metrics.roc_auc_score),
            (clips.average_precision_statistic, sklearn.metrics.average_precision_score),
        ):
            expected = metric(labels, scores, sample_weight=weights)
            assert statistic(labels, scores)(weights) == pytest.approx(expected, abs=1e-12)
        expected = sklearn.metrics.f1_score(labels, scores >= 0.5, sample_weight=weights)
        assert clips.f1_statistic(labels, scores)(weights) == pytest.approx(expected, abs=1e-12)


def test_a_resample_without_a_class_has_no_auc() -> None:
    assert clips.roc_auc_statistic([0, 1], [0.1, 0.9])(np.array([1.0, 0.0])) is None


def test_within_recording_auc_ignores_differences_between_recordings() -> None:
    """The score is the recording: perfect over all clips, chance within recordings."""
    labels = [1, 1, 1, 0, 1, 0, 0, 0]
    groups = ["a"] * 4 + ["b"] * 4
    scores = [0.9] * 4 + [0.1] * 4
    assert roc_auc(labels, scores) == 0.75
    assert clips.within_group_auc(labels, scores, groups) == 0.5
    assert clips.num_within_group_pairs(labels, groups) == 6
    assert clips.within_group_auc([0, 1], [0.1, 0.9], ["a", "b"]) is None


def test_within_recording_auc_weighs_by_pairs() -> None:
    labels = [1, 0, 1, 0, 0]
    groups = ["a", "a", "b", "b", "b"]
    scores = [0.1, 0.9, 0.9, 0.1, 0.2]  # a: 0 of 1 pair, b: 2 of 2
    assert clips.within_group_auc(labels, scores, groups) == pytest.approx(2 / 3)
    twice_a = clips.within_group_auc_statistic(labels, scores, groups)(np.array([2.0, 2, 1, 1, 1]))
    assert twice_a == pytest.approx(2 / 4)


def test_the_bootstrap_draws_whole_groups() -> None:
    """Ten copies of each row in a group add no information."""
    values, groups = [0.0, 1.0, 0.0, 1.0, 1.0, 0.0], list("abcdef")
    once = clips.bootstrap(clips.mean_statistic(values), groups)
    copies = clips.bootstrap(clips.mean_statistic(np.repeat(values, 10)), np.repeat(groups, 10))
    assert (once.low, once.high) == pytest.approx((copies.low, copies.high))
    alone = clips.bootstrap(clips.mean_statistic(np.repeat(values, 10)), np.arange(60))
    assert once.low is not None
    assert alone.low is not None
    assert alone.low > once.low + 0.1


def test_bootstrap_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(100):
        values = generator.normal(size=40)
        interval = clips.bootstrap(clips.mean_statistic(values), range(40), num_resamples=300, seed=trial)
        assert interval.low is not None
        assert interval.high is not None
        hits += interval.low <= 0 <= interval.high
    assert 88 <= hits <= 100


def test_pairing_takes_out_what_both_share() -> None:
    generator = np.random.default_rng(0)
    shared = generator.normal(size=60)
    better = clips.mean_statistic(shared + 0.1 + 0.05 * generator.normal(size=60))
    paired = clips.paired_bootstrap(better, clips.mean_statistic(shared), range(60))
    assert paired.above_zero
    assert not clips.bootstrap(better, range(60)).above_zero


def test_one_unit_has_no_interval() -> None:
    interval = clips.bootstrap(clips.mean_statistic([0.0, 1.0]), ["a", "a"])
    assert (interval.value, interval.low, interval.text()) == (0.5, None, "0.500")


def test_the_exact_poisson_interval_is_the_published_one() -> None:
    interval = clips.poisson_interval(10, 1.0)  # Garwood, Biometrika 1936: 4.80 to 18.39
    assert (interval.low, interval.high) == pytest.approx((4.795, 18.390), abs=1e-3)
