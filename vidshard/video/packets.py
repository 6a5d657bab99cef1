"""Frame times and keyframes of a video, read from its packets.

Only the first frame is decoded (for the orientation), so that a whole data set is planned in seconds. Headers are not
trusted: a container's frame count is only metadata, and wrong in most damaged files. Where packets are incomplete or
contradictory, the video is decoded in sequence and its frames are counted.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vidshard.util import atomic
from vidshard.video import containers, damage, sampling, sequence
from vidshard.video.containers import DAMAGED as DAMAGED
from vidshard.video.containers import UNSUPPORTED as UNSUPPORTED
from vidshard.video.containers import VideoError as VideoError
from vidshard.video.containers import openable_name as openable_name

MAX_PIXELS = 8192 * 4320  # a 198 KB file of 8192 × 8192 makes a decoder use 6 GiB
MAX_SIDE = 16384
MAX_VIDEO_PIXELS = 2 * 10**13  # all frames together: four days of 1920 × 1080 at 25 frames/s

_MAX_MISSING_FRAMES = 4  # at the end of an edit list
_MAX_GAP_SECONDS = 3600.0  # between frames; the slowest time-lapse recorders take one every few minutes
_MAX_REORDER = 32  # frames a decoder may hold back; H.264 and HEVC allow 16, interlaced fields twice that
_FIELD_PACKETS = 64  # of interlaced H.264 to examine; each may hold one field, half a frame
_MAX_ASPECT = 8.0  # of a pixel's width and height
_MAX_SHEAR = 0.01  # of the picture: one pixel in a hundred
_ASSUMED_RATE = 25.0  # frames/s, if the file does not say
_SMALL_STEP_BACK = 10  # frames
_OTHER_ORDER = "and decoding returns its frames in a different order"
_PLACEHOLDER_BYTES = 8  # packets up to this size in an AVI of MPEG-4 are not frames


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PacketTable:
    """The frames of one video in presentation order, edit list applied; N frames, K of them keyframes."""

    timestamps_seconds: npt.NDArray[np.float64]  # [N], from the first displayed frame
    keyframes: npt.NDArray[np.int64]  # [K] frame indices
    fps: float  # mean; 0.0 if unknown
    width: int  # as displayed: rotation applied
    height: int
    rotation: int  # degrees counter-clockwise, 0 to 359, that a player turns the stored picture
    codec: str  # FFmpeg's name, such as `h264`
    pixel_format: str | None
    discarded: int  # packets hidden by the edit list; decoders need them, viewers never see them
    stream_index: int
    container: str  # FFmpeg's name, such as `mov` (all MP4s) or `matroska`
    interlaced: bool = False
    open_gops: bool = False  # some keyframe is followed by frames shown before it, which a seek to it loses
    clean_keyframes: bool = True  # decoding can start at each of them; some containers flag other pictures, too
    suspicion: str = ""  # why frames may be damaged although decoders report nothing; decoding settles it
    damaged: npt.NDArray[np.int64] | None = None  # frame indices that decoding found; None if it was not asked
    counted: bool = False  # the packets were in doubt: the frames are the result of sequential decoding
    estimated_times: bool = False  # some frame has no time in the file, or the clock was reset
    mirrored: bool = False  # a player mirrors the stored picture left to right before rotating it
    sample_aspect: float = 1.0  # width of a pixel by its height, as displayed
    colorspace: int = 2  # colour matrix, as a number of ITU-T H.273; 2: unknown
    time_base: float = 0.0  # seconds per unit of `pts`
    nominal_rate: float = 25.0  # frames/s, as stated in the file
    num_video_streams: int = 1  # without cover pictures; the table describes the first
    # [N] the same times in units of the stream, which FFmpeg returns with each decoded frame; None if the container
    # does not store when each frame is shown, or shows two frames at once.
    pts: npt.NDArray[np.int64] | None = None

    @property
    def num_frames(self) -> int:
        return len(self.timestamps_seconds)

    def save(self, path: Path) -> None:
        """Write the table as `.npz`, atomically."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["pixel_format"] = self.pixel_format or ""
        for name in ("pts", "damaged"):
            fields[name] = np.zeros(0, np.int64) if fields[name] is None else fields[name]
        with atomic.atomic_open(path) as file:
            np.savez(file, **fields)

    @classmethod
    def load(cls, path: Path) -> PacketTable:
        """Load a table written by `save`."""
        with np.load(path, allow_pickle=False) as arrays:
            fields: dict[str, Any] = {name: arrays[name] for name in arrays.files}
        for name, value in fields.items():
            if value.ndim == 0:
                fields[name] = value.item()
        for name in ("pts", "damaged"):  # a table of version 0.1 has no `damaged`
            fields[name] = fields[name] if len(fields.get(name, ())) else None
        return cls(**{**fields, "pixel_format": fields["pixel_format"] or None})


