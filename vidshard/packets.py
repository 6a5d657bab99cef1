"""Which frames a video has, when each is shown and where decoding may start, read from its packets alone.

Nothing is decoded but the first frame (for the rotation), so that a whole data set is planned in seconds. Headers are
not believed: the frame count of a container is only a text in it, and wrong in most damaged files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vidshard import atomic

# The one reason for which another decoder may be asked. Damage must stay loud: of the damaged files that
# decord refuses, OpenCV reads more than half without an error, short or empty.
UNSUPPORTED = "unsupported_by_decoder"
DAMAGED = "damaged"

MAX_PIXELS = 8192 * 4320  # a 198 KB file of 8192 × 8192 drives a decoder to 6 GiB
MAX_SIDE = 16384
MAX_VIDEO_PIXELS = 2 * 10**13  # of all frames: four days of 1920 × 1080 at 25 frames/s

_MAGIC_BYTES = 4096
_MAX_MISSING_FRAMES = 4  # at the end of what an edit list shows
_MAX_GAP_SECONDS = 100.0  # between frames; the slowest time-lapse recorders make one a minute
_MAX_REORDER = 32  # frames that a decoder may have to hold back; H.264 and HEVC allow 16, interlaced fields twice that
_ISO_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"styp", b"moof", b"sidx", b"uuid")
_PICTURE_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"avif")


class VideoError(Exception):
    """A video that cannot be used: `reason` is a code for programs, `message` is for people (no absolute path)."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)  # both, so that the error survives a pipe to another process
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PacketTable:
    """The frames of one video in presentation order, edit list applied; N frames, K of them keyframes."""

    timestamps_seconds: npt.NDArray[np.float64]  # [N], from the first displayed frame
    keyframes: npt.NDArray[np.int64]  # [K] frame indices
    fps: float  # mean; 0.0 if unknown
    width: int  # as displayed: rotation applied
    height: int
    rotation: int  # degrees counter-clockwise that a player turns the stored picture: 0, 90, 180 or 270
    codec: str  # FFmpeg's name, such as `h264`
    pixel_format: str | None
    discarded: int  # packets that the edit list hides; decoders need them, viewers never see them
    stream_index: int
    container: str  # FFmpeg's name, such as `mov` (all MP4s) or `matroska`
    interlaced: bool = False
    open_gops: bool = False  # some keyframe is followed by frames shown before it, which a seek to it loses
    num_video_streams: int = 1  # cover pictures not counted; the table is that of the first
    # [N] the same times in units of the stream, which FFmpeg gives back with each decoded frame; None when the
    # container does not tell when each frame is shown, or shows two at one moment.
    pts: npt.NDArray[np.int64] | None = None

    @property
    def num_frames(self) -> int:
        return len(self.timestamps_seconds)

    def save(self, path: Path) -> None:
        """Write the table as `.npz`, atomically."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["pixel_format"] = self.pixel_format or ""
        fields["pts"] = np.zeros(0, np.int64) if self.pts is None else self.pts
        with atomic.atomic_open(path) as file:
            np.savez(file, **fields)

    @classmethod
    def load(cls, path: Path) -> PacketTable:
        """The inverse of `save`."""
        with np.load(path, allow_pickle=False) as arrays:
            fields: dict[str, Any] = {name: arrays[name] for name in arrays.files}
        for name, value in fields.items():
            if value.ndim == 0:
                fields[name] = value.item()
        fields["pts"] = fields["pts"] if len(fields["pts"]) else None
        return cls(**{**fields, "pixel_format": fields["pixel_format"] or None})


def read_packet_table(path: Path) -> PacketTable:
    """Read the packets of the first video stream (cover pictures not counted) of the file at `path`.

    Raises VideoError, with one of the reasons `unreadable`, `not_a_regular_file`, `empty_file`, `not_a_video`,
    `no_video_stream`, `unsupported_codec`, `no_frames`, `too_large`, `damaged`.
    """
    import av  # here, so that who only loads tables needs no FFmpeg

    head, size = _read_head(path)
    container_format = container_of(head)
    try:
        if container_format == "mov":
            _check_boxes(path, size)
        with openable_name(path) as name, _open(name, container_format) as container:
            table = _read_stream(container, container_format, size)
            rotation, interlaced = _first_frame(name, container_format, table.stream_index)
    except VideoError:
        raise
    except MemoryError as error:
        raise VideoError("too_large", "reading its packets needs more memory than there is") from error
    except (av.error.FFmpegError, OSError, ValueError, ArithmeticError, RuntimeError) as error:
        raise VideoError(DAMAGED, f"its packets cannot be read: {_plain(error)}") from error
    width, height = (table.height, table.width) if rotation % 180 else (table.width, table.height)
    return dataclasses.replace(table, width=width, height=height, rotation=rotation, interlaced=interlaced)


def _open(name: str, container_format: str) -> Any:
    import av

    # Naming the format keeps FFmpeg from guessing: a playlist or script would make it open other files.
    return av.open(name, format=container_format, options={"protocol_whitelist": "file"}, metadata_errors="replace")


def _read_head(path: Path) -> tuple[bytes, int]:
    """The first bytes and the size of a regular file."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # asked before opening: opening a FIFO waits for ever
            raise VideoError("not_a_regular_file", "it is a folder, pipe, socket or device, not a file")
        if status.st_size == 0:
            raise VideoError("empty_file", "it has 0 bytes")
        with open(path, "rb") as file:
            return file.read(_MAGIC_BYTES), status.st_size
    except OSError as error:
        raise VideoError("unreadable", f"it cannot be opened: {_plain(error)}") from error


