"""The model keeps every time step, and its attention stays near what it saw."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from stage1.model.config import POOLINGS, SIZES
from stage1.model.network import ModelConfig, Stage1Model


@pytest.fixture
def model() -> Stage1Model:
    torch.manual_seed(0)
    model = Stage1Model().eval()
    torch.nn.init.normal_(model.classifier.weight)  # zero before training: every logit would be alike
    return model


@pytest.mark.parametrize("shape", [(2, 3, 16, 112, 112), (3, 3, 8, 64, 64), (1, 3, 1, 20, 33), (2, 3, 5, 16, 16)])
def test_logits_and_attention_for_any_shape(model: Stage1Model, shape: tuple[int, ...]) -> None:
    logits, attention = model(torch.randn(shape))
    assert logits.shape == (shape[0], 2)
    assert attention.shape == (shape[0], shape[2])
    assert torch.allclose(attention.sum(1), torch.ones(shape[0]))
    assert (attention > 0).all()


def test_a_clip_scores_the_same_alone_and_in_a_batch(model: Stage1Model) -> None:
    model.train()
    model.dropout.p = 0.0
    clips = torch.randn(4, 3, 8, 32, 32)
    together, alone = model(clips)[0], torch.cat([model(clip[None])[0] for clip in clips])
    assert torch.allclose(together, alone, atol=1e-5)


def test_size() -> None:
    assert sum(parameter.numel() for parameter in Stage1Model().parameters()) < 500_000


def test_attention_features_reach_only_a_few_frames_away() -> None:
    """Otherwise attention could not say when an event was."""
    model = Stage1Model().eval()
    seen = []
    model.backbone.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    still = torch.randn(1, 3, 1, 32, 32).expand(1, 3, 16, 32, 32)
    moved = still.clone()
    moved[:, :, 8] += 3
    model(moved)
    features_TD = seen[0][0]
    reach = len(model.config.temporal_stages)
    assert reach <= 3
    # The frames at both ends see the padding; between them, those far from the change are all alike.
    differs = [t for t in range(reach, 16 - reach) if (features_TD[t] - features_TD[reach]).abs().max() > 1e-4]
    assert differs == list(range(8 - reach, 10 + reach))


def test_motion_is_seen(model: Stage1Model) -> None:
    clips = torch.randn(1, 3, 1, 32, 32).repeat(1, 1, 8, 1, 1)
    moving = clips.clone()
    moving[:, :, 4] += 1
    assert not torch.allclose(model(clips)[0], model(moving)[0], atol=1e-4)


def test_configs_survive_a_round_trip_and_wrong_ones_are_refused() -> None:
    config = ModelConfig(channels=(8, 16), temporal_stages=(1,))
    fields = dataclasses.asdict(config)
    assert ModelConfig.from_dict({**fields, "channels": list(fields["channels"])}) == config
    with pytest.raises(ValueError, match="multiples of groups"):
        ModelConfig(channels=(10,))
    with pytest.raises(ValueError, match="temporal_stages"):
        ModelConfig(temporal_stages=(7,))
    with pytest.raises(ValueError, match="pooling is 'sum', expected one of attention, gated, mean, max"):
        ModelConfig(pooling="sum")


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_gets_no_attention_and_does_not_change_the_result(pooling: str) -> None:
    torch.manual_seed(0)
    model = Stage1Model(ModelConfig(pooling=pooling)).eval()
    torch.nn.init.normal_(model.classifier.weight)
    clips, there = torch.randn(2, 3, 8, 32, 32), torch.ones(2, 8, dtype=torch.bool)
    there[0, 5:] = there[1, :2] = False
    logits, attention = model(clips, there)
    assert (attention[~there] == 0).all()
    assert torch.allclose(attention.sum(1), torch.ones(2))
    other = torch.where(there[:, None, :, None, None], clips, torch.full_like(clips, 7.0))
    assert torch.equal(model(other, there)[0], logits)
    whole = model(clips, torch.ones_like(there))
    assert torch.allclose(whole[0], model(clips)[0], atol=1e-6)
    assert torch.allclose(whole[1], model(clips)[1], atol=1e-6)
    with pytest.raises(ValueError, match="a clip consists of padding only"):
        model(clips, torch.zeros_like(there))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_pooling_learns_and_its_attention_sums_to_one(pooling: str) -> None:
    model = Stage1Model(ModelConfig(pooling=pooling))
    torch.nn.init.normal_(model.classifier.weight)
    logits, attention = model(torch.randn(2, 3, 4, 16, 16))
    assert torch.allclose(attention.sum(1), torch.ones(2))
    if pooling == "mean":
        assert torch.allclose(attention, torch.full((2, 4), 0.25))
    logits.logsumexp(1).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_sizes_differ() -> None:
    counts = [
        sum(p.numel() for p in Stage1Model(ModelConfig(**SIZES[size])).parameters())
        for size in ("small", "base", "large")
    ]
    assert counts[0] * 1.5 < counts[1]
    assert counts[1] * 1.5 < counts[2]


def test_attention_weights_stand_for_single_frames(model: Stage1Model) -> None:
    assert model.attention_frame_ranges(3) == [(0, 0), (1, 1), (2, 2)]


def test_motion_prior_puts_attention_where_it_moves_before_anything_is_learnt() -> None:
    clips = torch.zeros(1, 3, 8, 32, 32)
    clips[:, :, 5:] = 1.0
    attention = Stage1Model(ModelConfig(motion_prior=2.0)).eval()(clips)[1][0]
    assert int(attention.argmax()) == 5
    still = Stage1Model(ModelConfig(motion_prior=2.0)).eval()(torch.zeros(1, 3, 8, 32, 32))
    assert torch.isfinite(still[1]).all()


@pytest.mark.parametrize("pooling", ["attention", "gated"])
def test_every_trained_parameter_can_change_the_loss(pooling: str) -> None:
    model = Stage1Model(ModelConfig(pooling=pooling, dropout=0.0)).double()
    torch.nn.init.normal_(model.classifier.weight)
    clips = torch.randn(2, 3, 6, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model(clips)[0].square().sum().backward()
    slopes = {name: float(p.grad.abs().max()) for name, p in model.named_parameters() if p.grad is not None}
    assert min(slopes.values()) > 1e-9, min(slopes, key=slopes.__getitem__)
    assert {name for name, p in model.named_parameters() if p.grad is None} == {"attention.score.bias"}
