"""Clips become model input, augmented the same in all frames."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from stage1.data.clip_random import clip_seeds
from stage1.data.config import IMAGENET_MEAN, IMAGENET_STD
from stage1.data.transforms import (
    AugmentPlan,
    ClipTransform,
    Draws,
    ResizePlan,
    TransformConfig,
    augment,
    resize_matrices,
)
from timing import processor_seconds


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
    step, none = 40 / 20, torch.zeros(0, dtype=torch.int64)
    centers = torch.from_numpy(5 + (np.arange(20) + 0.5) * step - 0.5)[None]
    plan = ResizePlan(centers, torch.tensor([step], dtype=torch.float64), none, none, torch.zeros(0, 20))
    matrix = resize_matrices(plan, 50)[0].numpy()
    assert np.abs(line @ matrix.T - expected).max() < 16  # Pillow's triangle ends at the window, ours beyond it
    assert np.abs((line @ matrix.T - expected)[0, 2:-2]).max() <= 1


# --- compared with one clip at a time, in plain Python

EVERYTHING = TransformConfig(
    augment=True,
    low_resolution_probability=0.5,
    compression_probability=0.5,
    border_probability=0.5,
    overlay_probability=0.5,
    erase_probability=0.5,
    time_shift=3,
    time_stretch=0.5,
)


def scalar_draws(row: int, *, seed: int, epoch: int, count: int) -> list[float]:
    """Uniform numbers of a clip, by the finaliser of SplitMix64 on Python's integers."""
    golden, multipliers, word = 0x9E3779B97F4A7C15, (0xBF58476D1CE4E5B9, 0x94D049BB133111EB), 1 << 64

    def mix(value: int) -> int:
        value %= word
        value = ((value ^ value >> 30) * multipliers[0]) % word
        value = ((value ^ value >> 27) * multipliers[1]) % word
        return value ^ value >> 31

    of_clip = mix(mix(mix(seed) + epoch * golden) + (row + 1) * golden)
    of_stream = mix(of_clip + multipliers[0])
    return [(mix(of_stream + (place + 1) * golden) >> 40) / (1 << 24) for place in range(count)]


def scalar_matrix(side: int, out: int, first: float, window: float, mirrored: bool) -> Any:
    step = window / out
    centers = first + (np.arange(out) + 0.5) * step - 0.5
    centers = centers[::-1] if mirrored else centers
    weights = np.maximum(0, 1 - np.abs(centers[:, None] - np.arange(side)) / max(1.0, step))
    return weights / weights.sum(1, keepdims=True)


def scalar_matrices(draws: Draws, b: int, side: int, out: int, axis: int) -> Any:
    window = max(min(8, side), side * draws.window[axis][b])
    first = (side - window) * draws.place[axis][b]
    mirrored = bool(axis == 1 and draws.flip[b])
    if not draws.low_resolution[b]:
        return scalar_matrix(side, out, first, window, mirrored)
    low = max(min(8, out), round(out * draws.resolution[b]))
    return scalar_matrix(low, out, 0, low, False) @ scalar_matrix(side, low, first, window, mirrored)


