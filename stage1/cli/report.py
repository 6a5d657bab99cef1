"""`stage1 report`."""

from __future__ import annotations

from typing import Any

import click

from stage1.inference.config import DEFAULT_INFERENCE
from stage1.review.config import ReportConfig
from vidshard.util import console
from vidshard.util.options import command, config_options, from_options
from vidshard.util.text import counted


@command(example="stage1 report stage1_output")
@config_options(ReportConfig)
def report(**options: Any) -> None:
    """Write a self-contained HTML report of a run.

    DIR is the output folder of `stage1 infer`, by default stage1_output.
    """
    config = from_options(ReportConfig, options)
    from stage1.common import distributed
    from stage1.review.report import write_report

    distributed.expect_one_process("report")

    result = write_report(config)
    if result.num_left_out:
        click.echo(f"{result.num_left_out:,} with lower confidence are left out; --max-items shows more")
    console.echo(result.attention)
    click.echo(f"✓ Report with {counted(result.num_shown, 'clip')} saved to: {result.path}")
    console.show_next("stage1", "clips", *([] if config.folder == DEFAULT_INFERENCE else [config.folder]))
