"""Orchestration of a build: from a folder of videos to a folder of shards.

Each video succeeds or fails as a whole. Work is recorded only after it is committed, so that the same command
resumes after any crash; the plan does not depend on the run, so that the result is byte-identical.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from vidshard.building import existing_set, finish, upload, worker
from vidshard.building.existing_set import CopyJob, ExistingSet
from vidshard.building.failures import environment_error, failure_message
from vidshard.building.finish import CompleteBuild
from vidshard.building.join import ShardJoiner
from vidshard.building.log import BuildLog
from vidshard.building.worker import Decoded, DecodeJob, ProbeJob
from vidshard.execution import base as execution
from vidshard.execution.base import Executor, ExecutorConfig, Task, TaskResult
from vidshard.planning import shard_plan
from vidshard.planning.build_state import BuildState, ShardRecord, check_output, write_probes
from vidshard.planning.config import BuildConfig
from vidshard.planning.settings import check_packages, file_bytes, find_finished, make_fingerprint, new_videos
from vidshard.planning.shard_plan import Chunk, Plan
from vidshard.planning.video_metadata import Probe, VideoFailure, VideoMetadata
from vidshard.shards import layout, manifest
from vidshard.shards.manifest import Failure, Manifest, ShardSet
from vidshard.shards.writer import Rows
from vidshard.sources import folders, lists
from vidshard.sources.folders import Source, Video
from vidshard.sources.urls import find_remote_sources
from vidshard.storage.urls import Location, Url
from vidshard.util import lock
from vidshard.util.console import Progress
from vidshard.util.errors import UserError
from vidshard.util.text import counted, path_bytes
from vidshard.video import decoders

logger = logging.getLogger(__name__)

__all__ = ["BuildConfig", "BuildReport", "Estimate", "SetReport", "build", "build_set", "dry_run"]

DEFAULT_OUT = Path("shards")
_FRAMES_PER_TIMEOUT = 1800  # `timeout_seconds` is the limit, plus the same per minute of video at 30 frames/s
_BYTES_PER_TIMEOUT = 100 << 20  # reading packets: the limit, plus the same per 100 MiB
_BYTES_PER_TIMEOUT_CHECKED = 2 << 20  # decoding all frames: about a minute of surveillance video
_DOWNLOAD_SECONDS = 300.0  # limit per download, including retries, plus its size at this rate
_DOWNLOAD_BYTES_PER_SECOND = 500_000
# Environment variables of the decoding libraries would change frames or messages; they are removed in the workers.
LIBRARY_VARIABLES = ("OPENCV_", "DECORD_", "AV_LOG_", "FFREPORT", "FFMPEG_", "PYAV_")
_SAMPLE_SECONDS = 8.0  # decoding time of a dry run
_SAMPLE_CLIPS = 16  # per chunk
_SAVE_SECONDS = 30.0  # interval between saves of the probe results
_UNKNOWN_FPS = 30.0
_TASKS_PER_WORKER = 2  # a long video is divided into tasks, at least this many per worker


@dataclass(frozen=True, kw_only=True)
class SetReport:
    """Result of building one shard folder, or of finding it finished."""

    folder: Path  # where the set was built
    url: Url | None = None  # where the set was uploaded; the folder may then be deleted
    manifest: Manifest
    seconds: float = 0.0
    decoded_clips: int = 0  # in this run only
    already_finished: bool = False

    @property
    def log_folder(self) -> Path:
        return manifest.log_folder(self.folder)

    @property
    def where(self) -> Location:
        return self.url or self.folder

    @property
    def num_bytes(self) -> int:
        return sum(shard.bytes for shard in self.manifest.shards)


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """Result of a build: one set, or one per split."""

    sets: tuple[SetReport, ...]

    @property
    def folders(self) -> list[Path]:
        return [one.folder for one in self.sets]

    @property
    def videos(self) -> dict[str, int]:
        """Number of videos by outcome over all sets: found = ok + failed + skipped."""
        names = ("found", "ok", "failed", "skipped")
        return {name: sum(one.manifest.videos[name] for one in self.sets) for name in names}

    @property
    def num_clips(self) -> int:
        return sum(one.manifest.num_clips for one in self.sets)

    @property
    def is_complete(self) -> bool:
        """True if no video failed and none may be hidden behind a skipped entry."""
        failures = (failure for one in self.sets for failure in one.manifest.failures)
        return not any(f.outcome == "failed" or f.reason in folders.MAY_HIDE_VIDEOS for f in failures)


def build(config: BuildConfig) -> BuildReport:
    """Decode the videos of `config.source` once, into shards.

    Logs the table class → label. Raises UserError on incorrect usage, OSError if the disk is full, KeyboardInterrupt on
    Ctrl-C and SIGTERM; calling it again resumes the build.
    """
    return BuildReport(sets=tuple(build_set(source, folder, config) for source, folder in plan_outputs(config)))


def plan_outputs(config: BuildConfig) -> Iterator[tuple[Source, Location]]:
    """Yield each source, with at most `config.limit` of its videos, and its output folder.

    Raises UserError on incorrect usage, before the first one is yielded.
    """
    sources = _apply_lists(_find_sources(config), config)
    if note := decoders.missing_note(config.decoder):
        logger.info(note)
    outputs = output_folders(config, sources)
    if not config.yes:
        folders.check_no_class_folder(config.source, sources)
    for source in sources:
        folders.check_labels(source, normal=config.normal, yes=config.yes)
    for source, folder in zip(sources, outputs, strict=True):
        logger.info("\n".join([f"{source.root} → {folder}", folders.label_table(source), *source.notes]))
        yield subsample_videos(source, config), folder


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Estimated size and duration of the build of one set."""

    folder: Location
    videos: int
    unreadable: int  # videos whose packets cannot be read
    hours: float  # of video
    clips: int
    shards: int
    bytes: int
    seconds: float | None  # None if no clip of the sample could be decoded
    workers: int
    sampled_clips: int  # clips decoded for the estimate


