"""Build by an array of tasks on one folder, and `finalize`, which makes their shards one set.

No task waits for one that has not started: videos are probed in chunks, each by the first task that claims it, and
every task computes the same assignment of shards. `finalize` checks that everything is there and produces the same set,
byte for byte, as a single process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vidshard.building import existing_set, finish
from vidshard.building import run as builder
from vidshard.building.log import BuildLog
from vidshard.building.run import SetReport
from vidshard.building.worker import VideoFailure, VideoMetadata
from vidshard.execution import lock
from vidshard.execution.array_task import Numbering, TaskRequest
from vidshard.execution.lock import LockHeldError
from vidshard.planning import settings as build_config
from vidshard.planning import shard_plan
from vidshard.planning.build_state import ShardRecord, WorkFolder, check_output, describe_changes
from vidshard.planning.config import BuildConfig
from vidshard.planning.shard_plan import Plan
from vidshard.shards import layout, manifest, writer
from vidshard.shards.layout import ClipShape
from vidshard.shards.manifest import Failure
from vidshard.sources.folders import Source, Video
from vidshard.storage import urls
from vidshard.storage.urls import Url
from vidshard.util import atomic
from vidshard.util.console import Progress
from vidshard.util.errors import UserError

logger = logging.getLogger(__name__)

_MAX_CHUNKS = 64  # number of probe chunks of a small set
_CHUNK_VIDEOS = 512  # largest probe chunk
_WAIT_SECONDS = 1.0  # polling interval for the chunks of other tasks
_LOG_SECONDS = 30.0  # interval between messages about waiting
_UNKNOWN_FPS = 30.0


@dataclass(frozen=True, kw_only=True)
class PartReport:
    """Result of one array task for one shard folder."""

    folder: Path
    task: int
    num_tasks: int
    num_shards: int  # of the whole set; 0 if it was already finished
    shards: range  # of this task
    num_clips: int  # in these shards
    failed: tuple[Failure, ...]  # videos that failed in this task; `finalize` reports them, too
    seconds: float
    decoded_clips: int = 0  # in this run only
    already_finished: bool = False


def build_part(config: BuildConfig, request: TaskRequest) -> tuple[PartReport, ...]:
    """Build this array task's share of the videos. `finalize` makes the shares one set.

    Raises the errors of `build`, and UserError if another process builds the same share, or the whole set.
    """
    for name in ("extend", "retry_failed"):
        if getattr(config, name):
            raise UserError(
                f"`{name}` is not possible in array tasks: run it after `vidshard finalize`, with `task_count` 1"
            )
    if isinstance(config.out, Url):
        raise UserError(
            f"array tasks need a shared folder as output, not {config.out}; pass "
            f"`out` DIR and, after `vidshard finalize DIR`, upload it with "
            f"`vidshard build … --out {config.out} --staging DIR --task-count 1`"
        )
    sets = [(source, Path(str(out))) for source, out in builder.plan_outputs(config)]
    return tuple(_part_of_set(source, out, config, request) for source, out in sets)


def _part_of_set(source: Source, out: Path, config: BuildConfig, request: TaskRequest) -> PartReport:
    start = time.monotonic()
    source = builder.subsample_videos(source, config)
    settings = build_config.build_settings(config)
    check_output(out)
    work = WorkFolder(out=out)
    task, numbering = request.resolve(_read_numbering(work))
    finished = build_config.find_finished(out, source, settings, config)
    if finished is not None and not work.path.exists():
        return _nothing_to_do(out, task, numbering, start)
    logger.info(
        f"{request.origin}: building only part {task} (of 0 to {numbering.count - 1}) of {out}; "
        "pass `task_count` 1 to build all of it"
    )
    work = WorkFolder(out=out, task=task)
    work.tasks_path.mkdir(parents=True, exist_ok=True)
    with lock.hold_part(work.task_lock_path(task), work.lock_path, what=f"part {task} of {out}"):
        finished = build_config.find_finished(out, source, settings, config)  # `finalize` may have finished it
        if finished is not None:
            return _nothing_to_do(out, task, numbering, start)
        with lock.wait_for_lock(work.start_lock_path, what=str(out)):
            _agree_on(work, numbering, task)
            work.start(build_config.fingerprint(source, settings))
            if not work.source_path.exists():
                atomic.write_json(work.source_path, _source_to_json(source))
        log_folder = manifest.log_folder(out)
        try:
            with (
                BuildLog(log_folder, root=source.root, about=str(config), task=task) as log,
                builder.sigterm_as_ctrl_c(),
                builder.make_executor(log_folder, config, name=f"workers.task-{task:05d}.log") as executor,
            ):
                run = _PartRun(source, config, work, None, executor, log)
                facts = run.probe_share(task, numbering.count)
                plan = run.plan(facts)
                shards = _share(plan, facts, numbering.count)[task]
                logger.info(f"shards of this part: {_range_text(shards)} of {plan.num_shards:,}")
                records = run.decode(plan, facts, shards)
                log.finish(time.monotonic() - start)
        finally:
            work.drop_parts()
    return PartReport(
        folder=out,
        task=task,
        num_tasks=numbering.count,
        num_shards=plan.num_shards,
        shards=shards,
        num_clips=sum(len(record.rows) for record in records),
        failed=_failed_in(source, facts, plan, shards, records),
        seconds=time.monotonic() - start,
        decoded_clips=run.decoded_clips,
    )


def _nothing_to_do(out: Path, task: int, numbering: Numbering, start: float) -> PartReport:
    return PartReport(
        folder=out,
        task=task,
        num_tasks=numbering.count,
        num_shards=0,
        shards=range(0),
        num_clips=0,
        failed=(),
        seconds=time.monotonic() - start,
        already_finished=True,
    )


def _failed_in(
    source: Source, facts: builder.Facts, plan: Plan, shards: range, records: Sequence[ShardRecord]
) -> tuple[Failure, ...]:
    why = {video: reason for record in records for video, reason in record.failures.items()}
    if not shards or shards.start == 0:  # unreadable videos have no shard: the first task reports them
        why |= {n: (fact.reason, fact.message) for n, fact in enumerate(facts) if isinstance(fact, VideoFailure)}
    return tuple(
        Failure(path=source.videos[video].path, outcome="failed", reason=reason, message=message)
        for video, (reason, message) in sorted(why.items())
    )


def _agree_on(work: WorkFolder, numbering: Numbering, task: int) -> None:
    """Record the array's numbering; raise UserError if tasks of an array with another numbering are running."""
    recorded = _read_numbering(work)
    if recorded == numbering:
        return
    if recorded is not None:
        own = work.task_lock_path(task)
        others = [path for path in work.tasks_path.glob("*.lock") if path != own and lock.holder_of(path)]
        if others:
            raise UserError(
                f"{work.out} is being built by an array of {recorded.count} tasks, {len(others)} of which are running; "
                f"this task belongs to an array of {numbering.count}: wait for those tasks, or end them"
            )
    atomic.write_json(work.array_path, dataclasses.asdict(numbering))


