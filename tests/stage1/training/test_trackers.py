"""Trackers: what each holds after a run that was resumed."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import pytest

from fake_shards import moving_clips, write_shards
from schemas import check_rows
from stage1.common import files
from stage1.training import trackers
from stage1.training.config import TrainConfig, make_config
from stage1.training.loop import train
from vidshard.util.errors import UserError

EPOCHS = 2
SCALARS = {"step/loss", "step/lr", "epoch/loss", "epoch/val_auc"}


@pytest.fixture
def resumed(tmp_path: Path) -> Any:
    """Return a function that trains with a tracker and resumes for one more epoch."""

    def run(logger: str, resumed_with: str | None = None) -> Path:
        clips, labels = moving_clips(12)
        options: dict[str, Any] = {
            "shards": write_shards(tmp_path / "shards", clips, labels),
            "out": tmp_path / "out",
            "logger": logger,
            "batch_size": 4,
            "val_fraction": 0.3,
            "model": {"channels": [8], "temporal_stages": []},
        }
        train(make_config({**options, "epochs": 1}))
        return train(
            make_config({**options, "epochs": EPOCHS, "resume": True, "logger": resumed_with or logger})
        ).parent

    return run


def test_csv_has_a_row_for_each_value(resumed: Any) -> None:
    out = resumed("csv")
    with open(out / files.METRICS_CSV_NAME, newline="") as file:
        rows = list(csv.DictReader(file))
    check_rows(out / files.METRICS_CSV_NAME, "metrics_csv")
    assert {row["name"] for row in rows} >= SCALARS
    steps = [int(row["step"]) for row in rows if row["name"] == "step/loss"]
    assert steps == list(range(1, len(steps) + 1))
    assert len({row["step"] for row in rows if row["name"] == "epoch/val_auc"}) == EPOCHS
    # A killed run may have written later steps, and half a row: they are written again.
    text = (out / files.METRICS_CSV_NAME).read_text()
    (out / files.METRICS_CSV_NAME).write_text(text + "99,step/loss,0.5\n100,st")
    trackers.CsvTracker(out, steps[-1]).close()
    assert (out / files.METRICS_CSV_NAME).read_text() == text


def test_tensorboard_holds_scalars_options_and_curves(resumed: Any) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(resumed("tensorboard") / files.TENSORBOARD_NAME)).Reload()
    tags = events.Tags()
    assert set(tags["scalars"]) >= SCALARS
    assert tags["images"] == ["curves"]
    assert {"options/text_summary", "checkpoint/text_summary"} <= set(tags["tensors"])
    options = events.Tensors("options/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "| model.dropout | 0.5 |" in options


def test_tensorboard_writes_its_file_once_per_epoch(resumed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    pytest.importorskip("tensorboard")
    flushed = []
    flush = tensorboard.SummaryWriter.flush
    monkeypatch.setattr(tensorboard.SummaryWriter, "flush", lambda writer: flushed.append(flush(writer)))
    resumed("tensorboard")
    assert len(flushed) == EPOCHS


def test_the_old_option_is_an_alias() -> None:
    assert TrainConfig(tensorboard=True).logger == "tensorboard"
    assert TrainConfig().logger is None


def test_wandb_offline(resumed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    out = resumed("wandb")
    runs = sorted((out / "wandb").glob("offline-run-*"))
    assert len(runs) == EPOCHS  # offline, wandb writes a folder for each start; all are of one run
    assert {f"wandb:{run.name.rpartition('-')[2]}" for run in runs} == {(out / files.RUN_ID_NAME).read_text().strip()}
    logged = b"".join(path.read_bytes() for run in runs for path in run.glob("*.wandb"))
    for name in (*SCALARS, "model.dropout", "curves", files.BEST_NAME):
        assert name.encode() in logged, name
    assert all(any(run.rglob("curves*.png")) for run in runs)


def test_mlflow_in_a_local_folder(resumed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out = resumed("mlflow")
    client = mlflow.MlflowClient(tracking_uri=(out / files.MLFLOW_NAME).absolute().as_uri())
    (run,) = client.search_runs(["0"])
    assert set(run.data.metrics) >= SCALARS
    assert len(client.get_metric_history(run.info.run_id, "epoch/val_auc")) == EPOCHS
    assert run.data.params["model.dropout"] == "0.5"
    assert run.data.tags["checkpoint"] == str(out / files.BEST_NAME)
    assert run.info.status == "FINISHED"
    assert [item.path for item in client.list_artifacts(run.info.run_id)] == [files.CURVES_NAME]
    assert os.environ.get("MLFLOW_TRACKING_URI") is None


def test_a_server_error_of_mlflow_does_not_end_the_training(
    resumed: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    batches = []
    send = mlflow.MlflowClient.log_batch

    def log_batch(client: Any, run_id: str, metrics: Any) -> None:
        batches.append(len(metrics))
        if len(batches) == 1:
            raise mlflow.MlflowException("down")
        send(client, run_id, metrics)

    def log_artifact(*_: Any) -> None:
        raise ConnectionError("https://me:secret@host is down")

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", log_batch)
    monkeypatch.setattr(mlflow.MlflowClient, "log_artifact", log_artifact)
    out = resumed("mlflow")
    assert len(batches) == EPOCHS + 1  # one for an epoch, and the first one again
    assert "down; training goes on" in caplog.text
    assert "https://host is down; training goes on" in caplog.text
    client = mlflow.MlflowClient(tracking_uri=(out / files.MLFLOW_NAME).absolute().as_uri())
    (run,) = client.search_runs(["0"])
    assert run.info.status == "FINISHED"
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "step/loss")]
    assert steps == list(range(1, 1 + len(steps)))
    assert len(steps) > EPOCHS


def test_another_tracker_after_a_resumption_gets_a_run_of_its_own(
    resumed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out = resumed("wandb", "mlflow")
    client = mlflow.MlflowClient(tracking_uri=(out / files.MLFLOW_NAME).absolute().as_uri())
    (run,) = client.search_runs(["0"])
    assert (out / files.RUN_ID_NAME).read_text() == f"mlflow:{run.info.run_id}\n"


def test_the_identifier_of_another_tracker_is_ignored(tmp_path: Path) -> None:
    assert trackers.run_id(tmp_path, "wandb") is None
    trackers.remember_run_id(tmp_path, "wandb", "1f2e")
    assert trackers.run_id(tmp_path, "wandb") == "1f2e"
    assert trackers.run_id(tmp_path, "mlflow") is None


@pytest.mark.parametrize("name", ["wandb", "mlflow", "tensorboard"])
def test_a_missing_package_is_said_before_the_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UserError, match=rf"`logger` {name} needs the package .+ pip install 'vidshard\[{name}\]'"):
        trackers.check_installed(name)


def test_the_lines_of_the_documentation_are_in_pyproject() -> None:
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    assert all(f"\n{name} = [" in text for name in trackers.TRACKERS if name != "csv")
