"""Decode surveillance videos once, into WebDataset shards of fixed-size clips."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("vidshard")
except PackageNotFoundError:  # used from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
