"""Normalisation and augmentation of clips, on the device that holds them.

Random numbers belong to the clip (see `clip_random`) and are the same for all of its frames, because a transform that
varied between frames would look like motion to the model. Only time jitter moves frames, and it never reverses them: a
fall must not turn into a rise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from stage1.common.device import constant, map_tensors
from stage1.data import clip_random
from stage1.data.config import TransformConfig as TransformConfig
from vidshard.util.errors import UserError

MIN_SIDE = 8  # pixels of a cut-out window, or of a clip scaled down
BLOCK = 8  # side of the blocks that video codecs transform

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
OVERLAY = 4  # of the six rectangles drawn into a clip: four bars, an overlay, and one in a single shade


class ClipTransform:
    """Transform of uint8 clips (B, T, H, W, C) to normalised float32 clips (B, C, T, H, W) on the same device.

    With ``config.augment``, each clip is augmented by random numbers from `seed`, the epoch and its row in the index,
    and height and width are scaled by `train_scale`.
    """

    def __init__(self, config: TransformConfig, *, seed: int = 0) -> None:
        self.config, self.seed = config, seed

    def __call__(
        self,
        clips_BTHWC: torch.Tensor,
        indices_B: torch.Tensor | None = None,
        epoch: int = 0,
        plan: AugmentPlan | None = None,
    ) -> torch.Tensor:
        """Transform a batch. Raises ValueError if `indices_B` is missing and augmentation is on.

        `indices_B` is the row of each clip in the index, int64 (B,). Only augmentation needs it and the epoch, or a
        `plan` that was made of them before, on the device of the clips.
        """
        if not self.config.augment:
            return normalise(to_float(clips_BTHWC), self.config)
        if plan is None:
            if indices_B is None:
                raise ValueError("indices_B is None, expected the rows of the clips: pass batch indices and the epoch")
            made = self.plan(indices_B.cpu(), epoch, clips_BTHWC.shape[1:4])
            plan = map_tensors(lambda tensor: tensor.to(clips_BTHWC.device), made)
        return normalise(augment(clips_BTHWC, self.config, plan), self.config)

    def plan(self, indices_B: torch.Tensor, epoch: int, shape: tuple[int, ...]) -> AugmentPlan:
        """Plan the augmentation of clips of `shape` (T, H, W) and these rows, all on the CPU."""
        seeds_B = clip_random.clip_seeds(indices_B, seed=self.seed, epoch=epoch)
        return plan_augmentation(self.config, Draws(self.config, seeds_B), shape)


class BatchTransform:
    """Training transform that applies a user's function: uint8 (B, T, H, W, C) → normalised float32 (B, 3, T, H, W).

    `function` is called on float32 (B, 3, T, H, W) in [0, 1], and its result is normalised by `config`. Raises
    UserError if `function` converts or normalises frames itself, or does not return such a batch.
    """

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], config: TransformConfig) -> None:
        self.function, self.config = function, config
        parts = [type(part).__name__ for part in getattr(function, "transforms", [function])]
        unwanted = [name for name in parts if name in ("ToTensor", "PILToTensor", "ToImage", "Normalize")]
        if unwanted:
            raise UserError(
                f"transform contains {' and '.join(unwanted)}, but it is called on float clips (B, 3, T, H, W) in [0, "
                "1] that are normalised afterwards. Remove them; to normalise by different values, pass "
                f'transform={{"mean": {list(config.mean)}, "std": {list(config.std)}}} with your values'
            )

    def __call__(self, clips_BTHWC: torch.Tensor, indices_B: torch.Tensor, epoch: int) -> torch.Tensor:
        clips_BCTHW = to_float(clips_BTHWC)
        changed = self.function(clips_BCTHW)
        expected = tuple(clips_BCTHW.shape[:3])
        if not isinstance(changed, torch.Tensor) or changed.ndim != 5 or not changed.is_floating_point():
            got = type(changed).__name__
            if isinstance(changed, torch.Tensor):
                got = f"{changed.dtype} {tuple(changed.shape)}"
        elif tuple(changed.shape[:3]) == expected:
            return normalise(changed, self.config)
        else:
            got = str(tuple(changed.shape))
        raise UserError(f"transform returned {got}, expected a float tensor {(*expected, 'H', 'W')}")


def to_float(clips_BTHWC: torch.Tensor) -> torch.Tensor:
    """Convert uint8 (B, T, H, W, C) to float32 (B, C, T, H, W) in [0, 1]."""
    return clips_BTHWC.permute(0, 4, 1, 2, 3).float().div_(255.0)


def normalise(clips_BCTHW: torch.Tensor, config: TransformConfig) -> torch.Tensor:
    """Subtract the mean and divide by the standard deviation of each colour."""
    mean, std = (constant(value, clips_BCTHW).view(1, 3, 1, 1, 1) for value in (config.mean, config.std))
    return (clips_BCTHW - mean).div_(std)


class Draws:
    """Random numbers of a batch, in columns of B values, one per clip.

    All numbers are always drawn in the same order, so that disabling one augmentation does not change the others.
    """

    COUNT = 32

    def __init__(self, config: TransformConfig, seeds_B: torch.Tensor) -> None:
        """Draw all numbers from `seeds_B`, the result of `clip_random.clip_seeds`, on the CPU."""
        drawn_BN = clip_random.uniform(seeds_B, self.COUNT, stream=clip_random.AUGMENTATION)
        u = iter(drawn_BN.double().numpy().T)

        def between(low: float, high: float) -> FloatArray:
            return np.asarray(low + (high - low) * next(u))

        def happens(probability: float) -> npt.NDArray[np.bool_]:
            return np.asarray(next(u) < probability)

        self.flip = happens(config.flip_probability)
        self.window = between(config.min_scale, 1), between(config.min_scale, 1)  # height, width
        self.place = next(u), next(u)  # position of the window: 0 at the top or left, 1 at the bottom or right
        self.brightness = between(-config.brightness, config.brightness)
        self.contrast = between(1 - config.contrast, 1 + config.contrast)
        self.grey = happens(config.grey_probability)
        self.low_resolution = happens(config.low_resolution_probability)
        self.resolution = between(config.min_resolution, 1)
        self.compression = happens(config.compression_probability)
        self.step = between(config.compression_strength / 8, config.compression_strength)
        self.border = happens(config.border_probability)
        self.bars = [
            config.max_border * np.maximum(0, 2 * next(u) - 1) for _ in range(4)
        ]  # half of the bars have width 0
        self.overlay = happens(config.overlay_probability)
        self.overlay_place = next(u), next(u), next(u)  # left to right, size, top or bottom
        self.erase = happens(config.erase_probability)
        self.erase_shape = between(0.02, max(0.02, config.max_erase)), np.exp(between(-1, 1))  # area, height ÷ width
        self.erase_place = next(u), next(u)
        self.erase_shade = next(u)
        self.shift = np.rint(between(-config.time_shift, config.time_shift))  # frames
        self.stretch = (1 + config.time_stretch) ** between(-1, 1)


class ResizePlan(NamedTuple):
    """Crop, flip and resampling of each clip along one axis."""

    centers: torch.Tensor  # float64 (B, N): place of each output pixel in the clip
    widths: torch.Tensor  # float64 (B,): half the width of the interpolation kernel
    low: torch.Tensor  # clips of low resolution, which are resampled to `low_sizes` pixels first, and then from these:
    low_sizes: torch.Tensor
    low_centers: torch.Tensor  # float64 (low, N)


class CoverPlan(NamedTuple):
    """Rectangles that are drawn into some clips, one after the other, and over each other."""

    clips: torch.Tensor
    edges: torch.Tensor  # int64 (clips, rectangles, 4): top, bottom, left and right, the second and last exclusive
    shades: torch.Tensor  # float32 (clips, rectangles)
    cells: torch.Tensor  # float32 (clips, rows, columns): black and white cells of 2 × 2 pixels of the overlay


class AugmentPlan(NamedTuple):
    """Augmentation of a batch, made on the CPU, so that `augment` never waits for a number from the device.

    Tensors named `clips`, `low`, `grey` or `compressed` hold places in the batch, int64.
    """

    frames: torch.Tensor | None  # int64 (B, T): the frame to show at each time step; None: those of the clip
    rows: ResizePlan
    columns: ResizePlan
    grey: torch.Tensor
    compressed: torch.Tensor
    steps: torch.Tensor  # float32 (compressed,)
    contrast: torch.Tensor  # float32 (B,), like the brightness
    brightness: torch.Tensor
    cover: CoverPlan


def plan_augmentation(config: TransformConfig, draws: Draws, shape: tuple[int, ...]) -> AugmentPlan:
    """Plan the augmentation of clips of `shape` (T, H, W) by `draws`, on the CPU."""
    T, H, W = shape
    h, w = (max(1, round(side * config.train_scale)) for side in (H, W))
    jitters = bool(config.time_shift or config.time_stretch)
    return AugmentPlan(
        frames=torch.from_numpy(_jittered_frames(T, draws)) if jitters else None,
        rows=_plan_axis(draws, H, h, axis=0),
        columns=_plan_axis(draws, W, w, axis=1),
        grey=_places(draws.grey),
        compressed=_places(draws.compression),
        steps=_float32(draws.step[draws.compression]),
        contrast=_float32(draws.contrast),
        brightness=_float32(draws.brightness),
        cover=_plan_cover(draws, h, w),
    )


def augment(clips_BTHWC: torch.Tensor, config: TransformConfig, plan: AugmentPlan) -> torch.Tensor:
    """Augment uint8 clips (B, T, H, W, C) by `plan`, on their device, to float clips (B, C, T, H', W') in [0, 1]."""
    B, _, H, W, _ = clips_BTHWC.shape
    if plan.frames is not None:
        clips_BTHWC = clips_BTHWC[torch.arange(B, device=clips_BTHWC.device)[:, None], plan.frames]
    clips_BCTHW = _resample(clips_BTHWC, resize_matrices(plan.rows, H), resize_matrices(plan.columns, W))
    clips_BCTHW = _only(plan.grey, clips_BCTHW, lambda some: some.mean(1, keepdim=True).expand_as(some))
    clips_BCTHW = _only(plan.compressed, clips_BCTHW, lambda some: _compress(some, plan.steps))
    means = clips_BCTHW.mean((1, 2, 3, 4), keepdim=True)
    contrast, brightness = (values.view(B, 1, 1, 1, 1) for values in (plan.contrast, plan.brightness))
    clips_BCTHW = clips_BCTHW.mul_(contrast).add_(means * (1 - contrast) + brightness).clamp_(0, 1)
    return _only(plan.cover.clips, clips_BCTHW, lambda some: _cover(some, plan.cover))


def _only(
    places: torch.Tensor, clips_BCTHW: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Apply `change` to the clips at `places`, in place, and return all clips."""
    if len(places):
        clips_BCTHW[places] = change(clips_BCTHW[places])
    return clips_BCTHW


