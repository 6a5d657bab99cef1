"""`vidshard preview`."""

from __future__ import annotations

import click

from vidshard.cli.next_step import next_step
from vidshard.inspection.config import PreviewConfig
from vidshard.util import console
from vidshard.util.options import config_command


@config_command(PreviewConfig, example="vidshard preview shards/Train")
def preview(config: PreviewConfig) -> None:
    """Write a preview of a shard folder as one HTML page.

    The page shows a contact sheet for each class of the shard folder DIR, histograms, and the list of failures.
    """
    from vidshard.inspection.preview import write_preview

    click.echo(f"✓ {write_preview(config)}")
    console.show_next(*next_step("preview", config.folder))
