"""What of a shard set to load, decided from its index and without a rebuild: rows, labels, groups.

rows = select(reader, classes=["Fighting", "NormalVideos"], without_flags=["damaged"], fraction=0.1)
loader = ClipLoader(reader, rows=rows, balance=balance_labels(reader), batch_size=32, shuffle=True)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from stage1.data.epoch_plan import Rows
from stage1.data.reader import ClipReader, ClipSource, JoinedReader
from vidshard.shards import layout
from vidshard.util.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Balance:
    """Shares of an epoch by group."""

    groups: Rows  # of every row of the index, from 0
    weights: tuple[float, ...]  # of each group

    def __post_init__(self) -> None:
        if not self.weights or min(self.weights) < 0 or not sum(self.weights) > 0:
            raise UserError(f"weights are {self.weights}, expected numbers of 0 or more that are not all 0")
        if len(self.groups) and not 0 <= self.groups.min() <= self.groups.max() < len(self.weights):
            raise UserError(f"there are {len(self.weights)} weights, but group {self.groups.max()}: expected one each")


def select(
    reader: ClipReader,
    *,
    classes: Collection[str] | None = None,
    splits: Collection[str] | None = None,
    videos: Collection[str] | None = None,
    with_flags: Collection[str] = (),
    without_flags: Collection[str] = (),
    fraction: float = 1.0,
    seed: int = 0,
) -> Rows:
    """Index rows of the clips that pass every filter; None is no filter.

    `videos` are paths relative to SOURCE. `fraction` keeps that share of the videos that are left, drawn by `seed`; a
    larger fraction keeps those of a smaller one. Raises UserError on a name that is not in the set.
    """
    index = reader.index
    keep = np.ones(len(index.videos), np.bool_)
    for kind, wanted, table in (("class", classes, index.classes), ("split", splits, index.splits)):
        if wanted is not None:
            keep &= np.isin(index.videos[kind], _numbers(kind, wanted, table))
    if videos is not None:
        keep &= np.isin(np.arange(len(keep)), _numbers("video", videos, index.paths))
    left = np.flatnonzero(keep)
    if not 0 < fraction <= 1:
        raise UserError(f"fraction is {fraction}, expected above 0 and at most 1")
    keep[np.random.default_rng(seed).permutation(left)[max(1, round(fraction * len(left))) :]] = False
    bits = index.clips["flags"]
    needed, refused = (_bits(flags) for flags in (with_flags, without_flags))
    return np.flatnonzero(keep[index.clips["video"]] & (bits & needed == needed) & (bits & refused == 0))


def map_labels(reader: ClipReader, label_of_class: Mapping[str, int]) -> Rows:
    """A label for every row of the index, by the class of its video; -1 for classes that are not named."""
    table = np.full(len(reader.index.classes) + 1, layout.UNKNOWN_LABEL)  # the last is that of no class (-1)
    table[_numbers("class", label_of_class, reader.index.classes)] = list(label_of_class.values())
    labels: Rows = table[reader.index.videos["class"]][reader.index.clips["video"]]
    return labels


def balance_labels(reader: ClipSource, weights: Sequence[float] = (1.0, 1.0)) -> Balance:
    """As many crime as normal clips in an epoch, or by other weights of (normal, crime)."""
    if (reader.labels < 0).any():
        raise UserError(
            "some clips have no label, expected normal or crime; select those that have one, or map classes"
        )
    return Balance(groups=reader.labels, weights=tuple(weights))


def balance_classes(reader: ClipReader, weights: Mapping[str, float] | None = None) -> Balance:
    """Every class equally often in an epoch, or by `weights`; classes that are not named have weight 0."""
    classes = reader.index.classes
    groups = reader.index.videos["class"][reader.index.clips["video"]].astype(np.int64)
    weight_of_group = np.ones(len(classes) + 1)
    if weights is not None:
        weight_of_group[:] = 0
        weight_of_group[_numbers("class", weights, classes)] = list(weights.values())
    return Balance(groups=np.where(groups < 0, len(classes), groups), weights=tuple(weight_of_group.tolist()))


def mixture(reader: JoinedReader, weights: Sequence[float]) -> Balance:
    """Shares of an epoch by shard set: one weight for each set of `reader`."""
    return Balance(groups=reader.sets, weights=tuple(weights))


def _numbers(kind: str, names: Collection[str], table: Sequence[str]) -> list[int]:
    number = {name: i for i, name in enumerate(table)}
    unknown = sorted(set(names) - set(number))
    if unknown:
        known = ", ".join(sorted(number)[:10]) or "none"
        raise UserError(f"there is no {kind} {unknown[0]!r} in the shards, expected of: {known}")
    return [number[name] for name in names]


def _bits(flags: Collection[str]) -> int:
    unknown = sorted(set(flags) - set(layout.FLAGS))
    if unknown:
        raise UserError(f"there is no flag {unknown[0]!r}, expected of: {', '.join(layout.FLAGS)}")
    return layout.flags_to_bits(tuple(flags))
