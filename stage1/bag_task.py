"""Learning from bags: a video is a bag of clips, and only the video has a label (multiple-instance learning).

In untrimmed video most clips of a crime show none. Training them all as crime teaches noise; here a crime video must
hold some clip that looks like one, and a normal video none. The model stays one of single clips: clip and frame scores
come out as ever. (Top-k: Sultani et al., CVPR 2018, and Tian et al., ICCV 2021. Attention: softmax of the clips' own
log-odds, as in Ilse et al., ICML 2018, without weights of its own.)
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from stage1 import clip_random
from stage1.clip_task import BatchLoss, ClipTask, Forward
from stage1.dataloader import BagLoader, Batch, ClipLoader
from stage1.train_data import TrainData
from vidshard.errors import UserError

AGGREGATORS = ("topk", "attention")
TOP_SHARE = 1 / 8  # of the clips of a bag, at least one


@dataclasses.dataclass(kw_only=True)
class BagTask(ClipTask):
    """Classify videos by what their clips say together; `config.bags` names how."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [f"--{name}" for name in ("mixup", "balanced", "marks") if getattr(self.config, name)]
        if given:
            raise UserError(f"{given[0]} and --bags exclude each other: a bag has one label and its clips have none")

    def training_loader(self, data: TrainData, device: torch.device) -> ClipLoader:
        self._videos = None if data.validation is None else data.validation.videos
        return BagLoader(
            data.train,
            rows=data.train_rows,
            max_clips=self.config.bag_clips,
            shuffle=True,
            **self.loader_options(device),
        )

    def loss(self, model: nn.Module, forward: Forward, batch: Batch, epoch: int) -> BatchLoss:
        seeds_B = clip_random.clip_seeds(batch.indices, seed=self.config.seed, epoch=epoch)
        clip_random.seed_dropout(model, seeds_B)
        logits_BK, _ = forward(self._train_transform(batch.clips, batch.indices, epoch))
        known_B = batch.labels >= 0
        if not known_B.any():  # padding alone: a rank without a video
            nothing = logits_BK.sum() * 0
            return BatchLoss(nothing, nothing.detach(), nothing.detach(), nothing.detach())
        label = int(batch.labels[known_B][0])
        score = bag_score(log_odds(logits_BK[known_B]), self.config.bags)
        weight = self.class_weights[label]
        smoothed = abs(label - self.config.label_smoothing / 2)
        loss = functional.binary_cross_entropy_with_logits(score, score.new_tensor(smoothed))
        one = torch.ones_like(score.detach())
        return BatchLoss(weight * loss, weight * one, one * ((score.detach() >= 0) == (label == 1)), one)

    def judge(
        self, logits_NK: torch.Tensor, labels_N: torch.Tensor, rows_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and labels of videos: validation is about what has a label."""
        assert self._videos is not None
        videos_N = self._videos[rows_N.numpy()]
        scores, labels = [], []
        for video in np.unique(videos_N).tolist():
            own = torch.from_numpy(np.flatnonzero(videos_N == video))
            scores.append(bag_score(log_odds(logits_NK[own]), self.config.bags))
            labels.append(labels_N[own].max())
        margins_V = torch.stack(scores)
        return torch.stack([torch.zeros_like(margins_V), margins_V], dim=1), torch.stack(labels)


def log_odds(logits_BK: torch.Tensor) -> torch.Tensor:
    return logits_BK[:, 1] - logits_BK[:, 0]


def bag_score(log_odds_B: torch.Tensor, aggregator: str) -> torch.Tensor:
    """Log-odds that a video holds a crime, a scalar, from those of its clips.

    >>> float(bag_score(torch.tensor([-2.0, 3.0, 0.0]), "topk"))
    3.0
    >>> round(float(bag_score(torch.tensor([-2.0, 3.0, 0.0]), "attention")), 2)
    2.83
    """
    if aggregator == "topk":
        count = max(1, math.ceil(TOP_SHARE * len(log_odds_B) - 1e-9))
        return log_odds_B.topk(count).values.mean()
    weights_B = log_odds_B.softmax(0)
    return (weights_B * log_odds_B).sum()
