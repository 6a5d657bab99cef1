"""Commands that a batch system repeats after they ended, or were killed: the repetition is no second run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from fake_shards import moving_clips, write_shards
from inference_runs import place as place
from inference_runs import stage1
from stage1.common.files import CONFIG_NAME, DEFAULT_CHECKPOINT
from stage1.evaluation.text import EvaluationReport

CPU = ["--device", "cpu"]
TRAIN = ["train", "--shards", "train", "--val-fraction", "0", "--epochs", "1", "--out", "run", "--resume=auto"]


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_evaluation_repeated_is_the_same_one(place: Path) -> None:
    assert stage1("evaluate", *CPU).exit_code == 0
    first = files_below(place / "evaluation")
    assert stage1("evaluate", *CPU).exit_code == 0
    assert files_below(place / "evaluation") == first
    other = shutil.copy(DEFAULT_CHECKPOINT, "other.pt")
    assert stage1("evaluate", "--checkpoint", other, *CPU).exit_code == 0
    assert (place / "evaluation" / "earlier-1" / "evaluation.png").is_file()


def test_an_evaluation_without_its_picture_is_no_earlier_result(tmp_path: Path) -> None:
    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        EvaluationReport(text="", fields={"threshold": 0.5}).write(tmp_path, killed)
    EvaluationReport(text="", fields={"threshold": 0.7}).write(tmp_path, lambda path: path.touch())
    assert sorted(os.listdir(tmp_path)) == ["evaluation.json", "evaluation.png"]


def test_a_training_without_a_checkpoint_is_no_earlier_result(place: Path) -> None:
    write_shards(place / "train", *moving_clips(8))
    (place / "run").mkdir()
    (place / "run" / CONFIG_NAME).touch()  # killed before the first checkpoint
    for _ in range(2):
        assert stage1(*TRAIN, *CPU).exit_code == 0
    assert not (place / "run" / "earlier-1").exists()
