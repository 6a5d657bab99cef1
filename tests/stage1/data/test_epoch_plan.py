"""The plan of an epoch: exact, identical on all ranks, and fair to short videos and rare classes."""

from __future__ import annotations

import numpy as np
import pytest

from stage1.data.epoch_plan import balanced_clips, block_order, clips_of_epoch, epoch_order
from timing import processor_seconds


def test_a_million_clips_are_planned_within_a_second() -> None:
    assert processor_seconds(lambda: epoch_order(1_000_000, seed=0, epoch=0)) < 1
    order = epoch_order(1_000_000, seed=0, epoch=0)
    assert order.nbytes < 16 * len(order)
    assert np.array_equal(np.sort(order), np.arange(len(order)))

    videos = np.arange(1_000_000) // 100
    assert processor_seconds(lambda: clips_of_epoch(videos, per_video=3, seed=0, epoch=0)) < 1
    assert len(clips_of_epoch(videos, per_video=3, seed=0, epoch=0)) == 30_000


def test_the_same_seed_and_epoch_give_the_same_order_on_any_machine() -> None:
    assert epoch_order(12, seed=7, epoch=3).tolist() == [8, 11, 0, 3, 5, 6, 1, 7, 9, 4, 10, 2]


@pytest.mark.parametrize("per_video", [1, 2, 3])
def test_clips_of_a_video_take_turns(per_video: int) -> None:
    sizes = [1, 2, 7, 40]
    videos = np.repeat([3, 0, 9, 5], sizes)
    used = np.zeros(len(videos), int)
    for epoch in range(60):
        picked = clips_of_epoch(videos, per_video=per_video, seed=1, epoch=epoch)
        assert len(picked) == len(set(picked.tolist())) == sum(min(per_video, size) for size in sizes)
        used[picked] += 1
        for video in videos:  # none again before all others of its video
            assert np.ptp(used[videos == video]) <= 1


def test_balanced_epochs_hold_each_group_by_its_weight() -> None:
    labels = np.repeat([0, 1], [950, 50])
    picked = balanced_clips(labels, weights=[1, 1], seed=0, epoch=0)
    assert len(picked) == 1000
    assert np.bincount(labels[picked]).tolist() == [500, 500]
    assert set(np.bincount(picked[labels[picked] == 1])[950:]) == {10}
    assert np.bincount(picked).max() <= 10
    assert not np.array_equal(picked, balanced_clips(labels, weights=[1, 1], seed=0, epoch=1))
    assert np.bincount(labels[balanced_clips(labels, weights=[0, 1], seed=0, epoch=0)]).tolist() == [0, 1000]


def test_clips_of_one_video_do_not_cluster() -> None:
    videos = np.arange(6400) // 64
    pairs = 0
    for epoch in range(5):
        for batch in videos[epoch_order(len(videos), seed=0, epoch=epoch)].reshape(-1, 32):
            counts = np.bincount(batch)
            pairs += int((counts * (counts - 1)).sum()) // 2
    chance = 5 * 200 * (32 * 31 / 2) * (63 / 6399)
    assert pairs < 1.2 * chance


def test_a_block_shuffle_reads_a_few_shards_at_a_time() -> None:
    shards = np.repeat(np.arange(23), 11)
    order, starts = block_order(shards, window_shards=4, seed=0, epoch=0)
    assert sorted(order.tolist()) == list(range(len(shards)))
    seen: set[int] = set()
    for begin, end in zip(starts, [*starts[1:], len(order)], strict=True):
        window = shards[order[begin:end]]
        assert len(set(window)) <= 4
        assert not seen & set(window)
        assert np.count_nonzero(np.diff(window)) > len(set(window))  # mixed, not one shard after another
        seen |= set(window)
    assert not np.array_equal(order, block_order(shards, window_shards=4, seed=0, epoch=1)[0])
