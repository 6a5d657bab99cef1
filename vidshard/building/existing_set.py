"""Reuse of an existing set for --retry-failed and --extend.

Existing samples are not decoded again: if a shard must be rewritten, they are copied from the old shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidshard.building import worker
from vidshard.building.worker import Decoded, DecodeJob
from vidshard.planning.build_state import ShardRecord
from vidshard.planning.shard_plan import Chunk, Plan
from vidshard.planning.video_metadata import VideoFailure, VideoMetadata
from vidshard.shards import layout
from vidshard.shards.manifest import ShardSet
from vidshard.shards.writer import Rows
from vidshard.sources.folders import Source, Video


@dataclass(frozen=True, kw_only=True)
class CopyJob:
    """Chunks of one video whose samples exist in a finished set; each goes into its own fragment file."""

    video: Video
    chunks: tuple[Chunk, ...]
    fragment_paths: tuple[Path, ...]
    rows: tuple[Rows, ...]  # per chunk: its rows of the old index
    folder: Path  # of the finished set
    decoder: str  # the decoder that read the video


def run_job(job: DecodeJob | CopyJob) -> Decoded | VideoFailure:
    """Write the fragment files of a job. Raises OSError if writing fails, FormatError on a damaged shard."""
    return _copy_chunks(job) if isinstance(job, CopyJob) else worker.decode_chunks(job)


def _copy_chunks(job: CopyJob) -> Decoded:
    pairs = zip(job.rows, job.fragment_paths, strict=True)
    return Decoded(decoder=job.decoder, rows=tuple(copy_samples(job.folder, rows, path) for rows, path in pairs))


def copy_samples(folder: Path, rows: Rows, fragment_path: Path) -> Rows:
    """Copy samples from the shards in `folder` to a fragment file; return their rows, relative to the fragment.

    Raises OSError if the fragment cannot be written, FormatError on a damaged shard.
    """
    rows = rows.copy()
    size = 0
    with open(fragment_path, "wb") as fragment:
        for row in rows:
            path = folder / layout.shard_name(int(row["shard"]))
            with open(path, "rb") as shard:
                offset, num_bytes, crc32 = (int(row[name]) for name in ("offset", "size", "crc32"))
                sample = layout.read_sample(shard, offset, num_bytes, crc32=crc32, where=str(path))
            fragment.write(sample)
            row["offset"] = size + layout.TAR_BLOCK
            size += len(sample)
    rows["shard"] = rows["video"] = 0
    return rows


class ExistingSet:
    """Existing set `shards`, with its videos numbered as in `source`, which contains all of them."""

    def __init__(self, shards: ShardSet, source: Source) -> None:
        self.shards, self.source = shards, source
        self._number = {video.path: number for number, video in enumerate(source.videos)}
        self._row = {self._number[path]: row for row, path in enumerate(shards.index.paths)}  # of the videos with clips
        numbers = np.array([self._number[path] for path in shards.index.paths])
        self._rows = shards.index.clips.copy()
        self._rows["video"] = numbers[self._rows["video"]]
        order = np.lexsort((self._rows["clip"], self._rows["video"]))
        self._by_video: dict[int, Rows] = {
            int(rows["video"][0]): rows
            for rows in np.split(
                self._rows[order], np.flatnonzero(np.diff(self._rows["video"][order].astype(np.int64))) + 1
            )
        }

    @property
    def failed(self) -> dict[int, VideoFailure]:
        """Failed videos, with their reasons."""
        return {
            self._number[failure.path]: VideoFailure(reason=failure.reason, message=failure.message)
            for failure in self.shards.manifest.failed
        }

    @property
    def metadata(self) -> dict[int, VideoMetadata]:
        """Metadata of the videos with clips."""
        table, breaks = self.shards.index.videos, self.shards.manifest.breaks
        return {
            number: VideoMetadata(
                num_frames=int(table["num_frames"][row]),
                fps=float(table["fps"][row]),
                width=int(table["width"][row]),
                height=int(table["height"][row]),
                num_clips=len(self._by_video[number]),
                breaks=breaks.get(self.shards.index.paths[row], 0),
            )
            for number, row in self._row.items()
        }

    @property
    def generations(self) -> list[list[int]]:
        """Video numbers of the first build and of each extension."""
        extended = self.shards.manifest.extended
        starts = [extension.first_shard for extension in extended]
        generation = {n: int(np.searchsorted(starts, r["shard"][0], side="right")) for n, r in self._by_video.items()}
        generation |= dict.fromkeys(self.failed, 0)
        for number, extension in enumerate(extended, start=1):
            generation |= {self._number[path]: number for path in extension.failed}
        return [sorted(n for n, of in generation.items() if of == number) for number in range(len(extended) + 1)]

    @property
    def shards_of_generations(self) -> list[int]:
        """Number of shards of each generation."""
        starts = [0, *(e.first_shard for e in self.shards.manifest.extended), len(self.shards.manifest.shards)]
        return np.diff(starts).tolist()

    def unchanged(self, plan: Plan) -> dict[int, ShardRecord]:
        """Return the records of the shards that stay unchanged: the plan skips them or assigns the same samples."""
        planned: dict[int, list[tuple[int, int]]] = {shard: [] for shard in {chunk.shard for chunk in plan.chunks}}
        for chunk in plan.chunks:
            planned[chunk.shard] += [(chunk.video, clip) for clip in range(chunk.clip_start, chunk.clip_stop)]
        records = {}
        for number in range(min(len(self.shards.manifest.shards), plan.num_shards)):
            rows = self.rows_of(number)
            held = list(zip(rows["video"].tolist(), rows["clip"].tolist(), strict=True))
            if number not in planned or planned[number] == held:
                records[number] = self._record(number, rows)
        return records

    def rows_of(self, shard: int) -> Rows:
        """Return the rows of a shard. The column `video` is a number in `source`."""
        start, stop = np.searchsorted(self._rows["shard"], [shard, shard + 1])
        return self._rows[start:stop].copy()

    def _record(self, number: int, rows: Rows) -> ShardRecord:
        shard = self.shards.manifest.shards[number]
        served = {video: self._decoder(video) for video in sorted(set(rows["video"].tolist()))}
        return ShardRecord(bytes=shard.bytes, sha256=shard.sha256, num_clips=len(rows), decoders=served, failures={})

    def _decoder(self, number: int) -> str:
        name = self.shards.index.decoder(self._row[number])
        assert name is not None
        return name

    def copy_job(self, number: int, chunks: Sequence[Chunk], fragment_paths: Sequence[Path]) -> CopyJob | None:
        """Create the job that copies these chunks of a video; None if the set does not contain the video."""
        rows = self._by_video.get(number)
        if rows is None:
            return None
        return CopyJob(
            video=self.source.videos[number],
            chunks=tuple(chunks),
            fragment_paths=tuple(fragment_paths),
            rows=tuple(rows[chunk.clip_start : chunk.clip_stop] for chunk in chunks),
            folder=self.shards.folder,
            decoder=self._decoder(number),
        )
