"""Shared by tests: make."""

from __future__ import annotations

import dataclasses

import torch

from stage1.data.transforms import TransformConfig
from stage1.model.checkpoint import Checkpoint
from stage1.model.network import ModelConfig, Stage1Model

CONFIG = ModelConfig(channels=(8, 16), temporal_stages=(1,))


def make(model: Stage1Model | None = None) -> Checkpoint:
    model = model or Stage1Model(CONFIG)
    return Checkpoint(
        epoch=3,
        model_state_dict=model.state_dict(),
        optimizer_state_dict=torch.optim.AdamW(model.parameters()).state_dict(),
        scheduler_state_dict={"last_epoch": 3},
        model_config=dataclasses.asdict(CONFIG),
        transform_config=dataclasses.asdict(TransformConfig(mean=(0.1, 0.2, 0.3), augment=True)),
        clip_shape={"num_frames": 4, "height": 16, "width": 16},
        sampling={"mode": "uniform"},
        frame_gap_seconds=0.1,
        warnings=["mind"],
    )