def dry_run(config: BuildConfig) -> tuple[Estimate, ...]:
    """Estimate what `build` would do: read all packets, and decode randomly chosen clips for some seconds.

    The output folders are neither read nor written; decoded clips go to the system's temporary folder and are deleted.
    Raises UserError on invalid sources or options, and OSError.
    """
    return tuple(_estimate(source, folder, config) for source, folder in plan_outputs(config))


def _estimate(source: Source, folder: Location, config: BuildConfig) -> Estimate:
    with tempfile.TemporaryDirectory(prefix="vidshard-", ignore_cleanup_errors=True) as scratch:
        state = BuildState(Path(scratch) / "out")
        state.path.mkdir(parents=True)
        state.start(make_fingerprint(source, config))
        with BuildRun.open(source, config, state) as run:
            probes = run.probe_videos()
            plan = run.plan(probes)
            seconds_per_clip, bytes_per_clip, sampled_clips = run.sample(plan, probes)
            workers = run.executor.config.workers
    good = [probe for probe in probes if isinstance(probe, VideoMetadata)]
    return Estimate(
        folder=folder,
        videos=len(probes),
        unreadable=len(probes) - len(good),
        hours=sum(probe.num_frames / probe.fps for probe in good if probe.fps) / 3600,
        clips=plan.num_clips,
        shards=plan.num_shards,
        bytes=round(plan.num_clips * bytes_per_clip),
        seconds=seconds_per_clip * plan.num_clips / workers if sampled_clips else None,
        workers=workers,
        sampled_clips=sampled_clips,
    )


