"""Logs of a training run, on rank 0 only: lines for the user, metrics.jsonl, curves and a tracker."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stage1.common import distributed, files, plots
from stage1.training.trackers import TRACKERS, Tracker, check_installed
from vidshard.util import atomic, console
from vidshard.util.text import counted

SECONDS_BETWEEN_DRAWINGS = 30.0  # shortest time between two plots of the curves


def progress(title: str, *, total: int, unit: str) -> console.Progress:
    """Create a progress bar that only rank 0 shows, as all ranks advance together and their bars would overlap."""
    return console.Progress(title, total=total, unit=unit, shown=distributed.rank() == 0)


def epoch_line(entry: dict[str, Any]) -> str:
    """Format the line that is printed after an epoch.

    >>> epoch_line({"epoch": 1, "loss": 0.69314, "accuracy": 0.5125, "lr": 1e-4})
    'Epoch 1 | Loss: 0.6931 | Accuracy: 51.25% | LR: 0.000100'
    """
    line = f"Epoch {entry['epoch']} | Loss: {entry['loss']:.4f} | Accuracy: {entry['accuracy']:.2%}"
    line += f" | LR: {entry['lr']:.6f}"
    if "val_loss" in entry:
        line += f" | Val Accuracy: {entry['val_accuracy']:.2%} | Val AUC: {_auc_text(entry['val_auc'])}"
    if "network_val_loss" in entry:
        line += f" (network alone: {entry['network_val_accuracy']:.2%}, {_auc_text(entry['network_val_auc'])})"
    return line


def kept_text(history: Sequence[dict[str, Any]], *, epochs: int, patience: int) -> str:
    """Format which epoch is kept and why, with its metrics on the validation clips.

    >>> kept_text([{"epoch": 1, "best": True}, {"epoch": 2, "best": True}], epochs=2, patience=0)
    'Kept epoch 2 of 2, the last one'
    """
    kept = next(row for row in reversed(history) if row["best"])
    last = len(history)
    text = f"Kept epoch {kept['epoch']} of {last}"
    if last < epochs:
        text += f" (stopped early, after {counted(last - kept['epoch'], 'epoch')} without improvement)"
    by_loss = patience and "val_loss" in kept
    text += ", the one with the lowest validation loss" if by_loss else ", the last one"
    if "val_loss" not in kept:
        return text
    return (
        f"{text}; validation loss {kept['val_loss']:.4f}, accuracy {kept['val_accuracy']:.1%}, "
        f"AUC {_auc_text(kept['val_auc'])}"
    )


def _auc_text(auc: float | None) -> str:
    return "n/a" if auc is None else f"{auc:.3f}"


class RunLog:
    """Log files of a run in the folder `out`, and its tracker."""

    def __init__(self, out: Path, *, logger: str | None = None) -> None:
        self.out, self.logger = out, logger
        self._draw_after = time.monotonic() + SECONDS_BETWEEN_DRAWINGS
        self._tracker = Tracker()
        if logger is not None:
            check_installed(logger)

    def start(self, step: int, config: Mapping[str, Any]) -> None:
        """Start after `step` steps."""
        if self.logger is not None and distributed.rank() == 0:
            self._tracker = TRACKERS[self.logger](self.out, step)
            self._tracker.log_config(config)

    def add_step(self, step: int, *, loss: float, lr: float) -> None:
        """Log a step."""
        self._tracker.log_metrics({"step/loss": loss, "step/lr": lr}, step)

    def add_epoch(self, entry: dict[str, Any], step: int) -> None:
        """Log an epoch, which ended with `step`."""
        distributed.rank_zero_info(epoch_line(entry))
        numbers = {name: value for name, value in entry.items() if isinstance(value, int | float)}
        values = {f"epoch/{name}": value for name, value in numbers.items() if name not in ("epoch", "best")}
        self._tracker.log_metrics(values, step)

    def write(self, history: Sequence[dict[str, Any]], step: int, *, last: bool) -> None:
        """Write metrics.jsonl, and plot the curves if the last plot is old enough or this is the `last` epoch."""
        lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in history)
        atomic.write_text(self.out / files.METRICS_NAME, lines)
        # Plotting takes half a second, so not every short epoch is plotted.
        if last or time.monotonic() >= self._draw_after:
            plots.plot_curves(history, self.out / files.CURVES_NAME)
            self._draw_after = time.monotonic() + SECONDS_BETWEEN_DRAWINGS
            self._tracker.log_picture(self.out / files.CURVES_NAME, step)

    def flush(self) -> None:
        """Write what waits in the tracker."""
        self._tracker.flush()

    def close(self) -> None:
        """Log where the checkpoint is, and close the tracker."""
        if (self.out / files.BEST_NAME).is_file():
            self._tracker.log_checkpoint(self.out / files.BEST_NAME)
        self._tracker.close()
