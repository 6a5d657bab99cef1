"""Nested cross-validation: what it holds out, what it chooses, and that it resumes where it stopped."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import nested_crossval
from fake_shards import moving_clips, write_shards


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    clips, labels = moving_clips(16)
    recordings = [f"recording {i // 4}" for i in range(16)]
    shards = write_shards(tmp_path / "shards", clips, labels, source_groups=recordings)
    options = (
        "--folds 2 --inner-folds 2 --seeds 2 --set epochs=1 --set model.channels=[8] --set model.temporal_stages=[]"
    )
    line = ["nested_crossval.py", "--shards", str(shards), "--out", str(tmp_path / "out"), *options.split()]
    monkeypatch.setattr(sys, "argv", line)
    return line


def test_every_clip_is_held_out_once_and_finished_trainings_are_kept(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [*command, "--minutes", "0"])
    with pytest.raises(SystemExit, match="continues with outer0-seed0"):
        nested_crossval.main()
    monkeypatch.setattr(sys, "argv", command)
    nested_crossval.main()
    first = capsys.readouterr().out
    assert first.count(" done after ") == 2 * 2 + 2 * 2  # outer with each seed, inner with one
    held = [json.loads((tmp_path / "out" / f"outer{fold}-seed0.json").read_text())["rows"] for fold in (0, 1)]
    assert sorted(held[0] + held[1]) == list(range(16))
    inner = [json.loads((tmp_path / "out" / f"outer0-inner{i}.json").read_text())["rows"] for i in (0, 1)]
    assert sorted(inner[0] + inner[1]) == held[1]  # nothing of the held-out fold

    (tmp_path / "out" / "outer1-seed1.json").unlink()
    nested_crossval.main()
    again = capsys.readouterr().out
    assert again.count(" done after ") == 1
    assert again.splitlines()[-1] == first.splitlines()[-1]
    result = json.loads((tmp_path / "out" / "nested.json").read_text())
    assert set(result["shares"].values()) <= set(nested_crossval.SHARES)
    assert result["scores"]["features"]["auc"]["value"] > 0.9  # flicker is what the features see best
    assert [one["composites"] for one in result["splices"]["frame_auc"]] == [64] * 4  # 8 crimes, 4 each, 2 seeds


def test_the_share_is_that_with_the_best_ranking_of_inner_clips() -> None:
    clips = nested_crossval.GroupedClips(
        reader=type("Reader", (), {"labels": np.array([0, 0, 1, 1])})(),  # type: ignore[arg-type]
        groups=np.array([0, 1, 0, 1]),
        num_grouped=4,
        num_groups=2,
    )
    right, wrong = [-1.0, -2, 3, 4], [5.0, 4, -3, -4]
    run = {"rows": [0, 1, 2, 3], "network": wrong, "features": right, "fold": 0, "seed": 0}
    assert nested_crossval.chosen_shares(clips, {0: [run]}) == {0: 0.75}
    assert nested_crossval.chosen_shares(clips, {0: [run | {"network": right, "features": wrong}]}) == {0: 0.0}
