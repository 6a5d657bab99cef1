"""Evaluation of a checkpoint on shards: levels, choices made on validation only, baselines, and refusals."""

from __future__ import annotations

import csv
import json
import tempfile
import uuid
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from click.testing import CliRunner

import fake_shards
from pictures import count_pixels, panel, read_picture
from schemas import check, check_json
from stage1.cli.main import main
from stage1.data.reader import ClipReader
from stage1.evaluation import baselines, plots
from stage1.evaluation import run as evaluation
from stage1.evaluation.run import EvaluateConfig, evaluate
from stage1.inference.run import InferConfig, infer
from stage1.metrics import clips as metrics
from stage1.metrics.calibration import Calibration, parse_target
from stage1.model.checkpoint import load_checkpoint
from stage1.model.network import ModelConfig
from stage1.training.config import TrainConfig
from stage1.training.loop import train
from vidshard.storage.urls import Url
from vidshard.util.errors import UserError

SHAPE = (8, 16, 16)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Shards of all splits, and a model that learnt to distinguish the classes."""
    folder = tmp_path_factory.mktemp("run")
    paths = {}
    for seed, (name, split, count) in enumerate(
        (("train", "Train", 32), ("val", "Validation", 24), ("test", "Test", 24))
    ):
        clips, labels = fake_shards.moving_clips(count, shape=SHAPE, seed=seed)
        groups = [f"{name}{i // 4}" for i in range(count)]
        paths[name] = fake_shards.write_shards(
            folder / name, clips, labels, split=split, source_groups=groups, prefix=name
        )
    model = ModelConfig(channels=(8, 8), temporal_stages=(0,), groups=2, dropout=0.0)
    paths["checkpoint"] = train(
        TrainConfig(shards=paths["train"], val_shards=paths["val"], out=folder / "run", epochs=4, lr=1e-2, model=model)
    )
    return paths


def config(run: dict[str, Path], out: Path, **options: Any) -> EvaluateConfig:
    return EvaluateConfig(
        **{"checkpoint": run["checkpoint"], "shards": run["test"], "out": out, "num_resamples": 50, **options}
    )


def copy_checkpoint(run: dict[str, Path], folder: Path) -> Path:
    path = folder / "copy.pt"
    path.write_bytes(run["checkpoint"].read_bytes())
    return path


def test_the_scores_are_those_of_infer_to_the_bit(run: dict[str, Path], tmp_path: Path) -> None:
    path = copy_checkpoint(run, tmp_path)
    evaluation.store(path, Calibration(temperature=1.7, shift=0.3, prior=0.4), 0.5, parse_target("f1"))
    infer(InferConfig(checkpoint=path, shards=run["test"], out=tmp_path / "out", batch_size=5, threads=2))
    with open(tmp_path / "out" / "predictions.csv", newline="") as file:
        written = [float(row["confidence"]) for row in csv.DictReader(file)]
    checkpoint = load_checkpoint(path)
    clips = evaluation.score_clips(ClipReader(run["test"]), checkpoint, config(run, tmp_path, batch_size=5))
    scores = evaluation.shown_scores(checkpoint.build_calibration(), clips.scores)
    assert scores[np.argsort(clips.rows)].tolist() == written
    assert len(set(written)) > 12


def test_every_level_with_intervals_and_a_picture(run: dict[str, Path], tmp_path: Path) -> None:
    report = evaluate(config(run, tmp_path, val_shards=run["val"]))
    fields = json.loads((tmp_path / "evaluation.json").read_text())
    check(fields, "evaluation")
    for level in ("clips", "videos"):
        row = fields["levels"][level]
        assert (row["num"], row["num_crime"]) == (24, 12)
        assert row["auc"]["num_units"] == 6
        assert row["auc"]["value"] >= 0.9
        assert row["pairs_within_recording"] == 6 * 2 * 2
        assert row["auc_within_recording"]["value"] >= 0.9
    assert fields["false_alarms"]["per_hour"] is None  # a clip lasts 0.8 s
    cameras = fields["cameras"]
    assert sum(camera["clips"] for camera in cameras.values()) == 12  # the normal ones
    assert sum(camera["called_crime"] for camera in cameras.values()) == fields["levels"]["clips"]["confusion"][0][1]
    assert all(name in report.text for name in cameras)
    picture = read_picture(tmp_path / "evaluation.png")
    roc, calibration, scores, baselines = (panel(picture, *divmod(n, 2), (2, 2)) for n in range(4))
    assert min(count_pixels(roc, plots.BLUE), count_pixels(roc, plots.RED)) > 300  # clips, videos
    assert count_pixels(calibration, plots.GREEN) > 300  # calibrated on the validation clips
    assert count_pixels(scores, "black") > 100  # the threshold
    assert len(np.unique(baselines.reshape(-1, 3), axis=0)) > 1
    for text in ("AUC within recording", "no normal video of 10 s", "ECE", "Conventions:"):
        assert text in report.text


@pytest.mark.slow
def test_shards_at_a_url_are_evaluated_like_those_in_a_folder(
    run: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where the cache is
    url = Url(f"memory://{uuid.uuid4().hex}")
    fsspec.filesystem("memory").put(f"{run['test']}/", f"{url}/", recursive=True)
    here = evaluate(config(run, tmp_path / "here", train_shards=run["train"])).fields
    there = evaluate(config(run, tmp_path / "there", train_shards=run["train"], shards=url)).fields
    assert there["levels"] == here["levels"]
    assert there["baselines"] == here["baselines"]
    assert there["shards"] == {**here["shards"], "path": str(url)}


def test_the_threshold_for_a_target_is_stored_and_infer_uses_it(run: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = copy_checkpoint(run, tmp_path)
    before = load_checkpoint(checkpoint)
    report = evaluate(
        config(run, tmp_path / "e", checkpoint=checkpoint, val_shards=run["val"], target="recall=.7", prior=0.2)
    )
    stored = load_checkpoint(checkpoint)
    assert stored.threshold == report.fields["threshold"]["value"] != before.threshold
    assert stored.threshold_target == "recall=0.7"
    assert stored.build_calibration().shift == report.fields["calibration"]["shift"] != 0.0
    assert any("no temperature was fitted" in warning for warning in report.fields["warnings"])  # easy clips
    assert "stored in the checkpoint" in report.text


def test_without_a_target_nothing_is_stored(run: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = copy_checkpoint(run, tmp_path)
    before = checkpoint.read_bytes()
    evaluate(config(run, tmp_path / "e", checkpoint=checkpoint, val_shards=run["val"]))
    assert checkpoint.read_bytes() == before


def test_calibrating_moves_no_clip_over_the_threshold(run: dict[str, Path], tmp_path: Path) -> None:
    plain = evaluate(config(run, tmp_path / "a")).fields
    calibrated = evaluate(config(run, tmp_path / "b", val_shards=run["val"], prior=0.1)).fields
    assert plain["levels"]["clips"]["confusion"] == calibrated["levels"]["clips"]["confusion"]
    assert plain["threshold"] != calibrated["threshold"]
    assert calibrated["calibration"]["prior"] == 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "f1"}, "`target` needs `val_shards`"),
        ({"prior": 0.2}, "`prior` needs `val_shards`"),
        ({"val_shards": "test", "shards": "val"}, "is marked Test: calibration and threshold must not be chosen on it"),
        ({"val_shards": "val", "shards": "val"}, "are the same set"),
        ({"val_shards": "val", "target": "fpr=.01"}, "expected at least 300"),
        ({"val_shards": "val", "target": "false-alarms-per-hour=1"}, r"0\.00 hours of normal validation footage"),
    ],
)
def test_choosing_on_evaluated_clips_is_refused(
    options: dict[str, Any], message: str, run: dict[str, Path], tmp_path: Path
) -> None:
    checkpoint = copy_checkpoint(run, tmp_path)
    before = checkpoint.read_bytes()
    named = {name: run.get(value, value) if isinstance(value, str) else value for name, value in options.items()}
    with pytest.raises(UserError, match=message):
        evaluate(config(run, tmp_path / "e", **{"checkpoint": checkpoint, **named}))
    assert checkpoint.read_bytes() == before
    assert not (tmp_path / "e" / "evaluation.json").exists()


def test_evaluating_on_training_clips_warns(run: dict[str, Path], tmp_path: Path) -> None:
    fields = evaluate(config(run, tmp_path, shards=run["train"])).fields
    assert any("is the training set of the checkpoint" in warning for warning in fields["warnings"])


def test_training_videos_are_reported_even_if_cut_differently(run: dict[str, Path], tmp_path: Path) -> None:
    clips, labels = fake_shards.moving_clips(6, shape=SHAPE, seed=0)
    again = fake_shards.write_shards(tmp_path / "again", clips, labels, split="Train", prefix="train")
    for options, why in (
        ({"shards": again}, "these metrics are too optimistic"),
        ({"val_shards": again}, "what was chosen on them is overconfident"),
    ):
        (warning,) = (w for w in evaluate(config(run, tmp_path, **options)).fields["warnings"] if "trained on" in w)
        assert warning.startswith(f"6 of 6 videos of {again} have the name of one that the checkpoint was trained on")
        assert warning.endswith(why)


def test_videos_also_in_validation_are_reported(run: dict[str, Path], tmp_path: Path) -> None:
    clips, labels = fake_shards.moving_clips(24, shape=SHAPE, seed=1)
    part = fake_shards.write_shards(tmp_path / "part", clips[:6], labels[:6], split="Test", prefix="other")
    warnings = evaluate(config(run, tmp_path / "a", shards=part, val_shards=run["val"])).fields["warnings"]
    assert any(text.endswith("their calibration and threshold were chosen on them") for text in warnings)
    warnings = evaluate(config(run, tmp_path / "b", val_shards=run["val"])).fields["warnings"]
    assert not any("threshold were chosen on them" in text for text in warnings)


@pytest.mark.filterwarnings("error::UserWarning")
def test_one_class_without_recordings_does_not_mention_recordings(run: dict[str, Path], tmp_path: Path) -> None:
    clips, _ = fake_shards.moving_clips(4, shape=SHAPE)
    normal = fake_shards.write_shards(tmp_path / "normal", clips, [0] * 4, prefix="normal")
    text = evaluate(config(run, tmp_path / "e", shards=normal, val_shards=run["val"], prior=0.001)).text
    for phrase in ("over source groups (recordings)", "over recordings", "recordings are unknown"):
        text = text.replace(phrase, "")
    assert "ecordings" not in text
    assert "for a share of crime of 0.001 (evaluated clips: 0.00)" in text


@pytest.mark.parametrize("options", [{"target": "fpr=.01"}, {"relative": True}, {"annotations": Path("nowhere.txt")}])
def test_what_labels_alone_refuse_costs_no_scoring(
    options: dict[str, Any], run: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "score_clips", lambda *_: pytest.fail("clips were scored"))
    with pytest.raises(UserError):
        evaluate(config(run, tmp_path, val_shards=run["val"], **options))


def test_a_model_that_does_not_beat_a_shortcut_is_flagged(run: dict[str, Path], tmp_path: Path) -> None:
    """The class is written in the corner of the frame, too: one frame is enough."""
    paths = {}
    for seed, name in enumerate(("train", "test")):
        clips, labels = fake_shards.moving_clips(40, shape=SHAPE, seed=10 + seed)
        clips[np.array(labels) == 1, :, :2, :2] = 255
        clips[np.array(labels) == 0, :, :2, :2] = 0
        paths[name] = fake_shards.write_shards(tmp_path / name, clips, labels)
    fields = evaluate(config(run, tmp_path / "e", shards=paths["test"], train_shards=paths["train"])).fields
    of = {row["name"]: row for row in fields["baselines"]}
    assert of["frame border"]["auc"]["value"] >= 0.95
    assert any("'frame border'" in flag for flag in fields["flags"])
    assert not any("'file metadata'" in flag for flag in fields["flags"])
    assert of["majority"]["auc"]["value"] == 0.5
    assert set(of) == set(baselines.SHORTCUTS)


def untrimmed(tmp_path: Path, *, seed: int = 50) -> tuple[Path, Path]:
    """Six videos of 5 clips of 8 frames, one frame a second; an event in the third clip of every other one."""
    clips, labels = [], []
    for video in range(6):
        flicker, kinds = fake_shards.moving_clips(10, shape=SHAPE, seed=seed + video)
        quiet, loud = flicker[np.array(kinds) == 0], flicker[np.array(kinds) == 1]
        clips += [loud[0] if video % 2 and i == 2 else quiet[i] for i in range(5)]
        labels += [video % 2] * 5
    folder = fake_shards.write_shards(
        tmp_path / "untrimmed", np.stack(clips), labels, clips_per_video=5, frame_gap_seconds=1.0
    )
    return folder, tmp_path / "annotations.txt"


def test_frames_and_false_alarms_of_untrimmed_videos(
    run: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, annotations = untrimmed(tmp_path)
    lines = [f"video-{v:03d}.mp4 {'Fighting 16 23' if v % 2 else 'Normal -1 -1'} -1 -1" for v in range(6)]
    annotations.write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(evaluation, "_times", one_after_another)
    fields = evaluate(config(run, tmp_path / "e", shards=folder, annotations=annotations)).fields
    check_json(tmp_path / "e" / "evaluation.json", "evaluation")
    assert fields["frames"]["num_frames"] == 6 * 40
    assert fields["frames"]["num_event_frames"] == 3 * 8
    assert fields["frames"]["auc_anomalous"]["value"] >= 0.9
    assert fields["frames"]["auc"]["value"] >= 0.9
    assert fields["events"]["events"] == 3
    alarms = fields["false_alarms"]
    assert alarms["hours"] == pytest.approx(3 * 40 / 3600)
    assert alarms["per_hour"]["low"] <= alarms["per_hour"]["value"] <= alarms["per_hour"]["high"]
    assert alarms["per_hour"]["high"] > 0


def one_after_another(reader: ClipReader, row: int) -> tuple[int, int, float, float]:
    """Every clip of the fake shards has the frames 0 to 7; in a real dense build they follow one another."""
    first = 8 * int(reader.index.clips["clip"][row])
    return first, first + 7, float(first), float(first + 7)


def scored_in_turn(
    run: dict[str, Path], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> evaluation.ScoredClips:
    """Return the scored clips of `folder`, placed one after another in time."""
    monkeypatch.setattr(evaluation, "_times", one_after_another)
    return evaluation.score_clips(ClipReader(folder), load_checkpoint(run["checkpoint"]), config(run, tmp_path / "e"))


def test_false_alarms_are_the_events_that_infer_would_tell(
    run: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = untrimmed(tmp_path)
    clips = scored_in_turn(run, folder, tmp_path, monkeypatch)
    video = int(clips.videos[clips.labels == 0][0])
    scores = np.zeros(len(clips.labels))
    scores[np.flatnonzero(clips.videos == video)[[0, 1, 4]]] = 0.9  # two stretches
    alarms = evaluation.false_alarms(clips.with_scores(scores), 0.5, config(run, tmp_path / "e"))
    assert alarms["alarms"] == 2
    assert alarms["per_hour"]["value"] == pytest.approx(2 / alarms["hours"])


@pytest.mark.slow
def test_relative_scores_ignore_what_all_clips_of_a_video_share(
    run: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, annotations = untrimmed(tmp_path)
    clips = scored_in_turn(run, folder, tmp_path, monkeypatch)
    moved = np.array([1.0, -0.5, 0.0, 0.25, 0.0] * 6)  # log-odds; the same in every video, but for the camera's own
    of_camera = np.repeat([-3.0, 4.0, 0.0, 1.0, -1.0, 2.0], 5)
    relative = evaluation.centred_clips(clips.with_scores(1 / (1 + np.exp(-moved - of_camera))))
    np.testing.assert_allclose(relative.scores, 1 / (1 + np.exp(-moved)))

    checkpoint = copy_checkpoint(run, tmp_path)
    evaluation.store(checkpoint, Calibration(temperature=0.5, shift=2.0, prior=0.4), 0.9, parse_target("f1"))
    before = load_checkpoint(checkpoint)
    val, _ = untrimmed(tmp_path / "val", seed=70)
    annotations.write_text("video-001.mp4 Fighting 16 23 -1 -1", encoding="utf-8")
    out = tmp_path / "e"
    arguments = ["evaluate", f"--checkpoint={checkpoint}", f"--shards={folder}", "--relative", f"--out={out}"]
    result = CliRunner().invoke(main, [*arguments, f"--annotations={annotations}", f"--train-shards={val}"])
    assert result.exit_code == 0, result.output
    assert "Scores are centred per video" in result.output
    assert "from the median of each video (not chosen)" in result.output
    fields = json.loads((out / "evaluation.json").read_text())
    assert fields["relative"] is True
    assert fields["calibration"]["prior"] is None  # the one stored is of other scores
    assert {row["frame_auc_anomalous"] for row in fields["baselines"] if row["name"] == "majority"} == {0.5}
    result = CliRunner().invoke(main, [*arguments, f"--val-shards={val}", "--target=f1"])
    assert (
        "f1 on validation; stored in the checkpoint, with the calibration, for `stage1 infer --relative`"
        in result.output
    )
    fields = json.loads((out / "evaluation.json").read_text())
    stored = load_checkpoint(checkpoint)
    assert (stored.threshold, stored.threshold_target) == (before.threshold, before.threshold_target)
    assert stored.calibration == before.calibration
    assert stored.relative is not None
    assert stored.relative["threshold"] == fields["threshold"]["value"]
    again = evaluate(config(run, tmp_path / "again", checkpoint=checkpoint, shards=folder, relative=True)).fields
    assert again["threshold"] == {"value": stored.relative["threshold"], "chosen_for": "f1"}  # as stored
    assert again["levels"]["clips"]["confusion"] == fields["levels"]["clips"]["confusion"]

    arguments = [f"--checkpoint={checkpoint}", f"--shards={folder}", f"--out={tmp_path / 'i'}"]
    result = CliRunner().invoke(main, ["infer", *arguments, "--relative", "--allow-sampling-mismatch"])
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "i" / "run.json").read_text())
    check_json(tmp_path / "i" / "run.json", "run")
    assert (written["relative"], written["threshold"]) == (True, fields["threshold"]["value"])
    assert written["metrics"]["confusion"] == fields["levels"]["clips"]["confusion"]
    assert written["metrics"]["auc"] == pytest.approx(fields["levels"]["clips"]["auc"]["value"], abs=1e-6)
    with pytest.raises(UserError, match="have fewer than 5 clips; build them with `sampling` dense"):
        evaluate(config(run, tmp_path / "e", relative=True))


def test_majority_and_metadata_need_no_pixels_and_features_see_what_they_say() -> None:
    still = np.full((8, 24, 24, 3), 90, np.uint8)
    moving = still.copy()
    moving[4:] = 200
    assert baselines.num_cuts(moving).tolist() == [1.0]
    assert baselines.share_of_repeated_frames(still).tolist() == [1.0]
    assert baselines.share_of_repeated_frames(moving).tolist() == [pytest.approx(6 / 7)]
    inside = still.copy()
    inside[:, 8:16, 8:16] = 0
    np.testing.assert_array_equal(baselines.border_only(still), baselines.border_only(inside))
    assert not np.array_equal(baselines.first_frame(still), baselines.first_frame(inside))
    assert len(baselines.motion_numbers(moving)) == 4


def test_the_commands_distinguish_their_options(run: dict[str, Path], tmp_path: Path) -> None:
    for arguments, message in (
        (["--scores", "x", "--val-shards", "y", "--annotations", "z"], "--val-shards and --scores cannot be combined"),
        (["--scores", "x"], "--scores needs --annotations"),
        (["--shards", str(run["test"]), "--frame-counts", "x"], "--frame-counts needs --scores"),
    ):
        result = CliRunner().invoke(main, ["evaluate", *arguments])
        assert result.exit_code != 0
        assert message in result.output
    result = CliRunner().invoke(
        main,
        ["evaluate", f"--checkpoint={run['checkpoint']}", f"--shards={run['test']}", f"--out={tmp_path / 'e'}"],
    )
    assert result.exit_code == 0, result.output


def test_intervals_come_from_the_named_seed(run: dict[str, Path], tmp_path: Path) -> None:
    clips, labels = fake_shards.moving_clips(24, shape=SHAPE, seed=2)
    labels[3:7] = labels[2:6]  # four wrong ones: of a model without errors, every resample gives the same
    shards = fake_shards.write_shards(tmp_path / "shards", clips, labels)
    first, again, other = (
        evaluate(config(run, tmp_path / name, seed=seed, shards=shards)).fields["levels"]["clips"]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == again
    assert first != other
    assert first["auc"]["value"] == other["auc"]["value"]


def test_top_mean_takes_at_least_one_clip() -> None:
    assert evaluation.top_mean(np.array([0.3])) == 0.3
    assert evaluation.top_mean(np.arange(32.0)) == 30.5
    assert metrics.roc_auc([0, 1], [0.1, 0.2]) == 1.0
