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

EXAMPLE = """\
stage1 export --out stage1.onnx --shards shards/Test
stage1 export --format safetensors --out hub/model.safetensors"""


@command(example=EXAMPLE)
@config_options(InferConfig, "checkpoint")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["onnx", "safetensors"]),
    default="onnx",
    show_default=True,
    help="Format of the exported model.",
)
@click.option("--out", type=LOCAL_PATH, help="File to write.  [default: stage1.onnx or stage1.safetensors]")
@click.option(
    "--shards", type=location, metavar="PLACE", help="Check the exported model on these clips instead of random noise."
)
@click.option("--num-checked", type=int, default=32, show_default=True, help="Number of clips to check.")
def export(format_: str, checkpoint: Path, out: Path | None, shards: Any, num_checked: int) -> None:
    """Export a model for ONNX Runtime, or as safetensors.

    The model for ONNX Runtime takes uint8 clips and returns P(crime) and attention. Safetensors come with a model card.
    """
    from stage1.model import onnx, safetensors

    out = out or Path(f"stage1.{format_}")
    report: onnx.ExportReport | safetensors.SafetensorsReport
    if format_ == "onnx":
        report = onnx.export(checkpoint, out, shards=shards, num_checked=num_checked)
    else:
        report = safetensors.export(checkpoint, out)
    console.echo(report.summary)
    console.show_next("stage1", "infer", *given(shards=shards or DEFAULT_SHARDS, checkpoint=checkpoint))
