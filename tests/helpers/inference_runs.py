"""Shared by tests: write_checkpoint, LABELS, some_clips, damage, place, stage1."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from fake_shards import random_clips, write_shards
from stage1.cli.main import main
from stage1.data.transforms import ClipTransform, TransformConfig
from stage1.model import checkpoint as checkpoints
from stage1.model.checkpoint import Checkpoint
from stage1.model.network import ModelConfig, Stage1Model
from vidshard.shards.layout import Clip
from vidshard.shards.manifest import open_shards

LABELS = [0, 1, 1, 0, -1, 1, 0]


def some_clips() -> Clip:
    """Noise of different strength."""
    strength = np.linspace(1, 9, len(LABELS)).astype(np.uint8)
    return random_clips(len(LABELS)) // strength[:, None, None, None, None]


def write_checkpoint(path: Path, *, shape: tuple[int, int, int] = (4, 16, 16), **changes: Any) -> Path:
    """Write an untrained model that classifies about half of `some_clips` as crime."""
    torch.manual_seed(0)
    model = Stage1Model(ModelConfig(channels=(8, 8), temporal_stages=(1,)))
    with torch.no_grad():
        model.classifier.weight.normal_(std=2.0)
        model.attention.score.weight *= 50
        logits_BK, _ = model.eval()(ClipTransform(TransformConfig())(torch.from_numpy(some_clips())))
        model.classifier.bias[1] -= (logits_BK[:, 1] - logits_BK[:, 0]).median()
    fields: dict[str, Any] = {
        "epoch": 3,
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": {},
        "scheduler_state_dict": {},
        "model_config": dataclasses.asdict(model.config),
        "transform_config": dataclasses.asdict(TransformConfig()),
        "clip_shape": {"num_frames": shape[0], "height": shape[1], "width": shape[2]},
        "sampling": {"mode": "uniform", "clip_len": shape[0], "clips_per_video": 1},
        "frame_gap_seconds": 0.1,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.save_checkpoint(path, Checkpoint(**{**fields, **changes}))
    return path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter a folder with shards/Test, its log, its videos and a checkpoint, all at their default paths."""
    monkeypatch.chdir(tmp_path)
    write_shards(tmp_path / "shards" / "Test", some_clips(), LABELS, split="Test")
    remember_source(tmp_path)
    write_checkpoint(tmp_path / "checkpoints" / "binary_stage1_with_attention.pt")
    return tmp_path


def remember_source(folder: Path) -> None:
    """Put the videos of shards/Test where its log says they are."""
    for path in open_shards(folder / "shards" / "Test").index.paths:
        (folder / "videos" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "videos" / path).touch()
    log = folder / "shards" / "Test.log"
    log.mkdir()
    (log / "source.json").write_text(json.dumps({"root": str(folder / "videos")}))


def stage1(*args: str) -> Result:
    return CliRunner().invoke(main, list(args))


def damage(folder: Path, row: int) -> str:
    """Flip a byte of a clip in shards/Test; returns its key."""
    shards = open_shards(folder / "shards" / "Test")
    clip = shards.index.clips[row]
    with open(shards.shard_path(int(clip["shard"])), "r+b") as file:
        file.seek(int(clip["offset"]) + 1000)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    return shards.index.key(row)
