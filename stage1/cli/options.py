"""Options of several commands that are not fields of a config."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stage1.common.files import DEFAULT_CHECKPOINT
from stage1.inference.config import DEFAULT_INFERENCE
from vidshard.util.options import from_options, given_options, option, option_names

DEFAULT_SHARDS = Path("shards/Test")
_GROUP = "Training options by name"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingFile:
    """Training options by name."""

    config: Path | None = option(
        None,
        help="TOML file of training options, such as the run.toml of an earlier run; command-line options take "
        "precedence.",
        group=_GROUP,
        metavar="FILE",
    )
    set: tuple[str, ...] = option(
        (),
        help="Any training option that a TOML file may contain, such as model.dropout=0.3; repeatable.",
        group=_GROUP,
        metavar="NAME=VALUE",
    )


def given(**options: Any) -> list[str]:
    """Return these options of `stage1 infer` as command-line arguments, except those at their defaults."""
    defaults = {"shards": DEFAULT_SHARDS, "checkpoint": DEFAULT_CHECKPOINT}
    left = {name: value for name, value in options.items() if value != defaults[name]}
    return [word for name, value in left.items() for word in (f"--{name}", str(value))]


def folder_words(folder: Path) -> list[Path]:
    """Return the folder of a run of inference as an argument, unless it is the default."""
    return [] if folder == DEFAULT_INFERENCE else [folder]


def training_options(
    options: Mapping[str, Any],
    *,
    preset: Mapping[str, Any] | None = None,
    network: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Merge the training options of a command, which has those of `TrainingFile` too.

    In this order: defaults, preset, file, network, --set, and those given on the command line.
    """
    from stage1.training.config import merge, parse_setting, read_toml

    file = from_options(TrainingFile, options)
    options = {name: value for name, value in options.items() if name not in option_names(TrainingFile)}
    given = {name: value for name, value in options.items() if name in given_options()}
    from_file = read_toml(file.config) if file.config else {}
    return merge(options, preset or {}, from_file, network or {}, *map(parse_setting, file.set), given)
