"""What a worker process does: read a video's packets, or decode some of its clips into part files.

The functions here run in the children of the supervisor: they take and return small picklable values, and whatever is
wrong with a video is a value too (`Rejected`), not an exception.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidshard import clips, damage, decoders, fetched_video, packets
from vidshard.clips import Frame, SamplingConfig, VideoClips
from vidshard.decoders import Decoder
from vidshard.packets import PacketTable, VideoError
from vidshard.planner import Unit
from vidshard.shard_format import Clip, ClipShape, SampleRecord
from vidshard.shard_writer import PartWriter, Rows
from vidshard.sources import Video
from vidshard.storage import Location

_DECIMALS = 6  # of seconds and frames per second in a record: microseconds


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A video that cannot be used: a reason code, and a message for people without any absolute path."""

    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class ProbeJob:
    video_path: Location
    table_path: Path  # where the packet table is kept for those who decode
    sampling: SamplingConfig
    events: tuple[tuple[int, int], ...] = ()
    full_check: bool = False  # decode every frame now, not only later those that clips need
    allow_damaged: bool = False  # what the full check finds is a fact, not a rejection


@dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """What planning and the index need to know of a video."""

    num_frames: int
    fps: float
    width: int
    height: int
    num_clips: int
    breaks: int = 0  # see `clips.find_breaks`
    damage: str | None = None  # what the full check found, where damaged videos are allowed


@dataclass(frozen=True, kw_only=True)
class DecodeJob:
    """Consecutive units of one video; each goes into a part file of its own."""

    video: Video
    split: str | None
    video_path: Location
    table_path: Path
    units: tuple[Unit, ...]
    part_paths: tuple[Path, ...]
    sampling: SamplingConfig
    shape: ClipShape
    decoder: str  # `auto` or one by name
    resize: str = "squash"
    codec: str = "raw"
    damaged: bool = False  # known to be, and allowed: its clips are flagged, and what the decoder says is no news


@dataclass(frozen=True, kw_only=True)
class Decoded:
    decoder: str  # which one served
    rows: tuple[Rows, ...]  # for each unit: its index rows, offsets from the start of its part


def probe_video(job: ProbeJob) -> VideoFacts | Rejected:
    """Read the packet table of a video and keep it at `table_path`."""
    try:
        with fetched_video.local_file(job.video_path) as path:
            table, damage_found = _read_and_check(job, path)
    except VideoError as error:
        return Rejected(reason=error.reason, message=error.message)
    clips_of_video = _clips(table, job.sampling, job.events)
    if not len(clips_of_video):
        message = f"it has {table.num_frames:,} frames, and its events begin behind them"
        return Rejected(reason="no_event", message=message)
    table.save(job.table_path)
    return VideoFacts(
        num_frames=table.num_frames,
        fps=round(table.fps, _DECIMALS),
        width=table.width,
        height=table.height,
        num_clips=len(clips_of_video),
        breaks=len(clips.find_breaks(table.timestamps_seconds)),
        damage=damage_found,
    )


def _read_and_check(job: ProbeJob, path: Path) -> tuple[PacketTable, str | None]:
    """The packet table, and what damage there is if that is allowed. Raises VideoError."""
    with damage.listening() as messages:
        table = packets.read_packet_table(path)
        try:
            messages.refuse_damage(table.codec)
            if job.full_check or job.allow_damaged:
                decoders.check_all_frames(path, table)
                messages.refuse_damage(table.codec)
        except VideoError as error:
            if error.reason != packets.DAMAGED or not job.allow_damaged:
                raise
            return table, error.message
    return table, None


def decode_units(job: DecodeJob) -> Decoded | Rejected:
    """Decode the clips of a job into its part files. Raises OSError when a part cannot be written."""
    try:
        with fetched_video.local_file(job.video_path) as path:
            return _decode_units(job, path)
    except VideoError as error:
        return Rejected(reason=error.reason, message=error.message)


def _decode_units(job: DecodeJob, path: Path) -> Decoded | Rejected:
    table = PacketTable.load(job.table_path)
    # Another decoder is asked for what one does not support; for what is damaged only where that is no secret.
    may_retry = {packets.UNSUPPORTED, packets.DAMAGED} if job.damaged else {packets.UNSUPPORTED}
    refusals: list[VideoError] = []
    for decoder in decoders.decoders_for(job.decoder):
        try:
            with damage.listening() as messages:
                return Decoded(decoder=decoder.name, rows=_decode_with(decoder, table, job, path, messages))
        except VideoError as error:
            refusals.append(error)
            if error.reason not in may_retry:
                return Rejected(reason=error.reason, message=error.message)
    reasons = {error.reason for error in refusals}
    reason = packets.DAMAGED if packets.DAMAGED in reasons else packets.UNSUPPORTED
    message = "; ".join(error.message for error in refusals)
    if reason == packets.UNSUPPORTED and (others := decoders.others_than(job.decoder)):
        message += f"; not asked: {', '.join(others)} (--decoder)"
    return Rejected(reason=reason, message=message)


