"""Options of what clips become before the model sees them. Loads no torch: --help needs them."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

MarkUse = Literal["labels", "exclusions"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformConfig:
    """Model input from clips. `mean` and `std`: of RGB in [0, 1]. The rest is augmentation, for training only.

    Probabilities are those of a clip. A probability or a range of 0 turns that part off.
    """

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    augment: bool = False
    train_scale: float = 6 / 7  # sides of the training input ÷ those of the clips: smaller ones train faster
    flip_probability: float = 0.5  # left-right
    min_scale: float = 0.6  # a window of this share of height and width, or more, is cut out and resized
    brightness: float = 0.25  # added: up to this share of the full range, either way
    contrast: float = 0.3  # factor: between 1 - contrast and 1 + contrast
    grey_probability: float = 0.1  # infrared cameras at night have no colour
    low_resolution_probability: float = 0.0  # scaled down and up again: cheap and far cameras
    min_resolution: float = 0.4  # down to this share of the sides
    compression_probability: float = 0.0  # noise of 8×8 blocks, as codecs leave it at low bit rates
    compression_strength: float = 0.3  # largest quantisation step, as a share of the full range
    border_probability: float = 0.0  # bars along the borders are blackened, each on its own
    max_border: float = 0.12  # of height or width
    overlay_probability: float = 0.0  # a still patch near the upper or lower border: clocks, names, logos
    erase_probability: float = 0.0  # a rectangle is painted over
    max_erase: float = 0.25  # of the area
    time_shift: int = 0  # frames that a clip is moved, either way; its first or last frame fills the gap
    time_stretch: float = 0.0  # frames taken closer together or further apart, by a factor of up to 1 + this

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean {self.mean} and std {self.std} must be three numbers each, std above 0")
        for name in ("min_scale", "min_resolution", "train_scale"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected above 0 and at most 1")
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
        """The same without augmentation."""
        return dataclasses.replace(self, augment=False)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> TransformConfig:
        return cls(**{**fields, "mean": tuple(fields["mean"]), "std": tuple(fields["std"])})