def read_packet_table(path: Path) -> PacketTable:
    """Read the packets of the first video stream (cover pictures not counted) of the file at `path`.

    Raises VideoError, with one of the reasons `unreadable`, `not_a_regular_file`, `empty_file`, `not_a_video`,
    `no_video_stream`, `unsupported_codec`, `no_frames`, `too_large`, `damaged`.
    """
    import av  # imported here, so that loading a table does not need FFmpeg

    head, size = containers.read_head(path)
    container_format = containers.container_format(head)
    try:
        if container_format == "mov":
            containers.check_boxes(path, size)
        is_cut = container_format == "avi" and containers.riff_is_cut(path, size)
        with damage.ffmpeg_messages() as messages:
            with openable_name(path) as name, containers.open_container(name, container_format) as container:
                table, doubt = _read_stream(container, container_format, size)
                promised = container.streams[table.stream_index].frames
            error_text = messages.reader_error()
            if error_text is not None:
                raise VideoError(DAMAGED, f"FFmpeg says: {error_text}")
            if is_cut:
                _check_length(table, promised)
            error_text = messages.reader_error(["mov"])  # it complains about intact files, too
            if error_text is not None:
                _check_counts(path, table, error_text)
        table, holds_fields = _with_first_frame(path, table)
        gc.collect(0)  # PyAV's side data and their frame refer to each other: one picture more in memory for each video
        if holds_fields and doubt is None:
            doubt = _Doubt("its packets contain fields", "complete")
        if doubt is not None:
            table = _settle(path, table, doubt)
    except VideoError:
        raise
    except MemoryError as error:
        raise VideoError("too_large", "reading its packets needs more memory than is available") from error
    except (av.error.FFmpegError, OSError, ValueError, ArithmeticError, RuntimeError) as error:
        containers.raise_fault_of_machine(error)
        raise VideoError(DAMAGED, f"its packets cannot be read: {containers.plain_text(error)}") from error
    return table


