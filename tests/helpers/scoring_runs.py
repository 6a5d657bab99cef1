"""Shared by tests: shards_and_model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fake_shards import random_clips, write_shards
from inference_runs import write_checkpoint
from vidshard.shards.manifest import open_shards

NUM_CLIPS = 37


def shards_and_model(folder: Path, **changes: Any) -> Path:
    """Return 37 clips of 8 videos, one of them damaged, and a model that classifies about half as crime."""
    clips = random_clips(NUM_CLIPS) // np.linspace(1, 9, NUM_CLIPS).astype(np.uint8)[:, None, None, None, None]
    labels = [int(i // 5 % 2) for i in range(NUM_CLIPS)]
    write_shards(folder / "shards", clips, labels, clips_per_video=5, split="Train")
    shards = open_shards(folder / "shards")
    row = shards.index.clips[11]
    with open(shards.shard_path(int(row["shard"])), "r+b") as file:
        file.seek(int(row["offset"]) + 500)
        file.write(b"damaged")
    write_checkpoint(folder / "model.pt", **changes)
    return folder
