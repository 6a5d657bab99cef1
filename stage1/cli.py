"""The `stage1` command: options → config → one call, no logic."""

from __future__ import annotations

import click

from vidshard import __version__
from vidshard.console import ExitCodeGroup


@click.group(cls=ExitCodeGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def main() -> None:
    """Tell normal from crime in clips read from shards."""
