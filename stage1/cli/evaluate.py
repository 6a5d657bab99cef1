"""`stage1 evaluate`."""

from __future__ import annotations

from typing import Any

import click

from stage1.cli.options import given
from stage1.evaluation.config import EvaluateConfig, ScoresConfig
from stage1.inference.config import DEFAULT_INFERENCE
from vidshard.util import console
from vidshard.util.options import command, config_options, from_options, given_options, option_names

_SCORES_ONLY = ("scores", "frame_counts", "snippet_frames", "fps")
EXAMPLE = """\
stage1 evaluate --shards shards/Test --val-shards shards/Validation
stage1 evaluate --scores scores.csv --annotations Temporal_Anomaly_Annotation.txt"""


@command(example=EXAMPLE)
@config_options(EvaluateConfig)
@config_options(ScoresConfig, *_SCORES_ONLY)
def evaluate(**options: Any) -> None:
    """Evaluate a checkpoint, or any model's scores.

    Prints the metrics of --checkpoint on --shards, or of --scores against --annotations, with confidence intervals.
    With --annotations alone, prints the metrics of trivial and perfect scorers.
    """
    names = given_options()
    of_lists = option_names(ScoresConfig)
    if options["scores"] is not None or (names and names <= of_lists and "annotations" in names):
        if wrong := sorted(names - of_lists):
            raise click.UsageError(f"--{wrong[0].replace('_', '-')} and --scores cannot be combined")
        if options["annotations"] is None:
            raise click.UsageError("--scores needs --annotations: the ground truth to evaluate against")
        scores_config = from_options(ScoresConfig, options)
        config = None
    else:
        if wrong := sorted(names & set(_SCORES_ONLY)):
            raise click.UsageError(f"--{wrong[0].replace('_', '-')} needs --scores, or --annotations alone")
        config = from_options(EvaluateConfig, options)
    from stage1.evaluation import foreign_scores, run
    from stage1.inference.outputs import is_run_on

    if config is None:
        console.echo(foreign_scores.evaluate_scores(scores_config).text)
        console.show_next("stage1", "evaluate", "--help-all")
        return
    report = run.evaluate(config)
    console.echo(report.text)
    if is_run_on(DEFAULT_INFERENCE, report.fields["shards"]["digest"]):
        console.show_next("stage1", "report", "--evaluation", config.out)
    else:
        console.show_next("stage1", "infer", *given(shards=config.shards, checkpoint=config.checkpoint))
