"""Build by an array of tasks on one folder, and `finalize`, which joins their shards into one set.

No task waits for one that has not started: videos are probed in batches, each by the first task that claims it, and
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
from vidshard.building.finish import CompleteBuild
from vidshard.building.log import BuildLog
from vidshard.building.run import BuildReport, BuildRun, SetReport, plan_outputs, video_seconds
from vidshard.execution.array_task import Numbering, TaskRequest
from vidshard.planning import shard_plan
from vidshard.planning.build_state import (
    BuildState,
    ShardRecord,
    check_output,
    describe_changes,
    read_probes,
    write_probes,
)
from vidshard.planning.config import BuildConfig
from vidshard.planning.settings import clip_shape, find_finished, make_fingerprint
from vidshard.planning.shard_plan import Plan
from vidshard.planning.video_metadata import Probe, VideoFailure
from vidshard.shards import layout, manifest, writer
from vidshard.shards.manifest import Failure
from vidshard.sources.folders import Source, Video
from vidshard.storage import urls
from vidshard.storage.urls import Url
from vidshard.util import atomic, lock
from vidshard.util.console import Progress
from vidshard.util.errors import UserError
from vidshard.util.lock import LockHeldError
from vidshard.util.text import counted, first_of

logger = logging.getLogger(__name__)

_MAX_BATCHES = 64  # number of probe batches of a small set
_BATCH_VIDEOS = 512  # largest probe batch
_WAIT_SECONDS = 1.0  # polling interval for the batches of other tasks
_LOG_SECONDS = 30.0  # interval between messages about waiting


@dataclass(frozen=True, kw_only=True)
class ArrayTaskReport:
    """Result of one array task for one shard folder."""

    folder: Path
    task: int
    num_tasks: int
    num_shards: int = 0  # of the whole set
    shards: range = range(0)  # of this task
    num_clips: int = 0  # in these shards
    failed: tuple[Failure, ...] = ()  # videos that failed in this task; `finalize` reports them, too
    seconds: float = 0.0
    decoded_clips: int = 0  # in this run only
    already_finished: bool = True


def build_task(config: BuildConfig, request: TaskRequest) -> tuple[ArrayTaskReport, ...]:
    """Build this array task's share of the videos. `finalize` joins the shares into one set.

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
    sets = list(plan_outputs(config))
    return tuple(_build_set_task(source, Path(str(out)), config, request) for source, out in sets)


def _build_set_task(source: Source, out: Path, config: BuildConfig, request: TaskRequest) -> ArrayTaskReport:
    start = time.monotonic()
    check_output(out)
    state = BuildState(out)
    task, numbering = request.resolve(_read_numbering(state))
    nothing = ArrayTaskReport(folder=out, task=task, num_tasks=numbering.count)
    if find_finished(out, source, config) is not None and not state.path.exists():
        return nothing
    logger.info(
        f"{request.origin}: building only task {task} (of 0 to {numbering.count - 1}) of {out}; "
        "pass `task_count` 1 to build all of it"
    )
    state = BuildState(out, task=task)
    state.tasks_path.mkdir(parents=True, exist_ok=True)
    with lock.hold_task(state.task_lock_path(task), state.lock_path, what=f"task {task} of {out}"):
        if find_finished(out, source, config) is not None:  # `finalize` may have finished it
            return nothing
        with lock.wait_for_lock(state.start_lock_path, what=str(out)):
            _record_numbering(state, numbering, task)
            state.start(make_fingerprint(source, config))
            if not state.source_path.exists():
                atomic.write_json(state.source_path, source_to_json(source))
        try:
            with _ArrayTaskRun.open(source, config, state) as run:
                probes = run.probe_share(task, numbering.count)
                plan = run.plan(probes)
                shards = _share(plan, probes, numbering.count)[task]
                logger.info(f"shards of this task: {_range_text(shards)} of {plan.num_shards:,}")
                records = run.decode(plan, probes, shards)
                run.log.finish()
        finally:
            state.drop_fragments()
    failed = {video: failure for record in records for video, failure in record.failures.items()}
    if not shards or shards.start == 0:  # unreadable videos have no shard: the first task reports them
        failed |= {video: probe for video, probe in enumerate(probes) if isinstance(probe, VideoFailure)}
    return dataclasses.replace(
        nothing,
        num_shards=plan.num_shards,
        shards=shards,
        num_clips=sum(record.num_clips for record in records),
        failed=tuple(finish.failed_video(source.videos[n].path, failed[n]) for n in sorted(failed)),
        seconds=time.monotonic() - start,
        decoded_clips=run.decoded_clips,
        already_finished=False,
    )


