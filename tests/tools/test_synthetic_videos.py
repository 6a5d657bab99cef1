"""The generator of surveillance-like videos: layout, annotations, determinism, and what an event changes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import av
import numpy as np
import pytest
from scipy.stats import ks_2samp

import synthetic_videos
from synthetic_videos import VideoConfig, draw_encounter, make_dataset, plan_dataset, read_annotations, render_video

SMALL = VideoConfig(width=64, height=48, num_frames=(24, 32))


def test_layout_and_annotations(tmp_path: Path) -> None:
    plans = make_dataset(tmp_path, num_videos={"Train": 4, "Test": 2}, config=SMALL, workers=1)

    paths = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.mp4"))
    assert paths == [
        "Test/Fighting/Fighting002_x264.mp4",
        "Test/NormalVideos/Normal_Videos003_x264.mp4",
        "Train/Fighting/Fighting001_x264.mp4",
        "Train/NormalVideos/Normal_Videos001_x264.mp4",
        "Train/NormalVideos/Normal_Videos002_x264.mp4",
        "Train/Robbery/Robbery001_x264.mp4",
    ]
    lines = (tmp_path / "temporal_annotations.txt").read_text().splitlines()
    first, last = plans[1].event or (0, 0)
    assert lines[:2] == [
        "Normal_Videos001_x264.mp4  Normal  -1  -1  -1  -1",
        f"Fighting001_x264.mp4  Fighting  {first}  {last}  -1  -1",
    ]
    windows = read_annotations(tmp_path / "temporal_annotations.txt")
    assert windows["Normal_Videos001_x264.mp4"] == []
    assert windows["Fighting001_x264.mp4"] == [(first, last)]
    assert len(windows) == 6


def test_annotations_with_two_events_are_read(tmp_path: Path) -> None:
    path = tmp_path / "annotations.txt"
    path.write_text("Arrest024_x264.mp4  Arrest  1005  2105  3000  3600  \n\n")
    assert read_annotations(path) == {"Arrest024_x264.mp4": [(1005, 2105), (3000, 3600)]}


def test_files_are_as_planned(tmp_path: Path) -> None:
    plans = make_dataset(tmp_path, num_videos={"Train": 2}, config=SMALL, workers=1)
    for plan in plans:
        with av.open(str(tmp_path / plan.path)) as container:
            stream = container.streams.video[0]
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
            assert (stream.codec_context.name, float(stream.average_rate or 0)) == ("h264", 16.0)
        expected = render_video(plan, SMALL)
        assert np.shape(frames) == expected.shape == (plan.num_frames, 48, 64, 3)
        assert np.abs(np.array(frames, np.float32) - expected).mean() < 12


def test_same_seed_same_bytes_with_any_number_of_workers(tmp_path: Path) -> None:
    for name, seed, workers in (("a", 3, 1), ("b", 3, 2), ("c", 4, 1)):
        make_dataset(tmp_path / name, num_videos={"Train": 2}, config=SMALL, seed=seed, workers=workers)
    files = {name: [p.read_bytes() for p in sorted((tmp_path / name).rglob("*.*"))] for name in "abc"}
    assert files["a"] == files["b"]
    assert files["a"] != files["c"]


def test_events_fill_10_to_40_percent_and_lie_anywhere() -> None:
    plans = [plan for plan in plan_dataset({"Train": 800}, seed=0, config=VideoConfig()) if plan.event]
    assert len(plans) == 400
    windows = np.array([plan.event for plan in plans])
    lengths = np.array([plan.num_frames for plan in plans])
    shares = (windows[:, 1] - windows[:, 0] + 1) / lengths
    assert 0.1 <= shares.min() < 0.2
    assert 0.35 < shares.max() <= 0.4
    assert windows.min() >= 1
    assert (windows[:, 1] < lengths).all()
    middles = windows.mean(1) / lengths
    assert middles.min() < 0.2
    assert middles.max() > 0.8


def test_splits_and_classes_are_balanced_and_share_no_name() -> None:
    plans = plan_dataset({"Train": 120, "Validation": 40, "Test": 60}, seed=0, config=VideoConfig())
    names = [Path(plan.path).name for plan in plans]
    assert len(set(names)) == len(names) == 220
    counts = {name: sum(plan.class_name == name for plan in plans) for name in ("NormalVideos", "Fighting", "Robbery")}
    assert counts == {"NormalVideos": 110, "Fighting": 55, "Robbery": 55}
    encounters = [plan.encounter for plan in plans if plan.class_name == "NormalVideos"]
    assert encounters.count("Fighting") == encounters.count("Robbery") == 55  # slow there, but as many of each


@pytest.mark.parametrize("position", [1, 3])  # Fighting, Robbery
def test_an_event_changes_motion_and_nothing_else(position: int) -> None:
    config = VideoConfig(noise=(0.0, 0.0))
    plan = plan_dataset({"Train": 4}, seed=0, config=config)[position]
    assert plan.event
    first, last = plan.event
    crime = render_video(plan, config)
    normal = render_video(dataclasses.replace(plan, event=None), config)

    assert np.array_equal(crime[:first], normal[:first])  # the same place and people
    changes = np.abs(np.diff(crime.astype(np.float32), axis=0)).mean((1, 2, 3))
    inside, outside = changes[first - 1 : last], np.concatenate([changes[: first - 1], changes[last:]])
    assert np.median(inside) > 3 * np.median(outside)


@pytest.mark.parametrize("encounter", synthetic_videos.CRIMES)
def test_positions_of_people_are_uninformative(encounter: str) -> None:
    # In the middle of an event and of a normal video: the same distribution of poses.
    config = VideoConfig(num_frames=(16, 20))
    poses: dict[bool, list[tuple[float, ...]]] = {False: [], True: []}
    for plan in plan_dataset({"Train": 2000}, seed=12, config=config):
        if plan.encounter == encounter:
            ((_, poses_a), (_, poses_b)), _ = draw_encounter(np.random.default_rng(plan.seed), plan, config)
            first, last = plan.event or (0, plan.num_frames - 1)
            a, b = poses_a[(first + last) // 2], poses_b[(first + last) // 2]
            poses[plan.event is not None].append((abs(a.x - b.x), a.y - b.y, a.x, a.lean, np.sin(a.stride)))
    assert len(poses[True]) == len(poses[False]) == 500
    for crime, normal in zip(zip(*poses[True], strict=True), zip(*poses[False], strict=True), strict=True):
        assert ks_2samp(crime, normal).pvalue > 0.01


def test_config_is_checked() -> None:
    with pytest.raises(ValueError, match=r"size 161x120"):
        VideoConfig(width=161)
    with pytest.raises(ValueError, match=r"num_frames \(9, 8\)"):
        VideoConfig(num_frames=(9, 8))
    with pytest.raises(ValueError, match="event_fraction"):
        VideoConfig(event_fraction=(0.5, 1.5))


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert synthetic_videos.main([str(tmp_path), "--videos", "Train=2", "--workers", "1"]) == 0
    assert "2 videos" in capsys.readouterr().out
    assert len(list(tmp_path.rglob("*.mp4"))) == 2
