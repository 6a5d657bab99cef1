"""Selection and balancing of clips from the index of a shard set, without a rebuild.

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
    """Shares of an epoch by group. Raises UserError if weights and groups do not match."""

    groups: Rows  # [N], the group of every row of the index, from 0
    weights: tuple[float, ...]  # one per group

    def __post_init__(self) -> None:
        if not self.weights or min(self.weights) < 0 or not sum(self.weights) > 0:
            raise UserError(f"weights are {self.weights}, expected numbers of 0 or more that are not all 0")
        if len(self.groups) and not 0 <= self.groups.min() <= self.groups.max() < len(self.weights):
            raise UserError(
                f"groups are {self.groups.min()} to {self.groups.max()}, but there are {len(self.weights)} weights; "
                "expected groups from 0 and one weight per group"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quota:
    """Number of clips that an epoch takes from each group: others in each epoch, or all clips of a smaller group."""

    groups: Rows  # [N], the group of every row of the index, from 0
    counts: Rows  # one per group


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
    """Return the index rows of the clips that pass every filter; None disables a filter.

    `videos` are paths relative to SOURCE. `fraction`, above 0 and at most 1, keeps that share of the remaining videos,
    drawn by `seed`; a larger fraction includes the videos of a smaller one. Raises UserError if a class, split, video
    or flag is not in the set.
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
        raise UserError(f"fraction is {fraction}, expected a value above 0 and at most 1")
    keep[np.random.default_rng(seed).permutation(left)[max(1, round(fraction * len(left))) :]] = False
    bits = index.clips["flags"]
    needed, refused = (_bits(flags) for flags in (with_flags, without_flags))
    return np.flatnonzero(keep[index.clips["video"]] & (bits & needed == needed) & (bits & refused == 0))


def map_labels(reader: ClipReader, label_of_class: Mapping[str, int]) -> Rows:
    """Return a label for every row of the index, by the class of its video; -1 for classes that are not named.

    Raises UserError if a class is not in the set.
    """
    table = np.full(len(reader.index.classes) + 1, layout.UNKNOWN_LABEL)  # the last entry is for no class (-1)
    table[_numbers("class", label_of_class, reader.index.classes)] = list(label_of_class.values())
    labels: Rows = table[reader.index.videos["class"]][reader.index.clips["video"]]
    return labels


def balance_labels(reader: ClipSource, weights: Sequence[float] = (1.0, 1.0)) -> Balance:
    """Balance an epoch to as many crime as normal clips, or by `weights` of (normal, crime).

    Raises UserError if some clips have no label.
    """
    if (reader.labels < 0).any():
        raise UserError(
            "some clips have no label, expected normal or crime; select the clips that have one, or map classes to "
            "labels"
        )
    return Balance(groups=reader.labels, weights=tuple(weights))


def balance_classes(reader: ClipReader, weights: Mapping[str, float] | None = None) -> Balance:
    """Balance an epoch by class: equally, or by `weights`, where classes that are not named have weight 0.

    Raises UserError if a class is not in the set.
    """
    classes = reader.index.classes
    groups = reader.index.videos["class"][reader.index.clips["video"]].astype(np.int64)
    weight_of_group = np.ones(len(classes) + 1)
    if weights is not None:
        weight_of_group[:] = 0
        weight_of_group[_numbers("class", weights, classes)] = list(weights.values())
    return Balance(groups=np.where(groups < 0, len(classes), groups), weights=tuple(weight_of_group.tolist()))


def mixture(reader: JoinedReader, weights: Sequence[float]) -> Balance:
    """Balance an epoch by shard set, with one weight for each set of `reader`."""
    return Balance(groups=reader.sets, weights=tuple(weights))


def _numbers(kind: str, names: Collection[str], table: Sequence[str]) -> list[int]:
    number = {name: i for i, name in enumerate(table)}
    unknown = sorted(set(names) - set(number))
    if unknown:
        known = ", ".join(sorted(number)[:10]) or "none"
        raise UserError(f"{kind} is {unknown[0]!r}, which is not in the shards; expected one of: {known}")
    return [number[name] for name in names]


def _bits(flags: Collection[str]) -> int:
    unknown = sorted(set(flags) - set(layout.FLAGS))
    if unknown:
        raise UserError(f"flag is {unknown[0]!r}, expected one of: {', '.join(layout.FLAGS)}")
    return layout.flags_to_bits(tuple(flags))
