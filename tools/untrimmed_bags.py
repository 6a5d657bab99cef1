"""Bag training against clip-label training on untrimmed videos with exact truth, made from short clips: synthetic.

    python tools/untrimmed_bags.py MAKER CLIPS OUT [--videos 24] [--epochs 20] [--mixed]

MAKER is a script `MAKER CLIPS OUT --videos N --seconds S --seed K [--same-recording]` that writes CLASS/NAME.mp4 and
temporal_annotations.txt; CLIPS holds Train/ and Test/ with CLASS/NAME.mp4, and sources.json. With --mixed event and
background of a video come from any recording. Nothing is chosen on Test: both ways of training keep their last epoch
and differ in `--bags` alone, and see every clip of a video in an epoch. Prints a table; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

WAYS = {"clip labels": [], "bags, topk": ["--bags", "topk"], "bags, attention": ["--bags", "attention"]}
CLIPS_PER_STEP = 32


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maker", type=Path)
    parser.add_argument("clips", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--videos", type=int, default=24)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--frame-size", type=int, default=112)
    parser.add_argument("--bag-clips", type=int, default=16, help="of each video, the same for every way of training")
    parser.add_argument("--mixed", action="store_true")
    options = parser.parse_args()
    for seed, split in enumerate(("Train", "Test")):
        make_and_build(options, split, seed)
    rows = {name: train_and_judge(options, name, extra) for name, extra in WAYS.items()}
    kind = "any recording" if options.mixed else "one recording a video"
    print(f"\nSynthetic untrimmed videos, {kind}, {options.videos} to train and {options.videos} to test:")
    for name, row in rows.items():
        print(f"  {name:<16} AUC on anomalous videos {row['auc_anomalous']}, frame AUC {row['auc']}, {row['rest']}")
    print(json.dumps(rows))
    return 0


def make_and_build(options: argparse.Namespace, split: str, seed: int) -> None:
    videos = options.out / "videos" / split
    if not (videos / "temporal_annotations.txt").is_file():
        shutil.rmtree(videos, ignore_errors=True)
        same = [] if options.mixed else ["--same-recording"]
        size = ["--videos", options.videos, "--seconds", options.seconds, "--seed", seed]
        run([sys.executable, options.maker, options.clips / split, videos, *size, *same])
    shards = ["--out", options.out / "shards" / split, "--frame-size", options.frame_size]
    # Steps of 2 frames at 30 a second, windows side by side: a second each.
    run([command("vidshard"), "build", videos, "--sampling", "dense", "--frame-step", 2, "--stride", 32, *shards])


def train_and_judge(options: argparse.Namespace, name: str, extra: list[str]) -> dict[str, Any]:
    """Train one way, then judge on Test."""
    folder = options.out / name.replace(", ", "-").replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    bag = options.bag_clips
    of_way = ["--bag-clips", bag, "--accumulate", max(1, CLIPS_PER_STEP // bag)] if extra else []
    if not extra:
        of_way = ["--batch-size", CLIPS_PER_STEP, "--clips-per-video-per-epoch", bag]
    shards, more = options.out / "shards", [*of_way, *extra, "--out", folder]
    run(
        [
            command("stage1"),
            "train",
            "--shards",
            shards / "Train",
            "--val-fraction",
            0,
            "--epochs",
            options.epochs,
            *more,
        ]
    )
    judged = [command("stage1"), "evaluate", "--checkpoint", folder / "binary_stage1_with_attention.pt"]
    truth = options.out / "videos" / "Test" / "temporal_annotations.txt"
    judged += ["--shards", shards / "Test", "--train-shards", shards / "Train", "--annotations", truth]
    run([*judged, "--out", folder / "evaluation"])
    fields = json.loads((folder / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))
    frames, events, alarms = fields["frames"], fields["events"], fields["false_alarms"]
    per_hour = alarms["per_hour"]["value"] if alarms["per_hour"] else None
    best = max(fields["baselines"], key=lambda row: row["frame_auc_anomalous"] or 0)
    return {
        **{key: [frames[key][part] for part in ("value", "low", "high")] for key in ("auc_anomalous", "auc")},
        "best_shortcut_anomalous": [best["name"], best["frame_auc_anomalous"]],
        "rest": f"{events['found']} of {events['events']} events, {per_hour} false alarms an hour",
    }


def command(name: str) -> str:
    return shutil.which(name, path=str(Path(sys.executable).parent)) or name


def run(arguments: list[Any]) -> None:
    words = [str(argument) for argument in arguments]
    print("$ " + " ".join(words), flush=True)
    code = subprocess.run(words, check=False).returncode
    if code not in (0, 2):  # 2: done, and a file that is no video was passed over
        raise SystemExit(f"`{words[0]} {words[1]}` ended with exit code {code}")


if __name__ == "__main__":
    sys.exit(main())