def _read_stream(container: Any, container_format: str, file_size: int) -> tuple[PacketTable, _Doubt | None]:
    """Return the table of the first video stream (no cover picture), as stored, and a reason to doubt it, if any."""
    from av.stream import Disposition

    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise VideoError("no_video_stream", "it contains no video stream")
    stream = streams[0]
    if stream.codec_context is None:
        raise VideoError("unsupported_codec", "its video has a format that FFmpeg does not support")
    width, height = stream.codec_context.width, stream.codec_context.height
    _check_size(width, height)

    packets = _read_packets(container, stream, file_size)
    in_order = np.sort(packets.rows, order="time", kind="stable")
    shown = in_order[~in_order["discard"]]
    if not len(shown):
        raise VideoError("no_frames", "its video stream contains no frame to show")
    if width * height * len(shown) > MAX_VIDEO_PIXELS:
        raise VideoError("too_large", f"it has {len(shown):,} frames of {width}x{height}; cut it into parts")
    _check_pace(in_order["time"] * _time_base(stream))
    seconds = shown["time"] * _time_base(stream)
    seconds -= seconds[0]
    table = PacketTable(
        timestamps_seconds=seconds,
        keyframes=np.flatnonzero(shown["key"]).astype(np.int64),
        fps=_mean_rate(seconds, float(stream.average_rate or 0)),
        width=width,
        height=height,
        rotation=0,
        codec=stream.codec_context.codec.canonical_name,
        pixel_format=stream.codec_context.pix_fmt,
        discarded=int(packets.rows["discard"].sum()),
        stream_index=stream.index,
        container=container_format,
        open_gops=_has_open_gops(packets.rows),
        clean_keyframes=packets.clean_keyframes,
        suspicion=sequence.ZEROS if packets.has_zeros else "",
        num_video_streams=len(streams),
        pts=shown["time"].copy() if packets.shown is not None and np.all(np.diff(shown["time"]) > 0) else None,
        sample_aspect=_sample_aspect(stream),
        time_base=_time_base(stream),
        nominal_rate=float(stream.average_rate or stream.base_rate or _ASSUMED_RATE),
    )
    doubt = packets.doubt(container_format, stream, in_order)
    _check_edit_list(in_order, stream.duration, is_one_part=doubt is None)
    return table, doubt


def _sample_aspect(stream: Any) -> float:
    aspect = float(stream.sample_aspect_ratio or 1)
    return aspect if 1 / _MAX_ASPECT <= aspect <= _MAX_ASPECT else 1.0  # players ignore implausible values, too


def _mean_rate(seconds: npt.NDArray[np.float64], nominal_rate: float) -> float:
    """Return the mean frame rate of a recording in frames/s, without its breaks.

    >>> _mean_rate(np.array([0.0, 0.5, 1.0, 1.5, 36001.5, 36002.0]), 25.0)
    2.0
    """
    gaps = np.delete(np.diff(seconds), sampling.find_breaks(seconds) - 1)
    span = float(gaps.sum()) if len(gaps) < len(seconds) - 1 else float(seconds[-1] - seconds[0])
    rate = len(gaps) / span if span > 0 else nominal_rate
    return rate if math.isfinite(rate) else 0.0