def _find_sources(config: BuildConfig) -> list[Source]:
    """Find the sources, excluding outputs inside them: the result must be the same in every run."""
    outputs = [config.out or DEFAULT_OUT / _source_name(config)]
    if isinstance(config.source, Url):
        urls = [out for out in outputs if isinstance(out, Url)]
        return find_remote_sources(config.source, normal=config.normal, leave_out=urls)
    if config.out is None and os.path.realpath(DEFAULT_OUT) != os.path.realpath(config.source):
        outputs += [DEFAULT_OUT / split for split in folders.SPLITS]
    local = [out for out in outputs if isinstance(out, Path)]
    both = [folder for out in local for folder in (out, manifest.log_folder(out))]
    return folders.find_sources(config.source, normal=config.normal, leave_out=both, follow_links=config.follow_links)


def _source_name(config: BuildConfig) -> str:
    if isinstance(config.source, Url):
        return os.path.splitext(config.source.name)[0] or "root"
    given = Path(os.path.abspath(config.source))  # `.` and a trailing slash have no name of their own
    return (given.name if given.is_dir() else given.stem) or "root"


def _apply_lists(sources: list[Source], config: BuildConfig) -> list[Source]:
    """Apply the user's split, group and annotation lists to the sources."""
    if config.sampling.mode == "annotated" and config.annotations is None:
        raise UserError("annotated sampling needs a list of events: pass `annotations` FILE")
    for path, apply in (
        (config.split_list, lists.apply_split_list),
        (config.source_groups, lists.apply_recordings),
        (config.annotations, lists.apply_annotations),
    ):
        if path is not None:
            matched = apply(sources, path)
            logger.info(matched.note)
            sources = matched.sources
    return sources


def output_folders(config: BuildConfig, sources: Sequence[Source]) -> list[Location]:
    """Return the output folder of each source."""
    if isinstance(config.source, Url):
        are_splits = any(source.root.as_posix().startswith(f"{config.source.as_posix()}/") for source in sources)
    else:
        given = Path(os.path.abspath(config.source))
        are_splits = any(source.root != given and given.is_dir() for source in sources)
    if are_splits:
        return [(config.out or DEFAULT_OUT) / (source.split or source.root.name) for source in sources]
    return [config.out or DEFAULT_OUT / _source_name(config)]


def build_set(source: Source, out: Location, config: BuildConfig) -> SetReport:
    """Build one source of `plan_outputs` into the shard folder `out`; `config.source` and `config.out` are ignored.

    Raises the same errors as `build`. A finished folder of the same build is left unchanged.
    """
    start = time.monotonic()
    report = _send_set(source, out, config) if isinstance(out, Url) else _build_folder(source, out, config)
    return dataclasses.replace(report, seconds=time.monotonic() - start)


def _send_set(source: Source, url: Url, config: BuildConfig) -> SetReport:
    """Build locally, then upload; for an existing set, upload only what changed."""
    upload.check_output(url)
    staging = upload.staging_folder(url, config.staging, of_several=url != config.out)
    finished = find_finished(url, source, config)
    if finished is not None and _change(finished, source, config) is None:
        return SetReport(folder=staging, url=url, manifest=finished.manifest, already_finished=True)
    if finished is not None:
        upload.download_set(url, staging)
    report = _build_folder(source, staging, config)
    uploaded = upload.upload_set(staging, url)
    logger.info(f"{url}: {counted(uploaded.sent, 'object')} uploaded, {uploaded.kept:,} unchanged")
    if config.staging is None:
        shutil.rmtree(staging)
    return dataclasses.replace(report, url=url, already_finished=False)


