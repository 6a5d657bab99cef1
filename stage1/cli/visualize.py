"""`stage1 visualize`."""

from __future__ import annotations

import click

from stage1.cli.options import folder_words
from stage1.review.config import VisualizeConfig
from vidshard.util import console
from vidshard.util.options import config_command


@config_command(VisualizeConfig, example="stage1 visualize stage1_output --num 12")
def visualize(config: VisualizeConfig) -> None:
    """Draw detections and their attention.

    DIR is the output folder of `stage1 infer`, by default stage1_output.
    """
    from stage1.review.film_strip import visualize

    result = visualize(config)
    if not result.num_shown:
        click.echo(f"No clip was detected as crime: see {config.folder / 'predictions.csv'} for all confidences")
    console.echo(result.note)
    click.echo(f"✓ Attention visualization saved to: {result.path}")
    console.show_next("stage1", "report", *folder_words(config.folder))