def _has_open_gops(packets: npt.NDArray[np.void]) -> bool:
    """Return True if a keyframe is followed, in decoding order, by a frame that is shown before it.

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


@dataclasses.dataclass(frozen=True)
class _Doubt:
    """Reason why the packets of a video may not match its frames one to one, at their times."""

    why: str
    # State of the times in the file: `complete`, so that decoding must confirm them; `unordered`, correct but in
    # decoding order; `partial`, some missing or from another clock.
    times: Literal["complete", "unordered", "partial"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Packets:
    """All packets of a stream in decoding order."""

    rows: npt.NDArray[np.void]  # `_PACKET`; time: presentation, else decoding, else number
    shown: npt.NDArray[np.int64] | None  # presentation times; None if any is missing
    decoded: npt.NDArray[np.int64] | None  # decoding times; None if any is missing
    clean_keyframes: bool
    has_corrupt: bool
    has_zeros: bool
    has_placeholders: bool

    def doubt(self, container_format: str, stream: Any, in_order: npt.NDArray[np.void]) -> _Doubt | None:
        """Return why the packets may not match the frames one to one, at their times; None if there is no doubt."""
        reorders = bool(stream.codec_context.has_b_frames)
        if self.shown is None:
            return _Doubt("some of its packets have no presentation time", "partial")
        if container_format == "avi" and (reorders or self.has_placeholders):
            return _Doubt("an AVI does not record when its frames are shown", "unordered")
        if reorders and self.decoded is not None and len(self.shown) > 1 and np.array_equal(self.shown, self.decoded):
            return _Doubt("its packets have decoding times, but no presentation times", "unordered")
        why = self._contradiction(in_order)
        if why is not None:
            return _Doubt(why, "complete" if container_format in ("mov", "matroska") else "partial")
        if np.any(np.diff(in_order["time"]) == 0):
            return _Doubt("two of its frames have the same time", "partial")
        return None

    def _contradiction(self, in_order: npt.NDArray[np.void]) -> str | None:
        assert self.shown is not None
        if self.has_corrupt:
            return "one of its packets is cut off or damaged"
        if self.decoded is not None and np.any(np.diff(self.decoded) <= 0):
            return "its timestamps run backwards"
        if self.decoded is not None and not _is_steady(self.shown, self.decoded, self.rows["key"]):
            return "its frames are decoded at a steady pace, but not shown at one"
        hidden = in_order["discard"]
        if np.any(np.diff(hidden.astype(np.int8)) > 0) and np.any(np.diff(hidden.astype(np.int8)) < 0):
            return "its edit list shows several parts of it"
        moved = np.argsort(self.rows["time"], kind="stable") - np.arange(len(self.rows))
        if moved.max() > _MAX_REORDER:
            return f"its timestamps move a frame {moved.max()} places ahead of frames decoded before it"
        return None


def _read_packets(container: Any, stream: Any, file_size: int) -> _Packets:
    shown: list[int | None] = []  # flat lists: for a long video, rows would cost as much as reading it
    decoded: list[int | None] = []
    discard: list[bool] = []
    key: list[bool] = []
    sizes: list[int] = []
    has_corrupt = has_zeros = False
    codec, length_bytes = stream.codec_context.name, sequence.length_bytes(stream)
    may_have_zeros = codec in ("h264", "hevc")
    clean = True
    for packet in container.demux(stream):
        size = packet.size
        if size == 0:  # the flush packet at the end, or a frame that an AVI dropped
            continue
        sizes.append(size)
        shown.append(packet.pts)
        decoded.append(packet.dts)
        discard.append(packet.is_discard)
        is_key = packet.is_keyframe
        key.append(is_key)
        if packet.is_corrupt:
            has_corrupt = True
        if may_have_zeros and sequence.ZERO_RUN in (data := bytes(packet)):
            has_zeros = has_zeros or sequence.holds_zeros(codec, data, length_bytes)
        if is_key and clean:
            clean = _starts_afresh(codec, memoryview(packet), length_bytes)
    num_bytes, smallest = sum(sizes), min(sizes, default=0)
    _check_complete(stream, len(key), num_bytes, file_size)
    clocks = [None if None in times else np.array(times, dtype=np.int64) for times in (shown, decoded)]
    rows = np.zeros(len(key), dtype=_PACKET)
    rows["time"] = next((clock for clock in clocks if clock is not None), np.arange(len(key)))
    rows["discard"], rows["key"] = discard, key
    return _Packets(
        rows=rows,
        shown=clocks[0],
        decoded=clocks[1],
        clean_keyframes=clean,
        has_corrupt=has_corrupt,
        has_zeros=has_zeros,
        has_placeholders=codec == "mpeg4" and smallest <= _PLACEHOLDER_BYTES,
    )


def _starts_afresh(codec: str, data: memoryview, length_bytes: int) -> bool:
    """Return True if a packet flagged as a keyframe is one: an IDR, IRAP or I picture.

    Cameras and editors flag other pictures, too; decord trusts the flag and returns wrong frames after a seek.

    >>> _starts_afresh("h264", memoryview(bytes.fromhex("00000002 0910 00000003 658880")), 4)
    True
    >>> _starts_afresh("h264", memoryview(bytes.fromhex("00000002 0910 00000003 419a02")), 4)
    False
    """
    if codec == "mpeg4":
        place = bytes(data[: 1 << 16]).find(b"\0\0\1\xb6")
        return not 0 <= place < len(data) - 4 or data[place + 4] >> 6 == 0
    if codec not in ("h264", "hevc") or not length_bytes:
        return True
    place = 0
    while place + length_bytes < len(data):
        header = data[place + length_bytes]
        if codec == "h264" and header & 31 in (1, 2, 5):  # slices; 5 is an IDR picture
            return header & 31 == 5
        if codec == "hevc" and header >> 1 & 63 < 32:  # slices; 16 to 23 are IRAP pictures
            return 16 <= header >> 1 & 63 <= 23
        place += length_bytes + int.from_bytes(data[place : place + length_bytes], "big")
    return True


def _check_edit_list(in_order: npt.NDArray[np.void], duration: int | None, *, is_one_part: bool) -> None:
    """Raise VideoError if an edit list hides the last frames and shows less than it claims, or less than a frame.

    `is_one_part`: it shows one continuous part; only then does its length have to match what it shows.
    """
    times = in_order["time"]
    last = np.flatnonzero(~in_order["discard"])[-1]
    if duration is None or last == len(times) - 1:
        return
    gap = np.median(np.diff(times))
    if duration < 0.5 * gap:
        raise VideoError(DAMAGED, "its edit list shows less than one frame")
    if not is_one_part:
        return
    missing = duration - (times[last] - times[np.argmin(in_order["discard"])] + gap)
    if missing > _MAX_MISSING_FRAMES * gap:
        raise VideoError(DAMAGED, f"its edit list hides frames at the end, where {missing / gap:,.0f} are missing")


def _is_steady(shown: npt.NDArray[np.int64], decoded: npt.NDArray[np.int64], key: npt.NDArray[np.bool_]) -> bool:
    """Return True unless frames are decoded at a steady pace but not shown at a steady pace.

    Damage to the table of offsets between the two clocks breaks this rule. Frames removed by a cut without re-encoding
    are not damage: a decoder never receives them, and they are shown just before a keyframe or the end.

    >>> decoded, key = np.arange(0, 60, 10), np.arange(6) == 0  # I P B B P P
    >>> _is_steady(np.array([20, 50, 30, 40, 80, 70]), decoded, key)  # without the B shown at 60
    True
    >>> _is_steady(np.array([20, 53, 30, 40, 70, 60]), decoded, key)  # the first P has another offset than it should
    True
    >>> _is_steady(np.array([20, 93, 30, 40, 70, 60]), decoded, key)
    False
    """
    steps = np.diff(decoded)
    if not len(steps) or steps[0] < 1 or np.any(steps != steps[0]):
        return True
    step = int(steps[0])
    order = np.argsort(shown, kind="stable")
    gaps = np.diff(shown[order])
    if np.all((gaps > 0.5 * step) & (gaps < 1.5 * step)):
        return True
    if np.any(gaps < 0.5 * step) or np.any(np.abs(gaps - np.rint(gaps / step) * step) > 0.5):
        return False
    # A frame may be missing only as far before the next keyframe, or the end, as frames are moved by reordering.
    moved = int(np.max(order - np.arange(len(order)), initial=0)) + 1
    ends = np.append(np.flatnonzero(key[order]), len(order))
    holes = np.flatnonzero(gaps > 1.5 * step) + 1  # the frame after each
    return bool(np.all(ends[np.searchsorted(ends, holes)] - holes <= moved) and gaps.max() <= (moved + 1.5) * step)


def _check_pace(seconds: npt.NDArray[np.float64]) -> None:
    """Raise VideoError if the timestamps of the file are impossible; decoders themselves do not check this."""
    gaps = np.diff(seconds)
    if gaps.size and np.median(gaps) > _MAX_GAP_SECONDS:
        raise VideoError(DAMAGED, f"by its timestamps, its frames are {np.median(gaps):,.0f} seconds apart (median)")


def _check_complete(stream: Any, num_packets: int, num_bytes: int, file_size: int) -> None:
    """Raise VideoError if the file ends before the last frame of its own index."""
    entries = getattr(stream, "index_entries", ())  # PyAV 17 and newer
    if num_bytes <= file_size and num_packets >= len(entries):
        return
    lost = sum(entry.pos + entry.size > file_size for entry in entries)
    if lost or (num_bytes > file_size and not entries):  # an edit list may repeat packets
        raise VideoError(DAMAGED, f"the file ends early: {lost:,} of its {len(entries):,} frames lie beyond its end")


def _check_length(table: PacketTable, promised: int) -> None:
    """Raise VideoError if a truncated AVI is shorter than its header says: `promised` units of time."""
    last = table.timestamps_seconds[-1] / table.time_base if table.time_base else 0.0
    if last + 2 * last / max(1, table.num_frames - 1) < promised:
        raise VideoError(DAMAGED, f"the file ends early: its header declares {promised * table.time_base:,.1f} seconds")


def _check_counts(path: Path, table: PacketTable, error_text: str) -> None:
    """Raise VideoError if an MP4 has times for more frames than it has positions."""
    with openable_name(path) as name, containers.open_container(name, table.container, edit_list=False) as container:
        stream = container.streams[table.stream_index]
        entries = getattr(stream, "index_entries", None)  # PyAV 17 and newer
        if entries is not None and len(entries) < stream.frames:
            message = f"its tables have the times of {stream.frames:,} frames and the places of {len(entries):,}"
            raise VideoError(DAMAGED, f"{message} (FFmpeg says: {error_text})")


def _with_first_frame(path: Path, table: PacketTable) -> tuple[PacketTable, bool]:
    """Add the properties that only a decoded frame shows; also return True if the first packets contain fields, half
    a frame each."""
    import av

    frame = None
    with openable_name(path) as name, containers.open_container(name, table.container) as container:
        stream = container.streams[table.stream_index]
        stream.codec_context.thread_count = 1
        for packet in container.demux(stream):
            try:
                frame = next(iter(packet.decode()), None)
            except (av.error.FFmpegError, ValueError):  # the decoder of the build will hit it again and report it
                continue
            if frame is not None:
                break
    if frame is None:
        return table, False
    interlaced = bool(frame.interlaced_frame)
    rotation, mirrored = _orientation(frame)
    width, height, aspect = table.width, table.height, table.sample_aspect
    if rotation % 180 == 90:
        width, height, aspect = height, width, 1 / aspect
    table = dataclasses.replace(
        table,
        width=width,
        height=height,
        sample_aspect=aspect,
        rotation=rotation,
        mirrored=mirrored,
        interlaced=interlaced,
        colorspace=int(frame.colorspace),
    )
    if not interlaced or table.codec != "h264":
        return table, False
    start = sequence.decode_in_sequence(path, table.container, table.stream_index, max_packets=_FIELD_PACKETS)
    return table, 2 * start.num_frames < start.num_packets + 1 or start.num_frames + _MAX_REORDER < start.num_packets


def _orientation(frame: Any) -> tuple[int, bool]:
    """Return how a player orients the stored picture: degrees counter-clockwise, and whether it is mirrored first.

    Raises VideoError `damaged` if the display matrix would shear or stretch the picture, which no camera requests.

    >>> import types
    >>> _orientation(types.SimpleNamespace(side_data={}))
    (0, False)
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return 0, False
    a, b, _, c, d = np.frombuffer(bytes(data), "<i4" if sys.byteorder == "little" else ">i4")[:5].astype(float)
    width, height = math.hypot(a, b), math.hypot(c, d)
    if abs(a * c + b * d) > _MAX_SHEAR * width * height or max(width, height) > _MAX_ASPECT * min(width, height):
        raise VideoError(DAMAGED, "its header asks players to shear or stretch the picture")
    mirrored = bool(a * d - b * c < 0)
    if mirrored:
        a, b = -a, -b
    return round(-math.degrees(math.atan2(b, a))) % 360, mirrored


