"""Decoder with PyAV: FFmpeg's own decoder and scaler. The fastest of the three, and the only one that supports AV1."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidshard.video import containers
from vidshard.video.decoders.base import Decoder, Frame, Size
from vidshard.video.packets import DAMAGED, UNSUPPORTED, PacketTable, VideoError, openable_name

# Area averaging in full accuracy: 45 dB from the exact result (the default, bicubic: 37 dB).
_SCALE_FLAGS = "area+accurate_rnd+full_chroma_int"
# FFmpeg has fast code for scaling to R, G and B planes, and for interleaving them, but not for both in one step.
_PLANES, _PACKED = "gbrp", "rgb24"
_ROTATE = {0: (), 90: (("transpose", "cclock"),), 180: (("hflip", ""), ("vflip", "")), 270: (("transpose", "clock"),)}
_SEEKABLE = ("mov", "matroska")  # these have a keyframe table; in others FFmpeg guesses a position
_WORTH_A_SEEK = 8  # frames that a seek must save; it costs about two itself


class PyAVDecoder(Decoder):
    """PyAV decoder. Seeks where that saves decoding and identifies frames by time; otherwise reads from the start."""

    name = "pyav"

    def _frames(
        self, path: Path, table: PacketTable, frame_indices: Sequence[int], size: Size, in_sequence: bool
    ) -> Generator[Frame, None, None]:
        graph = _FilterGraph(_orienting_filters(table), *size)
        for frame in _picked(path, table, frame_indices, in_sequence=in_sequence):
            yield graph.convert(frame)


def _orienting_filters(table: PacketTable) -> list[tuple[str, str]]:
    """Return the filters that orient the stored picture as players do; FFmpeg's angle is counter-clockwise."""
    mirror = [("hflip", "")] if table.mirrored else []
    if table.rotation in _ROTATE:
        return [*mirror, *_ROTATE[table.rotation]]
    return [*mirror, ("rotate", f"-{table.rotation}*PI/180")]


def _picked(path: Path, table: PacketTable, frame_indices: Sequence[int], *, in_sequence: bool) -> Iterator[Any]:
    """Yield the decoded, unconverted frames of `frame_indices`."""
    import av

    found = 0
    try:
        if not in_sequence and _can_seek(table):
            with _opened(path, table) as (container, stream):
                for frame in _frames_by_time(container, stream, table, frame_indices):
                    yield frame
                    found += 1
        if found < len(frame_indices):
            with _opened(path, table) as (container, stream):
                for frame in _frames_by_count(container, stream, table, frame_indices[found:]):
                    yield frame
                    found += 1
    except av.error.DecoderNotFoundError as error:
        raise VideoError(UNSUPPORTED, f"PyAV has no decoder for {table.codec}") from error
    except (av.error.FFmpegError, OSError) as error:
        where = f"at frame {frame_indices[found]}" if found < len(frame_indices) else "after the last frame"
        raise VideoError(DAMAGED, f"PyAV stopped {where}: {error.strerror}") from error


@contextlib.contextmanager
def _opened(path: Path, table: PacketTable) -> Iterator[tuple[Any, Any]]:
    """Open the container and the table's stream, with one decoding thread."""
    with openable_name(path) as name, containers.open_container(name, table.container) as container:
        stream = container.streams[table.stream_index]
        stream.codec_context.thread_count = 1
        yield container, stream


def _can_seek(table: PacketTable) -> bool:
    """Return True if decoding may seek to keyframes and identify the following frames by their times.

    Not if frames after a keyframe are shown before it (they need data from before it), nor if an edit list hides frames
    (FFmpeg then shifts its timestamps after a seek).
    """
    return (
        table.pts is not None
        and table.container in _SEEKABLE
        and not table.open_gops
        and not table.discarded
        and len(table.keyframes) > 0
    )