def _decode_with(
    decoder: Decoder, table: PacketTable, job: DecodeJob, path: Path, messages: damage.Messages
) -> tuple[Rows, ...]:
    first, stop = job.units[0].clip_start, job.units[-1].clip_stop
    clips_of_video = _clips(table, job.sampling, job.video.events)
    wanted = [clips_of_video[number] for number in range(first, stop)]
    needed = sorted(set().union(*wanted))  # each frame once: the decoder is opened once and runs through
    # Closed here, not when the garbage is collected: a reader that is left alive decodes on in a thread of its own, and
    # what it says of this video would be heard while the next one is decoded.
    with contextlib.closing(_frames(decoder, table, job, path, needed)) as frames:
        stream = clips_of(frames, needed, wanted)
        rows = []
        for unit, part_path in zip(job.units, job.part_paths, strict=True):
            with PartWriter(part_path, codec=job.codec) as part:
                for clip_index in range(unit.clip_start, unit.clip_stop):
                    clip = next(stream)
                    if clip.shape != job.shape.thwc:
                        raise ValueError(f"decoder {decoder.name} gave a clip {clip.shape}, expected {job.shape.thwc}")
                    indices = wanted[clip_index - first]
                    part.append(
                        _record(job, table, decoder.name, clip_index, indices, clips_of_video.is_short(clip_index)),
                        clip,
                    )
                    if not job.damaged:
                        messages.refuse_damage(table.codec)
            rows.append(part.rows)
        if not job.damaged:
            # Decoders look behind the last frame of the video, but only when they are asked for one more.
            if next(frames, None) is not None:
                raise VideoError(packets.DAMAGED, f"{decoder.name} gives more frames than it was asked for")
            messages.refuse_damage(table.codec)
    return tuple(rows)


def _frames(
    decoder: Decoder, table: PacketTable, job: DecodeJob, path: Path, needed: Sequence[int]
) -> Generator[Frame, None, None]:
    """The frames of a decoder. A video that cannot be read is its own fault; a part that cannot be written is not."""
    try:
        to_height, to_width = job.shape.height, job.shape.width
        height, width = clips.scaled_size(
            table.height, table.width, to_height=to_height, to_width=to_width, resize=job.resize
        )
        for frame in decoder.frames(path, table, needed, height=height, width=width):
            yield clips.place_frame(frame, to_height, to_width)
    except OSError as error:
        raise VideoError("unreadable", f"reading it failed: {error.strerror or type(error).__name__}") from error


def _clips(table: PacketTable, sampling: SamplingConfig, events: Sequence[tuple[int, int]]) -> VideoClips:
    return VideoClips(table.num_frames, sampling, timestamps_seconds=table.timestamps_seconds, events=events)


def clips_of(frames: Iterable[Frame], needed: Sequence[int], wanted: Sequence[Sequence[int]]) -> Iterator[Clip]:
    """Build clips from a stream of frames, holding only those that the next clips still want.

    `frames`: one for each frame index of `needed` (rising). `wanted`: the frame indices of each clip; neither the first
    nor the last ones may fall from clip to clip. Yields uint8 (T, H, W, 3). Raises VideoError when frames run out.

    >>> frames = [np.full((1, 1, 3), i, np.uint8) for i in (0, 1, 2, 3)]
    >>> [clip[:, 0, 0, 0].tolist() for clip in clips_of(frames, (0, 1, 2, 3), [(0, 1), (1, 2), (3, 3)])]
    [[0, 1], [1, 2], [3, 3]]
    """
    stream = iter(frames)
    indices = iter(needed)
    held: dict[int, Frame] = {}
    for number, clip in enumerate(wanted):
        while clip[-1] not in held:
            frame = next(stream, None)
            if frame is None:
                raise VideoError(packets.DAMAGED, f"it gave no frame {next(indices):,} although its packets promise it")
            held[next(indices)] = frame
        yield np.stack([held[index] for index in clip])
        if number + 1 < len(wanted):
            held = {index: frame for index, frame in held.items() if index >= wanted[number + 1][0]}


def _record(
    job: DecodeJob, table: PacketTable, decoder: str, clip_index: int, frame_indices: tuple[int, ...], is_short: bool
) -> SampleRecord:
    timestamps = [round(float(table.timestamps_seconds[index]), _DECIMALS) for index in frame_indices]
    repeated = sum(a == b for a, b in itertools.pairwise(frame_indices))
    too_short = repeated > 0 and is_short  # in resampled time frames repeat anyway
    return SampleRecord(
        path=job.video.path,
        class_name=job.video.class_name,
        label=job.video.label,
        split=job.split,
        clip_index=clip_index,
        frame_indices=frame_indices,
        timestamps_seconds=tuple(timestamps),
        frame_gap_seconds=round(clips.frame_gap_seconds(timestamps), _DECIMALS),
        fps=round(table.fps, _DECIMALS),
        num_frames=table.num_frames,
        decoder=decoder,
        repeated_frames=repeated,
        flags=("repeated",) * too_short + ("damaged",) * job.damaged,
        source_group=job.video.source_group,
    )
