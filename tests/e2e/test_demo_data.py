"""The demo's videos require motion over time, not a shortcut, and its figures are computed correctly."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

import demo
import shortcut_baselines
import synthetic_videos
from synthetic_videos import VideoConfig

# 200 held-out videos: chance is 50 % with a standard deviation of 3.5 %. Shorter than the demo's, to be quick.
NUM_VIDEOS = {"Train": 200, "Test": 200}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_only_motion_distinguishes_the_classes(tmp_path: Path) -> None:
    config = VideoConfig(num_frames=(32, 40))
    synthetic_videos.make_dataset(tmp_path, num_videos=NUM_VIDEOS, seed=1, config=config)
    accuracies = shortcut_baselines.measure(tmp_path)

    motion = {name: value for name, value in accuracies.items() if name.startswith("motion")}
    shortcuts = {name: value for name, value in accuracies.items() if name not in motion}
    assert len(shortcuts) == 9
    assert {name: value for name, value in shortcuts.items() if value > 0.6} == {}
    assert min(motion.values()) >= 0.8, "the data cannot be solved by motion either, so the test above shows nothing"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_baselines_find_a_shortcut_where_there_is_one(tmp_path: Path) -> None:
    # In this set the crime videos come from darker cameras with more noise: file size and one frame suffice.
    config = VideoConfig(num_frames=(32, 40), noise=(2.0, 2.5))
    plans = synthetic_videos.plan_dataset({"Train": 48, "Test": 30}, seed=2, config=config)
    lines = []
    for plan in plans:
        frames = synthetic_videos.render_video(plan, config)
        if plan.event:
            noisy = VideoConfig(num_frames=(32, 40), noise=(12.0, 12.5))
            frames = synthetic_videos.render_video(plan, noisy) // 2
        path = tmp_path / plan.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(synthetic_videos.encode(frames, plan, config))
        lines.append(plan.annotation + "\n")
    (tmp_path / synthetic_videos.ANNOTATIONS_NAME).write_text("".join(lines))

    accuracies = shortcut_baselines.measure(tmp_path)
    assert accuracies["file facts, random forest"] >= 0.8
    assert accuracies["first frame, logistic regression"] >= 0.8
    assert accuracies["frame of the event, CNN"] >= 0.8


@pytest.mark.parametrize(
    ("accuracy", "attention", "texts"),
    [
        (0.9, 0.6, []),
        (0.89, 0.6, ["the accuracy is 89.0%, expected at least 90%"]),
        (1.0, 0.59, ["the attention on the event is 59.0%, expected at least 60%"]),
        (1.0, float("nan"), ["the attention on the event is nan%, expected at least 60%"]),
    ],
)
def test_the_demo_fails_below_its_figures(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    accuracy: float,
    attention: float,
    texts: list[str],
) -> None:
    result = demo.Result(num_videos=100, accuracy=accuracy, num_events=9, attention=attention, event_frames=0.2)
    monkeypatch.setattr(demo, "remove_last_run", lambda _: None)
    monkeypatch.setattr(demo, "run", lambda *_: (0, 1.0))
    monkeypatch.setattr(demo, "judge", lambda _: result)
    monkeypatch.setattr(synthetic_videos, "make_dataset", lambda _: None)
    assert demo.main() == bool(texts)
    assert capsys.readouterr().err == "".join(f"The demo fails: {text}.\n" for text in texts)


def test_the_figures_of_the_demo(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "temporal_annotations.txt").write_text(
        "a.mp4  Fighting  10  19  -1  -1\nb.mp4  Robbery  0  30  -1  -1\nc.mp4  Normal  -1  -1  -1  -1\n"
    )
    output = tmp_path / "stage1_output"
    output.mkdir()
    rows = [("Fighting/a.mp4", 1, 1), ("Robbery/b.mp4", 1, 1), ("NormalVideos/c.mp4", 0, 1), ("Robbery/d.mp4", 1, 0)]
    with open(output / "predictions.csv", "w", newline="") as file:
        csv.writer(file).writerows([("source", "label", "predicted"), *rows])
    detections = [
        # two of eight frames in the event, with 0.5 + 0.25 of the attention
        {"source": "Fighting/a.mp4", "label": 1, "frame_indices": [0, 5, 9, 10, 19, 20, 25, 31]},
        {"source": "Robbery/b.mp4", "label": 1, "frame_indices": [0, 5, 9, 10, 19, 20, 25, 31]},  # nearly all event
        {"source": "NormalVideos/c.mp4", "label": 0, "frame_indices": [0, 5, 9, 10, 19, 20, 25, 31]},  # false alarm
    ]
    attention = {"attention_weights": [0.25, 0, 0, 0.5, 0.25, 0, 0, 0]}
    (output / "anomalies.json").write_text(json.dumps([{**detection, **attention} for detection in detections]))

    result = demo.judge(tmp_path)
    assert (result.num_videos, result.accuracy) == (4, 0.5)
    assert (result.num_events, result.attention, result.event_frames) == (1, 0.75, 0.25)
    assert "accuracy 50.0%" in demo.report(result, {"stage1 train": 61.2})
    assert "    61 s  in all" in demo.report(result, {"stage1 train": 61.2})
