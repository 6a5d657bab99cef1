"""Multiple-instance learning: a video is a bag of clips, and only the video has a label.

In untrimmed video, most clips of a crime video show no crime, so labelling them all as crime adds noise. Here, a crime
video must have some clips that look like a crime, and a normal video none. The model still scores single clips. Top-k
aggregation follows Sultani et al., CVPR 2018, and Tian et al., ICCV 2021. Attention aggregation weights clips by the
softmax of their log-odds, as in Ilse et al., ICML 2018, but without parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from stage1.data import clip_random
from stage1.data.epoch_plan import Rows
from stage1.data.loader import BagLoader, ClipLoader
from stage1.model.motion_features import LinearFit
from stage1.training.clip_objective import BatchLoss, ClipObjective, Forward, TrainBatch
from stage1.training.config import TrainConfig
from stage1.training.data import TrainData
from vidshard.util.errors import UserError

BAG_TOP_SHARE = 1 / 8  # share of a bag's clips that topk averages, at least one clip
BAG_RIDGE = 0.3  # on the weights of the linear classifier on motion features, as bags are few (docs/EXPERIMENTS.md)
BAG_FIT_STEPS = 300


@dataclasses.dataclass(kw_only=True)
class BagObjective(ClipObjective):
    """Classification of videos by aggregated clip scores; `config.bags` names the aggregation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [f"`{name}`" for name in ("mixup", "balanced", "marks") if getattr(self.config, name)]
        if given:
            raise UserError(f"{given[0]} and `bags` cannot be combined: a bag has one label and its clips have none")
        if self.config.block_shards:
            raise UserError("`block_shards` and `bags` cannot be combined: bags are read video by video")
        if self.config.clips_per_video_per_epoch != TrainConfig.clips_per_video_per_epoch:
            raise UserError(
                "`clips_per_video_per_epoch` and `bags` cannot be combined: `bag_clips` sets the clips of a bag"
            )

    def training_loader(self, data: TrainData, device: torch.device) -> ClipLoader:
        """Create a loader whose batches are bags."""
        self._videos = None if data.validation is None else data.validation.videos
        return BagLoader(
            data.train,
            rows=data.train_rows,
            max_clips=self.config.bag_clips,
            shuffle=True,
            prepare=self.prepare,
            **self.loader_options(device),
        )

    def linear_fit(self, data: TrainData, rows_N: Rows) -> LinearFit:
        """Return a fit that classifies videos instead of clips."""
        videos_N = data.train.videos[rows_N]
        return lambda standard_NF, labels_N: fit_bag_classifier(standard_NF, labels_N, videos_N, self.config.bags)

    def loss(self, model: nn.Module, forward: Forward, batch: TrainBatch, epoch: int) -> BatchLoss:
        clip_random.seed_dropout(model, batch.seeds)
        logits_BK, _ = forward(self._transformed(batch.clips, batch.indices, epoch, batch.plan))
        label = batch.label
        if label < 0:  # only padding, on a rank without a video
            nothing = logits_BK.sum() * 0
            return BatchLoss(nothing, nothing.detach(), nothing.detach(), nothing.detach())
        score = bag_score(log_odds(logits_BK[batch.known]), self.config.bags)
        weight = self.class_weights[label]
        smoothed = abs(label - self.config.label_smoothing / 2)
        loss = functional.binary_cross_entropy_with_logits(score, torch.full_like(score, smoothed))
        one = torch.ones_like(score.detach())
        return BatchLoss(weight * loss, weight * one, one * ((score.detach() >= 0) == (label == 1)), one)

    def aggregate(
        self, logits_NK: torch.Tensor, labels_N: torch.Tensor, rows_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Aggregate clips to videos, which have the labels."""
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
    """Return the log-odds of crime (B,) of logits (B, 2)."""
    return logits_BK[:, 1] - logits_BK[:, 0]


def bag_score(log_odds_B: torch.Tensor, aggregator: str) -> torch.Tensor:
    """Return the log-odds, a scalar, that a video contains a crime, from those of its clips (B,).

    >>> float(bag_score(torch.tensor([-2.0, 3.0, 0.0]), "topk"))
    3.0
    >>> round(float(bag_score(torch.tensor([-2.0, 3.0, 0.0]), "attention")), 2)
    2.83
    """
    return bag_scores(log_odds_B[None], torch.ones_like(log_odds_B[None], dtype=torch.bool), aggregator)[0]


def bag_scores(log_odds_VN: torch.Tensor, known_VN: torch.Tensor, aggregator: str) -> torch.Tensor:
    """Return `bag_score` of several videos, (V,); `known_VN` is False after the last clip of a video."""
    known_VN = known_VN.to(log_odds_VN.device)
    if aggregator == "attention":
        weights_VN = log_odds_VN.masked_fill(~known_VN, -torch.inf).softmax(1)
        return (weights_VN * log_odds_VN).sum(1)
    counts_V = (BAG_TOP_SHARE * known_VN.sum(1) - 1e-9).ceil().clamp(min=1)
    highest_VN = log_odds_VN.masked_fill(~known_VN, -torch.inf).sort(1, descending=True).values
    taken_VN = torch.arange(log_odds_VN.shape[1], device=log_odds_VN.device) < counts_V[:, None]
    return highest_VN.masked_fill(~taken_VN, 0.0).sum(1) / counts_V


def fit_bag_classifier(
    standard_NF: npt.NDArray[np.float64], labels_N: npt.NDArray[np.int64], videos_N: Rows, aggregator: str
) -> tuple[npt.NDArray[np.float64], float]:
    """Fit a linear classifier on clip features such that aggregated scores classify *videos*.

    It minimises the cross-entropy of the bags' scores, with equal total weight of both classes, plus a ridge. Returns
    weights (F,) and a bias.
    """
    videos, number_N, counts_V = np.unique(videos_N, return_inverse=True, return_counts=True)
    known_VN = torch.arange(int(counts_V.max())) < torch.from_numpy(counts_V)[:, None]
    clips_VN = torch.zeros(known_VN.shape, dtype=torch.int64)
    clips_VN[known_VN] = torch.from_numpy(np.argsort(number_N, kind="stable"))
    labels_V = torch.tensor([labels_N[number_N == number].max() for number in range(len(videos))])
    share = labels_V.double().mean()
    weight_V = torch.where(labels_V == 1, 0.5 / share, 0.5 / (1 - share))
    points_NF = torch.from_numpy(standard_NF)
    weight_F, bias, factor = (torch.tensor(x, dtype=torch.float64) for x in (np.zeros(points_NF.shape[1]), 0.0, 1.0))

    def bag_loss() -> torch.Tensor:
        clips_N = factor * (points_NF @ weight_F) + bias
        scores_V = bag_scores(clips_N[clips_VN], known_VN, aggregator)
        losses_V = functional.binary_cross_entropy_with_logits(scores_V, labels_V.double(), reduction="none")
        return (weight_V * losses_V).mean()

    _minimise([weight_F, bias], lambda: bag_loss() + BAG_RIDGE * weight_F.square().sum())
    _minimise([factor, bias], bag_loss)  # rescale without the ridge, which makes the log-odds too small
    return (factor * weight_F).numpy(), float(bias)


def _minimise(values: list[torch.Tensor], loss: Callable[[], torch.Tensor]) -> None:
    """Minimise `loss` over `values`, in place, by enough steps of Adam for these few parameters to converge."""
    optimizer = torch.optim.Adam([value.requires_grad_() for value in values], lr=0.02)
    for _ in range(BAG_FIT_STEPS):
        optimizer.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for value in values:
        value.requires_grad_(False)
