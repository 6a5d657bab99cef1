"""Human-readable build summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from vidshard.building.array import ArrayTaskReport
from vidshard.building.run import BuildReport, Estimate, SetReport
from vidshard.shards.layout import FAILURES_NAME
from vidshard.shards.manifest import Failure, Manifest
from vidshard.util.console import shown_line
from vidshard.util.text import counted

_NUM_SHOWN = 5  # failures that are listed


def build_summary(report: BuildReport) -> str:
    """Summarise a build: a few lines per folder."""
    return "\n".join(line for one in report.sets for line in _lines(one))


def _lines(one: SetReport) -> list[str]:
    built = one.manifest
    counts = ", ".join(f"{count:,} {name}" for name, count in built.videos.items() if count or name in ("found", "ok"))
    lines = [f"✓ {one.where}" + (": finished before, nothing to do" if one.already_finished else "")]
    lines.append(f"  videos: {counts}")
    size = f"{one.num_bytes / 1e6:,.1f} MB"
    lines.append(
        f"  clips:  {built.num_clips:,} of {built.clip_shape} in {counted(len(built.shards), 'shard')}, {size}"
    )
    if not one.already_finished:
        rates = f", {one.decoded_clips / one.seconds:,.1f} clips/s, {built.videos_ok / one.seconds:,.1f} videos/s"
        lines.append(f"  time:   {one.seconds:.1f} s{rates if one.decoded_clips else ''}")
    if built.breaks:
        lines.append(f"  breaks: {_breaks_text(built)}")
    skipped = Counter(failure.reason for failure in built.failures if failure.outcome == "skipped")
    if skipped:
        lines.append(f"  skipped: {', '.join(f'{count:,} {reason}' for reason, count in sorted(skipped.items()))}")
    return lines + _failed_lines(built.failed, f"all in {one.where / FAILURES_NAME}")


def _breaks_text(built: Manifest) -> str:
    several = len(built.breaks) > 1
    what = f"{len(built.breaks):,} video{'s have' if several else ' has'} long gaps, or jumps of the clock"
    mode = built.settings.get("mode")
    return f"{what}; " + ("uniform counts frames and ignores them" if mode == "uniform" else "no clip crosses one")


def _failed_lines(failed: Sequence[Failure], where: str) -> list[str]:
    lines = [f"  failed: {one.path}: {one.reason}: {one.message}" for one in failed[:_NUM_SHOWN]]
    lines = list(map(shown_line, lines))
    if failed:
        more = f"{len(failed) - _NUM_SHOWN:,} more; " if len(failed) > _NUM_SHOWN else ""
        lines.append(f"          {more}{where}")
    return lines


def array_task_summary(reports: Sequence[ArrayTaskReport]) -> str:
    """Summarise the build of one array task: a few lines per folder."""
    return "\n".join(line for one in reports for line in _array_task_lines(one))


def _array_task_lines(one: ArrayTaskReport) -> list[str]:
    if one.already_finished:
        return [f"✓ {one.folder}: finished before, nothing to do"]
    what = f"{len(one.shards):,} of {one.num_shards:,} shards" if one.shards else "no shards: fewer shards than tasks"
    lines = [f"✓ task {one.task} (of 0 to {one.num_tasks - 1}) of {one.folder}: {what}"]
    rate = one.decoded_clips / one.seconds
    lines.append(
        f"  clips:  {one.num_clips:,}, {one.decoded_clips:,} of them now, {one.seconds:.1f} s, {rate:,.1f} clips/s"
    )
    lines += _failed_lines(one.failed, "all in failures.csv once the set is finished")
    lines.append(f"  when all tasks are done: vidshard finalize {one.folder}")
    return lines


def dry_run_summary(estimates: Sequence[Estimate]) -> str:
    """Summarise a dry run: a few lines per folder."""
    return "\n".join(line for one in estimates for line in _estimate_lines(one))


def _estimate_lines(one: Estimate) -> list[str]:
    unreadable = f", {one.unreadable:,} of them cannot be read" if one.unreadable else ""
    lines = [f"{one.folder} (dry run, nothing written)"]
    lines.append(f"  videos: {one.videos:,}{unreadable}, {one.hours:,.2f} hours")
    lines.append(f"  clips:  {one.clips:,} in {counted(one.shards, 'shard')}, about {one.bytes / 1e6:,.1f} MB")
    if one.seconds is not None:
        workers = counted(one.workers, "worker")
        lines.append(
            f"  time:   about {_duration(one.seconds)} with {workers} (measured on "
            f"{counted(one.sampled_clips, 'clip')})"
        )
    elif one.clips:
        lines.append("  time:   unknown: none of the sampled clips could be decoded")
    return lines


def _duration(seconds: float) -> str:
    """Format a duration.

    >>> _duration(4.2), _duration(200), _duration(9000)
    ('4 s', '3 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
