"""Plots of an evaluation, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stage1.common.plots import AUC_COLOUR as GREEN
from stage1.common.plots import GREY, make_figure, save, set_title
from stage1.common.plots import TRAIN_COLOUR as BLUE
from stage1.common.plots import VALIDATION_COLOUR as RED
from stage1.metrics.calibration import MassBin, equal_mass_bins
from stage1.metrics.clips import interval_text, roc_curve


def plot_conventions(rows: Sequence[Mapping[str, Any]], path: Path, *, title: str) -> None:
    """Plot the frame AUC of each row of `stage1.evaluation.foreign_scores`, over all and over anomalous videos."""
    figure, (axes,) = make_figure((10, 1.2 + 0.45 * len(rows)))
    places = range(len(rows))
    for shift, name, label, colour in (
        (-0.17, "auc", "all videos", BLUE),
        (0.17, "auc_anomalous", "anomalous videos alone", RED),
    ):
        values = [row[name]["value"] or 0.0 for row in rows]
        axes.barh([place + shift for place in places], values, height=0.32, color=colour, label=label)
        for place, row in zip(places, rows, strict=True):
            interval = row[name]
            _draw_interval(axes, interval, place + shift, color="black", linewidth=1.2)
            text = "n/a" if interval["value"] is None else f"{interval['value']:.4f}"
            right = min(1.0, interval["high"] or interval["value"] or 0.0) + 0.01
            axes.text(right, place + shift, text, va="center", fontsize=8)
    axes.set_yticks(list(places), [f"{row['name']}\nevents {row['events']}" for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12)
    axes.axvline(0.5, color=GREY, linewidth=1, linestyle=":")
    axes.set_xlabel("Frame AUC (dotted: chance)")
    set_title(axes, title, fontsize=10)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1.06), ncols=2, fontsize=8)
    save(figure, path)


def plot_evaluation(fields: Mapping[str, Any], clips: Any, videos: Any, path: Path) -> None:
    """Plot ROC curves, calibration, scores by class and shortcut baselines of a report of `stage1.evaluation.run`.

    `clips` and `videos` have `labels` and `scores`.
    """
    figure, axes = make_figure((10.4, 8.4), rows=2, columns=2)
    _draw_roc(axes[0], fields, {"clips": clips, "videos": videos})
    _draw_reliability(axes[1], fields["calibration"], equal_mass_bins(clips.labels, clips.scores))
    _draw_scores(axes[2], videos, fields["threshold"]["value"])
    _draw_baselines(axes[3], fields)
    save(figure, path)


def _draw_interval(axes: Any, interval: Mapping[str, Any], y: float, **style: Any) -> None:
    if interval["low"] is not None:
        axes.plot([interval["low"], interval["high"]], [y, y], **style)


def _draw_roc(axes: Any, fields: Mapping[str, Any], levels: Mapping[str, Any]) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
    for (name, level), colour, width in zip(levels.items(), (BLUE, RED), (3.5, 1.6), strict=True):
        auc = fields["levels"][name]["auc"]
        if auc["value"] is not None:
            rates = roc_curve(level.labels, level.scores)
            axes.plot(*rates, color=colour, linewidth=width, label=f"{name}: AUC {interval_text(auc)}")
    axes.set(xlabel="False positive rate", ylabel="True positive rate", xlim=(0, 1), ylim=(0, 1.02))
    set_title(axes, "ROC")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="lower right")
    else:
        axes.text(0.5, 0.25, "undefined: the clips belong to only one class", ha="center", color=GREY)


def _draw_reliability(axes: Any, calibration: Mapping[str, Any], bins: Sequence[MassBin]) -> None:
    """Plot the share of crime in bins of equal size, with its interval; the dotted line is perfect calibration."""
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
    probabilities = [one.mean_probability for one in bins]
    shares = [one.crime_share for one in bins]
    # Rounding may put an end of the interval of a share of 0 or 1 on the wrong side of it.
    below = [max(0.0, one.crime_share - one.low) for one in bins]
    above = [max(0.0, one.high - one.crime_share) for one in bins]
    calibrated = calibration["prior"] is not None
    label = f"ECE {calibration['after' if calibrated else 'before']['ece']:.3f}"
    label += f" (before calibration {calibration['before']['ece']:.3f})" if calibrated else ""
    # Without clipping, points at 0 and 1 stay whole.
    axes.errorbar(
        probabilities, shares, yerr=[below, above], color=GREEN if calibrated else GREY, marker="o", linewidth=1,
        capsize=3, label=label, clip_on=False,
    )  # fmt: skip
    axes.set(xlabel="P(crime)", ylabel="Share of crime", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    how = f"temperature {calibration['temperature']:.2f}" if calibrated else "not calibrated"
    size = f"{len(bins)} bins of {bins[0].count} clips" if len(bins) > 1 else "1 bin"
    set_title(axes, f"Calibration of clips, {how}\n{size}, 95 % intervals", fontsize=10)
    axes.legend(loc="best", framealpha=0.85, edgecolor="none")


def _draw_scores(axes: Any, videos: Any, threshold: float) -> None:
    for label, name, colour in ((0, "normal", BLUE), (1, "crime", RED)):
        own = videos.scores[videos.labels == label]
        axes.hist(own, bins=25, range=(0, 1), color=colour, alpha=0.6, label=f"{name} ({len(own)})")
    axes.axvline(threshold, ymax=0.88, color="black", linewidth=1, linestyle="--", label=f"threshold {threshold:.3f}")
    axes.set(xlabel="P(crime) of a video", ylabel="Videos")
    set_title(axes, "Scores")
    axes.set_ylim(top=1.35 * axes.get_ylim()[1])  # room for the legend
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, loc="upper center", ncols=3, fontsize=8)


def _draw_baselines(axes: Any, fields: Mapping[str, Any]) -> None:
    rows = [("model", fields["levels"]["videos"]["auc"], RED)]
    rows += [(row["name"], row["auc"], BLUE) for row in fields["baselines"]]
    for place, (_, interval, colour) in enumerate(rows):
        if interval["value"] is not None:
            axes.plot(interval["value"], place, "o", color=colour)
            _draw_interval(axes, interval, place, color=colour, linewidth=2)
    axes.axvline(0.5, color=GREY, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.invert_yaxis()
    axes.set(xlabel="Video AUC with interval (dotted: chance)", xlim=(0, 1.02))
    set_title(axes, "Shortcut baselines" if len(rows) > 1 else "Shortcut baselines: none fitted (`train_shards`)")


def plot_explanation(fields: Mapping[str, Any], path: Path) -> None:
    """Plot deletion and insertion curves with their matched random frames, and the gaps between them."""
    figure, axes = make_figure((15.6, 4.2), columns=3)
    colours = dict(zip(fields["deletion"]["gap"], (RED, BLUE, GREEN, GREY), strict=False))
    for own, kind, verb in ((axes[0], "deletion", "frozen"), (axes[1], "insertion", "kept")):
        for name, curves in fields[kind]["curves"].items():
            own.plot(fields["frames"], curves["own"], color=colours[name], marker="o", markersize=3.5, label=name)
            own.plot(fields["frames"], curves["random"], color=colours[name], linewidth=1, linestyle=":")
        own.set(xlabel=f"Frames {verb}", ylabel="Log-odds of crime")
        set_title(own, f"{kind.capitalize()} (dotted: matched random)", fontsize=10)
        own.legend(frameon=False)
    names = list(colours)
    for shift, kind, marker in ((-0.12, "deletion", "o"), (0.12, "insertion", "s")):
        for place, name in enumerate(names):
            gap = fields[kind]["gap"][name]
            label = f"{kind}" if place == 0 else None
            axes[2].plot(gap["value"], place + shift, marker, color=colours[name], label=label)
            _draw_interval(axes[2], gap, place + shift, color=colours[name], linewidth=2)
    axes[2].axvline(0, color=GREY, linewidth=1, linestyle=":")
    axes[2].set_yticks(range(len(names)), names)
    axes[2].invert_yaxis()
    axes[2].set_xlabel("Gap in log-odds, with interval")
    set_title(axes[2], "Gap over matched random frames", fontsize=10)
    axes[2].legend(frameon=False)
    save(figure, path)
