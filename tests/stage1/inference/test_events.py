from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stage1.inference.events import (
    ClipScores,
    EventConfig,
    best_overlap,
    event_spans,
    find_events,
    find_spans,
    frames_at,
    raised_threshold,
    second_scores,
    smoothed,
)
from stage1.metrics.clips import Array
from vidshard.util.errors import UserError


def dense(confidences: list[float], *, fps: float = 16.0, clip_len: int = 16, **changes: Any) -> ClipScores:
    """Return consecutive windows of `clip_len` frames."""
    firsts = np.arange(len(confidences)) * clip_len
    fields: dict[str, Any] = {
        "confidences": np.array(confidences),
        "first_frames": firsts,
        "last_frames": firsts + clip_len - 1,
        "start_seconds": firsts / fps,
        "last_seconds": (firsts + clip_len - 1) / fps,
        "num_frames": len(confidences) * clip_len,
        "fps": fps,
    }
    return ClipScores(**{**fields, **changes})


def test_a_second_has_the_mean_of_its_clips_by_overlap() -> None:
    assert second_scores(dense([0.1, 0.9, 0.5])).tolist() == pytest.approx([0.1, 0.9, 0.5])
    # At 32 frames a second two clips share a second; at 8, a clip fills two.
    assert second_scores(dense([0.2, 0.4, 0.6], fps=32)).tolist() == pytest.approx([0.3, 0.6])
    assert second_scores(dense([0.2, 0.4], fps=8)).tolist() == pytest.approx([0.2, 0.2, 0.4, 0.4])
    # A clip of 1.5 s: the second second is half its and half the next one's.
    assert second_scores(dense([0.2, 0.6], fps=10, clip_len=15)).tolist() == pytest.approx([0.2, 0.4, 0.6])


def test_overlapping_clips_and_gaps() -> None:
    clips = dense([0.0, 1.0], start_seconds=np.array([0.0, 0.5]), last_seconds=np.array([15 / 16, 23 / 16]))
    assert second_scores(clips)[0] == pytest.approx(0.5 / 1.5)
    far = dense([0.3, 0.7], start_seconds=np.array([0.0, 3.0]), last_seconds=np.array([15 / 16, 3 + 15 / 16]))
    assert second_scores(far).tolist() == pytest.approx([0.3, np.nan, np.nan, 0.7], nan_ok=True)


def test_a_video_without_a_scored_clip_has_no_score() -> None:
    clips = dense([])
    scores, events = find_events(clips, threshold=0.5, config=EventConfig())
    assert np.isnan(scores).all()
    assert (len(scores), events) == (1, [])


def test_one_clip_spread_over_a_video_gives_one_score() -> None:
    clips = dense(
        [0.8],
        first_frames=np.array([0]),
        last_frames=np.array([95]),
        start_seconds=np.array([0.0]),
        last_seconds=np.array([95 / 16]),
        num_frames=96,
    )
    scores, (event,) = find_events(clips, threshold=0.5, config=EventConfig())
    assert scores.tolist() == [0.8] * 6
    assert (event.start_frame, event.end_frame, event.end_seconds, event.peak_confidence) == (0, 95, 6.0, 0.8)


def test_the_times_of_clips_that_do_not_lie_on_seconds_are_exact() -> None:
    rng = np.random.default_rng(0)
    starts = np.sort(rng.uniform(0, 9, 40))
    confidences, lengths = rng.uniform(0, 1, 40), rng.uniform(0.1, 3, 40)
    clips = dense(confidences.tolist(), start_seconds=starts, last_seconds=starts + lengths, num_frames=0)
    ends = starts + lengths + 1 / 16
    for second, score in enumerate(second_scores(clips)[:-1]):
        overlap = np.clip(np.minimum(ends, second + 1) - np.maximum(starts, second), 0, None)
        expected = (overlap * confidences).sum() / overlap.sum() if overlap.sum() else np.nan
        assert score == pytest.approx(expected, nan_ok=True)


def test_hysteresis() -> None:
    def spans(scores: list[float]) -> list[tuple[int, int]]:
        return find_spans(scores, high=0.8, low=0.5)

    assert spans([0.5, 0.8, 0.5, 0.4, 0.7, 0.4, 0.9]) == [(0, 3), (6, 7)]
    assert spans([0.7] * 5) == []
    assert spans([np.nan, 0.9, np.nan, 0.6, np.nan]) == [(1, 4)]  # a gap neither ends an event nor is its edge
    assert spans([np.nan] * 3) == []
    assert spans([]) == []


