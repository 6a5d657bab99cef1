"""Options that several configs share, each declared once. Does not import torch, because --help needs them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from stage1.common import files
from vidshard.util.options import check_options, option

STORAGE = "Storage"  # heading in --help-all


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckedConfig:
    """Base class of configs, which checks the ranges and choices of their options."""

    def __post_init__(self) -> None:
        check_options(self)


def shards_option(default: str, help: str) -> Any:
    return option(Path(default), help=help)


def checkpoint_option() -> Any:
    return option(files.DEFAULT_CHECKPOINT, help="Trained model.")


def batch_size_option() -> Any:
    return option(8, help="Clips scored per batch.", at_least=1)


def device_option() -> Any:
    return option("auto", help="Device to compute on: auto, cpu, cuda or cuda:N.")


def annotations_option(group: str = "") -> Any:
    return option(
        None,
        group=group,
        help="Ground-truth events, in UCF-Crime's format: lines of a name, a class, and the first and last frames.",
        metavar="FILE",
    )


def relative_option(group: str) -> Any:
    return option(
        False,
        help="Untrimmed videos: score each clip against the median of its video, which removes per-camera bias.",
        group=group,
    )


def cache_dir_option() -> Any:
    return option(
        None,
        help="Cache folder for shards from s3://, gs:// and https://.",
        default_text="in the folder for temporary files",
        group=STORAGE,
    )


def cache_gb_option() -> Any:
    return option(
        None,
        help="Size limit of the cache, in 10⁹ bytes; the least recently used shards are deleted.",
        default_text="80 % of the free disk space",
        group=STORAGE,
    )
