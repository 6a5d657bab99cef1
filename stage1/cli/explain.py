"""`stage1 explain`."""

from __future__ import annotations

from typing import Any

from stage1.cli.options import given
from stage1.evaluation.config import ExplainConfig
from vidshard.util import console
from vidshard.util.options import command, config_options, from_options


@command(example="stage1 explain --shards shards/Test")
@config_options(ExplainConfig)
def explain(**options: Any) -> None:
    """Test whether attention marks the frames that matter.

    Deletes and inserts frames in order of attention, and compares the effect with that of matched random frames.
    """
    config = from_options(ExplainConfig, options)
    from stage1.common import distributed
    from stage1.evaluation.explain import explain

    distributed.expect_one_process("explain")
    console.echo(explain(config).text)
    console.show_next("stage1", "infer", *given(shards=config.shards, checkpoint=config.checkpoint))
