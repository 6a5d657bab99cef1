"""The options of a training run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from stage1 import files
from stage1.model import ModelConfig
from stage1.transforms import TransformConfig
from vidshard.errors import UserError
from vidshard.storage import Location, Url


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All options of a run."""

    shards: Location
    val_shards: Location | None = None
    out: Path = files.DEFAULT_RUN
    epochs: int = 5
    batch_size: int = 8  # of each rank
    lr: float = 1e-3  # the highest of the schedule
    weight_decay: float = 0.05
    warmup_fraction: float = 0.1  # of all steps
    grad_clip: float = 1.0  # largest norm of the gradient; 0 is no limit
    label_smoothing: float = 0.0
    val_fraction: float = 0.1  # of the videos, held out where there are no val_shards; 0: no validation
    seed: int = 0
    device: str = "auto"
    workers: int = 1  # threads that read shards
    clips_per_video_per_epoch: int = 1  # others each epoch, so that long videos do not fill every epoch; 0: all
    balanced: bool = False  # as many crime as normal clips in an epoch, in place of a weighted loss
    block_shards: int = 0  # shuffle within windows of so many shards, read in sequence; 0: among all clips
    checksums: str = "first"  # when to verify those of the clips
    max_bad_clips: int = 0  # damaged clips that are replaced rather than an error
    cache_dir: Path | None = None  # where shards of a URL are kept; None: the default of CacheConfig
    cache_gb: float | None = None  # how much of them
    resume: bool = False
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    transform: TransformConfig = dataclasses.field(default_factory=lambda: TransformConfig(augment=True))

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "workers"):
            if getattr(self, name) < 1:
                raise UserError(f"{option_name(name)} is {getattr(self, name)}, expected at least 1")
        if not self.lr > 0:
            raise UserError(f"--lr is {self.lr}, expected above 0")
        for name in (
            *("weight_decay", "grad_clip", "seed"),
            *("clips_per_video_per_epoch", "block_shards", "max_bad_clips"),
        ):
            if not getattr(self, name) >= 0:
                raise UserError(f"{option_name(name)} is {getattr(self, name)}, expected 0 or more")
        for name in ("val_fraction", "warmup_fraction", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{option_name(name)} is {getattr(self, name)}, expected 0 or more and below 1")

    def to_dict(self) -> dict[str, Any]:
        """As a checkpoint keeps it: paths as strings."""
        fields = dataclasses.asdict(self)
        return {name: str(value) if isinstance(value, Path | Url) else value for name, value in fields.items()}


# Named sets of options: what the command fills in where the user gives none.
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "notebook": {"epochs": 5, "batch_size": 4, "lr": 1e-4, "grad_clip": 1.0},
}
# A resumed run may differ in these; all others decide the weights.
FREE_ON_RESUME = (
    *("shards", "val_shards", "out", "epochs", "device", "workers", "resume"),
    *("checksums", "max_bad_clips", "cache_dir", "cache_gb"),
)


def option_name(name: str) -> str:
    """The command-line option of a field.

    >>> option_name("batch_size")
    '--batch-size'
    """
    return "--" + name.replace("_", "-")
