"""Shared by tests: write, some_detections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from detections_made import detection
from stage1.inference import attention_data
from stage1.inference.attention_data import AttentionSource
from stage1.inference.outputs import Detection
from vidshard.shards.layout import ClipShape


def write(path: Path, detections: list[Detection], clips: torch.Tensor, *, trained_on: int = 0, **changes: Any) -> Path:
    """As a file of tensors, or as shards where `path` has no suffix."""
    num_frames, height, width = clips.shape[1:4]
    fields: dict[str, Any] = {
        "clip_shape": ClipShape(num_frames=num_frames, height=height, width=width),
        "checkpoint_sha256": "c",
        "shards_digest": "s",
        "threshold": 0.5,
        "out_of_fold": False,
        "missed_crimes": 3,
    }
    source = AttentionSource(**{**fields, **changes})

    def read_clips(rows: range, out: npt.NDArray[np.uint8]) -> None:
        out[:] = clips[rows.start : rows.stop].numpy()

    seen = [trained_on] * len(detections)
    if path.suffix == ".pt":
        attention_data.write_file(path, detections, seen, read_clips, source)
    else:
        attention_data.write_shards(path, detections, seen, read_clips, source, shard_bytes=700)
    return path


def some_detections(count: int) -> list[Detection]:
    return [detection(key=f"Fighting__a-{i:06d}", clip_index=i, confidence=0.5 + i / 8) for i in range(count)]
