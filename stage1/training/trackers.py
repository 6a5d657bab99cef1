"""Trackers of training runs behind one interface: TensorBoard, CSV, Weights & Biases, MLflow.

They get options, metrics, the curves and the path of the checkpoint, but no frame of a video.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from stage1.common import files
from stage1.common.distributed import rank_zero_warn
from vidshard.util import atomic
from vidshard.util.errors import UserError
from vidshard.util.location import redact_credentials

_MAX_VALUE = 6000  # characters of an option that MLflow accepts
_MAX_BATCH = 1000  # metrics that MLflow accepts in a request


class Tracker:
    """Receiver of what a run logs; this one ignores it. `step` is the number of optimizer steps done."""

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Log the options of the run."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log values by name, which may wait for `flush`."""

    def flush(self) -> None:
        """Write the values that wait. Called at every checkpoint, as a resumed run logs what follows it again."""

    def log_picture(self, path: Path, step: int) -> None:
        """Log a PNG, which later replaces the one before."""

    def log_checkpoint(self, path: Path) -> None:
        """Log where the checkpoint is; it is not uploaded."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoardTracker(Tracker):
    """Event files. Steps after `step`, which a killed run may have written, are hidden."""

    def __init__(self, out: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(out / files.TENSORBOARD_NAME, purge_step=step + 1)

    def log_config(self, config: Mapping[str, Any]) -> None:
        table = "\n".join(f"| {name} | {value} |" for name, value in flat(config).items())
        self._writer.add_text("options", f"| option | value |\n|---|---|\n{table}", 0)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self._writer.flush()

    def log_picture(self, path: Path, step: int) -> None:
        import numpy as np
        from PIL import Image

        self._writer.add_image(path.stem, np.asarray(Image.open(path).convert("RGB")), step, dataformats="HWC")

    def log_checkpoint(self, path: Path) -> None:
        self._writer.add_text("checkpoint", str(path), 0)

    def close(self) -> None:
        self._writer.close()


class CsvTracker(Tracker):
    """Table with a row for each value: step, name, value. The other things are files of the run already."""

    def __init__(self, out: Path, step: int) -> None:
        path = out / files.METRICS_CSV_NAME
        rows = []
        if path.is_file():  # a killed run may have written later steps, and half a row
            with open(path, encoding="utf-8", newline="") as file:
                rows = [row for row in csv.reader(file) if len(row) == 3 and row[0].isdigit() and int(row[0]) <= step]
        lines = "".join(",".join(row) + "\n" for row in [["step", "name", "value"], *rows])
        atomic.write_text(path, lines)
        self._file: TextIO = open(path, "a", encoding="utf-8", newline="")  # noqa: SIM115  # until close()

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._file.writelines(f"{step},{name},{value!r}\n" for name, value in metrics.items())
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class WandbTracker(Tracker):
    """Run of Weights & Biases, in the folder wandb of the run. Its own settings decide the rest, such as WANDB_MODE."""

    def __init__(self, out: Path, step: int) -> None:
        import wandb

        self._wandb: Any = wandb
        made = run_id(out, "wandb") or remember_run_id(out, "wandb", secrets.token_hex(4))
        self._run: Any = wandb.init(dir=str(out), id=made, resume="allow", name=out.name)

    def log_config(self, config: Mapping[str, Any]) -> None:
        self._run.config.update(flat(config), allow_val_change=True)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def log_picture(self, path: Path, step: int) -> None:
        self._run.log({path.stem: self._wandb.Image(str(path))}, step=step)

    def log_checkpoint(self, path: Path) -> None:
        self._run.summary["checkpoint"] = str(path)

    def close(self) -> None:
        self._run.finish()


class MlflowTracker(Tracker):
    """Run of MLflow, at MLFLOW_TRACKING_URI or else in the folder mlruns of the run.

    Once the run has begun, an error of the server is a warning, and metrics are sent again at the next `flush`.
    """

    def __init__(self, out: Path, step: int) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        place = os.environ.get("MLFLOW_TRACKING_URI")
        if place is None:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # recent versions refuse folders without it
            place = (out / files.MLFLOW_NAME).absolute().as_uri()
        self._client: Any = MlflowClient(tracking_uri=place)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment is not None else self._client.create_experiment(name)
        made = run_id(out, "mlflow") or self._client.create_run(experiment_id, run_name=out.name).info.run_id
        self._id = remember_run_id(out, "mlflow", made)
        self._client.update_run(made, status="RUNNING")
        self._metric: Any = Metric
        self._waiting: list[Any] = []  # metrics that `flush` sends, as a request for each would delay every step

    def log_config(self, config: Mapping[str, Any]) -> None:
        if not self._client.get_run(self._id).data.params:  # those of a run cannot be changed
            for name, value in flat(config).items():
                self._client.log_param(self._id, name, str(value)[:_MAX_VALUE])

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        now = round(time.time() * 1000)
        self._waiting += [self._metric(name, value, now, step) for name, value in metrics.items()]

    def flush(self) -> None:
        while self._waiting and self._send(self._client.log_batch, self._waiting[:_MAX_BATCH]):
            del self._waiting[:_MAX_BATCH]

    def log_picture(self, path: Path, step: int) -> None:
        self._send(self._client.log_artifact, str(path))

    def log_checkpoint(self, path: Path) -> None:
        self._send(self._client.set_tag, "checkpoint", str(path))

    def close(self) -> None:
        self.flush()
        self._send(self._client.set_terminated)

    def _send(self, call: Callable[..., None], *values: Any) -> bool:
        """Return True if MLflow took the values."""
        try:
            call(self._id, *values)
        except Exception as error:  # servers, stores of artifacts and files raise a dozen types
            rank_zero_warn(f"MLflow did not take a part of the run: {redact_credentials(str(error))}; training goes on")
            return False
        return True


TRACKERS: dict[str, Callable[[Path, int], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "csv": CsvTracker,
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
}


def check_installed(name: str) -> None:
    """Raise UserError if the package of this tracker is missing, before a run begins."""
    if name != "csv" and importlib.util.find_spec(name) is None:
        raise UserError(f"`logger` {name} needs the package {name}: pip install 'vidshard[{name}]'")


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested options as one level.

    >>> flat({"lr": 1, "model": {"dropout": 0.5}})
    {'lr': 1, 'model.dropout': 0.5}
    """
    found: dict[str, Any] = {}
    for name, value in config.items():
        nested = flat(value) if isinstance(value, Mapping) else {"": value}
        found |= {f"{name}.{part}".rstrip("."): one for part, one in nested.items()}
    return found


def run_id(out: Path, tracker: str) -> str | None:
    """Return the identifier that `tracker` gave the run in `out`, so that a resumed run continues the same one."""
    path = out / files.RUN_ID_NAME
    name, _, found = path.read_text(encoding="utf-8").strip().partition(":") if path.is_file() else ("", "", "")
    return found if name == tracker and found else None


def remember_run_id(out: Path, tracker: str, found: str) -> str:
    """Store an identifier in place of that of any other tracker, and return it."""
    atomic.write_text(out / files.RUN_ID_NAME, f"{tracker}:{found}\n")
    return found
