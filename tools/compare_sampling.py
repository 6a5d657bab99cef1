#!/usr/bin/env python3
"""Which frames of a video to train on: the same videos cut in several ways, the same model, the same number of steps.

    python tools/compare_sampling.py FOLDER_OF_CLASSES [FOLDER_OF_CLASSES …] [--source-groups FILE] [--epochs 20]

Uniform over the video, four equal spans, and windows of consecutive frames with every frame, every second and every
fourth. An epoch takes one clip of each video (others each epoch), so every way costs the same steps of the same size.
Cross-validation by recording; a video's score is the mean over its clips, or the mean of its highest sixteenth, as
`stage1 evaluate` has it. Figures are those of videos, with 95 % intervals by resampling source groups (else videos).
Differences are to uniform, paired.

Last line: JSON {SAMPLING: {"accuracy": x, "auc": x, "auc_of_highest": x, "frame_gap_seconds": x, "clips_a_video": x}};
accuracy and auc are those of the mean.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import vidshard
from stage1.data.reader import ClipReader
from stage1.evaluation.crossval import GROUPED, CrossvalConfig, Split, open_clips, run_split, stratified_folds
from stage1.evaluation.run import top_mean
from stage1.metrics import clips as metrics
from stage1.training.config import TrainConfig
from vidshard.video.sampling import SamplingConfig

SAMPLINGS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "4 spans": {"clips_per_video": 4},
    "every frame": {"mode": "dense"},
    "every 2nd": {"mode": "dense", "frame_step": 2},
    "every 4th": {"mode": "dense", "frame_step": 4},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """One P(crime) a video, in an order that is the same for every sampling."""

    labels: list[int]
    groups: list[str]
    mean: list[float]
    highest: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("sources", type=Path, nargs="+")
    parser.add_argument("--source-groups", type=Path)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument(
        "--work", type=Path, help="folder that keeps shards and runs, to resume later; default: a temporary folder"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        results: dict[str, Any] = {}
        baselines: dict[str, metrics.Statistic] = {}
        for name, settings in SAMPLINGS.items():
            scores, facts = score(name, settings, options, work)
            accuracy = metrics.accuracy_statistic(scores.labels, scores.mean)
            aucs = {
                "AUC": metrics.roc_auc_statistic(scores.labels, scores.mean),
                "AUC of the highest": metrics.roc_auc_statistic(scores.labels, scores.highest),
            }
            line = f"{name:12} accuracy {metrics.bootstrap(accuracy, scores.groups).text()}"
            for what, auc in aucs.items():
                line += f"  {what} {metrics.bootstrap(auc, scores.groups).text()}"
                if name != "uniform":
                    line += f", − uniform {metrics.paired_bootstrap(auc, baselines[what], scores.groups).text()}"
            baselines = baselines or aucs
            print(f"{line}  {facts}", flush=True)
            ones = np.ones(len(scores.labels))
            mean, highest = (auc(ones) for auc in aucs.values())
            results[name] = {"accuracy": accuracy(ones), "auc": mean, "auc_of_highest": highest, **facts}
    print(json.dumps(results))


def score(
    name: str, settings: dict[str, Any], options: argparse.Namespace, work: Path
) -> tuple[Scores, dict[str, float]]:
    """Build, cross-validate, and average the clips of each video."""
    folder = work / name.replace(" ", "-")
    shards = []
    for source in options.sources:
        out = folder / source.name
        sampling = SamplingConfig(**settings)
        config = vidshard.BuildConfig(source=source, out=out, source_groups=options.source_groups, sampling=sampling)
        if not (out / "manifest.json").is_file():
            vidshard.build(config)
        shards.append(out)
    clips = open_clips([ClipReader(path) for path in shards])
    training = TrainConfig(shards=(shards[0],), epochs=options.epochs)
    config = CrossvalConfig(
        shards=tuple(shards), training=training, out=folder / "runs", folds=options.folds, seeds=1, random_split=False
    )
    # Folds of videos, not of clips: the same for every sampling.
    first_rows = np.unique(clips.reader.videos, return_index=True)[1]
    probabilities = np.full(len(clips.labels), np.nan)
    folds = stratified_folds(clips.labels[first_rows], clips.groups[first_rows], folds=options.folds, seed=0)
    for fold, of_fold in enumerate(folds):
        is_held = np.isin(clips.reader.videos, clips.reader.videos[first_rows[of_fold]])
        split = Split(
            kind=GROUPED, seed=0, fold=fold, train_rows=np.flatnonzero(~is_held), held_rows=np.flatnonzero(is_held)
        )
        found = run_split(config, split, clips, clips)
        probabilities[found.rows] = found.confidences
    videos: dict[str, list[int]] = {}
    for row, video in enumerate(clips.reader.videos.tolist()):
        videos.setdefault(clips.reader.video_id(video), []).append(row)
    rows = [videos[name] for name in sorted(videos)]
    scores = Scores(
        labels=[int(clips.labels[of_video[0]]) for of_video in rows],
        groups=[str(clips.groups[of_video[0]]) for of_video in rows],
        mean=[float(probabilities[of_video].mean()) for of_video in rows],
        highest=[top_mean(probabilities[of_video]) for of_video in rows],
    )
    gap = round(clips.reader.frame_gap_seconds(), 3)
    return scores, {"frame_gap_seconds": gap, "clips_a_video": round(len(clips.labels) / len(rows), 1)}


if __name__ == "__main__":
    main()