def _check_boxes(path: Path, size: int) -> None:
    """Raises VideoError when a box of an MP4 that holds frames or their index is cut off by the end of the file."""
    position = 0
    with open(path, "rb") as file:
        while position + 8 <= size:
            file.seek(position)
            header = file.read(16)
            length, name = int.from_bytes(header[:4], "big"), header[4:8]
            if length == 1:
                length = int.from_bytes(header[8:], "big")
            if name not in _ISO_BOXES or length < 8:  # what follows the video, or a box up to the end of the file
                return
            position += length
            if position > size and name in (b"moov", b"mdat", b"moof"):
                raise VideoError(
                    DAMAGED, f"the file ends early: {position - size:,} bytes of its {name.decode()} are gone"
                )


def container_of(head: bytes) -> str:
    """FFmpeg's name of the video container that begins with `head`. Raises VideoError `not_a_video`.

    >>> container_of(bytes.fromhex("0000001c") + b"ftypisom")
    'mov'
    """
    if head[4:8] == b"ftyp" and head[8:12] in _PICTURE_BRANDS:
        raise VideoError("not_a_video", "it is a picture (HEIF or AVIF), whatever its name says")
    if head[4:8] in _ISO_BOXES:
        return "mov"
    for magic, name in (
        (b"\x1a\x45\xdf\xa3", "matroska"),
        (b"FLV\x01", "flv"),
        (b"\x30\x26\xb2\x75", "asf"),
        (b"OggS", "ogg"),
        (b"\x00\x00\x01\xba", "mpeg"),
    ):
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    for first, step in ((0, 188), (4, 192)):  # MPEG transport stream, plain and with 4-byte time stamps
        if head[first : first + 4 * step + 1 : step] == b"\x47" * 5:
            return "mpegts"
    raise VideoError("not_a_video", f"its content begins like no video file ({_describe(head)})")


def _describe(head: bytes) -> str:
    """What a file that is no video seems to be.

    >>> _describe(b"<!DOCTYPE html>")
    'text'
    """
    for magic, name in (
        (b"\xff\xd8\xff", "a JPEG picture"),
        (b"\x89PNG", "a PNG picture"),
        (b"GIF8", "a GIF picture"),
        (b"PK\x03\x04", "a ZIP archive"),
        (b"Rar!", "a RAR archive"),
        (b"\x1f\x8b", "a gzip archive"),
        (b"\0\0\0\1", "maybe a raw H.264 or HEVC stream; put it into an MP4: `ffmpeg -i IN -c copy OUT.mp4`"),
        (b"version https://git-lfs", "a Git LFS pointer: run `git lfs pull`"),
    ):
        if head.startswith(magic):
            return name
    if not any(head):
        return "only zeros"
    return "text" if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head[:256]) else "unknown bytes"