def test_short_events_are_dropped_except_one_that_fills_the_video() -> None:
    def spans(scores: list[float], min_seconds: float) -> list[tuple[int, int]]:
        config = EventConfig(smooth_seconds=1, top_share=1, min_seconds=min_seconds)
        return event_spans(np.array(scores), threshold=0.8, config=config)[1]

    assert spans([0.9, 0.1, 0.9, 0.9], min_seconds=1) == [(0, 1), (2, 4)]
    assert spans([0.9, 0.1, 0.9, 0.9], min_seconds=2) == [(2, 4)]
    assert spans([0.9, 0.9], min_seconds=30) == [(0, 2)]


def test_the_event_has_the_best_expected_overlap_of_all_spans() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        probabilities = rng.uniform(0, 1, rng.integers(1, 12)) ** rng.integers(1, 5)

        def overlap(first: int, end: int, p: Array = probabilities) -> float:
            shared = p[first:end].sum()
            return float(shared / (end - first + p.sum() - shared))

        spans = [(a, b) for a in range(len(probabilities)) for b in range(a + 1, len(probabilities) + 1)]
        assert overlap(*best_overlap(probabilities)) == pytest.approx(max(overlap(*span) for span in spans))


def test_an_event_reaches_the_threshold_of_its_video() -> None:
    rng = np.random.default_rng(0)
    config = EventConfig(min_seconds=2)
    for _ in range(1000):
        shape, scale = rng.uniform(0.3, 3, 2), rng.uniform(0.5, 1.2)
        raw = np.clip(rng.beta(*shape, rng.integers(20, 200)) * scale, 0, 1)
        scores, spans = event_spans(raw, threshold=0.4, config=config)
        high = raised_threshold(scores, 0.4, config.top_share)
        assert all(scores[first:end].max() >= high for first, end in spans)


def test_the_threshold_of_a_long_video_rises_until_few_seconds_reach_it() -> None:
    scores = np.array([0.55] * 280 + [0.8] * 8 + [0.6] * 12)

    def spans(top_share: float, scores: Array = scores) -> list[tuple[int, int]]:
        return event_spans(scores, threshold=0.5, config=EventConfig(smooth_seconds=1, top_share=top_share))[1]

    assert spans(1) == [(0, 300)]
    assert spans(0.02) == [(280, 288)]
    assert spans(0.02, scores * 0.6) == []  # never lower than the threshold
    assert spans(0.02, np.full(300, 0.6)) == [(0, 300)]  # the highest second always counts
    assert spans(0.02, np.array([0.55] * 5)) == [(0, 5)]  # short videos are as they were
    many = np.where(np.arange(300) % 30 < 10, 0.95, 0.1)  # a third of it, and clear: 0.95 exceeds the highest threshold
    many[0] = 0.999
    assert len(spans(0.001, many)) == 10


def test_an_event_has_frames_seconds_and_its_peak() -> None:
    clips = dense([0.1, 0.1, 0.6, 0.9, 0.6, 0.1], fps=32, clip_len=32)
    config = EventConfig(low_ratio=0.75, smooth_seconds=1, min_seconds=2)
    _, (event,) = find_events(clips, threshold=0.8, config=config)
    assert (event.start_frame, event.end_frame) == (64, 159)
    assert (event.start_seconds, event.end_seconds) == (2.0, 5.0)
    assert (event.peak_confidence, event.peak_seconds, event.mean_confidence) == (0.9, 3.0, 0.7)


def test_frames_follow_the_times_of_a_video_of_varying_rate() -> None:
    # 10 frames in the first second, then 2 a second.
    clips = dense(
        [0.5, 0.5],
        first_frames=np.array([0, 10]),
        last_frames=np.array([9, 13]),
        start_seconds=np.array([0.0, 1.0]),
        last_seconds=np.array([0.9, 2.5]),
        num_frames=14,
        fps=14 / 3,
    )
    assert frames_at(clips, np.array([0.0, 0.5, 1.0, 2.0, 3.0, 99.0])) == [0, 5, 10, 12, 14, 14]


def test_smoothing_keeps_a_constant_and_the_gaps() -> None:
    assert smoothed(np.full(7, 0.4), 5).tolist() == pytest.approx([0.4] * 7)
    scores = np.array([0.0, 1.0, np.nan, 1.0])
    assert smoothed(scores, 1).tolist() == pytest.approx(scores.tolist(), nan_ok=True)
    assert smoothed(scores, 3).tolist() == pytest.approx([0.5, 0.5, np.nan, 1.0], nan_ok=True)


@pytest.mark.parametrize(
    ("options", "text"),
    [({"low_ratio": 1.5}, "low_ratio is 1.5"), ({"smooth_seconds": -1.0}, "smooth_seconds is -1")],
)
def test_wrong_settings(options: dict[str, float], text: str) -> None:
    with pytest.raises(UserError, match=text):
        EventConfig(**options)
