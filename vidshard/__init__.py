"""Decode surveillance videos once, into WebDataset shards of fixed-size clips."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidshard.building.run import BuildConfig, BuildReport, build, dry_run
    from vidshard.video.sampling import SamplingConfig

try:
    __version__ = version("vidshard")
except PackageNotFoundError:  # used from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["BuildConfig", "BuildReport", "SamplingConfig", "__version__", "build", "dry_run"]


def __getattr__(name: str) -> Any:
    """The public API, loaded on first use: training nodes import this package for the shard format alone."""
    if name in ("BuildConfig", "BuildReport", "build", "dry_run"):
        from vidshard.building import run

        return getattr(run, name)
    if name == "SamplingConfig":
        from vidshard.video.sampling import SamplingConfig

        return SamplingConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
