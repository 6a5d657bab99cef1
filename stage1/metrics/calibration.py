"""Calibrated probabilities, and thresholds for a stated target, both chosen on validation data.

All functions take P(crime) of clips or videos, [N], and labels 0 (normal) and 1 (crime), [N].
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import numpy as np
from scipy.special import expit

from stage1.metrics import clips
from stage1.metrics.clips import Array, Floats, Labels
from vidshard.util.errors import UserError

NUM_BINS = 15
MAX_MASS_BINS, MIN_MASS = 10, 10  # bins of equal size, and clips of one
MAX_TEMPERATURE = 100.0
MIN_ALARM_SECONDS = 10.0  # shortest video that counts for false alarms per hour
_EPSILON = 1e-12  # smallest distance of a probability from 0 and 1, which keeps its logit finite
# If n independent trials show no failure, the rate is below 3/n with 95 % confidence (Hanley and Lippman-Hand, "If
# nothing goes wrong, is everything all right?", JAMA 1983).
RULE_OF_THREE = 3.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """Calibration of the model's P(crime): logit → logit / temperature + shift.

    The temperature is that of Guo et al., "On Calibration of Modern Neural Networks", ICML 2017. Raises UserError if a
    value is out of range.
    """

    temperature: float = 1.0
    shift: float = 0.0  # added to the log-odds if the prior differs from the share of crime in the validation clips
    prior: float | None = None  # the share of crime for which the probabilities hold; None: not calibrated

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise UserError(f"the temperature is {self.temperature}, expected a value above 0")
        if self.prior is not None and not 0 < self.prior < 1:
            raise UserError(f"the prior is {self.prior}, expected a share of crime above 0 and below 1")

    def apply(self, crime_probabilities: Floats) -> Array:
        """Return the calibrated P(crime), [N]; NaN stays NaN.

        >>> Calibration(temperature=2.0).apply([0.5, 0.9]).round(3).tolist()
        [0.5, 0.75]
        """
        probabilities = np.asarray(crime_probabilities, np.float64)
        if self.temperature == 1 and self.shift == 0:
            return probabilities
        calibrated: Array = expit(logits(probabilities) / self.temperature + self.shift)
        return calibrated

    def invert(self, crime_probabilities: Floats) -> Array:
        """Return the model's P(crime), [N], from the calibrated one."""
        calibrated = np.asarray(crime_probabilities, np.float64)
        if self.temperature == 1 and self.shift == 0:
            return calibrated
        found: Array = expit((logits(calibrated) - self.shift) * self.temperature)
        return found

    def for_prior(self, prior: float) -> Calibration:
        """Return the calibration for data with the share `prior` of crime (Saerens et al., Neural Computation 2002).

        >>> Calibration(prior=0.5).for_prior(0.1).apply([0.5]).round(3).tolist()
        [0.1]
        """
        if not 0 < prior < 1:
            raise UserError(f"`prior` is {prior:g}, expected a share of crime above 0 and below 1")
        if self.prior is None:
            raise UserError(
                "the checkpoint's probabilities are not calibrated, so their prior cannot be changed; calibrate it "
                "first with `stage1 evaluate --target`"
            )
        shift = float(logits(np.array([prior]))[0] - logits(np.array([self.prior]))[0])
        return dataclasses.replace(self, shift=self.shift + shift, prior=prior)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, for a checkpoint."""
        return dataclasses.asdict(self)


def fit(labels: Labels, crime_probabilities: Floats) -> Calibration:
    """Return the calibration whose temperature maximises the likelihood; the prior is the share of crime in `labels`.

    The temperature is 1 if all clips are on the correct side of 0.5. The likelihood would then rise without bound as
    the temperature falls to 0, where every probability is 0 or 1 and the order of the clips is lost. Raises UserError
    unless both classes are present.
    """
    from scipy.optimize import minimize_scalar

    labels_N, logits_N = np.asarray(labels), logits(np.asarray(crime_probabilities, np.float64))
    check_classes(num_normal=int((labels_N == 0).sum()), num_crime=int((labels_N == 1).sum()))
    prior = float(labels_N.mean())

    margins_N = np.where(labels_N == 1, logits_N, -logits_N)
    if (margins_N >= 0).all():
        return Calibration(prior=prior)

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0.0, -margins_N / math.exp(log_temperature)).mean())

    bound = math.log(MAX_TEMPERATURE)
    found = minimize_scalar(loss, bounds=(-bound, bound), method="bounded")
    return Calibration(temperature=math.exp(float(found.x)), prior=prior)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reliability:
    """A reliability curve: number of clips and share of crime in each bin of P(crime)."""

    edges: tuple[float, ...]  # [bins + 1]
    counts: tuple[int, ...]
    mean_probability: tuple[float | None, ...]  # None in an empty bin
    crime_share: tuple[float | None, ...]
    ece: float  # expected calibration error: mean of |crime_share − mean_probability|, weighted by counts


def reliability(labels: Labels, crime_probabilities: Floats, *, num_bins: int = NUM_BINS) -> Reliability:
    """Compute the reliability curve over `num_bins` bins of equal width in P(crime).

    >>> round(reliability([0, 1, 1, 1], [0.25, 0.25, 0.9, 0.9], num_bins=2).ece, 3)
    0.175
    """
    labels_N, probabilities_N = np.asarray(labels), np.asarray(crime_probabilities, np.float64)
    bins_N = np.minimum((probabilities_N * num_bins).astype(np.int64), num_bins - 1)
    counts = np.bincount(bins_N, minlength=num_bins)
    sums = np.bincount(bins_N, weights=probabilities_N, minlength=num_bins)
    crimes = np.bincount(bins_N, weights=labels_N, minlength=num_bins)
    ece = float(np.abs(crimes - sums).sum() / max(1, len(labels_N)))
    return Reliability(
        edges=tuple(np.linspace(0, 1, num_bins + 1).round(6).tolist()),
        counts=tuple(counts.tolist()),
        mean_probability=tuple(float(s / n) if n else None for s, n in zip(sums, counts, strict=True)),
        crime_share=tuple(float(c / n) if n else None for c, n in zip(crimes, counts, strict=True)),
        ece=ece,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MassBin:
    """Clips of neighbouring P(crime), with the share of crime among them and its 95 % interval."""

    count: int
    mean_probability: float
    crime_share: float
    low: float
    high: float


def equal_mass_bins(labels: Labels, crime_probabilities: Floats) -> list[MassBin]:
    """Divide clips by P(crime) into at most MAX_MASS_BINS bins of equal size, of at least MIN_MASS clips if possible.

    Intervals are Wilson's, which are never empty, not even at a share of 0 or 1.

    >>> bins = equal_mass_bins([0] * 10 + [1] * 10, [0.1] * 10 + [0.9] * 10)
    >>> [(one.count, one.crime_share, round(one.high, 2)) for one in bins]
    [(10, 0.0, 0.28), (10, 1.0, 1.0)]
    """
    from scipy.stats import binomtest

    labels_N, probabilities_N = np.asarray(labels), np.asarray(crime_probabilities, np.float64)
    order = np.argsort(probabilities_N, kind="stable")
    num_bins = min(MAX_MASS_BINS, max(1, len(order) // MIN_MASS))
    bins = []
    for rows in np.array_split(order, num_bins):
        if not len(rows):
            continue
        count, crimes = len(rows), int(labels_N[rows].sum())
        low, high = binomtest(crimes, count).proportion_ci(clips.LEVEL, method="wilson")
        mean = float(probabilities_N[rows].mean())
        bins.append(
            MassBin(count=count, mean_probability=mean, crime_share=crimes / count, low=float(low), high=float(high))
        )
    return bins


def logits(probabilities: Array) -> Array:
    """Return the log-odds of probabilities, clipped so that they are finite."""
    clipped = np.clip(probabilities, _EPSILON, 1 - _EPSILON)
    log_odds: Array = np.log(clipped) - np.log1p(-clipped)
    return log_odds


# --- thresholds ---------------------------------------------------------------------------------------------------

TARGETS = ("f1", "accuracy", "recall", "fpr", "false-alarms-per-hour")
_TARGET = re.compile(r"(?P<name>[a-z0-9-]+)(=(?P<value>\d+(\.\d*)?|\.\d+))?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """Criterion by which a threshold is chosen on validation data."""

    name: str
    value: float | None = None

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name}={self.value:g}"


def parse_target(text: str) -> Target:
    """Parse a target, or raise UserError.

    Targets are `f1` and `accuracy` (highest), `recall=R` (at least R), `fpr=R` (at most R, of normal clips) and
    `false-alarms-per-hour=R` (at most R, in normal footage).

    >>> parse_target("fpr=0.05")
    Target(name='fpr', value=0.05)
    """
    match = _TARGET.fullmatch(text)
    name, value = (match["name"], match["value"]) if match else ("", None)
    needs_value = name not in ("f1", "accuracy")
    if name not in TARGETS or needs_value != (value is not None):
        raise UserError(f"`target` is {text!r}, expected one of f1, accuracy, recall=R, fpr=R, false-alarms-per-hour=R")
    target = Target(name=name, value=None if value is None else float(value))
    if target.value is not None and (target.value <= 0 or (name in ("recall", "fpr") and target.value >= 1)):
        raise UserError(f"`target` is {text}, expected a value above 0{' and below 1' * (name != TARGETS[-1])}")
    return target


def choose_threshold(labels: Labels, crime_probabilities: Floats, target: Target) -> float:
    """Return the threshold that meets `target` (any but false-alarms-per-hour) on these validation clips.

    Thresholds lie halfway between two neighbouring scores. Raises UserError if there are too few clips to support the
    target (`RULE_OF_THREE`).
    """
    labels_N, scores_N = np.asarray(labels), np.asarray(crime_probabilities, np.float64)
    num_normal, num_crime = int((labels_N == 0).sum()), int((labels_N == 1).sum())
    check_classes(num_normal=num_normal, num_crime=num_crime)
    check_support(target, num_normal=num_normal, num_crime=num_crime)
    thresholds = candidate_thresholds(scores_N)
    if target.name == "recall":
        assert target.value is not None
        met = [t for t in thresholds if (scores_N[labels_N == 1] >= t).mean() >= target.value]
        return float(max(met))
    if target.name == "fpr":
        assert target.value is not None
        met = [t for t in thresholds if (scores_N[labels_N == 0] >= t).mean() <= target.value]
        return float(min(met))
    measure = clips.f1 if target.name == "f1" else clips.accuracy
    reached = [measure(labels_N, scores_N >= t) or 0.0 for t in thresholds]
    # Among equally good thresholds take the middle one, which depends least on single clips.
    best = np.flatnonzero(np.array(reached) >= max(reached) - 1e-12)
    return float(thresholds[best[len(best) // 2]])


def check_classes(*, num_normal: int, num_crime: int) -> None:
    """Raise UserError if the validation clips lack a class."""
    if not num_normal or not num_crime:
        raise UserError(
            f"the validation clips belong to only one class ({num_normal} normal, {num_crime} crime), expected both: "
            "calibration and thresholds need both; pass other validation shards"
        )


def check_support(target: Target, *, num_normal: int, num_crime: int, normal_hours: float | None = None) -> None:
    """Raise UserError if the validation set is too small to show that `target` is met (`RULE_OF_THREE`)."""
    if target.name == "false-alarms-per-hour":
        assert target.value is not None
        hours = normal_hours or 0.0
        if hours * target.value < RULE_OF_THREE:
            possible = f"up to {RULE_OF_THREE / hours:.3g} per hour are possible" if hours else "any rate is possible"
            raise UserError(
                f"`target` {target} cannot be supported by {hours:.2f} hours of normal validation footage (videos of "
                f"{MIN_ALARM_SECONDS:g} s or more): even without a false alarm in it, {possible}; "
                f"expected at least {RULE_OF_THREE / target.value:.3g} hours, or a less strict target"
            )
        return
    share, count, what = {
        "recall": (1 - (target.value or 0), num_crime, "crime"),
        "fpr": (target.value or 1, num_normal, "normal"),
    }.get(target.name, (1.0, 10**9, ""))
    if share * count < RULE_OF_THREE:
        raise UserError(
            f"`target` {target} cannot be supported by {count} {what} validation clips: even with no error among "
            f"them, the true error rate may be {RULE_OF_THREE / count:.2g}; expected at least "
            f"{math.ceil(round(RULE_OF_THREE / share, 6))}, or a different target"
        )


def candidate_thresholds(scores: Array) -> Array:
    """Return one threshold for each way to split `scores`: below all, between two neighbours, above all.

    >>> candidate_thresholds(np.array([0.2, 0.6, 0.2])).tolist()
    [0.0, 0.4, 0.8]
    """
    values = np.unique(scores)
    between = (values[1:] + values[:-1]) / 2
    middle = between[(between > values[:-1]) & (between <= values[1:])]
    return np.concatenate([[0.0], middle, [(1 + values[-1]) / 2 if values[-1] < 1 else 1.0]])
