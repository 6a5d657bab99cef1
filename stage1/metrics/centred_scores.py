"""Scores centred per video: each clip is compared with the median of its video.

This removes the bias that a camera, a scene or a codec adds to all clips of a video, but also any information that is
only in the score of the whole video.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from stage1.data.epoch_plan import rows_by_video
from stage1.metrics.clips import Array
from vidshard.util.errors import UserError

MIN_CLIPS = 5
CONVENTION = "P(crime) from the log-odds of a clip minus their median over its video; 0.5 is typical of the video"


def check_videos(videos_N: npt.NDArray[np.integer], *, where: str) -> None:
    """Raise UserError if most videos have too few clips for a meaningful median.

    `videos_N` holds the video of each clip, and `where` names the set in the message.
    """
    counts_V = np.unique(videos_N, return_counts=True)[1]
    if len(counts_V) and np.median(counts_V) < MIN_CLIPS:
        raise UserError(
            f"`relative` compares a clip with the other clips of its video, but half of the videos of {where} have "
            f"fewer than {MIN_CLIPS} clips; build them with `sampling` dense"
        )


def centred_scores(log_odds_N: Array, videos_N: npt.NDArray[np.integer]) -> Array:
    """Subtract the median log-odds of each clip's video, and return the result as a probability, [N].

    A NaN stays NaN and is ignored by the median.

    >>> centred_scores(np.array([5.0, 3.0, np.nan, 3.0, -2.0]), np.array([7, 7, 7, 7, 4])).round(2).tolist()
    [0.88, 0.5, nan, 0.5, 0.5]
    """
    centred_N = np.full(len(log_odds_N), np.nan)
    for rows in rows_by_video(np.flatnonzero(~np.isnan(log_odds_N)), videos_N):
        centred_N[rows] = log_odds_N[rows] - np.median(log_odds_N[rows])
    return np.asarray(expit(centred_N), np.float64)
