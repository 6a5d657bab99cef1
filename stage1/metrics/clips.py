"""Metrics of binary scores, with bootstrap confidence intervals.

Undefined metrics are None, never NaN, because they are written as JSON. A *statistic* is a metric as a function of one
weight per row. Resampling whole recordings with replacement only changes these weights, so `bootstrap` gives the
interval of any metric. The values are those of scikit-learn, which would sort the scores again for each resample.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = Sequence[float] | npt.NDArray[np.floating]
Labels = Sequence[int] | npt.NDArray[np.integer]
Array = npt.NDArray[np.float64]
LEVEL = 0.95  # of all intervals
TAIL = (1 - LEVEL) / 2  # on either side of one
Statistic = Callable[[Array], float | None]  # weights, float [N], 0 or more → the metric, or None if undefined


@dataclasses.dataclass(frozen=True, kw_only=True)
class BinaryMetrics:
    """Metrics of P(crime) on labelled clips, videos or frames."""

    num_clips: int  # or videos, or frames
    accuracy: float | None  # share on the correct side of the threshold; None without any clip
    auc: float | None  # area under the ROC curve; None unless both classes are present
    confusion: tuple[tuple[int, int], tuple[int, int]]  # [true label][predicted label]
    average_precision: float | None = None  # of crime; None unless both classes are present
    f1: float | None = None  # of crime, at the threshold; None unless both classes are present


def score(labels: Labels, crime_probabilities: Floats, *, threshold: float = 0.5) -> BinaryMetrics:
    """Compute all metrics of P(crime), [N], against `labels`, [N]: 0 normal, 1 crime, -1 (unknown, padding) ignored.

    >>> scores = score([0, 1, 1, -1], [0.2, 0.9, 0.4, 0.9])
    >>> scores.num_clips, scores.auc, scores.confusion, round(scores.f1, 3)
    (3, 1.0, ((1, 0), (1, 1)), 0.667)
    """
    labels_N, probabilities_N = np.asarray(labels), np.asarray(crime_probabilities, np.float64)
    known = labels_N >= 0
    labels_N, probabilities_N = labels_N[known], probabilities_N[known]
    predicted_N = probabilities_N >= threshold
    counts = [[int(((labels_N == true) & (predicted_N == predicted)).sum()) for predicted in (0, 1)] for true in (0, 1)]
    return BinaryMetrics(
        num_clips=len(labels_N),
        accuracy=float((labels_N == predicted_N).mean()) if len(labels_N) else None,
        auc=roc_auc(labels_N, probabilities_N),
        confusion=((counts[0][0], counts[0][1]), (counts[1][0], counts[1][1])),
        average_precision=average_precision(labels_N, probabilities_N),
        f1=f1(labels_N, predicted_N),
    )


# --- metrics of labels, scores and weights ------------------------------------------------------------------------


def roc_auc(labels: Labels, crime_probabilities: Floats) -> float | None:
    """Return the area under the ROC curve; None unless both classes are present.

    >>> roc_auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]), roc_auc([1, 1], [0.1, 0.2])
    (0.75, None)
    """
    return roc_auc_statistic(labels, crime_probabilities)(np.ones(len(labels)))


def roc_curve(labels: Labels, crime_probabilities: Floats) -> tuple[Array, Array]:
    """Return the false and the true positive rates of the ROC curve, from (0, 0) to (1, 1)."""
    from sklearn import metrics

    false_rates, true_rates, _ = metrics.roc_curve(labels, crime_probabilities)
    return false_rates, true_rates


def average_precision(labels: Labels, crime_probabilities: Floats) -> float | None:
    """Return the average precision of crime, summed over recall steps; None unless both classes are present.

    >>> round(average_precision([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]), 4)
    0.8333
    """
    return average_precision_statistic(labels, crime_probabilities)(np.ones(len(labels)))


def f1(labels: Labels, predicted: Labels | npt.NDArray[np.bool_], weights: Floats | None = None) -> float | None:
    """Return the F1 score of crime from decisions; None unless both classes are present (with a weight above 0).

    >>> f1([0, 1, 1, 1], [1, 1, 1, 0])
    0.6666666666666666
    """
    labels_N, predicted_N = np.asarray(labels) == 1, np.asarray(predicted) == 1
    weights_N = np.ones(len(labels_N)) if weights is None else np.asarray(weights, np.float64)
    parts = (labels_N, labels_N & predicted_N, labels_N != predicted_N)
    crimes, found, wrong = (float(weights_N[part].sum()) for part in parts)
    return 2 * found / (2 * found + wrong) if 0 < crimes < float(weights_N.sum()) else None


def accuracy(labels: Labels, predicted: Labels | npt.NDArray[np.bool_], weights: Floats | None = None) -> float | None:
    """Return the weighted share of correct decisions; None if all weights are 0.

    >>> accuracy([0, 1, 1, 1], [1, 1, 1, 0])
    0.5
    """
    right_N = np.asarray(labels) == np.asarray(predicted, np.int64)
    return mean_statistic(right_N)(np.ones(len(right_N)) if weights is None else np.asarray(weights, np.float64))


def within_group_auc(
    labels: Labels, crime_probabilities: Floats, groups: Sequence[Hashable] | npt.NDArray[Any]
) -> float | None:
    """Return the ROC-AUC over pairs of a crime and a normal clip of the *same* group.

    It is the share of all such pairs in which the crime has the higher score; equal scores count half. Each group is
    thus weighted by its number of pairs, and recognising the camera does not help. None if no group has both classes.

    >>> within_group_auc([0, 1, 0, 1], [0.1, 0.2, 0.8, 0.7], ["a", "a", "b", "b"])
    0.5
    >>> roc_auc([0, 1, 0, 1], [0.1, 0.2, 0.8, 0.7])
    0.5
    """
    labels_N = np.asarray(labels)
    return within_group_auc_statistic(labels_N, crime_probabilities, groups)(np.ones(len(labels_N)))


def num_within_group_pairs(labels: Labels, groups: Sequence[Hashable] | npt.NDArray[Any]) -> int:
    """Return the number of pairs that `within_group_auc` compares.

    >>> num_within_group_pairs([0, 1, 1, 0, 1], ["a", "a", "a", "b", "c"])
    2
    """
    labels_N, groups_N = np.asarray(labels), group_numbers(groups)
    num_groups = int(groups_N.max(initial=-1)) + 1
    counts = [np.bincount(groups_N[labels_N == label], minlength=num_groups) for label in (0, 1)]
    return int((counts[0] * counts[1]).sum())


# --- statistics, for the bootstrap --------------------------------------------------------------------------------


def roc_auc_statistic(labels: Labels, crime_probabilities: Floats) -> Statistic:
    """Return `roc_auc` as a function of weights. Scores are sorted once, so that a resample needs no sorting."""
    crimes_S, normals_S = _weights_by_score(labels, crime_probabilities)

    def statistic(weights_N: Array) -> float | None:
        crime_S, normal_S = crimes_S(weights_N), normals_S(weights_N)
        pairs = float(crime_S.sum() * normal_S.sum())
        return float(crime_S @ (np.cumsum(normal_S) - normal_S / 2)) / pairs if pairs > 0 else None

    return statistic


def average_precision_statistic(labels: Labels, crime_probabilities: Floats) -> Statistic:
    """Return `average_precision` as a function of weights. Scores are sorted once."""
    crimes_S, normals_S = _weights_by_score(labels, crime_probabilities)

    def statistic(weights_N: Array) -> float | None:
        crime_S, normal_S = crimes_S(weights_N)[::-1], normals_S(weights_N)[::-1]
        total = float(crime_S.sum())
        if total <= 0 or float(normal_S.sum()) <= 0:
            return None
        found_S = np.cumsum(crime_S)
        called_S = found_S + np.cumsum(normal_S)
        return float(crime_S @ (found_S / np.maximum(called_S, 1e-300))) / total

    return statistic


def _weights_by_score(
    labels: Labels, crime_probabilities: Floats
) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """Return two functions from weights [N] to their sums at each distinct score, ascending: of crimes, of normals."""
    labels_N = np.asarray(labels)
    values_S, place_N = np.unique(np.asarray(crime_probabilities, np.float64), return_inverse=True)

    def sums_of(label: int) -> Callable[[Array], Array]:
        rows = np.flatnonzero(labels_N == label)
        places = place_N[rows]
        return lambda weights_N: np.asarray(
            np.bincount(places, weights=weights_N[rows], minlength=len(values_S)), np.float64
        )

    return sums_of(1), sums_of(0)


def f1_statistic(labels: Labels, crime_probabilities: Floats, *, threshold: float = 0.5) -> Statistic:
    """Return `f1` as a function of weights."""
    predicted_N = np.asarray(crime_probabilities) >= threshold
    return lambda weights_N: f1(labels, predicted_N, weights_N)


def accuracy_statistic(labels: Labels, crime_probabilities: Floats, *, threshold: float = 0.5) -> Statistic:
    """Return `accuracy` as a function of weights."""
    predicted_N = np.asarray(crime_probabilities) >= threshold
    return lambda weights_N: accuracy(labels, predicted_N, weights_N)


def mean_statistic(values: Floats) -> Statistic:
    """Return the mean of `values` as a function of weights; it is None if all weights are 0."""
    return ratio_statistic(values, np.ones(len(values)))


def ratio_statistic(numerators: Floats, denominators: Floats) -> Statistic:
    """Return the ratio of two sums as a function of weights; it is None if all weights are 0."""
    above_N, below_N = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)

    def statistic(weights_N: Array) -> float | None:
        total = float((below_N * weights_N).sum())
        return float((above_N * weights_N).sum() / total) if total > 0 else None

    return statistic


def within_group_auc_statistic(
    labels: Labels, crime_probabilities: Floats, groups: Sequence[Hashable] | npt.NDArray[Any]
) -> Statistic:
    """Return `within_group_auc` as a function of weights, which must be equal for all rows of a group."""
    labels_N, groups_N = np.asarray(labels), group_numbers(groups)
    scores_N = np.asarray(crime_probabilities, np.float64)
    first_rows, num_pairs, won = [], [], []
    for group in range(int(groups_N.max(initial=-1)) + 1):
        rows = np.flatnonzero(groups_N == group)
        auc = roc_auc(labels_N[rows], scores_N[rows])
        if auc is not None:
            first_rows.append(int(rows[0]))
            num_pairs.append(num_within_group_pairs(labels_N[rows], groups_N[rows]))
            won.append(auc * num_pairs[-1])
    pairs_G, won_G = np.array(num_pairs, np.float64), np.array(won, np.float64)

    def statistic(weights_N: Array) -> float | None:
        weights_G = weights_N[first_rows]
        total = float(weights_G @ pairs_G)
        return float(weights_G @ won_G) / total if total > 0 else None

    return statistic


# --- intervals ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """A value and its confidence interval. `low` and `high` are None if there are too few units to resample."""

    value: float | None
    low: float | None
    high: float | None
    num_units: int  # recordings (or videos, where no recording is known) that were resampled
    level: float = LEVEL

    @property
    def above_zero(self) -> bool:
        """True if the whole interval lies above 0."""
        return self.low is not None and self.low > 0

    def text(self, digits: int = 3) -> str:
        """Format the value and its interval.

        >>> Interval(value=0.8123, low=0.7, high=0.9, num_units=7).text()
        '0.812 [0.700, 0.900]'
        """
        if self.value is None:
            return "n/a"
        if self.low is None or self.high is None:
            return f"{self.value:.{digits}f}"
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def interval_text(fields: Mapping[str, Any] | None, digits: int = 3) -> str:
    """Format the fields of an Interval as `Interval.text` does; "" for None.

    >>> interval_text({"value": 0.5, "low": None, "high": None, "num_units": 1}), interval_text(None)
    ('0.500', '')
    """
    return "" if fields is None else Interval(**fields).text(digits)


def bootstrap(
    statistic: Statistic,
    groups: Sequence[Hashable] | npt.NDArray[Any],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Return the value of `statistic` on all rows, and its percentile interval over resamples of whole groups.

    `groups` holds the group of each row: its recording, or its video where no recording is known. Groups are drawn with
    replacement, each with all its rows. Resamples in which the metric is undefined are ignored. There is no interval if
    they are more than half, or if there is only one group. (Efron and Tibshirani, "An Introduction to the Bootstrap",
    1993, chapter 13; for whole groups: Field and Welsh, "Bootstrapping clustered data", JRSS B 2007.)

    >>> bootstrap(mean_statistic([0.0, 1.0, 0.0, 1.0]), ["a", "b", "c", "d"]).text(2)
    '0.50 [0.00, 1.00]'
    """
    groups_N = group_numbers(groups)
    num_units = int(groups_N.max(initial=-1)) + 1
    value = statistic(np.ones(len(groups_N)))
    found: list[float] = []
    if value is not None and num_units > 1:
        generator = np.random.default_rng(seed)
        drawn = generator.multinomial(num_units, np.full(num_units, 1 / num_units), size=num_resamples)
        found = [result for counts in drawn if (result := statistic(counts[groups_N].astype(np.float64))) is not None]
    if not found or len(found) < num_resamples / 2:
        return Interval(value=value, low=None, high=None, num_units=num_units)
    low, high = np.quantile(found, [TAIL, 1 - TAIL])
    return Interval(value=value, low=float(low), high=float(high), num_units=num_units)


