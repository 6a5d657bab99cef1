"""Settings that decide the bytes of a set, and the fingerprint of an unfinished build."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidshard import __version__
from vidshard.planning.build_state import describe_changes, describe_difference
from vidshard.planning.config import BuildConfig
from vidshard.shards import codecs, layout, remote_set
from vidshard.shards.manifest import ShardSet
from vidshard.sources.folders import Source, Video
from vidshard.storage import urls
from vidshard.storage.urls import Location
from vidshard.util.errors import UserError
from vidshard.video import decoders

SOURCES = "sources_sha256"  # name of the digests among the settings of a manifest


def build_settings(config: BuildConfig) -> dict[str, Any]:
    """All that decides the bytes of a set but its sources, as its manifest keeps it."""
    return {
        **config.sampling.to_settings(),
        "frame_size": config.frame_size,
        "resize": config.resize,
        "codec": config.codec,
        "decoder": config.decoder,
        "full_check": config.full_check or config.allow_damaged,
        "allow_damaged": config.allow_damaged,
        "normal": config.normal,
        "limit": config.limit,
        "seed": config.seed,
        "shard_mb": config.shard_mb,
    }


def source_digests(
    source: Source, failed: Collection[str], video_bytes: Mapping[str, int] | None = None
) -> dict[str, str]:
    """Digests of the list of videos: of those that did not fail, and of those that did, which may be repaired later.

    `video_bytes`: path → size of its file; without it SOURCE is asked.
    """
    good = [video for video in source.videos if video.path not in failed]
    bad = [video for video in source.videos if video.path in failed]
    return {"ok": _videos_sha256(source, good, video_bytes), "failed": _videos_sha256(source, bad, video_bytes)}


def _videos_sha256(source: Source, videos: Sequence[Video], video_bytes: Mapping[str, int] | None) -> str:
    digest = hashlib.sha256()
    for video in videos:
        num_bytes = file_bytes(source, video) if video_bytes is None else video_bytes[video.path]
        digest.update(repr((video.path, *_facts(num_bytes, video))).encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()


def _facts(num_bytes: int, video: Video) -> list[Any]:
    """What the result depends on and may change: size, label, source group, events."""
    return [num_bytes, video.label, video.source_group, *video.events]


def package_versions(codec: str) -> dict[str, str]:
    versions = {"vidshard": __version__, "numpy": np.__version__, **decoders.decoder_versions()}
    return {**versions, **codecs.codec_packages(codec)}


def fingerprint(source: Source, settings: dict[str, Any], *, change: str | None = None) -> dict[str, Any]:
    """What must not change while a build is unfinished. `change`: what is done to which finished set."""
    videos = []
    for video in source.videos:
        modified: int | str | None = video.version
        if isinstance(source.root, Path):
            with contextlib.suppress(OSError):  # the probe will say why
                modified = (source.root / video.path).stat().st_mtime_ns
        videos.append([video.path, *_facts(file_bytes(source, video), video), modified])
    return {
        "settings": settings,
        "packages": package_versions(settings["codec"]),
        "num_videos": len(videos),
        "change": change,
        "videos": videos,
    }


def find_finished(out: Location, source: Source, settings: dict[str, Any], config: BuildConfig) -> ShardSet | None:
    """The finished set in `out`, None if there is none.

    Raises UserError when it is not the one asked for: other settings, or other videos than `config` allows to change.
    """
    if isinstance(out, Path):
        if not (out / layout.MANIFEST_NAME).exists():
            return None
    elif not urls.exists(out / layout.MANIFEST_NAME):
        return None
    shards = remote_set.outline(out)
    old = {name: value for name, value in shards.manifest.settings.items() if name != SOURCES}
    if old != settings:
        raise _another(out, f"other {describe_difference(old, settings)}")
    failed = {failure.path for failure in shards.manifest.failures if failure.outcome == "failed"}
    before = {*shards.index.paths, *failed}
    now = {video.path for video in source.videos}
    if not config.extend and now != before:
        hint = "add the new ones with --extend, " if now > before else ""
        raise _another(out, f"other videos ({describe_changes(sorted(now - before), sorted(before - now))})", hint)
    if not now >= before:
        raise _another(out, f"videos that are gone ({describe_changes([], sorted(before - now))})")
    same = dataclasses.replace(source, videos=tuple(video for video in source.videos if video.path in before))
    digests = source_digests(same, failed)
    kept = shards.manifest.settings[SOURCES]
    if digests["ok"] != kept["ok"]:
        raise _another(out, f"other videos ({_changed(shards, same, failed)})")
    if digests["failed"] != kept["failed"] and not config.retry_failed:
        raise _another(out, "other files where videos failed", "try those again with --retry-failed, ")
    return shards


def check_packages(shards: ShardSet, codec: str) -> None:
    """Raises UserError when what is added to a finished set would be decoded by other versions."""
    before, now = _named_as_now(shards.manifest.packages), package_versions(codec)
    if not decoders.asks_decord(shards.manifest.settings.get("decoder", decoders.AUTO)):
        before, now = _without_decord(before), _without_decord(now)
    if before == now:
        return
    difference = describe_difference({"packages": before}, {"packages": now}).removeprefix("settings ")
    how = "install those versions"
    for name in decoders.DECORDS:
        if name in before and name not in now and before[name] != "absent":
            how += f" (`pip uninstall {' '.join(decoders.DECORDS)}`, then `pip install {name}=={before[name]}`)"
    raise UserError(
        f"{shards.folder} was built with other packages {difference}; {how}, or build into another --out: one set "
        "holds the pixels of one decoder"
    )


def _named_as_now(packages: Mapping[str, str]) -> dict[str, str]:
    """The packages of a manifest, with decord2 under its own name, which once stood there as decord.

    >>> _named_as_now({"decord": "3.4.0"}), _named_as_now({"decord": "0.6.0"})
    ({'decord2': '3.4.0'}, {'decord': '0.6.0'})
    """
    old = packages.get("decord", "")
    if old[:1].isdigit() and not old.startswith("0."):  # decord itself ended at 0.6.0
        packages = {**_without_decord(packages), "decord2": old}
    return dict(packages)


def _without_decord(packages: Mapping[str, str]) -> dict[str, str]:
    return {name: version for name, version in packages.items() if name not in decoders.DECORDS}


def new_videos(shards: ShardSet, source: Source) -> list[int]:
    """Numbers of the videos of `source` that the set does not know."""
    failed = (failure.path for failure in shards.manifest.failures if failure.outcome == "failed")
    before = {*shards.index.paths, *failed}
    return [number for number, video in enumerate(source.videos) if video.path not in before]


def _changed(shards: ShardSet, source: Source, failed: Collection[str]) -> str:
    """Which of the videos that became clips have changed, as far as the index and the log tell."""
    index = shards.index
    rows = {path: row for row, path in enumerate(index.paths)}
    labels = dict(zip(index.clips["video"].tolist(), index.clips["label"].tolist(), strict=True))
    changed = []
    for video in source.videos:
        row = rows.get(video.path)
        if row is not None and (video.label, video.source_group) != (labels[row], index.source_group(row)):
            changed.append(video.path)
    return describe_changes([], [], changed)


def _another(out: Location, difference: str, hint: str = "") -> UserError:
    return UserError(
        f"{out} holds another build, of {difference}; {hint}give another --out, or delete {out} to build it anew"
    )


def file_bytes(source: Source, video: Video) -> int:
    """Size of the file of a video; -1 where it cannot be told."""
    if video.num_bytes is not None:
        return video.num_bytes
    path = source.root / video.path
    if isinstance(path, Path):
        return file_size(path)
    return urls.info(path).size or -1


def file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1  # the probe will say why
