"""Cutting of a part of a video into a separate MP4: unchanged packets from a keyframe on, or re-encoded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np

from vidshard.util import atomic
from vidshard.video import containers
from vidshard.video.decoders.pyav_decoder import PyAVDecoder
from vidshard.video.packets import DAMAGED, UNSUPPORTED, PacketTable, VideoError, openable_name
from vidshard.video.sampling import Frame

_CLOCK = 90_000  # ticks per second of a re-encoded file

DrawFrame = Callable[[Frame, float], Frame]  # frame and its time in the video → frame of the same size


def frame_range(table: PacketTable, start_seconds: float, end_seconds: float) -> tuple[int, int]:
    """Return the first and the last frame shown from `start_seconds` to `end_seconds` of a video; at least one."""
    times = table.timestamps_seconds
    first = max(0, int(np.searchsorted(times, start_seconds, side="right")) - 1)
    last = int(np.searchsorted(times, end_seconds, side="left")) - 1
    return first, min(max(first, last), table.num_frames - 1)


def cut(path: Path, table: PacketTable, target: Path, *, start_seconds: float, end_seconds: float) -> float:
    """Copy the packets of a stretch of a video to the MP4 `target`, without decoding; return where it begins.

    It begins at the last keyframe at or before `start_seconds`, in seconds from the first frame. Raises VideoError if
    the packets cannot be read, or an MP4 cannot contain them.
    """
    import av

    if table.pts is None:
        raise VideoError(UNSUPPORTED, "its frames have no times, so packets cannot be cut")
    first, last = frame_range(table, start_seconds, end_seconds)
    keyframe = int(table.keyframes[max(0, int(np.searchsorted(table.keyframes, first, side="right")) - 1)])
    begin, end = int(table.pts[keyframe]), int(table.pts[last])
    try:
        with (
            atomic.replacing(target) as partial,
            openable_name(path) as name,
            containers.open_container(name, table.container) as source,
            av.open(str(partial), "w", format="mp4") as output,
        ):
            stream = source.streams[table.stream_index]
            copy = output.add_stream_from_template(stream)
            source.seek(begin, stream=stream)
            started = False
            for packet in source.demux(stream):
                if packet.pts is None or packet.dts is None:
                    continue
                started = started or (packet.is_keyframe and packet.pts == begin)
                if packet.dts > end:
                    break
                if started and packet.pts >= begin:  # frames shown before the keyframe need those before it
                    packet.pts, packet.dts = packet.pts - begin, packet.dts - begin
                    packet.stream = copy
                    output.mux(packet)
            if not started:
                raise VideoError(DAMAGED, f"the keyframe at {table.timestamps_seconds[keyframe]:.2f} s was not found")
    except (av.error.FFmpegError, ValueError) as error:  # such as a codec that MP4 does not hold
        raise VideoError(UNSUPPORTED, f"its packets cannot be copied to an MP4: {error}") from error
    return float(table.timestamps_seconds[keyframe])


def encode(
    path: Path, table: PacketTable, target: Path, *, start_seconds: float, end_seconds: float, draw: DrawFrame
) -> float:
    """Decode a stretch of a video, apply `draw` to each frame, and encode it to the MP4 `target`; return where it
    begins.

    Raises VideoError if a frame cannot be decoded.
    """
    import av

    first, last = frame_range(table, start_seconds, end_seconds)
    times = table.timestamps_seconds
    height, width = table.height // 2 * 2, table.width // 2 * 2  # as 4:2:0 needs
    frames = PyAVDecoder().frames(path, table, range(first, last + 1), height=height, width=width)
    with (
        atomic.replacing(target) as partial,
        contextlib.closing(frames),
        av.open(str(partial), "w", format="mp4") as output,
    ):
        rate = max(1, round(table.fps))
        stream = output.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, _CLOCK)
        for number, frame in enumerate(frames, start=first):
            drawn = av.VideoFrame.from_ndarray(draw(frame, float(times[number])), format="rgb24")
            drawn.pts, drawn.time_base = round((times[number] - times[first]) * _CLOCK), Fraction(1, _CLOCK)
            output.mux(stream.encode(drawn))
        output.mux(stream.encode(None))
    return float(times[first])
