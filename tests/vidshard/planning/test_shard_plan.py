"""The plan is a pure function of the videos' clip counts and the shard size."""

from __future__ import annotations

import random

import numpy as np
import pytest

from fake_shards import encoded
from vidshard.planning import shard_plan
from vidshard.planning.shard_plan import Chunk
from vidshard.shards import layout
from vidshard.shards.layout import ClipShape, SampleRecord


def test_every_clip_is_planned_once_in_order_and_shards_are_full() -> None:
    counts = [random.Random(0).randint(0, 40) for _ in range(200)]
    plan = shard_plan.plan_chunks(counts, shard_clips=16)
    planned = [(chunk.video, clip) for chunk in plan.chunks for clip in range(chunk.clip_start, chunk.clip_stop)]
    assert planned == [(video, clip) for video, count in enumerate(counts) for clip in range(count)]
    sizes = [sum(chunk.num_clips for chunk in plan.chunks if chunk.shard == shard) for shard in range(plan.num_shards)]
    assert sizes[:-1] == [16] * (plan.num_shards - 1)
    assert 0 < sizes[-1] <= 16
    assert [chunk.shard for chunk in plan.chunks] == sorted(chunk.shard for chunk in plan.chunks)


def test_a_long_video_spans_shards() -> None:
    assert shard_plan.plan_chunks([7], shard_clips=3).chunks == (
        Chunk(video=0, clip_start=0, clip_stop=3, shard=0),
        Chunk(video=0, clip_start=3, clip_stop=6, shard=1),
        Chunk(video=0, clip_start=6, clip_stop=7, shard=2),
    )


def test_nothing_to_plan() -> None:
    assert shard_plan.plan_chunks([0, 0], shard_clips=3).num_shards == 0


def test_a_clip_larger_than_a_shard_gets_one_of_its_own() -> None:
    assert shard_plan.clips_per_shard(ClipShape(num_frames=64, height=512, width=512), 1) == 1


def test_large_sets_have_larger_shards_and_extending_one_keeps_the_plan_of_its_first_videos() -> None:
    videos = [1_000] * 1_200  # 10,811 shards of 111 clips
    plan = shard_plan.plan_generations(videos, [range(1_200)], shard_clips=111)
    assert plan.num_shards == -(-1_200_000 // 222)
    small = shard_plan.plan_generations(videos[:1_100], [range(1_100)], shard_clips=111)
    extended = shard_plan.plan_generations(videos, [range(1_100), range(1_100, 1_200)], shard_clips=111)
    assert small.num_shards == -(-1_100_000 // 111)
    assert extended.chunks[: len(small.chunks)] == small.chunks
    assert extended.num_shards - small.num_shards == -(-100_000 // 222)


def test_the_plan_of_millions_of_clips_has_one_entry_for_each_video_in_a_shard() -> None:
    plan = shard_plan.plan_chunks([5_000] * 1_000, shard_clips=111)
    assert plan.num_clips == 5_000_000
    assert plan.num_shards == 45_046
    assert len(plan.chunks) < plan.num_shards + 1_000


@pytest.mark.parametrize("num_frames", [8, 16, 64])
def test_the_estimate_of_a_sample_is_no_less_than_a_usual_one(num_frames: int) -> None:
    shape = ClipShape(num_frames=num_frames, height=32, width=32)
    record = SampleRecord(
        path="Train/RoadAccidents/RoadAccidents001_x264.mp4", class_name="RoadAccidents", label=1, split="Validation",
        clip_index=100, frame_indices=tuple(range(10_000, 10_000 + num_frames)),
        timestamps_seconds=tuple(333.333333 + i / 30 // 1e-6 * 1e-6 for i in range(num_frames)),
        frame_gap_seconds=0.033333, fps=29.97, num_frames=100_000, decoder="opencv", repeated_frames=0,
    )  # fmt: skip
    data = encoded(record, np.zeros(shape.thwc, np.uint8))
    assert 0 <= shard_plan.sample_bytes(shape) - len(data) <= 2 * layout.TAR_BLOCK