def _read_numbering(work: WorkFolder) -> Numbering | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Numbering(**json.loads(work.array_path.read_bytes()))
    return None


def _share(plan: Plan, facts: builder.Facts, num_tasks: int) -> list[range]:
    """Assign shards to tasks, balanced by duration of video."""
    seconds = [
        fact.num_frames / (fact.fps or _UNKNOWN_FPS) if isinstance(fact, VideoMetadata) else 0.0 for fact in facts
    ]
    return shard_plan.share_shards(shard_plan.shard_costs(plan, seconds), num_tasks)


def _range_text(shards: range) -> str:
    """Format shard numbers as a range.

    >>> _range_text(range(3, 5)), _range_text(range(3, 4)), _range_text(range(3, 3))
    ('3 to 4', '3', 'none')
    """
    if len(shards) < 2:
        return str(shards.start) if shards else "none"
    return f"{shards.start} to {shards.stop - 1}"


class _PartRun(builder.Run):
    """Run of one array task, which probes videos together with the other tasks."""

    def probe_share(self, task: int, num_tasks: int) -> builder.Facts:
        """Probe this task's videos and collect the results of the others.

        A task starts at its own position and wraps around; it waits for a chunk that another task is probing, and
        probes it itself if that task dies. So every chunk is probed once, by whichever tasks run.
        """
        if self.work.read_probes() is None:
            chunks = _chunks(len(self.source.videos))
            first = task * len(chunks) // num_tasks
            self._read_chunks([*range(first, len(chunks)), *range(first)], chunks)
            with lock.wait_for_lock(self.work.start_lock_path, what=str(self.work.out)):
                if self.work.read_probes() is None:
                    probes = [_read_chunk(self.work, n) for n in range(len(chunks))]
                    self.work.write_probes([probe for chunk in probes for probe in chunk or []])
        return builder.facts_of(self.work.read_probes() or [])

    def _read_chunks(self, order: Sequence[int], chunks: Sequence[range]) -> None:
        self.work.some_probes_path(0).parent.mkdir(exist_ok=True)
        silence = lock.Silence()
        last_log = time.monotonic()
        missing = [number for number in order if _read_chunk(self.work, number) is None]
        title = "Reading packets, with the other tasks"
        with Progress(title, total=len(self.source.videos), unit="video") as progress:
            progress.advance(sum(map(len, chunks)) - sum(len(chunks[number]) for number in missing))
            while missing:
                left = []
                for number in missing:
                    if self._read_or_find(number, chunks[number], silence):
                        progress.advance(len(chunks[number]))
                    else:
                        left.append(number)
                if len(left) == len(missing):
                    if time.monotonic() - last_log >= _LOG_SECONDS:
                        last_log = time.monotonic()
                        logger.info(f"waiting for other tasks to probe {sum(len(chunks[n]) for n in left):,} videos")
                    time.sleep(_WAIT_SECONDS)
                missing = left

    def _read_or_find(self, number: int, videos: range, silence: lock.Silence) -> bool:
        """Probe a chunk unless another task claimed it; return True once its result exists."""
        path = self.work.some_probes_path(number)
        if path.exists():
            return True
        try:
            with lock.hold_lock(path.with_suffix(".lock"), what=f"chunk {number}", silence=silence):
                if not path.exists():
                    facts = dict(self._probe(videos))
                    atomic.write_json(path, [dataclasses.asdict(facts[video]) for video in videos])
        except LockHeldError:
            return False
        self._check_max_failures()
        return True


