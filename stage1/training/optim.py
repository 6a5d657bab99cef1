"""Optimizer, schedule, averaged weights and class weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn


def make_optimizer(model: nn.Module, *, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Create AdamW (Loshchilov and Hutter, ICLR 2019) without weight decay on biases and normalisation."""
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}], lr=lr
    )


def lr_factor(step: int, *, num_steps: int, warmup_steps: int, floor: float = 0.01) -> float:
    """Return the share of the full learning rate at `step`: linear warm-up, then a half cosine down to `floor`.

    >>> [round(lr_factor(step, num_steps=6, warmup_steps=2), 2) for step in range(6)]
    [0.5, 1.0, 0.86, 0.51, 0.15, 0.01]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step + 1 - warmup_steps) / max(1, num_steps - warmup_steps))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def make_scheduler(
    optimizer: torch.optim.Optimizer, *, num_steps: int, warmup_fraction: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """Create a schedule of linear warm-up over `warmup_fraction` of the steps, then cosine decay.

    Call its `step()` after each optimizer step.
    """
    warmup_steps = round(warmup_fraction * num_steps)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: lr_factor(step, num_steps=num_steps, warmup_steps=warmup_steps)
    )


@torch.no_grad()
def update_average(averaged: nn.Module, model: nn.Module, *, step: int, decay: float) -> None:
    """Update `averaged`, a copy of `model`, to the exponential moving average of the weights of `model`.

    Buffers are those of `model`. `step` counts the updates before this one. In the first ones the decay is (1 + n) /
    (10 + n), as in TensorFlow's ExponentialMovingAverage, so that a short run forgets its initial weights. (torch's
    AveragedModel does the same, but waits for the device in every step.)
    """
    now = min(decay, (1 + step) / (10 + step)) if step else 0.0
    for old, new in zip(averaged.parameters(), model.parameters(), strict=True):
        old.lerp_(new, 1 - now)
    for kept, current in zip(averaged.buffers(), model.buffers(), strict=True):
        kept.copy_(current)


def class_weights(labels: Sequence[int] | npt.NDArray[np.int64]) -> tuple[float, float]:
    """Return loss weights of normal and crime such that both classes have the same total weight.

    >>> class_weights([0, 0, 0, 1])
    (0.6666666666666666, 2.0)
    """
    normal, crime = np.bincount(labels, minlength=2).tolist()
    return len(labels) / (2 * normal), len(labels) / (2 * crime)
