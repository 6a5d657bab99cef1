"""The stage 1 model: 3D convolutions that keep every time step, attention over the frames, a classifier.

Read it from top to bottom: `Stage1Model.forward` is the whole way from a clip to logits and attention.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from stage1.clip_random import ClipDropout

NUM_CLASSES = 2  # normal, crime


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Size of the model; any clip length, height and width go through it."""

    channels: tuple[int, ...] = (24, 48, 96, 160)  # of each stage; every stage halves height and width
    temporal_stages: tuple[int, ...] = (1, 3)  # stages that also look one frame back and one ahead
    stem_kernel: int = 5
    groups: int = 8  # of the group normalisation
    attention_units: int = 64
    dropout: float = 0.5
    motion: bool = True  # frame differences as three more input channels
    motion_gain: float = 2.0  # differences are small beside the pixels

    def __post_init__(self) -> None:
        if not self.channels or any(count % self.groups or count < 1 for count in self.channels):
            raise ValueError(f"channels {self.channels} must be multiples of groups ({self.groups})")
        if not set(self.temporal_stages) <= set(range(len(self.channels))):
            raise ValueError(f"temporal_stages {self.temporal_stages} must be stages 0 to {len(self.channels) - 1}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, expected 0 or more and below 1")

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ModelConfig:
        lists = {name: tuple(fields[name]) for name in ("channels", "temporal_stages")}
        return cls(**{**fields, **lists})


class Stage1Model(nn.Module):
    """Clips → class logits and one attention weight a frame.

    Factorised 3D convolutions (R(2+1)D: Tran et al., "A Closer Look at Spatiotemporal Convolutions for Action
    Recognition", CVPR 2018) with strides in space only, so that T frames stay T steps; attention pooling as in Ilse et
    al., "Attention-based Deep Multiple Instance Learning", ICML 2018, with frames as the instances.
    """

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ModelConfig()
        channels = (6 if config.motion else 3, *config.channels)
        self.stages = nn.ModuleList(
            Stage(
                channels[i],
                channels[i + 1],
                kernel=config.stem_kernel if i == 0 else 3,
                temporal=i in config.temporal_stages,
                groups=config.groups,
            )
            for i in range(len(config.channels))
        )
        features = 2 * channels[-1]  # mean and maximum over the frame
        self.features_norm = nn.LayerNorm(features)  # without it attention settles on one frame before it has learnt
        self.attention = nn.Sequential(
            nn.Linear(features, config.attention_units), nn.Tanh(), nn.Linear(config.attention_units, 1)
        )
        self.dropout = ClipDropout(config.dropout)
        self.classifier = nn.Linear(features, NUM_CLASSES)
        nn.init.zeros_(self.classifier.weight)  # start undecided: random logits cost the first epochs
        nn.init.zeros_(self.classifier.bias)

    def forward(self, clips_BCTHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`clips_BCTHW`: float (B, 3, T, H, W), normalised. Returns logits (B, 2) and attention (B, T), sum 1."""
        B, _, T, _, _ = clips_BCTHW.shape
        if self.config.motion:
            clips_BCTHW = torch.cat([clips_BCTHW, self.config.motion_gain * frame_differences(clips_BCTHW)], dim=1)
        frames = frames_of_clips(clips_BCTHW)
        for stage in self.stages:
            frames = stage(frames, T)
        features_BTD = torch.cat([frames.mean((2, 3)), frames.amax((2, 3))], dim=1).view(B, T, -1)
        features_BTD = self.features_norm(features_BTD)
        attention_BT = self.attention(features_BTD).squeeze(2).softmax(1)
        pooled_BD = (attention_BT.unsqueeze(2) * features_BTD).sum(1)
        return self.classifier(self.dropout(pooled_BD)), attention_BT


class Stage(nn.Module):
    """A 1×3×3 convolution that halves height and width, then (when `temporal`) a residual 3×1×1 convolution.

    Both are written as 2D convolutions over the same channels-last memory, which is 2–3 times as fast on a CPU as
    Conv3d: the spatial one over B·T frames, the temporal one over B images of T × (H·W) pixels.
    """

    def __init__(self, channels_in: int, channels_out: int, *, kernel: int, temporal: bool, groups: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(channels_in, channels_out, kernel, stride=2, padding=kernel // 2, bias=False)
        self.spatial_norm = nn.GroupNorm(groups, channels_out)
        self.temporal = nn.Conv2d(channels_out, channels_out, (3, 1), padding=(1, 0), bias=False) if temporal else None
        self.temporal_norm = nn.GroupNorm(groups, channels_out) if temporal else None

    def forward(self, frames: torch.Tensor, num_frames: int) -> torch.Tensor:
        """`frames`: (B·T, C, H, W), channels last. Returns the same with half the height and width."""
        frames = self.spatial(frames)
        shape = frames.shape
        # Normalise over the whole clip: over single frames it would hide which frame holds the motion.
        pixels = _as_images(frames, num_frames)
        pixels = torch.relu(self.spatial_norm(pixels))
        if self.temporal is not None and self.temporal_norm is not None:
            pixels = torch.relu(pixels + self.temporal_norm(self.temporal(pixels)))
        return _as_frames(pixels, shape)


def frame_differences(clips_BCTHW: torch.Tensor) -> torch.Tensor:
    """What changed since the frame before, at the frame where it is seen; the first frame repeats the second's.

    >>> frame_differences(torch.tensor([1.0, 1.0, 4.0]).view(1, 1, 3, 1, 1)).flatten().tolist()
    [0.0, 0.0, 3.0]
    """
    if clips_BCTHW.shape[2] == 1:
        return torch.zeros_like(clips_BCTHW)
    differences = clips_BCTHW[:, :, 1:] - clips_BCTHW[:, :, :-1]
    return torch.cat([differences[:, :, :1], differences], dim=2)


def frames_of_clips(clips_BCTHW: torch.Tensor) -> torch.Tensor:
    """(B, C, T, H, W) → (B·T, C, H, W) in channels-last memory."""
    B, C, T, H, W = clips_BCTHW.shape
    return clips_BCTHW.permute(0, 2, 3, 4, 1).reshape(B * T, H, W, C).permute(0, 3, 1, 2)


def _as_images(frames: torch.Tensor, num_frames: int) -> torch.Tensor:
    """(B·T, C, H, W) → (B, C, T, H·W), channels last both: the same memory."""
    BT, C, H, W = frames.shape
    return frames.permute(0, 2, 3, 1).reshape(BT // num_frames, num_frames, H * W, C).permute(0, 3, 1, 2)


def _as_frames(pixels: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The inverse of `_as_images`."""
    BT, C, H, W = shape
    return pixels.permute(0, 2, 3, 1).reshape(BT, H, W, C).permute(0, 3, 1, 2)
