"""The curves of a training run, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vidshard import atomic

TRAIN_COLOUR, VALIDATION_COLOUR, AUC_COLOUR, GREY = "#4c78a8", "#e4572e", "#2a9d8f", "#8a8f98"


def plot_curves(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw loss, accuracy and AUC over the epochs of `history` (lines of metrics.jsonl) into the PNG `path`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # draws without a screen
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy = figure.subplots(1, 2)
    _draw(loss, history, "loss", "Train", TRAIN_COLOUR)
    _draw(loss, history, "val_loss", "Validation", VALIDATION_COLOUR)
    loss.set_title("Loss", loc="left", fontweight="bold")
    _draw(accuracy, history, "accuracy", "Train accuracy", TRAIN_COLOUR)
    _draw(accuracy, history, "val_accuracy", "Validation accuracy", VALIDATION_COLOUR)
    _draw(accuracy, history, "val_auc", "Validation AUC", AUC_COLOUR)
    accuracy.axhline(0.5, color=GREY, linewidth=1, linestyle=":")
    accuracy.set_ylim(0, 1.02)
    accuracy.set_title("Accuracy and AUC", loc="left", fontweight="bold")
    _mark_best(accuracy, history)
    for axes in (loss, accuracy):
        axes.set_xlabel("Epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25, linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    with atomic.atomic_open(path) as file:
        figure.savefig(file, format="png")


def _draw(axes: Any, history: Sequence[dict[str, Any]], name: str, label: str, color: str) -> None:
    points = [(row["epoch"], row[name]) for row in history if row.get(name) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, color=color, linewidth=2, marker="o", markersize=3.5)


def _mark_best(axes: Any, history: Sequence[dict[str, Any]]) -> None:
    """A ring around the validation AUC of the epoch whose weights are kept."""
    best = [row for row in history if row.get("best") and row.get("val_auc") is not None]
    if best:
        row = best[-1]
        label = f"kept: epoch {row['epoch']}, AUC {row['val_auc']:.3f}"
        axes.plot(row["epoch"], row["val_auc"], "o", markersize=11, fillstyle="none", color=AUC_COLOUR, label=label)
