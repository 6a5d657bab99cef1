"""`vidshard verify`."""

from __future__ import annotations

import json

import click

from vidshard.cli.next_step import next_step
from vidshard.storage.urls import Location, location
from vidshard.util import console
from vidshard.util.console import EXIT_ERROR, EXIT_OK
from vidshard.util.options import command


@command(example="vidshard verify shards/Train --deep")
@click.argument("folder", metavar="DIR", type=location)
@click.option("--deep", is_flag=True, help="Also read and decode every sample, and compare it with the index.")
@click.option("--strict", is_flag=True, help="Treat files that do not belong to the set, such as a README, as faults.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(folder: Location, deep: bool, strict: bool, as_json: bool) -> int:
    """Check the sizes, counts and checksums of a shard folder.

    DIR is a path or a URL. Lists every fault.

    Exit codes: 0 no fault found; 1 faults, or an error.
    """
    from vidshard.inspection.verify import faults_text, verify

    report = verify(folder, deep=deep, strict=strict)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2))
    else:
        console.echo(faults_text(report))
        if not report.faults:
            console.show_next(*next_step("verify", folder))
    return EXIT_ERROR if report.faults else EXIT_OK
