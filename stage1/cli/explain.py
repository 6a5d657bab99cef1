"""`stage1 explain`."""

from __future__ import annotations

from stage1.cli.options import given
from stage1.evaluation.config import ExplainConfig
from vidshard.util import console
from vidshard.util.options import config_command


@config_command(ExplainConfig, example="stage1 explain --shards shards/Test")
def explain(config: ExplainConfig) -> None:
    """Test whether attention marks the frames that matter.

    Deletes and inserts frames in order of attention, and compares the effect with that of matched random frames.
    """
    from stage1.evaluation.explain import explain

    console.echo(explain(config).text)
    console.show_next("stage1", "infer", *given(shards=config.shards, checkpoint=config.checkpoint))
