"""A build: a folder of videos → a folder of shards. Joins all the other rooms of `vidshard`.

Decided here: a video ends as ok or failed, never half; a shard is written when all its videos are settled; what is
committed is recorded last, so that the same command goes on after any crash.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import io
import os
import random
import shutil
import signal
import socket
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vidshard import __version__, atomic, clips, decode_task, decoders, manifest, planner, shard_format, shard_writer
from vidshard.clips import SamplingConfig
from vidshard.console import Progress
from vidshard.decode_task import Decoded, DecodeJob, ProbeJob, Rejected, VideoFacts
from vidshard.errors import UserError
from vidshard.folder_lock import hold_lock
from vidshard.manifest import Failure, Manifest, ShardSet
from vidshard.planner import Plan, Unit
from vidshard.shard_format import ClipShape
from vidshard.shard_writer import Rows
from vidshard.sources import Source, Video, check_labels, find_sources, label_table
from vidshard.supervisor import Supervisor, SupervisorConfig, Task, TaskResult
from vidshard.work_folder import ShardRecord, WorkFolder, check_output, describe_difference

DEFAULT_OUT = Path("shards")
_FRAMES_PER_TIMEOUT = 1800  # `timeout_seconds` is granted once, and again for each minute of video at 30 frames/s
_BYTES_PER_TIMEOUT = 100 << 20  # reading packets: once, and again for each 100 MiB
_TASKS_PER_WORKER = 2  # a long video is cut into tasks no larger than this share of the work


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """What to build from what. `source`: SOURCE/<Class>/*.mp4, a folder of splits, a folder of MP4s, or one MP4."""

    source: Path
    out: Path | None = None  # default: shards/<name of the folder>; of several splits, the folder that holds them
    workers: int | None = None  # processes; default: one a core
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    frame_size: int = 112  # height and width of a stored frame, pixels
    normal: str | None = None  # the class that is normal, if its name does not say so
    yes: bool = False  # labels that look odd are right
    decoder: str = decoders.AUTO
    limit: int | None = None  # build so many videos only, drawn by `seed`, classes taken in turn
    seed: int = 0
    shard_mb: int = 64  # MiB of pixels in a full shard
    timeout_seconds: float = 60.0  # for a video, and again for each minute of it
    memory_mb: int = 4096  # MiB of memory of one worker

    def __post_init__(self) -> None:
        for name in ("workers", "frame_size", "limit", "shard_mb", "timeout_seconds", "memory_mb"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"{name} is {value}, expected more than 0")
        decoders.decoders_for(self.decoder)

    @property
    def shape(self) -> ClipShape:
        return ClipShape(num_frames=self.sampling.clip_len, height=self.frame_size, width=self.frame_size)


@dataclass(frozen=True, kw_only=True)
class SetReport:
    """One shard folder that was built, or found finished."""

    folder: Path
    log_folder: Path
    manifest: Manifest
    seconds: float
    decoded_clips: int  # in this run; the rest was there already
    already_finished: bool = False

    @property
    def num_bytes(self) -> int:
        return sum(shard.bytes for shard in self.manifest.shards)


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """What a build made: one set, or one per split."""

    sets: tuple[SetReport, ...]

    @property
    def folders(self) -> list[Path]:
        return [one.folder for one in self.sets]

    @property
    def videos(self) -> dict[str, int]:
        """found = ok + failed + skipped, over all sets."""
        total: Counter[str] = Counter()
        for one in self.sets:
            total.update(one.manifest.videos)
        return {name: total[name] for name in ("found", "ok", "failed", "skipped")}

    @property
    def num_clips(self) -> int:
        return sum(one.manifest.num_clips for one in self.sets)


def build(config: BuildConfig, *, tell: Callable[[str], None] = lambda line: None) -> BuildReport:
    """Decode the videos of `config.source` once, into shards.

    `tell` takes what people should read while it runs, such as the table class → label. Raises UserError on wrong use,
    OSError when the disk is full, KeyboardInterrupt on Ctrl-C and SIGTERM; the same call goes on afterwards.
    """
    sources = find_sources(config.source, normal=config.normal)
    folders = output_folders(config, sources)
    for source in sources:
        check_labels(source, normal=config.normal, yes=config.yes)
    reports = []
    for source, folder in zip(sources, folders, strict=True):
        tell(label_table(source))
        reports.append(_build_set(_limited(source, config), folder, config, tell))
    return BuildReport(sets=tuple(reports))


def output_folders(config: BuildConfig, sources: Sequence[Source]) -> list[Path]:
    """Where the shards of each source go."""
    if len(sources) > 1 or sources[0].root.parent == Path(os.path.abspath(config.source)):
        return [(config.out or DEFAULT_OUT) / str(source.split or source.root.name) for source in sources]
    given = Path(os.path.abspath(config.source))  # `.` and a trailing slash have no name of their own
    return [config.out or DEFAULT_OUT / ((given.stem if given.is_file() else given.name) or "root")]


def _build_set(source: Source, out: Path, config: BuildConfig, tell: Callable[[str], None]) -> SetReport:
    start = time.monotonic()
    settings = _settings(source, config)
    check_output(out)
    work = WorkFolder(out=out)
    finished = _find_finished(out, source, settings)
    if finished is not None and not work.path.exists():
        return _already_finished(finished, source, config, start)
    work.path.mkdir(parents=True, exist_ok=True)
    try:
        with hold_lock(work.lock_path, what=str(out)):
            finished = _find_finished(out, source, settings)  # by whom we may have waited for
            if finished is None:
                work.start(_fingerprint(source, settings))
                with (
                    _BuildLog(out, source, config) as log,
                    _sigterm_as_ctrl_c(),
                    _supervisor(source, out, config) as crew,
                ):
                    run = _Run(source=source, config=config, work=work, crew=crew, log=log, tell=tell)
                    facts = run.probe_videos()
                    plan = run.plan(facts)
                    records = run.decode(plan, facts)
                    _finish(run, settings, facts, plan, records)
                    log.finish(time.monotonic() - start)
                report = SetReport(
                    folder=out,
                    log_folder=manifest.log_folder(out),
                    manifest=manifest.read_manifest(out),
                    seconds=time.monotonic() - start,
                    decoded_clips=run.decoded_clips,
                )
            else:
                report = _already_finished(finished, source, config, start)
            work.remove_all_but_lock()
    finally:
        work.remove_if_empty()
    return report


class _Run:
    """One build at work: the steps of `_build_set` and what they share."""

    def __init__(
        self,
        *,
        source: Source,
        config: BuildConfig,
        work: WorkFolder,
        crew: Supervisor,
        log: _BuildLog,
        tell: Callable[[str], None],
    ) -> None:
        self.source, self.config, self.work, self.crew, self.log, self.tell = source, config, work, crew, log, tell
        self.decoded_clips = 0

    # ----- what there is ----------------------------------------------------------------------------------------------

    def probe_videos(self) -> list[VideoFacts | Rejected]:
        """What the packets of each video tell. Kept: the plan follows from it and must not change."""
        kept = self.work.read_probes()
        if kept is not None:
            return [Rejected(**probe) if "reason" in probe else VideoFacts(**probe) for probe in kept]
        facts: dict[int, VideoFacts | Rejected] = {}
        with Progress("Reading packets", total=len(self.source.videos), unit="video") as progress:
            for result in self.crew.run(decode_task.probe_video, self._probe_tasks()):
                number = int(result.task.argument.table_path.stem)
                facts[number] = self._value(result, self.source.videos[number])
                progress.advance()
        ordered = [facts[number] for number in range(len(self.source.videos))]
        self.work.write_probes([dataclasses.asdict(probe) for probe in ordered])
        return ordered

    def _probe_tasks(self) -> Iterator[Task]:
        for number, video in enumerate(self.source.videos):
            job = ProbeJob(video_path=self.source.root / video.path, table_path=self.work.table_path(number))
            extra = _file_size(job.video_path) / _BYTES_PER_TIMEOUT
            yield Task(argument=job, timeout_seconds=self.config.timeout_seconds * (1 + extra))

    # ----- which clip goes where --------------------------------------------------------------------------------------

    def plan(self, facts: Sequence[VideoFacts | Rejected]) -> Plan:
        shard_clips = planner.clips_per_shard(self.config.shape, self.config.shard_mb)
        counts = [clips.num_clips(_num_frames(fact), self.config.sampling) for fact in facts]
        return planner.plan_units(counts, shard_clips=shard_clips)

    def _check_free_disk(self, units: Sequence[Unit]) -> None:
        shape = self.config.shape
        shard_clips = planner.clips_per_shard(shape, self.config.shard_mb)
        needed = planner.needed_bytes(units, shape, shard_clips=shard_clips)
        free = shutil.disk_usage(self.work.path).free
        if needed > free:
            num_clips = sum(unit.num_clips for unit in units)
            raise UserError(
                f"not enough free disk for {self.work.out}: {num_clips:,} clips need {_size(needed)}, {_size(free)} "
                "are free; free some space, give another --out, or take fewer or smaller clips"
            )

    # ----- decoding ---------------------------------------------------------------------------------------------------

    def decode(self, plan: Plan, facts: Sequence[VideoFacts | Rejected]) -> list[ShardRecord]:
        """Decode what is not committed yet; return the records of all shards, in order."""
        while True:
            committed = {n: r for n in range(plan.num_shards) if (r := self.work.read_record(n)) is not None}
            if committed:
                self.tell(f"going on with an unfinished build: {len(committed)} of {plan.num_shards} shards are there")
            fresh = self._decode_missing(plan, facts, committed)
            records = {**committed, **fresh}
            failed = set().union(*(record.failures for record in records.values()))
            half = [n for n, record in records.items() if failed & set(record.rows["video"].tolist())]
            if not half:
                return [records[n] for n in range(plan.num_shards)]
            # A video that spans shards failed after some of them had been committed by an earlier run. A video is ok or
            # failed, never half: make these shards again, without it.
            for n in half:
                self.work.drop_record(n)

    def _decode_missing(
        self, plan: Plan, facts: Sequence[VideoFacts | Rejected], committed: dict[int, ShardRecord]
    ) -> dict[int, ShardRecord]:
        known_failures = {video: why for record in committed.values() for video, why in record.failures.items()}
        todo = {n: unit for n, unit in enumerate(plan.units) if unit.shard not in committed}
        self._check_free_disk(list(todo.values()))
        missing = [n for n in range(plan.num_shards) if n not in committed]
        with _ShardJoiner(self.work, todo, missing, known_failures) as joiner:
            videos = {unit.video for unit in todo.values()}
            with Progress("Decoding", total=len(videos), unit="video") as progress:
                progress.advance(len(videos & known_failures.keys()))
                tasks = self._decode_tasks(todo, facts, known_failures)
                for result in self.crew.run(decode_task.decode_units, tasks):
                    job: DecodeJob = result.task.argument
                    outcome = self._value(result, job.video)
                    self.log.add_seconds(job.video.path, result.seconds)
                    if isinstance(outcome, Decoded):
                        self.decoded_clips += sum(unit.num_clips for unit in job.units)
                    if joiner.settle(job, outcome):
                        note = f"{self.decoded_clips:,} clips, {len(joiner.failures):,} failed"
                        progress.advance(note=note)
            return joiner.wait()

    def _decode_tasks(
        self, todo: dict[int, Unit], facts: Sequence[VideoFacts | Rejected], known_failures: dict[int, Any]
    ) -> Iterator[Task]:
        num_clips = sum(unit.num_clips for unit in todo.values())
        share = num_clips // (_TASKS_PER_WORKER * self.crew.config.workers)
        for numbers in planner.group_units(todo, max_clips=share):
            units = tuple(todo[n] for n in numbers)
            number = units[0].video
            if number in known_failures:
                continue
            video = self.source.videos[number]
            job = DecodeJob(
                video=video,
                split=self.source.split,
                video_path=self.source.root / video.path,
                table_path=self.work.table_path(number),
                units=units,
                part_paths=tuple(self.work.part_path(n) for n in numbers),
                sampling=self.config.sampling,
                shape=self.config.shape,
                decoder=self.config.decoder,
            )
            extra = _num_frames(facts[number]) / _FRAMES_PER_TIMEOUT
            yield Task(argument=job, timeout_seconds=self.config.timeout_seconds * (1 + extra))

    def _value(self, result: TaskResult, video: Video) -> Any:
        """The value of a task; of one that crashed, or met an error that nobody foresaw, the video's rejection."""
        if result.crash is not None:
            self.log.line(f"{video.path}: {result.crash.reason}: {result.crash.message}")
            return Rejected(reason=result.crash.reason, message=result.crash.message)
        if isinstance(result.error, UserError | OSError):  # a missing library, a full disk: not the video's fault
            raise result.error
        if isinstance(result.error, MemoryError):
            return Rejected(reason="out_of_memory", message=f"needs more than {self.config.memory_mb:,} MiB of memory")
        if result.error is not None:
            self.log.line(f"{video.path}: {result.error_trace}")
            name = type(result.error).__name__
            return Rejected(reason="unexpected_error", message=f"{name} in vidshard; the build log has the details")
        if isinstance(result.value, Rejected):
            self.log.line(f"{video.path}: {result.value.reason}: {result.value.message}")
        return result.value


class _ShardJoiner:
    """Joins the parts of a shard, in a thread, as soon as every video that touches it is settled.

    A video is settled when all its units are decoded, or one failed: then none of its clips goes into any shard.
    """

    def __init__(
        self, work: WorkFolder, todo: dict[int, Unit], shards: Sequence[int], known_failures: dict[int, tuple[str, str]]
    ) -> None:
        self.work, self.todo = work, todo
        self.failures = dict(known_failures)
        self.records: dict[int, ShardRecord] = {}
        self._rows: dict[int, Rows] = {}  # unit → its rows
        self._decoders: dict[int, str] = {}
        self._units_of_shard: dict[int, list[int]] = {shard: [] for shard in shards}
        self._open_units: Counter[int] = Counter()  # video → units that are not decoded
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

    def __enter__(self) -> _ShardJoiner:
        for shard in self._units_of_shard:
            if not self._open_videos[shard]:
                self._submit(shard)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def settle(self, job: DecodeJob, outcome: Decoded | Rejected) -> bool:
        """Take what became of a job; True when its video is settled by it. Raises what a join raised (disk full)."""
        for join in [join for join in self._joins if join.done()]:
            join.result()
            self._joins.remove(join)
        video = job.units[0].video
        if video in self.failures:  # another of its jobs failed before
            return False
        if isinstance(outcome, Rejected):
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
        size, sha256 = shard_writer.join_parts(self.work.shard_path(shard), parts, cancelled=self._stop.is_set)
        all_rows = np.concatenate(rows) if rows else np.zeros(0, manifest.CLIP_ROW)
        record = ShardRecord(bytes=size, sha256=sha256, rows=all_rows, decoders=decoders_used, failures=failures)
        self.work.write_record(shard, record)
        self.records[shard] = record
        for n in self._units_of_shard[shard]:
            self.work.part_path(n).unlink(missing_ok=True)


# ----- what is left of a build ----------------------------------------------------------------------------------------


def _finish(
    run: _Run,
    settings: dict[str, Any],
    facts: Sequence[VideoFacts | Rejected],
    plan: Plan,
    records: Sequence[ShardRecord],
) -> None:
    """Write failures.csv, the index and, last, the manifest."""
    source, config, out = run.source, run.config, run.work.out
    failures = _failures(source, facts, records)
    num_ok = len(source.videos) - sum(failure.outcome == "failed" for failure in failures)
    if num_ok == 0:
        _refuse_empty(run, failures)
    index = _index(source, facts, records)
    index_data = index.to_bytes()
    atomic.write_text(out / shard_format.FAILURES_NAME, _failures_csv(failures))
    manifest.write_index_and_manifest(
        out,
        Manifest(
            split=source.split,
            clip_shape=config.shape,
            codec="raw",
            settings=settings,
            packages=_packages(),
            classes=_class_counts(source, index),
            videos_found=len(source.videos) + len(source.skipped),
            videos_ok=num_ok,
            failures=failures,
            shards=tuple(
                manifest.Shard(name=shard_format.shard_name(n), bytes=r.bytes, samples=len(r.rows), sha256=r.sha256)
                for n, r in enumerate(records)
            ),
            index_bytes=len(index_data),
            index_sha256=hashlib.sha256(index_data).hexdigest(),
        ),
        index_data,
    )


def _refuse_empty(run: _Run, failures: Sequence[Failure]) -> None:
    """Raises UserError: not one video became a clip. Leaves nothing that looks like a set, but the reasons."""
    path = run.log.folder / shard_format.FAILURES_NAME
    atomic.write_text(path, _failures_csv(failures))
    for shard in run.work.out.glob("shard-*"):
        shard.unlink()
    run.work.remove_all_but_lock()
    reasons = Counter(failure.reason for failure in failures if failure.outcome == "failed")
    reason, count = reasons.most_common(1)[0]
    message = next(failure.message for failure in failures if failure.reason == reason)
    raise UserError(
        f"none of the {len(run.source.videos):,} videos of {run.source.root} could be decoded; the most frequent "
        f"reason is {reason} ({count:,} videos): {message}; all reasons are in {path}"
    )


def _failures(
    source: Source, facts: Sequence[VideoFacts | Rejected], records: Sequence[ShardRecord]
) -> tuple[Failure, ...]:
    """Every file found that became no sample, sorted by path."""
    failed = {n: (fact.reason, fact.message) for n, fact in enumerate(facts) if isinstance(fact, Rejected)}
    for record in records:
        failed.update(record.failures)
    rows = [
        Failure(path=source.videos[n].path, outcome="failed", reason=reason, message=message)
        for n, (reason, message) in failed.items()
    ]
    return tuple(sorted([*rows, *source.skipped], key=lambda failure: _path_bytes(failure.path)))


def _index(source: Source, facts: Sequence[VideoFacts | Rejected], records: Sequence[ShardRecord]) -> manifest.Index:
    rows = np.concatenate([record.rows for record in records])
    decoder_of = {video: name for record in records for video, name in record.decoders.items()}
    numbers = sorted(decoder_of)  # of the videos that became clips
    rows["video"] = np.searchsorted(np.array(numbers), rows["video"])
    videos = [source.videos[number] for number in numbers]
    classes, groups, used = (
        sorted({name for name in names if name is not None}, key=_path_bytes)
        for names in (
            [video.class_name for video in videos],
            [video.source_group for video in videos],
            list(decoder_of.values()),
        )
    )
    splits = [source.split] if source.split is not None else []
    tables = [{name: row for row, name in enumerate(names)} for names in (classes, splits, groups, used)]
    table = np.zeros(len(videos), manifest.VIDEO_ROW)
    for row, (number, video) in enumerate(zip(numbers, videos, strict=True)):
        fact = facts[number]
        assert isinstance(fact, VideoFacts)
        names = (video.class_name, source.split, video.source_group, decoder_of[number])
        columns = [-1 if name is None else of[name] for of, name in zip(tables, names, strict=True)]
        table[row] = (*columns, fact.num_frames, fact.width, fact.height, fact.fps)
    return manifest.Index(
        clips=rows,
        videos=table,
        paths=[video.path for video in videos],
        classes=classes,
        splits=splits,
        source_groups=groups,
        decoders=used,
    )


def _class_counts(source: Source, index: manifest.Index) -> tuple[manifest.ClassCount, ...]:
    labels = {video.class_name: video.label for video in source.videos}
    class_of = [index.class_name(row) for row in range(len(index.videos))]
    num_videos = Counter(class_of)
    clips_of_video = np.bincount(index.clips["video"], minlength=len(class_of))
    num_clips: Counter[str | None] = Counter()
    for name, count in zip(class_of, clips_of_video.tolist(), strict=True):
        num_clips[name] += count
    return tuple(
        manifest.ClassCount(name=name, label=labels[name], videos=num_videos[name], clips=num_clips[name])
        for name in sorted(num_videos, key=lambda name: _path_bytes(name or ""))
    )


def _failures_csv(failures: Sequence[Failure]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in dataclasses.fields(Failure)])
    writer.writerows(dataclasses.astuple(failure) for failure in failures)
    return text.getvalue()


# ----- what decides the bytes -----------------------------------------------------------------------------------------


def _settings(source: Source, config: BuildConfig) -> dict[str, Any]:
    """All that decides the bytes of a set, as its manifest keeps it."""
    return {
        **config.sampling.to_settings(),
        "frame_size": config.frame_size,
        "resize": "squash",
        "decoder": config.decoder,
        "normal": config.normal,
        "limit": config.limit,
        "seed": config.seed,
        "shard_mb": config.shard_mb,
        "sources_sha256": _sources_sha256(source),
    }


def _sources_sha256(source: Source, *, with_times: bool = False) -> str:
    """Digest of the videos: path, size, label and source group; with the time of change only where nothing is kept."""
    digest = hashlib.sha256()
    for video in source.videos:
        path = source.root / video.path
        values = [_file_size(path), video.label, video.source_group]
        if with_times:
            with contextlib.suppress(OSError):
                values.append(path.stat().st_mtime_ns)
        digest.update(repr((video.path, *values)).encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()


def _packages() -> dict[str, str]:
    return {"vidshard": __version__, "numpy": np.__version__, **decoders.decoder_versions()}


def _fingerprint(source: Source, settings: dict[str, Any]) -> dict[str, Any]:
    """What must not change while a build is unfinished."""
    return {
        "settings": settings,
        "packages": _packages(),
        "num_videos": len(source.videos),
        "times_sha256": _sources_sha256(source, with_times=True),
    }


def _find_finished(out: Path, source: Source, settings: dict[str, Any]) -> ShardSet | None:
    """The finished set in `out`, None if there is none. Raises UserError when it is not the one asked for."""
    if not (out / shard_format.MANIFEST_NAME).exists():
        return None
    shards = manifest.open_shards(out)
    old = shards.manifest.settings
    if old == settings:
        return shards
    if {**old, "sources_sha256": ""} != {**settings, "sources_sha256": ""}:
        difference = f"other {describe_difference(old, settings)}"
    else:
        before = {*shards.index.paths, *(f.path for f in shards.manifest.failures if f.outcome == "failed")}
        now = {video.path for video in source.videos}
        difference = f"other videos ({_changes(sorted(now - before), sorted(before - now))})"
    raise UserError(f"{out} holds another build, of {difference}; give another --out, or delete {out} to build it anew")


def _changes(new: Sequence[str], gone: Sequence[str]) -> str:
    """What was added to and removed from a list of paths, in words.

    >>> _changes(["a", "b"], [])
    '2 new: a, b'
    """
    told = [
        f"{len(paths):,} {what}: {', '.join(paths[:3])}{', …' if len(paths) > 3 else ''}"
        for what, paths in (("new", new), ("gone", gone))
        if paths
    ]
    return "; ".join(told) or "same names, other sizes, labels or source groups"


def _already_finished(shards: ShardSet, source: Source, config: BuildConfig, start: float) -> SetReport:
    with _BuildLog(shards.folder, source, config) as log:  # SOURCE may have moved: remember where it is
        log.line("already finished, nothing to do")
    return SetReport(
        folder=shards.folder,
        log_folder=shards.log_folder,
        manifest=shards.manifest,
        seconds=time.monotonic() - start,
        decoded_clips=0,
        already_finished=True,
    )


def _limited(source: Source, config: BuildConfig) -> Source:
    """`config.limit` videos of a source, drawn by the seed, the classes taken in turn; the others are skipped."""
    if config.limit is None or config.limit >= len(source.videos):
        return source
    generator = random.Random(config.seed)
    of_class: dict[str | None, list[Video]] = defaultdict(list)
    for video in source.videos:
        of_class[video.class_name].append(video)
    ranked = []
    for class_videos in of_class.values():
        generator.shuffle(class_videos)
        ranked += [(turn, video.path) for turn, video in enumerate(class_videos)]
    taken = {path for _, path in sorted(ranked, key=lambda row: (row[0], _path_bytes(row[1])))[: config.limit]}
    message = f"not among the {config.limit:,} videos of --limit"
    over = [
        Failure(path=video.path, outcome="skipped", reason="over_limit", message=message)
        for video in source.videos
        if video.path not in taken
    ]
    return dataclasses.replace(
        source,
        videos=tuple(video for video in source.videos if video.path in taken),
        skipped=tuple(sorted([*source.skipped, *over], key=lambda failure: _path_bytes(failure.path))),
    )


# ----- around a build -------------------------------------------------------------------------------------------------


class _BuildLog:
    """The log folder beside the output: all that varies from run to run."""

    def __init__(self, out: Path, source: Source, config: BuildConfig) -> None:
        self.folder = manifest.log_folder(out)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._source = source
        self._seconds: dict[str, float] = defaultdict(float)  # video → time of decoding
        self._file = open(self.folder / "build.log", "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        self.line(f"vidshard {__version__}: {' '.join(sys.argv)}")
        self.line(str(config))
        self._write_source({})

    def __enter__(self) -> _BuildLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self.line(f"stopped: {type(error).__name__}: {error}")
        with contextlib.suppress(OSError):  # a full disk; the error that matters is on its way
            self._file.close()

    def line(self, text: str) -> None:
        with contextlib.suppress(OSError):
            print(time.strftime("%Y-%m-%d %H:%M:%S"), text, file=self._file, flush=True)

    def add_seconds(self, path: str, seconds: float) -> None:
        self._seconds[path] += seconds

    def finish(self, seconds: float) -> None:
        self.line(f"finished in {seconds:.1f} s")
        slow = {path: round(spent, 3) for path, spent in self._seconds.items()}
        self._write_source({"seconds": round(seconds, 1), "seconds_per_video": slow})

    def _write_source(self, more: dict[str, Any]) -> None:
        """`source` is what makes `source` + `path` of a record a file again."""
        about = {"source": str(self._source.root), "host": socket.gethostname(), "command": sys.argv}
        atomic.write_json(self.folder / shard_format.SOURCE_NAME, {**about, **more})


def _supervisor(source: Source, out: Path, config: BuildConfig) -> Supervisor:
    workers = config.workers or available_cpus()
    return Supervisor(
        SupervisorConfig(
            workers=min(workers, len(source.videos)) if config.workers is None else workers,
            memory_bytes=config.memory_mb << 20,
            stderr_path=manifest.log_folder(out) / "workers.log",
        )
    )


def available_cpus() -> int:
    """How many cores this process may use."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """End in good order on SIGTERM too: it raises KeyboardInterrupt. Only in the main thread, the only one that may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _num_frames(fact: VideoFacts | Rejected) -> int:
    return fact.num_frames if isinstance(fact, VideoFacts) else 0


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1  # the probe will say why


def _path_bytes(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def _size(num_bytes: int) -> str:
    """A number of bytes for people.

    >>> _size(1_500_000_000)
    '1.5 GB'
    """
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:,.1f} MB"
