"""Public functions of `vidshard`: keyword options in, a report out."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vidshard.building import run
from vidshard.building.run import BuildReport, Estimate
from vidshard.inspection import contents
from vidshard.inspection import verify as verification
from vidshard.inspection.verify import VerifyReport
from vidshard.planning.config import BuildConfig
from vidshard.shards import remote_set
from vidshard.shards.manifest import ShardSet
from vidshard.shards.set_writer import ShardSetWriter
from vidshard.sources import split as splitting
from vidshard.sources.split import SplitConfig, SplitReport
from vidshard.storage.cache import CacheConfig
from vidshard.storage.urls import Url, location
from vidshard.util.errors import FormatError, UserError
from vidshard.util.options import check_names, make_config
from vidshard.video.sampling import SamplingConfig

__all__ = [
    "BuildConfig", "BuildReport", "Estimate", "FormatError", "SamplingConfig", "ShardSet", "ShardSetWriter",
    "SplitReport", "UserError", "VerifyReport", "build", "dry_run", "inspect", "open_shards", "split", "verify",
]  # fmt: skip

Place = str | os.PathLike[str] | Url  # a path, or a URL such as s3://bucket/Train


def build(source: Place | BuildConfig, **options: Any) -> BuildReport:
    """Decode the videos of `source` once, into shards of uint8 clips (T, H, W, 3).

    ``vidshard.build("Train", out="shards/Train", sampling="dense", fps=7.5)`` does what ``vidshard build Train
    --out shards/Train --sampling dense --fps 7.5`` does. Worker processes decode, so a script needs
    ``if __name__ == "__main__":``. The same call finishes a build that was interrupted.

    Args:
        source: Folder or URL of ``<Class>/*.mp4``, of ``Train/``, ``Test/``, … with that in each, or of unlabelled
            videos; or one video. Or a `BuildConfig`; then pass no options.
        options: Fields of `BuildConfig` (``out``, ``workers``, ``frame_size`` in pixels, ``codec``, ``normal``, …) and
            of `SamplingConfig` (``clip_len`` and ``stride`` in frames, ``fps`` in frames per second, …). ``sampling``
            is "uniform", "dense", "annotated" or a `SamplingConfig`. ``out`` defaults to ``shards/<name of source>``.

    Returns:
        BuildReport: One entry in ``sets`` per split. ``is_complete`` is False if a video failed; each is listed, with
        the reason, in ``manifest.failures`` of its set and in failures.csv.

    Raises:
        UserError: An unknown option or a bad value, no videos, doubtful labels (pass ``yes=True`` to accept them), or
            `out` contains another build.
        OSError: The disk is full.
        KeyboardInterrupt: Ctrl-C or SIGTERM. Finished shards stay on disk.
    """
    return run.build(_build_config(source, options, "build"))


def dry_run(source: Place | BuildConfig, **options: Any) -> tuple[Estimate, ...]:
    """Estimate what `build` would write and how long it would take, from a few seconds of decoding.

    Args:
        source: As for `build`.
        options: As for `build`.

    Returns:
        tuple[Estimate, ...]: One per split: ``videos``, ``hours`` of video, ``clips``, ``bytes``, ``seconds``.

    Raises:
        UserError: As for `build`, except that the contents of `out` are not checked.
    """
    return run.dry_run(_build_config(source, options, "dry_run"))


def _build_config(source: Place | BuildConfig, options: dict[str, Any], function: str) -> BuildConfig:
    if isinstance(source, BuildConfig):
        check_names(options, (), function=f"{function} with a BuildConfig")
        return source
    sampling = options.pop("sampling", "uniform")
    fields = {field.name for field in dataclasses.fields(SamplingConfig)} - {"mode"}
    check_names(options, {field.name for field in dataclasses.fields(BuildConfig)} | fields, function=function)
    cut = {name: options.pop(name) for name in fields & options.keys()}
    if not isinstance(sampling, SamplingConfig):
        sampling = {"mode": sampling, **cut}
    elif cut:
        raise UserError(f"sampling is a SamplingConfig: pass it {', '.join(sorted(cut))}, not {function}")
    return make_config(BuildConfig, {"source": source, "sampling": sampling, **options}, function=function)


def open_shards(folder: Place, *, cache_dir: str | os.PathLike[str] | None = None) -> ShardSet:
    """Open a finished shard set: its manifest and its index. No shard is read.

    ``shards.manifest`` has ``clip_shape``, ``num_clips``, ``classes``, ``failures`` and ``settings``;
    ``shards.index.clips`` has one row per clip and ``shards.index.videos`` one per video (docs/SHARD_FORMAT.md).
    `stage1.ClipReader` reads the pixels, as does any WebDataset loader.

    Args:
        folder: Path or URL of the set.
        cache_dir: Where copies of a URL's shards are kept. Default: in the folder for temporary files.

    Raises:
        UserError: There is no finished set.
        FormatError: The set is damaged, or of a version that this one cannot read.
    """
    cache = CacheConfig(folder=None if cache_dir is None else Path(cache_dir))
    return remote_set.open_location(location(folder), cache=cache)


def inspect(folder: Place) -> dict[str, Any]:
    """Describe a shard set by its manifest and index, as ``vidshard inspect --json`` prints it.

    Args:
        folder: Path or URL of the set.

    Returns:
        dict: ``clips``, ``videos``, ``classes``, ``clip_shape`` [T, H, W, 3], ``bytes``, …; JSON types only.

    Raises:
        UserError: There is no finished set. `FormatError`, a subclass, if it is damaged.
    """
    return contents.inspect_shards(location(folder))


def verify(folder: Place, *, deep: bool = False, strict: bool = False) -> VerifyReport:
    """Check a shard set against its manifest: sizes, counts and checksums.

    Args:
        folder: Path or URL of the set.
        deep: Also decode every clip and compare its record with the index.
        strict: Treat files that do not belong to the set, such as a README, as faults.

    Returns:
        VerifyReport: ``faults`` is empty if the set is sound; ``other_files`` names files that do not
            belong to it.

    Raises:
        UserError: There is no finished set, or a URL cannot be read.
    """
    return verification.verify(location(folder), deep=deep, strict=strict)


def split(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    source_groups: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> SplitReport:
    """Write Train.txt, Validation.txt and Test.txt into `out`, with all videos of a recording in one list.

    Args:
        source: Folder of videos, or a shard folder.
        out: Output folder.
        fractions: Shares of Train, Validation and Test; they sum to 1.
        source_groups: CSV or JSON list of which recording each video was cut from.
        seed: Random seed.

    Returns:
        SplitReport: ``lists`` (split → paths), ``class_counts``, and ``warnings`` about what may still leak.

    Raises:
        UserError: There are no videos, two have the same name, or `fractions` or `source_groups` cannot be used.
    """
    options = {
        "source": source, "out": out, "fractions": tuple(fractions), "source_groups": source_groups, "seed": seed
    }  # fmt: skip
    return splitting.split(make_config(SplitConfig, options, function="split"))