def _build_folder(source: Source, out: Path, config: BuildConfig) -> SetReport:
    check_output(out)
    state = BuildState(out)
    finished = find_finished(out, source, config)
    if finished is None or state.path.exists() or _change(finished, source, config):
        state.path.mkdir(parents=True, exist_ok=True)
        try:
            with lock.hold_whole(state.lock_path, state.tasks_path, what=str(out)):
                finish.commit(state)  # finish the commit of a killed run
                finished = find_finished(out, source, config)  # finished by another?
                if finished is None or _change(finished, source, config):
                    try:
                        return _build_locked(source, config, state, finished)
                    finally:
                        state.drop_fragments()  # useless to another run, and a full disk needs the space
                finish.tidy(out, finished.manifest)
                state.remove_all_but_lock()  # left by a run killed after writing the manifest
        finally:
            state.remove_if_empty()
    with (
        contextlib.suppress(OSError),  # record the current place of SOURCE, if the disk is writable
        BuildLog(finished.log_folder, root=source.root, about=str(config)) as log,
    ):
        log.line("finished before, nothing to do")
    return SetReport(folder=finished.folder, manifest=finished.manifest, already_finished=True)


def _change(finished: ShardSet, source: Source, config: BuildConfig) -> str | None:
    """Return the pending change to a finished set, or None."""
    if config.retry_failed and finished.manifest.videos["failed"]:
        return f"retry what failed in {finished.manifest.digest}"
    if config.extend and new_videos(finished, source):
        return f"extend {finished.manifest.digest}"
    return None


def _build_locked(source: Source, config: BuildConfig, state: BuildState, finished: ShardSet | None) -> SetReport:
    change, existing = None, None
    if finished is not None:
        check_packages(finished, config.codec)
        change = _change(finished, source, config)
        existing = ExistingSet(finished, source)
        state = BuildState(state.out, staged=True)
    elif config.extend:
        raise UserError(f"{state.out} contains no finished set to extend; build it first, without `extend`")
    fingerprint = make_fingerprint(source, config, change=change)
    state.start(fingerprint, retry_failed=config.retry_failed)
    with BuildRun.open(source, config, state, existing) as run:
        probes = run.probe_videos()
        plan = run.plan(probes)
        records = run.decode(plan, probes)
        about = finish.finish_set(
            state,
            CompleteBuild(
                source=source,
                fingerprint=fingerprint,
                probes=probes,
                plan=plan,
                records=records,
                read_rows=run.read_rows,
            ),
        )
        run.log.finish()
    return SetReport(folder=state.out, manifest=about, decoded_clips=run.decoded_clips)


