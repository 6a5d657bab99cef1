"""What a build says at its end, for people."""

from __future__ import annotations

from vidshard.builder import BuildReport, SetReport
from vidshard.shard_format import FAILURES_NAME

_NUM_SHOWN = 5  # failures that are named


def build_summary(report: BuildReport) -> str:
    """The end of `vidshard build`, a few lines for each folder built."""
    return "\n".join(line for one in report.sets for line in _lines(one))


def _lines(one: SetReport) -> list[str]:
    built = one.manifest
    counts = ", ".join(f"{count:,} {name}" for name, count in built.videos.items() if count or name in ("found", "ok"))
    lines = [f"✓ {one.folder}" + (": finished before, nothing to do" if one.already_finished else "")]
    lines.append(f"  videos: {counts}")
    size = f"{one.num_bytes / 1e6:,.1f} MB"
    lines.append(f"  clips:  {built.num_clips:,} of {built.clip_shape} in {len(built.shards):,} shards, {size}")
    if not one.already_finished:
        rate = one.decoded_clips / one.seconds
        lines.append(
            f"  time:   {one.seconds:.1f} s, {rate:,.1f} clips/s, {built.videos_ok / one.seconds:,.1f} videos/s"
        )
    failed = [failure for failure in built.failures if failure.outcome == "failed"]
    for failure in failed[:_NUM_SHOWN]:
        lines.append(f"  failed: {failure.path}: {failure.reason}: {failure.message}")
    if failed:
        more = f"{len(failed) - _NUM_SHOWN:,} more; " if len(failed) > _NUM_SHOWN else ""
        lines.append(f"          {more}all in {one.folder / FAILURES_NAME}")
    return lines