def _record_numbering(state: BuildState, numbering: Numbering, task: int) -> None:
    """Record the array's numbering; raise UserError if tasks of an array with another numbering are running."""
    recorded = _read_numbering(state)
    if recorded == numbering:
        return
    if recorded is not None:
        own = state.task_lock_path(task)
        others = [path for path in state.tasks_path.glob("*.lock") if path != own and lock.holder_of(path)]
        if others:
            raise UserError(
                f"{state.out} is being built by an array of {recorded.count} tasks, {len(others)} of which are "
                f"running; this task belongs to an array of {numbering.count}: wait for those tasks, or cancel them"
            )
    atomic.write_json(state.array_path, dataclasses.asdict(numbering))


def _read_numbering(state: BuildState) -> Numbering | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Numbering(**json.loads(state.array_path.read_bytes()))
    return None


def _share(plan: Plan, probes: Sequence[Probe], num_tasks: int) -> list[range]:
    """Assign shards to tasks, balanced by duration of video."""
    return shard_plan.share_shards(shard_plan.shard_costs(plan, video_seconds(probes)), num_tasks)


def _range_text(shards: range) -> str:
    """Format shard numbers as a range.

    >>> _range_text(range(3, 5)), _range_text(range(3, 4)), _range_text(range(3, 3))
    ('3 to 4', '3', 'none')
    """
    if len(shards) < 2:
        return str(shards.start) if shards else "none"
    return f"{shards.start} to {shards.stop - 1}"


class _ArrayTaskRun(BuildRun):
    """Run of one array task, which probes videos together with the other tasks."""

    def probe_share(self, task: int, num_tasks: int) -> Sequence[Probe]:
        """Probe this task's videos and collect the results of the others.

        A task starts at its own position and wraps around; it waits for a batch that another task is probing, and
        probes it itself if that task dies. So every batch is probed once, by whichever tasks run.
        """
        probes = self.state.read_probes()
        if probes is None:
            batches = _probe_batches(len(self.source.videos))
            first = task * len(batches) // num_tasks
            self._read_batches([*range(first, len(batches)), *range(first)], batches)
            probes = [probe for number in range(len(batches)) for probe in self._read_batch(number) or []]
            with lock.wait_for_lock(self.state.start_lock_path, what=str(self.state.out)):
                if self.state.read_probes() is None:
                    write_probes(self.state.probes_path, probes)
        return probes

    def _read_batch(self, number: int) -> list[Probe] | None:
        return read_probes(self.state.probe_batch_path(number))

    def _read_batches(self, order: Sequence[int], batches: Sequence[range]) -> None:
        self.state.probe_batch_path(0).parent.mkdir(exist_ok=True)
        watch = lock.StalenessWatch()
        last_log = time.monotonic()
        missing = [number for number in order if self._read_batch(number) is None]
        title = "Reading packets, with the other tasks"
        with Progress(title, total=len(self.source.videos), unit="video") as progress:
            progress.advance(sum(map(len, batches)) - sum(len(batches[number]) for number in missing))
            while missing:
                left = []
                for number in missing:
                    if self._read_or_find(number, batches[number], watch):
                        progress.advance(len(batches[number]))
                    else:
                        left.append(number)
                if len(left) == len(missing):
                    if time.monotonic() - last_log >= _LOG_SECONDS:
                        last_log = time.monotonic()
                        logger.info(
                            f"waiting for other tasks to probe {counted(sum(len(batches[n]) for n in left), 'video')}"
                        )
                    time.sleep(_WAIT_SECONDS)
                missing = left

    def _read_or_find(self, number: int, videos: range, watch: lock.StalenessWatch) -> bool:
        """Probe a batch unless another task claimed it; return True once its result exists."""
        path = self.state.probe_batch_path(number)
        if path.exists():
            return True
        try:
            with lock.hold_lock(path.with_suffix(".lock"), what=f"probe batch {number}", watch=watch):
                if not path.exists():
                    probes = dict(self._probe(videos))
                    write_probes(path, [probes[video] for video in videos])
        except LockHeldError:
            return False
        self._check_max_failures()
        return True


