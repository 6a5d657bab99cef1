"""The sheet of augmented clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fake_shards import write_shards
from stage1.data.transforms import TransformConfig
from stage1.training.preview_augment import augmented, preview_augment
from vidshard.util.errors import UserError


def test_a_sheet_is_drawn_even_of_a_single_clip(tmp_path: Path) -> None:
    clips = np.random.default_rng(0).integers(0, 255, (1, 3, 16, 16, 3), np.uint8)
    shards = write_shards(tmp_path / "shards", clips, [1])
    path = preview_augment(shards, TransformConfig(erase_probability=1), tmp_path / "sheet.png", seed=1)
    assert path.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(UserError, match="is a folder, expected the PNG to write"):
        preview_augment(shards, TransformConfig(), tmp_path)


def test_views_are_those_of_training_as_pixels() -> None:
    clips, rows = np.full((2, 3, 16, 16, 3), 100, np.uint8), np.array([4, 9])
    config = TransformConfig(brightness=0.5, train_scale=1.0)
    views = [augmented(clips, rows, config, seed=0, epoch=epoch) for epoch in (0, 0, 1)]
    assert views[0].shape == clips.shape
    assert (views[0] == views[1]).all()
    assert (views[0] != views[2]).any()