def _settle(path: Path, table: PacketTable, doubt: _Doubt) -> PacketTable:
    """Resolve the doubt about a video's packets by decoding it in sequence, and return the corrected table.

    Raises VideoError `damaged` if frames are lost, or if the clock contradicts the decoding order.
    """
    found = sequence.decode_in_sequence(path, table.container, table.stream_index)
    if found.num_lost or not found.num_frames:
        raise VideoError(DAMAGED, f"{doubt.why}, and FFmpeg cannot decode all of it: {found.loss or 'no frame at all'}")
    if doubt.times == "complete" and table.discarded and not _hidden_are_in_order(path, table):
        raise VideoError(DAMAGED, f"{doubt.why}, {_OTHER_ORDER}")
    if table.pts is not None and found.times == table.pts.tolist():
        return dataclasses.replace(table, counted=table.discarded > 0)  # the packets were right
    if doubt.times == "unordered" and None not in found.times:
        times = np.sort(np.array(found.times, dtype=np.float64))
        is_estimated = bool(np.any(np.diff(times) <= 0))
    else:
        times, is_estimated = _rising_times(found.times, 1 / (table.nominal_rate * table.time_base))
    if doubt.times == "complete" and (is_estimated or times.tolist() != found.times):
        raise VideoError(DAMAGED, f"{doubt.why}, {_OTHER_ORDER}")
    if is_estimated and doubt.times == "unordered":
        times = times[0] + np.arange(len(times)) / (table.nominal_rate * table.time_base)
    seconds = (times - times[0]) * table.time_base
    return dataclasses.replace(
        table,
        timestamps_seconds=seconds,
        keyframes=np.array(found.keyframes, dtype=np.int64),
        fps=_mean_rate(seconds, table.nominal_rate),
        pts=None,
        discarded=0,
        counted=True,
        estimated_times=is_estimated,
    )


