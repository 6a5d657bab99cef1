"""Tasks of a worker process: probing a video's packets, and decoding clips into fragment files.

These functions run in the children of the supervisor: they take and return small picklable values, and a problem with
a video is a return value (`VideoFailure`), not an exception.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidshard.building import fetched_video
from vidshard.planning.config import BuildConfig
from vidshard.planning.shard_plan import Chunk
from vidshard.planning.video_metadata import Probe, VideoFailure, VideoMetadata
from vidshard.shards.layout import Clip, SampleRecord, frame_gap_seconds
from vidshard.shards.writer import FragmentWriter, Rows
from vidshard.sources.folders import Video
from vidshard.storage.urls import Location
from vidshard.video import damage, decoders, packets, sequence
from vidshard.video.decoders.base import Decoder
from vidshard.video.packets import PacketTable, VideoError
from vidshard.video.sampling import (
    Frame,
    SamplingConfig,
    VideoClips,
    find_breaks,
    place_frame,
    scaled_size,
)

_DECIMALS = 6  # decimal places of seconds and frames/s in a record


@dataclass(frozen=True, kw_only=True)
class ProbeJob:
    video_path: Location
    table_path: Path  # where to save the packet table for decoding
    sampling: SamplingConfig
    events: tuple[tuple[int, int], ...] = ()
    full_check: bool = False  # decode every frame now, not only those that clips need later
    allow_damaged: bool = False  # record the damage found by the full check instead of failing the video


@dataclass(frozen=True, kw_only=True)
class DecodeJob:
    """Consecutive chunks of one video to decode; each goes into its own fragment file."""

    video: Video
    split: str | None
    video_path: Location
    table_path: Path
    chunks: tuple[Chunk, ...]
    fragment_paths: tuple[Path, ...]
    config: BuildConfig
    damaged: bool = False  # known to be damaged, and allowed: flag the clips, ignore decoder warnings


@dataclass(frozen=True, kw_only=True)
class Decoded:
    decoder: str  # the decoder that read the video
    rows: tuple[Rows, ...]  # per chunk: its index rows, with offsets from the start of its fragment


def probe_video(job: ProbeJob) -> Probe:
    """Read the packet table of a video and save it at `table_path`."""
    try:
        with fetched_video.local_file(job.video_path) as path:
            table, damage_found = _read_and_check(job, path)
    except VideoError as error:
        return VideoFailure(reason=error.reason, message=error.message)
    clips_of_video = _clips(table, job.sampling, job.events)
    if not len(clips_of_video):
        message = f"it has {table.num_frames:,} frames, and its events begin after the last"
        return VideoFailure(reason="no_event", message=message)
    table.save(job.table_path)
    return VideoMetadata(
        num_frames=table.num_frames,
        fps=round(table.fps, _DECIMALS),
        width=table.width,
        height=table.height,
        num_clips=len(clips_of_video),
        damage=damage_found,
        breaks=len(find_breaks(table.timestamps_seconds)),
    )


def _read_and_check(job: ProbeJob, path: Path) -> tuple[PacketTable, str | None]:
    """Return the packet table, and the damage found if that is allowed. Raises VideoError."""
    with damage.capture_native_output():
        table = packets.read_packet_table(path)
        if not (job.full_check or job.allow_damaged):
            return _settle_suspicion(path, table), None
        found = _damaged_frames(path, table)
    if not found:
        return table, None
    message = _about_damage(found, min(found))
    if not job.allow_damaged:
        raise VideoError(packets.DAMAGED, message)
    return table, message


def _settle_suspicion(path: Path, table: PacketTable) -> PacketTable:
    """Add the damaged frames of a suspicious video, so that its jobs do not all decode it whole to find them."""
    if not table.suspicion:
        return table
    try:
        found = _damaged_frames(path, table)
    except VideoError:  # FFmpeg has no decoder for it: left to the decoders
        return table
    if not found:
        return dataclasses.replace(table, suspicion="")
    damaged = np.array(sorted(found), dtype=np.int64)
    return dataclasses.replace(table, suspicion=found[min(found)], damaged=damaged)


def _damaged_frames(path: Path, table: PacketTable) -> dict[int, str]:
    """Decode the whole video in sequence; return frame index → FFmpeg's message for each damaged frame."""
    found = sequence.decode_in_sequence(path, table.container, table.stream_index)
    if table.pts is None:
        if found.num_frames == table.num_frames:
            return found.damage
    else:
        index_of = {int(time): index for index, time in enumerate(table.pts)}
        indices = [index_of.get(time, -1) if time is not None else -1 for time in found.times]
        if all(b > a for a, b in itertools.pairwise([-1, *indices])):
            missing = dict.fromkeys(set(range(table.num_frames)).difference(indices), "it is not decoded at all")
            return missing | {indices[place]: message for place, message in found.damage.items()}
    message = f"{found.num_frames:,} frames are decoded, expected {table.num_frames:,}, or the order differs"
    return dict.fromkeys(range(table.num_frames), message)


