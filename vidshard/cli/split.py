"""`vidshard split`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vidshard.sources.config import SplitConfig
from vidshard.util import console
from vidshard.util.console import EXIT_ERROR, EXIT_OK, LOCAL_PATH
from vidshard.util.options import command, config_options, from_options

EXAMPLE = """\
vidshard split videos --out lists
vidshard split --check lists/Train.txt lists/Test.txt"""


@command(example=EXAMPLE)
@config_options(SplitConfig)
@click.argument("sources", metavar="SOURCE|LIST", nargs=-1, required=True, type=LOCAL_PATH)
@click.option("--check", is_flag=True, help="Compare lists: split --check A.txt B.txt …")
def split(sources: tuple[Path, ...], check: bool, **options: Any) -> int:
    """Split videos into training, validation and test lists.

    SOURCE is a folder of videos or a shard folder. Videos of one recording stay together, and the classes are balanced.
    With --check, reports the videos that two lists share. With both --check and --out, splits the first argument and
    treats the others as lists.

    Exit codes: 0 success, with any warnings shown; 1 lists share videos, or an error.
    """
    out = options["out"]
    given = sources if out is None else sources[1:]
    if (given and not check) or (check and len(given) < (2 if out is None else 1)):
        raise click.UsageError("pass SOURCE and --out DIR, or --check and two or more lists")
    config = None if out is None else from_options(SplitConfig, options, source=sources[0])
    from vidshard.sources import split as splitting

    written = []
    if config is not None:
        report = splitting.split(config)
        console.echo(splitting.split_text(report))
        for warning in report.warnings:
            console.echo(f"warning: {warning}", err=True)
        written = [splitting.list_path(config.out, name) for name in splitting.SPLITS]
    overlaps = splitting.check_lists(given, written=written) if check else []
    for overlap in overlaps:
        console.echo(overlap.to_text())
    if config is not None and not (sources[0] / "manifest.json").is_file():
        console.show_next("vidshard", "build", sources[0], "--split-list", written[0], "--out", "shards/Train")
    elif not overlaps:
        console.show_next("vidshard", "build", "--help")
    if check and not overlaps:
        click.echo(f"✓ {len(given):,} lists share no video")
    return EXIT_ERROR if overlaps else EXIT_OK
