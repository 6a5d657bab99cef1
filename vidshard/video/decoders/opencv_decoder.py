"""Decoder with OpenCV, for videos that decord does not support. Reads from the start and never seeks."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from vidshard.util.opencv import load_cv2
from vidshard.video.decoders.base import Decoder, Frame, Size
from vidshard.video.packets import DAMAGED, UNSUPPORTED, PacketTable, VideoError, openable_name
from vidshard.video.sampling import resize_frame

_BT2020 = (9, 10)  # numbers of ITU-T H.273


class OpenCVDecoder(Decoder):
    """OpenCV with its own FFmpeg. It ends damaged files without an error, so every read is checked here."""

    name = "opencv"

    def _frames(
        self, path: Path, table: PacketTable, frame_indices: Sequence[int], size: Size, in_sequence: bool
    ) -> Generator[Frame, None, None]:
        _refuse_unsupported(table)
        cv2: Any = load_cv2()
        os.environ["OPENCV_FFMPEG_LOGLEVEL"] = "32"  # INFO: the level of messages about concealed damage
        with openable_name(path) as name:
            capture = cv2.VideoCapture(name, cv2.CAP_FFMPEG)
            try:
                if not capture.isOpened():
                    raise VideoError(UNSUPPORTED, f"OpenCV does not open it ({table.codec})")
                capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
                next_index = 0
                for index in frame_indices:
                    while next_index <= index:  # grab decodes without converting the picture
                        if not capture.grab():
                            raise _no_frame(table, next_index)
                        next_index += 1
                    yield cv2.cvtColor(resize_frame(_retrieve(capture, table, index), *size), cv2.COLOR_BGR2RGB)
                if next_index == table.num_frames and capture.grab():
                    raise VideoError(DAMAGED, f"OpenCV decodes more frames than the {next_index:,} in its packets")
            finally:
                capture.release()


def _refuse_unsupported(table: PacketTable) -> None:
    if table.interlaced:  # OpenCV 5.0 repeats the first frame of interlaced H.264, with ok=True
        raise VideoError(UNSUPPORTED, "OpenCV does not decode interlaced video")
    if table.mirrored or table.rotation % 90:
        raise VideoError(UNSUPPORTED, "OpenCV can neither mirror a video nor rotate it by an angle such as 45°")
    if table.colorspace in _BT2020:
        raise VideoError(UNSUPPORTED, "OpenCV misinterprets BT.2020 colours")


def _retrieve(capture: Any, table: PacketTable, index: int) -> Frame:
    """Return the frame that was grabbed last, BGR."""
    ok, frame = capture.retrieve()
    if not ok:
        raise _no_frame(table, index)
    if frame.ndim != 3 or frame.shape[:2] != (table.height, table.width):
        raise VideoError(
            UNSUPPORTED, f"OpenCV returns frames of shape {frame.shape}, expected {(table.height, table.width, 3)}"
        )
    bgr: Frame = frame
    return bgr


def _no_frame(table: PacketTable, index: int) -> VideoError:
    if index == 0 and table.codec == "av1":  # OpenCV opens it and reports its length, but has no decoder
        return VideoError(UNSUPPORTED, "OpenCV has no decoder for av1")
    return VideoError(DAMAGED, f"OpenCV cannot decode frame {index:,} of {table.num_frames:,}")
