"""Events found in untrimmed videos: the settings are chosen on validation videos, then applied once to test videos.

    python tools/untrimmed_events.py --checkpoint PT --validation DIR... --test DIR... --out DIR

Every DIR holds CLASS/NAME.mp4 and temporal_annotations.txt in UCF-Crime's form. All are scored with `stage1 infer
--videos`. On the validation videos a grid of threshold, top share, smoothing, hysteresis and least length is searched:
most events found at no more than --max-alarms false alarms an hour, of these the highest mean overlap. Each test DIR is
then measured with these settings, and with the defaults of `stage1 infer`.

found: a true event that a predicted one overlaps. False alarm: a predicted event that overlaps no true one; by hour of
footage without an event. Overlap: intersection over union in time of each true event with the best predicted one, 0
where none is. The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from stage1.inference.events import EventConfig, event_spans
from stage1.inference.run import InferConfig, infer

Span = tuple[float, float]
THRESHOLDS = np.round(np.arange(0.3, 0.96, 0.025), 3).tolist()
SMOOTHINGS = (1.0, 3.0, 5.0, 7.0)
LOW_RATIOS = (0.7, 0.8, 0.9)
MIN_SECONDS = (2.0, 4.0)
TOP_SHARES = (0.01, 0.02, 0.05, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--validation", type=Path, nargs="+", required=True)
    parser.add_argument("--test", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--max-alarms", type=float, default=20.0, help="an hour, on validation")
    options = parser.parse_args()

    validation = [video for folder in options.validation for video in score(folder, options)]
    chosen = choose(validation, max_alarms=options.max_alarms)
    default_threshold = json.loads((options.out / options.validation[0].name / "run.json").read_bytes())["threshold"]
    default = {"threshold": default_threshold, **vars(EventConfig())}
    result: dict[str, Any] = {"chosen": chosen, "default": default, "validation": measure(validation, chosen)}
    show("validation, chosen on it", result["validation"])
    for folder in options.test:
        videos = score(folder, options)
        result[folder.name] = {"chosen": measure(videos, chosen), "default": measure(videos, default)}
        for name, figures in result[folder.name].items():
            show(f"{folder.name}, {name} settings", figures)
    print(json.dumps(result))


def score(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the videos below `folder` with their unsmoothed scores per second and their true events."""
    out = options.out / folder.name
    if not (out / "run.json").is_file():
        infer(
            InferConfig(
                videos=(str(folder),),
                checkpoint=options.checkpoint,
                out=out,
                annotations=folder / "temporal_annotations.txt",
                events=EventConfig(smooth_seconds=1),
                attention_format="shards",
            )
        )
    videos: list[dict[str, Any]] = json.loads((out / "events.json").read_bytes())["videos"]
    unknown = [video["source"] for video in videos if video["truth"] is None]
    if unknown:
        raise SystemExit(f"{folder}: nothing is annotated of {unknown[0]}")
    return videos


def predicted(video: dict[str, Any], settings: dict[str, float]) -> list[Span]:
    scores = np.array([np.nan if value is None else value for value in video["scores"]])
    fields = {name: value for name, value in settings.items() if name != "threshold"}
    _, spans = event_spans(scores, threshold=settings["threshold"], config=EventConfig(**fields))
    return [(float(first), min(float(end), video["duration_seconds"])) for first, end in spans]


def measure(videos: list[dict[str, Any]], settings: dict[str, float]) -> dict[str, float]:
    events = found = alarms = 0
    quiet_seconds, overlaps = 0.0, []
    for video in videos:
        true = [(event["start_seconds"], event["end_seconds"]) for event in video["truth"]]
        spans = predicted(video, settings)
        best = [max((overlap(one, span) for span in spans), default=0.0) for one in true]
        events, found = events + len(true), found + sum(value > 0 for value in best)
        alarms += sum(all(overlap(span, one) == 0 for one in true) for span in spans)
        quiet_seconds += video["duration_seconds"] - sum(end - start for start, end in true)
        overlaps += best
    return {
        "videos": len(videos),
        "events": events,
        "found": found,
        "missed": events - found,
        "found_share": round(found / events, 3),
        "false_alarms": alarms,
        "quiet_hours": round(quiet_seconds / 3600, 3),
        "false_alarms_per_hour": round(alarms / (quiet_seconds / 3600), 1),
        "mean_overlap": round(float(np.mean(overlaps)), 3),
    }


def overlap(a: Span, b: Span) -> float:
    """Intersection over union.

    >>> overlap((0, 4), (2, 6))
    0.3333333333333333
    """
    shared = min(a[1], b[1]) - max(a[0], b[0])
    return max(0.0, shared) / (max(a[1], b[1]) - min(a[0], b[0]))


def choose(videos: list[dict[str, Any]], *, max_alarms: float) -> dict[str, float]:
    """Return the settings that find most events within the limit of false alarms, then have the highest overlap."""

    def rank(settings: dict[str, float]) -> tuple[bool, float, float]:
        figures = measure(videos, settings)
        within = figures["false_alarms_per_hour"] <= max_alarms
        return within, figures["found"] if within else -figures["false_alarms_per_hour"], figures["mean_overlap"]

    names = ("threshold", "smooth_seconds", "low_ratio", "min_seconds", "top_share")
    grid = itertools.product(THRESHOLDS, SMOOTHINGS, LOW_RATIOS, MIN_SECONDS, TOP_SHARES)
    return max((dict(zip(names, values, strict=True)) for values in grid), key=rank)


def show(title: str, figures: dict[str, float]) -> None:
    print(
        f"{title}: {figures['found']} of {figures['events']} events found ({100 * figures['found_share']:.0f} %), "
        f"{figures['missed']} missed, {figures['false_alarms']} false alarms = {figures['false_alarms_per_hour']} an "
        f"hour (of {figures['quiet_hours']} h), mean overlap {figures['mean_overlap']}",
        flush=True,
    )


if __name__ == "__main__":
    main()
