"""Inference shared by ranks, killed, resumed, or with unreadable clips: the same bytes each time."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import stage1.inference.run
from inference_runs import write_checkpoint
from ranks import run_ranks
from scoring_runs import NUM_CLIPS, shards_and_model
from stage1 import load_attention_data
from stage1.cli.main import main
from stage1.inference.events import EventConfig
from stage1.inference.run import Fold, InferConfig, infer, infer_out_of_fold
from stage1.inference.score_log import ScoredBatch, ScoreLog
from stage1.inference.scoring import BatchPlan, CheckpointClips
from stage1.metrics.calibration import logits
from vidshard.shards.manifest import open_shards
from vidshard.util.errors import UserError

OUTPUTS = ("anomalies.json", "predictions.csv", "events.json", "videos.csv", "run.json")


def config(folder: Path, out: str, **options: Any) -> InferConfig:
    return InferConfig(
        shards=folder / "shards",
        checkpoint=folder / "model.pt",
        out=folder / out,
        batch_size=4,
        attention_format="shards",
        events=EventConfig(smooth_seconds=1, min_seconds=1),
        **options,
    )


def written(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def infer_on_a_rank(folder: Path, out: str) -> None:
    torch.set_num_threads(2)  # what a user or torchrun may have set
    stage1.inference.run.device_name = lambda _: "the same"  # type: ignore[assignment]
    report = infer(config(folder, out, threads=1))
    assert report is None or report.exit_code == 2


@pytest.mark.slow
def test_any_number_of_ranks_and_threads_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "stage1.inference.run.device_name", lambda _: "the same"
    )  # it shows torch's threads, which ranks set
    shards_and_model(tmp_path)
    infer(config(tmp_path, "alone"))
    expected = written(tmp_path / "alone")
    assert set(OUTPUTS) <= set(expected)
    infer(config(tmp_path, "threads", threads=3))
    assert written(tmp_path / "threads") == expected
    for world_size in (2, 3):
        run_ranks(tmp_path / f"ranks{world_size}", world_size, infer_on_a_rank, tmp_path, f"world{world_size}")
        assert written(tmp_path / f"world{world_size}") == expected


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def test_a_run_that_stops_anywhere_resumes_and_scores_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards_and_model(tmp_path)
    infer(config(tmp_path, "whole"))
    expected = written(tmp_path / "whole")
    append = ScoreLog.append
    left = scored = 0

    def append_some(self: ScoreLog, batch: int, of_batch: ScoredBatch) -> None:
        nonlocal left, scored
        if left == 0:
            raise Killed
        append(self, batch, of_batch)
        left, scored = left - 1, scored + 1

    monkeypatch.setattr(ScoreLog, "append", append_some)
    rng = random.Random(0)
    for run in range(8):
        scored, resume = 0, False
        while True:
            left = rng.choice([1, 2, 3, 5])
            try:
                infer(config(tmp_path, f"stopped{run}", resume=resume, threads=1))
                break
            except Killed:
                resume = True
                for path in (tmp_path / f"stopped{run}" / ".unfinished").glob("*.scores"):
                    if rng.random() < 0.5:  # torn: the kill came while the last batch was written
                        path.write_bytes(path.read_bytes() + b"S1b\x01torn")
        assert scored == -(-NUM_CLIPS // 4)
        assert written(tmp_path / f"stopped{run}") == expected


def test_an_interrupted_run_names_the_command_that_resumes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards_and_model(tmp_path)

    def interrupt(self: ScoreLog, batch: int, of_batch: ScoredBatch) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ScoreLog, "append", interrupt)
    folder = [*("--shards", str(tmp_path / "shards")), *("--checkpoint", str(tmp_path / "model.pt"))]
    result = CliRunner().invoke(main, ["infer", *folder, "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "interrupted; run the same command with --resume to continue"


def test_every_clip_is_scored_or_named(tmp_path: Path) -> None:
    shards_and_model(tmp_path)
    report = infer(config(tmp_path, "out"))
    assert report is not None
    run = json.loads((tmp_path / "out" / "run.json").read_bytes())
    assert run["clips"]["found"] == NUM_CLIPS == run["clips"]["scored"] + run["clips"]["unscored"]
    (reason,) = run["unscored"].values()
    key = open_shards(tmp_path / "shards").index.key(11)
    assert list(run["unscored"]) == [key]
    assert "does not match its checksum" in reason
    with open(tmp_path / "out" / "videos.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert (len(rows), sum(int(row["num_unscored"]) for row in rows)) == (8, 1)
    assert report.exit_code == 2


def test_bf16_is_near_and_another_precision_is_not_resumed(tmp_path: Path) -> None:
    shards_and_model(tmp_path)
    infer(config(tmp_path, "fp32"))
    infer(config(tmp_path, "bf16", precision="bf16"))

    def confidences(name: str) -> list[float]:
        with open(tmp_path / name / "predictions.csv", newline="", encoding="utf-8") as file:
            return [float(row["confidence"] or "nan") for row in csv.DictReader(file)]

    assert confidences("bf16") == pytest.approx(confidences("fp32"), abs=0.15, nan_ok=True)
    assert confidences("bf16") != confidences("fp32")
    score_log = tmp_path / "fp32" / ".unfinished"
    score_log.mkdir()
    plan = {"shards": "other"}
    (score_log / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(UserError, match=r"has shards 'other', this one .*start again without `resume`"):
        infer(config(tmp_path, "fp32", resume=True))


def test_relative_scores_do_not_depend_on_unreadable_clips(tmp_path: Path) -> None:
    shards_and_model(tmp_path)
    infer(config(tmp_path, "plain"))
    with pytest.raises(UserError, match="has no threshold for scores centred per video; choose one with"):
        infer(config(tmp_path, "relative", relative=True))
    infer(config(tmp_path, "relative", relative=True, threshold=0.5))
    of_model = {"calibration": {"temperature": 2.0}, "threshold": 0.6, "threshold_target": "f1"}
    write_checkpoint(tmp_path / "model.pt", calibration={"temperature": 9.0}, relative=of_model)
    infer(config(tmp_path, "calibrated", relative=True))

    def log_odds(name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        with open(tmp_path / name / "predictions.csv", newline="", encoding="utf-8") as file:
            return logits(np.array([float(row["confidence"] or "nan") for row in csv.DictReader(file)]))

    expected = log_odds("plain")
    for first in range(0, NUM_CLIPS, 5):  # 11 is damaged
        expected[first : first + 5] -= np.nanmedian(expected[first : first + 5])
    assert np.isnan(expected).sum() == 1
    np.testing.assert_allclose(log_odds("relative"), expected, atol=1e-4)
    np.testing.assert_allclose(log_odds("calibrated"), expected / 2, atol=1e-4)
    run = json.loads((tmp_path / "calibrated" / "run.json").read_bytes())
    assert (run["relative"], run["threshold"]) == (True, 0.6)
    with pytest.raises(UserError, match="relative scores need the threshold of a single checkpoint"):
        infer_out_of_fold(config(tmp_path, "folds", relative=True), [])
    assert run["clips"]["detected"] == (expected / 2 >= logits(np.array(0.6))).sum() > 0


def test_too_many_detections_for_a_file_keep_the_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards_and_model(tmp_path)
    monkeypatch.setattr("stage1.inference.attention_data.MAX_CLIP_BYTES", 1)
    options = {**vars(config(tmp_path, "out")), "attention_format": "pt"}
    with pytest.raises(UserError, match="run the same command with `resume` and `attention_format` shards"):
        infer(InferConfig(**options))
    assert not (tmp_path / "out" / "run.json").exists()
    monkeypatch.setattr("stage1.inference.scoring.Scorer.__call__", lambda *_: pytest.fail("scored again"))
    assert infer(config(tmp_path, "out", resume=True)) is not None


def test_out_of_fold_each_clip_is_scored_by_the_model_that_has_not_seen_it(tmp_path: Path) -> None:
    shards_and_model(tmp_path)
    shards = open_shards(tmp_path / "shards")
    video_of_row = shards.index.clips["video"]
    names = [f"Train/{path}" for path in shards.index.paths]
    folds = []
    for fold in range(2):
        seen = [name for video, name in enumerate(names) if video % 2 != fold]
        path = write_checkpoint(
            tmp_path / f"fold{fold}.pt", train_videos=seen, epoch=fold + 1, threshold=0.4 + fold / 5
        )
        folds.append(Fold(checkpoint=path, rows=np.flatnonzero(video_of_row % 2 == fold)))
    report = infer_out_of_fold(config(tmp_path, "out"), folds)
    assert report is not None
    assert (report.num_clips, report.threshold) == (NUM_CLIPS, 0.5)
    infer(config(tmp_path, "alone"))  # the models are the same: so must be the scores, but for padding
    with open(tmp_path / "out" / "predictions.csv", newline="", encoding="utf-8") as file:
        keys = [row["key"] for row in csv.DictReader(file)]
    assert keys == [shards.index.key(row) for row in range(NUM_CLIPS)]
    data = load_attention_data(tmp_path / "out", for_training=True)
    assert data.out_of_fold
    assert 0 < len(data) == report.num_detections
    run = json.loads((tmp_path / "out" / "run.json").read_bytes())
    assert [fold["clips"] for fold in run["folds"]] == [len(fold.rows) for fold in folds]
    assert (run["checkpoint"], run["clips"]["trained_on"]) == (None, 0)

    with pytest.raises(UserError, match=r"was trained on 4 of the videos of its fold .* not be out of fold"):
        infer_out_of_fold(config(tmp_path, "x"), [Fold(checkpoint=folds[0].checkpoint, rows=folds[1].rows)])
    with pytest.raises(UserError, match="is in two folds"):
        infer_out_of_fold(config(tmp_path, "x"), [folds[0], folds[0]])


def test_attention_on_training_videos_is_not_training_data(tmp_path: Path) -> None:
    shards_and_model(tmp_path, train_videos=["Train/NormalVideos/video-000.mp4", "Train/Fighting/video-001.mp4"])
    infer(config(tmp_path, "out", threshold=0.0))
    run = json.loads((tmp_path / "out" / "run.json").read_bytes())
    assert run["clips"]["trained_on"] == 10
    with pytest.raises(UserError, match=r"the model was trained on the videos of 10 of 36 detections"):
        load_attention_data(tmp_path / "out", for_training=True)


def test_a_plan_puts_each_row_into_one_batch() -> None:
    rows = [np.array([4, 0, 2]), np.array([1, 5])]
    parts = [CheckpointClips(checkpoint=None, rows=part) for part in rows]  # type: ignore[arg-type]
    plan = BatchPlan(parts, num_rows=7, batch_size=2)
    assert plan.num_batches == 3
    assert plan.batch_of_row.tolist() == [0, 2, 1, -1, 0, 2, -1]
    assert plan.rows.tolist() == [0, 1, 2, 4, 5]
    assert plan.rows_of_part(0, np.array([1, 2])).tolist() == [2]
