"""Frame-level metrics. Runs of equal frames are merged into one weighted row, so that a million frames are processed
quickly."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from stage1.metrics import clips
from stage1.metrics.annotations import VideoGroundTruth
from stage1.metrics.clips import Array, Interval, Statistic

SNIPPET_FRAMES = 16
# Scores that a perfect snippet scorer may use, from a snippet's share of event frames. None reaches a frame AUC of 1.
SNIPPET_RULES: dict[str, Callable[[Array], Array]] = {
    "share of event frames": lambda share: share,
    "any event frame": lambda share: (share > 0).astype(np.float64),
    "majority of event frames": lambda share: (share > 0.5).astype(np.float64),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredVideo:
    """A score and a label for each frame of a video, [F]."""

    group: str  # unit of resampling: the recording, or the video if its recording is unknown
    is_crime: bool
    labels: npt.NDArray[np.uint8]
    scores: Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameMetrics:
    """Metrics over all frames, and over the frames of anomalous videos only, where recognising the video does not
    help."""

    num_videos: int
    num_frames: int
    num_event_frames: int
    auc: Interval
    average_precision: Interval
    auc_anomalous: Interval
    average_precision_anomalous: Interval
    mean_auc_of_anomalous_videos: Interval  # mean of the AUC of each video


def frame_metrics(videos: Sequence[ScoredVideo], *, num_resamples: int = 200, seed: int = 0) -> FrameMetrics:
    """Compute frame AUC and AP with bootstrap intervals over the groups of the videos.

    With `num_resamples` 0 there are no intervals.
    """
    anomalous = [video for video in videos if video.is_crime]

    def interval(statistic_of: Callable[..., Statistic], part: Sequence[ScoredVideo]) -> Interval:
        cells = _cells(part)
        by_row = statistic_of(cells.labels, cells.scores)
        return clips.bootstrap(
            lambda weights_V: by_row(weights_V[cells.videos] * cells.counts),
            [video.group for video in part],
            num_resamples=num_resamples,
            seed=seed,
        )

    single = [clips.roc_auc(video.labels, video.scores) for video in anomalous]
    known = [(auc, video.group) for auc, video in zip(single, anomalous, strict=True) if auc is not None]
    return FrameMetrics(
        num_videos=len(videos),
        num_frames=sum(len(video.labels) for video in videos),
        num_event_frames=sum(int(video.labels.sum()) for video in videos),
        auc=interval(clips.roc_auc_statistic, videos),
        average_precision=interval(clips.average_precision_statistic, videos),
        auc_anomalous=interval(clips.roc_auc_statistic, anomalous),
        average_precision_anomalous=interval(clips.average_precision_statistic, anomalous),
        mean_auc_of_anomalous_videos=clips.bootstrap(
            clips.mean_statistic([auc for auc, _ in known]),
            [group for _, group in known],
            num_resamples=num_resamples,
            seed=seed,
        ),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Cells:
    """Runs of consecutive frames of a video with equal label and score, [R]."""

    videos: npt.NDArray[np.int64]
    labels: npt.NDArray[np.uint8]
    scores: Array
    counts: Array


def _cells(videos: Sequence[ScoredVideo]) -> _Cells:
    numbers, labels, scores, counts = [], [], [], []
    for number, video in enumerate(videos):
        changes = (np.diff(video.labels) != 0) | (np.diff(video.scores) != 0)
        starts = np.concatenate([[0], np.flatnonzero(changes) + 1]) if len(video.labels) else np.zeros(0, np.int64)
        numbers.append(np.full(len(starts), number))
        labels.append(video.labels[starts])
        scores.append(video.scores[starts])
        counts.append(np.diff(np.concatenate([starts, [len(video.labels)]])).astype(np.float64))
    empty = np.zeros(0)
    return _Cells(
        videos=np.concatenate(numbers or [empty]).astype(np.int64),
        labels=np.concatenate(labels or [empty]).astype(np.uint8),
        scores=np.concatenate(scores or [empty]),
        counts=np.concatenate(counts or [empty]),
    )


# --- scores of clips → scores of frames ---------------------------------------------------------------------------


def spread_clips(
    scores: Array, first_frames: npt.NDArray[np.int64], last_frames: npt.NDArray[np.int64], num_frames: int
) -> Array:
    """Return a score for each frame, [num_frames]: the mean score of the clips that cover it.

    A clip covers all frames from its first to its last. A frame without a clip has the score of the nearest covered
    frame, the earlier one if two are equally near. Raises ValueError if there are no clips.

    >>> spread_clips(np.array([0.2, 0.6]), np.array([0, 1]), np.array([1, 2]), 5).round(3).tolist()
    [0.2, 0.4, 0.6, 0.6, 0.6]
    """
    if not len(scores):
        raise ValueError("there are 0 clips, expected at least one to spread over the frames")
    sums, counts = np.zeros(num_frames + 1), np.zeros(num_frames + 1)
    ends = np.minimum(last_frames + 1, num_frames)
    for array, values in ((sums, scores), (counts, np.ones(len(scores)))):
        np.add.at(array, first_frames, values)
        np.add.at(array, ends, -values)
    sums, counts = np.cumsum(sums)[:-1], np.round(np.cumsum(counts)[:-1])
    covered = np.flatnonzero(counts)
    # Round, so that frames under the same clips get the same score despite rounding errors of the running sums.
    known = np.round(sums[covered] / counts[covered], 12)
    after = np.clip(np.searchsorted(covered, np.arange(num_frames)), 0, len(covered) - 1)
    before = np.maximum(after - (covered[after] > np.arange(num_frames)), 0)
    nearer_before = np.abs(np.arange(num_frames) - covered[before]) <= np.abs(covered[after] - np.arange(num_frames))
    return np.asarray(known[np.where(nearer_before, before, after)], np.float64)


def spread_snippets(scores: Array, num_frames: int, *, snippet_frames: int = SNIPPET_FRAMES) -> Array:
    """Repeat each score for `snippet_frames` frames, and the last one up to the end: [num_frames].

    >>> spread_snippets(np.array([0.1, 0.9]), 5, snippet_frames=2).tolist()
    [0.1, 0.1, 0.9, 0.9, 0.9]
    """
    return scores[np.minimum(np.arange(num_frames) // snippet_frames, len(scores) - 1)]


def spread_evenly(scores: Array, num_frames: int) -> Array:
    """Spread N scores over N equal segments of the video: [num_frames].

    >>> spread_evenly(np.array([0.1, 0.9]), 5).tolist()
    [0.1, 0.1, 0.1, 0.9, 0.9]
    """
    return scores[np.minimum(np.arange(num_frames) * len(scores) // num_frames, len(scores) - 1)]


def mean_over_segments(scores: Array, num_segments: int = 32) -> Array:
    """Average snippet scores over `num_segments` equal segments, as Sultani et al. (CVPR 2018) do with features.

    >>> mean_over_segments(np.array([0.0, 1.0, 1.0, 1.0]), 2).tolist()
    [0.5, 1.0]
    """
    edges = np.linspace(0, len(scores), num_segments + 1).astype(np.int64)
    return np.array([scores[first : max(first + 1, end)].mean() for first, end in itertools.pairwise(edges.tolist())])


def snippet_shares(labels: npt.NDArray[np.uint8], *, snippet_frames: int = SNIPPET_FRAMES) -> Array:
    """Return the share of event frames in each snippet; the last snippet may be shorter.

    >>> snippet_shares(np.array([0, 1, 1, 1, 0], np.uint8), snippet_frames=2).tolist()
    [0.5, 1.0, 0.0]
    """
    starts = np.arange(0, len(labels), snippet_frames)
    sums = np.add.reduceat(labels.astype(np.float64), starts)
    return np.asarray(sums / np.minimum(snippet_frames, len(labels) - starts), np.float64)


def reference_scores(video: VideoGroundTruth, *, snippet_frames: int = SNIPPET_FRAMES) -> dict[str, Array]:
    """Return frame scores of oracles, by name. They bound the frame AUC that video labels or snippets can reach.

    The first oracle only knows which *videos* have an event; the others know the event frames of each snippet.
    """
    shares = snippet_shares(video.frame_labels(), snippet_frames=snippet_frames)
    perfect = {
        f"perfect on {snippet_frames}-frame snippets: {name}": spread_snippets(
            rule(shares), video.num_frames, snippet_frames=snippet_frames
        )
        for name, rule in SNIPPET_RULES.items()
    }
    return {"true label of the video": np.full(video.num_frames, float(video.is_crime)), **perfect}
