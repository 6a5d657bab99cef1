"""Options of several commands that are not fields of a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from stage1.common.files import DEFAULT_CHECKPOINT
from stage1.inference.config import DEFAULT_INFERENCE
from vidshard.util.console import LOCAL_PATH
from vidshard.util.options import GroupedOption, given_options

DEFAULT_SHARDS = Path("shards/Test")
_GROUP = "Training options by name"

CONFIG_FILE = click.option(
    "--config",
    "config_path",
    cls=GroupedOption,
    group=_GROUP,
    type=LOCAL_PATH,
    metavar="FILE",
    help="TOML file of training options, such as the run.toml of an earlier run; command-line options take precedence.",
)
SETTINGS = click.option(
    "--set",
    "settings",
    cls=GroupedOption,
    group=_GROUP,
    multiple=True,
    metavar="NAME=VALUE",
    help="Any training option that a TOML file may contain, such as model.dropout=0.3; repeatable.",
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
    config_path: Path | None,
    settings: Sequence[str],
    *,
    preset: Mapping[str, Any] | None = None,
    network: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Merge training options: defaults, preset, file, network, --set, and those given on the command line."""
    from stage1.training.config import merge, parse_setting, read_toml

    given = {name: value for name, value in options.items() if name in given_options()}
    from_file = read_toml(config_path) if config_path else {}
    return merge(options, preset or {}, from_file, network or {}, *map(parse_setting, settings), given)