@dataclass
class BuildRun:
    """Steps of one build, and their shared state."""

    source: Source
    config: BuildConfig
    state: BuildState
    existing: ExistingSet | None  # the finished set to change, if any
    executor: Executor
    log: BuildLog
    decoded_clips: int = 0
    new_failures: dict[str, Failure] = field(default_factory=dict)  # by path: a video may fail in several tasks
    unchanged: dict[int, ShardRecord] = field(default_factory=dict)  # shards of `existing` that stay

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, source: Source, config: BuildConfig, state: BuildState, existing: ExistingSet | None = None
    ) -> Iterator[Self]:
        """Provide a log and worker processes while the block runs; SIGTERM raises KeyboardInterrupt."""
        log_folder = manifest.log_folder(state.out)
        name = "workers.log" if state.task is None else f"workers.task-{state.task:05d}.log"
        with (
            BuildLog(log_folder, root=source.root, about=str(config), task=state.task) as log,
            sigterm_as_ctrl_c(),
            execution.make_executor(config.executor, _executor_config(config, log_folder / name)) as executor,
        ):
            yield cls(source, config, state, existing, executor, log)

    def probe_videos(self) -> list[Probe]:
        """Probe the packets of each video, and save the results: the plan follows from them and must not change."""
        before = self.state.read_probes()
        if before is not None:
            probes = dict(enumerate(before))
        else:
            probes = dict(self.existing.metadata) if self.existing is not None else {}
            if self.existing is not None and self.config.extend:
                probes |= self.existing.failed
            probes |= self.state.read_some_probes()
        if self.config.retry_failed:
            probes = {number: probe for number, probe in probes.items() if isinstance(probe, VideoMetadata)}
        missing = [number for number in range(len(self.source.videos)) if number not in probes]
        if missing:
            save_at = time.monotonic() + _SAVE_SECONDS
            with Progress("Reading packets", total=len(missing), unit="video") as progress:
                for number, probe in self._probe(missing):
                    probes[number] = probe
                    progress.advance()
                    if time.monotonic() >= save_at:  # with --full-check this takes hours
                        self.state.write_some_probes(probes)
                        save_at = time.monotonic() + _SAVE_SECONDS
        ordered = [probes[number] for number in range(len(self.source.videos))]
        if before is not None and self.config.retry_failed:
            self._forget_failures(before, ordered)
        write_probes(self.state.probes_path, ordered)
        self._check_max_failures()
        return ordered

    def _probe(self, numbers: Sequence[int]) -> Iterator[tuple[int, Probe]]:
        for result in self.executor.run(worker.probe_video, self._probe_tasks(numbers)):
            number = int(result.task.argument.table_path.stem)
            yield number, self._value(result, self.source.videos[number])

    def _forget_failures(self, before: Sequence[Probe], now: Sequence[Probe]) -> None:
        """Discard staged shards that lack a failed video, or that the new plan fills differently."""
        self.state.forget_failures()
        chunks: list[dict[int, list[Chunk]]] = []
        for probes in (before, now):
            chunks.append(defaultdict(list))
            for chunk in self.plan(probes).chunks:
                chunks[-1][chunk.shard].append(chunk)
        for shard in chunks[0].keys() | chunks[1].keys():
            if chunks[0][shard] != chunks[1][shard]:
                self.state.drop_record(shard)

    def _probe_tasks(self, numbers: Sequence[int]) -> Iterator[Task]:
        for number in numbers:
            video = self.source.videos[number]
            job = ProbeJob(
                video_path=self.source.root / video.path,
                table_path=self.state.table_path(number),
                sampling=self.config.sampling,
                events=video.events,
                full_check=self.config.full_check,
                allow_damaged=self.config.allow_damaged,
            )
            granted = _BYTES_PER_TIMEOUT_CHECKED if job.full_check or job.allow_damaged else _BYTES_PER_TIMEOUT
            extra = max(0, file_bytes(self.source, video)) / granted
            seconds = self.config.timeout_seconds * (1 + extra) + self._download_seconds(video)
            yield Task(argument=job, timeout_seconds=seconds, name=video.path)

    def _download_seconds(self, video: Video) -> float:
        """Return the download time limit for a video in seconds, retries included."""
        if isinstance(self.source.root, Path):
            return 0.0
        return _DOWNLOAD_SECONDS + max(0, file_bytes(self.source, video)) / _DOWNLOAD_BYTES_PER_SECOND

    def plan(self, probes: Sequence[Probe]) -> Plan:
        """Assign clips to shards."""
        counts = [probe.num_clips for probe in probes]
        generations, finished_shards = [list(range(len(probes)))], []
        if self.existing is not None:
            generations = self.existing.generations
        if self.existing is not None and self.config.extend:
            finished_shards = self.existing.shards_of_generations
            generations.append(new_videos(self.existing.shards, self.source))
        return shard_plan.plan_generations(
            counts, generations, shard_clips=self._shard_clips, finished_shards=finished_shards
        )

    @property
    def _shard_clips(self) -> int:
        return shard_plan.clips_per_shard(self.config.shape, self.config.shard_mb)

    @property
    def _sample_bytes(self) -> int:
        config = self.config
        return shard_plan.sample_bytes(config.shape, codec=config.codec, label_member=config.label_member)

    def decode(self, plan: Plan, probes: Sequence[Probe], shards: range | None = None) -> list[ShardRecord]:
        """Decode everything not yet committed; return the records of all shards, or of those in `shards`, in order."""
        shards = range(plan.num_shards) if shards is None else shards
        committed = self._committed(plan, shards)
        if committed and self.existing is None:
            logger.info(f"resuming: {len(committed):,} of {len(shards):,} shards are already finished")
        elif self.existing is not None:
            logger.info(f"{len(self.unchanged):,} of {plan.num_shards:,} shards stay unchanged")
        while True:
            records = {**committed, **self._decode_missing(plan, probes, committed, shards)}
            failed = {video for record in records.values() for video in record.failures}
            half = [shard for shard, record in records.items() if failed & record.decoders.keys()]
            if not half:
                return [records[shard] for shard in shards]
            # A video that spans shards failed now, after an earlier run had committed some of them. A video is ok or
            # failed, never half: rebuild these shards without it.
            for shard in half:
                self.state.drop_record(shard)
            committed = self._committed(plan, shards)

    def _committed(self, plan: Plan, shards: range) -> dict[int, ShardRecord]:
        self.unchanged = self.existing.unchanged(plan) if self.existing is not None else {}
        records = {shard: self.state.read_record(shard) for shard in shards if shard not in self.unchanged}
        return {**self.unchanged, **{shard: record for shard, record in records.items() if record is not None}}

    def read_rows(self, shard: int) -> Rows:
        """Return the rows of a shard, once all shards are there."""
        if self.existing is not None and shard in self.unchanged:
            return self.existing.rows_of(shard)
        return self.state.read_rows(shard)

    def _decode_missing(
        self, plan: Plan, probes: Sequence[Probe], committed: Mapping[int, ShardRecord], shards: range
    ) -> dict[int, ShardRecord]:
        known_failures = self.state.read_failures()  # of a stopped run: not retried
        known_failures |= {video: why for record in committed.values() for video, why in record.failures.items()}
        todo = {
            n: chunk for n, chunk in enumerate(plan.chunks) if chunk.shard in shards and chunk.shard not in committed
        }
        missing = [shard for shard in shards if shard not in committed]
        if not missing:
            return {}
        self._check_free_disk(list(todo.values()))
        seconds = [of_video / max(1, p.num_clips) for of_video, p in zip(video_seconds(probes), probes, strict=True)]
        num_seconds = sum(seconds[c.video] * c.num_clips for c in todo.values() if c.video not in known_failures)
        decoded_seconds = 0.0
        with (
            ShardJoiner(self.state, todo, missing, known_failures) as joiner,
            Progress("Decoding", total=int(num_seconds + 1e-3), unit="second") as progress,
        ):
            tasks = self._decode_tasks(todo, probes, joiner)
            for result in self._results(tasks):
                job: DecodeJob | CopyJob = result.task.argument
                outcome = self._value(result, job.video)
                self.log.seconds[job.video.path] += result.seconds
                if isinstance(outcome, Decoded) and isinstance(job, DecodeJob):
                    self.decoded_clips += sum(chunk.num_clips for chunk in job.chunks)
                joiner.settle(job, outcome)
                decoded_seconds += sum(seconds[chunk.video] * chunk.num_clips for chunk in job.chunks)
                note = f"{counted(self.decoded_clips, 'clip')}, {counted(len(joiner.failures), 'video')} failed"
                progress.advance(int(decoded_seconds + 1e-3) - progress.done, note=note)
                self._check_max_failures(joiner.failures)
            return joiner.wait()

    def _results(self, tasks: Iterator[Task]) -> Iterator[TaskResult]:
        """Yield the task results. If a decoder crashed the worker and `auto` has others, retry the task with those."""
        while True:
            crashed: list[Task] = []
            for result in self.executor.run(existing_set.run_job, tasks):
                if result.crash is not None and result.crash.is_of_decoder and self.config.decoder == decoders.AUTO:
                    self.log.line(f"{result.task.argument.video.path}: {result.crash.message}; trying the next decoder")
                    crashed.append(result.task)  # the worker remembers the decoder that crashed
                else:
                    yield result
            if not crashed:
                return
            tasks = iter(crashed)

    def sample(self, plan: Plan, probes: Sequence[Probe]) -> tuple[float, float, int]:
        """Decode some clips; return seconds per clip on one core, bytes per clip, and the number of clips."""
        chunks = [dataclasses.replace(u, clip_stop=min(u.clip_stop, u.clip_start + _SAMPLE_CLIPS)) for u in plan.chunks]
        random.Random(self.config.seed).shuffle(chunks)
        deadline = time.monotonic() + _SAMPLE_SECONDS
        tasks = itertools.takewhile(
            lambda _: time.monotonic() < deadline,
            (self._decode_task((number,), {number: chunk}, probes) for number, chunk in enumerate(chunks)),
        )
        seconds, size, count = 0.0, 0, 0
        for result in self.executor.run(existing_set.run_job, tasks):
            job: DecodeJob = result.task.argument
            if isinstance(self._value(result, job.video), Decoded):
                seconds += result.seconds
                size += sum(path.stat().st_size for path in job.fragment_paths)
                count += sum(chunk.num_clips for chunk in job.chunks)
            for path in job.fragment_paths:
                path.unlink(missing_ok=True)
        return (seconds / count, size / count, count) if count else (0.0, float(self._sample_bytes), 0)

    def _decode_tasks(self, todo: Mapping[int, Chunk], probes: Sequence[Probe], joiner: ShardJoiner) -> Iterator[Task]:
        share = sum(chunk.num_clips for chunk in todo.values()) // (_TASKS_PER_WORKER * self.executor.config.workers)
        for numbers in shard_plan.group_chunks(todo, max_clips=share):
            if todo[numbers[0]].video not in joiner.failures:
                yield self._decode_task(numbers, todo, probes)

    def _decode_task(self, numbers: Sequence[int], todo: Mapping[int, Chunk], probes: Sequence[Probe]) -> Task:
        """Create the task that writes the fragments of these chunks, all of one video."""
        chunks = tuple(todo[n] for n in numbers)
        number = chunks[0].video
        video = self.source.videos[number]
        fragment_paths = tuple(self.state.fragment_path(n) for n in numbers)
        extra = probes[number].num_frames / _FRAMES_PER_TIMEOUT
        job: DecodeJob | CopyJob | None = None
        if self.existing is not None:
            job = self.existing.copy_job(number, chunks, fragment_paths)
        if job is None:
            job = DecodeJob(
                video=video,
                split=self.source.split,
                video_path=self.source.root / video.path,
                table_path=self.state.table_path(number),
                chunks=chunks,
                fragment_paths=fragment_paths,
                config=self.config,
                damaged=probes[number].damage is not None,
            )
        seconds = self.config.timeout_seconds * (1 + extra) + self._download_seconds(video)
        return Task(argument=job, timeout_seconds=seconds, name=video.path)

    def _value(self, result: TaskResult, video: Video) -> Any:
        """Return the task's result, or a VideoFailure if the worker crashed or raised an unexpected error."""
        if isinstance(result.error, UserError):  # a missing library: not the video's fault
            raise result.error
        if isinstance(result.error, OSError):  # a full disk: not the video's fault either
            result.error.filename = result.error.filename or str(self.state.out)
            raise result.error
        if result.error is not None:
            stop = environment_error(result.error, result.error_trace, path=video.path)
            if stop is not None:
                self.log.line(result.error_trace)
                raise stop from result.error
        value = result.value
        if result.crash is not None:
            value = VideoFailure(reason=result.crash.reason, message=result.crash.message)
            if result.crash.measured:
                self.log.line(f"{video.path}: {result.crash.measured}")
        elif isinstance(result.error, MemoryError):
            value = VideoFailure(
                reason="out_of_memory", message=execution.too_little_memory(self.config.memory_mb << 20)
            )
        elif result.error is not None:
            self.log.line(result.error_trace)
            name = type(result.error).__name__
            value = VideoFailure(reason="unexpected_error", message=f"{name} in vidshard; build.log has the details")
        if isinstance(value, VideoFailure):
            full_path = str(self.source.root / video.path)
            message = failure_message(value.reason, value.message, path=video.path, full_path=full_path)
            value = dataclasses.replace(value, message=message)
            self.log.line(f"failed: {video.path}: {value.reason}: {value.message}")
            self.new_failures.setdefault(video.path, finish.failed_video(video.path, value))
        return value

    def _check_max_failures(self, failures: Mapping[int, VideoFailure] | None = None) -> None:
        """Raise UserError if too many videos failed in this run; the failures are saved for the next run to skip."""
        if self.config.max_failures is None or len(self.new_failures) <= self.config.max_failures:
            return
        if failures is not None:
            self.state.write_failures(failures)
        path = self.log.folder / layout.FAILURES_NAME
        finish.write_failures(path, list(self.new_failures.values()))
        reason, count = Counter(failure.reason for failure in self.new_failures.values()).most_common(1)[0]
        raise UserError(
            f"{counted(len(self.new_failures), 'video')} of {self.source.root} failed, more than `max_failures` "
            f"{self.config.max_failures} allows, most often ({count:,} times) because of {reason}; all are in {path}; "
            "finished shards are kept: the same command continues without retrying these videos"
        )

    def _check_free_disk(self, chunks: Sequence[Chunk]) -> None:
        needed = shard_plan.needed_bytes(chunks, shard_clips=self._shard_clips, sample_bytes=self._sample_bytes)
        free = shutil.disk_usage(self.state.path).free
        if needed > free:
            num_clips = sum(chunk.num_clips for chunk in chunks)
            raise UserError(
                f"not enough free disk space for {self.state.out}: {num_clips:,} clips need {_size(needed)}, "
                f"{_size(free)} are free; free some space, choose another `out`, or build fewer or smaller clips"
            )


