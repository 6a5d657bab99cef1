"""`stage1 crossval`."""

from __future__ import annotations

from typing import Any

from stage1.cli.options import TrainingFile, training_options
from stage1.evaluation.config import CrossvalConfig
from stage1.training.config import TrainConfig, make_config
from vidshard.util import console
from vidshard.util.console import EXIT_STOPPED
from vidshard.util.options import command, config_options, from_options, option_names

_OF_TRAINING = ("seed", "device", "cache_dir", "cache_gb")


@command(example="stage1 crossval --shards shards/Train --shards shards/Validation --epochs 20")
@config_options(CrossvalConfig)
@config_options(TrainConfig, "epochs", default=20, help="Epochs per fold; the last one is scored (no early stopping).")
@config_options(TrainConfig, *_OF_TRAINING)
@config_options(TrainingFile)
def crossval(**options: Any) -> int | None:
    """Estimate the accuracy on new recordings.

    Cross-validates by recording and prints a table with confidence intervals. Set other training
    options with --config and --set (see --help-all). Run the same command again to resume an interrupted run.

    Exit codes: 0 success; 75 stopped by Ctrl-C, SIGTERM or SIGUSR1 after saving a checkpoint; 1 error.
    """
    of_training = ("epochs", *_OF_TRAINING, *option_names(TrainingFile))
    training = make_config(training_options({name: options[name] for name in of_training}))
    config = from_options(CrossvalConfig, options, training=training)
    from stage1.evaluation.crossval import crossval
    from stage1.training.loop import RunStopped

    try:
        console.echo(crossval(config))
    except RunStopped as stopped:
        console.echo(str(stopped), err=True)
        return EXIT_STOPPED
    sets = [word for place in config.shards for word in ("--shards", place)]
    console.show_next("stage1", "train", *sets)
    return None
