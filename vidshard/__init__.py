"""Decode surveillance videos once, into WebDataset shards of fixed-size clips."""
# ruff: noqa: F403, F405  # the names of `__all__` come from `api`; tests/test_public_api.py looks each of them up

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidshard.api import *

try:
    __version__ = version("vidshard")
except PackageNotFoundError:  # used from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "BuildConfig", "BuildReport", "Estimate", "FormatError", "SamplingConfig", "ShardSet", "ShardSetWriter",
    "SplitReport", "UserError", "VerifyReport", "__version__", "build", "dry_run", "inspect", "open_shards", "split",
    "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load the public API on first use: training nodes import this package for the shard format alone."""
    if name in __all__:
        return getattr(importlib.import_module("vidshard.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