def paired_bootstrap(
    a: Statistic, b: Statistic, groups: Sequence[Hashable] | npt.NDArray[Any], **options: Any
) -> Interval:
    """Return the difference a − b and its interval, with both on the same resamples; options as in `bootstrap`."""

    def difference(weights_N: Array) -> float | None:
        of_a, of_b = a(weights_N), b(weights_N)
        return None if of_a is None or of_b is None else of_a - of_b

    return bootstrap(difference, groups, **options)


def group_numbers(groups: Sequence[Hashable] | npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Map groups to numbers from 0, in order of appearance.

    >>> group_numbers(["b", "a", "b"]).tolist()
    [0, 1, 0]
    """
    number: dict[Hashable, int] = {}
    values = groups.tolist() if isinstance(groups, np.ndarray) else groups
    return np.array([number.setdefault(value, len(number)) for value in values], np.int64)


def share_interval(count: int, number: int) -> Interval:
    """Return `count` / `number` and its interval for independent trials (Wilson, JASA 1927); `number` is 1 or more.

    >>> share_interval(1, 10).text(2)
    '0.10 [0.02, 0.40]'
    """
    from scipy.stats import binomtest

    low, high = binomtest(count, number).proportion_ci(LEVEL, method="wilson")
    return Interval(value=count / number, low=float(low), high=float(high), num_units=number)


def poisson_interval(count: int, exposure: float) -> Interval:
    """Return the rate of `count` independent events in `exposure` hours, with the exact interval of Garwood (1936).

    >>> poisson_interval(0, 2.0).text(2), poisson_interval(4, 2.0).text(2)
    ('0.00 [0.00, 1.84]', '2.00 [0.54, 5.12]')
    """
    from scipy.stats import chi2

    low = float(chi2.ppf(TAIL, 2 * count)) / 2 / exposure if count else 0.0
    high = float(chi2.ppf(1 - TAIL, 2 * count + 2)) / 2 / exposure
    return Interval(value=count / exposure, low=low, high=high, num_units=count)
