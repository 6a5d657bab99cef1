"""Inputs of a training step: mixed pairs and class weights; accuracy is that of unmixed clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stage1.data.clip_random import clip_seeds
from stage1.data.loader import Batch
from stage1.training.clip_objective import BatchLoss, ClipObjective, fitted_rows, mix_pairs, shares_of_pairs
from stage1.training.config import TrainConfig


def shares(rows: list[int], alpha: float = 0.4) -> list[float]:
    seeds, known = clip_seeds(torch.tensor(rows), seed=0, epoch=0), torch.tensor(rows) >= 0
    return shares_of_pairs(seeds, known, alpha=alpha).tolist()


def test_pairs_share_one_draw_that_belongs_to_their_first_clip() -> None:
    first = shares([4, 9, 2, 7, 5])
    assert first[0] == first[1] != first[2] == first[3]
    assert first[4] == 1  # without a partner
    assert shares([2, 1]) == [first[2]] * 2
    assert shares([4, -1]) == [1, 1]


def test_shares_follow_the_beta_distribution() -> None:
    drawn = torch.tensor(shares(list(range(8000)), alpha=0.4))
    assert float(drawn.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(drawn.var()) == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.01)  # of Beta(a, a)


def test_mixed_clips() -> None:
    clips = torch.tensor([0.0, 10.0, 100.0]).view(3, 1, 1)
    assert mix_pairs(clips, torch.tensor([0.75, 0.75, 1.0])).flatten().tolist() == [2.5, 7.5, 100]


def make_objective(**options: object) -> ClipObjective:
    config = TrainConfig(shards=Path("s"), **options)  # type: ignore[arg-type]
    return ClipObjective(config=config, transform=lambda clips, _rows, _epoch: clips.float(), class_weights=(1.0, 3.0))


def forward(clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the brightness of each clip as its logit: above 5 it is a crime."""
    bright = clips.flatten(1).mean(1)
    return torch.stack([torch.full_like(bright, 5.0), bright], 1), torch.ones(len(clips), 1)


BATCH = Batch(
    torch.tensor([0, 10, 10, 3]).view(4, 1, 1, 1, 1), torch.tensor([0, 1, 0, -1]), torch.tensor([3, 5, 8, -1])
)


def loss_of(objective: ClipObjective) -> BatchLoss:
    return objective.loss(torch.nn.Identity(), forward, objective.prepare(BATCH, 0), 0)


def test_the_loss_is_weighted_and_padding_counts_nothing() -> None:
    loss = loss_of(make_objective())
    small, large = torch.nn.functional.softplus(torch.tensor([-5.0, 5.0])).tolist()
    assert float(loss.loss_sum) == pytest.approx(small + 3 * small + large, rel=1e-5)
    assert (float(loss.weight), int(loss.num_right), int(loss.num_known)) == (5, 2, 3)


def test_the_accuracy_with_mixup_is_that_of_clips_as_they_are() -> None:
    objective = make_objective(mixup=50.0)  # shares near a half: a mixed pair is as bright as 5, and shows nothing
    loss = loss_of(objective)
    assert (int(loss.num_right), int(loss.num_known)) == (2, 3)
    share = shares([3, 5], alpha=50.0)[0]
    assert 0.3 < share < 0.7
    mixed_loss = 0.0
    for labels, part in (((0, 1), share), ((1, 0), 1 - share)):
        logits, _ = forward(torch.tensor([10 * (1 - share), 10 * share]).view(2, 1))
        terms = torch.nn.functional.cross_entropy(logits, torch.tensor(labels), reduction="none")
        mixed_loss += part * sum(
            w * float(term) for w, term in zip([1 + 2 * label for label in labels], terms, strict=True)
        )
    alone = float(torch.nn.functional.softplus(torch.tensor(5.0)))  # the third clip, next to padding
    assert float(loss.loss_sum) == pytest.approx(mixed_loss + alone, rel=1e-5)
    assert float(loss.weight) == pytest.approx(5.0)


def test_motion_features_are_fitted_to_rare_crimes_and_to_short_videos(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    videos = np.repeat(np.arange(20), [500, *[2] * 19])  # a long one, and 19 of two clips each
    labels = np.where(videos == 7, 1, 0)  # two clips of crime among 538
    rows = np.arange(len(videos))
    assert fitted_rows(rows, labels, videos).tolist() == rows.tolist()
    monkeypatch.setattr("stage1.training.clip_objective.MAX_FITTED", 21)
    taken = fitted_rows(rows[1:], labels, videos)
    assert taken.tolist() == sorted(taken.tolist())
    assert taken[0] > 0
    assert np.bincount(videos[taken]).tolist() == [1, *[1] * 6, 2, *[1] * 12]
    monkeypatch.setattr("stage1.training.clip_objective.MAX_FITTED", 4)
    assert np.bincount(labels[fitted_rows(rows, labels, videos)]).tolist() == [2, 2]