def _chunks(num_videos: int) -> list[range]:
    """Divide the videos into probe chunks. Depends only on their number, so that all tasks agree."""
    size = max(1, min(_CHUNK_VIDEOS, -(-num_videos // _MAX_CHUNKS)))
    return [range(start, min(start + size, num_videos)) for start in range(0, num_videos, size)]


def _read_chunk(work: WorkFolder, number: int) -> list[dict[str, Any]] | None:
    try:
        probes: list[dict[str, Any]] = json.loads(work.some_probes_path(number).read_bytes())
    except (OSError, ValueError):
        return None
    return probes


# ---- finalize


def finalize(out: Path) -> builder.BuildReport:
    """Make the shards that array tasks built in `out`, or in its split folders, finished sets.

    Raises UserError if shards are missing, listing the tasks to rerun; if the shards belong to different builds; if the
    videos have changed since; or if tasks still run. A finished set is left unchanged.
    """
    out = Path(out)
    if not out.is_dir():
        raise UserError(f"no folder {out}; pass the `out` of the build; its default is shards/<name of SOURCE>")
    folders = [out] if _is_set(out) else sorted(folder for folder in out.iterdir() if _is_set(folder))
    if not folders:
        raise UserError(f"{out} holds no build, finished or not; pass the `out` of the build")
    # Find the gaps of all sets before finishing any, so that the user resubmits tasks only once; and before taking any
    # lock, since a killed task may still seem to hold one.
    gaps = []
    for folder in folders:
        try:
            work = _work_of(folder)
            if work.source_path.exists():
                _check_complete(work)
        except _GapError as gap:
            gaps.append(gap)
    if gaps:
        raise _joined(gaps)
    return builder.BuildReport(sets=tuple(_finalize_set(folder) for folder in folders))


class _GapError(UserError):
    """Missing shards of a set, with the tasks that would build them."""

    def __init__(self, what: str, tasks: Sequence[int], numbering: Numbering, running: Sequence[int]) -> None:
        self.what, self.tasks, self.numbering, self.running = what, tasks, numbering, running
        super().__init__(self.what)


def _joined(gaps: Sequence[_GapError]) -> UserError:
    messages = []
    for numbering in dict.fromkeys(gap.numbering for gap in gaps):  # usually one
        alike = [gap for gap in gaps if gap.numbering == numbering]
        tasks = sorted({task for gap in alike for task in gap.tasks})
        running = sorted({task for gap in alike for task in gap.running})
        own = ", ".join(f"`task_index` {task}" for task in tasks[:8]) + (", …" if len(tasks) > 8 else "")
        messages.append(
            f"{'; '.join(gap.what for gap in alike)}; submit these tasks again: --array={numbering.numbers(tasks)} "
            f"(elsewhere {own} `task_count` {numbering.count})"
            + (f"; of these, {numbering.numbers(running)} seem to be still running: wait for them" if running else "")
        )
    return UserError("; ".join(messages))


def _work_of(out: Path) -> WorkFolder:
    return WorkFolder(out=out, task=0)  # with a task number, only shards of the same fingerprint count


def _is_set(folder: Path) -> bool:
    return WorkFolder(out=folder).path.is_dir() or (folder / layout.MANIFEST_NAME).is_file()


def _finalize_set(out: Path) -> SetReport:
    start = time.monotonic()
    work = _work_of(out)
    if not work.source_path.exists():
        about = manifest.open_shards(out).manifest  # raises UserError if it is not finished either
        return SetReport(folder=out, manifest=about, seconds=time.monotonic() - start, already_finished=True)
    with lock.hold_whole(work.lock_path, work.tasks_path, what=str(out), wait=True):
        parts = _check_complete(work)
        _check_unchanged(work, parts.source, parts.fingerprint)
        work.drop_partial()
        records = _without_half_videos(work, parts.records)
        finish.refuse_empty(work, parts.source, parts.facts, records)
        settings = parts.fingerprint["settings"]
        about, index_data = finish.make_set_manifest(
            parts.source,
            clip_shape=_shape(settings),
            settings=settings,
            codec=settings["codec"],
            packages=parts.fingerprint["packages"],
            plan=parts.plan,
            facts=parts.facts,
            records=records,
            video_bytes={path: size for path, size, *_ in parts.fingerprint["videos"]},
        )
        finish.finish(work, about, index_data)
        work.remove_all_but_lock()
        seconds = time.monotonic() - start
        with BuildLog(manifest.log_folder(out), root=parts.source.root, about="finalize") as log:
            log.finish(seconds)
    work.remove_if_empty()
    return SetReport(folder=out, manifest=about, seconds=seconds)


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """Results of all tasks."""

    source: Source
    fingerprint: dict[str, Any]
    facts: builder.Facts
    plan: Plan
    records: tuple[ShardRecord, ...]


def _shape(settings: dict[str, Any]) -> ClipShape:
    return ClipShape(num_frames=settings["clip_len"], height=settings["frame_size"], width=settings["frame_size"])


def _check_complete(work: WorkFolder) -> _Parts:
    """Load the tasks' results; raise _GapError if shards are missing."""
    numbering = _read_numbering(work) or Numbering(count=1)
    fingerprint = json.loads((work.path / "fingerprint.json").read_bytes())
    source = _source_from_json(json.loads(work.source_path.read_bytes()))
    probes = work.read_probes()
    if probes is None:
        raise _gap(work, numbering, range(numbering.count), "no task has finished probing the videos")
    facts = builder.facts_of(probes)
    counts = [fact.num_clips if isinstance(fact, VideoMetadata) else 0 for fact in facts]
    shard_clips = shard_plan.clips_per_shard(_shape(fingerprint["settings"]), fingerprint["settings"]["shard_mb"])
    plan = shard_plan.plan_generations(counts, [range(len(facts))], shard_clips=shard_clips)
    records = [work.read_record(shard) for shard in range(plan.num_shards)]
    missing = [shard for shard, record in enumerate(records) if record is None]
    if missing:
        shares = _share(plan, facts, numbering.count)
        again = [task for task, shards in enumerate(shares) if set(missing) & set(shards)]
        raise _gap(work, numbering, again, f"{len(missing):,} of {plan.num_shards:,} shards are missing")
    return _Parts(
        source=source,
        fingerprint=fingerprint,
        facts=facts,
        plan=plan,
        records=tuple(record for record in records if record is not None),
    )


def _gap(work: WorkFolder, numbering: Numbering, tasks: Sequence[int], what: str) -> _GapError:
    running = [task for task in tasks if lock.holder_of(work.task_lock_path(task))]
    return _GapError(f"{work.out} is not complete: {what}", tasks, numbering, running)


def _check_unchanged(work: WorkFolder, source: Source, fingerprint: dict[str, Any]) -> None:
    """Raise UserError if videos have changed in size or time since the tasks ran."""
    listing = urls.list_files(source.root) if isinstance(source.root, Url) else {}
    if isinstance(source.root, Path) and not source.root.is_dir():
        logger.warning(f"{source.root} cannot be read: not checked whether its videos have changed since the build")
        return
    changed = []
    for path, size, *_, modified in fingerprint["videos"]:
        now: tuple[int | None, int | str | None] = (-1, None)
        if isinstance(source.root, Path):
            with contextlib.suppress(OSError):
                about = (source.root / path).stat()
                now = (about.st_size, about.st_mtime_ns)
        elif path in listing:
            now = (listing[path].size, listing[path].version)
        if now != (size, modified):
            changed.append(path)
    if changed:
        raise UserError(
            f"videos of {source.root} changed during the build of {work.out} "
            f"({describe_changes([], [], changed)}); delete {work.out} and build it again"
        )


def _without_half_videos(work: WorkFolder, records: Sequence[ShardRecord]) -> list[ShardRecord]:
    """Remove the clips of videos that failed in another task; return the corrected records.

    A video is ok or failed, never half. Its samples are cut out of the shard; nothing is decoded again.
    """
    failed: dict[int, tuple[str, str]] = {}
    for record in reversed(records):  # the first of several failures of a video counts
        failed.update(record.failures)
    whole = []
    for shard, record in enumerate(records):
        bad = sorted(failed.keys() & set(record.rows["video"].tolist()))
        if bad:
            record = _cut_out(work, shard, record, bad)
        touched = [*record.failures, *bad]
        record = dataclasses.replace(
            record,
            failures={video: failed[video] for video in sorted(touched)},
            decoders={video: name for video, name in record.decoders.items() if video not in failed},
        )
        if bad:
            work.write_record(shard, record)
        whole.append(record)
    return whole


def _cut_out(work: WorkFolder, shard: int, record: ShardRecord, videos: Sequence[int]) -> ShardRecord:
    """Rewrite a shard without the samples of these videos. Until that is done, the shard counts as missing."""
    work.parts_path.mkdir(exist_ok=True)
    part = work.parts_path / f"shard-{shard}"
    left = record.rows[~np.isin(record.rows["video"], videos)]
    rows = existing_set.copy_samples(work.out, left, part)
    rows["shard"], rows["video"] = shard, left["video"]
    size, sha256 = writer.join_parts(work.shard_path(shard), [part])
    part.unlink()
    return dataclasses.replace(record, bytes=size, sha256=sha256, rows=rows)


def _source_to_json(source: Source) -> dict[str, Any]:
    return {
        "root": str(source.root),
        "split": source.split,
        "videos": [dataclasses.astuple(video) for video in source.videos],
        "skipped": [dataclasses.asdict(failure) for failure in source.skipped],
    }


def _source_from_json(fields: dict[str, Any]) -> Source:
    names = [field.name for field in dataclasses.fields(Video)]

    def video(row: Sequence[Any]) -> Video:
        values = dict(zip(names, row, strict=True))
        return Video(**{**values, "events": tuple((first, last) for first, last in values["events"])})

    return Source(
        root=urls.location(fields["root"]),
        split=fields["split"],
        videos=tuple(video(row) for row in fields["videos"]),
        skipped=tuple(Failure(**row) for row in fields["skipped"]),
    )
