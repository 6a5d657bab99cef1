"""`vidshard preview`."""

from __future__ import annotations

from typing import Any

import click

from vidshard.cli.next_step import next_step
from vidshard.inspection.config import PreviewConfig
from vidshard.util import console
from vidshard.util.options import command, config_options, from_options


@command(example="vidshard preview shards/Train")
@config_options(PreviewConfig)
def preview(**options: Any) -> None:
    """Write a preview of a shard folder as one HTML page.

    The page shows a contact sheet for each class of the shard folder DIR, histograms, and the list of failures.
    """
    config = from_options(PreviewConfig, options)
    from vidshard.inspection.preview import write_preview

    click.echo(f"✓ {write_preview(config)}")
    console.show_next(*next_step("preview", config.folder))