def video_seconds(probes: Sequence[Probe]) -> list[float]:
    """Return the duration of each video, estimated where its frame rate is unknown; 0.0 without metadata."""
    return [p.num_frames / (p.fps or _UNKNOWN_FPS) if isinstance(p, VideoMetadata) else 0.0 for p in probes]


def subsample_videos(source: Source, config: BuildConfig) -> Source:
    """Keep `config.limit` videos of a source, drawn at random and balanced over classes; skip the others."""
    if config.limit is None or config.limit >= len(source.videos):
        return source
    generator = random.Random(config.seed)
    of_class: dict[str | None, list[Video]] = defaultdict(list)
    for video in source.videos:
        of_class[video.class_name].append(video)
    ranked = []
    for class_videos in of_class.values():
        generator.shuffle(class_videos)
        ranked += [(turn, path_bytes(video.path), video) for turn, video in enumerate(class_videos)]
    taken = {video.path for _, _, video in sorted(ranked, key=lambda row: row[:2])[: config.limit]}
    over = [video for video in source.videos if video.path not in taken]
    return dataclasses.replace(
        source,
        videos=tuple(video for video in source.videos if video.path in taken),
        skipped=folders.skip_videos(source, over, "over_limit", f"not among the {config.limit:,} videos of `limit`"),
    )


def _executor_config(config: BuildConfig, log_path: Path) -> ExecutorConfig:
    # Not fewer for few videos: a long video is divided into tasks, and a worker starts only when a task needs it.
    return ExecutorConfig(
        workers=config.workers if config.workers is not None else execution.available_cpus(),
        all_cpus=config.workers is None,
        memory_bytes=config.memory_mb << 20,
        unset_prefixes=LIBRARY_VARIABLES,
        stderr_path=log_path,
    )


@contextlib.contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM while the block runs; only possible in the main thread."""
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


def _size(num_bytes: int) -> str:
    """Format a number of bytes.

    >>> _size(1_500_000_000)
    '1.5 GB'
    """
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:,.1f} MB"
