"""Clips become model input, augmented the same in all frames."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from stage1.data.config import IMAGENET_MEAN, IMAGENET_STD
from stage1.data.transforms import ClipTransform, TransformConfig, resize_matrix


def test_normalises_with_mean_and_std() -> None:
    clips = torch.randint(0, 256, (2, 4, 8, 10, 3), dtype=torch.uint8)
    out = ClipTransform(TransformConfig())(clips)
    assert out.shape == (2, 3, 4, 8, 10)
    assert out.dtype == torch.float32
    expected = (clips[1, 2, 3, 4].double() / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    assert torch.allclose(out[1, :, 2, 3, 4].double(), expected, atol=1e-5)


def test_augmentation_is_the_same_for_all_frames_and_differs_between_clips() -> None:
    frame = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8)
    clips = frame.expand(8, 4, 16, 16, 3)
    out = ClipTransform(TransformConfig(augment=True), seed=1)(clips, torch.arange(8))
    assert torch.allclose(out, out[:, :, :1].expand_as(out), atol=1e-5)
    assert not torch.allclose(out[0], out[1], atol=1e-2)


def test_a_flip_alone_mirrors() -> None:
    config = TransformConfig(
        augment=True,
        train_scale=1.0,
        flip_probability=1.0,
        min_scale=1.0,
        brightness=0.0,
        contrast=0.0,
        grey_probability=0.0,
    )
    clips = torch.randint(0, 256, (2, 3, 8, 8, 3), dtype=torch.uint8)
    expected = ClipTransform(config.for_evaluation)(clips).flip(4)
    assert torch.allclose(ClipTransform(config)(clips, torch.arange(2)), expected, atol=1e-4)


def test_augmentation_belongs_to_seed_epoch_and_clip() -> None:
    clips = torch.randint(0, 256, (4, 3, 8, 8, 3), dtype=torch.uint8)
    transform, rows = ClipTransform(TransformConfig(augment=True), seed=5), torch.tensor([9, 2, 7, -1])
    out = transform(clips, rows, 3)
    alone = torch.cat([transform(clips[i : i + 1], rows[i : i + 1], 3) for i in (3, 1, 0, 2)])
    assert torch.allclose(alone, out[[3, 1, 0, 2]], atol=1e-5)
    assert torch.equal(transform(clips, rows, 3), out)
    assert not torch.allclose(transform(clips, rows, 4), out, atol=1e-2)
    assert not torch.allclose(transform(clips, rows + 1, 3), out, atol=1e-2)
    other = ClipTransform(TransformConfig(augment=True), seed=6)
    assert not torch.allclose(other(clips, rows, 3), out, atol=1e-2)


def test_augmentation_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="pass batch indices"):
        ClipTransform(TransformConfig(augment=True))(torch.zeros(1, 2, 8, 8, 3, dtype=torch.uint8))


def test_augmented_pixels_stay_in_range() -> None:
    config = TransformConfig(mean=(0, 0, 0), std=(1, 1, 1), augment=True, brightness=1.0, contrast=1.0)
    out = ClipTransform(config)(torch.randint(0, 256, (8, 2, 8, 8, 3), dtype=torch.uint8), torch.arange(8))
    assert 0 <= float(out.min()) <= float(out.max()) <= 1


@pytest.mark.parametrize("wrong", [{"std": (1, 1, 0)}, {"min_scale": 0}, {"brightness": 2}, {"flip_probability": -1}])
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TransformConfig(**wrong)  # type: ignore[arg-type]


OFF = TransformConfig(
    mean=(0, 0, 0),
    std=(1, 1, 1),
    augment=True,
    train_scale=1,
    flip_probability=0,
    min_scale=1,
    brightness=0,
    contrast=0,
    grey_probability=0,
)


def _augmented(frame_or_clip: torch.Tensor, **changes: float) -> torch.Tensor:
    """Eight clips of it, float (8, 3, T, H, W) in [0, 1], augmented by `changes` alone."""
    clip = frame_or_clip if frame_or_clip.ndim == 4 else frame_or_clip.expand(4, *frame_or_clip.shape)
    transform = ClipTransform(dataclasses.replace(OFF, **changes), seed=1)  # type: ignore[arg-type]
    return transform(clip.expand(8, *clip.shape), torch.arange(8))


@pytest.mark.parametrize(
    "changes",
    [
        {"min_scale": 0.5},
        {"train_scale": 0.5},
        {"low_resolution_probability": 1},
        {"compression_probability": 1},
        {"border_probability": 1},
        {"overlay_probability": 1},
        {"erase_probability": 1},
        {"grey_probability": 1, "brightness": 0.2, "contrast": 0.2},
    ],
)
def test_each_part_is_the_same_in_all_frames_and_changes_something(changes: dict[str, float]) -> None:
    frame = torch.randint(0, 256, (32, 40, 3), dtype=torch.uint8)
    out = _augmented(frame, **changes)
    assert torch.allclose(out, out[:, :, :1].expand_as(out), atol=1e-5)
    assert 0 <= float(out.min()) <= float(out.max()) <= 1
    untouched = _augmented(frame)
    assert torch.allclose(untouched[0, :, 0], frame.permute(2, 0, 1) / 255, atol=1e-5)
    assert out.shape != untouched.shape or not torch.allclose(out, untouched, atol=1e-2)


def test_time_jitter_moves_frames_and_never_backwards() -> None:
    clip = (torch.arange(16) * 10).to(torch.uint8).view(16, 1, 1, 1).expand(16, 8, 8, 3)
    order_BT = (_augmented(clip, time_shift=3, time_stretch=0.5)[:, 0, :, 4, 4] * 25.5).round()
    assert (order_BT.diff(dim=1) >= 0).all()
    assert len({tuple(order.tolist()) for order in order_BT}) > 4
    assert 0 <= order_BT.min() <= order_BT.max() <= 15


@pytest.mark.parametrize("part", ["low_resolution_probability", "compression_probability"])
def test_low_resolution_and_compression_lose_fine_detail_and_keep_the_brightness(part: str) -> None:
    frame = torch.randint(120, 136, (32, 32, 3), dtype=torch.uint8)
    plain, out = _augmented(frame), _augmented(frame, **{part: 1})
    assert out.std((3, 4)).mean() < 0.8 * plain.std((3, 4)).mean()
    assert torch.allclose(out.mean((2, 3, 4)), plain.mean((2, 3, 4)), atol=0.05)


def test_turning_one_part_off_leaves_the_others_as_they_were() -> None:
    frame = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8)
    with_grey, without = _augmented(frame, min_scale=0.5, grey_probability=1), _augmented(frame, min_scale=0.5)
    assert torch.allclose(with_grey[:, 0], without.mean(1), atol=1e-5)


def test_a_window_resized_is_what_pillow_makes_of_it() -> None:
    image = pytest.importorskip("PIL.Image")
    line = torch.randint(0, 256, (1, 50), dtype=torch.uint8).numpy()
    expected = np.asarray(image.fromarray(line).resize((20, 1), image.Resampling.BILINEAR, box=(5, 0, 45, 1)))
    matrix = resize_matrix(50, 20, first=5, window=40)
    assert np.abs(line @ matrix.T - expected).max() < 16  # Pillow's triangle ends at the window, ours beyond it
    assert np.abs((line @ matrix.T - expected)[0, 2:-2]).max() <= 1
