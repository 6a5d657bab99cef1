"""False alarms on a camera that training never saw, with and without normal footage of other cameras in training.

    python tools/one_camera_out.py --shards Train [--shards Validation …] --test Test
        --camera SET --camera SET … --out FOLDER [--seed 0] [--set NAME=VALUE …]

Every SET is normal footage of one camera. One model is trained on the labelled shards alone; for each camera, another
one is trained with the sets of all other cameras as `extra_normal`. Both score that camera and the labelled test set,
at the threshold 0.5 and at the lowest threshold from 0.5 on at which at most 10 % of the windows of the *other*
cameras, on average, are called a crime. Nothing is chosen on the camera itself. Finished trainings are kept in FOLDER,
so that the same command resumes where it stopped.

Last line: JSON of the results, which is also in FOLDER/cameras.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from stage1.common import files
from stage1.common.device import choose_device
from stage1.data.reader import ClipReader
from stage1.inference.scoring import crime_probabilities
from stage1.metrics import clips as metrics
from stage1.model.checkpoint import load_checkpoint
from stage1.training.config import TrainConfig, make_config, merge, parse_setting
from stage1.training.loop import train
from vidshard.util import atomic

MAX_SHARE = 0.1  # of the windows of the other cameras, at the chosen threshold
NUM_RESAMPLES = 2000


def main() -> int:
    options = parsed(sys.argv[1:])
    config = make_config(
        merge(
            {"shards": options.shards, "val_fraction": 0.0, "device": "cpu", "seed": options.seed},
            *map(parse_setting, options.set),
        )
    )
    options.out.mkdir(parents=True, exist_ok=True)
    test = ClipReader(options.test)
    names = [camera.name for camera in options.camera]
    readers = {"test": test} | {camera.name: ClipReader(camera) for camera in options.camera}
    without = scores_of(options.out / "alone.json", config, readers)
    cameras = {}
    for name in names:
        others = tuple(camera for camera in options.camera if camera.name != name)
        with_others = scores_of(
            options.out / f"without-{name}.json", dataclasses.replace(config, extra_normal=others), readers
        )
        cameras[name] = compare(test, name, without, with_others, names)
        print(to_text(name, cameras[name]), flush=True)
    atomic.write_json(options.out / "cameras.json", cameras)
    print(json.dumps(cameras))
    return 0


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, action="append", required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--camera", type=Path, action="append", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    return parser.parse_args(arguments)


def scores_of(path: Path, config: TrainConfig, readers: dict[str, ClipReader]) -> dict[str, list[float]]:
    """Train, and return P(crime) of every clip of every reader; take them from `path` if they are there."""
    if not path.is_file():
        with tempfile.TemporaryDirectory() as folder:
            train(dataclasses.replace(config, out=Path(folder)))
            checkpoint = load_checkpoint(Path(folder) / files.BEST_NAME)
        scores = {
            name: crime_probabilities(
                checkpoint,
                reader,
                np.arange(len(reader)),
                batch_size=8,
                device=choose_device("cpu"),
                advance=lambda _: None,
            ).tolist()
            for name, reader in readers.items()
        }
        atomic.write_json(path, scores)
    found: dict[str, list[float]] = json.loads(path.read_bytes())
    return found


def compare(
    test: ClipReader, name: str, without: dict[str, Any], with_others: dict[str, Any], names: list[str]
) -> dict[str, Any]:
    """Compare the models trained without and with the other cameras, on the camera `name` and on the test set."""
    labels = test.labels
    groups = [test.recording_or_video(video) for video in test.videos.tolist()]
    ones = np.ones(len(labels))
    found: dict[str, Any] = {"windows": len(without[name])}
    for rule in ("0.5", "other cameras"):
        calls, right = [], []
        for scores in (without, with_others):
            threshold = 0.5 if rule == "0.5" else threshold_for([scores[other] for other in names if other != name])
            calls.append(int((np.array(scores[name]) >= threshold).sum()))
            right.append(balanced_accuracy(labels, (np.array(scores["test"]) >= threshold) == labels))
        found[rule] = {
            "called_crime": calls,
            "share": [dataclasses.asdict(metrics.share_interval(count, len(without[name]))) for count in calls],
            "balanced_accuracy": [one(ones) for one in right],
            "balanced_accuracy_change": change(*right, groups),
        }
    aucs = [metrics.roc_auc_statistic(labels, np.array(scores["test"])) for scores in (without, with_others)]
    found["auc"] = [one(ones) for one in aucs]
    found["auc_change"] = change(*aucs, groups)
    return found


def threshold_for(cameras: list[list[float]]) -> float:
    """Return the lowest threshold that calls MAX_SHARE of the windows a crime, on average over the cameras."""
    candidates = np.unique(np.concatenate([*cameras, [0.5]]))
    for threshold in candidates[candidates >= 0.5]:
        if np.mean([np.mean(np.array(scores) >= threshold) for scores in cameras]) <= MAX_SHARE:
            return float(threshold)
    return 1.0


def balanced_accuracy(labels: Any, right: Any) -> metrics.Statistic:
    recalls = [metrics.ratio_statistic(right & (labels == label), labels == label) for label in (0, 1)]

    def statistic(weights: metrics.Array) -> float | None:
        values = [one(weights) for one in recalls]
        return None if None in values else float(np.mean(values))

    return statistic


def change(before: metrics.Statistic, after: metrics.Statistic, groups: list[str]) -> dict[str, Any]:
    return dataclasses.asdict(metrics.paired_bootstrap(after, before, groups, num_resamples=NUM_RESAMPLES))


def to_text(name: str, found: dict[str, Any]) -> str:
    lines = [
        f"{name}: {found['windows']} windows; test AUC {found['auc'][0]:.3f} → {found['auc'][1]:.3f}, change "
        f"{metrics.interval_text(found['auc_change'])}"
    ]
    for rule in ("0.5", "other cameras"):
        row = found[rule]
        shares = [metrics.interval_text(share, 2) for share in row["share"]]
        lines.append(
            f"  threshold {rule}: called a crime {row['called_crime'][0]} ({shares[0]}) → {row['called_crime'][1]} "
            f"({shares[1]}); balanced accuracy {row['balanced_accuracy'][0]:.3f} → {row['balanced_accuracy'][1]:.3f}, "
            f"change {metrics.interval_text(row['balanced_accuracy_change'])}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
