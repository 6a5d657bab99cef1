"""`stage1 features`."""

from __future__ import annotations

import click

from stage1.cli.options import given
from stage1.inference.config import FeaturesConfig
from vidshard.util import console
from vidshard.util.options import config_command


@config_command(FeaturesConfig, example="stage1 features --shards shards/Train --out features --backbone r3d_18")
def features(config: FeaturesConfig) -> int:
    """Write the features of every clip.

    Writes one array per video, with frame numbers and, where known, the ground truth.

    Exit codes: 0 success; 2 finished, but some clips could not be read; 1 error.
    """
    from stage1.inference.features import features

    report = features(config, confirm=click.confirm)
    for line in [*report.notes, *(f"not scored: {reason}" for reason in report.unscored.values())]:
        console.echo(line, err=True)
    console.echo(report.summary)
    if config.checkpoint is None:
        console.show_next("stage1", "train", "--shards", config.shards)
    else:
        console.show_next("stage1", "infer", *given(shards=config.shards, checkpoint=config.checkpoint))
    return report.exit_code
