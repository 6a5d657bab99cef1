"""Per-clip random numbers, which depend only on (seed, epoch, row of the index).

A clip therefore gets the same augmentation and dropout at any position in a batch, with any batch size, number of ranks
and device, and a run that resumes mid-epoch needs no generator state. The generator is counter-based and uses integer
arithmetic on the device of the rows: each number is a hash (the finaliser of SplitMix64: Steele et al., "Fast
Splittable Pseudorandom Number Generators", OOPSLA 2014) of its clip, its stream and its position.
"""

from __future__ import annotations

import torch
from torch import nn

# Independent streams of one clip; the i-th dropout layer uses the stream DROPOUT + i.
AUGMENTATION, MIXUP, SPLICES, DROPOUT = 0, 1, 2, 100

_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_WORD = 1 << 64


def clip_seeds(indices_B: torch.Tensor, *, seed: int, epoch: int) -> torch.Tensor:
    """Return a seed for each clip, int64 (B,), from its row in the index, on the same device.

    Padding (row -1) has a seed too.

    >>> clip_seeds(torch.tensor([7]), seed=0, epoch=0) == clip_seeds(torch.tensor([3, 7]), seed=0, epoch=0)
    tensor([False,  True])
    """
    of_run = torch.tensor([_as_int64(seed), _as_int64(epoch)])
    of_epoch = _mix(_mix(of_run[:1]) + of_run[1:] * _as_int64(_GOLDEN)).item()
    return _mix(of_epoch + (indices_B.long() + 1) * _as_int64(_GOLDEN))


def uniform(seeds_B: torch.Tensor, count: int, *, stream: int) -> torch.Tensor:
    """Return `count` numbers in [0, 1) for each clip, float32 (B, count), on the device of `seeds_B` (`clip_seeds`)."""
    places = torch.arange(1, count + 1, device=seeds_B.device)
    of_stream = _mix(seeds_B + _as_int64((stream + 1) * _MULTIPLIERS[0]))
    bits = _mix(of_stream[:, None] + places * _as_int64(_GOLDEN))
    return _shift_right(bits, 40).float() / (1 << 24)


class ClipDropout(nn.Module):
    """Dropout (Srivastava et al., JMLR 2014) whose mask depends on the clip, by the seeds that `seed_dropout` sets.

    The input is (B, …), with one row per clip. Without seeds it is ordinary dropout; in evaluation it is the identity.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.stream = DROPOUT
        self.seeds_B: torch.Tensor | None = None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Drop features of `features` (B, …). Raises ValueError if there is not one seed per row."""
        if self.seeds_B is None or not self.training or not self.p:
            return nn.functional.dropout(features, self.p, self.training)
        if len(self.seeds_B) != len(features):
            raise ValueError(
                f"dropout got {len(features)} rows and seeds of {len(self.seeds_B)} clips, expected one each"
            )
        keep = uniform(self.seeds_B, features[0].numel(), stream=self.stream).view_as(features) >= self.p
        return features * keep / (1 - self.p)

    def extra_repr(self) -> str:
        """Return the dropout probability for the printed module."""
        return f"p={self.p}"


def seed_dropout(model: nn.Module, seeds_B: torch.Tensor | None) -> None:
    """Set the seeds of the next batch's clips in every ClipDropout of `model`; None restores ordinary dropout."""
    layers = [module for module in model.modules() if isinstance(module, ClipDropout)]
    for i, layer in enumerate(layers):
        layer.stream, layer.seeds_B = DROPOUT + i, seeds_B


def _mix(words: torch.Tensor) -> torch.Tensor:
    """Apply the finaliser of SplitMix64 to int64 values, with wrap-around."""
    words = (words ^ _shift_right(words, 30)) * _as_int64(_MULTIPLIERS[0])
    words = (words ^ _shift_right(words, 27)) * _as_int64(_MULTIPLIERS[1])
    return words ^ _shift_right(words, 31)


def _shift_right(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift right and fill with zeros; torch's own shift fills with the sign bit."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def _as_int64(word: int) -> int:
    """Return the int64 with the same lowest 64 bits."""
    word %= _WORD
    return word - _WORD if word >= _WORD // 2 else word
