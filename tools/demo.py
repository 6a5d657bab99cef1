"""Script of `make demo`: the whole workflow, from videos to explained detections, in the folder `demo`.

The videos are generated (see synthetic_videos.py); the rest are the two commands, as a user would type them. Ends with
exit code 1 when a command fails, or the result is below LEAST_ACCURACY or LEAST_ATTENTION.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import synthetic_videos

FOLDER = Path("demo")
COMMANDS = (
    "vidshard build videos",
    "vidshard inspect shards/Train",
    "stage1 train --shards shards/Train --val-shards shards/Validation --epochs 15",
    "stage1 infer",
    "stage1 visualize",
    "stage1 evaluate --val-shards shards/Validation --train-shards shards/Train",
    "stage1 report --evaluation evaluation",
)
MADE = ("videos", "shards", "shards.log", "checkpoints", "stage1_output", "evaluation")
MOST_EVENT = 0.4  # share of a clip's frames: if the event fills more, finding it is trivial

LEAST_ACCURACY = 0.9
LEAST_ATTENTION = 0.6  # mean share of attention on the frames of the event


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """Accuracy on the held-out videos, and the share of attention on the event."""

    num_videos: int
    accuracy: float
    num_events: int  # detected crime clips with an event in at most MOST_EVENT of their frames
    attention: float  # mean share of attention on frames of the event, over these clips; nan if there are none
    event_frames: float  # mean share of frames that belong to the event: what uniform attention would give


def main() -> int:
    remove_last_run(FOLDER)
    start = time.monotonic()
    synthetic_videos.make_dataset(FOLDER / "videos")
    seconds = {"make the videos": time.monotonic() - start}
    num_videos = ", ".join(f"{count} {split}" for split, count in synthetic_videos.DEMO_VIDEOS.items())
    print(f"Generated {num_videos} videos in {FOLDER / 'videos'}\n\n$ cd {FOLDER}", flush=True)
    for command in COMMANDS:
        print(f"\n$ {command}", flush=True)
        code, seconds[command] = run(command, FOLDER)
        if code != 0:
            print(f"\nThe demo stops: `{command}` ended with exit code {code}.", file=sys.stderr)
            return 1
    result = judge(FOLDER)
    print(report(result, seconds))
    for fault in faults(result):
        print(f"The demo fails: {fault}.", file=sys.stderr)
    return 1 if faults(result) else 0


def remove_last_run(folder: Path) -> None:
    """Remove only what an earlier demo made: `stage1 train` refuses a folder with another run."""
    for name in MADE:
        if (folder / name).exists():
            shutil.rmtree(folder / name)


def run(command: str, folder: Path) -> tuple[int, float]:
    """Run one of the two commands of this environment in `folder`; returns its exit code and seconds."""
    name, *arguments = command.split()
    program = shutil.which(name, path=str(Path(sys.executable).parent)) or name
    start = time.monotonic()
    code = subprocess.run([program, *arguments], cwd=folder, check=False).returncode
    return code, time.monotonic() - start


def judge(folder: Path) -> Result:
    """Compare predictions.csv and anomalies.json with the labels and the event windows of the generated videos."""
    with open(folder / "stage1_output" / "predictions.csv", encoding="utf-8", newline="") as file:
        right = [row["label"] == row["predicted"] for row in csv.DictReader(file)]
    windows = synthetic_videos.read_annotations(folder / "videos" / synthetic_videos.ANNOTATIONS_NAME)
    detections = json.loads((folder / "stage1_output" / "anomalies.json").read_text(encoding="utf-8"))
    attention, event_frames = [], []
    for detection in detections:
        ((first, last),) = windows[Path(detection["source"]).name] or [(0, -1)]
        inside = np.array([first <= index <= last for index in detection["frame_indices"]])
        if detection["label"] == 1 and inside.mean() <= MOST_EVENT:
            attention.append(np.array(detection["attention_weights"])[inside].sum())
            event_frames.append(inside.mean())
    return Result(
        num_videos=len(right),
        accuracy=float(np.mean(right)),
        num_events=len(attention),
        attention=float(np.mean(attention)) if attention else float("nan"),
        event_frames=float(np.mean(event_frames)) if attention else float("nan"),
    )


def faults(result: Result) -> list[str]:
    """List the figures of the result that miss the demo's targets."""
    found = []
    if result.accuracy < LEAST_ACCURACY:
        found.append(f"the accuracy is {result.accuracy:.1%}, expected at least {LEAST_ACCURACY:.0%}")
    if not result.attention >= LEAST_ATTENTION:  # nan without a detection
        found.append(f"the attention on the event is {result.attention:.1%}, expected at least {LEAST_ATTENTION:.0%}")
    return found


def report(result: Result, seconds: dict[str, float]) -> str:
    """Format the figures of the run and the time of each step."""
    rows = [f"  {value:6.0f} s  {name}" for name, value in {**seconds, "in all": sum(seconds.values())}.items()]
    return "\n".join(
        [
            "",
            "=" * 60,
            f"On the {result.num_videos} Test videos, which training never saw (generated, far easier than real ones):",
            f"  accuracy {result.accuracy:.1%}",
            f"  attention on the frames of the event {result.attention:.1%} (spread evenly: {result.event_frames:.1%})",
            f"The picture: {FOLDER / 'stage1_output' / 'attention_visualization.png'}",
            f"The report, for a browser: {FOLDER / 'stage1_output' / 'report.html'}",
            "Time:",
            *rows,
            "=" * 60,
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
