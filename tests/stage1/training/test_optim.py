"""Averaged weights."""

from __future__ import annotations

import copy

import pytest
import torch

from stage1.training.optim import update_average


def test_averaged_weights_follow_with_a_decay_that_rises() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    averaged = copy.deepcopy(model)
    expected = None
    for step in range(12):
        torch.nn.init.constant_(model.weight, float(step))
        update_average(averaged, model, step=step, decay=0.5)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = float(step) if expected is None else decay * expected + (1 - decay) * step
        assert averaged.weight.item() == pytest.approx(expected)


def test_buffers_are_those_of_the_model() -> None:
    model = torch.nn.BatchNorm1d(2)
    averaged = copy.deepcopy(model)
    model(torch.randn(4, 2))
    update_average(averaged, model, step=3, decay=0.9)
    assert torch.equal(averaged.running_mean, model.running_mean)
