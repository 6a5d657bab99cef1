"""Plots of an evaluation, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vidshard.util import atomic

BLUE, RED, GREEN, GREY = "#4c78a8", "#e4572e", "#2a9d8f", "#8a8f98"


def plot_conventions(rows: Sequence[Mapping[str, Any]], path: Path, *, title: str) -> None:
    """Plot the frame AUC of each row of `stage1.evaluation.foreign_scores`, over all and over anomalous videos."""
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


def plot_evaluation(
    fields: Mapping[str, Any],
    clip_labels: Any,
    clip_scores: Any,
    video_labels: Any,
    video_scores: Any,
    path: Path,
) -> None:
    """Plot ROC curves, calibration, scores by class and shortcut baselines of a report of `stage1.evaluation.run`."""
    figure, axes = _figure(2, rows=2)
    _draw_roc(axes[0], fields, {"clips": (clip_labels, clip_scores), "videos": (video_labels, video_scores)})
    _draw_reliability(axes[1], fields["calibration"])
    _draw_scores(axes[2], video_labels, video_scores, fields["threshold"]["value"])
    _draw_baselines(axes[3], fields)
    _save(figure, path)


def _draw_roc(axes: Any, fields: Mapping[str, Any], levels: Mapping[str, tuple[Any, Any]]) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
    for (name, (labels, scores)), colour, width in zip(levels.items(), (BLUE, RED), (3.5, 1.6), strict=True):
        auc = fields["levels"][name]["auc"]
        if auc["value"] is None:
            continue
        points = _roc(labels, scores)
        label = f"{name}: AUC {auc['value']:.3f}"
        if auc["low"] is not None:
            label += f" [{auc['low']:.3f}, {auc['high']:.3f}]"
        axes.plot(*points, color=colour, linewidth=width, label=label)
    axes.set(xlabel="Share of normal called crime", ylabel="Share of crime found", xlim=(0, 1), ylim=(0, 1.02))
    axes.set_title("ROC", loc="left", fontweight="bold")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="lower right")
    else:
        axes.text(0.5, 0.25, "none: the clips are of one class only", ha="center", color=GREY)


def _roc(labels: Any, scores: Any) -> tuple[list[float], list[float]]:
    """Return false and true positive rates from (0, 0) to (1, 1), with a point for each distinct score."""
    order = sorted(zip(map(float, scores), map(int, labels), strict=True), reverse=True)
    num_crime = sum(label for _, label in order)
    false_rate, true_rate, found = [0.0], [0.0], 0
    for count, (score, label) in enumerate(order, start=1):
        found += label
        if count == len(order) or order[count][0] != score:
            false_rate.append((count - found) / max(1, len(order) - num_crime))
            true_rate.append(found / max(1, num_crime))
    return false_rate, true_rate


def _draw_reliability(axes: Any, calibration: Mapping[str, Any]) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
    calibrated = calibration["prior"] is not None
    for name, colour in (("before", GREY), ("after", GREEN)) if calibrated else (("before", GREY),):
        curve = calibration[name]
        points = [
            (p, share, count)
            for p, share, count in zip(curve["mean_probability"], curve["crime_share"], curve["counts"], strict=True)
            if count
        ]
        most = max((count for *_, count in points), default=1)
        axes.plot([p for p, *_ in points], [share for _, share, _ in points], color=colour, linewidth=1)
        axes.scatter(
            [p for p, *_ in points],
            [share for _, share, _ in points],
            s=[15 + 150 * count / most for *_, count in points],
            color=colour,
            label=f"{name}: ECE {curve['ece']:.3f}" if calibrated else f"ECE {curve['ece']:.3f}",
            zorder=3,
            clip_on=False,  # points at 0 and 1 stay whole
        )
    axes.set(xlabel="P(crime)", ylabel="Share of crime", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    how = f"temperature {calibration['temperature']:.2f}" if calibrated else "never calibrated"
    title = f"Calibration of clips, {how}"
    axes.set_title(title, loc="left", fontweight="bold")
    axes.legend(loc="best", framealpha=0.85, edgecolor="none", markerscale=0.6)  # where fewest points are


def _draw_scores(axes: Any, labels: Any, scores: Any, threshold: float) -> None:
    for label, name, colour in ((0, "normal", BLUE), (1, "crime", RED)):
        own = [float(score) for score, of in zip(scores, labels, strict=True) if of == label]
        axes.hist(own, bins=25, range=(0, 1), color=colour, alpha=0.6, label=f"{name} ({len(own)})")
    axes.axvline(threshold, ymax=0.88, color="black", linewidth=1, linestyle="--", label=f"threshold {threshold:.3f}")
    axes.set(xlabel="P(crime) of a video", ylabel="Videos")
    axes.set_title("Scores", loc="left", fontweight="bold")
    axes.set_ylim(top=1.35 * axes.get_ylim()[1])  # room for the legend
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, loc="upper center", ncols=3, fontsize=8)


def _draw_baselines(axes: Any, fields: Mapping[str, Any]) -> None:
    rows = [("the model", fields["levels"]["videos"]["auc"], RED)]
    rows += [(row["name"], row["auc"], BLUE) for row in fields["baselines"]]
    for place, (_, interval, colour) in enumerate(rows):
        if interval["value"] is not None:
            axes.plot(interval["value"], place, "o", color=colour)
            if interval["low"] is not None:
                axes.plot([interval["low"], interval["high"]], [place, place], color=colour, linewidth=2)
    axes.axvline(0.5, color=GREY, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.invert_yaxis()
    axes.set(xlabel="Video AUC with interval (dotted: chance)", xlim=(0, 1.02))
    title = "Shortcut baselines" if len(rows) > 1 else "Shortcut baselines: none fitted (`train_shards`)"
    axes.set_title(title, loc="left", fontweight="bold")


def plot_explanation(fields: Mapping[str, Any], path: Path) -> None:
    """Plot deletion and insertion curves with their matched random frames, and the gaps between them."""
    figure, axes = _figure(3)
    colours = dict(zip(fields["deletion"]["gap"], (RED, BLUE, GREEN, GREY), strict=False))
    for own, kind, what in ((axes[0], "deletion", "frozen"), (axes[1], "insertion", "left")):
        for name, curves in fields[kind]["curves"].items():
            own.plot(fields["frames"], curves["own"], color=colours[name], marker="o", markersize=3.5, label=name)
            own.plot(fields["frames"], curves["random"], color=colours[name], linewidth=1, linestyle=":")
        own.set(xlabel=f"Frames {what}", ylabel="Log-odds of crime")
        own.set_title(f"{kind.capitalize()} (dotted: matched random)", loc="left", fontweight="bold", fontsize=10)
        own.legend(frameon=False)
    names = list(colours)
    for shift, kind, marker in ((-0.12, "deletion", "o"), (0.12, "insertion", "s")):
        for place, name in enumerate(names):
            gap = fields[kind]["gap"][name]
            label = f"{kind}" if place == 0 else None
            axes[2].plot(gap["value"], place + shift, marker, color=colours[name], label=label)
            if gap["low"] is not None:
                axes[2].plot([gap["low"], gap["high"]], [place + shift] * 2, color=colours[name], linewidth=2)
    axes[2].axvline(0, color=GREY, linewidth=1, linestyle=":")
    axes[2].set_yticks(range(len(names)), names)
    axes[2].invert_yaxis()
    axes[2].set_xlabel("Gap in log-odds, with interval")
    axes[2].set_title("Gap over matched random frames", loc="left", fontweight="bold", fontsize=10)
    axes[2].legend(frameon=False)
    _save(figure, path)