def scalar_cover(clip_CTHW: torch.Tensor, draws: Draws, b: int) -> None:
    """Draw bars, an overlay and a rectangle into one clip, in place."""
    H, W = clip_CTHW.shape[2:]
    if draws.border[b]:
        top, bottom, left, right = (int(draws.bars[i][b] * (H, H, W, W)[i]) for i in range(4))
        clip_CTHW[:, :, :top] = clip_CTHW[:, :, H - bottom :] = 0
        clip_CTHW[:, :, :, :left] = clip_CTHW[:, :, :, W - right :] = 0
    if draws.overlay[b]:
        place, size, below = (float(values[b]) for values in draws.overlay_place)
        high, wide = max(2, int(H * (0.05 + 0.05 * size))), max(2, int(W * (0.2 + 0.25 * size)))
        top = H - high - H // 32 if below < 0.5 else H // 32
        left = int(place * (W - wide))
        cells = np.random.default_rng(int(place * 2**32)).integers(0, 2, ((high + 1) // 2, (wide + 1) // 2))
        pattern = np.kron(cells, np.ones((2, 2)))[:high, :wide]
        clip_CTHW[:, :, top : top + high, left : left + wide] = torch.from_numpy(pattern).to(clip_CTHW)
    if draws.erase[b]:
        area, ratio = (float(values[b]) for values in draws.erase_shape)
        high, wide = min(H, int(H * math.sqrt(area * ratio))), min(W, int(W * math.sqrt(area / ratio)))
        top, left = (int(draws.erase_place[i][b] * room) for i, room in enumerate((H - high, W - wide)))
        clip_CTHW[:, :, top : top + high, left : left + wide] = float(draws.erase_shade[b])


def planned(
    rows: list[int], config: TransformConfig = EVERYTHING, shape: tuple[int, ...] = (16, 70, 90)
) -> AugmentPlan:
    return ClipTransform(config, seed=7).plan(torch.tensor(rows), 2, shape)


def test_every_drawn_number_is_that_of_its_clip() -> None:
    rows = [0, 5, 123456, -1]
    seen: list[Any] = []
    config = dataclasses.replace(EVERYTHING, brightness=1, contrast=1)
    draws = Draws(config, clip_seeds(torch.tensor(rows), seed=7, epoch=2))
    for b, row in enumerate(rows):
        u = scalar_draws(row, seed=7, epoch=2, count=Draws.COUNT)
        seen = [
            [draws.flip[b], draws.window[0][b], draws.window[1][b], draws.place[0][b], draws.place[1][b]],
            [draws.brightness[b], draws.contrast[b], draws.grey[b], draws.low_resolution[b], draws.resolution[b]],
            [draws.compression[b], draws.step[b], draws.border[b]],
            [bar[b] for bar in draws.bars],
            [draws.overlay[b], *(values[b] for values in draws.overlay_place), draws.erase[b]],
            [draws.erase_shape[0][b], draws.erase_shape[1][b], *(values[b] for values in draws.erase_place)],
            [draws.erase_shade[b], draws.shift[b], draws.stretch[b]],
        ]
        expected = [
            [u[0] < 0.5, 0.6 + (1 - 0.6) * u[1], 0.6 + (1 - 0.6) * u[2], u[3], u[4]],
            [-1 + 2 * u[5], 2 * u[6], u[7] < 0.1, u[8] < 0.5, 0.4 + (1 - 0.4) * u[9]],
            [u[10] < 0.5, 0.3 / 8 + (0.3 - 0.3 / 8) * u[11], u[12] < 0.5],
            [0.12 * max(0, 2 * value - 1) for value in u[13:17]],
            [u[17] < 0.5, u[18], u[19], u[20], u[21] < 0.5],
            [0.02 + (0.25 - 0.02) * u[22], pytest.approx(math.exp(-1 + 2 * u[23]), rel=1e-15), u[24], u[25]],
            [u[26], round(-3 + 6 * u[27]), pytest.approx(1.5 ** (-1 + 2 * u[28]), rel=1e-15)],
        ]
        assert seen == expected


def test_matrices_are_those_of_each_clip_alone() -> None:
    rows = torch.arange(300)
    draws = Draws(EVERYTHING, clip_seeds(rows, seed=7, epoch=2))
    plan = planned(rows.tolist())
    for axis, (part, side, out) in enumerate(((plan.rows, 70, 60), (plan.columns, 90, 77))):
        expected = np.stack([scalar_matrices(draws, b, side, out, axis) for b in range(len(rows))])
        assert np.abs(resize_matrices(part, side).numpy() - expected.astype(np.float32)).max() < 1e-7


def test_bars_overlays_and_rectangles_are_those_of_each_clip_alone() -> None:
    config = dataclasses.replace(EVERYTHING, train_scale=1, contrast=0, brightness=0)
    without = dataclasses.replace(config, border_probability=0, overlay_probability=0, erase_probability=0)
    rows, clips = torch.arange(60), torch.randint(0, 256, (60, 2, 40, 50, 3), dtype=torch.uint8)
    draws = Draws(config, clip_seeds(rows, seed=7, epoch=2))
    shape = (2, 40, 50)
    expected = augment(clips, without, planned(rows.tolist(), without, shape))
    for b in range(len(rows)):
        scalar_cover(expected[b], draws, b)
    assert torch.equal(augment(clips, config, planned(rows.tolist(), config, shape)), expected)


def test_two_ranks_draw_the_same_for_a_clip() -> None:
    one, other = planned([3, 8]), planned([8, 4, 3])
    for part in ("contrast", "brightness", "frames"):
        first, second = getattr(one, part), getattr(other, part)
        assert torch.equal(first[[0, 1]], second[[2, 0]])
    for first, second in ((one.rows, other.rows), (one.columns, other.columns)):
        assert torch.equal(first.centers[[0, 1]], second.centers[[2, 0]])


def test_a_batch_of_128_is_planned_in_no_time() -> None:
    """It takes a millisecond on an idle core; the limit leaves room for a busy one."""
    transform, rows = ClipTransform(TransformConfig(augment=True)), torch.arange(128)
    epochs = itertools.count()
    assert processor_seconds(lambda: transform.plan(rows, next(epochs), (16, 112, 112)), tries=20) < 0.01
