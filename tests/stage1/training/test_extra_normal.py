"""Extra normal footage: which clips an epoch takes of which camera, and what of it reaches the fit and run.toml."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fake_shards import random_clips, write_shards
from stage1.training.clip_objective import ClipObjective
from stage1.training.config import TrainConfig, make_config, read_toml, to_toml
from stage1.training.data import EXTRA_SHARE, TrainData, open_data
from vidshard.util.errors import UserError

OWN, CAMERA_A, CAMERA_B = 48, 30, 10  # clips


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Labelled videos of one clip, 24 of each class, and a normal set of two cameras with clips in several videos."""
    write_shards(tmp_path / "own", random_clips(OWN), [0, 1] * (OWN // 2))
    count = CAMERA_A + CAMERA_B
    cameras = ["A"] * CAMERA_A + ["B"] * CAMERA_B
    write_shards(tmp_path / "normal", random_clips(count), [0] * count, clips_per_video=5, source_groups=cameras)
    return {name: tmp_path / name for name in ("own", "normal")}


def config(folders: dict[str, Path], **options: Any) -> TrainConfig:
    options = {"val_fraction": 0.0, "extra_normal": (folders["normal"],)} | options
    return TrainConfig(shards=(folders["own"],), **options)


def rows_of_epoch(data: TrainData, settings: TrainConfig, epoch: int) -> np.ndarray[Any, Any]:
    loader = ClipObjective(config=settings).training_loader(data, torch.device("cpu"))
    loader.set_epoch(epoch)
    return loader.order()


def test_every_camera_gives_as_many_clips_and_others_in_the_next_epoch(folders: dict[str, Path]) -> None:
    settings = config(folders)
    data = open_data(settings)
    each = round(EXTRA_SHARE * OWN / 2 / 2)
    epochs = [rows_of_epoch(data, settings, epoch) for epoch in range(CAMERA_A // each)]
    for rows in epochs:
        assert sorted(rows[rows < OWN].tolist()) == list(range(OWN))  # the labelled clips, each once
        camera = Counter("A" if row < OWN + CAMERA_A else "B" for row in rows[rows >= OWN].tolist())
        assert camera == {"A": each, "B": each}
    taken = np.concatenate([rows[(rows >= OWN) & (rows < OWN + CAMERA_A)] for rows in epochs])
    assert sorted(taken.tolist()) == list(range(OWN, OWN + CAMERA_A))  # all of A before any comes again


def test_extra_clips_are_normal_and_never_held_out(folders: dict[str, Path]) -> None:
    data = open_data(config(folders, val_fraction=0.25))
    assert data.labels[OWN:].tolist() == [0] * (CAMERA_A + CAMERA_B)
    assert data.validation_rows.max() < OWN
    assert data.validation is data.train
    assert data.extra_rows.tolist() == list(range(OWN, OWN + CAMERA_A + CAMERA_B))
    assert any("40 clips of 2 cameras" in note for note in data.notes)


def test_recordings_held_out_for_validation_are_no_extra_footage(tmp_path: Path) -> None:
    labels = [0, 1] * 12
    recordings = [f"R{i // 2}" for i in range(24)]
    own = write_shards(tmp_path / "own", random_clips(24), labels, source_groups=recordings)
    extra = write_shards(tmp_path / "extra", random_clips(12), [0] * 12, source_groups=[f"R{i}" for i in range(12)])
    data = open_data(TrainConfig(shards=(own,), extra_normal=(extra,), val_fraction=0.25))
    held = {data.train.recording_or_video(video) for video in data.train.videos[data.validation_rows].tolist()}
    trained = {data.train.recording_or_video(video) for video in data.train.videos[data.extra_rows].tolist()}
    assert held
    assert trained == {f"group R{i}" for i in range(12)} - held
    assert any(f"{len(held)} clips of recordings that are held out" in note for note in data.notes)


def test_test_footage_among_the_extra_is_warned_about(folders: dict[str, Path], tmp_path: Path) -> None:
    test = write_shards(tmp_path / "test", random_clips(4), [0] * 4, split="Test")
    data = open_data(config(folders, extra_normal=(test,)))
    assert any("is marked Test" in warning for warning in data.warnings)


def test_videos_of_one_name_in_two_sets_are_two_cameras(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("x", "y"):
        write_shards(tmp_path / name, random_clips(4), [0] * 4, clips_per_video=4)
    data = open_data(config(folders, extra_normal=(tmp_path / "x", tmp_path / "y")))
    assert any("8 clips of 2 cameras" in note for note in data.notes)


def test_the_gap_between_frames_is_that_of_the_labelled_clips(folders: dict[str, Path], tmp_path: Path) -> None:
    far = write_shards(tmp_path / "far", random_clips(200), [0] * 200, frame_gap_seconds=0.15)
    assert open_data(config(folders, extra_normal=(far,))).frame_gap_seconds() == pytest.approx(0.1)


def test_the_fit_of_the_motion_features_takes_as_many_of_each_camera(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(folders)
    objective = ClipObjective(config=settings)
    model = objective.make_model()
    seen: list[int] = []
    assert model.motion_classifier is not None
    monkeypatch.setattr(model.motion_classifier, "fit", lambda features, labels, fit: seen.extend(labels.tolist()))
    objective.fit(model, open_data(settings), torch.device("cpu"))
    assert Counter(seen) == {0: OWN // 2 + 2 * round(EXTRA_SHARE * OWN / 4), 1: OWN // 2}


def test_crimes_among_extra_footage_and_bags_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="24 crime clips, expected normal ones only"):
        open_data(config(folders, extra_normal=(folders["own"],)))
    with pytest.raises(UserError, match="cannot be combined"):
        config(folders, bags="topk")


def test_the_file_of_the_run_names_the_extra_sets(folders: dict[str, Path], tmp_path: Path) -> None:
    for extra in [(folders["normal"],), (folders["normal"], folders["own"]), ()]:
        settings = config(folders, extra_normal=extra)
        (tmp_path / "run.toml").write_text(to_toml(settings))
        assert make_config(read_toml(tmp_path / "run.toml")).extra_normal == extra
