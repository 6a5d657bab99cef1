"""The motion features distinguish sudden from even motion, and do not depend on brightness."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stage1.model.motion_features import COUNT, MIN_SCALE, MotionClassifier, motion_features, optical_flow
from stage1.model.network import ModelConfig, Stage1Model

BACKGROUND = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))


def clip_of(places: list[int]) -> torch.Tensor:
    """Draw a bright square with its left edge at `places` on a still background: float (1, 3, T, 64, 64)."""
    clip = BACKGROUND[None, :, None].repeat(1, 1, len(places), 1, 1)
    for frame, place in enumerate(places):
        clip[0, :, frame, 24:40, place : place + 12] = 2.0
    return clip


EVEN = clip_of(list(range(8, 24)))
SUDDEN = clip_of([8, 8, 14, 9, 9, 20, 12, 30, 10, 10, 24, 8, 8, 18, 30, 12])


@pytest.mark.parametrize("shape", [(2, 3, 16, 112, 112), (1, 3, 1, 20, 33), (2, 3, 4, 16, 16), (1, 3, 16, 9, 7)])
def test_any_shape_has_finite_statistics(shape: tuple[int, ...]) -> None:
    clips = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert motion_features(clips).shape == (shape[0], COUNT)
    for some in (clips, torch.zeros(shape)):
        assert torch.isfinite(motion_features(some)).all()


def test_sudden_motion_is_distinguished_from_even_motion() -> None:
    (even,), (sudden,) = motion_features(EVEN)[:, :5], motion_features(SUDDEN)[:, :5]
    assert sudden[-1] > 1.3 * even[-1]


def test_brightness_contrast_mirroring_and_other_clips_of_the_batch_change_nothing() -> None:
    noise = torch.randn(SUDDEN.shape, generator=torch.Generator().manual_seed(2))
    clip = SUDDEN + 0.05 * noise  # where nothing at all moves, a direction is a matter of rounding
    expected = motion_features(clip)
    for other in (0.4 * clip - 3, clip.flip(4)):
        torch.testing.assert_close(motion_features(other), expected, rtol=0.05, atol=0.05)
    torch.testing.assert_close(motion_features(torch.cat([EVEN, clip]))[1:], expected)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_a_still_clip_does_not_depend_on_rounding(scale: float) -> None:
    still = scale * BACKGROUND[None, :, None].repeat(1, 1, 16, 1, 1)
    statistics = motion_features(still)[0]
    assert float(statistics[10:15].abs().max()) == 0.0  # the share of frames above the mean
    torch.testing.assert_close(statistics, motion_features(still + 0.5)[0], rtol=0, atol=1e-6)


def test_optical_flow_of_a_shift() -> None:
    wave = 10 * (torch.sin(torch.arange(80) / 4)[None, :] + torch.cos(torch.arange(80) / 5)[:, None])
    frames = torch.stack([wave[:64, 8 - t : 72 - t] for t in range(8)])[None]
    middle = optical_flow(frames)[0, :, :, 16:-16, 16:-16]
    torch.testing.assert_close(middle[:, 0], torch.ones_like(middle[:, 0]), rtol=0, atol=0.15)
    torch.testing.assert_close(middle[:, 1], torch.zeros_like(middle[:, 1]), rtol=0, atol=0.15)


def test_they_have_a_gradient_even_where_nothing_moves() -> None:
    clips = torch.zeros(1, 3, 8, 32, 32, requires_grad=True)
    (gradient,) = torch.autograd.grad(motion_features(clips).sum(), clips)
    assert torch.isfinite(gradient).all()


def test_the_classifier_is_fitted_at_once_and_counts_by_its_share_outside_training() -> None:
    generator = np.random.default_rng(0)
    statistics = generator.normal(size=(60, COUNT)).astype(np.float32)
    statistics[:, 3] = 5  # uninformative
    labels = (statistics[:, 0] + 0.3 * generator.normal(size=60) > 0.5).astype(np.int64)
    classifier = MotionClassifier()
    assert classifier(EVEN).tolist() == [0.0]
    classifier.fit(statistics, labels)
    assert float(classifier.scale[3]) == pytest.approx(MIN_SCALE)
    assert int(classifier.weight.abs().argmax()) == 0
    assert abs(float(classifier.weight[3])) < 1e-6

    torch.manual_seed(0)
    model = Stage1Model(ModelConfig(statistics_share=0.75))
    model.motion_classifier = classifier
    torch.nn.init.normal_(model.classifier.weight)
    model.dropout.p = 0.0
    network, mixed = (model.train(mode)(SUDDEN)[0][0].detach() for mode in (True, False))
    log_odds = [float(logits[1] - logits[0]) for logits in (network, mixed)]
    assert log_odds[1] == pytest.approx(0.25 * log_odds[0] + 0.75 * float(classifier(SUDDEN)), rel=1e-4)


def test_the_line_is_float32_where_the_network_is_bf16() -> None:
    classifier = MotionClassifier()
    generator = np.random.default_rng(0)
    classifier.fit(generator.normal(size=(60, COUNT)).astype(np.float32), np.arange(60) % 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = classifier(SUDDEN)
    assert found.dtype == torch.float32
    assert torch.equal(found, classifier(SUDDEN))


def test_torchvisions_networks_and_older_checkpoints_go_without() -> None:
    assert Stage1Model(ModelConfig(backbone="r3d_18")).motion_classifier is None
    fields = {"channels": [8], "temporal_stages": []}
    assert ModelConfig.from_dict(fields).statistics_share == ModelConfig.from_dict(fields).motion_prior == 0
    with pytest.raises(ValueError, match="statistics_share is 1"):
        ModelConfig(statistics_share=1.0)
