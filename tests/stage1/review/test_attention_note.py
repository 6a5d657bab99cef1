from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fake_shards import write_shards
from inference_runs import LABELS, some_clips, write_checkpoint
from stage1.cli.main import main
from stage1.inference.outputs import OutputFiles
from stage1.inference.run import InferConfig, infer
from stage1.review.attention_note import attention_note


def stage1(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result


def run_on(folder: Path, *, recordings: list[str] | None = None) -> OutputFiles:
    shards = write_shards(folder / "shards", some_clips(), LABELS, source_groups=recordings)
    infer(InferConfig(shards=shards, checkpoint=write_checkpoint(folder / "model.pt"), out=folder / "run"))
    return OutputFiles(folder=folder / "run")


def explain(files: OutputFiles) -> None:
    stage1(*shlex.split(attention_note(files).partition("labels: ")[2])[1:])


def test_what_was_not_tested_is_said_with_a_command_that_works(tmp_path: Path) -> None:
    files = run_on(tmp_path, recordings=["a"] * 4 + ["b"] * 3)
    note = attention_note(files)
    assert note.startswith("It was not tested whether attention of this model follows the crime.")
    for command in ("visualize", "report"):
        assert note in stage1(command, files.folder).stdout
    explain(files)

    tested = attention_note(files)
    found = json.loads(files.explanation.read_text())
    value = found["splices"]["frame_auc"][0]["attention"]["value"]
    assert f"in composites, its AUC for the crime's frames is {value:.2f}" in tested
    assert f"its correlation with attention before training is {found['correlation_with_untrained']:.2f}" in tested
    for command in ("visualize", "report"):
        assert tested in stage1(command, files.folder).stdout
    assert "its correlation with attention before training is" in files.report.read_text()


def test_a_test_of_another_model_counts_as_none(tmp_path: Path) -> None:
    files = run_on(tmp_path)
    explain(files)
    assert "as no recording has clips of both classes" in attention_note(files)
    fields: dict[str, Any] = json.loads(files.explanation.read_text())
    files.explanation.write_text(json.dumps({**fields, "checkpoint_sha256": "0" * 64}))
    assert "was not tested" in attention_note(files)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_pooling_without_attention_has_no_attention_to_speak_of(pooling: str, tmp_path: Path) -> None:
    files = run_on(tmp_path)
    explain(files)
    fields = json.loads(files.explanation.read_text())
    files.explanation.write_text(json.dumps({**fields, "pooling": pooling}))
    assert (
        attention_note(files)
        == f"This model pools frames by their {pooling}: its attention was not learnt and means nothing."
    )
