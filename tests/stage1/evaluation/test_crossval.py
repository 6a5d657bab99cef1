"""Cross-validation keeps recordings together, resumes where it stopped, and shows the result of a leaking split."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from fake_shards import write_shards
from schemas import check_json
from stage1.cli.main import main
from stage1.evaluation import baselines
from stage1.evaluation import crossval as module
from stage1.evaluation.crossval import CrossvalConfig, crossval, stratified_folds
from stage1.training import loop as train_module
from stage1.training.config import TrainConfig
from vidshard.util.errors import UserError

LABELS = [0, 1] * 6


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NUM_RESAMPLES", 20)


def _shards(folder: Path, *, seed: int = 0, groups: list[str | None] | None = None, split: str = "Train") -> Path:
    """Twelve clips of six recordings: crimes are brighter."""
    clips = np.random.default_rng(seed).integers(0, 128, (12, 4, 16, 16, 3), np.uint8)
    clips[1::2] += 100
    names = groups if groups is not None else [f"{split}-{i // 2}" for i in range(12)]
    return write_shards(folder, clips, LABELS, source_groups=names, split=split)


def _config(tmp_path: Path, *shards: Path, **options: object) -> CrossvalConfig:
    fields = {"folds": 2, "seeds": 2, "out": tmp_path / "out", "shortcuts": False, **options}
    training = TrainConfig(shards=shards[0], epochs=1, device="cpu")
    return CrossvalConfig(shards=shards, training=training, **fields)  # type: ignore[arg-type]


def test_folds_hold_whole_groups_and_every_row_once() -> None:
    labels, groups = np.tile([0, 1], 30), np.repeat(np.arange(12), 5)
    folds = stratified_folds(labels, groups, folds=4, seed=3)
    assert sorted(np.concatenate(folds).tolist()) == list(range(60))
    for fold in folds:
        assert not set(groups[fold]) & set(np.delete(groups, fold))
        assert 0.3 < labels[fold].mean() < 0.7
    assert [f.tolist() for f in folds] == [f.tolist() for f in stratified_folds(labels, groups, folds=4, seed=3)]
    with pytest.raises(UserError, match=r"there are 12 recordings, expected at least as many as `folds` \(20\)"):
        stratified_folds(labels, groups, folds=20, seed=0)


def test_a_run_resumes_where_it_stopped_and_writes_out_of_fold_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, validation = _shards(tmp_path / "Train"), _shards(tmp_path / "Val", seed=1, split="Validation")
    test = _shards(tmp_path / "Test", seed=2, split="Test")
    config = _config(tmp_path, train, validation, test_shards=test, save_attention=True)
    trained: list[tuple[int, set[int]]] = []
    really_train = module.train

    def spy(training: TrainConfig, *, data: module.TrainData) -> Path:
        trained.append((training.seed, set(data.train_rows.tolist())))
        if len(trained) == 4:
            raise KeyboardInterrupt
        return really_train(training, data=data)

    monkeypatch.setattr(module, "train", spy)
    with pytest.raises(KeyboardInterrupt):
        crossval(config)
    table = crossval(config)
    check_json(config.out / "crossval.json", "crossval")
    check_json(config.out / "run.json", "crossval_run")
    # Two seeds of two folds, two seeds on the test set, two folds that leak; the fourth was begun twice.
    assert len(trained) == 9
    groups = np.repeat(np.arange(12), 2)
    for _, rows in trained[:5]:
        assert not set(groups[sorted(rows)]) & set(groups[sorted(set(range(24)) - rows)])
    assert trained[5][1] == set(range(24))

    result = json.loads((config.out / module.RESULT_NAME).read_text())
    assert [(row["split"], row["seed"]) for row in result["rows"]] == [
        ("grouped", 0),
        ("grouped", 1),
        ("grouped", None),
        ("test", 0),
        ("test", 1),
        ("test", None),
        ("random", 0),
    ]
    mean = result["rows"][2]["auc"]
    assert mean["num_units"] == 12
    assert mean["value"] == pytest.approx(np.mean([row["auc"]["value"] for row in result["rows"][:2]]))
    assert "RANDOM SPLIT" in table
    assert "It leaks" in table
    for number, name in enumerate(("Train", "Val")):
        folder = config.out / module.OUT_OF_FOLD / f"{number}-{name}"
        assert len((folder / "predictions.csv").read_text().splitlines()) == 13
        assert (folder / "run.json").is_file()
    left = {path.name for path in config.out.rglob("*.pt")} - {"stage1_attention_data.pt"}
    assert left == {"binary_stage1_with_attention.pt"}  # of the first seed, for --save-attention
    assert crossval(config) == table
    assert len(trained) == 9
    assert not list(config.out.rglob("earlier-*"))  # no call was a second run


def test_a_signal_ends_it_with_exit_code_75_and_the_same_command_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [
        "crossval",
        "--shards",
        str(_shards(tmp_path / "Train")),
        "--folds",
        "2",
        "--seeds",
        "1",
        "--epochs",
        "1",
    ]
    command += ["--no-random-split", "--no-shortcuts", "--device", "cpu", "--out", str(tmp_path / "out")]
    begin = train_module.begin

    def begin_with_stop(run: train_module.TrainingRun) -> None:
        run.stop.received = "SIGTERM"
        begin(run)

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "begin", begin_with_stop)
        stopped = CliRunner().invoke(main, command)
    assert stopped.exit_code == 75
    assert stopped.stderr.splitlines()[-1] == "stopped by SIGTERM after 1 step; run the same command again to continue"
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0
    assert "Resumed in epoch 1 of 1, after 1 step" in done.output


def test_another_configuration_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    shards = _shards(tmp_path / "Train")
    config = _config(tmp_path, shards, seeds=1, random_split=False)
    crossval(config)
    other = _config(tmp_path, shards, seeds=1, random_split=False, folds=3)
    with pytest.raises(UserError, match=r"different options or data \(`folds` 2, got 3\); choose another `out`"):
        crossval(other)
    other = dataclasses.replace(config, training=dataclasses.replace(config.training, lr=0.5))
    with pytest.raises(UserError, match=r"different options or data \(`lr` 0.001, got 0.5\); choose another `out`"):
        crossval(other)


def test_a_call_that_is_refused_does_not_take_the_folder(tmp_path: Path) -> None:
    shards = _shards(tmp_path / "Train")
    with pytest.raises(UserError, match="there are 6 recordings"):
        crossval(_config(tmp_path, shards, folds=7))
    crossval(_config(tmp_path, shards, seeds=1, random_split=False))


def test_sets_with_the_same_videos_are_reported_before_training(
    tmp_path: Path,
) -> None:
    one, other = _shards(tmp_path / "One", groups=[None] * 12), _shards(tmp_path / "Two", seed=1)
    with pytest.raises(UserError, match=r"One and .*One are the same set"):
        crossval(_config(tmp_path, one, one))
    with pytest.raises(UserError, match=r"both contain a video 'Train/Fighting/video-001.mp4', so `save_attention`"):
        crossval(_config(tmp_path, one, other, save_attention=True))
    again = _shards(tmp_path / "Again", groups=[f"group {i}" for i in range(12)])
    table = crossval(_config(tmp_path, one, again, seeds=1, random_split=False))
    assert "WARNING: 12 of 12 videos of" in table
    assert "the score of the other is too optimistic" in table
    marked = TrainConfig(shards=one, marks=tmp_path / "marks.csv")
    with pytest.raises(UserError, match="stage1 crossval uses the labels of the shards"):
        CrossvalConfig(shards=(one,), training=marked)


@pytest.mark.slow
def test_shortcuts_use_the_same_folds_and_a_model_that_does_not_beat_them_is_flagged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = {"first frame": baselines.first_frame}  # two of them take a third of the time of all
    monkeypatch.setattr(baselines, "CLIP_FEATURES", some)
    train, validation = _shards(tmp_path / "Train"), _shards(tmp_path / "Val", seed=1, split="Validation")
    test = _shards(tmp_path / "Test", seed=2, split="Test")
    config = _config(tmp_path, train, validation, test_shards=test, seeds=1, random_split=False, shortcuts=True)
    table = crossval(config)
    check_json(config.out / "crossval.json", "crossval")
    result = json.loads((config.out / module.RESULT_NAME).read_text())
    names = ["majority", "file metadata", "first frame"]
    assert [(row["split"], row["name"]) for row in result["shortcuts"]] == [
        (kind, name) for kind in ("grouped", "test") for name in names
    ]
    of = {(row["split"], row["name"]): row for row in result["shortcuts"]}
    for kind in ("grouped", "test"):
        assert of[kind, "first frame"]["auc"]["value"] == 1.0  # crimes are brighter: no model can be above it
        assert of[kind, "majority"]["auc"]["value"] == of[kind, "file metadata"]["auc"]["value"] == 0.5
        assert of[kind, "file metadata"]["auc"]["num_units"] == (12 if kind == "grouped" else 6)
    assert "Shortcuts, first seed of: 2 folds, 24 clips" in table
    for kind in ("grouped", "test"):
        assert f"FLAG: not above the shortcut 'first frame': AUC ({kind}, first seed) differs by" in table


def test_what_would_leak_or_cannot_be_measured_is_said(tmp_path: Path) -> None:
    shards = _shards(tmp_path / "Train")
    with pytest.raises(UserError, match=r"6 recordings of .*Again are also trained on .*'Train-0'"):
        crossval(_config(tmp_path, shards, test_shards=_shards(tmp_path / "Again", seed=5)))
    unknown = _shards(tmp_path / "NoGroups", groups=[None] * 12)
    table = crossval(_config(tmp_path, unknown, seeds=1, random_split=False))
    assert "WARNING: 12 of 12 clips have no known recording" in table
    with pytest.raises(UserError, match=r"seed is 4294967295, expected at most 4294967295 with all repetitions \(2\)"):
        CrossvalConfig(shards=(shards,), training=TrainConfig(shards=shards, seed=2**32 - 1), seeds=2)
    with pytest.raises(UserError, match="folds is 1, expected at least 2"):
        _config(tmp_path, shards, folds=1)
