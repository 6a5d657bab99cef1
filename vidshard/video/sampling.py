"""Frame selection for clips, and resizing of frames. Pure functions."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from vidshard.util.opencv import load_cv2
from vidshard.video.config import SamplingConfig as SamplingConfig

Frame = npt.NDArray[np.uint8]

_CLOCK_TICK_US = 600  # containers round timestamps, some to milliseconds
_BREAK_SECONDS = 5.0  # shorter gaps occur with variable frame rates, or when a few seconds are lost
_BREAK_PACES = 10.0  # in the dark a camera may drop from 25 to a few frames/s; a time lapse has no breaks


def frame_indices(total_frames: int, *, num_frames: int) -> tuple[int, ...]:
    """Return `num_frames` indices spread over `total_frames`, both ends included; a short video repeats its last frame.

    The rule is `np.linspace(0, total_frames - 1, num_frames).astype(int)`, in exact arithmetic. A single index is the
    middle one.

    >>> frame_indices(31, num_frames=4)
    (0, 10, 20, 30)
    >>> frame_indices(3, num_frames=5)
    (0, 1, 2, 2, 2)
    """
    if total_frames < num_frames:
        return tuple(min(i, total_frames - 1) for i in range(num_frames))
    if num_frames == 1:
        return ((total_frames - 1) // 2,)
    return tuple(i * (total_frames - 1) // (num_frames - 1) for i in range(num_frames))


class VideoClips:
    """Clips of one video: a sequence of tuples of `clip_len` ascending frame indices.

    `num_frames`: frames of the video. `timestamps_seconds`: their times, required with `sampling.fps`, and used to find
    breaks (`find_breaks`). `events`: first and last frame of each event; clips are then cut from the events only. An
    event shorter than a window gets one window around it; overlapping events are merged; an event that runs past the
    end is cut. There is at least one clip if there is a frame or, with events, if one begins within the video. Where
    frames run out, the last one is repeated.

    No dense or annotated clip crosses a break: the parts on both sides are treated as two videos. A single frame
    between two breaks shows no motion and yields no clip, unless there is nothing else.

    >>> list(VideoClips(62, SamplingConfig(mode="uniform", clip_len=4, clips_per_video=2)))
    [(0, 10, 20, 30), (31, 41, 51, 61)]
    >>> list(VideoClips(10, SamplingConfig(mode="dense", clip_len=4)))  # the tail ends at the last frame
    [(0, 1, 2, 3), (4, 5, 6, 7), (6, 7, 8, 9)]
    >>> list(VideoClips(4, SamplingConfig(mode="dense", clip_len=4, frame_step=2)))
    [(0, 2, 3, 3)]
    >>> list(VideoClips(90, SamplingConfig(mode="annotated", clip_len=4), events=[(20, 27), (50, 51)]))
    [(20, 21, 22, 23), (24, 25, 26, 27), (49, 50, 51, 52)]
    >>> sampling = SamplingConfig(mode="dense", clip_len=4, fps=2)
    >>> list(VideoClips(5, sampling, timestamps_seconds=[0, 0.25, 0.5, 0.75, 1.5]))
    [(0, 2, 3, 4)]
    >>> times = [0, 1, 2, 3, 4, 3600, 3601, 3602]
    >>> list(VideoClips(8, SamplingConfig(mode="dense", clip_len=4), timestamps_seconds=times))
    [(0, 1, 2, 3), (1, 2, 3, 4), (5, 6, 7, 7)]
    >>> sampling = SamplingConfig(mode="dense", clip_len=4, frame_step=2, whole_if_short=True)
    >>> list(VideoClips(6, sampling)), list(VideoClips(9, sampling))
    ([(0, 1, 3, 5)], [(0, 2, 4, 6), (2, 4, 6, 8)])
    """

    def __init__(
        self,
        num_frames: int,
        sampling: SamplingConfig,
        *,
        timestamps_seconds: Sequence[float] | npt.NDArray[np.float64] | None = None,
        events: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.sampling = sampling
        self._frame_of: Sequence[int] | npt.NDArray[np.int64] = range(num_frames)  # position in time → frame
        if sampling.mode == "uniform":
            count = min(sampling.clips_per_video, num_frames)
            self._spans = [(n * num_frames // count, (n + 1) * num_frames // count) for n in range(count)]
            self._starts = list(range(count + 1))
            return
        breaks = np.zeros(0, np.int64)
        if timestamps_seconds is not None:
            breaks = find_breaks(timestamps_seconds)
        if sampling.fps is not None:
            if timestamps_seconds is None or len(timestamps_seconds) != num_frames:
                raise ValueError(f"fps needs the timestamps of all {num_frames} frames")
            self._frame_of = resampled_frames(timestamps_seconds, sampling.fps, breaks=breaks)
            breaks = np.searchsorted(self._frame_of, breaks)
        if sampling.whole_if_short and not len(breaks) and len(self._frame_of) <= sampling.window:
            self.__init__(num_frames, SamplingConfig(clip_len=sampling.clip_len))  # type: ignore[misc]
            return
        self._spans = self._cut(breaks.tolist(), events)
        counts = [max(1, sum(_dense_windows(stop - first, sampling))) for first, stop in self._spans]
        self._starts = [0, *itertools.accumulate(counts)]  # number of the first clip of each span

    def is_short(self, number: int) -> bool:
        """Return True if the span of clip `number` has fewer frames than a clip."""
        first, stop = self._spans[self._span_of(number)]
        return stop - first < self.sampling.window

    def __len__(self) -> int:
        return self._starts[-1]

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> tuple[int, ...]:
        if not 0 <= number < len(self):
            raise IndexError(f"clip {number} of a video of {len(self._frame_of)} frames, which gives {len(self)} clips")
        span = self._span_of(number)
        first, stop = self._spans[span]
        if self.sampling.mode == "uniform":
            return tuple(first + i for i in frame_indices(stop - first, num_frames=self.sampling.clip_len))
        full, _ = _dense_windows(stop - first, self.sampling)
        window = number - self._starts[span]
        start = first + window * self.sampling.dense_stride if window < full else stop - self.sampling.window
        start, last = max(first, start), stop - 1
        return tuple(
            int(self._frame_of[min(start + i * self.sampling.frame_step, last)]) for i in range(self.sampling.clip_len)
        )

    def _span_of(self, number: int) -> int:
        return bisect.bisect_right(self._starts, number) - 1

    def _cut(self, breaks: Sequence[int], events: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return (start, stop) positions of the spans that dense windows fill; no span contains a break.

        `breaks`: the first position after each break.
        """
        length, window = len(self._frame_of), self.sampling.window
        spans = list(itertools.pairwise([0, *breaks, length])) if length else []
        if events:
            spans = [span for part in spans for span in _event_spans(self._frame_of, *part, events, window)]
        return [(first, stop) for first, stop in spans if stop - first >= min(2, window)] or spans


