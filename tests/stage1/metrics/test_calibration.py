"""Calibration and thresholds, on cases with known answers."""

from __future__ import annotations

import numpy as np
import pytest

from stage1.metrics import calibration, clips
from stage1.metrics.calibration import Calibration, Target, parse_target
from vidshard.util.errors import UserError


def overconfident(count: int = 4000, temperature: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from true probabilities, and probabilities whose log-odds are `temperature` times too large."""
    generator = np.random.default_rng(0)
    log_odds = generator.normal(size=count)
    labels = (generator.random(count) < 1 / (1 + np.exp(-log_odds))).astype(int)
    return labels, 1 / (1 + np.exp(-temperature * log_odds))


def test_the_temperature_that_was_put_in_is_found_again() -> None:
    labels, probabilities = overconfident()
    fitted = calibration.fit(labels, probabilities)
    assert fitted.temperature == pytest.approx(3.0, rel=0.1)
    assert fitted.prior == pytest.approx(labels.mean())
    before, after = (calibration.reliability(labels, p).ece for p in (probabilities, fitted.apply(probabilities)))
    assert before > 0.1
    assert after < 0.03


def test_calibration_changes_no_order_and_extremes_stay_finite() -> None:
    scores = np.array([0.0, 1e-9, 0.3, 0.5, 1.0])
    applied = Calibration(temperature=0.5, shift=-1.0, prior=0.5).apply(scores)
    assert (np.diff(applied) > 0).all()
    assert np.isfinite(applied).all()
    assert np.isnan(Calibration(temperature=2.0).apply([np.nan])).all()


def test_one_class_cannot_be_calibrated_on() -> None:
    with pytest.raises(UserError, match="only one class"):
        calibration.fit([1, 1], [0.4, 0.9])


def test_clips_without_a_mistake_do_not_make_every_probability_0_or_1() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 20)
    easy, hard = (
        1 / (1 + np.exp(-np.where(labels == 1, shift, -shift) - generator.normal(size=40))) for shift in (4, 1)
    )
    fitted = calibration.fit(labels, easy)
    assert fitted == Calibration(prior=0.5)
    applied = fitted.apply(hard).astype(np.float32)
    assert clips.roc_auc(labels, applied) == clips.roc_auc(labels, hard)


def test_another_prior_moves_the_odds_by_the_ratio() -> None:
    moved = Calibration(prior=0.5).for_prior(0.2).apply([0.8])
    assert moved[0] / (1 - moved[0]) == pytest.approx(0.8 / 0.2 * 0.25)
    with pytest.raises(UserError, match="`prior` is 1"):
        Calibration(prior=0.5).for_prior(1.0)


def test_reliability_by_hand() -> None:
    curve = calibration.reliability([0, 1, 1, 0], [0.1, 0.1, 0.95, 1.0], num_bins=10)
    assert curve.counts == (0, 2, 0, 0, 0, 0, 0, 0, 0, 2)
    assert curve.crime_share[1] == 0.5
    assert curve.mean_probability[0] is None
    assert curve.ece == pytest.approx((2 * 0.4 + 2 * 0.475) / 4)


@pytest.mark.parametrize("text", ["", "f2", "f1=0.5", "recall", "recall=1", "fpr=0", "fpr=x", "recall=.5.5"])
def test_other_targets_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="`target`"):
        parse_target(text)


LABELS = [0] * 10 + [1] * 10
SCORES = [i / 20 for i in range(9)] + [0.9] + [0.3 + i / 20 for i in range(10)]


def test_thresholds_meet_their_target() -> None:
    labels, scores = np.array(LABELS * 4), np.array(SCORES * 4)
    for text, share, low, high in (("recall=.8", 1, 0.8, 1.0), ("fpr=.2", 0, 0.0, 0.2)):
        threshold = calibration.choose_threshold(labels, scores, parse_target(text))
        assert low <= (scores[labels == share] >= threshold).mean() <= high
    highest = calibration.choose_threshold(labels, scores, parse_target("accuracy"))
    reached = ((scores >= highest) == labels).mean()
    assert reached == max(((scores >= t) == labels).mean() for t in np.linspace(0, 1, 201))


def test_a_threshold_lies_between_scores_that_occur() -> None:
    assert calibration.choose_threshold([0, 1], [0.2, 0.6], Target(name="f1")) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            "false-alarms-per-hour=1",
            {"normal_hours": 2.5},
            r"2\.50 hours .* up to 1\.2 per hour are possible; expected at least 3 hours",
        ),
        ("false-alarms-per-hour=1", {"normal_hours": None}, r"0\.00 hours"),
        ("fpr=.05", {}, r"14 normal validation clips.*expected at least 60"),
        ("recall=.9", {}, r"15 crime validation clips.*expected at least 30"),
    ],
)
def test_targets_that_validation_cannot_support_are_refused(text: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        calibration.check_support(parse_target(text), num_normal=14, num_crime=15, **options)


def test_targets_that_it_can_support_are_not() -> None:
    calibration.check_support(parse_target("false-alarms-per-hour=1"), num_normal=0, num_crime=0, normal_hours=3.1)
    calibration.check_support(parse_target("f1"), num_normal=1, num_crime=1)
