"""Clips become model input, augmented the same in all frames."""

from __future__ import annotations

import pytest
import torch

from stage1.transforms import IMAGENET_MEAN, IMAGENET_STD, ClipTransform, TransformConfig


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
    out = ClipTransform(TransformConfig(augment=True), seed=1)(clips)
    assert torch.allclose(out, out[:, :, :1].expand_as(out), atol=1e-5)
    assert not torch.allclose(out[0], out[1], atol=1e-2)


def test_a_flip_alone_mirrors() -> None:
    config = TransformConfig(
        augment=True, flip_probability=1.0, min_scale=1.0, brightness=0.0, contrast=0.0, grey_probability=0.0
    )
    clips = torch.randint(0, 256, (2, 3, 8, 8, 3), dtype=torch.uint8)
    expected = ClipTransform(config.for_evaluation)(clips).flip(4)
    assert torch.allclose(ClipTransform(config)(clips), expected, atol=1e-4)


def test_a_seed_gives_the_same_clips_again() -> None:
    clips = torch.randint(0, 256, (2, 3, 8, 8, 3), dtype=torch.uint8)
    transform = ClipTransform(TransformConfig(augment=True), seed=5)
    first, second = transform(clips), transform(clips)
    transform.seed(5)
    assert torch.equal(transform(clips), first)
    assert not torch.equal(first, second)


def test_augmented_pixels_stay_in_range() -> None:
    config = TransformConfig(mean=(0, 0, 0), std=(1, 1, 1), augment=True, brightness=1.0, contrast=1.0)
    out = ClipTransform(config)(torch.randint(0, 256, (8, 2, 8, 8, 3), dtype=torch.uint8))
    assert 0 <= float(out.min()) <= float(out.max()) <= 1


@pytest.mark.parametrize("wrong", [{"std": (1, 1, 0)}, {"min_scale": 0}, {"brightness": 2}, {"flip_probability": -1}])
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TransformConfig(**wrong)  # type: ignore[arg-type]
