"""The options of a build, and what of them decides the bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vidshard import __version__, decoders, manifest, shard_format
from vidshard.clips import SamplingConfig
from vidshard.errors import UserError
from vidshard.manifest import ShardSet
from vidshard.shard_format import ClipShape
from vidshard.sources import Source
from vidshard.work_folder import describe_difference


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
    full_check: bool = False  # decode every frame of a video before, and refuse it if any is damaged
    allow_damaged: bool = False  # the same check, but a damaged video is kept and its clips are flagged
    max_failures: int | None = None  # stop when more videos than this failed in one run
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
        if self.max_failures is not None and self.max_failures < 0:
            raise UserError(f"max_failures is {self.max_failures}, expected at least 0")
        decoders.decoders_for(self.decoder)

    @property
    def shape(self) -> ClipShape:
        return ClipShape(num_frames=self.sampling.clip_len, height=self.frame_size, width=self.frame_size)


def build_settings(source: Source, config: BuildConfig) -> dict[str, Any]:
    """All that decides the bytes of a set, as its manifest keeps it."""
    return {
        **config.sampling.to_settings(),
        "frame_size": config.frame_size,
        "resize": "squash",
        "decoder": config.decoder,
        "full_check": config.full_check or config.allow_damaged,
        "allow_damaged": config.allow_damaged,
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
        values = [file_size(path), video.label, video.source_group]
        if with_times:
            with contextlib.suppress(OSError):
                values.append(path.stat().st_mtime_ns)
        digest.update(repr((video.path, *values)).encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()


def package_versions() -> dict[str, str]:
    return {"vidshard": __version__, "numpy": np.__version__, **decoders.decoder_versions()}


def fingerprint(source: Source, settings: dict[str, Any]) -> dict[str, Any]:
    """What must not change while a build is unfinished."""
    return {
        "settings": settings,
        "packages": package_versions(),
        "num_videos": len(source.videos),
        "times_sha256": _sources_sha256(source, with_times=True),
    }


def find_finished(out: Path, source: Source, settings: dict[str, Any]) -> ShardSet | None:
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


def file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1  # the probe will say why
