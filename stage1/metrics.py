"""Every metric. Undefined ones are None, never NaN: they go into JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = Sequence[float] | npt.NDArray[np.floating]
Labels = Sequence[int] | npt.NDArray[np.integer]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """How well P(crime) tells crime from normal on labelled clips."""

    num_clips: int
    accuracy: float | None  # share of clips on the right side of the threshold; None without clips
    auc: float | None  # area under the ROC curve; None unless both classes are there
    confusion: tuple[tuple[int, int], tuple[int, int]]  # [true label][predicted label]


def score(labels: Labels, crime_probabilities: Floats, *, threshold: float = 0.5) -> Scores:
    """Scores of predictions. Labels other than 0 and 1 (unknown, padding) are left out.

    >>> score([0, 1, 1, -1], [0.2, 0.9, 0.4, 0.9])
    Scores(num_clips=3, accuracy=0.6666666666666666, auc=1.0, confusion=((1, 0), (1, 1)))
    """
    labels_N, probabilities_N = np.asarray(labels), np.asarray(crime_probabilities, np.float64)
    known = labels_N >= 0
    labels_N, probabilities_N = labels_N[known], probabilities_N[known]
    predicted_N = probabilities_N >= threshold
    counts = [[int(((labels_N == true) & (predicted_N == predicted)).sum()) for predicted in (0, 1)] for true in (0, 1)]
    return Scores(
        num_clips=len(labels_N),
        accuracy=float((labels_N == predicted_N).mean()) if len(labels_N) else None,
        auc=roc_auc(labels_N, probabilities_N),
        confusion=((counts[0][0], counts[0][1]), (counts[1][0], counts[1][1])),
    )


def roc_auc(labels: Labels, crime_probabilities: Floats) -> float | None:
    """Area under the ROC curve; None unless both classes are there.

    >>> roc_auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]), roc_auc([1, 1], [0.1, 0.2])
    (0.75, None)
    """
    if len(np.unique(np.asarray(labels))) < 2:
        return None
    from sklearn.metrics import roc_auc_score  # takes a second to import

    return float(roc_auc_score(labels, crime_probabilities))
