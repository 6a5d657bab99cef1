"""Summary of a shard folder from its manifest and index; no shard is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vidshard.shards import layout, remote_set
from vidshard.storage.urls import Location
from vidshard.util import console
from vidshard.util.text import counted

_MAX_ROWS = 8  # entries of a list; the rest is summed


def inspect_shards(folder: Location) -> dict[str, Any]:
    """Summarise a shard folder as JSON types. Raises UserError if `folder` is not a finished shard folder."""
    shards = remote_set.open_metadata(folder)
    built, index = shards.manifest, shards.index
    videos, rows = index.videos, index.clips
    fps, seconds = index.fps, index.seconds
    flagged = {flag: rows["flags"] & layout.flags_to_bits((flag,)) != 0 for flag in layout.FLAGS}
    return {
        "folder": str(folder),
        "digest": built.digest,
        "split": built.split,
        "clip_shape": list(built.clip_shape.thwc),
        "codec": built.codec,
        "generation": built.generation,
        "videos": built.videos,
        "clips": built.num_clips,
        "shards": len(built.shards),
        "bytes": sum(shard.bytes for shard in built.shards),
        "classes": [row.to_json() for row in built.classes],
        "source_groups": len(index.recordings),
        "seconds": {"total": round(float(seconds.sum()), 1), **_spread(seconds)},
        "fps": _spread(fps),
        "frame_gap_seconds": _spread(rows["frame_gap_seconds"].astype(np.float64)),
        "resolutions": _counts(f"{w}×{h}" for w, h in zip(videos["width"], videos["height"], strict=True)),
        "decoders": _counts(index.decoder(row) or "unknown" for row in range(len(videos))),
        "videos_with_breaks": len(built.breaks),
        "breaks": sum(built.breaks.values()),
        "repeated_clips": int(flagged["repeated"].sum()),
        "damaged_clips": int(flagged["damaged"].sum()),
        "failures": _counts(f"{failure.outcome}({failure.reason})" for failure in built.failures),
        "settings": built.settings,
        "packages": built.packages,
    }


def contents_text(about: Mapping[str, Any]) -> str:
    """Format the result of `inspect_shards` for people."""
    videos, seconds = about["videos"], about["seconds"]
    lines = [
        f"{about['folder']}: split {about['split'] or 'none'}, clips uint8 {tuple(about['clip_shape'])}, "
        f"{about['codec']}{', with label members' if about['settings'].get('label_member') else ''}",
        f"  videos       {', '.join(f'{count:,} {name}' for name, count in videos.items())}",
        f"  clips        {about['clips']:,} in {counted(about['shards'], 'shard')}, {about['bytes'] / 1e6:,.1f} MB",
        f"  sampling     {_sampling(about['settings'])}",
        "",
        *_class_table(about["classes"]),
        "",
        f"  length       {_spread_text(seconds, 's')}, {seconds['total'] / 3600:,.2f} hours in all",
        f"  frame rate   {_spread_text(about['fps'], 'frames/s')}",
        f"  frame gap    {_spread_text(about['frame_gap_seconds'], 's')} between the frames of a clip",
        f"  resolutions  {_counts_text(about['resolutions'])}",
        f"  decoders     {_counts_text(about['decoders'])}",
        f"  recordings   {about['source_groups'] or 'not known'}",
        f"  breaks       {_breaks_text(about['breaks'], about['videos_with_breaks'])}",
        f"  repeats      {about['repeated_clips']:,} clips repeat frames: video, or part between breaks, too short",
        f"  failures     {_counts_text(about['failures']) or 'none'}",
    ]
    return "\n".join(map(console.shown_line, lines))


def _spread(values: npt.NDArray[np.float64]) -> dict[str, float]:
    """Return minimum, median and maximum; zeros if there are no values."""
    if not len(values):
        return {"min": 0.0, "median": 0.0, "max": 0.0}
    parts = {"min": values.min(), "median": np.median(values), "max": values.max()}
    return {name: round(float(value), 4) for name, value in parts.items()}


def _counts(values: Any) -> dict[str, int]:
    """Count the values, most frequent first."""
    return dict(sorted(Counter(values).items(), key=lambda row: (-row[1], row[0])))


def _class_table(classes: Sequence[Mapping[str, Any]]) -> list[str]:
    width = max([5, *(len(row["class"] or "(no class)") for row in classes)])
    rows = [f"  {'class':<{width}}  label  {'videos':>7}  {'clips':>9}"]
    for row in classes:
        name = row["class"] or "(no class)"
        rows.append(f"  {name:<{width}}  {row['label']:>5}  {row['videos']:>7,}  {row['clips']:>9,}")
    return rows


def _sampling(settings: Mapping[str, Any]) -> str:
    names = ("mode", "clip_len", "clips_per_video", "stride", "frame_step", "fps", "frame_size", "resize")
    return ", ".join(f"{name} {settings[name]}" for name in names if name in settings)


def _breaks_text(breaks: int, videos: int) -> str:
    if not breaks:
        return "none known"
    return f"{breaks:,} in {counted(videos, 'video')}: long gaps in the recording, or jumps of its clock"


def _spread_text(spread: Mapping[str, float], unit: str) -> str:
    return f"{spread['min']:g} to {spread['max']:g} {unit}, median {spread['median']:g}"


def _counts_text(counts: Mapping[str, int]) -> str:
    shown = [f"{name} ({count:,})" for name, count in list(counts.items())[:_MAX_ROWS]]
    rest = list(counts.values())[_MAX_ROWS:]
    return ", ".join(shown) + (f", {len(rest):,} others ({sum(rest):,})" if rest else "")
