"""Normalisation and augmentation of clips, on the device that holds them.

Random numbers belong to the clip (see `clip_random`) and are the same for all of its frames, because a transform that
varied between frames would look like motion to the model. Only time jitter moves frames, and it never reverses them: a
fall must not turn into a rise.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from stage1.data import clip_random
from stage1.data.config import TransformConfig as TransformConfig
from vidshard.util.errors import UserError

MIN_SIDE = 8  # pixels of a cut-out window, or of a clip scaled down
BLOCK = 8  # side of the blocks that video codecs transform

FloatArray = npt.NDArray[np.float64]
Change = Callable[[torch.Tensor, npt.NDArray[np.int64]], torch.Tensor]  # some clips, their rows in the batch → changed


class ClipTransform:
    """Transform of uint8 clips (B, T, H, W, C) to normalised float32 clips (B, C, T, H, W) on the same device.

    With ``config.augment``, each clip is augmented by random numbers from `seed`, the epoch and its row in the index,
    and height and width are scaled by `train_scale`.
    """

    def __init__(self, config: TransformConfig, *, seed: int = 0) -> None:
        self.config, self.seed = config, seed

    def __call__(
        self, clips_BTHWC: torch.Tensor, indices_B: torch.Tensor | None = None, epoch: int = 0
    ) -> torch.Tensor:
        """Transform a batch. Raises ValueError if `indices_B` is missing and augmentation is on.

        `indices_B` is the row of each clip in the index, int64 (B,), on the same device. Only augmentation needs it and
        the epoch.
        """
        config = self.config
        if config.augment:
            if indices_B is None:
                raise ValueError("indices_B is None, expected the rows of the clips: pass batch indices and the epoch")
            seeds_B = clip_random.clip_seeds(indices_B, seed=self.seed, epoch=epoch)
            clips_BCTHW = augment(clips_BTHWC, config, Draws(config, seeds_B))
        else:
            clips_BCTHW = to_float(clips_BTHWC)
        return normalise(clips_BCTHW, config)


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
    mean, std = (clips_BCTHW.new_tensor(value).view(1, 3, 1, 1, 1) for value in (config.mean, config.std))
    return (clips_BCTHW - mean).div_(std)


class Draws:
    """Random numbers of a batch, in columns of B values, one per clip.

    All numbers are always drawn in the same order, so that disabling one augmentation does not change the others.
    """

    COUNT = 32

    def __init__(self, config: TransformConfig, seeds_B: torch.Tensor) -> None:
        """Draw all numbers from `seeds_B`, the result of `clip_random.clip_seeds`."""
        # Keep them on the CPU: Python code uses these few numbers to place windows, bars and rectangles.
        drawn_BN = clip_random.uniform(seeds_B, self.COUNT, stream=clip_random.AUGMENTATION)
        u = iter(drawn_BN.cpu().double().numpy().T)

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


def augment(clips_BTHWC: torch.Tensor, config: TransformConfig, draws: Draws) -> torch.Tensor:
    """Augment uint8 clips (B, T, H, W, C) by `draws`; return float clips (B, C, T, H', W') in [0, 1]."""
    B, T, H, W, _ = clips_BTHWC.shape
    device = clips_BTHWC.device
    if config.time_shift or config.time_stretch:
        frames_BT = torch.from_numpy(_jittered_frames(T, draws)).to(device)
        clips_BTHWC = clips_BTHWC[torch.arange(B, device=device)[:, None], frames_BT]
    size = [max(1, round(side * config.train_scale)) for side in (H, W)]
    rows_BhH, columns_BwW = (_matrices(draws, side, size[axis], axis) for axis, side in enumerate((H, W)))
    clips_BCTHW = _resample(clips_BTHWC, rows_BhH.to(device), columns_BwW.to(device))
    clips_BCTHW = _only(draws.grey, clips_BCTHW, lambda some, _: some.mean(1, keepdim=True).expand_as(some))
    clips_BCTHW = _only(draws.compression, clips_BCTHW, lambda some, rows: _compress(some, draws.step[rows]))

    def column(values: FloatArray) -> torch.Tensor:
        return torch.from_numpy(values).to(device, torch.float32).view(B, 1, 1, 1, 1)

    means = clips_BCTHW.mean((1, 2, 3, 4), keepdim=True)
    contrast = column(draws.contrast)
    clips_BCTHW = clips_BCTHW.mul_(contrast).add_(means * (1 - contrast) + column(draws.brightness)).clamp_(0, 1)
    for b in np.flatnonzero(draws.border | draws.overlay | draws.erase).tolist():
        _cover(clips_BCTHW[b], draws, b)
    return clips_BCTHW


def _only(chosen: npt.NDArray[np.bool_], clips_BCTHW: torch.Tensor, change: Change) -> torch.Tensor:
    """Apply `change` to the `chosen` clips, in place, and return all clips."""
    rows = np.flatnonzero(chosen)
    if len(rows):
        places = torch.from_numpy(rows).to(clips_BCTHW.device)
        clips_BCTHW[places] = change(clips_BCTHW[places], rows)
    return clips_BCTHW


def _jittered_frames(num_frames: int, draws: Draws) -> npt.NDArray[np.int64]:
    """Return the frame to show at each time step, [B, T], non-decreasing; the end frames are repeated."""
    middle = (num_frames - 1) / 2
    places_BT = (np.arange(num_frames) - middle) * draws.stretch[:, None] + middle + draws.shift[:, None]
    return np.clip(np.rint(places_BT), 0, num_frames - 1).astype(np.int64)


def _matrices(draws: Draws, side: int, out: int, axis: int) -> torch.Tensor:
    """Return the matrices that crop, flip and resample each clip along one axis: float [B, out, side]."""
    matrices = []
    for b in range(len(draws.flip)):
        window = max(min(MIN_SIDE, side), side * draws.window[axis][b])
        first = (side - window) * draws.place[axis][b]
        mirrored = bool(axis == 1 and draws.flip[b])
        if draws.low_resolution[b]:
            low = max(min(MIN_SIDE, out), round(out * draws.resolution[b]))
            down = resize_matrix(side, low, first=first, window=window, mirrored=mirrored)
            matrices.append(resize_matrix(low, out) @ down)
        else:
            matrices.append(resize_matrix(side, out, first=first, window=window, mirrored=mirrored))
    return torch.from_numpy(np.stack(matrices).astype(np.float32))


def resize_matrix(
    side: int, out: int, *, first: float = 0.0, window: float | None = None, mirrored: bool = False
) -> FloatArray:
    """Return the matrix [out, side] that interpolates `out` pixels linearly from a window of `side` pixels.

    The interpolation kernel is widened for downscaling, as in Pillow, to avoid aliasing.

    >>> resize_matrix(4, 2).round(2).tolist()
    [[0.43, 0.43, 0.14, 0.0], [0.0, 0.14, 0.43, 0.43]]
    """
    window = side if window is None else window
    step = window / out
    centers = first + (np.arange(out) + 0.5) * step - 0.5
    if mirrored:
        centers = centers[::-1]
    weights = np.maximum(0, 1 - np.abs(centers[:, None] - np.arange(side)) / max(1.0, step))
    return np.asarray(weights / weights.sum(1, keepdims=True))


def _resample(clips_BTHWC: torch.Tensor, rows_BhH: torch.Tensor, columns_BwW: torch.Tensor) -> torch.Tensor:
    """Resize each clip by two matrix products, which run on any device. Returns (B, C, T, h, w) in [0, 1]."""
    B, T, H, W, C = clips_BTHWC.shape
    lines = clips_BTHWC.permute(0, 2, 1, 4, 3).reshape(B, H, T * C * W).float()
    lines = torch.bmm(rows_BhH / 255.0, lines)
    h = lines.shape[1]
    lines = torch.bmm(lines.view(B, h * T * C, W), columns_BwW.transpose(1, 2))
    return lines.view(B, h, T, C, -1).permute(0, 3, 2, 1, 4)


def _compress(clips_BCTHW: torch.Tensor, steps: FloatArray) -> torch.Tensor:
    """Quantise the 8×8 cosine transform of each frame, more coarsely at high frequencies, as JPEG and H.264 do."""
    B, C, T, H, W = clips_BCTHW.shape
    padded = functional.pad(clips_BCTHW.reshape(B, C * T, H, W), (0, -W % BLOCK, 0, -H % BLOCK), mode="replicate")
    blocks = padded.view(B, C * T, padded.shape[2] // BLOCK, BLOCK, padded.shape[3] // BLOCK, BLOCK).transpose(3, 4)
    cosines = _cosine_matrix().to(clips_BCTHW)
    waves = torch.arange(BLOCK, device=clips_BCTHW.device)
    step = torch.from_numpy(steps).to(clips_BCTHW).view(B, 1, 1, 1, 1, 1) * (1 + waves[:, None] + waves) / 4
    coefficients = cosines @ blocks @ cosines.T
    blocks = cosines.T @ ((coefficients / step).round_() * step) @ cosines
    return blocks.transpose(3, 4).reshape(padded.shape)[..., :H, :W].reshape(B, C, T, H, W)


def _cosine_matrix() -> torch.Tensor:
    """Return the matrix of the orthonormal discrete cosine transform (type II) of BLOCK values."""
    places = np.arange(BLOCK)
    matrix = np.cos(math.pi / BLOCK * (places + 0.5) * places[:, None]) * math.sqrt(2 / BLOCK)
    matrix[0] /= math.sqrt(2)
    return torch.from_numpy(matrix)


def _cover(clip_CTHW: torch.Tensor, draws: Draws, b: int) -> None:
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
        # Black and white cells of 2 × 2 pixels imitate text; the position seeds the pattern.
        cells = np.random.default_rng(int(place * 2**32)).integers(0, 2, ((high + 1) // 2, (wide + 1) // 2))
        pattern = np.kron(cells, np.ones((2, 2)))[:high, :wide]
        clip_CTHW[:, :, top : top + high, left : left + wide] = torch.from_numpy(pattern).to(clip_CTHW)
    if draws.erase[b]:
        area, ratio = (float(values[b]) for values in draws.erase_shape)
        high, wide = min(H, int(H * math.sqrt(area * ratio))), min(W, int(W * math.sqrt(area / ratio)))
        top, left = (int(draws.erase_place[i][b] * room) for i, room in enumerate((H - high, W - wide)))
        clip_CTHW[:, :, top : top + high, left : left + wide] = float(draws.erase_shade[b])
