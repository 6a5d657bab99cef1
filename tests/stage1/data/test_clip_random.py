"""Random numbers of a clip: uniform, independent of the batch, and different for every clip, epoch and stream."""

from __future__ import annotations

import pytest
import torch

from stage1.data.clip_random import DROPOUT, ClipDropout, clip_seeds, seed_dropout, uniform


def test_numbers_are_uniform_and_neighbours_independent() -> None:
    numbers = uniform(clip_seeds(torch.arange(2000), seed=0, epoch=0), 50, stream=0).double()
    assert 0 <= float(numbers.min()) < 0.001
    assert 0.999 < float(numbers.max()) < 1
    counts = torch.histc(numbers, bins=20, min=0, max=1)
    assert float(((counts - 5000) ** 2 / 5000).sum()) < 45  # chi-square, 19 degrees of freedom: 1 in 1,000 above 43.8
    for shifted in (numbers.roll(1, 0), numbers.roll(1, 1)):  # the next clip, the next number
        assert abs(float(torch.corrcoef(torch.stack([numbers.flatten(), shifted.flatten()]))[0, 1])) < 0.015


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}, {"seed": 2**63 + 5}])
def test_another_seed_or_epoch_gives_other_numbers(other: dict[str, int]) -> None:
    rows = torch.arange(500)
    first = clip_seeds(rows, seed=0, epoch=0)
    second = clip_seeds(rows, **{"seed": 0, "epoch": 0, **other})
    assert not set(first.tolist()) & set(second.tolist())
    numbers = torch.stack([uniform(seeds, 20, stream=0).flatten() for seeds in (first, second)])
    assert abs(float(torch.corrcoef(numbers)[0, 1])) < 0.05


def test_streams_differ() -> None:
    seeds = clip_seeds(torch.arange(500), seed=0, epoch=0)
    numbers = torch.stack([uniform(seeds, 20, stream=stream).flatten() for stream in (0, 1, DROPOUT, DROPOUT + 1)])
    assert float((torch.corrcoef(numbers) - torch.eye(4)).abs().max()) < 0.05


def test_numbers_stay_the_same_in_every_version() -> None:
    """A resumed run needs them, on another machine too."""
    numbers = uniform(clip_seeds(torch.tensor([-1, 0, 12345]), seed=3, epoch=2), 3, stream=0)
    assert numbers.tolist() == [
        [0.42564845085144043, 0.3123525381088257, 0.014933526515960693],
        [0.07372176647186279, 0.9634731411933899, 0.3865760564804077],
        [0.9559326767921448, 0.8928783535957336, 0.9985541701316833],
    ]


def test_dropout_belongs_to_the_clip() -> None:
    layers = torch.nn.Sequential(ClipDropout(0.3), ClipDropout(0.3))
    rows, features = torch.tensor([5, 8, 2]), torch.ones(3, 4000)
    seed_dropout(layers, clip_seeds(rows, seed=0, epoch=1))
    out = layers[0](features)
    assert 0.27 < float((out == 0).float().mean()) < 0.33
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert not torch.equal(out, layers[1](features))  # each layer draws its own
    assert not torch.equal(out[0], out[1])
    seed_dropout(layers, clip_seeds(rows[[2, 0]], seed=0, epoch=1))
    assert torch.equal(layers[0](features[:2]), out[[2, 0]])
    with pytest.raises(ValueError, match="got 3 rows and seeds of 2 clips"):
        layers(features)
    assert torch.equal(layers.eval()(features), features)


def test_dropout_without_seeds_is_ordinary() -> None:
    torch.manual_seed(0)
    ours, theirs = ClipDropout(0.5)(torch.ones(3, 20)), None
    torch.manual_seed(0)
    theirs = torch.nn.functional.dropout(torch.ones(3, 20), 0.5)
    assert torch.equal(ours, theirs)
