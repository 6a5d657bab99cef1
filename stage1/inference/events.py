"""Events of a video, found by thresholds on its scores per second. Pure functions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stage1.inference.config import EventConfig as EventConfig
from stage1.metrics.clips import Array

MIN_TOP = 6  # seconds of a video that may always reach its threshold: about one event
MAX_RAISED = 0.9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """Segment of a video with high scores."""

    start_frame: int  # the first, in presentation order from 0
    end_frame: int  # the last
    start_seconds: float
    end_seconds: float  # exclusive
    peak_confidence: float  # highest score of a second
    peak_seconds: float  # start of that second
    mean_confidence: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipScores:
    """Scored clips of one video, in any order. Arrays are [N]."""

    confidences: Array
    first_frames: npt.NDArray[np.int64]
    last_frames: npt.NDArray[np.int64]
    start_seconds: Array  # time of the first frame
    last_seconds: Array  # time of the last frame
    num_frames: int  # of the video
    fps: float  # mean frame rate of the video; 0 if unknown
    gap_seconds: float = 0.0  # time between the frames of a clip, if the video was resampled

    @property
    def frame_seconds(self) -> float:
        """Duration of a frame; 0 if unknown."""
        return 1 / self.fps if self.fps > 0 else 0.0

    @property
    def duration_seconds(self) -> float:
        """End of the last frame."""
        last = float(self.last_seconds.max()) if len(self.last_seconds) else 0.0
        return max(self.num_frames * self.frame_seconds, last + self.frame_seconds)


def second_scores(clips: ClipScores) -> Array:
    """Return the score of each second of the video, [ceil(duration)]: the mean confidence of the clips in it.

    Clips are weighted by their overlap with the second. A clip lasts from the start of its first frame to the end of
    its last. A frame lasts until the next one, because resampling leaves frames out. Seconds without a
    clip are NaN.
    """
    num_seconds = max(1, math.ceil(clips.duration_seconds - 1e-6))
    begins = clips.start_seconds
    ends = np.minimum(clips.last_seconds + max(clips.frame_seconds, clips.gap_seconds), clips.duration_seconds)
    ends = np.maximum(ends, begins + 1e-3)  # clips of zero duration count, too
    edges = np.arange(num_seconds + 1, dtype=np.float64)
    edges[-1] = max(edges[-1], float(ends.max(initial=0.0)))
    weights = np.diff(_covered(edges, begins, ends, np.ones(len(begins))))
    sums = np.diff(_covered(edges, begins, ends, clips.confidences))
    return np.where(weights > 1e-6, sums / np.maximum(weights, 1e-6), np.nan)


def _covered(times: Array, begins: Array, ends: Array, values: Array) -> Array:
    """Integrate, up to each of `times`, the sum of `values`, each of which lasts from its start to its end."""
    points = np.concatenate([begins, ends])
    order = np.argsort(points, kind="stable")
    points, slopes = points[order], np.cumsum(np.concatenate([values, -values])[order])
    integral = np.concatenate([[0.0], np.cumsum(slopes[:-1] * np.diff(points))])
    return np.interp(times, points, integral) if len(points) else np.zeros(len(times))


def smoothed(scores: Array, seconds: float) -> Array:
    """Return the centred moving mean over `seconds`, rounded down to an odd number. NaN stays NaN.

    At both ends of the video the mean is over fewer seconds.

    >>> smoothed(np.array([0.0, 3.0, 0.0, np.nan]), 3).tolist()
    [1.5, 1.0, 1.5, nan]
    """
    half = max(0, (int(seconds) - 1) // 2)
    known = ~np.isnan(scores)
    if not half or not len(scores):
        return scores.copy()
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, scores, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    low = np.maximum(np.arange(len(scores)) - half, 0)
    high = np.minimum(np.arange(len(scores)) + half + 1, len(scores))
    means = (sums[high] - sums[low]) / np.maximum(counts[high] - counts[low], 1)
    return np.where(known, means, np.nan)


def find_spans(scores: Sequence[float] | Array, *, high: float, low: float) -> list[tuple[int, int]]:
    """Find spans of seconds (first, end), end exclusive, by two thresholds with hysteresis (Canny, PAMI 1986).

    All seconds of a span score at least `low`, and one of them at least `high`. A second without a score (NaN)
    neither ends a span nor forms its edge.

    >>> find_spans([0.2, 0.6, 0.9, 0.6, 0.2, 0.6], high=0.8, low=0.5)
    [(1, 4)]
    """
    spans = []
    first = last = -1  # of the current span
    reached = False
    for second, score in enumerate([*scores, -math.inf]):
        if math.isnan(score):
            continue
        if score >= low:
            first = second if first < 0 else first
            last, reached = second, reached or score >= high
            continue
        if reached:
            spans.append((first, last + 1))
        first, reached = -1, False
    return spans


def best_overlap(probabilities: Array) -> tuple[int, int]:
    """Return the span (first, end) with the highest expected overlap (intersection over union) with an event.

    `probabilities` are those of each second to belong to the event. The overlap is the ratio of the expected
    intersection and union, which Dinkelbach's method (Management Science 1967) maximises by a few best spans of a sum.

    >>> best_overlap(np.array([0.2, 0.7, 0.9, 0.1, 0.3]))
    (1, 3)
    """
    total, overlap = float(probabilities.sum()), 0.0
    first, end = 0, len(probabilities)
    while True:
        sums = np.concatenate([[0.0], np.cumsum(probabilities * (1 + overlap) - overlap)])
        lowest = np.minimum.accumulate(sums[:-1])
        stop = int((sums[1:] - lowest).argmax()) + 1
        start = int(sums[:stop].argmin())
        shared = float(probabilities[start:stop].sum())
        found = shared / max(stop - start + total - shared, 1e-9)
        if found <= overlap + 1e-9:
            return first, end
        first, end, overlap = start, stop, found


def find_events(clips: ClipScores, *, threshold: float, config: EventConfig) -> tuple[Array, list[Event]]:
    """Return the score of each second, smoothed and rounded to 6 digits (NaN without a clip), and the events."""
    scores, spans = event_spans(second_scores(clips), threshold=threshold, config=config)
    return scores, [_event(clips, scores, *span) for span in spans]


def event_spans(raw: Array, *, threshold: float, config: EventConfig) -> tuple[Array, list[tuple[int, int]]]:
    """Return the scores of seconds, smoothed and rounded to 6 digits, and the events as spans (first, end) of seconds.

    An event is found by two thresholds, and is then the part with the best expected overlap, if that is long enough
    and reaches the threshold. Events shorter than ``config.min_seconds`` are dropped, except one that fills the video.
    """
    scores = np.round(smoothed(raw, config.smooth_seconds), 6)
    high = raised_threshold(scores, threshold, config.top_share)
    shortest = min(config.min_seconds, len(scores))
    spans = []
    for first, end in find_spans(scores, high=high, low=round(high * config.low_ratio, 6)):
        if end - first >= shortest:
            start, stop = best_overlap(_odds_share(raw[first:end], high))
            is_fit = stop - start >= shortest and np.nanmax(scores[first + start : first + stop]) >= high
            spans.append((first + start, first + stop) if is_fit else (first, end))
    return scores, spans


def raised_threshold(scores: Array, threshold: float, top_share: float) -> float:
    """Return the threshold of a video: `threshold`, raised until only `top_share` of the seconds reach it.

    It rises to MAX_RAISED at most, so that no clear event is lost where there are many, and MIN_TOP seconds may always
    reach it. The highest-scoring second is thus an event whenever it reaches `threshold`.

    >>> scores = np.array([0.5, 0.6, 0.7, 0.8, 0.7, 0.7, 0.6, 0.7, 0.7, np.nan])
    >>> raised_threshold(scores, 0.5, 0.1), raised_threshold(scores, 0.5, 1), raised_threshold(scores, 0.75, 0.1)
    (0.7, 0.5, 0.75)
    """
    known = scores[~np.isnan(scores)]
    count = max(MIN_TOP, math.ceil(top_share * len(known)))
    if count >= len(known):
        return threshold
    return max(threshold, min(MAX_RAISED, float(np.sort(known)[-count])))


def _odds_share(scores: Array, threshold: float) -> Array:
    """Return the probabilities that scores would be if `threshold` were even odds; 0 for NaN.

    >>> _odds_share(np.array([0.8, 0.5, np.nan, 1.0]), 0.8).round(2).tolist()
    [0.5, 0.2, 0.0, 1.0]
    """
    p, t = np.clip(np.nan_to_num(scores), 1e-9, 1 - 1e-9), min(max(threshold, 1e-9), 1 - 1e-9)
    share = p * (1 - t) / (p * (1 - t) + (1 - p) * t)
    return np.where(np.isnan(scores), 0.0, share)


def _event(clips: ClipScores, scores: Array, first: int, end: int) -> Event:
    within = scores[first:end]
    end_seconds = min(float(end), clips.duration_seconds)
    start_frame, after = frames_at(clips, np.array([first, end_seconds], np.float64))
    return Event(
        start_frame=start_frame,
        end_frame=max(start_frame, after - 1),
        start_seconds=float(first),
        end_seconds=round(end_seconds, 6),
        peak_confidence=float(np.nanmax(within)),
        peak_seconds=float(first + int(np.nanargmax(within))),
        mean_confidence=round(float(np.nanmean(within)), 6),
    )


def frames_at(clips: ClipScores, seconds: Array) -> list[int]:
    """Return, for each time in `seconds`, the first frame at that time or later, or the number of frames.

    Times of frames are interpolated linearly between the frames whose times the clips contain.
    """
    end = clips.num_frames * clips.frame_seconds
    times = np.concatenate([clips.start_seconds, clips.last_seconds, [max(end, clips.duration_seconds)]])
    frames = np.concatenate([clips.first_frames, clips.last_frames, [clips.num_frames]])
    times, places = np.unique(times, return_index=True)
    exact = np.interp(seconds, times, frames[places])
    return [int(np.clip(math.ceil(frame - 1e-6), 0, clips.num_frames)) for frame in exact]
