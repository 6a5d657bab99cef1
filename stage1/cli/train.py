"""`stage1 train`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from stage1.cli.options import TrainingFile, given, training_options
from stage1.model.config import BACKBONES, SIZES
from stage1.training.config import PRESETS, TrainConfig, make_config, merge
from vidshard.storage.urls import Location
from vidshard.util import console
from vidshard.util.console import EXIT_STOPPED
from vidshard.util.options import command, config_options, given_options, option

EXAMPLE = """\
stage1 train --shards shards/Train --val-shards shards/Validation --epochs 20
stage1 train --resume"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Options that stand for several training options."""

    preset: str = option(
        "default",
        help="notebook: 5 epochs, batch size 4, learning rate 1e-4, gradient clipping at 1.0.",
        group="Optimisation",
        choices=tuple(PRESETS),
    )
    model_size: str = option("base", help="Width of our network.", group="Model", choices=tuple(SIZES))
    backbone: str = option(
        "stage1", help="Network to train: ours, or one from torchvision.", group="Model", choices=BACKBONES
    )
    weights: str | None = option(
        None,
        help="Initial weights of --backbone: KINETICS400_V1 (asks before downloading) or a file.",
        group="Model",
        metavar="NAME|FILE",
    )


@command(example=EXAMPLE)
@config_options(TrainConfig)
@config_options(TrainingFile)
@config_options(NetworkOptions)
def train(preset: str, model_size: str, backbone: str, weights: str | None, **options: Any) -> int | None:
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
    config = make_config(training_options(options, preset=PRESETS[preset], network=network))
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
