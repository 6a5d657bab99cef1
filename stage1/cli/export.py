"""`stage1 export`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from stage1.cli.options import DEFAULT_SHARDS, given
from stage1.inference.config import InferConfig
from vidshard.storage.urls import Location
from vidshard.util import console
from vidshard.util.options import command, config_options, option

EXAMPLE = """\
stage1 export --out stage1.onnx --shards shards/Test
stage1 export --format safetensors --out hub/model.safetensors"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of an export."""

    format: str = option("onnx", help="Format of the exported model.", choices=("onnx", "safetensors"))
    out: Path | None = option(None, help="File to write.", default_text="stage1.onnx or stage1.safetensors")
    shards: Location | None = option(None, help="Check the exported model on these clips instead of random noise.")
    num_checked: int = option(32, help="Number of clips to check.")


@command(example=EXAMPLE)
@config_options(InferConfig, "checkpoint")
@config_options(ExportOptions)
def export(checkpoint: Path, format: str, out: Path | None, shards: Location | None, num_checked: int) -> None:
    """Export a model for ONNX Runtime, or as safetensors.

    The model for ONNX Runtime takes uint8 clips and returns P(crime) and attention. Safetensors come with a model card.
    """
    from stage1.model import onnx, safetensors

    out = out or Path(f"stage1.{format}")
    report: onnx.ExportReport | safetensors.SafetensorsReport
    if format == "onnx":
        report = onnx.export(checkpoint, out, shards=shards, num_checked=num_checked)
    else:
        report = safetensors.export(checkpoint, out)
    console.echo(report.summary)
    console.show_next("stage1", "infer", *given(shards=shards or DEFAULT_SHARDS, checkpoint=checkpoint))
