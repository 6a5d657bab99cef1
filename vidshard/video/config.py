"""Options of sampling. Imports neither NumPy nor a decoder, because --help needs them."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from vidshard.util.errors import UserError
from vidshard.util.options import check_options, option

RESIZES = ("squash", "crop", "letterbox")
_GROUP = "Sampling"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Options for cutting clips out of a video.

    uniform: `clips_per_video` equal spans, with `clip_len` frames spread over each. dense: consecutive windows of
    `clip_len` frames that are `frame_step` apart, one every `stride` frames (default: no overlap, no gap). annotated:
    like dense, but videos with events yield clips from these events only. With `fps`, dense and annotated count in
    steps of 1 / fps seconds instead of frames, so that cameras of 10 and of 30 frames/s show the same speed. No dense
    or annotated clip crosses a break (`find_breaks`); uniform counts frames and ignores breaks.
    """

    mode: Literal["uniform", "dense", "annotated"] = option(
        "uniform",
        name="sampling",
        help="uniform: frames spread over the video; dense: consecutive windows; annotated: windows of events only.",
        choices=("uniform", "dense", "annotated"),
    )
    clips_per_video: int = option(
        1, help="uniform: number of equal spans per video, each of which gives one clip.", at_least=1
    )
    stride: int | None = option(
        None, help="dense: step between windows, in frames.", default_text="clip length", at_least=1
    )
    clip_len: int = option(16, help="Frames per clip.", at_least=1)
    frame_step: int = option(1, help="dense: take every n-th frame.", group=_GROUP, at_least=1)
    fps: float | None = option(
        None,
        help="dense, annotated: take frames 1/fps seconds apart, whatever the frame rate of the video.",
        group=_GROUP,
        above=0,
        at_most=1000,
    )
    whole_if_short: bool = False  # dense: a video of at most one window gives one clip, cut as uniform sampling does

    def __post_init__(self) -> None:
        check_options(self)
        if self.mode == "uniform" and (self.stride is not None or self.frame_step != 1):
            raise UserError("stride and frame_step apply to dense sampling; uniform sampling has clips_per_video")
        if self.mode != "uniform" and self.clips_per_video != 1:
            raise UserError(f"clips_per_video applies to uniform sampling; {self.mode} sampling has stride")
        if self.fps is not None and (self.mode == "uniform" or self.frame_step != 1):
            raise UserError("fps applies to dense and annotated sampling, and cannot be combined with frame_step")

    @property
    def dense_stride(self) -> int:
        """Frames from the start of one dense window to the start of the next."""
        return self.stride if self.stride is not None else self.clip_len * self.frame_step

    @property
    def window(self) -> int:
        """Frames that a dense clip spans, first and last included."""
        return (self.clip_len - 1) * self.frame_step + 1

    def to_settings(self) -> dict[str, Any]:
        """Return the settings stored in the manifest: only those that determine the clips."""
        if self.mode == "uniform":
            return {"mode": "uniform", "clip_len": self.clip_len, "clips_per_video": self.clips_per_video}
        settings: dict[str, Any] = {"mode": self.mode, "clip_len": self.clip_len, "stride": self.dense_stride}
        settings |= {"frame_step": self.frame_step} if self.fps is None else {"fps": self.fps}
        return {**settings, "whole_if_short": True} if self.whole_if_short else settings
