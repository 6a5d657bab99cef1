"""Does `stage1 infer --videos` find six events in an hour of video, and does its memory grow with the hour?

    make demo                       # trains the model
    python tools/hour_of_video.py [--minutes 60] [--events 6] [--checkpoint FILE]

The video (160×120, 16 frames/s) is made of generated minutes like the videos of the demo, but with other seeds: normal
ones, 18 of which are repeated, and one for each event, which lasts 6 s. Memory is the peak resident memory of the
command and that of its largest decoding process, for the first 5 minutes of the video and for all of it.

Last line: JSON {"found": n, "events": n, "false_alarms": n, "reported_over_true_seconds": x,
"seconds_without_score": n, "seconds": x, "peak_mb_5_minutes": [x, x], "peak_mb": [x, x]}.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np

import synthetic_videos
from bench_build import run_and_watch
from synthetic_videos import VideoConfig, VideoPlan

CONFIG = VideoConfig(num_frames=(960, 960), event_fraction=(0.1, 0.1))
SEED = 77  # the demo has 0
MAX_NORMAL = 18
Spans = list[tuple[float, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--events", type=int, default=6)
    parser.add_argument("--checkpoint", type=Path, default=Path("demo/checkpoints/binary_stage1_with_attention.pt"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hour-of-video-") as scratch:
        folder = Path(scratch)
        minutes, truth = make_minutes(folder, options.minutes, options.events)
        measured = {}
        for name, paths in (("start", minutes[:5]), ("whole", minutes)):
            join(paths, folder / f"{name}.mp4")
            peaks = {"parent": 0.0, "worker": 0.0}
            given = ["--videos", f"{folder / name}.mp4", "--checkpoint", options.checkpoint, "--out", folder / name]
            seconds = run_and_watch([sys.executable, "-m", "stage1", "infer", *map(str, given)], peaks)
            measured[name] = (seconds, list(map(round, peaks.values())))
        (video,) = json.loads((folder / "whole" / "events.json").read_bytes())["videos"]
    result = compare(truth, [(event["start_seconds"], event["end_seconds"]) for event in video["events"]])
    result["seconds_without_score"] = sum(score is None for score in video["scores"])
    seconds, peaks_mb = measured["whole"]
    memory = {"peak_mb_5_minutes": measured["start"][1], "peak_mb": peaks_mb}
    print(json.dumps({name: round(value, 2) for name, value in result.items()} | {"seconds": round(seconds)} | memory))


def make_minutes(folder: Path, count: int, num_events: int) -> tuple[list[Path], Spans]:
    """Return one file for each minute, some of them repeated, and the start and end of the events in seconds."""
    plans = synthetic_videos.plan_dataset({"Hour": 2 * max(MAX_NORMAL, num_events)}, seed=SEED, config=CONFIG)
    crimes = [plan for plan in plans if plan.event][:num_events]
    normal = [plan for plan in plans if not plan.event][: min(MAX_NORMAL, count - num_events)]
    synthetic_videos.run_jobs(write, [(folder, plan) for plan in crimes + normal], None)
    places = np.random.default_rng(SEED).choice(count, num_events, replace=False).tolist()
    order = [crimes[places.index(i)] if i in places else normal[i % len(normal)] for i in range(count)]
    spans = [
        (60 * minute + plan.event[0] / CONFIG.fps, 60 * minute + (plan.event[1] + 1) / CONFIG.fps)
        for minute, plan in enumerate(order)
        if plan.event
    ]
    return [folder / plan.path for plan in order], spans


def write(folder: Path, plan: VideoPlan) -> None:
    """Render and encode a video."""
    path = folder / plan.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(synthetic_videos.encode(synthetic_videos.render_video(plan, CONFIG), plan, CONFIG))


def join(paths: Sequence[Path], path: Path) -> None:
    """Write videos one after another into one file, without encoding."""
    lines = "".join(f"file '{each}'\n" for each in paths)
    names = path.with_suffix(".txt")
    names.write_text(lines)
    with av.open(str(names), format="concat", options={"safe": "0"}) as joined, av.open(str(path), "w") as whole:
        copy = whole.add_stream_from_template(joined.streams.video[0])
        for packet in joined.demux(joined.streams.video[0]):
            if packet.size:
                packet.stream = copy
                whole.mux(packet)


def compare(truth: Spans, found: Spans) -> dict[str, float]:
    """Count the true spans that a found one overlaps, and the found ones that overlap none."""

    def overlap(one: tuple[float, float], others: Spans) -> bool:
        return any(min(one[1], other[1]) > max(one[0], other[0]) for other in others)

    return {
        "found": sum(overlap(span, found) for span in truth),
        "events": len(truth),
        "false_alarms": sum(not overlap(span, truth) for span in found),
        "reported_over_true_seconds": sum(b - a for a, b in found) / sum(b - a for a, b in truth),
    }


if __name__ == "__main__":
    main()
