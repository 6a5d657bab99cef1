"""Score the model on recordings that did not influence any choice: nested cross-validation.

    python tools/nested_crossval.py --shards A/Train --shards A/Test --out FOLDER [--folds 5] [--inner-folds 3]
        [--seeds 3] [--set NAME=VALUE …] [--minutes M]

Outer folds of whole recordings are held out in turn. For each, the share of the motion features in the score is chosen
by inner folds of the other recordings, with one seed; then one model per seed is trained on all of them and scored on
the held-out ones, together with the tests of its attention. Every finished training is kept in FOLDER, so that the same
command resumes where it stopped; `--minutes` ends it after about that time.

Last line: JSON of all results, which is also in FOLDER/nested.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stage1.common import files
from stage1.data.reader import ClipReader
from stage1.evaluation import splice_test
from stage1.evaluation.config import ExplainConfig
from stage1.evaluation.crossval import GroupedClips, open_clips, stratified_folds
from stage1.evaluation.explain import Explainer
from stage1.metrics import clips as metrics
from stage1.model.checkpoint import Checkpoint, load_checkpoint
from stage1.training.config import TrainConfig, make_config, merge, parse_setting
from stage1.training.data import TrainData
from stage1.training.loop import train
from vidshard.util import atomic

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the motion features in the score
NUM_RESAMPLES = 1000


def main() -> int:
    options = parsed(sys.argv[1:])
    clips = open_clips([ClipReader(place) for place in options.shards])
    config = make_config(merge({"shards": options.shards[0], "device": "cpu"}, *map(parse_setting, options.set)))
    options.out.mkdir(parents=True, exist_ok=True)
    atomic.write_json(options.out / "config.json", {"training": config.to_dict(), "clips": clips.reader.digest})
    begin = time.monotonic()
    outer = stratified_folds(clips.labels, clips.groups, folds=options.folds, seed=0)
    inner_runs: dict[int, list[dict[str, Any]]] = {}
    outer_runs: list[dict[str, Any]] = []
    everything = np.arange(len(clips.labels))
    for fold, held in enumerate(outer):
        rows = np.setdiff1d(everything, held)
        for seed in range(options.seeds):
            outer_runs.append(
                {"fold": fold, "seed": seed}
                | finished(
                    options, f"outer{fold}-seed{seed}", clips, rows, held, dataclasses.replace(config, seed=seed), begin
                )
            )
        inner = stratified_folds(clips.labels[rows], clips.groups[rows], folds=options.inner_folds, seed=0)
        inner_runs[fold] = [
            finished(options, f"outer{fold}-inner{i}", clips, np.delete(rows, places), rows[places], config, begin)
            for i, places in enumerate(inner)
        ]
    result = summarise(clips, outer_runs, inner_runs)
    atomic.write_json(options.out / "nested.json", result)
    print(to_text(result))
    print(json.dumps(result["scores"] | {"shares": result["shares"]}))
    return 0


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, action="append", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--inner-folds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    return parser.parse_args(arguments)


# ---- one training


def finished(
    options: argparse.Namespace,
    name: str,
    clips: GroupedClips,
    train_rows: Any,
    held_rows: Any,
    config: TrainConfig,
    begin: float,
) -> dict[str, Any]:
    """Return the result of a training, from its file if it was done before."""
    path = options.out / f"{name}.json"
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found
    if time.monotonic() - begin > options.minutes * 60:
        raise SystemExit(f"{options.minutes:g} minutes are over; the same command continues with {name}")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        data = TrainData(
            train=clips.reader,
            train_rows=train_rows,
            validation=None,
            validation_rows=np.zeros(0, np.int64),
            notes=(),
            warnings=(),
        )
        train(dataclasses.replace(config, out=out), data=data)
        checkpoint = load_checkpoint(out / files.BEST_NAME)
    result = {"rows": held_rows.tolist(), **log_odds(checkpoint, clips, held_rows)}
    if "inner" not in name:
        result |= attention_results(checkpoint, clips, held_rows, with_deletion=name.endswith("seed0"))
    atomic.write_json(path, result)
    print(f"{name} done after {(time.monotonic() - begin) / 60:.1f} minutes", flush=True)
    return result


def log_odds(checkpoint: Checkpoint, clips: GroupedClips, rows: Any) -> dict[str, list[float]]:
    """Return the log-odds of crime of the network alone and of the motion features alone."""
    model, transform = checkpoint.build_model().eval(), checkpoint.build_transform()
    network, features = [], []
    for part in np.array_split(rows, -(-len(rows) // 8)):
        pixels = np.empty((len(part), *clips.reader.clip_shape.thwc), np.uint8)
        clips.reader.read_clips(part, pixels)
        with torch.inference_mode():
            clips_BCTHW = transform(torch.from_numpy(pixels))
            logits_BK = model.classifier(model.pooled(clips_BCTHW)[0])
            network += (logits_BK[:, 1] - logits_BK[:, 0]).tolist()
            features += (
                [0.0] * len(part) if model.motion_classifier is None else model.motion_classifier(clips_BCTHW).tolist()
            )
    return {"network": network, "features": features}


def attention_results(checkpoint: Checkpoint, clips: GroupedClips, rows: Any, *, with_deletion: bool) -> dict[str, Any]:
    """Test attention on composites of the held-out recordings, and by deletion on their crimes, which is slow."""
    device = torch.device("cpu")
    model, transform = checkpoint.build_model(), checkpoint.build_transform()
    found = splice_test.AttentionTest(model, transform, device).run(clips.reader, rows)
    explainer = Explainer(checkpoint, device, ExplainConfig(shards=Path()))
    gaps = []
    for row in rows[clips.labels[rows] == 1].tolist() if with_deletion else []:
        clip = np.empty((1, *clips.reader.clip_shape.thwc), np.uint8)
        clips.reader.read_clips([row], clip)
        gaps.append({"group": int(clips.groups[row]), **explainer.deletion_gaps(torch.from_numpy(clip[0]), seed=row)})
    return {"splices": found, "deletion": gaps}


# ---- results


def chosen_shares(clips: GroupedClips, inner_runs: dict[int, list[dict[str, Any]]]) -> dict[int, float]:
    """Return for each outer fold the share of the features with the best AUC on its inner folds."""
    shares = {}
    for fold, runs in inner_runs.items():
        rows, network, features = (
            np.concatenate([run[name] for run in runs]) for name in ("rows", "network", "features")
        )
        labels = clips.labels[rows.astype(np.int64)]
        aucs = [metrics.roc_auc(labels, mixed(network, features, share)) or 0.0 for share in SHARES]
        shares[fold] = SHARES[int(np.argmax(aucs))]
    return shares


def summarise(
    clips: GroupedClips, outer_runs: list[dict[str, Any]], inner_runs: dict[int, list[dict[str, Any]]]
) -> dict[str, Any]:
    """Return the scores on all held-out clips, as means over the seeds, and the results of the attention tests."""
    shares = chosen_shares(clips, inner_runs)
    num_seeds = max(run["seed"] for run in outer_runs) + 1
    by_seed = [[run for run in outer_runs if run["seed"] == seed] for seed in range(num_seeds)]
    order = np.concatenate([np.array(run["rows"]) for run in by_seed[0]])
    labels, groups = clips.labels[order], clips.groups[order]

    def all_seeds(score: Any) -> list[Any]:
        return [np.concatenate([score(run) for run in runs]) for runs in by_seed]

    ways = {
        "features": all_seeds(lambda run: np.array(run["features"])),
        "network": all_seeds(lambda run: np.array(run["network"])),
        "both, share chosen inside": all_seeds(lambda run: mixed(run["network"], run["features"], shares[run["fold"]])),
        **{
            f"both, share {share}": all_seeds(lambda run, share=share: mixed(run["network"], run["features"], share))
            for share in SHARES[1:-1]
        },
    }
    for name in ("network", "both, share chosen inside"):
        ways[f"{name}, mean of {num_seeds} seeds"] = [np.mean(ways[name], axis=0)]
    scores = {
        name: {
            metric: interval(mean_over_seeds(statistic, seeds), groups)
            for metric, statistic in (
                ("accuracy", lambda values: metrics.accuracy_statistic(labels, (values > 0).astype(np.int64))),
                ("auc", lambda values: metrics.roc_auc_statistic(labels, values)),
                ("within", lambda values: metrics.within_group_auc_statistic(labels, values, groups)),
            )
        }
        for name, seeds in ways.items()
    }
    deletions = [gap for run in outer_runs for gap in run["deletion"]]
    gap_groups = [gap["group"] for gap in deletions]
    deletion = {
        name: interval(metrics.mean_statistic([gap[name] for gap in deletions]), gap_groups)
        for name in deletions[0]
        if name != "group"
    }
    return {
        "clips": len(order),
        "recordings": clips.num_groups,
        "shares": shares,
        "scores": scores,
        "splices": splice_test.summarise([run["splices"] for run in outer_runs], num_resamples=NUM_RESAMPLES),
        "deletion": deletion,
    }


def mixed(network: Any, features: Any, share: float) -> Any:
    return (1 - share) * np.asarray(network) + share * np.asarray(features)


def mean_over_seeds(statistic: Any, seeds: list[Any]) -> Any:
    statistics = [statistic(values) for values in seeds]

    def mean(weights_N: Any) -> float | None:
        found = [one(weights_N) for one in statistics]
        return None if None in found else float(np.mean(found))

    return mean


def interval(statistic: Any, groups: Any) -> dict[str, Any]:
    return dataclasses.asdict(metrics.bootstrap(statistic, groups, num_resamples=NUM_RESAMPLES))


def to_text(result: dict[str, Any]) -> str:
    lines = [f"{result['clips']} clips of {result['recordings']} recordings; shares chosen: {result['shares']}"]
    lines += [
        f"  {name:<40} accuracy {metrics.interval_text(found['accuracy'])}, AUC {metrics.interval_text(found['auc'])}, "
        f"within recording {metrics.interval_text(found['within'])}"
        for name, found in result["scores"].items()
    ]
    lines += splice_test.to_lines(result["splices"])
    lines += [f"Deletion gap, {name}: {metrics.interval_text(found)}" for name, found in result["deletion"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
