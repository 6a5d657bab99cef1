"""Options of preprocessing and augmentation. Does not import torch, because --help needs them."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

ReviewLabelUse = Literal["labels", "exclusions"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformConfig:
    """Normalisation and augmentation of clips. `mean` and `std` apply to RGB in [0, 1]; the rest is augmentation.

    Augmentation is for training only. Probabilities apply per clip. A probability or range of 0 disables that part.
    """

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    augment: bool = False
    train_scale: float = 6 / 7  # side of the training input ÷ side of the clips; smaller inputs train faster
    flip_probability: float = 0.5  # left-right
    min_scale: float = 0.6  # smallest share of height and width of the window that is cropped and resized
    brightness: float = 0.25  # largest shift, as a share of the full range
    contrast: float = 0.3  # the factor is between 1 - contrast and 1 + contrast
    grey_probability: float = 0.1  # infrared cameras at night have no colour
    low_resolution_probability: float = 0.0  # downscaled and upscaled again, like cheap or distant cameras
    min_resolution: float = 0.4  # smallest share of the sides
    compression_probability: float = 0.0  # artefacts of 8×8 blocks, like those of codecs at low bit rates
    compression_strength: float = 0.3  # largest quantisation step, as a share of the full range
    border_probability: float = 0.0  # black bars along the borders, drawn independently
    max_border: float = 0.12  # of height or width
    overlay_probability: float = 0.0  # a still patch near the upper or lower border, like clocks, names and logos
    erase_probability: float = 0.0  # a rectangle in one shade of grey
    max_erase: float = 0.25  # of the area
    time_shift: int = 0  # largest shift in frames; the first or last frame fills the gap
    time_stretch: float = 0.0  # time is stretched or compressed by a factor of up to 1 + this

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean {self.mean} and std {self.std} must be three numbers each, std above 0")
        for name in ("min_scale", "min_resolution", "train_scale"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a value above 0 and at most 1")
        for name in ("max_border", "max_erase"):
            if not 0 <= getattr(self, name) < 0.5:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more and below 0.5")
        shares = [field.name for field in dataclasses.fields(self) if field.name.endswith("_probability")]
        for name in (*shares, "brightness", "contrast", "compression_strength", "time_stretch"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 to 1")
        if self.time_shift < 0:
            raise ValueError(f"time_shift is {self.time_shift}, expected 0 frames or more")

    @property
    def for_evaluation(self) -> TransformConfig:
        """This config without augmentation."""
        return dataclasses.replace(self, augment=False)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> TransformConfig:
        return cls(**{**fields, "mean": tuple(fields["mean"]), "std": tuple(fields["std"])})
