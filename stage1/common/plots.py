"""Training curves and contact sheets as PNG files."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vidshard.util import atomic

TRAIN_COLOUR, VALIDATION_COLOUR, AUC_COLOUR, GREY = "#4c78a8", "#e4572e", "#2a9d8f", "#8a8f98"


def make_figure(size: tuple[float, float], *, rows: int = 1, columns: int = 1) -> tuple[Any, list[Any]]:
    """Return a figure of `size` inches, to be drawn without a screen, and its axes row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25, linewidth=0.7)
    return figure, axes


def set_title(axes: Any, title: str, **style: Any) -> None:
    """Set a bold title at the left."""
    axes.set_title(title, loc="left", fontweight="bold", **style)


def save(figure: Any, path: Path) -> None:
    """Write `figure` to the PNG `path`."""
    with atomic.atomic_open(path) as file:
        figure.savefig(file, format="png")


def plot_curves(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Plot loss, accuracy and AUC over the epochs of `history` (lines of metrics.jsonl) to the PNG `path`."""
    figure, (loss, accuracy) = make_figure((10, 4), columns=2)
    train, validation = parts_of_model(history)
    _draw(loss, history, "loss", f"Train{train}", TRAIN_COLOUR)
    _draw(loss, history, "val_loss", f"Validation{validation}", VALIDATION_COLOUR)
    set_title(loss, "Loss")
    _draw(accuracy, history, "accuracy", f"Train accuracy{train}", TRAIN_COLOUR)
    _draw(accuracy, history, "val_accuracy", f"Validation accuracy{validation}", VALIDATION_COLOUR)
    _draw(accuracy, history, "val_auc", f"Validation AUC{validation}", AUC_COLOUR)
    accuracy.axhline(0.5, color=GREY, linewidth=1, linestyle=":")
    accuracy.set_ylim(0, 1.02)
    set_title(accuracy, "Accuracy and AUC")
    _mark_best(accuracy, history)
    for axes in (loss, accuracy):
        axes.set_xlabel("Epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False)
    save(figure, path)


def parts_of_model(history: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return which part of the model the training and the validation figures are of, if these differ.

    >>> parts_of_model([{"loss": 0.5, "val_loss": 0.4}]), parts_of_model([{"network_val_loss": 0.6}])
    (('', ''), (' (network alone)', ' (with motion features)'))
    """
    differ = any("network_val_loss" in row for row in history)
    return (" (network alone)", " (with motion features)") if differ else ("", "")


def _draw(axes: Any, history: Sequence[dict[str, Any]], name: str, label: str, color: str) -> None:
    points = [(row["epoch"], row[name]) for row in history if row.get(name) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, color=color, linewidth=2, marker="o", markersize=3.5)


def _mark_best(axes: Any, history: Sequence[dict[str, Any]]) -> None:
    """Draw a ring around the validation AUC of the epoch whose weights are kept."""
    best = [row for row in history if row.get("best") and row.get("val_auc") is not None]
    if best:
        row = best[-1]
        label = f"kept: epoch {row['epoch']}, AUC {row['val_auc']:.3f}"
        ring = {"markersize": 11, "fillstyle": "none", "color": AUC_COLOUR, "label": label}
        axes.plot(row["epoch"], row["val_auc"], "o", clip_on=False, **ring)  # 1 is at the edge


def plot_sheet(
    rows: Sequence[Sequence[Any]], *, row_names: Sequence[str], column_names: Sequence[str], path: Path
) -> None:
    """Plot pictures, uint8 (H, W, 3), in rows and columns to the PNG `path`."""
    from matplotlib.figure import Figure

    num_columns = max(map(len, rows))
    figure = Figure(figsize=(1.5 * num_columns, 1.62 * len(rows) + 0.3), dpi=100, layout="constrained")
    for i, (grid_row, pictures) in enumerate(
        zip(figure.subplots(len(rows), num_columns, squeeze=False), rows, strict=True)
    ):
        for j, axes in enumerate(grid_row):
            axes.set_axis_off()
            if j < len(pictures):
                axes.imshow(pictures[j], interpolation="nearest")
            if i == 0 and j < len(column_names):
                axes.set_title(column_names[j], fontsize=9)
        # Video names may contain $ and _, which matplotlib would typeset as formulas.
        label = grid_row[0].text(
            0, -0.02, row_names[i], fontsize=7, va="top", transform=grid_row[0].transAxes, parse_math=False
        )
        label.set_in_layout(False)  # a long name would push the columns apart
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the name shows boxes for such characters
        save(figure, path)
