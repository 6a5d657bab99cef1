"""`stage1 visualize`."""

from __future__ import annotations

from typing import Any

import click

from stage1.inference.config import DEFAULT_INFERENCE
from stage1.review.config import VisualizeConfig
from vidshard.util import console
from vidshard.util.options import command, config_options, from_options


@command(example="stage1 visualize stage1_output --num 12")
@config_options(VisualizeConfig)
def visualize(**options: Any) -> None:
    """Draw detections and their attention.

    DIR is the output folder of `stage1 infer`, by default stage1_output.
    """
    config = from_options(VisualizeConfig, options)
    from stage1.common import distributed
    from stage1.review.film_strip import visualize

    distributed.expect_one_process("visualize")
    result = visualize(config)
    if not result.num_shown:
        click.echo(f"No clip was detected as crime: see {config.folder / 'predictions.csv'} for all confidences")
    console.echo(result.note)
    click.echo(f"✓ Attention visualization saved to: {result.path}")
    console.show_next("stage1", "report", *([] if config.folder == DEFAULT_INFERENCE else [config.folder]))