def _hidden_are_in_order(path: Path, table: PacketTable) -> bool:
    """Return True if the frames, including those hidden by an edit list, are decoded in the order of their times.

    A frame hidden between shown ones is hidden because its time is wrong.
    """
    times = sequence.decode_in_sequence(path, table.container, table.stream_index, edit_list=False).times
    return all(a is not None and b is not None and a < b for a, b in itertools.pairwise(times))


def _rising_times(times: Sequence[int | None], step: float) -> tuple[npt.NDArray[np.float64], bool]:
    """Return ascending times for frames in presentation order, and whether any had to be estimated.

    `step`: the nominal time between frames. Frames without a time are spaced evenly between those that have one. A
    clock that was reset continues from where it was.

    >>> _rising_times([None, 10, None, 14, None], 2.0)
    (array([ 8., 10., 12., 14., 16.]), True)
    >>> _rising_times([9000, 9001, 0, 1], 1.0)
    (array([9000., 9001., 9002., 9003.]), True)
    >>> _rising_times([0, 1, 5], 1.0)
    (array([0., 1., 5.]), False)
    """
    places: list[int] = []
    known: list[float] = []
    offset = 0.0
    for place, time in enumerate(times):
        if time is None:
            continue
        if known and time + offset <= known[-1]:
            if time + offset == known[-1]:  # two frames at one moment: FFmpeg gave the time to the first by mistake
                places[-1] = place
                continue
            if known[-1] - (time + offset) < _SMALL_STEP_BACK * step:  # a slightly wrong guess of FFmpeg
                continue
            offset = known[-1] + (place - places[-1]) * step - time
        places.append(place)
        known.append(time + offset)
    if not known:
        return np.arange(len(times), dtype=np.float64) * step, True
    everywhere = np.arange(len(times))
    rising: npt.NDArray[np.float64] = np.interp(everywhere, places, known)
    rising[: places[0]] = known[0] - (places[0] - everywhere[: places[0]]) * step
    rising[places[-1] :] = known[-1] + (everywhere[places[-1] :] - places[-1]) * step
    return rising, len(places) < len(times) or offset != 0


def _time_base(stream: Any) -> float:
    return float(stream.time_base) if stream.time_base else 0.0
