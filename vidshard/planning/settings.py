"""Settings that affect output bytes, and the fingerprint of an unfinished build."""

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
from vidshard.shards.layout import ClipShape
from vidshard.shards.manifest import ShardSet
from vidshard.sources.folders import Source, Video
from vidshard.storage import urls
from vidshard.storage.urls import Location
from vidshard.util.errors import UserError
from vidshard.video import decoders

SOURCES = "sources_sha256"  # key of the source digests in a manifest's settings


def build_settings(config: BuildConfig) -> dict[str, Any]:
    """Return all settings that determine the bytes of a set, as stored in its manifest; the sources are separate."""
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
        **({"label_member": True} if config.label_member else {}),  # sets without stay as they were
    }


def clip_shape(settings: Mapping[str, Any]) -> ClipShape:
    """Return the shape of the clips of a set with these settings."""
    return ClipShape(num_frames=settings["clip_len"], height=settings["frame_size"], width=settings["frame_size"])


def source_digests(
    source: Source, failed: Collection[str], video_bytes: Mapping[str, int] | None = None
) -> dict[str, str]:
    """Return digests of the lists of good and of failed videos; the failed ones may be repaired later.

    `video_bytes`: path → file size in bytes; default: ask the source.
    """
    good = [video for video in source.videos if video.path not in failed]
    bad = [video for video in source.videos if video.path in failed]
    return {"ok": _videos_sha256(source, good, video_bytes), "failed": _videos_sha256(source, bad, video_bytes)}


def _videos_sha256(source: Source, videos: Sequence[Video], video_bytes: Mapping[str, int] | None) -> str:
    digest = hashlib.sha256()
    for video in videos:
        num_bytes = file_bytes(source, video) if video_bytes is None else video_bytes[video.path]
        digest.update(repr((video.path, *_identity(num_bytes, video))).encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()


def _identity(num_bytes: int, video: Video) -> list[Any]:
    """Return what affects the result and may change: size, label, recording, events."""
    return [num_bytes, video.label, video.recording, *video.events]


def package_versions(codec: str) -> dict[str, str]:
    versions = {"vidshard": __version__, "numpy": np.__version__, **decoders.decoder_versions()}
    return {**versions, **codecs.codec_packages(codec)}


def make_fingerprint(source: Source, config: BuildConfig, *, change: str | None = None) -> dict[str, Any]:
    """Return what must not change during a build. `change`: the kind of change, and to which finished set."""
    videos = []
    for video in source.videos:
        modified: int | str | None = video.version
        if isinstance(source.root, Path):
            with contextlib.suppress(OSError):  # the probe will report the error
                modified = (source.root / video.path).stat().st_mtime_ns
        videos.append([video.path, *_identity(file_bytes(source, video), video), modified])
    return {
        "settings": build_settings(config),
        "packages": package_versions(config.codec),
        "num_videos": len(videos),
        "change": change,
        "videos": videos,
    }


def find_finished(out: Location, source: Source, config: BuildConfig) -> ShardSet | None:
    """Return the finished set in `out`, or None.

    Raises UserError if the set does not match the request: other settings, or changes of videos that `config` does not
    allow.
    """
    if isinstance(out, Path):
        if not (out / layout.MANIFEST_NAME).exists():
            return None
    elif not urls.exists(out / layout.MANIFEST_NAME):
        return None
    shards = remote_set.open_metadata(out)
    old = {name: value for name, value in shards.manifest.settings.items() if name != SOURCES}
    if old != (settings := build_settings(config)):
        raise _another(out, f"other {describe_difference(old, settings)}")
    failed = {failure.path for failure in shards.manifest.failed}
    before = {*shards.index.paths, *failed}
    now = {video.path for video in source.videos}
    if not config.extend and now != before:
        hint = "add the new ones with `extend`, " if now > before else ""
        raise _another(out, f"other videos ({describe_changes(sorted(now - before), sorted(before - now))})", hint)
    if not now >= before:
        raise _another(out, f"videos that are gone ({describe_changes([], sorted(before - now))})")
    same = dataclasses.replace(source, videos=tuple(video for video in source.videos if video.path in before))
    digests = source_digests(same, failed)
    kept = shards.manifest.settings[SOURCES]
    if digests["ok"] != kept["ok"]:
        raise _another(out, f"other videos ({_changed(shards, same, failed)})")
    if digests["failed"] != kept["failed"] and not config.retry_failed:
        raise _another(out, "other files where videos failed", "try those again with `retry_failed`, ")
    return shards


def check_packages(shards: ShardSet, codec: str) -> None:
    """Raise UserError if additions to a finished set would be decoded with other package versions."""
    before, now = _named_as_now(shards.manifest.packages), package_versions(codec)
    if shards.manifest.settings.get("decoder", decoders.AUTO) not in (decoders.AUTO, "decord"):
        before, now = _without_decord(before), _without_decord(now)
    if before == now:
        return
    difference = describe_difference({"packages": before}, {"packages": now}).removeprefix("settings ")
    how = "install those versions"
    for name in decoders.DECORDS:
        if name in before and name not in now and before[name] != "absent":
            how += f" (`pip uninstall {' '.join(decoders.DECORDS)}`, then `pip install {name}=={before[name]}`)"
    raise UserError(
        f"{shards.folder} was built with different packages {difference}; {how}, or build into another `out`: "
        "a set must not mix the pixels of different decoders"
    )


def _named_as_now(packages: Mapping[str, str]) -> dict[str, str]:
    """Return a manifest's packages with decord2 under its own name; old versions recorded it as decord.

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
    """Return the numbers of the videos of `source` that are not in the set."""
    before = {*shards.index.paths, *(failure.path for failure in shards.manifest.failed)}
    return [number for number, video in enumerate(source.videos) if video.path not in before]


def _changed(shards: ShardSet, source: Source, failed: Collection[str]) -> str:
    """Describe which videos have changed, as far as the index shows."""
    index = shards.index
    rows = {path: row for row, path in enumerate(index.paths)}
    labels = dict(zip(index.clips["video"].tolist(), index.clips["label"].tolist(), strict=True))
    changed = []
    for video in source.videos:
        row = rows.get(video.path)
        if row is not None and (video.label, video.recording) != (labels[row], index.recording(row)):
            changed.append(video.path)
    return describe_changes([], [], changed)


def _another(out: Location, difference: str, hint: str = "") -> UserError:
    return UserError(
        f"{out} contains a different build, with {difference}; {hint}choose another `out`, or delete {out} to rebuild "
        "it"
    )


def file_bytes(source: Source, video: Video) -> int:
    """Return the size of a video's file in bytes; -1 if unknown."""
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
        return -1  # the probe will report the error
