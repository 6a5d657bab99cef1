"""`vidshard finalize`."""

from __future__ import annotations

from pathlib import Path

import click

from vidshard.cli.next_step import next_step
from vidshard.util import console
from vidshard.util.console import EXIT_OK, EXIT_PARTLY_FAILED, LOCAL_PATH
from vidshard.util.options import command


@command(example="vidshard finalize shards/Train")
@click.argument("folder", metavar="DIR", type=LOCAL_PATH)
def finalize(folder: Path) -> int:
    """Join the shards of array tasks into one set.

    DIR is the output folder (--out) of the build, or a folder of several sets. If something is missing, lists the
    tasks to rerun.

    Exit codes: 0 success; 2 finished, but some videos failed or may have been skipped (see failures.csv); 1 error.
    """
    from vidshard.building import array
    from vidshard.building.summary import build_summary

    report = array.finalize(folder)
    console.echo(build_summary(report))
    console.show_next(*next_step("finalize", report.sets[-1].where))
    return EXIT_OK if report.is_complete else EXIT_PARTLY_FAILED
