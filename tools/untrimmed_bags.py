"""Learning from bags against learning from clip labels, on untrimmed videos whose events are known.

    python tools/untrimmed_bags.py TRAIN VALIDATION TEST WORK [--epochs 5] [--set NAME=VALUE …]

TRAIN, VALIDATION and TEST hold CLASS/NAME.mp4 and temporal_annotations.txt in UCF-Crime's form; a sources.json beside
or in them names recordings. All ways learn from the labels of videos alone and see as many clips in an epoch; clip
labels means that every clip of a crime video is called crime. Every method is evaluated twice, as it is and relative
to the median of each video (`stage1 evaluate --relative`), with thresholds chosen on VALIDATION. What is compared
with clip labels at the end is the aggregator that was better on VALIDATION. TEST is evaluated once; WORK keeps
finished work.

AUC: frames; "anomalous": of the videos that hold an event alone. Intervals: 95 %, by resampling recordings (else
videos). Beside them the shortcut baselines, and one number that learnt nothing: how suddenly the 3 % of a frame's cells
change that change most, on average over the clip.

Last line: JSON {WAY: {"raw"|"relative": {…}}}.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stage1.common import files
from stage1.data.reader import ClipReader
from stage1.data.transforms import ClipTransform, TransformConfig
from stage1.evaluation import baselines as shortcut_baselines
from stage1.evaluation import run as evaluation
from stage1.evaluation.run import EvaluateConfig, ScoredClips
from stage1.metrics import clips as metrics
from stage1.metrics.calibration import Target, parse_target
from stage1.metrics.ground_truth import read_ground_truth
from stage1.model.checkpoint import load_checkpoint
from stage1.model.motion_features import motion_features

SPLITS = ("Train", "Validation", "Test")
CLIP_LABELS = "clip labels"
BAGS = {"bags, topk": "topk", "bags, attention": "attention"}
SUDDENNESS = 3  # of the motion features: the mean over time, at the quantile .97 of the cells
CLIPS_PER_STEP = 32
MODES = ("raw", "relative")


def main() -> int:
    options = parse_options()
    for split in SPLITS:
        build(options, split)
    readers = {split: ClipReader(options.work / "shards" / split) for split in SPLITS}
    trained = {name: train(options, name) for name in (CLIP_LABELS, *BAGS)}
    scored = {
        split: {name: score(readers[split], checkpoint) for name, checkpoint in trained.items()}
        | {"no training: suddenness": suddenness(readers[split])}
        for split in SPLITS[1:]
    }
    known = {split: Judge(readers[split], getattr(options, split.lower())) for split in SPLITS[1:]}
    target = parse_target(f"false-alarms-per-hour={options.false_alarms:g}")
    for name in BAGS:
        print(f"Validation: {name}: AUC on anomalous videos {known['Validation'].anomalous(scored, name).text()}")
    chosen = max(BAGS, key=lambda name: known["Validation"].anomalous(scored, name).value or 0.0)
    print(f"Chosen on Validation: {chosen}\n\nTest:")
    results: dict[str, dict[str, Any]] = {}
    for name in scored["Test"]:
        results[name] = {mode: known["Test"].row(scored, name, mode, target) for mode in MODES}
        for mode, row in results[name].items():
            print(f"  {name:<24} {mode:<8} {row['text']}", flush=True)
    for name, clips in baselines(readers).items():
        results[name] = {mode: {"auc_anomalous": known["Test"].auc_anomalous(clips, mode)[0]} for mode in MODES}
        texts = [f"{mode} AUC on anomalous videos {row['auc_anomalous']:.3f}" for mode, row in results[name].items()]
        print(f"  shortcut: {name:<24} {', '.join(texts)}")
    print("\nDifferences in AUC on anomalous videos, on the same resamples:")
    ours = scored["Test"][chosen]
    for mine, other in (("raw", "raw"), ("relative", "relative"), ("relative", "raw")):
        gap = known["Test"].difference((ours, mine), (scored["Test"][CLIP_LABELS], other))
        print(f"  {chosen}, {mine} − {CLIP_LABELS}, {other}: {gap.text()}")
    print(json.dumps({"chosen": chosen, **results}))
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("train", "validation", "test", "work"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--frame-size", type=int, default=80)
    parser.add_argument("--bag-clips", type=int, default=16, help="of each video, the same for every way of training")
    parser.add_argument("--false-alarms", type=float, default=20, help="an hour, on VALIDATION: chooses thresholds")
    parser.add_argument("--set", action="append", default=[], help="an option of training, as of stage1 train")
    return parser.parse_args()


def build(options: argparse.Namespace, split: str) -> None:
    shards = options.work / "shards" / split
    if not (shards / "manifest.json").is_file():
        # Steps of 2 frames, windows side by side: a second each at 30 frames a second.
        sampling = ["--sampling", "dense", "--frame-step", 2, "--stride", 32, "--frame-size", options.frame_size]
        run("vidshard", "build", getattr(options, split.lower()), *sampling, "--out", shards)


def train(options: argparse.Namespace, name: str) -> Path:
    """Train one way to the last epoch; return its checkpoint."""
    folder: Path = options.work / name.replace(", ", "-").replace(" ", "-")
    path = folder / files.BEST_NAME
    if not path.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        bag = options.bag_clips
        steps: list[Any] = ["--batch-size", CLIPS_PER_STEP, "--clips-per-video-per-epoch", bag]
        if name in BAGS:
            steps = ["--bags", BAGS[name], "--bag-clips", bag, "--accumulate", max(1, CLIPS_PER_STEP // bag)]
        settings = [word for setting in options.set for word in ("--set", setting)]
        shards = ["--shards", options.work / "shards" / "Train", "--val-fraction", 0, "--epochs", options.epochs]
        run("stage1", "train", *shards, *steps, *settings, "--out", folder)
    return path


def score(reader: ClipReader, checkpoint: Path) -> ScoredClips:
    return evaluation.score_clips(reader, load_checkpoint(checkpoint), EvaluateConfig())


def suddenness(reader: ClipReader) -> ScoredClips:
    """One of the motion features as log-odds, as it is."""
    transform, values = ClipTransform(TransformConfig()), []
    for row in range(len(reader)):
        with torch.inference_mode():
            pixels = transform(torch.from_numpy(reader[row])[None])
            values.append(float(motion_features(pixels)[0, SUDDENNESS]))
    return evaluation.labelled_clips(reader, lambda rows: 1 / (1 + np.exp(-np.array(values)[rows])))


def baselines(readers: dict[str, ClipReader]) -> dict[str, ScoredClips]:
    train, test = readers["Train"], readers["Test"]
    rows = shortcut_baselines.some_rows(train, per_video=evaluation.BASELINE_CLIPS)
    all_rows = list(range(len(test)))
    found = shortcut_baselines.score_shortcuts(train, rows, test, all_rows)
    return {
        name: evaluation.labelled_clips(test, lambda rows, values=values: values[rows])
        for name, values in found.items()
    }


def as_mode(clips: ScoredClips, mode: str) -> ScoredClips:
    return evaluation.centred_clips(clips) if mode == "relative" else clips


@dataclasses.dataclass
class Judge:
    """Ground truth of the videos of a split, and how well scores match it."""

    reader: ClipReader
    folder: Path

    def __post_init__(self) -> None:
        self.truth = read_ground_truth(self.folder / "temporal_annotations.txt", self.reader)
        self.config = EvaluateConfig()

    def anomalous(self, scored: dict[str, dict[str, ScoredClips]], name: str) -> metrics.Interval:
        clips = as_mode(scored["Validation"][name], "relative")
        return evaluation.frames_of(clips, self.truth, self.config).auc_anomalous

    def auc_anomalous(self, clips: ScoredClips, mode: str) -> list[float | None]:
        found = evaluation.frames_of(as_mode(clips, mode), self.truth, self.config).auc_anomalous
        return [found.value, found.low, found.high]

    def row(self, scored: dict[str, dict[str, ScoredClips]], name: str, mode: str, target: Target) -> dict[str, Any]:
        """Frames, and events and false alarms at the threshold that VALIDATION gives."""
        clips, chooses = (as_mode(scored[split][name], mode) for split in ("Test", "Validation"))
        frames = evaluation.frames_of(clips, self.truth, self.config)
        threshold = evaluation.choose_threshold(chooses, target)
        events = evaluation.events_found(clips, self.truth, threshold, self.config)
        alarms = evaluation.false_alarms(clips, threshold, self.config)
        single = frames.mean_auc_of_anomalous_videos
        rate = metrics.Interval(**alarms["per_hour"])
        return {
            **{key: [(x := getattr(frames, key)).value, x.low, x.high] for key in ("auc_anomalous", "auc")},
            "auc_single_videos": single.value,
            "events": [events["found"], events["events"]],
            "false_alarms_per_hour": [rate.value, rate.low, rate.high],
            "text": f"AUC anomalous {frames.auc_anomalous.text()}, single videos {single.text()}, all frames "
            f"{frames.auc.text()}, {events['found']} of {events['events']} events, {rate.text(1)} false alarms an hour",
        }

    def difference(self, a: tuple[ScoredClips, str], b: tuple[ScoredClips, str]) -> metrics.Interval:
        """AUC on anomalous videos of a less that of b, paired."""
        statistics, groups = [], []
        for clips, mode in (a, b):
            videos = [video for video in evaluation.scored_videos(as_mode(clips, mode), self.truth) if video.is_crime]
            groups = [video.group for video in videos for _ in video.labels]
            labels, scores = (
                np.concatenate([getattr(video, part) for video in videos]) for part in ("labels", "scores")
            )
            statistics.append(metrics.roc_auc_statistic(labels, scores))
        return metrics.paired_bootstrap(*statistics, groups, num_resamples=500)


def run(name: str, *arguments: Any) -> None:
    path = shutil.which(name, path=str(Path(sys.executable).parent)) or name
    words = [path, *map(str, arguments)]
    print("$ " + " ".join(words), flush=True)
    code = subprocess.run(words, check=False).returncode
    if code not in (0, 2):  # 2: done, and a file that is no video was passed over
        raise SystemExit(f"`{name} {words[1]}` ended with exit code {code}")


if __name__ == "__main__":
    sys.exit(main())
