"""Options of the model. Does not import torch, because --help needs them."""

from __future__ import annotations

import dataclasses
from typing import Any

TORCHVISION_BACKBONES = ("r3d_18", "mc3_18", "r2plus1d_18")
BACKBONES = ("stage1", *TORCHVISION_BACKBONES)
INPUTS = ("rgb+motion", "rgb", "motion")
POOLINGS = ("attention", "gated", "mean", "max")
# group: group normalisation, independent of batch size and number of ranks. batch: as published. frozen: keeps the
# statistics of the weights, because a batch of surveillance clips is too small, and too unlike Kinetics, for new ones.
NORMS = ("group", "batch", "frozen")
MAX_MEMBERS = 16  # of an ensemble


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture of the model, which takes clips of any length, height and width."""

    backbone: str = "stage1"  # stage1 is our own network; the others are torchvision's
    channels: tuple[int, ...] = (32, 64, 96)  # of each stage; every stage but the first halves height and width
    temporal_stages: tuple[int, ...] = (0, 1, 2)  # stages that also convolve over neighbouring frames
    stem_kernel: int = 7
    stem_stride: int = 4  # of the first stage
    groups: int = 8  # of the group normalisation
    inputs: str = "rgb+motion"  # motion: frame differences as three more input channels
    motion_gain: float = 2.0  # factor of the frame differences, which are small compared with the pixels
    pooling: str = "attention"  # over the frames; gated is a variant of attention, mean and max are baselines
    attention_units: int = 64
    attention_motion: bool = True  # attention also sees the motion around each frame; learnt, with weights from 0
    classifier_motion: bool = True  # the classifier of the network also sees how much each frame moves
    motion_prior: float = 0.0  # initial attention score per standard deviation of a frame's motion
    statistics_share: float = 0.75  # weight of the motion features' log-odds; the network has the rest
    dropout: float = 0.5
    norm: str = "group"  # normalisation of torchvision's backbones: one of NORMS

    def __post_init__(self) -> None:
        for name in ("stem_kernel", "stem_stride", "groups", "attention_units"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 or more")
        if not self.channels or any(count % self.groups or count < 1 for count in self.channels):
            raise ValueError(f"channels {self.channels} must be multiples of groups ({self.groups})")
        if not set(self.temporal_stages) <= set(range(len(self.channels))):
            raise ValueError(f"temporal_stages {self.temporal_stages} must be stages 0 to {len(self.channels) - 1}")
        if not 0 <= self.statistics_share < 1:
            raise ValueError(f"statistics_share is {self.statistics_share}, expected 0 or more and below 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, expected 0 or more and below 1")
        for name, known in (
            ("backbone", BACKBONES),
            ("inputs", INPUTS),
            ("pooling", POOLINGS),
            ("norm", NORMS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(known)}")

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ModelConfig:
        lists = {name: tuple(fields[name]) for name in ("channels", "temporal_stages")}
        before = {
            "attention_motion": False,
            "classifier_motion": False,
            "motion_prior": 0.0,
            "statistics_share": 0.0,
        }  # of checkpoints that lack these fields
        return cls(**{**before, **fields, **lists})


# Presets of --model-size.
SIZES: dict[str, dict[str, Any]] = {
    "small": {"channels": (16, 32, 64)},
    "base": {"channels": ModelConfig.channels},
    "large": {"channels": (48, 96, 160)},
}
