"""Stage 1 model: 3D convolutions that keep every time step, attention over the frames, and two classifiers.

Read it from top to bottom: `Stage1Model.forward` computes logits and attention from clips.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from stage1.data.clip_random import ClipDropout
from stage1.model import backbones
from stage1.model.config import ModelConfig as ModelConfig
from stage1.model.motion_features import MotionClassifier

NUM_CLASSES = 2  # normal, crime
NUM_MOTION = 6  # rows of `frame_motion`
MOTION_CELL = 8  # side in pixels of the cells over which motion is averaged
MOTION_SHARE = 0.05  # of the cells of a frame
LOG_MOTION_MEAN, LOG_MOTION_DEVIATION = -1.2, 0.7  # of `frame_motion`, roughly, over the clips of several cameras


class Stage1Model(nn.Module):
    """Classifier of clips with attention over the frames: a backbone, pooling over time, and a linear layer.

    Attention pooling, plain or gated, follows Ilse et al., "Attention-based Deep Multiple Instance Learning", ICML
    2018, with frames as instances. With mean pooling the attention is uniform; with max pooling it is the share of
    features that have their maximum at a frame. A separate linear classifier on motion features, without attention, is
    combined with the network: the log-odds of both are averaged with the weight `statistics_share`.
    """

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ModelConfig()
        self.backbone: nn.Module = (
            FrameNetwork(config)
            if config.backbone == "stage1"
            else backbones.TorchvisionBackbone(config.backbone, norm=config.norm)
        )
        features = int(self.backbone.features)
        self.features_norm = nn.LayerNorm(features)  # without it, attention collapses to one frame early in training
        # Only our own network uses motion, its prior and its classifier; torchvision's are left unchanged.
        has_attention = config.pooling in ("attention", "gated")
        self.attends_motion = has_attention and config.attention_motion and config.backbone == "stage1"
        if has_attention:
            self.attention = FrameAttention(
                features, config.attention_units, gated=config.pooling == "gated", motion=self.attends_motion
            )
        self.classifies_motion = config.classifier_motion and config.backbone == "stage1"
        features += NUM_MOTION * self.classifies_motion
        self.has_motion_prior = bool(config.motion_prior) and hasattr(self, "attention") and config.backbone == "stage1"
        if self.has_motion_prior:
            self.motion_score = nn.Parameter(torch.tensor([config.motion_prior]))
        self.dropout = ClipDropout(config.dropout)
        self.classifier = nn.Linear(features, NUM_CLASSES)
        nn.init.zeros_(self.classifier.weight)  # start at P = 0.5, as unlearning random logits costs some epochs
        nn.init.zeros_(self.classifier.bias)
        if config.statistics_share and config.backbone == "stage1":
            self.motion_classifier: MotionClassifier | None = MotionClassifier()
        else:
            self.motion_classifier = None

    def forward(
        self, clips_BCTHW: torch.Tensor, frames_BT: torch.Tensor | None = None, *, per_frame: bool = False
    ) -> tuple[torch.Tensor, ...]:
        """Return logits (B, 2) and attention (B, T') of normalised clips, float (B, 3, T, H, W).

        With `per_frame`, also return the logits that the network would give to each frame alone, (B, T', 2).

        `frames_BT` is bool (B, T), and False where a frame is padding. Attention is 0 or more, sums to 1, and is 0 on
        padding. T' equals T except for backbones that downsample time (see `attention_frame_ranges`). Raises ValueError
        if a clip consists of padding only.
        """
        if frames_BT is not None:
            clips_BCTHW = _without_padding(clips_BCTHW, frames_BT)
        features_BTD, attention_BT = self.frame_features(clips_BCTHW, frames_BT)
        logits_BK = self.logits(self.pool(features_BTD, attention_BT), clips_BCTHW)
        return (logits_BK, attention_BT, self.classifier(features_BTD)) if per_frame else (logits_BK, attention_BT)

    def pooled(
        self, clips_BCTHW: torch.Tensor, frames_BT: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the attention-weighted features of the frames, (B, D), and the attention, as in `forward`."""
        features_BTD, attention_BT = self.frame_features(clips_BCTHW, frames_BT)
        return self.pool(features_BTD, attention_BT), attention_BT

    def pool(self, features_BTD: torch.Tensor, attention_BT: torch.Tensor) -> torch.Tensor:
        """Return the features of clips, (B, D): those of their frames, weighted by attention, or their maximum."""
        if self.config.pooling == "max":
            return features_BTD.amax(1)
        return (attention_BT.unsqueeze(2) * features_BTD).sum(1)

    def frame_features(
        self, clips_BCTHW: torch.Tensor, frames_BT: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features of the frames, (B, T', D), and the attention, as in `forward`."""
        features_BTD = self.features_norm(self.backbone(clips_BCTHW))
        motion_BKT = frame_motion(clips_BCTHW) if self.classifies_motion or self.attends_motion else None
        attended_BTD = features_BTD
        if motion_BKT is not None and self.classifies_motion:
            features_BTD = torch.cat([features_BTD, log_motion(motion_BKT).transpose(1, 2)], 2)
        steps_BT = None
        if frames_BT is not None:
            ranges = self.attention_frame_ranges(frames_BT.shape[1])
            steps_BT = torch.stack([frames_BT[:, first : last + 1].any(1) for first, last in ranges], 1)
        if self.config.pooling == "max":
            if steps_BT is not None:
                features_BTD = features_BTD.masked_fill(~steps_BT.unsqueeze(2), -torch.inf)
            attention_BT = functional.one_hot(features_BTD.argmax(1), features_BTD.shape[1]).to(features_BTD).mean(1)
        else:
            scores_BT = features_BTD.new_zeros(features_BTD.shape[:2])
            if self.config.pooling != "mean":
                scores_BT = self.attention(attended_BTD, motion_BKT)
                if self.has_motion_prior:
                    scores_BT = scores_BT + self.motion_score * relative_motion(clips_BCTHW)
            if steps_BT is not None:
                scores_BT = scores_BT.masked_fill(~steps_BT, -torch.inf)
            attention_BT = scores_BT.softmax(1)
        return features_BTD, attention_BT

    def logits(self, pooled_BD: torch.Tensor, clips_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return logits (B, 2) of clips with pooled features `pooled_BD`.

        In training they are those of the network alone, which would learn little next to a classifier that is already
        fitted.
        """
        network_BK: torch.Tensor = self.classifier(self.dropout(pooled_BD))
        if self.training or self.motion_classifier is None:
            return network_BK
        half_B = self.motion_classifier(clips_BCTHW).to(network_BK) / 2
        return torch.lerp(network_BK, torch.stack([-half_B, half_B], 1), self.config.statistics_share)

    def attention_frame_ranges(self, num_frames: int) -> list[tuple[int, int]]:
        """Return the first and last frame (of `num_frames`) that each attention weight covers."""
        ranges: list[tuple[int, int]] = self.backbone.attention_frame_ranges(num_frames)  # type: ignore[operator]
        return ranges


class Ensemble(nn.Module):
    """Several models of the same config as one: the mean of their logits and of their attention."""

    def __init__(self, config: ModelConfig, size: int) -> None:
        super().__init__()
        self.config = config
        self.members = nn.ModuleList(Stage1Model(config) for _ in range(size))

    def forward(
        self, clips_BCTHW: torch.Tensor, frames_BT: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits and attention, as `Stage1Model.forward`."""
        logits, attentions = zip(*(member(clips_BCTHW, frames_BT) for member in self._models), strict=True)
        return torch.stack(logits).mean(0), torch.stack(attentions).mean(0)

    def pooled(
        self, clips_BCTHW: torch.Tensor, frames_BT: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features of all members, (B, size · D), and attention, as `Stage1Model.pooled`."""
        features, attentions = zip(*(member.pooled(clips_BCTHW, frames_BT) for member in self._models), strict=True)
        return torch.cat(features, 1), torch.stack(attentions).mean(0)

    def attention_frame_ranges(self, num_frames: int) -> list[tuple[int, int]]:
        """Return what `Stage1Model.attention_frame_ranges` does."""
        return self._models[0].attention_frame_ranges(num_frames)

    @property
    def _models(self) -> list[Stage1Model]:
        return list(self.members)  # type: ignore[arg-type]


class FrameAttention(nn.Module):
    """Score of each frame from its features and, with `motion`, from the motion around it."""

    def __init__(self, features: int, units: int, *, gated: bool, motion: bool) -> None:
        super().__init__()
        self.hidden = nn.Linear(features, units)
        self.gate = nn.Linear(features, units) if gated else None
        self.motion = nn.Conv1d(NUM_MOTION, units, 5, padding=2, bias=False) if motion else None
        if self.motion is not None:
            nn.init.zeros_(self.motion.weight)  # so that training alone decides what motion means
        self.score = nn.Linear(units, 1)
        # The bias shifts all scores equally, which softmax ignores. Its gradient is rounding noise that AdamW follows.
        self.score.bias.requires_grad_(False)

    def forward(self, features_BTD: torch.Tensor, motion_BKT: torch.Tensor | None) -> torch.Tensor:
        """Return scores (B, T) of features (B, T, D) and `frame_motion`."""
        hidden = self.hidden(features_BTD)
        if self.motion is not None and motion_BKT is not None:
            deviations_BKT = motion_BKT - motion_BKT.mean(2, keepdim=True)
            relative_BKT = deviations_BKT / (deviations_BKT.square().mean(2, keepdim=True).sqrt() + 1e-2)
            hidden = hidden + self.motion(relative_BKT).transpose(1, 2)
        hidden = hidden.tanh()
        if self.gate is not None:
            hidden = hidden * self.gate(features_BTD).sigmoid()
        scores_BT: torch.Tensor = self.score(hidden).squeeze(2)
        return scores_BT


class FrameNetwork(nn.Module):
    """Features of every frame of clips: float (B, 3, T, H, W) → (B, T, D).

    The network uses factorised 3D convolutions (R(2+1)D: Tran et al., "A Closer Look at Spatiotemporal Convolutions for
    Action Recognition", CVPR 2018) with strides in space only, so that T frames give T time steps.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.inputs, self.motion_gain = config.inputs, config.motion_gain
        channels = (6 if config.inputs == "rgb+motion" else 3, *config.channels)
        self.stages = nn.ModuleList(
            Stage(
                channels[i],
                channels[i + 1],
                kernel=config.stem_kernel if i == 0 else 3,
                stride=config.stem_stride if i == 0 else 2,
                temporal=i in config.temporal_stages,
                groups=config.groups,
            )
            for i in range(len(config.channels))
        )
        self.features = 2 * channels[-1]  # mean and maximum over the frame

    def forward(self, clips_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return features (B, T, D) of clips (B, 3, T, H, W)."""
        B, _, T, _, _ = clips_BCTHW.shape
        if self.inputs != "rgb":
            motion = self.motion_gain * frame_differences(clips_BCTHW)
            clips_BCTHW = motion if self.inputs == "motion" else torch.cat([clips_BCTHW, motion], dim=1)
        frames = frames_of_clips(clips_BCTHW)
        for stage in self.stages:
            frames = stage(frames, T)
        return torch.cat([frames.mean((2, 3)), frames.amax((2, 3))], dim=1).view(B, T, -1)

    def attention_frame_ranges(self, num_frames: int) -> list[tuple[int, int]]:
        """Return one range per frame, as time is not downsampled."""
        return [(frame, frame) for frame in range(num_frames)]


def _without_padding(clips_BCTHW: torch.Tensor, frames_BT: torch.Tensor) -> torch.Tensor:
    """Replace padding by the last frame before it (or the first one after it), so that it adds no motion.

    Raises ValueError if a clip consists of padding only.
    """
    if not frames_BT.any(1).all():
        raise ValueError("a clip consists of padding only, expected at least one real frame")
    T = frames_BT.shape[1]
    places = torch.arange(T, device=frames_BT.device)
    before_BT = torch.where(frames_BT, places, -1).cummax(1).values
    first_B1 = frames_BT.int().argmax(1, keepdim=True)
    source_BT = torch.where(before_BT < 0, first_B1, before_BT)
    return clips_BCTHW.gather(2, source_BT[:, None, :, None, None].expand_as(clips_BCTHW))


class Stage(nn.Module):
    """A 1×k×k convolution with a stride in space, followed by a residual 3×1×1 convolution if `temporal`.

    Both are implemented as 2D convolutions on the same channels-last memory, which is 2–3 times as fast as Conv3d on a
    CPU: the spatial one over B·T frames, the temporal one over B images of T × (H·W) pixels.
    """

    def __init__(
        self, channels_in: int, channels_out: int, *, kernel: int, stride: int, temporal: bool, groups: int
    ) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.spatial_norm = nn.GroupNorm(groups, channels_out)
        self.temporal = nn.Conv2d(channels_out, channels_out, (3, 1), padding=(1, 0), bias=False) if temporal else None
        self.temporal_norm = nn.GroupNorm(groups, channels_out) if temporal else None

    def forward(self, frames: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Return features of `frames` (B·T, C, H, W), channels last, with height and width divided by the stride."""
        frames = self.spatial(frames)
        shape = frames.shape
        # Normalise over the whole clip, as normalising single frames would hide which of them has the motion.
        pixels = _as_images(frames, num_frames)
        pixels = torch.relu_(self.spatial_norm(pixels))
        if self.temporal is not None and self.temporal_norm is not None:
            pixels = torch.relu_(pixels + self.temporal_norm(self.temporal(pixels)))
        return _as_frames(pixels, shape)


def frame_motion(clips_BCTHW: torch.Tensor) -> torch.Tensor:
    """Return how much each frame moves, (B, NUM_MOTION, T), as the root of mean differences of grey; 0 or more.

    The rows are first, second and fourth differences over time (speed, change of speed, suddenness): of each the mean
    over the cells of the frame, and the mean over the MOTION_SHARE of the cells that move most.
    """
    grey_BTHW = functional.avg_pool2d(clips_BCTHW.mean(1), [min(MOTION_CELL, side) for side in clips_BCTHW.shape[3:]])
    rows, differences, T = [], grey_BTHW, grey_BTHW.shape[1]
    for order in range(1, 5):
        if differences.shape[1] > 1:
            differences = differences[:, 1:] - differences[:, :-1]
        else:
            differences = torch.zeros_like(differences)
        if order == 3:
            continue
        cells_BTN = differences.abs().flatten(2)
        most = cells_BTN.topk(max(1, round(MOTION_SHARE * cells_BTN.shape[2])), dim=2).values
        before = (T - cells_BTN.shape[1] + 1) // 2
        for values_BT in (cells_BTN.mean(2), most.mean(2)):
            missing = (before, T - cells_BTN.shape[1] - before)
            rows.append(functional.pad((values_BT[:, None] + 1e-8).sqrt(), missing, mode="replicate")[:, 0])
    return torch.stack(rows, 1)


def log_motion(motion_BKT: torch.Tensor) -> torch.Tensor:
    """Return the logarithm of `frame_motion`, with a mean near 0 and a deviation near 1 over the clips of many cameras.

    Group normalisation hides from the network how much a clip moves as a whole; this does not.
    """
    return (motion_BKT.clamp(min=1e-3).log() - LOG_MOTION_MEAN) / LOG_MOTION_DEVIATION


def relative_motion(clips_BCTHW: torch.Tensor) -> torch.Tensor:
    """Return the motion of each frame relative to its clip: (B, T), with mean 0 and deviation 1 over the frames.

    >>> clip = torch.tensor([1.0, 1.0, 4.0, 4.0]).view(1, 1, 4, 1, 1)
    >>> [round(value, 1) for value in relative_motion(clip).flatten().tolist()]
    [-0.6, -0.6, 1.7, -0.6]
    """
    motion_BT = frame_differences(clips_BCTHW).abs().mean((1, 3, 4))
    deviations_BT = motion_BT - motion_BT.mean(1, keepdim=True)
    return deviations_BT / (deviations_BT.square().mean(1, keepdim=True).sqrt() + 1e-3)


def frame_differences(clips_BCTHW: torch.Tensor) -> torch.Tensor:
    """Return the difference of each frame from the frame before; the first frame repeats the second's difference.

    >>> frame_differences(torch.tensor([1.0, 1.0, 4.0]).view(1, 1, 3, 1, 1)).flatten().tolist()
    [0.0, 0.0, 3.0]
    """
    if clips_BCTHW.shape[2] == 1:
        return torch.zeros_like(clips_BCTHW)
    differences = clips_BCTHW[:, :, 1:] - clips_BCTHW[:, :, :-1]
    return torch.cat([differences[:, :, :1], differences], dim=2)


def frames_of_clips(clips_BCTHW: torch.Tensor) -> torch.Tensor:
    """Reshape clips (B, C, T, H, W) to frames (B·T, C, H, W) in channels-last memory."""
    B, C, T, H, W = clips_BCTHW.shape
    return clips_BCTHW.permute(0, 2, 3, 4, 1).reshape(B * T, H, W, C).permute(0, 3, 1, 2)


def _as_images(frames: torch.Tensor, num_frames: int) -> torch.Tensor:
    """View frames (B·T, C, H, W) as images (B, C, T, H·W), both channels last, without a copy."""
    BT, C, H, W = frames.shape
    return frames.permute(0, 2, 3, 1).reshape(BT // num_frames, num_frames, H * W, C).permute(0, 3, 1, 2)


def _as_frames(pixels: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Invert `_as_images`."""
    BT, C, H, W = shape
    return pixels.permute(0, 2, 3, 1).reshape(BT, H, W, C).permute(0, 3, 1, 2)
