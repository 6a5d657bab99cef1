"""Which frames make which clip, and how a frame becomes small. Pure functions of numbers; knows no file."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vidshard.errors import UserError

Frame = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How clips are cut out of a video.

    uniform: `clips_per_video` equal spans, `clip_len` frames spread over each. dense: consecutive windows of `clip_len`
    frames that lie `frame_step` apart, one every `stride` frames (default: the next begins where the last ended).
    """

    mode: Literal["uniform", "dense"] = "uniform"
    clip_len: int = 16
    clips_per_video: int = 1
    stride: int | None = None
    frame_step: int = 1

    def __post_init__(self) -> None:
        if self.mode not in ("uniform", "dense"):
            raise UserError(f"sampling mode is {self.mode!r}, expected uniform or dense")
        for name in ("clip_len", "clips_per_video", "frame_step", "stride"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}, expected at least 1")
        if self.mode == "uniform" and (self.stride is not None or self.frame_step != 1):
            raise UserError("stride and frame_step are options of dense sampling; uniform has clips_per_video")
        if self.mode == "dense" and self.clips_per_video != 1:
            raise UserError("clips_per_video is an option of uniform sampling; dense has stride")

    @property
    def dense_stride(self) -> int:
        """Frames from the start of a dense window to the start of the next."""
        return self.stride if self.stride is not None else self.clip_len * self.frame_step

    @property
    def window(self) -> int:
        """Frames from the first to the last of a dense clip, both counted."""
        return (self.clip_len - 1) * self.frame_step + 1

    def to_settings(self) -> dict[str, Any]:
        """The sampling as the manifest keeps it: only what decides the clips."""
        if self.mode == "uniform":
            return {"mode": "uniform", "clip_len": self.clip_len, "clips_per_video": self.clips_per_video}
        return {
            "mode": "dense",
            "clip_len": self.clip_len,
            "stride": self.dense_stride,
            "frame_step": self.frame_step,
        }


def frame_indices(total_frames: int, *, num_frames: int) -> tuple[int, ...]:
    """`num_frames` indices spread over `total_frames`, both ends included; a short video repeats its last frame.

    The rule of `np.linspace(0, total_frames - 1, num_frames).astype(int)`, in exact arithmetic. A single index is the
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


def num_clips(num_frames: int, sampling: SamplingConfig) -> int:
    """How many clips a video of `num_frames` gives: at least one, if it has a frame.

    >>> num_clips(40, SamplingConfig(mode="uniform", clips_per_video=3))
    3
    >>> num_clips(40, SamplingConfig(mode="dense"))  # 0–15, 16–31, and 24–39 so that no frame is lost
    3
    """
    if num_frames < 1:
        return 0
    if sampling.mode == "uniform":
        return min(sampling.clips_per_video, num_frames)
    full, tail = _dense_windows(num_frames, sampling)
    return max(1, full + tail)


def clip_frame_indices(num_frames: int, clip_index: int, sampling: SamplingConfig) -> tuple[int, ...]:
    """The `clip_len` frame indices of clip `clip_index`, rising; where frames run out, the last one is repeated.

    >>> clip_frame_indices(62, 1, SamplingConfig(mode="uniform", clip_len=4, clips_per_video=2))
    (31, 41, 51, 61)
    >>> clip_frame_indices(10, 1, SamplingConfig(mode="dense", clip_len=4))
    (4, 5, 6, 7)
    >>> clip_frame_indices(10, 2, SamplingConfig(mode="dense", clip_len=4))  # the tail: ends at the last frame
    (6, 7, 8, 9)
    >>> clip_frame_indices(4, 0, SamplingConfig(mode="dense", clip_len=4, frame_step=2))
    (0, 2, 3, 3)
    """
    count = num_clips(num_frames, sampling)
    if not 0 <= clip_index < count:
        raise ValueError(f"clip {clip_index} of a video of {num_frames} frames, which gives {count} clips")
    if sampling.mode == "uniform":
        first = clip_index * num_frames // count
        end = (clip_index + 1) * num_frames // count
        return tuple(first + i for i in frame_indices(end - first, num_frames=sampling.clip_len))
    full, _ = _dense_windows(num_frames, sampling)
    first = clip_index * sampling.dense_stride if clip_index < full else max(0, num_frames - sampling.window)
    return tuple(min(first + i * sampling.frame_step, num_frames - 1) for i in range(sampling.clip_len))


def _dense_windows(num_frames: int, sampling: SamplingConfig) -> tuple[int, bool]:
    """How many full windows fit, and whether frames are left behind the last that belong to no window."""
    if num_frames < sampling.window:
        return 0, False
    full = (num_frames - sampling.window) // sampling.dense_stride + 1
    # A window stands for clip_len × frame_step frames, or, if windows lie farther apart, for all up to the next one.
    covered = (full - 1) * sampling.dense_stride + max(sampling.clip_len * sampling.frame_step, sampling.dense_stride)
    return full, covered < num_frames


def frame_gap_seconds(timestamps_seconds: Sequence[float]) -> float:
    """Median time between neighbouring frames of a clip that are different frames; 0.0 if there are none.

    >>> frame_gap_seconds([0.0, 0.5, 1.0, 1.0, 1.0])
    0.5
    """
    gaps = np.diff(np.asarray(timestamps_seconds, dtype=np.float64))
    gaps = gaps[gaps > 0]
    return float(np.median(gaps)) if gaps.size else 0.0


def resize_frame(frame: Frame, height: int, width: int) -> Frame:
    """`frame` (uint8, H W C) at `height` × `width`, each pixel the mean of the area it covers: no aliasing."""
    if frame.shape[:2] == (height, width):
        return frame
    cv2 = load_cv2()
    resized: Frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    return resized


def load_cv2() -> Any:
    """OpenCV, imported on first use. Raises UserError that says what to install when it cannot be."""
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            f"OpenCV cannot be imported ({error}); on a machine without a screen: "
            "pip uninstall opencv-python && pip install opencv-python-headless"
        ) from error
    cv2.setNumThreads(1)  # one process a core: more threads only get in each other's way
    return cv2
