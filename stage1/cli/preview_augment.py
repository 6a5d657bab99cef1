"""`stage1 preview-augment`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stage1.cli.options import TrainingFile, training_options
from stage1.training.config import TrainConfig, make_config
from vidshard.util import console
from vidshard.util.options import command, config_options


@command(example="stage1 preview-augment --set transform.erase_probability=0.5")
@config_options(TrainConfig, "shards", help="Shards to show.", multiple=False, default=Path("shards/Train"))
@config_options(TrainConfig, "out", default=Path("augmentation.png"), help="Picture to write.")
@config_options(TrainConfig, "seed", help="Random seed for clip selection and augmentation.")
@config_options(TrainingFile)
def preview_augment(shards: Any, out: Path, seed: int, **options: Any) -> None:
    """Draw clips as training sees them."""
    config = make_config(training_options(options))
    from stage1.training.preview_augment import preview_augment

    click.echo(f"✓ Augmented clips saved to: {preview_augment(shards, config.transform, out, seed=seed)}")
    console.show_next("stage1", "train", "--shards", shards)
