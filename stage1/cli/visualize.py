"""`stage1 visualize`."""

from __future__ import annotations

from pathlib import Path

import click

from stage1.inference.config import DEFAULT_INFERENCE
from vidshard.util import console
from vidshard.util.console import LOCAL_PATH
from vidshard.util.options import command


@command(example="stage1 visualize stage1_output")
@click.argument("folder", metavar="[DIR]", type=LOCAL_PATH, default=DEFAULT_INFERENCE)
def visualize(folder: Path) -> None:
    """Draw the strongest detections and their attention.

    DIR is the output folder of `stage1 infer`, by default stage1_output.
    """
    from stage1.common import distributed
    from stage1.review.film_strip import visualize

    distributed.expect_one_process("visualize")

    picture, num_shown = visualize(folder)
    if not num_shown:
        click.echo(f"No clip was detected as crime: see {folder / 'predictions.csv'} for all confidences")
    click.echo(f"✓ Attention visualization saved to: {picture}")
    console.show_next("stage1", "report", *([] if folder == DEFAULT_INFERENCE else [folder]))