def _read_stream(container: Any, container_format: str, file_size: int) -> PacketTable:
    """The table of the first video stream that is no cover picture, as stored: without rotation."""
    from av.stream import Disposition

    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise VideoError("no_video_stream", "it holds no video stream")
    stream = streams[0]
    if stream.codec_context is None:
        raise VideoError("unsupported_codec", "its video is in a format that FFmpeg does not know")
    width, height = stream.codec_context.width, stream.codec_context.height
    _check_size(width, height)

    packets, are_shown_times = _read_packets(container, stream, file_size)
    in_order = np.sort(packets, order="time", kind="stable")
    _check_times(packets, in_order, _time_base(stream))
    shown = in_order[~in_order["discard"]]
    if not len(shown):
        raise VideoError("no_frames", "its video stream holds no frame to show")
    if width * height * len(shown) > MAX_VIDEO_PIXELS:
        raise VideoError("too_large", f"it has {len(shown):,} frames of {width}x{height}; cut it into parts")
    _check_edit_list(in_order, stream.duration)
    seconds = shown["time"] * _time_base(stream)
    seconds -= seconds[0]
    span = float(seconds[-1])
    mean_rate = (len(shown) - 1) / span if span > 0 else float(stream.average_rate or 0)
    return PacketTable(
        timestamps_seconds=seconds,
        keyframes=np.flatnonzero(shown["key"]).astype(np.int64),
        fps=mean_rate if math.isfinite(mean_rate) else 0.0,
        width=width,
        height=height,
        rotation=0,
        codec=stream.codec_context.codec.canonical_name,
        pixel_format=stream.codec_context.pix_fmt,
        discarded=int(packets["discard"].sum()),
        stream_index=stream.index,
        container=container_format,
        open_gops=_has_open_gops(packets),
        num_video_streams=len(streams),
        pts=shown["time"].copy() if are_shown_times and np.all(np.diff(shown["time"]) > 0) else None,
    )


def _has_open_gops(packets: npt.NDArray[np.void]) -> bool:
    """Whether a keyframe is followed, in decoding order, by a frame that is shown before it.

    >>> times = [0, 3, 1, 2, 6, 4, 5]  # I P B B I B B: the last two need the P before the second I
    >>> _has_open_gops(np.array([(time, False, time in (0, 6)) for time in times], dtype=_PACKET))
    True
    """
    earliest_to_come = np.minimum.accumulate(packets["time"][::-1])[::-1]
    return bool(np.any(earliest_to_come[packets["key"]] < packets["time"][packets["key"]]))


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise VideoError(DAMAGED, f"its picture size is {width}x{height}")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise VideoError("too_large", f"its picture size is {width}x{height}, more than {MAX_PIXELS:,} pixels")


_PACKET = np.dtype([("time", "<i8"), ("discard", "?"), ("key", "?")])


def _read_packets(container: Any, stream: Any, file_size: int) -> tuple[npt.NDArray[np.void], bool]:
    """All packets in decoding order, and whether their times are those of presentation.

    They are where the container has them for every packet; else they are the times of decoding, or mere numbers.
    """
    shown: list[int | None] = []  # flat lists: of a long video, rows would cost as much as reading it
    decoded: list[int | None] = []
    discard: list[bool] = []
    key: list[bool] = []
    num_bytes = 0
    for packet in container.demux(stream):
        size = packet.size
        if size == 0:  # the flush packet at the end, or a frame that an AVI dropped
            continue
        num_bytes += size
        if packet.is_corrupt:
            raise VideoError(DAMAGED, f"packet {len(key)} of its video stream is cut or damaged")
        shown.append(packet.pts)
        decoded.append(packet.dts)
        discard.append(packet.is_discard)
        key.append(packet.is_keyframe)
    _check_complete(stream, len(key), num_bytes, file_size)
    clocks = [None if None in times else np.array(times, dtype=np.int64) for times in (shown, decoded)]
    _check_clocks(*clocks)
    packets = np.zeros(len(key), dtype=_PACKET)
    packets["time"] = next((clock for clock in clocks if clock is not None), np.arange(len(key)))
    packets["discard"], packets["key"] = discard, key
    return packets, clocks[0] is not None