def _places(chosen: npt.NDArray[np.bool_]) -> torch.Tensor:
    return torch.from_numpy(np.flatnonzero(chosen))


def _float32(values: FloatArray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _jittered_frames(num_frames: int, draws: Draws) -> IntArray:
    """Return the frame to show at each time step, [B, T], non-decreasing; the end frames are repeated."""
    middle = (num_frames - 1) / 2
    places_BT = (np.arange(num_frames) - middle) * draws.stretch[:, None] + middle + draws.shift[:, None]
    return np.clip(np.rint(places_BT), 0, num_frames - 1).astype(np.int64)


def _plan_axis(draws: Draws, side: int, out: int, *, axis: int) -> ResizePlan:
    """Plan how to crop, flip and resample each clip from `side` to `out` pixels along one axis."""
    low = draws.low_resolution
    sizes_B = np.where(low, np.maximum(min(MIN_SIDE, out), np.rint(out * draws.resolution)), out)
    window_B = np.maximum(min(MIN_SIDE, side), side * draws.window[axis])
    first_B, steps_B = (side - window_B) * draws.place[axis], window_B / sizes_B
    pixels_N = np.arange(out)
    places_BN = np.where((draws.flip & (axis == 1))[:, None], sizes_B[:, None] - 1 - pixels_N, pixels_N)
    low_sizes = sizes_B[low].astype(np.int64)
    return ResizePlan(
        centers=torch.from_numpy(first_B[:, None] + (places_BN + 0.5) * steps_B[:, None] - 0.5),
        widths=torch.from_numpy(np.maximum(1.0, steps_B)),
        low=_places(low),
        low_sizes=torch.from_numpy(low_sizes),
        low_centers=torch.from_numpy((pixels_N + 0.5) * (low_sizes[:, None] / out) - 0.5),
    )


def resize_matrices(plan: ResizePlan, side: int) -> torch.Tensor:
    """Return the matrices that resample each clip along an axis of `side` pixels: float32 (B, N, side)."""
    matrices = _interpolation(plan.centers, plan.widths, side)
    if len(plan.low):
        ones = torch.ones_like(plan.low_centers[:, 0])
        up = _interpolation(plan.low_centers, ones, matrices.shape[1], sides=plan.low_sizes)
        matrices[plan.low] = up @ matrices[plan.low]
    return matrices.float()


def _interpolation(
    centers_BN: torch.Tensor, widths_B: torch.Tensor, side: int, *, sides: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the weights of `side` pixels (of which the first `sides` exist) in linear interpolation at `centers_BN`.

    The kernel is as wide as the distance of the centres, to avoid aliasing, as in Pillow.

    >>> _interpolation(torch.tensor([[0.5, 2.5]]), torch.tensor([2.0]), 4).mul(100).round().tolist()
    [[[43.0, 43.0, 14.0, 0.0], [0.0, 14.0, 43.0, 43.0]]]
    """
    pixels = torch.arange(side, device=centers_BN.device)
    weights_BNS = (1 - (centers_BN[:, :, None] - pixels).abs() / widths_B[:, None, None]).clamp_(min=0)
    if sides is not None:
        weights_BNS *= pixels < sides[:, None, None]
    # The weights of a pixel sum to at least a half. Smaller sums are beyond the end of a clip of low resolution.
    return weights_BNS / weights_BNS.sum(2, keepdim=True).clamp_(min=0.25)


def _resample(clips_BTHWC: torch.Tensor, rows_BhH: torch.Tensor, columns_BwW: torch.Tensor) -> torch.Tensor:
    """Resize each clip by two matrix products, which run on any device. Returns (B, C, T, h, w) in [0, 1]."""
    B, T, H, W, C = clips_BTHWC.shape
    lines = clips_BTHWC.permute(0, 2, 1, 4, 3).reshape(B, H, T * C * W).float()
    lines = torch.bmm(rows_BhH / 255.0, lines)
    h = lines.shape[1]
    lines = torch.bmm(lines.view(B, h * T * C, W), columns_BwW.transpose(1, 2))
    return lines.view(B, h, T, C, -1).permute(0, 3, 2, 1, 4)


def _compress(clips_BCTHW: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Quantise the 8×8 cosine transform of each frame, more coarsely at high frequencies, as JPEG and H.264 do."""
    B, C, T, H, W = clips_BCTHW.shape
    padded = functional.pad(clips_BCTHW.reshape(B, C * T, H, W), (0, -W % BLOCK, 0, -H % BLOCK), mode="replicate")
    blocks = padded.view(B, C * T, padded.shape[2] // BLOCK, BLOCK, padded.shape[3] // BLOCK, BLOCK).transpose(3, 4)
    cosines = constant(_cosine_matrix(), clips_BCTHW)
    waves = torch.arange(BLOCK, device=clips_BCTHW.device)
    step = steps.view(B, 1, 1, 1, 1, 1) * (1 + waves[:, None] + waves) / 4
    coefficients = cosines @ blocks @ cosines.T
    blocks = cosines.T @ ((coefficients / step).round_() * step) @ cosines
    return blocks.transpose(3, 4).reshape(padded.shape)[..., :H, :W].reshape(B, C, T, H, W)


def _cosine_matrix() -> FloatArray:
    """Return the matrix of the orthonormal discrete cosine transform (type II) of BLOCK values."""
    places = np.arange(BLOCK)
    matrix: FloatArray = np.cos(math.pi / BLOCK * (places + 0.5) * places[:, None]) * math.sqrt(2 / BLOCK)
    matrix[0] /= math.sqrt(2)
    return matrix


def _plan_cover(draws: Draws, height: int, width: int) -> CoverPlan:
    """Plan the bars, overlays and rectangles of clips of this size."""
    chosen = np.flatnonzero(draws.border | draws.overlay | draws.erase)
    border, overlay, erase = (values[chosen] for values in (draws.border, draws.overlay, draws.erase))
    edges = np.zeros((len(chosen), OVERLAY + 2, 4), np.int64)
    sides = np.array([height, height, width, width])[:, None]
    edges[:, :OVERLAY] = [[0, height, 0, width]]
    bars = np.where(border, (np.stack(draws.bars)[:, chosen] * sides).astype(np.int64), 0)
    edges[:, 0, 1], edges[:, 1, 0], edges[:, 2, 3], edges[:, 3, 2] = bars[0], height - bars[1], bars[2], width - bars[3]

    place, size, below = (values[chosen] for values in draws.overlay_place)
    high = np.maximum(2, (height * (0.05 + 0.05 * size)).astype(np.int64))
    wide = np.maximum(2, (width * (0.2 + 0.25 * size)).astype(np.int64))
    top = np.where(below < 0.5, height - high - height // 32, height // 32)
    edges[:, OVERLAY] = np.where(overlay, _edges(top, high, (place * (width - wide)).astype(np.int64), wide), 0).T
    # Black and white cells of 2 × 2 pixels imitate text; the position seeds the pattern.
    cells = np.zeros((len(chosen), (high.max(initial=2) + 1) // 2, (wide.max(initial=2) + 1) // 2), np.float32)
    for b in np.flatnonzero(overlay).tolist():
        shape = int(high[b] + 1) // 2, int(wide[b] + 1) // 2
        cells[b, : shape[0], : shape[1]] = np.random.default_rng(int(place[b] * 2**32)).integers(0, 2, shape)

    area, ratio = (values[chosen] for values in draws.erase_shape)
    high = np.minimum(height, (height * np.sqrt(area * ratio)).astype(np.int64))
    wide = np.minimum(width, (width * np.sqrt(area / ratio)).astype(np.int64))
    top, left = (
        (draws.erase_place[axis][chosen] * room).astype(np.int64)
        for axis, room in enumerate((height - high, width - wide))
    )
    edges[:, OVERLAY + 1] = np.where(erase, _edges(top, high, left, wide), 0).T
    shades = np.zeros(edges.shape[:2])
    shades[:, OVERLAY + 1] = draws.erase_shade[chosen]
    return CoverPlan(torch.from_numpy(chosen), torch.from_numpy(edges), _float32(shades), torch.from_numpy(cells))


def _edges(top: IntArray, height: IntArray, left: IntArray, width: IntArray) -> IntArray:
    return np.stack([top, top + height, left, left + width])


def _cover(clips_BCTHW: torch.Tensor, plan: CoverPlan) -> torch.Tensor:
    """Draw bars, an overlay and a rectangle into each clip."""
    H, W = clips_BCTHW.shape[3:]
    y, x = (torch.arange(side, device=clips_BCTHW.device) for side in (H, W))
    y = y[:, None]
    shade_BHW = clips_BCTHW.new_full((len(clips_BCTHW), H, W), torch.nan)
    for number in range(plan.edges.shape[1]):
        top, bottom, left, right = plan.edges[:, number, :, None, None].unbind(1)
        inside_BHW = (top <= y) & (y < bottom) & (left <= x) & (x < right)
        own = plan.shades[:, number, None, None]
        if number == OVERLAY:
            rows, columns = plan.cells.shape[1:]
            cell_BHW = ((y - top) // 2).clamp(0, rows - 1) * columns + ((x - left) // 2).clamp(0, columns - 1)
            own = plan.cells.flatten(1).gather(1, cell_BHW.flatten(1)).view_as(inside_BHW)
        shade_BHW = torch.where(inside_BHW, own, shade_BHW)
    return torch.where(shade_BHW.isnan()[:, None, None], clips_BCTHW, shade_BHW[:, None, None])
