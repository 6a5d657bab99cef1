#!/usr/bin/env python3
"""Our model compared with torchvision's 3D ResNets in one run: speed, size, memory; by option, AUC in equal time.

    python tools/bench_model.py [--preset default] [--rounds 3] [--steps 2] [--batch-size 4] [--threads 2]
    python tools/bench_model.py --rounds 0 --auc-minutes 20 --shards shards/Train --shards shards/Validation

Each model is measured in processes of its own (`--rounds` of them, in turns; the median counts), on noise of
16×112×112. A training step is all that a step of `stage1 train` does: augmentation of uint8 clips, forward, backward,
AdamW. Ours (that of --preset) is measured at 112×112, which the ratios are of, and with the input it trains on (a line
of its own). torchvision's networks are as published, with batch normalisation, and two classes. GFLOPs: forward pass
of a clip, a multiplication and an addition counted as two, by torch.utils.flop_counter. Peak memory: the largest
resident size of the process while training.

--auc-minutes M: ours and r3d_18 from scratch, M minutes each for each of three folds of whole recordings, warm-up and
cosine over that time, batch 8 for ours and 4 for r3d_18; AUC of the held-out clips after the last step, pooled.

Last line: JSON {"train_ratio_to": {MODEL: x}, "infer_ratio_to": {MODEL: x}, "params_m": x, "gflops": x}; after
--auc-minutes "auc": {MODEL: x} too; with --rounds 0 that alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from stage1.data.transforms import ClipTransform, TransformConfig
from stage1.model import backbones
from stage1.model.motion_features import motion_features
from stage1.model.network import Stage1Model
from stage1.training.config import PRESETS, make_config

OURS, OURS_TRAINING = "ours", "ours, its training input"
SHAPE = (16, 112, 112)
NUM_FOLDS = 3


def main() -> None:
    options = parse_options()
    if options.measure:
        print(json.dumps(measure(options.measure, options)))
        return
    torch.set_num_threads(options.threads)
    results = compare_speed(options) if options.rounds else {}
    auc = {"auc": compare_auc(options)} if options.auc_minutes else {}
    print(json.dumps(results | auc))


def compare_speed(options: argparse.Namespace) -> dict[str, Any]:
    """Print the table of all models; return size and ratios of ours."""
    print(
        f"{'x'.join(map(str, SHAPE))}, preset {options.preset}, batch {options.batch_size}, {options.threads} threads, "
        f"torch {torch.__version__}, median of {options.rounds} rounds",
        flush=True,
    )
    names = (OURS, OURS_TRAINING, *backbones.NAMES)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            rounds[name].append(measure_in_process(name, options))
    results = {
        name: {key: statistics.median(result[key] for result in of_name) for key in of_name[0]}
        for name, of_name in rounds.items()
    }
    print(f"{'':30}{'train/s':>9}{'infer/s':>9}{'M params':>10}{'GFLOPs':>9}{'peak MB':>9}")
    for name, result in results.items():
        print(
            f"{name:30}{result['train']:9.2f}{result['infer']:9.2f}{result['params_m']:10.2f}{result['gflops']:9.2f}"
            f"{result['peak_mb']:9.0f}"
        )
    ours = results[OURS]
    ratios = {
        kind: {name: round(ours[kind] / results[name][kind], 1) for name in backbones.NAMES}
        for kind in ("train", "infer")
    }
    return {
        "train_ratio_to": ratios["train"],
        "infer_ratio_to": ratios["infer"],
        "params_m": round(ours["params_m"], 3),
        "gflops": round(ours["gflops"], 2),
    }


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", choices=sorted(PRESETS), default="default")
    parser.add_argument("--rounds", type=int, default=3, help="0: no speed")
    parser.add_argument("--steps", type=int, default=2, help="timed steps a round, after one that is not")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--auc-minutes", type=float, default=0.0)
    parser.add_argument("--shards", type=Path, action="append", help="for --auc-minutes; may be repeated")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.auc_minutes and not options.shards:
        parser.error("--auc-minutes needs --shards: labelled clips with source groups")
    return options


def make_model(name: str, preset: str) -> tuple[nn.Module, ClipTransform]:
    """Return a new model and the augmentation it trains with."""
    if name in (OURS, OURS_TRAINING):
        training = make_config(PRESETS[preset])
        transform = dataclasses.replace(training.transform, **({"train_scale": 1.0} if name == OURS else {}))
        return Stage1Model(training.model), ClipTransform(transform)
    from torchvision.models import video

    config = TransformConfig(augment=True, train_scale=1.0, mean=backbones.MEAN, std=backbones.STD)
    return getattr(video, name)(num_classes=2), ClipTransform(config)


def logits_of(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output  # ours gives attention too


# --- speed --------------------------------------------------------------------------------------------------------


def measure_in_process(name: str, options: argparse.Namespace) -> dict[str, float]:
    arguments = ["--measure", name, "--steps", str(options.steps), "--batch-size", str(options.batch_size)]
    command = [sys.executable, __file__, *arguments, "--threads", str(options.threads), "--preset", options.preset]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def measure(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Clips per second of training and inference, size and memory of a model, in this process."""
    from torch.utils.flop_counter import FlopCounterMode

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model, transform = make_model(name, options.preset)
    clips = torch.randint(0, 256, (options.batch_size, *SHAPE, 3), dtype=torch.uint8)
    rows = torch.arange(len(clips))
    labels = rows % 2
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, 3, *SHAPE))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def train_step(epoch: int) -> None:
        train_on(model, transform, optimizer, clips, labels, rows, epoch)

    evaluation = ClipTransform(transform.config.for_evaluation)

    def infer_step(_: int) -> None:
        with torch.no_grad():
            model(evaluation(clips))

    model.train()
    train = seconds_a_step(train_step, options.steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    model.eval()
    infer = seconds_a_step(infer_step, options.steps)
    return {
        "train": options.batch_size / train,
        "infer": options.batch_size / infer,
        "params_m": sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        "gflops": counter.get_total_flops() / 1e9,
        "peak_mb": peak,
    }


def train_on(
    model: nn.Module,
    transform: ClipTransform,
    optimizer: torch.optim.Optimizer,
    clips: torch.Tensor,
    labels: torch.Tensor,
    rows: torch.Tensor,
    epoch: int,
) -> None:
    logits = logits_of(model(transform(clips, rows, epoch)))
    loss = nn.functional.cross_entropy(logits, labels)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def seconds_a_step(step: Any, count: int) -> float:
    """Return the fastest of at least `count` steps and at least one second of steps, after one warm-up step."""
    step(0)
    seconds: list[float] = []
    while len(seconds) < count or sum(seconds) < 1:
        start = time.perf_counter()
        step(len(seconds) + 1)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


# --- what is learnt in a given time -------------------------------------------------------------------------------


def compare_auc(options: argparse.Namespace) -> dict[str, float | None]:
    """Print and return the AUC of ours and of r3d_18 after equal wall-clock."""
    from stage1.data.reader import ClipReader
    from stage1.evaluation.crossval import open_clips, stratified_folds
    from stage1.metrics import clips as metrics

    clips = open_clips([ClipReader(folder) for folder in options.shards])
    pixels = np.empty((len(clips.labels), *clips.reader.clip_shape.thwc), np.uint8)
    clips.reader.read_clips(np.arange(len(pixels)), pixels)
    folds = stratified_folds(clips.labels, clips.groups, folds=NUM_FOLDS, seed=0)
    scores = {}
    for name, batch_size, lr in ((OURS_TRAINING, 8, 1e-3), ("r3d_18", 4, 1e-3)):
        scores[name] = np.full(len(pixels), np.nan)
        for number, held in enumerate(folds, 1):
            known = np.setdiff1d(np.arange(len(pixels)), held)
            torch.manual_seed(0)
            model, transform = make_model(name, options.preset)
            epochs = train_for(
                model, transform, pixels, clips.labels, known, minutes=options.auc_minutes, batch_size=batch_size, lr=lr
            )
            scores[name][held] = probabilities(model, transform, pixels[held])
            auc = metrics.roc_auc(clips.labels[held], scores[name][held])
            print(f"{name}, fold {number}: {epochs:.1f} epochs, AUC {auc:.3f}", flush=True)
    found = {}
    for name, values in scores.items():
        interval = metrics.bootstrap(metrics.roc_auc_statistic(clips.labels, values), clips.groups)
        found[name] = interval.value
        print(f"{name}: {options.auc_minutes:g} minutes a fold, AUC of {NUM_FOLDS} folds pooled {interval.text()}")
    ours, other = (metrics.roc_auc_statistic(clips.labels, values) for values in scores.values())
    print(f"ours − r3d_18: {metrics.paired_bootstrap(ours, other, clips.groups).text()} (source groups resampled)")
    return found


def train_for(
    model: nn.Module,
    transform: ClipTransform,
    pixels: Any,
    labels: Any,
    rows: Any,
    *,
    minutes: float,
    batch_size: int,
    lr: float,
) -> float:
    """Train for so long; return how many epochs that were."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    generator = np.random.default_rng(0)
    start, seen, order = time.monotonic(), 0, rows[:0]
    if isinstance(model, Stage1Model) and model.motion_classifier is not None:  # as before the first step of a run
        plain = ClipTransform(transform.config.for_evaluation)
        parts = [motion_features(plain(torch.from_numpy(pixels[part]))) for part in np.array_split(rows, len(rows))]
        model.motion_classifier.fit(torch.cat(parts).numpy(), labels[rows])
    while (share := (time.monotonic() - start) / (60 * minutes)) < 1:
        if len(order) < batch_size:
            order = generator.permutation(rows)
        batch, order = order[:batch_size], order[batch_size:]
        factor = share / 0.1 if share < 0.1 else 0.5 * (1 + math.cos(math.pi * (share - 0.1) / 0.9))
        for group in optimizer.param_groups:
            group["lr"] = lr * max(0.01, factor)
        train_on(
            model,
            transform,
            optimizer,
            torch.from_numpy(pixels[batch]),
            torch.from_numpy(labels[batch]),
            torch.from_numpy(batch),
            seen // len(rows),
        )
        seen += len(batch)
    model.eval()
    return seen / len(rows)


@torch.no_grad()
def probabilities(model: nn.Module, transform: ClipTransform, pixels: Any) -> Any:
    evaluation = ClipTransform(transform.config.for_evaluation)
    parts = [
        logits_of(model(evaluation(torch.from_numpy(pixels[first : first + 4])))).softmax(1)[:, 1]
        for first in range(0, len(pixels), 4)
    ]
    return torch.cat(parts).double().numpy()


if __name__ == "__main__":
    main()
