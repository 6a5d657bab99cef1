"""Joining of fragments into shards while decoding continues."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from vidshard.building.existing_set import CopyJob
from vidshard.building.worker import Decoded, DecodeJob, VideoFailure
from vidshard.planning.build_state import ShardRecord, WorkFolder
from vidshard.planning.shard_plan import Unit
from vidshard.shards import manifest, writer
from vidshard.shards.writer import Rows


class ShardJoiner:
    """Background joiner of fragments: writes each shard as soon as all its videos are settled.

    A video is settled when all its chunks are decoded, or one failed: then none of its clips goes into any shard.
    """

    def __init__(
        self, work: WorkFolder, todo: dict[int, Unit], shards: Sequence[int], known_failures: dict[int, tuple[str, str]]
    ) -> None:
        self.work, self.todo = work, todo
        self.failures = dict(known_failures)
        self.records: dict[int, ShardRecord] = {}
        self._rows: dict[int, Rows] = {}  # chunk → its rows
        self._decoders: dict[int, str] = {}
        self._units_of_shard: dict[int, list[int]] = {shard: [] for shard in shards}
        self._open_units: Counter[int] = Counter()  # video → number of chunks not yet decoded
        self._shards_of_video: dict[int, set[int]] = defaultdict(set)
        for number, unit in todo.items():
            self._units_of_shard[unit.shard].append(number)
            if unit.video not in known_failures:
                self._open_units[unit.video] += 1
                self._shards_of_video[unit.video].add(unit.shard)
        self._open_videos = Counter(shard for of_video in self._shards_of_video.values() for shard in of_video)
        self._stop = threading.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="join-shards")
        self._joins: list[Future[None]] = []

    def __enter__(self) -> ShardJoiner:
        for shard in self._units_of_shard:
            if not self._open_videos[shard]:
                self._submit(shard)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def settle(self, job: DecodeJob | CopyJob, outcome: Decoded | VideoFailure) -> bool:
        """Record the outcome of a job; return True if it settles its video. Raises the errors of a join (disk full)."""
        for join in [join for join in self._joins if join.done()]:
            join.result()
            self._joins.remove(join)
        video = job.units[0].video
        if video in self.failures:  # another job of this video has failed
            return False
        if isinstance(outcome, VideoFailure):
            self.failures[video] = (outcome.reason, outcome.message)
            self._open_units[video] = 0
        else:
            for path, rows in zip(job.part_paths, outcome.rows, strict=True):
                self._rows[int(path.stem)] = rows
            self._decoders.setdefault(video, outcome.decoder)
            self._open_units[video] -= len(job.units)
        if self._open_units[video]:
            return False
        for shard in sorted(self._shards_of_video[video]):
            self._open_videos[shard] -= 1
            if not self._open_videos[shard]:
                self._submit(shard)
        return True

    def wait(self) -> dict[int, ShardRecord]:
        for join in self._joins:
            join.result()
        return self.records

    def _submit(self, shard: int) -> None:
        units = [n for n in self._units_of_shard[shard] if self.todo[n].video not in self.failures]
        videos = {self.todo[n].video for n in self._units_of_shard[shard]}
        rows = [self._rows.pop(n) for n in units]
        decoders_used = {video: self._decoders[video] for video in sorted(videos - self.failures.keys())}
        failures = {video: self.failures[video] for video in sorted(videos & self.failures.keys())}
        self._joins.append(self._thread.submit(self._join, shard, units, rows, decoders_used, failures))

    def _join(
        self,
        shard: int,
        units: list[int],
        rows: list[Rows],
        decoders_used: dict[int, str],
        failures: dict[int, tuple[str, str]],
    ) -> None:
        parts = [self.work.part_path(n) for n in units]
        start = 0
        for n, part, part_rows in zip(units, parts, rows, strict=True):
            part_rows["offset"] += start
            part_rows["shard"] = shard
            part_rows["video"] = self.todo[n].video
            start += part.stat().st_size
        size, sha256 = writer.join_parts(self.work.shard_path(shard), parts, cancelled=self._stop.is_set)
        all_rows = np.concatenate(rows) if rows else np.zeros(0, manifest.CLIP_ROW)
        record = ShardRecord(bytes=size, sha256=sha256, rows=all_rows, decoders=decoders_used, failures=failures)
        self.work.write_record(shard, record)
        self.records[shard] = record
        for n in self._units_of_shard[shard]:
            self.work.part_path(n).unlink(missing_ok=True)
