"""Which frames make which clip."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vidshard.clips import SamplingConfig, clip_frame_indices, frame_gap_seconds, frame_indices, num_clips, resize_frame
from vidshard.errors import UserError


def all_clips(num_frames: int, **options: Any) -> list[tuple[int, ...]]:
    sampling = SamplingConfig(**options)
    return [clip_frame_indices(num_frames, i, sampling) for i in range(num_clips(num_frames, sampling))]


@pytest.mark.parametrize("total", [16, 17, 31, 64, 7698])
def test_uniform_is_the_rule_of_linspace(total: int) -> None:
    assert frame_indices(total, num_frames=16) == tuple(np.linspace(0, total - 1, 16).astype(int))


def test_uniform_clips_cut_the_video_into_equal_spans() -> None:
    clips = all_clips(100, mode="uniform", clips_per_video=4)
    assert [(clip[0], clip[-1]) for clip in clips] == [(0, 24), (25, 49), (50, 74), (75, 99)]


def test_more_spans_than_frames_gives_one_clip_a_frame() -> None:
    assert all_clips(3, mode="uniform", clip_len=2, clips_per_video=8) == [(0, 0), (1, 1), (2, 2)]


@pytest.mark.parametrize("mode", ["uniform", "dense"])
def test_a_short_video_repeats_its_last_frame(mode: str) -> None:
    assert all_clips(3, mode=mode, clip_len=5) == [(0, 1, 2, 2, 2)]


def test_dense_windows_follow_each_other_and_the_tail_is_kept() -> None:
    assert all_clips(8, mode="dense", clip_len=4) == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert all_clips(9, mode="dense", clip_len=4) == [(0, 1, 2, 3), (4, 5, 6, 7), (5, 6, 7, 8)]


def test_dense_stride_and_frame_step() -> None:
    assert all_clips(8, mode="dense", clip_len=4, stride=2) == [(0, 1, 2, 3), (2, 3, 4, 5), (4, 5, 6, 7)]
    assert all_clips(8, mode="dense", clip_len=4, frame_step=2) == [(0, 2, 4, 6)]
    assert all_clips(9, mode="dense", clip_len=4, frame_step=2) == [(0, 2, 4, 6), (2, 4, 6, 8)]


@pytest.mark.parametrize("num_frames", [1, 2, 15, 16, 17, 33, 100, 101])
@pytest.mark.parametrize(
    "options",
    [
        {"mode": "uniform"},
        {"mode": "uniform", "clips_per_video": 7},
        {"mode": "dense"},
        {"mode": "dense", "stride": 3},
        {"mode": "dense", "frame_step": 3},
    ],
    ids=str,
)
def test_every_clip_rises_within_the_video_and_dense_reaches_its_end(num_frames: int, options: Any) -> None:
    clips = all_clips(num_frames, clip_len=16, **options)
    for clip in clips:
        assert len(clip) == 16
        assert list(clip) == sorted(clip)
        assert 0 <= clip[0] <= clip[-1] < num_frames
    assert len(set(clips)) == len(clips)
    assert clips[0][0] == 0
    assert num_frames - 1 - clips[-1][-1] < options.get("frame_step", 1)


def test_no_frames_no_clips() -> None:
    assert num_clips(0, SamplingConfig()) == 0
    with pytest.raises(ValueError, match="clip 1 of a video of 40 frames, which gives 1 clips"):
        clip_frame_indices(40, 1, SamplingConfig())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mode": "random"}, "sampling mode is 'random', expected uniform or dense"),
        ({"clip_len": 0}, "clip_len is 0, expected at least 1"),
        ({"mode": "dense", "stride": 0}, "stride is 0, expected at least 1"),
        ({"mode": "uniform", "stride": 4}, "are options of dense sampling"),
        ({"mode": "dense", "clips_per_video": 2}, "is an option of uniform sampling"),
    ],
)
def test_a_wrong_sampling_is_refused(options: Any, text: str) -> None:
    with pytest.raises(UserError, match=text):
        SamplingConfig(**options)


def test_settings_hold_only_what_decides_the_clips() -> None:
    assert SamplingConfig(clips_per_video=2).to_settings() == {"mode": "uniform", "clip_len": 16, "clips_per_video": 2}
    dense = SamplingConfig(mode="dense", frame_step=2)
    assert dense.to_settings() == {"mode": "dense", "clip_len": 16, "stride": 32, "frame_step": 2}


def test_frame_gap_is_the_median_over_different_frames() -> None:
    assert frame_gap_seconds([0, 1, 2, 12]) == 1.0
    assert frame_gap_seconds([3, 3, 3]) == frame_gap_seconds([3]) == 0.0


def test_resize_is_the_mean_of_the_area() -> None:
    stripes = np.zeros((40, 60, 3), np.uint8)
    stripes[:, ::2] = 200
    assert np.array_equal(resize_frame(stripes, 20, 30), np.full((20, 30, 3), 100, np.uint8))
    assert resize_frame(stripes, 7, 90).shape == (7, 90, 3)
