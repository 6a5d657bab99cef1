"""Export of a checkpoint as safetensors with a model card, as the Hugging Face Hub expects them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from stage1.common import files
from stage1.model.checkpoint import Checkpoint, load_checkpoint
from vidshard.util import atomic
from vidshard.util.errors import UserError
from vidshard.util.hashing import file_sha256

CARD_NAME = "README.md"
# Fields of the checkpoint that describe the model, as JSON in the metadata of the file.
_FACTS = ("model_config", "transform_config", "clip_shape", "sampling", "frame_gap_seconds", "threshold", "calibration")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SafetensorsReport:
    """Result of an export: the files written."""

    path: Path
    card: Path | None  # None if there was one already

    @property
    def summary(self) -> str:
        card = f", with the model card {self.card}" if self.card else "; the README.md beside it was kept"
        return f"✓ {self.path}: the weights of the checkpoint, bit for bit{card}"


def export(checkpoint_path: Path, out: Path) -> SafetensorsReport:
    """Write the weights of a checkpoint to the file `out`, and a model card beside it unless there is a README.md.

    Raises UserError if the package safetensors is missing, or if the checkpoint cannot be read.
    """
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise UserError("safetensors is not installed: pip install 'vidshard[hub]'") from error
    checkpoint = load_checkpoint(checkpoint_path)
    weights = {name: weight.contiguous() for name, weight in checkpoint.model_state_dict.items()}
    facts = {name: json.dumps(getattr(checkpoint, name)) for name in _FACTS}
    data: bytes = save(weights, {"format": "pt", "checkpoint_sha256": file_sha256(checkpoint_path), **facts})
    card = out.parent / CARD_NAME
    has_card = card.exists()
    with files.hold_out(out.parent, name=f".{out.name}.lock"):
        if not has_card:
            atomic.write_text(card, model_card(checkpoint))
        atomic.write_bytes(out, data)
    return SafetensorsReport(path=out, card=None if has_card else card)


def model_card(checkpoint: Checkpoint) -> str:
    """Return a model card: what the model is, what it was trained on, its figures and its limits."""
    about: dict[str, Any] = {
        "clips": f"{checkpoint.shape} (frames × height × width), {checkpoint.frame_gap_seconds:.3g} s between frames",
        "architecture": json.dumps(checkpoint.model_config),
        "training": f"{checkpoint.epoch} epochs on {len(checkpoint.train_videos):,} videos",
        "threshold": f"{checkpoint.threshold:.4f} ({checkpoint.threshold_target or 'not chosen on validation data'})",
        "figures of that epoch": json.dumps(checkpoint.metrics),
    }
    rows = "".join(f"| {name} | {value} |\n" for name, value in about.items())
    warnings = "".join(f"- {' '.join(warning.split())}\n" for warning in checkpoint.warnings)
    return f"""---
library_name: stage1
pipeline_tag: video-classification
tags: [surveillance, anomaly-detection]
---

# Normal or crime: a stage1 model

It scores clips of surveillance video with P(crime) and an attention weight for each frame.

| | |
|---|---|
{rows}
**Data and figures.** State here which videos it was trained on, their licence, and its figures on recordings that it
never saw (`stage1 evaluate`).

**Limits.** It was trained on few cameras, and raises false alarms on others. Do not use it to identify people, to raise
alarms without review, or as evidence.
{warnings}"""