def _about_damage(damaged: Mapping[int, str], frame_index: int) -> str:
    return f"frame {frame_index:,} is damaged, one of {len(damaged):,} ({damaged[frame_index]})"


def decode_chunks(job: DecodeJob) -> Decoded | VideoFailure:
    """Decode the clips of a job into its fragment files. Raises OSError if a fragment cannot be written."""
    try:
        with fetched_video.local_file(job.video_path) as path:
            return _Decoding(job, path).run()
    except VideoError as error:
        return VideoFailure(reason=error.reason, message=error.message)


class _Decoding:
    """One decode job: tries the decoders in turn and resolves every suspicion by sequential decoding."""

    def __init__(self, job: DecodeJob, path: Path) -> None:
        self.job = job
        self.path = path
        self.shape = job.config.shape
        self.table = PacketTable.load(job.table_path)
        self.clips = _clips(self.table, job.config.sampling, job.video.events)
        first, stop = job.chunks[0].clip_start, job.chunks[-1].clip_stop
        self.wanted = [self.clips[number] for number in range(first, stop)]
        self.needed = sorted(set().union(*self.wanted))  # each frame once, for a single decoding pass
        self._damaged: dict[int, str] | None = None  # unknown so far
        if self.table.damaged is not None:
            self._damaged = dict.fromkeys(self.table.damaged.tolist(), self.table.suspicion)
        # Holds the name of the active decoder. If the file already exists, that decoder crashed a worker.
        self._at_work = job.fragment_paths[0].with_suffix(".decoder")

    def run(self) -> Decoded | VideoFailure:
        # The decoders that crashed a worker on this job, once per crash.
        crashed = self._at_work.read_text().split() if self._at_work.exists() else []
        refusals: list[VideoError] = []
        for decoder in decoders.decoders_for(self.job.config.decoder):
            try:
                if crashed.count(decoder.name) > 1:
                    raise VideoError(packets.UNSUPPORTED, f"{decoder.name} crashes on it")
                self._at_work.write_text(" ".join([*crashed, decoder.name]))
                rows = self._decode(decoder)
                return Decoded(decoder=decoder.name, rows=rows)
            except VideoError as error:
                refusals.append(error)
                # Try another decoder if this one does not support the video; if it is damaged, only if that is allowed.
                if error.reason != packets.UNSUPPORTED and not (self.job.damaged and error.reason == packets.DAMAGED):
                    return VideoFailure(reason=error.reason, message=error.message)
            finally:
                self._at_work.unlink(missing_ok=True)
        damaged = self._damaged or any(error.reason == packets.DAMAGED for error in refusals)
        message = "; ".join(error.message for error in refusals)
        if not damaged and (others := decoders.others_than(self.job.config.decoder)):
            message += f"; not tried: {', '.join(others)} (`decoder`)"
        return VideoFailure(reason=packets.DAMAGED if damaged else packets.UNSUPPORTED, message=message)

    def _decode(self, decoder: Decoder) -> tuple[Rows, ...]:
        """Decode with one decoder. Raises VideoError; `damaged` only if damage affects the requested frames."""
        if self.job.damaged:
            return self._decode_once(decoder, in_sequence=False, check_messages=False)
        suspicion = VideoError(packets.DAMAGED, self.table.suspicion)
        if not self.table.suspicion:
            try:
                return self._decode_once(decoder, in_sequence=False, check_messages=True)
            except VideoError as error:
                if error.reason != packets.DAMAGED:
                    raise
                suspicion = error
        damaged = self._second_opinion(suspicion)
        if not damaged.keys().isdisjoint(self.needed):  # the same message for every job of a video
            raise VideoError(packets.DAMAGED, _about_damage(damaged, min(damaged))) from suspicion
        try:  # If other frames are damaged, the decoder's messages are about those.
            return self._decode_once(decoder, in_sequence=True, check_messages=not damaged)
        except VideoError as error:
            message = f"{decoder.name} does not read it correctly ({error.message})"
            raise VideoError(packets.UNSUPPORTED, message) from error

    def _second_opinion(self, suspicion: VideoError) -> dict[int, str]:
        if self._damaged is None:
            try:
                self._damaged = _damaged_frames(self.path, self.table)
            except VideoError:  # FFmpeg has no decoder for it, so the suspicion stands
                raise suspicion from None
        return self._damaged

    def _decode_once(self, decoder: Decoder, *, in_sequence: bool, check_messages: bool) -> tuple[Rows, ...]:
        """Decode once. Raises VideoError; `damaged` also for messages of the decoder, if `check_messages` is set."""
        job, first = self.job, self.job.chunks[0].clip_start
        with (
            damage.capture_native_output() as messages,
            # Closed here, not at garbage collection: an open reader continues to decode in a thread of its own, and
            # its messages about this video would be attributed to the next one.
            contextlib.closing(self._frames(decoder, in_sequence)) as frames,
        ):
            stream = clips_of(frames, self.needed, self.wanted)
            rows = []
            for chunk, fragment_path in zip(job.chunks, job.fragment_paths, strict=True):
                with FragmentWriter(
                    fragment_path, codec=job.config.codec, label_member=job.config.label_member
                ) as fragment:
                    for clip_index in range(chunk.clip_start, chunk.clip_stop):
                        clip = next(stream)
                        if clip.shape != self.shape.thwc:
                            raise ValueError(
                                f"{decoder.name} returned a clip of shape {clip.shape}, expected {self.shape.thwc}"
                            )
                        fragment.append(self._record(decoder.name, clip_index, self.wanted[clip_index - first]), clip)
                        if check_messages:
                            messages.refuse_damage(self.table.codec)
                        else:
                            messages.limit()
                rows.append(fragment.rows)
            # Decoders notice surplus frames only when asked for one more.
            if not job.damaged and next(frames, None) is not None:
                raise VideoError(packets.DAMAGED, f"{decoder.name} returns more frames than requested")
            if check_messages:
                messages.refuse_damage(self.table.codec)
        return tuple(rows)

    def _frames(self, decoder: Decoder, in_sequence: bool) -> Generator[Frame, None, None]:
        """Yield the frames of a decoder. Read errors fail the video; write errors fail the build."""
        table, to_height, to_width = self.table, self.shape.height, self.shape.width
        try:
            height, width = scaled_size(
                table.height,
                table.width,
                to_height=to_height,
                to_width=to_width,
                resize=self.job.config.resize,
                sample_aspect=table.sample_aspect,
            )
            for frame in decoder.frames(
                self.path, table, self.needed, height=height, width=width, in_sequence=in_sequence
            ):
                yield place_frame(frame, to_height, to_width)
        except OSError as error:
            raise VideoError("unreadable", f"reading it failed: {error.strerror or type(error).__name__}") from error

    def _record(self, decoder: str, clip_index: int, frame_indices: tuple[int, ...]) -> SampleRecord:
        job, table = self.job, self.table
        timestamps = [round(float(table.timestamps_seconds[index]), _DECIMALS) for index in frame_indices]
        repeated = sum(a == b for a, b in itertools.pairwise(frame_indices))
        # With a resampling rate, repeated frames are normal.
        too_short = repeated > 0 and (job.config.sampling.fps is None or self.clips.is_short(clip_index))
        flags = {"repeated": too_short, "damaged": job.damaged, "estimated_times": table.estimated_times}
        return SampleRecord(
            path=job.video.path,
            class_name=job.video.class_name,
            label=job.video.label,
            split=job.split,
            clip_index=clip_index,
            frame_indices=frame_indices,
            timestamps_seconds=tuple(timestamps),
            frame_gap_seconds=round(frame_gap_seconds(timestamps), _DECIMALS),
            fps=round(table.fps, _DECIMALS),
            num_frames=table.num_frames,
            decoder=decoder,
            repeated_frames=repeated,
            flags=tuple(name for name, is_set in flags.items() if is_set),
            recording=job.video.recording,
        )


def _clips(table: PacketTable, sampling: SamplingConfig, events: Sequence[tuple[int, int]]) -> VideoClips:
    return VideoClips(table.num_frames, sampling, timestamps_seconds=table.timestamps_seconds, events=events)


def clips_of(frames: Iterable[Frame], needed: Sequence[int], wanted: Sequence[Sequence[int]]) -> Iterator[Clip]:
    """Assemble clips from a stream of frames, holding only the frames that later clips need.

    `frames`: one for each frame index of `needed` (ascending). `wanted`: the frame indices of each clip; neither the
    first nor the last indices may decrease from clip to clip. Yields uint8 (T, H, W, 3). Raises VideoError if frames
    run out.

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
                raise VideoError(packets.DAMAGED, f"the decoder returned no frame {next(indices):,}")
            held[next(indices)] = frame
        yield np.stack([held[index] for index in clip])
        if number + 1 < len(wanted):
            held = {index: frame for index, frame in held.items() if index >= wanted[number + 1][0]}
