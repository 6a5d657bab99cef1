"""The `stage1` command. Each command is a module in this folder: options → config → one call, no logic."""

from __future__ import annotations

import os

import click

from stage1.common.memory import keep_freed_memory
from vidshard import __version__
from vidshard.util.options import CommandGroup

# In the order of the work.
COMMANDS = (
    *("preview-augment", "train", "infer", "visualize", "clips", "report", "review", "evaluate", "calibrate"),
    *("crossval", "explain", "extract", "features", "export"),
)
_DISTRIBUTED = ("train", "infer")  # several processes can run them together


@click.group(
    cls=CommandGroup,
    package="stage1.cli",
    names=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__)
@click.pass_context
def main(context: click.Context) -> None:
    """Detect crime in surveillance clips read from shards."""
    keep_freed_memory()
    if context.invoked_subcommand not in _DISTRIBUTED and os.environ.get("WORLD_SIZE", "1") != "1":
        from stage1.common import distributed  # imports torch, which --help must not wait for

        distributed.expect_one_process(str(context.invoked_subcommand))
