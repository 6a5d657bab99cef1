"""Pictures of an evaluation, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vidshard import atomic

BLUE, RED, GREEN, GREY = "#4c78a8", "#e4572e", "#2a9d8f", "#8a8f98"


def plot_conventions(rows: Sequence[Mapping[str, Any]], path: Path, *, title: str) -> None:
    """Frame AUC of each row of `stage1.evaluate_scores`, over all videos and over anomalous ones alone."""
    figure, (axes,) = _figure(1, height=1.2 + 0.45 * len(rows))
    places = range(len(rows))
    for shift, name, label, colour in (
        (-0.17, "auc", "all videos", BLUE),
        (0.17, "auc_anomalous", "anomalous videos alone", RED),
    ):
        values = [row[name]["value"] or 0.0 for row in rows]
        axes.barh([place + shift for place in places], values, height=0.32, color=colour, label=label)
        for place, row in zip(places, rows, strict=True):
            interval = row[name]
            if interval["low"] is not None:
                axes.plot([interval["low"], interval["high"]], [place + shift] * 2, color="black", linewidth=1.2)
            text = "n/a" if interval["value"] is None else f"{interval['value']:.4f}"
            axes.text(
                min(1.0, interval["high"] or interval["value"] or 0.0) + 0.01,
                place + shift,
                text,
                va="center",
                fontsize=8,
            )
    axes.set_yticks(list(places), [f"{row['name']}\nevents {row['events']}" for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12)
    axes.axvline(0.5, color=GREY, linewidth=1, linestyle=":")
    axes.set_xlabel("Frame AUC (dotted: chance)")
    axes.set_title(title, loc="left", fontweight="bold", fontsize=10)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1.06), ncols=2, fontsize=8)
    _save(figure, path)


def _figure(columns: int, *, height: float = 4.2, rows: int = 1) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # draws without a screen
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(10.0, 5.2 * columns), height * rows), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for one in axes.flat:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25, linewidth=0.7)
    return figure, list(axes.flat)


def _save(figure: Any, path: Path) -> None:
    with atomic.atomic_open(path) as file:
        figure.savefig(file, format="png")