def _event_spans(
    frame_of: Sequence[int] | npt.NDArray[np.int64],
    start: int,
    end: int,
    events: Sequence[tuple[int, int]],
    window: int,
) -> list[tuple[int, int]]:
    """Return (start, stop) positions of each event within the positions `start` to `end`."""
    spans: list[tuple[int, int]] = []
    for first_frame, last_frame in sorted(events):
        if first_frame > frame_of[end - 1] or last_frame < frame_of[start]:
            continue
        first = bisect.bisect_left(frame_of, first_frame, start, end)
        stop = max(bisect.bisect_left(frame_of, last_frame + 1, start, end), first + 1)
        if spans and first < spans[-1][1]:
            spans[-1] = (spans[-1][0], max(stop, spans[-1][1]))
        else:
            spans.append((first, stop))
    # At the ends of a part, several short events may be widened to the same window, which counts once.
    return list(dict.fromkeys(_widened(first, stop, window, start, end) for first, stop in spans))


def _widened(first: int, stop: int, window: int, start: int, end: int) -> tuple[int, int]:
    """Widen a span to `window` positions, within `start` to `end`."""
    if stop - first >= window:
        return first, stop
    first = max(start, min((first + stop - window) // 2, end - window))
    return first, min(first + window, end)


def find_breaks(timestamps_seconds: Sequence[float] | npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return the first frame after each break: where the recorder paused, or its clock was changed.

    A break is a gap of more than 5 s that is also more than 10 times the video's own pace, which is the median gap
    between its frames (zero gaps excluded).

    >>> find_breaks([0.0, 0.1, 0.2, 600.2, 600.3]).tolist()
    [3]
    >>> find_breaks([0.0, 60.0, 120.0, 300.0]).tolist()  # a time lapse
    []
    """
    gaps = np.diff(np.asarray(timestamps_seconds, dtype=np.float64))
    if not gaps.size or gaps.max() <= _BREAK_SECONDS:
        return np.zeros(0, np.int64)
    pace = np.percentile(gaps[gaps > 0], 50, method="lower")  # the smaller of two gaps: the larger may be the break
    return np.flatnonzero((gaps > _BREAK_SECONDS) & (gaps > _BREAK_PACES * pace)) + 1


def resampled_frames(
    timestamps_seconds: Sequence[float] | npt.NDArray[np.float64],
    fps: float,
    *,
    breaks: Sequence[int] | npt.NDArray[np.int64] = (),
) -> npt.NDArray[np.int64]:
    """Return the frame nearest to each moment 0, 1 / fps, 2 / fps, … up to the last frame; ties take the earlier one.

    `timestamps_seconds` must not decrease. `breaks`: the result of `find_breaks`; the moments restart after each one.
    There are at most duration × fps + 1 moments, with 0.6 ms of tolerance for rounded timestamps.

    >>> resampled_frames([0.0, 0.1, 0.2, 0.3, 0.4], 5).tolist()
    [0, 2, 4]
    >>> resampled_frames([0.0, 0.1, 0.2], 30).tolist()
    [0, 0, 1, 1, 1, 2, 2]
    >>> resampled_frames([0.0, 0.1, 0.2, 600.3, 600.4, 600.5], 5, breaks=[3]).tolist()
    [0, 2, 3, 5]
    """
    times = np.rint(np.asarray(timestamps_seconds, dtype=np.float64) * 1e6).astype(np.int64)  # µs: exact comparisons
    if not len(times):
        return np.zeros(0, np.int64)
    first, last = np.array([0, *breaks]), np.array([*breaks, len(times)]) - 1  # of each part between breaks
    counts = ((times[last] - times[first] + _CLOCK_TICK_US) * fps / 1e6).astype(np.int64) + 1  # moments of each
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # within its part
    moments = np.repeat(times[first], counts) + np.rint(number * 1e6 / fps).astype(np.int64)
    # A break is far longer than a clock tick: the nearest frame is never on the other side of one.
    after = np.clip(np.searchsorted(times, moments), 0, len(times) - 1)
    before = np.maximum(after - 1, 0)
    nearest: npt.NDArray[np.int64] = np.where(moments - times[before] <= times[after] - moments, before, after)
    return nearest


def _dense_windows(num_frames: int, sampling: SamplingConfig) -> tuple[int, bool]:
    """Return the number of full windows, and whether frames after the last one belong to no window."""
    if num_frames < sampling.window:
        return 0, False
    full = (num_frames - sampling.window) // sampling.dense_stride + 1
    # A window covers clip_len × frame_step frames or, if windows are farther apart, all frames up to the next one.
    covered = (full - 1) * sampling.dense_stride + max(sampling.clip_len * sampling.frame_step, sampling.dense_stride)
    return full, covered < num_frames


def scaled_size(
    height: int, width: int, *, to_height: int, to_width: int, resize: str, sample_aspect: Fraction | float = 1
) -> tuple[int, int]:
    """Return the size to which a frame is scaled before `place_frame` crops or pads it, as (height, width) in pixels.

    squash: the size of the clip, ignoring proportions. crop: the smallest size that covers the clip. letterbox: the
    largest size that fits into it. Both keep the proportions that a player shows: `sample_aspect` is the width of a
    pixel divided by its height (rotation applied), more than 0.

    >>> [scaled_size(240, 320, to_height=112, to_width=112, resize=mode) for mode in ("squash", "crop", "letterbox")]
    [(112, 112), (112, 149), (84, 112)]
    >>> scaled_size(576, 720, to_height=112, to_width=112, resize="crop", sample_aspect=Fraction(16, 15))  # 768 × 576
    (112, 149)
    """
    if resize == "squash":
        return to_height, to_width
    pick = max if resize == "crop" else min
    shown_width = width * Fraction(sample_aspect)
    scale = pick(Fraction(to_height, height), to_width / shown_width)
    scaled_height, scaled_width = max(1, round(height * scale)), max(1, round(shown_width * scale))
    return scaled_height, scaled_width


def place_frame(frame: Frame, height: int, width: int) -> Frame:
    """Crop a frame (uint8, H W C) to its middle `height` × `width`, with black borders where it is smaller.

    >>> place_frame(np.full((1, 4, 3), 9, np.uint8), 3, 2)[..., 0].tolist()
    [[0, 0], [9, 9], [0, 0]]
    """
    if frame.shape[:2] == (height, width):
        return frame
    top, left = max(0, (frame.shape[0] - height) // 2), max(0, (frame.shape[1] - width) // 2)
    middle = frame[top : top + height, left : left + width]
    placed = np.zeros((height, width, 3), np.uint8)
    top, left = (height - middle.shape[0]) // 2, (width - middle.shape[1]) // 2
    placed[top : top + middle.shape[0], left : left + middle.shape[1]] = middle
    return placed


def resize_frame(frame: Frame, height: int, width: int) -> Frame:
    """Resize a frame (uint8, H W C) by area averaging, which avoids aliasing."""
    if frame.shape[:2] == (height, width):
        return frame
    cv2 = load_cv2()
    resized: Frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    return resized
