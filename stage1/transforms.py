"""uint8 clips → normalised float clips, on the device that holds them, with augmentation while training.

What is random is drawn once a clip and the same for all its frames: a transform that changed from frame to frame would
look like motion to the model.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.nn import functional

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformConfig:
    """How clips become model input. `mean` and `std`: of RGB in [0, 1]. The rest is augmentation, training only."""

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    augment: bool = False
    flip_probability: float = 0.5  # left-right
    min_scale: float = 0.75  # a window of this share of height and width, or more, is cut out and resized
    brightness: float = 0.25  # added: up to this share of the full range, either way
    contrast: float = 0.3  # factor: between 1 - contrast and 1 + contrast
    grey_probability: float = 0.1  # infrared cameras at night have no colour

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean {self.mean} and std {self.std} must be three numbers each, std above 0")
        if not 0 < self.min_scale <= 1:
            raise ValueError(f"min_scale is {self.min_scale}, expected above 0 and at most 1")
        for name in ("flip_probability", "brightness", "contrast", "grey_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 to 1")

    @property
    def for_evaluation(self) -> TransformConfig:
        """The same without augmentation."""
        return dataclasses.replace(self, augment=False)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> TransformConfig:
        return cls(**{**fields, "mean": tuple(fields["mean"]), "std": tuple(fields["std"])})


class ClipTransform:
    """uint8 (B, T, H, W, C) on any device → float32 (B, C, T, H, W) there, normalised.

    With augmentation on, what is random comes from a generator of its own, seeded by `seed`.
    """

    def __init__(self, config: TransformConfig, *, seed: int = 0) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)  # on the CPU, so that a run is the same on any device

    def seed(self, seed: int) -> None:
        """Start the random numbers anew."""
        self.generator.manual_seed(seed)

    def __call__(self, clips_BTHWC: torch.Tensor) -> torch.Tensor:
        clips_BCTHW = clips_BTHWC.permute(0, 4, 1, 2, 3).float().div_(255.0)
        if self.config.augment:
            clips_BCTHW = self._augment(clips_BCTHW)
        mean, std = (clips_BCTHW.new_tensor(value).view(1, 3, 1, 1, 1) for value in (self.config.mean, self.config.std))
        return (clips_BCTHW - mean) / std

    def _augment(self, clips_BCTHW: torch.Tensor) -> torch.Tensor:
        """Augment clips in [0, 1]."""
        config, B, device = self.config, len(clips_BCTHW), clips_BCTHW.device

        def uniform(low: float, high: float) -> torch.Tensor:
            return torch.empty(B).uniform_(low, high, generator=self.generator)

        scales = uniform(config.min_scale, 1), uniform(config.min_scale, 1)
        centers = [(1 - scale) * uniform(-1, 1) for scale in scales]
        flips = torch.where(uniform(0, 1) < config.flip_probability, -1.0, 1.0)
        grey = (uniform(0, 1) < config.grey_probability).to(device)
        contrast = uniform(1 - config.contrast, 1 + config.contrast).to(device).view(B, 1, 1, 1, 1)
        brightness = uniform(-config.brightness, config.brightness).to(device).view(B, 1, 1, 1, 1)

        clips_BCTHW = _crop_and_flip(clips_BCTHW, scales, centers, flips)
        clips_BCTHW = torch.where(grey.view(B, 1, 1, 1, 1), clips_BCTHW.mean(1, keepdim=True), clips_BCTHW)
        means = clips_BCTHW.mean((1, 2, 3, 4), keepdim=True)
        return ((clips_BCTHW - means) * contrast + means + brightness).clamp_(0, 1)


def _crop_and_flip(
    clips_BCTHW: torch.Tensor,
    scales: tuple[torch.Tensor, torch.Tensor],
    centers: list[torch.Tensor],
    flips: torch.Tensor,
) -> torch.Tensor:
    """Cut a window out of each clip, the same in all frames, resize it to the full size and mirror it where told.

    `scales`, `centers`: (height, width) of each window, [B]; the whole frame has scale 1 and center 0. `flips`: ±1 [B].
    """
    B, C, T, H, W = clips_BCTHW.shape
    theta_B23 = torch.zeros(B, 2, 3)
    theta_B23[:, 0, 0], theta_B23[:, 0, 2] = scales[1] * flips, centers[1]
    theta_B23[:, 1, 1], theta_B23[:, 1, 2] = scales[0], centers[0]
    grid_BHW2 = functional.affine_grid(theta_B23.to(clips_BCTHW.device), [B, 1, H, W], align_corners=False)
    frames = clips_BCTHW.reshape(B, C * T, H, W)  # time as channels: one grid for all frames
    return functional.grid_sample(frames, grid_BHW2, padding_mode="border", align_corners=False).view(B, C, T, H, W)
