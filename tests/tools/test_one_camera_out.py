"""One camera out: the camera that is scored is in no training, and finished trainings are kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import one_camera_out
from fake_shards import moving_clips, write_shards


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    clips, labels = moving_clips(16)
    recordings = [f"recording {i // 4}" for i in range(16)]
    sets = {"train": (clips, labels), "test": (clips, labels), **{name: (clips[:4], [0] * 4) for name in ("a", "b")}}
    folders = {
        name: write_shards(tmp_path / name, *of_set, source_groups=recordings[: len(of_set[1])])
        for name, of_set in sets.items()
    }
    line = ["one_camera_out.py", "--shards", folders["train"], "--test", folders["test"], "--out", tmp_path / "out"]
    line += ["--camera", folders["a"], "--camera", folders["b"], "--set", "epochs=1", "--set", "model.channels=[8]"]
    line += ["--set", "model.temporal_stages=[]"]
    monkeypatch.setattr(sys, "argv", list(map(str, line)))
    return list(map(str, line))


def test_each_camera_is_scored_by_a_model_that_saw_the_others(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[list[str]] = []
    train = one_camera_out.train

    def spy(config: Any) -> Path:
        seen.append([place.name for place in config.extra_normal])
        return train(config)

    monkeypatch.setattr(one_camera_out, "train", spy)
    one_camera_out.main()
    assert seen == [[], ["b"], ["a"]]
    first = json.loads((tmp_path / "out" / "cameras.json").read_text())
    assert first["a"]["windows"] == 4
    assert "a: 4 windows" in capsys.readouterr().out
    one_camera_out.main()
    assert len(seen) == 3
    assert json.loads((tmp_path / "out" / "cameras.json").read_text()) == first


def test_the_threshold_never_falls_below_a_half_and_keeps_to_the_share() -> None:
    assert one_camera_out.threshold_for([[0.1, 0.2], [0.3, 0.4]]) == 0.5
    scores = np.linspace(0, 1, 101).tolist()
    assert one_camera_out.threshold_for([scores]) == pytest.approx(0.91)
