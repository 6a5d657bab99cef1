"""Which frames make which clip."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from vidshard.shards.layout import frame_gap_seconds
from vidshard.util.errors import UserError
from vidshard.video.sampling import (
    SamplingConfig,
    VideoClips,
    find_breaks,
    frame_indices,
    place_frame,
    resampled_frames,
    resize_frame,
    scaled_size,
)


def all_clips(num_frames: int, **options: Any) -> list[tuple[int, ...]]:
    return list(VideoClips(num_frames, SamplingConfig(**options)))


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
    assert all_clips(0) == all_clips(0, mode="dense") == []
    with pytest.raises(IndexError, match="clip 1 of a video of 40 frames, which gives 1 clips"):
        VideoClips(40, SamplingConfig())[1]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mode": "random"}, "mode is 'random', expected one of uniform, dense, annotated"),
        ({"clip_len": 0}, "clip_len is 0, expected at least 1"),
        ({"mode": "dense", "stride": 0}, "stride is 0, expected at least 1"),
        ({"mode": "uniform", "stride": 4}, "apply to dense sampling"),
        ({"mode": "dense", "clips_per_video": 2}, "applies to uniform sampling"),
        ({"mode": "uniform", "fps": 5}, "fps applies to dense and annotated sampling"),
        ({"mode": "dense", "fps": 5, "frame_step": 2}, "cannot be combined with frame_step"),
        ({"mode": "dense", "fps": 0}, "fps is 0, expected more than 0"),
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


# ----- time instead of frames -----------------------------------------------------------------------------------------


def times(clips: VideoClips, timestamps: list[float]) -> list[list[float]]:
    return [[round(timestamps[index], 6) for index in clip] for clip in clips]


def test_cameras_of_10_and_30_frames_a_second_show_the_same_speed() -> None:
    sampling = SamplingConfig(mode="dense", clip_len=4, fps=5)
    shown = []
    for rate in (10, 30):
        timestamps = [i / rate for i in range(4 * rate)]
        shown.append(times(VideoClips(len(timestamps), sampling, timestamps_seconds=timestamps), timestamps))
    assert shown[0] == shown[1]
    assert shown[0][:2] == [[0, 0.2, 0.4, 0.6], [0.8, 1.0, 1.2, 1.4]]


@pytest.mark.parametrize("rate", [5, 10, 12.5, 15, 24, 29.97, 30, 60])
def test_at_its_own_rate_every_frame_stands_once(rate: float) -> None:
    """Also where the container rounds its times, to milliseconds or ticks of 1/90000 s."""
    for ticks in (1e3, 90e3, 1e9):
        timestamps = [round(i / rate * ticks) / ticks for i in range(2000)]
        assert resampled_frames(timestamps, rate).tolist() == list(range(2000))


def test_a_pause_of_a_variable_rate_repeats_the_nearest_frame() -> None:
    assert resampled_frames([0.0, 0.1, 0.6, 0.7], 10).tolist() == [0, 1, 1, 1, 2, 2, 2, 3]


def test_a_slow_camera_repeats_frames_without_being_short() -> None:
    timestamps = [i / 5 for i in range(20)]
    clips = VideoClips(20, SamplingConfig(mode="dense", clip_len=8, fps=10), timestamps_seconds=timestamps)
    assert clips[0] == (0, 0, 1, 1, 2, 2, 3, 3)
    assert not clips.is_short(0)
    assert VideoClips(3, SamplingConfig(mode="dense", clip_len=8, fps=10), timestamps_seconds=timestamps[:3]).is_short(
        0
    )


@pytest.mark.parametrize("seed", range(20))
def test_moments_take_the_nearest_frame_and_fit_into_the_duration(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gaps = rng.choice([0.0, 0.001, 0.04, 0.5, 4.9], size=rng.integers(0, 80))  # also two frames at one moment
    timestamps = np.concatenate([[0.0], np.cumsum(gaps)])
    for fps in (0.3, 7.5, 29.97, 1000):
        frames = resampled_frames(timestamps, fps)
        assert 1 <= len(frames) <= (timestamps[-1] + 600e-6) * fps + 1  # containers round the last time down
        assert frames[0] == 0
        away = np.abs(timestamps[None] - np.arange(len(frames))[:, None] / fps)
        np.testing.assert_allclose(away[np.arange(len(frames)), frames], away.min(axis=1), atol=2e-6)


@pytest.mark.parametrize("fps", [0.1, 7.5, 1000])
def test_no_time_has_one_moment(fps: float) -> None:
    assert resampled_frames([0.0], fps).tolist() == [0]
    assert resampled_frames([0.0, 0.0, 0.0], fps).tolist() == [0]
    assert resampled_frames([], fps).tolist() == []


# ----- breaks ---------------------------------------------------------------------------------------------------------


def clips_of(timestamps: list[float], *, events: Any = (), **options: Any) -> list[tuple[int, ...]]:
    sampling = SamplingConfig(**{"mode": "dense", "clip_len": 4, **options})
    return list(VideoClips(len(timestamps), sampling, timestamps_seconds=timestamps, events=events))


def with_gaps(num_frames: int, pace: float, gaps: dict[int, float]) -> list[float]:
    """Return the times of frames `pace` apart, with an extra gap before each frame in `gaps`."""
    steps = [gaps.get(i, pace) if i else 0.0 for i in range(num_frames)]
    return [round(float(time), 6) for time in np.cumsum(steps)]


@pytest.mark.parametrize(
    ("pace", "gap", "is_break"),
    [
        (0.04, 5.0, False),  # a pause
        (0.04, 5.1, True),
        (0.04, 36000, True),
        (1.0, 9.9, False),  # one frame a second: nine are missing
        (1.0, 10.1, True),
        (60.0, 599, False),  # a time lapse
        (60.0, 601, True),
    ],
)
def test_a_break_is_long_and_far_above_the_pace(pace: float, gap: float, is_break: bool) -> None:
    assert find_breaks(with_gaps(100, pace, {40: gap})).tolist() == [40] * is_break


def test_breaks_of_few_frames_or_times_that_stand_still() -> None:
    assert find_breaks([]).tolist() == find_breaks([0.0]).tolist() == find_breaks([0.0, 3600.0]).tolist() == []
    assert find_breaks([0.0, 0.1, 3600.0]).tolist() == [2]
    assert find_breaks([0.0, 0.0, 0.0, 0.1, 60.0]).tolist() == [4]


def test_no_window_lies_across_a_break() -> None:
    timestamps = with_gaps(15, 0.1, {6: 600})
    assert clips_of(timestamps) == [(0, 1, 2, 3), (2, 3, 4, 5), (6, 7, 8, 9), (10, 11, 12, 13), (11, 12, 13, 14)]
    assert clips_of(timestamps, frame_step=2) == [(0, 2, 4, 5), (6, 8, 10, 12), (8, 10, 12, 14)]


def test_a_jump_of_the_clock_makes_no_frames() -> None:
    """Two stretches of 45 moments, however far apart: two clips each, and one more that ends at the last moment."""
    for jump in (600, 36000):
        clips = clips_of(with_gaps(300, 0.04, {150: jump}), fps=7.5, clip_len=16)
        assert [clip[0] for clip in clips] == [0, 53, 97, 150, 203, 247]
        assert all(len(set(clip)) == 16 for clip in clips)


def test_uniform_counts_frames_and_ignores_breaks() -> None:
    timestamps = with_gaps(62, 0.04, {20: 600})
    options = {"mode": "uniform", "clips_per_video": 2}
    assert clips_of(timestamps, **options) == all_clips(62, clip_len=4, **options)


def test_a_short_part_between_breaks_repeats_its_last_frame_and_a_single_frame_is_left_out() -> None:
    timestamps = with_gaps(13, 0.1, {5: 60, 7: 60, 8: 60})
    sampling = SamplingConfig(mode="dense", clip_len=4)
    clips = VideoClips(13, sampling, timestamps_seconds=timestamps)
    assert list(clips) == [(0, 1, 2, 3), (1, 2, 3, 4), (5, 6, 6, 6), (8, 9, 10, 11), (9, 10, 11, 12)]
    assert [clips.is_short(number) for number in range(5)] == [False, False, True, False, False]
    assert clips_of(timestamps, clip_len=1, stride=1) == [
        (i,) for i in range(13)
    ]  # no clip shows motion: nothing is lost
    assert clips_of(with_gaps(4, 0.1, {2: 60}), fps=1) == [(0, 0, 0, 0), (2, 2, 2, 2)]  # there is nothing else


def test_events_are_cut_at_breaks_and_widened_on_their_own_side() -> None:
    timestamps = with_gaps(40, 0.1, {20: 600})
    options = {"mode": "annotated"}
    assert clips_of(timestamps, events=[(14, 25)], **options) == [
        (14, 15, 16, 17), (16, 17, 18, 19), (20, 21, 22, 23), (22, 23, 24, 25)
    ]  # fmt: skip
    assert clips_of(timestamps, events=[(19, 19)], **options) == [(16, 17, 18, 19)]
    assert clips_of(timestamps, events=[(19, 20)], **options) == [(16, 17, 18, 19), (20, 21, 22, 23)]
    assert clips_of(timestamps, events=[(18, 20)], fps=5, **options) == [(12, 14, 16, 18), (20, 22, 24, 26)]
    assert clips_of(timestamps, events=[(40, 50)], **options) == []


@pytest.mark.parametrize("fps", [None, 5, 7.5, 30])
@pytest.mark.parametrize("mode", ["dense", "annotated"])
@pytest.mark.parametrize("seed", range(10))
def test_parts_between_breaks_are_cut_as_videos_of_their_own(seed: int, mode: str, fps: float | None) -> None:
    rng = np.random.default_rng(seed)
    starts = np.unique(np.concatenate([[0], rng.choice(np.arange(2, 199, 2), size=rng.integers(0, 12))])).tolist()
    steps = rng.choice([0.0, 0.05, 0.1, 0.9], size=200, p=[0.1, 0.4, 0.4, 0.1])
    steps[0] = 0.0
    steps[starts[1:]] = rng.uniform(6, 90, len(starts) - 1)
    timestamps = np.cumsum(steps)
    assert find_breaks(timestamps).tolist() == starts[1:]
    events = [(int(a), int(a + b)) for a, b in zip(rng.integers(0, 190, 3), rng.integers(0, 60, 3), strict=True)]
    sampling = SamplingConfig(mode=mode, clip_len=4, stride=3, fps=fps)  # type: ignore[arg-type]

    def cut(start: int, end: int) -> list[tuple[int, ...]]:
        inside = [(max(a, start) - start, b - start) for a, b in events if a < end and b >= start]
        if mode == "annotated" and not inside:
            return []
        part = timestamps[start:end] - timestamps[start]
        clips = VideoClips(end - start, sampling, timestamps_seconds=part, events=inside if mode == "annotated" else ())
        return [tuple(start + frame for frame in clip) for clip in clips]

    parts = [cut(start, end) for start, end in itertools.pairwise([*starts, 200])]
    expected = [clip for part in parts for clip in part]
    whole = VideoClips(200, sampling, timestamps_seconds=timestamps, events=events if mode == "annotated" else ())
    left_out = set(expected) - set(whole)
    assert list(whole) == [clip for clip in expected if clip not in left_out]
    assert all(len(set(clip)) == 1 for clip in left_out)
    if mode == "dense" and fps is None:
        assert sorted({frame for clip in whole for frame in clip}) == list(range(200))


# ----- events ---------------------------------------------------------------------------------------------------------


def in_events(num_frames: int, *events: tuple[int, int], **options: Any) -> list[tuple[int, ...]]:
    return list(VideoClips(num_frames, SamplingConfig(mode="annotated", clip_len=4, **options), events=events))


def test_windows_lie_within_the_event() -> None:
    assert in_events(100, (10, 18)) == [(10, 11, 12, 13), (14, 15, 16, 17), (15, 16, 17, 18)]
    assert in_events(100, (10, 16), frame_step=2) == [(10, 12, 14, 16)]


def test_a_short_event_is_in_the_middle_of_a_window_within_the_video() -> None:
    assert in_events(100, (50, 50)) == [(48, 49, 50, 51)]
    assert in_events(100, (0, 0)) == [(0, 1, 2, 3)]
    assert in_events(100, (99, 99)) == [(96, 97, 98, 99)]
    assert in_events(3, (1, 1)) == [(0, 1, 2, 2)]


def test_events_past_the_end_are_cut_and_overlapping_ones_are_one() -> None:
    assert in_events(20, (12, 400)) == [(12, 13, 14, 15), (16, 17, 18, 19)]
    assert in_events(20, (20, 400)) == []
    assert in_events(100, (12, 15), (8, 13)) == [(8, 9, 10, 11), (12, 13, 14, 15)]


def test_events_with_the_same_window_give_one_clip() -> None:
    assert in_events(100, (0, 0), (1, 1)) == [(0, 1, 2, 3)]
    assert in_events(3, (0, 0), (2, 2)) == [(0, 1, 2, 2)]


def test_no_events_are_the_whole_video() -> None:
    assert in_events(8) == [(0, 1, 2, 3), (4, 5, 6, 7)]


def test_events_in_resampled_time() -> None:
    sampling = SamplingConfig(mode="annotated", clip_len=4, fps=5)
    clips = VideoClips(100, sampling, timestamps_seconds=[i / 10 for i in range(100)], events=[(20, 35)])
    assert list(clips) == [(20, 22, 24, 26), (28, 30, 32, 34)]


@pytest.mark.parametrize("seed", range(20))
def test_clips_of_events_never_step_back(seed: int) -> None:
    """Frames are decoded in one pass that drops those before the next clip."""
    rng = np.random.default_rng(seed)
    events = [(int(a), int(a + b)) for a, b in zip(rng.integers(0, 120, 6), rng.integers(0, 30, 6), strict=True)]
    clips = list(VideoClips(100, SamplingConfig(mode="annotated", clip_len=16), events=events))
    assert all(a[0] <= b[0] and a[-1] <= b[-1] for a, b in itertools.pairwise(clips))
    assert all(0 <= clip[0] <= clip[-1] < 100 for clip in clips)


# ----- squares --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resize", ["squash", "crop", "letterbox"])
@pytest.mark.parametrize("size", [(240, 320), (320, 240), (100, 100), (3, 4000), (97, 53), (1, 1)])
def test_crop_covers_and_letterbox_fits(resize: str, size: tuple[int, int]) -> None:
    height, width = scaled_size(*size, to_height=112, to_width=112, resize=resize)
    assert min(height, width) >= (112 if resize == "crop" else 1)
    assert max(height, width) <= (112 if resize == "letterbox" else 112 * 4000)
    assert 112 in (height, width)
    if min(size) > 50 and resize != "squash":
        assert height / width == pytest.approx(size[0] / size[1], rel=0.01)
    placed = place_frame(np.full((height, width, 3), 9, np.uint8), 112, 112)
    assert placed.shape == (112, 112, 3)
    assert (placed == 9).sum() == 3 * min(height, 112) * min(width, 112)


@pytest.mark.parametrize(
    ("size", "sample_aspect", "shown"),
    [
        ((576, 720), Fraction(16, 15), (576, 768)),  # PAL, 4:3
        ((576, 720), 64 / 45, (576, 1024)),  # PAL, 16:9
        ((288, 704), Fraction(6, 11), (288, 384)),  # one field of a picture
        ((240, 320), 1, (240, 320)),
    ],
)
@pytest.mark.parametrize("resize", ["squash", "crop", "letterbox"])
def test_non_square_pixels_give_the_shape_that_a_player_shows(
    resize: str, size: tuple[int, int], sample_aspect: Fraction | float, shown: tuple[int, int]
) -> None:
    to = {"to_height": 112, "to_width": 100}
    scaled = scaled_size(*size, **to, resize=resize, sample_aspect=sample_aspect)
    assert scaled == scaled_size(*shown, **to, resize=resize)


def test_the_middle_is_kept() -> None:
    ramp = np.arange(10, dtype=np.uint8)[None, :, None] * np.ones((4, 1, 3), np.uint8)
    assert place_frame(ramp, 4, 4)[0, :, 0].tolist() == [3, 4, 5, 6]
    assert place_frame(ramp, 6, 10)[:, 5, 0].tolist() == [0, 5, 5, 5, 5, 0]
