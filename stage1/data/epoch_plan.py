"""Selection and order of an epoch's clips: pure functions of (seed, epoch) and columns of the index.

A global batch is a slice of the epoch's order, and ranks and workers compute their share of it. So the order depends
neither on the distribution of clips over shards nor on ranks or workers, and a run resumes from a position in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

PADDING_ROW = -1  # row and label of a clip that only fills a batch and is never counted

Rows = npt.NDArray[np.integer]

# Independent random streams, one for each purpose.
_ORDER, _CLIPS_OF_VIDEO, _BALANCE, _CLIPS_OF_BAG = 0, 1, 2, 3


def epoch_order(num_clips: int, *, seed: int, epoch: int) -> Rows:
    """Return the order of all clips in an epoch: a permutation that depends on the arguments only, 4 bytes per clip.

    >>> epoch_order(5, seed=0, epoch=1), epoch_order(5, seed=0, epoch=2)
    (array([3, 1, 4, 2, 0], dtype=int32), array([3, 0, 2, 4, 1], dtype=int32))
    """
    order: Rows = np.arange(num_clips, dtype=np.int32 if num_clips <= np.iinfo(np.int32).max else np.int64)
    _generator(seed, epoch).shuffle(order)
    return order


def evenly_spaced(count: int, limit: int) -> Rows:
    """Return at most `limit` positions of `count`, evenly spaced and including both ends.

    >>> evenly_spaced(5, 3).tolist(), evenly_spaced(2, 3).tolist()
    ([0, 2, 4], [0, 1])
    """
    return np.unique(np.linspace(0, count - 1, min(limit, count)).round().astype(np.int64))


def rows_by_video(rows: Rows, videos: Rows) -> list[Rows]:
    """Return the rows of each video, in their order; `videos` holds the video of every row of the index.

    >>> [found.tolist() for found in rows_by_video(np.array([0, 1, 2]), np.array([7, 5, 7]))]
    [[1], [0, 2]]
    """
    by_video = rows[np.argsort(videos[rows], kind="stable")]
    return np.split(by_video, np.flatnonzero(np.diff(videos[by_video])) + 1) if len(rows) else []


def block_order(shards: Rows, *, window_shards: int, seed: int, epoch: int) -> tuple[Rows, Rows]:
    """Return an order that reads a few shards at a time, for disks that are slow at random access.

    Shards are shuffled, every `window_shards` of them form a window, and the clips of a window are shuffled. `shards`
    holds the shard of each clip. Returns the order, and the position at which each window begins.

    >>> order, starts = block_order(np.array([0, 0, 1, 1, 2, 2, 3, 3]), window_shards=2, seed=0, epoch=0)
    >>> order.tolist(), starts.tolist()
    ([0, 1, 7, 6, 4, 5, 2, 3], [0, 4])
    """
    generator = _generator(seed, epoch)
    names, shard_of_clip = np.unique(shards, return_inverse=True)
    window_of_clip = (generator.permutation(len(names)) // window_shards)[shard_of_clip]
    order = np.lexsort((generator.random(len(shards), np.float32), window_of_clip)).astype(np.int32)
    return order, np.searchsorted(window_of_clip[order], np.arange(-(-len(names) // window_shards)))


def clips_of_epoch(videos: Rows, *, per_video: int | Rows, seed: int, epoch: int) -> Rows:
    """Return the positions of an epoch's clips: `per_video` of each video, or all clips of a shorter video.

    Each video has a fixed random order, and each epoch takes the next clips of it, cyclically. So no clip is repeated
    before all clips of its video have been used. `videos` holds the video of each clip, or any other group of clips.
    `per_video` is a number, or one for each clip, the same for all clips of a video.

    >>> videos = np.array([7, 7, 7, 9])
    >>> [clips_of_epoch(videos, per_video=1, seed=0, epoch=epoch).tolist() for epoch in range(4)]
    [[2, 3], [1, 3], [0, 3], [2, 3]]
    """
    keys = videos + _generator(seed, _CLIPS_OF_VIDEO).random(len(videos))
    order = np.argsort(keys, kind="stable")  # video by video, in random order within each
    _, first, counts = np.unique(videos[order], return_index=True, return_counts=True)
    place, size = np.arange(len(videos)) - np.repeat(first, counts), np.repeat(counts, counts)
    wanted = np.broadcast_to(per_video, len(videos))[order]
    return np.sort(order[(place - epoch * wanted) % size < wanted])


def clips_of_bag(num_clips: int, *, max_clips: int, seed: int, epoch: int, bag: int) -> Rows:
    """Return the positions of the clips that represent a long bag in an epoch.

    One clip is drawn from each of `max_clips` equal segments (Wang et al., "Temporal Segment Networks", ECCV 2016). A
    bag of at most `max_clips` clips is used whole.

    >>> [clips_of_bag(10, max_clips=3, seed=0, epoch=epoch, bag=7).tolist() for epoch in range(3)]
    [[0, 5, 8], [2, 3, 6], [2, 5, 8]]
    """
    if num_clips <= max_clips:
        return np.arange(num_clips)
    edges = np.arange(max_clips + 1) * num_clips // max_clips
    return _generator(seed, epoch, _CLIPS_OF_BAG, bag).integers(edges[:-1], edges[1:])


def balanced_clips(groups: Rows, *, weights: Sequence[float], seed: int, epoch: int) -> Rows:
    """Return as many clip positions as there are clips; each group's share matches `weights` to within one clip.

    Within a group, clips appear equally often, give or take one. `groups` holds the group of each clip, from 0.

    >>> balanced_clips(np.array([0, 0, 0, 0, 0, 1]), weights=[1, 1], seed=0, epoch=0).tolist()
    [0, 3, 4, 5, 5, 5]
    """
    generator = _generator(seed, epoch, _BALANCE)
    members = [np.flatnonzero(groups == group) for group in range(len(weights))]
    shares = np.array([weight if len(rows) else 0.0 for weight, rows in zip(weights, members, strict=True)])
    ends = np.rint(np.cumsum(shares / shares.sum()) * len(groups)).astype(np.int64)
    parts = []
    for rows, draws in zip(members, np.diff(ends, prepend=0).tolist(), strict=True):
        if draws:
            parts += [np.tile(rows, draws // len(rows)), generator.permutation(rows)[: draws % len(rows)]]
    return np.sort(np.concatenate(parts)) if parts else np.zeros(0, np.int64)


def num_steps(num_clips: int, *, global_batch: int, drop_last: bool = False) -> int:
    """Return the number of steps for `num_clips` clips, the same on every rank.

    >>> num_steps(10, global_batch=4), num_steps(10, global_batch=4, drop_last=True)
    (3, 2)
    """
    return num_clips // global_batch if drop_last else -(-num_clips // global_batch)


def rank_batch(
    order: Rows, step: int, *, batch_size: int, rank: int = 0, world_size: int = 1, pad: bool = False
) -> Rows:
    """Return the rows that `rank` reads at `step`: its share of the global batch, which is a slice of the order.

    The last global batch may be smaller. It is split as evenly as possible, and a rank without a clip reads one clip of
    padding (row -1), so that all ranks take the same number of steps. With `pad`, every batch of every rank has
    `batch_size` rows, and the last rows may be padding.

    >>> order = np.arange(9)
    >>> [rank_batch(order, step, batch_size=2, rank=0, world_size=2).tolist() for step in range(3)]
    [[0, 1], [4, 5], [-1]]
    >>> [rank_batch(order, step, batch_size=2, rank=1, world_size=2).tolist() for step in range(3)]
    [[2, 3], [6, 7], [8]]
    >>> [rank_batch(order, 2, batch_size=2, rank=rank, world_size=2, pad=True).tolist() for rank in range(2)]
    [[8, -1], [-1, -1]]
    """
    global_batch = batch_size * world_size
    rows = order[step * global_batch : (step + 1) * global_batch]
    if pad:
        part = rows[batch_size * rank : batch_size * (rank + 1)]
        return np.concatenate([part, np.full(batch_size - len(part), PADDING_ROW, order.dtype)])
    part = rows[len(rows) * rank // world_size : len(rows) * (rank + 1) // world_size]
    return part if len(part) else np.array([PADDING_ROW])


def _generator(*words: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))