def _frames_by_time(container: Any, stream: Any, table: PacketTable, frame_indices: Sequence[int]) -> Iterator[Any]:
    """Yield requested frames; stop silently on the first mismatch with the packet table."""
    import av

    assert table.pts is not None
    index_of = {int(pts): index for index, pts in enumerate(table.pts)}
    wanted_pts = {int(table.pts[index]) for index in frame_indices}
    skip_others = wanted_pts if table.codec == "h264" and len(wanted_pts) < table.num_frames else None
    sought = table.keyframes[np.searchsorted(table.keyframes, frame_indices, side="right") - 1]
    frames = _decode(container, stream, skip_others)
    position = 0  # index of the next frame to be decoded
    try:
        for wanted, keyframe in zip(frame_indices, sought.tolist(), strict=True):
            after_seek = keyframe - position >= _WORTH_A_SEEK
            if after_seek:
                frames.close()
                container.seek(int(table.pts[keyframe]), stream=stream)
                frames = _decode(container, stream, skip_others)
                position = keyframe
            for frame in frames:
                index = index_of.get(frame.pts, -1)
                if not position <= index <= wanted or (after_seek and not frame.key_frame):
                    return
                after_seek = False
                position = index + 1
                if index == wanted:
                    yield frame
                    break
            else:
                return
    except av.error.FFmpegError:  # reading from the start will hit it again, or succeed
        return
    if position == table.num_frames and next(frames, None) is not None:
        raise _too_many(table)


def _frames_by_count(container: Any, stream: Any, table: PacketTable, frame_indices: Sequence[int]) -> Iterator[Any]:
    """Yield requested frames, counted from the start; their times must match the table."""
    found = 0
    for index, frame in enumerate(_decode(container, stream)):
        if index >= table.num_frames:
            raise _too_many(table)
        if table.pts is not None and frame.pts is not None and frame.pts != table.pts[index]:
            raise VideoError(DAMAGED, f"frame {index:,} as decoded by PyAV does not have the time of its packet")
        if found < len(frame_indices) and index == frame_indices[found]:
            yield frame
            found += 1
        if found == len(frame_indices) and index + 1 < table.num_frames:
            return
    if found < len(frame_indices):
        raise VideoError(DAMAGED, f"PyAV cannot decode frame {frame_indices[found]:,} of {table.num_frames:,}")


def _too_many(table: PacketTable) -> VideoError:
    return VideoError(DAMAGED, f"PyAV decodes more frames than the {table.num_frames:,} in its packets")


def _decode(container: Any, stream: Any, wanted_pts: set[int] | None = None) -> Generator[Any, None, None]:
    """Yield the frames of `stream` in presentation order, without those that the edit list hides.

    With `wanted_pts`, also skip frames that are neither wanted nor needed to decode others.
    """
    context = stream.codec_context
    context.skip_frame = "DEFAULT"
    for packet in container.demux(stream):
        if wanted_pts is not None and packet.size:
            context.skip_frame = "DEFAULT" if packet.pts in wanted_pts else "NONREF"
        yield from packet.decode()


class _FilterGraph:
    """Rotation, scaling and conversion to RGB in FFmpeg, rebuilt when the size or format of the picture changes."""

    def __init__(self, turn: Sequence[tuple[str, str]], height: int, width: int) -> None:
        self.turn = turn
        self.scale = [
            ("scale", f"{width}:{height}:flags={_SCALE_FLAGS}"),
            ("format", _PLANES),
            ("scale", f"{width}:{height}:flags=neighbor"),  # same size: only the order of the bytes changes
            ("format", _PACKED),
        ]
        self.shape: tuple[object, ...] | None = None
        self.graph: Any = None

    def convert(self, frame: Any) -> Frame:
        shape = (frame.width, frame.height, frame.format.name)
        if shape != self.shape:
            self.shape, self.graph = shape, self._build(frame)
        self.graph.push(frame)
        array: Frame = self.graph.pull().to_ndarray()
        return array

    def _build(self, frame: Any) -> Any:
        import av.filter

        graph = av.filter.Graph()
        graph.threads = 1
        shape = {"width": frame.width, "height": frame.height, "format": frame.format}
        nodes = [graph.add_buffer(**shape, time_base=frame.time_base)]
        nodes += [graph.add(name, arguments) for name, arguments in (*self.turn, *self.scale)]
        nodes.append(graph.add("buffersink"))
        for left, right in itertools.pairwise(nodes):
            left.link_to(right)
        graph.configure()
        return graph
