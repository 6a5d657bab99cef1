"""`vidshard inspect`."""

from __future__ import annotations

import json

import click

from vidshard.cli.next_step import next_step
from vidshard.storage.urls import Location, location
from vidshard.util import console
from vidshard.util.options import command


@command(example="vidshard inspect shards/Train")
@click.argument("folder", metavar="DIR", type=location)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(folder: Location, as_json: bool) -> None:
    """Show the classes, videos, clips and failures of a shard folder.

    DIR is a path or a URL.
    """
    from vidshard.inspection.contents import contents_text, inspect_shards

    about = inspect_shards(folder)
    console.echo(json.dumps(about, indent=2) if as_json else contents_text(about))
    if not as_json:
        console.show_next(*next_step("inspect", folder))
