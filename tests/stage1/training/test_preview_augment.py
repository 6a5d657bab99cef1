"""The sheet of augmented clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fake_shards import write_shards
from pictures import count_pixels, read_picture
from stage1.data.transforms import TransformConfig
from stage1.training.preview_augment import augmented, preview_augment
from vidshard.util.errors import UserError


def test_a_sheet_is_drawn_even_of_a_single_clip(tmp_path: Path) -> None:
    frames = [(200, 40, 90), (10, 220, 60), (0, 70, 250)]
    clips = np.array(frames, np.uint8)[None, :, None, None].repeat(16, axis=2).repeat(16, axis=3)
    shards = write_shards(tmp_path / "shards", clips, [1])
    plain = TransformConfig(augment=False)
    pictures = [
        read_picture(preview_augment(shards, transform, tmp_path / f"{name}.png", seed=1))
        for name, transform in (("erased", TransformConfig(erase_probability=1)), ("plain", plain))
    ]
    for picture in pictures:  # the middle frame before augmentation; all frames in the strip of the clip over time
        counts = [count_pixels(picture, colour) for colour in frames]
        assert counts[1] > counts[0] > 1_000
        assert counts[1] > counts[2] > 1_000
    assert (pictures[0] != pictures[1]).any()
    with pytest.raises(UserError, match="is a folder, expected the PNG to write"):
        preview_augment(shards, TransformConfig(), tmp_path)


def test_views_are_those_of_training_as_pixels() -> None:
    clips, rows = np.full((2, 3, 16, 16, 3), 100, np.uint8), np.array([4, 9])
    config = TransformConfig(brightness=0.5, train_scale=1.0)
    views = [augmented(clips, rows, config, seed=0, epoch=epoch) for epoch in (0, 0, 1)]
    assert views[0].shape == clips.shape
    assert (views[0] == views[1]).all()
    assert (views[0] != views[2]).any()
