"""Joining of fragments into shards while decoding continues."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from vidshard.building.existing_set import CopyJob
from vidshard.building.worker import Decoded, DecodeJob
from vidshard.planning.build_state import BuildState, ShardRecord
from vidshard.planning.shard_plan import Chunk
from vidshard.planning.video_metadata import VideoFailure
from vidshard.shards import manifest, writer
from vidshard.shards.writer import Rows


class ShardJoiner:
    """Background joiner of fragments: writes each shard as soon as all its videos are settled.

    A video is settled when all its chunks are decoded, or one has failed: then no shard gets any of its clips.
    """

    def __init__(
        self, state: BuildState, todo: dict[int, Chunk], shards: Sequence[int], known_failures: dict[int, VideoFailure]
    ) -> None:
        self.state, self.todo = state, todo
        self.failures = dict(known_failures)
        self.records: dict[int, ShardRecord] = {}
        self._rows: dict[int, Rows] = {}  # chunk → its rows
        self._decoders: dict[int, str] = {}
        self._chunks_of_shard: dict[int, list[int]] = {shard: [] for shard in shards}
        self._open_chunks: Counter[int] = Counter()  # video → number of chunks not yet decoded
        self._shards_of_video: dict[int, set[int]] = defaultdict(set)
        for number, chunk in todo.items():
            self._chunks_of_shard[chunk.shard].append(number)
            if chunk.video not in known_failures:
                self._open_chunks[chunk.video] += 1
                self._shards_of_video[chunk.video].add(chunk.shard)
        self._open_videos = Counter(shard for of_video in self._shards_of_video.values() for shard in of_video)
        self._stop = threading.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="join-shards")
        self._joins: list[Future[None]] = []

    def __enter__(self) -> ShardJoiner:
        for shard in self._chunks_of_shard:
            if not self._open_videos[shard]:
                self._submit(shard)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def settle(self, job: DecodeJob | CopyJob, outcome: Decoded | VideoFailure) -> None:
        """Record the outcome of a job. Raises the errors of a join (disk full)."""
        for join in [join for join in self._joins if join.done()]:
            join.result()
            self._joins.remove(join)
        video = job.chunks[0].video
        if video in self.failures:  # another job of this video has failed
            return
        if isinstance(outcome, VideoFailure):
            self.failures[video] = outcome
            self._open_chunks[video] = 0
        else:
            for path, rows in zip(job.fragment_paths, outcome.rows, strict=True):
                self._rows[int(path.stem)] = rows
            self._decoders.setdefault(video, outcome.decoder)
            self._open_chunks[video] -= len(job.chunks)
        if self._open_chunks[video]:
            return
        for shard in sorted(self._shards_of_video[video]):
            self._open_videos[shard] -= 1
            if not self._open_videos[shard]:
                self._submit(shard)

    def wait(self) -> dict[int, ShardRecord]:
        for join in self._joins:
            join.result()
        return self.records

    def _submit(self, shard: int) -> None:
        videos = {self.todo[n].video for n in self._chunks_of_shard[shard]}
        rows = {n: self._rows.pop(n) for n in self._chunks_of_shard[shard] if self.todo[n].video not in self.failures}
        record = ShardRecord(
            bytes=0,
            sha256="",
            num_clips=sum(map(len, rows.values())),
            decoders={video: self._decoders[video] for video in sorted(videos - self.failures.keys())},
            failures={video: self.failures[video] for video in sorted(videos & self.failures.keys())},
        )
        self._joins.append(self._thread.submit(self._join, shard, rows, record))

    def _join(self, shard: int, rows_of_chunk: dict[int, Rows], record: ShardRecord) -> None:
        """Write a shard, and complete its record."""
        fragments = []
        start = 0
        for n, rows in rows_of_chunk.items():
            fragments.append(self.state.fragment_path(n))
            rows["offset"] += start
            rows["shard"] = shard
            rows["video"] = self.todo[n].video
            start += fragments[-1].stat().st_size
        size, sha256 = writer.join_fragments(self.state.shard_path(shard), fragments, cancelled=self._stop.is_set)
        all_rows = np.concatenate([np.zeros(0, manifest.CLIP_ROW), *rows_of_chunk.values()])
        record = dataclasses.replace(record, bytes=size, sha256=sha256)
        self.state.write_record(shard, record, all_rows)
        self.records[shard] = record
        for n in self._chunks_of_shard[shard]:
            self.state.fragment_path(n).unlink(missing_ok=True)