def _check_edit_list(in_order: npt.NDArray[np.void], duration: int | None) -> None:
    """Raises VideoError when an edit list hides the last frames and shows less than it says it does."""
    times = in_order["time"]
    last = np.flatnonzero(~in_order["discard"])[-1]
    if duration is None or last == len(times) - 1:
        return
    gap = np.median(np.diff(times))
    missing = duration - (times[last] - times[np.argmin(in_order["discard"])] + gap)
    if missing > _MAX_MISSING_FRAMES * gap:
        raise VideoError(DAMAGED, f"its edit list hides frames at the end, where {missing / gap:,.0f} are missing")


def _check_clocks(shown: npt.NDArray[np.int64] | None, decoded: npt.NDArray[np.int64] | None) -> None:
    """Raises VideoError when frames are decoded at a steady pace (pts, dts) but shown with holes or two at once.

    So it is after a damaged table of offsets from the one clock to the other; the decoders then give right pictures in
    an order that the times contradict. None: the container does not tell that time for every packet.
    """
    if shown is None or decoded is None or len(shown) < 3:
        return
    steps = np.diff(decoded)
    if steps[0] < 1 or np.any(steps != steps[0]):
        return
    gaps = np.diff(np.sort(shown))
    if gaps.min() < 0.5 * steps[0] or gaps.max() > 1.5 * steps[0]:
        raise VideoError(DAMAGED, "its frames are decoded at a steady pace, but its clock shows them at another")


def _check_times(packets: npt.NDArray[np.void], in_order: npt.NDArray[np.void], time_base: float) -> None:
    """Raises VideoError when the clock of the file cannot be true, which the decoders themselves do not mind."""
    gaps = np.diff(in_order["time"]) * time_base
    if gaps.size and np.median(gaps) > _MAX_GAP_SECONDS:
        raise VideoError(DAMAGED, f"its clock says that {np.median(gaps):,.0f} seconds pass from frame to frame")
    moved = np.argsort(packets["time"], kind="stable") - np.arange(len(packets))
    if moved.size and moved.max() > _MAX_REORDER:
        raise VideoError(DAMAGED, f"its clock puts a frame {moved.max()} places before those decoded ahead of it")


def _check_complete(stream: Any, num_packets: int, num_bytes: int, file_size: int) -> None:
    """Raises VideoError when the file ends before its own table of contents does."""
    entries = getattr(stream, "index_entries", ())  # PyAV 17 and newer
    if num_bytes <= file_size and num_packets >= len(entries):
        return
    lost = sum(entry.pos + entry.size > file_size for entry in entries)
    if lost or num_bytes > file_size:
        raise VideoError(DAMAGED, f"the file ends early: {lost:,} of its {len(entries):,} frames lie beyond its end")


def _first_frame(name: str, container_format: str, stream_index: int) -> tuple[int, bool]:
    """Rotation (degrees counter-clockwise) and interlacing, which only a decoded frame tells; (0, False) if none."""
    import av

    with _open(name, container_format) as container:
        stream = container.streams[stream_index]
        stream.codec_context.thread_count = 1
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except (av.error.FFmpegError, ValueError):  # the decoder of the build will meet it again, and say so
                continue
            if frames:
                return round(frames[0].rotation / 90) * 90 % 360, bool(frames[0].interlaced_frame)
    return 0, False


def _time_base(stream: Any) -> float:
    return float(stream.time_base) if stream.time_base else 0.0


def _plain(error: Exception) -> str:
    """The text of an error without the path that most of them hold."""
    return getattr(error, "strerror", None) or type(error).__name__


@contextlib.contextmanager
def openable_name(path: Path) -> Iterator[str]:
    """A name that every decoding library can open: absolute (FFmpeg takes `a:b.mp4` for a protocol) and UTF-8.

    A name that is not UTF-8 segfaults OpenCV and decord refuses it; on Linux the file is opened here and goes by the
    name of its descriptor.
    """
    name = os.path.abspath(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        if not os.path.isdir("/proc/self/fd"):
            raise VideoError(
                UNSUPPORTED, "the file name is not valid UTF-8, which this system cannot open; rename it"
            ) from None
        descriptor = os.open(path, os.O_RDONLY)
        try:
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        yield name
