"""`stage1 train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stage1.cli.options import CONFIG_FILE, SETTINGS, given, training_options
from stage1.model.config import BACKBONES, SIZES
from stage1.training.config import PRESETS, TrainConfig, make_config, merge
from vidshard.storage.urls import Location
from vidshard.util import console
from vidshard.util.console import EXIT_STOPPED
from vidshard.util.options import GroupedOption, command, config_options, given_options

EXAMPLE = """\
stage1 train --shards shards/Train --val-shards shards/Validation --epochs 20
stage1 train --resume"""


@command(example=EXAMPLE)
@config_options(TrainConfig)
@CONFIG_FILE
@SETTINGS
@click.option(
    "--preset",
    cls=GroupedOption,
    group="Optimisation",
    type=click.Choice(list(PRESETS)),
    default="default",
    show_default=True,
    help="notebook: 5 epochs, batch size 4, learning rate 1e-4, gradient clipping at 1.0.",
)
@click.option(
    "--model-size",
    cls=GroupedOption,
    group="Model",
    type=click.Choice(list(SIZES)),
    default="base",
    show_default=True,
    help="Width of our network.",
)
@click.option(
    "--backbone",
    cls=GroupedOption,
    group="Model",
    type=click.Choice(BACKBONES),
    default="stage1",
    show_default=True,
    help="Network to train: ours, or one from torchvision.",
)
@click.option(
    "--weights",
    cls=GroupedOption,
    group="Model",
    metavar="NAME|FILE",
    help="Initial weights of --backbone: KINETICS400_V1 (asks before downloading) or a file.",
)
def train(
    preset: str,
    config_path: Path | None,
    settings: tuple[str, ...],
    model_size: str,
    backbone: str,
    weights: str | None,
    **options: Any,
) -> int | None:
    """Train a model on shards.

    Writes the last epoch to --out (with --patience, the best one), and all options of the run to run.toml, which
    --config can read.

    Exit codes: 0 success; 75 stopped by Ctrl-C, SIGTERM or SIGUSR1 after saving a checkpoint (run it again with
    --resume); 1 error.
    """
    names = given_options()
    network: dict[str, Any] = {"model": SIZES[model_size]} if "model_size" in names else {}
    if weights or "backbone" in names:
        from stage1.model import backbones

        network = merge(network, backbones.training_options(backbone, weights, confirm=click.confirm))
    config = make_config(training_options(options, config_path, settings, preset=PRESETS[preset], network=network))
    from stage1.training.loop import RunStopped, train

    try:
        checkpoint = train(config)
    except RunStopped as stopped:
        console.echo(str(stopped), err=True)
        return EXIT_STOPPED
    console.show_next("stage1", "infer", *given(shards=_shards_to_score(config), checkpoint=checkpoint))
    return None


def _shards_to_score(config: TrainConfig) -> Location:
    """Return the Test set next to the training shards or, if there is none, those that were validated or trained on."""
    first = config.shards[0]
    test = first.with_name("Test") if isinstance(first, Path) else None
    return test if test and (test / "manifest.json").is_file() else config.val_shards or first