def _probe_batches(num_videos: int) -> list[range]:
    """Divide the videos into probe batches. Depends only on their number, so that all tasks agree."""
    size = max(1, min(_BATCH_VIDEOS, -(-num_videos // _MAX_BATCHES)))
    return [range(start, min(start + size, num_videos)) for start in range(0, num_videos, size)]


# ---- finalize


def finalize(out: Path) -> BuildReport:
    """Join the shards that array tasks built in `out`, or in its split folders, into finished sets.

    Raises UserError if shards are missing, listing the tasks to rerun; if the shards belong to different builds; if the
    videos have changed since; or if tasks still run. A finished set is left unchanged.
    """
    out = Path(out)
    if not out.is_dir():
        raise UserError(f"no folder {out}; pass the `out` of the build (default: shards/<name of SOURCE>)")
    folders = [out] if _is_set(out) else sorted(folder for folder in out.iterdir() if _is_set(folder))
    if not folders:
        raise UserError(f"{out} contains no build, finished or unfinished; pass the `out` of the build")
    # Find the gaps of all sets before finishing any, so that the user resubmits tasks only once; and before taking any
    # lock, since a killed task may still seem to hold one.
    gaps = []
    for folder in folders:
        try:
            state = _state_of(folder)
            if state.source_path.exists() and not _is_finished(folder):
                _check_complete(state)
        except _GapError as gap:
            gaps.append(gap)
        except FileNotFoundError:
            if not _is_finished(folder):  # by another process, which has just deleted the state
                raise
    if gaps:
        raise _joined(gaps)
    return BuildReport(sets=tuple(map(_finalize_or_wait, folders)))


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
        own = first_of((f"`task_index` {task}" for task in tasks), 8)
        messages.append(
            f"{'; '.join(gap.what for gap in alike)}; submit these tasks again: --array={numbering.numbers(tasks)} "
            f"(elsewhere {own} `task_count` {numbering.count})"
            + (f"; of these, {numbering.numbers(running)} seem to be still running: wait for them" if running else "")
        )
    return UserError("; ".join(messages))


def _state_of(out: Path) -> BuildState:
    return BuildState(out, task=0)  # with a task number, only shards of the same fingerprint count


def _is_set(folder: Path) -> bool:
    return BuildState(folder).path.is_dir() or _is_finished(folder)


def _is_finished(folder: Path) -> bool:
    return (folder / layout.MANIFEST_NAME).is_file()


def _finalize_or_wait(out: Path) -> SetReport:
    """Finalize a set, unless another process finishes it meanwhile, and deletes the state."""
    try:
        report = _finalize_set(out)
    except FileNotFoundError:
        if not _is_finished(out):
            raise
        report = _finalize_set(out)
    _state_of(out).remove_if_empty()
    return report


def _finalize_set(out: Path) -> SetReport:
    start = time.monotonic()
    state = _state_of(out)
    if _is_finished(out) or not state.source_path.exists():
        about = manifest.open_shards(out).manifest  # raises UserError if it is not finished either
        _remove_leftovers(state)
        return SetReport(folder=out, manifest=about, already_finished=True)
    with lock.hold_whole(state.lock_path, state.tasks_path, what=str(out), wait=True):
        if _is_finished(out):  # by another process, which held the lock
            state.remove_all_but_lock()
            return SetReport(folder=out, manifest=manifest.open_shards(out).manifest, already_finished=True)
        built = _check_complete(state)
        _check_unchanged(state, built.source, built.fingerprint)
        state.drop_partial()
        label_member = built.fingerprint["settings"].get("label_member", False)
        built = dataclasses.replace(built, records=_without_half_videos(state, built.records, label_member))
        with BuildLog(manifest.log_folder(out), root=built.source.root, about="finalize") as log:
            about = finish.finish_set(state, built)
            log.finish()
    return SetReport(folder=out, manifest=about, seconds=time.monotonic() - start)


def _remove_leftovers(state: BuildState) -> None:
    """Delete the leftovers of a `finalize` that was killed after writing the manifest, the last file of a set."""
    left = [path for path in state.path.glob("*") if path != state.lock_path]
    if state.path.is_dir() and (state.source_path in left or not left):
        with lock.hold_whole(state.lock_path, state.tasks_path, what=str(state.out), wait=True):
            state.drop_partial()
            state.remove_all_but_lock()
        state.remove_if_empty()


def _check_complete(state: BuildState) -> CompleteBuild:
    """Load the tasks' results; raise _GapError if shards are missing."""
    numbering = _read_numbering(state) or Numbering(count=1)
    fingerprint = json.loads(state.fingerprint_path.read_bytes())
    source = _source_from_json(json.loads(state.source_path.read_bytes()))
    probes = state.read_probes()
    if probes is None:
        raise _gap(state, numbering, range(numbering.count), "no task has finished probing the videos")
    settings = fingerprint["settings"]
    shard_clips = shard_plan.clips_per_shard(clip_shape(settings), settings["shard_mb"])
    plan = shard_plan.plan_generations(
        [probe.num_clips for probe in probes], [range(len(probes))], shard_clips=shard_clips
    )
    records = [state.read_record(shard) for shard in range(plan.num_shards)]
    missing = [shard for shard, record in enumerate(records) if record is None]
    if missing:
        shares = _share(plan, probes, numbering.count)
        again = [task for task, shards in enumerate(shares) if set(missing) & set(shards)]
        raise _gap(state, numbering, again, f"{len(missing):,} of {plan.num_shards:,} shards are missing")
    return CompleteBuild(
        source=source,
        fingerprint=fingerprint,
        probes=probes,
        plan=plan,
        records=[record for record in records if record is not None],
        read_rows=state.read_rows,
    )


def _gap(state: BuildState, numbering: Numbering, tasks: Sequence[int], what: str) -> _GapError:
    running = [task for task in tasks if lock.holder_of(state.task_lock_path(task))]
    return _GapError(f"{state.out} is not complete: {what}", tasks, numbering, running)


def _check_unchanged(state: BuildState, source: Source, fingerprint: dict[str, Any]) -> None:
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
            f"videos of {source.root} changed during the build of {state.out} "
            f"({describe_changes([], [], changed)}); delete {state.out} and build it again"
        )


def _without_half_videos(state: BuildState, records: Sequence[ShardRecord], label_member: bool) -> list[ShardRecord]:
    """Remove the clips of videos that failed in another task; return the corrected records.

    A video succeeds or fails as a whole. Its samples are removed from the shard; nothing is decoded again.
    """
    failed: dict[int, VideoFailure] = {}
    for record in reversed(records):  # the first of several failures of a video counts
        failed.update(record.failures)
    whole = []
    for shard, record in enumerate(records):
        bad = failed.keys() & record.decoders.keys()
        touched = record.failures.keys() | bad
        if touched:
            record = dataclasses.replace(
                record,
                failures={video: failed[video] for video in sorted(touched)},
                decoders={video: name for video, name in record.decoders.items() if video not in bad},
            )
        whole.append(_cut_out(state, shard, record, sorted(bad), label_member) if bad else record)
    return whole


def _cut_out(
    state: BuildState, shard: int, record: ShardRecord, videos: Sequence[int], label_member: bool
) -> ShardRecord:
    """Rewrite a shard without the samples of these videos. Until that is done, the shard counts as missing."""
    state.fragments_path.mkdir(exist_ok=True)
    fragment = state.fragments_path / f"shard-{shard}"
    rows = state.read_rows(shard)
    left = rows[~np.isin(rows["video"], videos)]
    rows = existing_set.copy_samples(state.out, left, fragment, label_member=label_member)
    rows["shard"], rows["video"] = shard, left["video"]
    size, sha256 = writer.join_fragments(state.shard_path(shard), [fragment])
    fragment.unlink()
    record = dataclasses.replace(record, bytes=size, sha256=sha256, num_clips=len(rows))
    state.write_record(shard, record, rows)
    return record


def source_to_json(source: Source) -> dict[str, Any]:
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
