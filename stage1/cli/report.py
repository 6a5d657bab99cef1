"""`stage1 report`."""

from __future__ import annotations

import click

from stage1.cli.options import folder_words
from stage1.review.config import ReportConfig
from vidshard.util import console
from vidshard.util.options import config_command
from vidshard.util.text import counted


@config_command(ReportConfig, example="stage1 report stage1_output")
def report(config: ReportConfig) -> None:
    """Write a self-contained HTML report of a run.

    DIR is the output folder of `stage1 infer`, by default stage1_output.
    """
    from stage1.review.report import write_report

    result = write_report(config)
    if result.num_left_out:
        click.echo(f"{result.num_left_out:,} with lower confidence are left out; --max-items shows more")
    console.echo(result.attention)
    click.echo(f"✓ Report with {counted(result.num_shown, 'clip')} saved to: {result.path}")
    console.show_next("stage1", "clips", *folder_words(config.folder))
