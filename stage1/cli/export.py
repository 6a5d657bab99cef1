"""`stage1 export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stage1.cli.options import DEFAULT_SHARDS, given
from stage1.inference.config import InferConfig
from vidshard.storage.urls import location
from vidshard.util import console
from vidshard.util.console import LOCAL_PATH
from vidshard.util.options import command, config_options


@command(example="stage1 export --out stage1.onnx --shards shards/Test")
@config_options(InferConfig, "checkpoint")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["onnx"]),
    default="onnx",
    show_default=True,
    help="Format of the exported model.",
)
@click.option("--out", type=LOCAL_PATH, default="stage1.onnx", show_default=True, help="File to write.")
@click.option(
    "--shards", type=location, metavar="PLACE", help="Check the exported model on these clips instead of random noise."
)
@click.option("--num-checked", type=int, default=32, show_default=True, help="Number of clips to check.")
def export(format_: str, checkpoint: Path, out: Path, shards: Any, num_checked: int) -> None:
    """Export a model for ONNX Runtime.

    The exported model takes uint8 clips and returns P(crime) and attention.
    """
    from stage1.common import distributed
    from stage1.model.onnx import export

    distributed.expect_one_process("export")

    console.echo(export(checkpoint, out, shards=shards, num_checked=num_checked).summary)
    console.show_next("stage1", "infer", *given(shards=shards or DEFAULT_SHARDS, checkpoint=checkpoint))
