"""Averaged weights."""

from __future__ import annotations

import pytest
import torch

from stage1.training.optim import averaged_model


def test_averaged_weights_follow_with_a_decay_that_rises() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    averaged = averaged_model(model, decay=0.5)
    expected = None
    for step in range(12):
        torch.nn.init.constant_(model.weight, float(step))
        averaged.update_parameters(model)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = float(step) if expected is None else decay * expected + (1 - decay) * step
        assert averaged.module.weight.item() == pytest.approx(expected)


def test_buffers_are_those_of_the_model() -> None:
    model = torch.nn.BatchNorm1d(2)
    averaged = averaged_model(model, decay=0.9)
    averaged.update_parameters(model)
    model(torch.randn(4, 2))
    averaged.update_parameters(model)
    assert torch.equal(averaged.module.running_mean, model.running_mean)
