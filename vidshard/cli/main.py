"""The `vidshard` command. Each command is a module in this folder: options → config → one call, no logic."""

from __future__ import annotations

import click

from vidshard import __version__
from vidshard.util.options import CommandGroup


@click.group(
    cls=CommandGroup,
    package="vidshard.cli",
    names=("split", "build", "finalize", "inspect", "verify", "preview"),  # in the order of the work
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__)
def main() -> None:
    """Decode surveillance videos once, into WebDataset shards of fixed-size clips."""
