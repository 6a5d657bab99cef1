#!/usr/bin/env python3
"""Everything to check and to measure on the day a GPU is there, in one command of at most 8 minutes.

    python tools/check_cuda.py [--device cuda] [--minutes 6] [--batch-sizes 8,32,128,512] [--seconds 0.5]
    python tools/check_cuda.py --dry-run       # the same on the CPU, tiny: shows that the command works, nothing else

1. Parity with the CPU: augmented clips, logits of every backbone in fp32, TF32 and bf16, and the gradient of a training
   step in fp32.
2. The same seed twice, and a run that is stopped and resumed, end with the same weights, bit for bit.
3. NCCL with one rank.
4. A run of `stage1 train` from shards: clips/s, and the share of time in which the device waited.
5. Clips/s of training and inference, and peak memory, in fp32, bf16 and compiled (bf16, one batch size), beside
   torchvision's r3d_18 and mc3_18 as published. A training step is all that one of `stage1 train` does but reading:
   the plan of the augmentation, augmentation, forward, backward, AdamW; clips are in the device's memory.

After --minutes no further measurement begins; those are listed as skipped. Exit code 1 if a check fails. Last line:
JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS may add in any order

import numpy as np
import torch
from torch import nn

import bench_model
from stage1.common import distributed
from stage1.common.device import autocast, choose_device, device_name, map_tensors
from stage1.common.files import LAST_NAME, METRICS_NAME
from stage1.data.loader import Batch
from stage1.data.transforms import ClipTransform, TransformConfig
from stage1.model.checkpoint import load_checkpoint
from stage1.model.config import BACKBONES, ModelConfig
from stage1.model.network import Stage1Model
from stage1.training import loop
from stage1.training.clip_objective import ClipObjective
from stage1.training.config import TrainConfig
from vidshard.shards.layout import SampleRecord
from vidshard.shards.set_writer import ShardSetWriter
from vidshard.util.errors import UserError

MODELS = (bench_model.OURS, bench_model.OURS_TRAINING, "r3d_18", "mc3_18")
COMPILED_BATCH = 128
# Largest difference of logits, relative to the largest one, and of the gradient, relative to its norm.
LIMITS = {"fp32": 1e-3, "tf32": 2e-2, "bf16": 1e-1, "augmentation": 1e-3, "gradient": 1e-2}


class Report:
    """Results so far, printed as they come."""

    def __init__(self, minutes: float) -> None:
        self.until = time.monotonic() + 60 * minutes
        self.values: dict[str, Any] = {}
        self.failed: list[str] = []

    def check(self, name: str, passed: bool, value: Any) -> None:
        print(f"{'ok' if passed else 'FAILED':8}{name}: {value}", flush=True)
        self.values[name] = value
        if not passed:
            self.failed.append(name)

    @property
    def is_late(self) -> bool:
        return time.monotonic() > self.until


@dataclasses.dataclass(frozen=True)
class Scale:
    """Sizes of what is checked."""

    shape: tuple[int, int, int]  # frames, height, width
    num_clips: int  # of the shards
    train_batch: int
    batch_sizes: tuple[int, ...]
    seconds: float  # of each measurement, at least


def main() -> int:
    options = parse_options()
    report = Report(options.minutes)
    try:
        device = choose_device("cpu" if options.dry_run else options.device)
    except UserError as error:
        print(f"error: {error}; to try this command without a GPU, pass --dry-run", file=sys.stderr)
        return 1
    sizes = tuple(int(size) for size in options.batch_sizes.split(","))
    scale = Scale((16, 112, 112), 512, 64, sizes, options.seconds)
    if options.dry_run:
        scale = Scale((8, 16, 16), 16, 4, (2,), 0.0)
    print(f"{device_name(device)}, torch {torch.__version__}, CUDA {torch.version.cuda}, batches {scale.batch_sizes}")
    check_parity(report, device, scale)
    with tempfile.TemporaryDirectory(prefix="check-cuda-") as folder:
        shards = write_shards(Path(folder) / "shards", scale)
        with deterministic():
            check_resume(report, device, scale, shards, Path(folder))
        check_one_rank(report, device)
        check_training(report, device, scale, shards, Path(folder) / "run")
    rows = measure_all(report, device, scale, compiler="eager" if options.dry_run else "inductor")
    print_table(rows)
    print(f"{len(report.failed)} checks failed{': ' if report.failed else ''}{', '.join(report.failed)}")
    result = {"device": device_name(device), "torch": torch.__version__, **report.values}
    print(json.dumps({**result, "failed": report.failed, "speed": rows}))
    return 1 if report.failed else 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--batch-sizes", default="8,32,128,512")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement, at least")
    parser.add_argument("--dry-run", action="store_true")
    return parser.parse_args()


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Use kernels that give the same bits each time, where there are any."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False


# --- parity -------------------------------------------------------------------------------------------------------


def check_parity(report: Report, device: torch.device, scale: Scale) -> None:
    torch.manual_seed(0)
    clips = torch.randint(0, 256, (4, *scale.shape, 3), dtype=torch.uint8)
    rows = torch.arange(len(clips))
    shares = {f"{name}_probability": 0.5 for name in ("low_resolution", "compression", "border", "overlay", "erase")}
    augmenting = ClipTransform(TransformConfig(augment=True, time_shift=2, **shares))
    expected, found = (augmenting(clips.to(at), rows).cpu() for at in ("cpu", device))
    compare(report, "augmentation", expected, found)
    pixels = ClipTransform(TransformConfig())(clips)
    for backbone in BACKBONES:
        model = Stage1Model(ModelConfig(backbone=backbone)).eval()
        nn.init.normal_(model.classifier.weight)
        expected = forward(model, pixels, torch.device("cpu"), "fp32")
        on_device = model.to(device)
        for precision in ("fp32", "tf32", "bf16"):
            with tf32(precision == "tf32"):
                compare(report, f"{backbone} {precision}", expected, forward(on_device, pixels, device, precision))
    check_gradient(report, device, clips)


def check_gradient(report: Report, device: torch.device, clips: torch.Tensor) -> None:
    objective = ClipObjective(config=TrainConfig(shards=(Path(),), splices=0.0, mixup=0.0))
    torch.manual_seed(0)
    model = objective.make_model().train()
    nn.init.normal_(model.classifier.weight, std=0.1)
    gradients = []
    for at in (torch.device("cpu"), device):
        model.to(at)
        batch = objective.prepare(Batch(clips, torch.arange(len(clips)) % 2, torch.arange(len(clips))), 0)
        batch = map_tensors(lambda tensor: tensor.to(at), batch)  # noqa: B023
        model.zero_grad()
        objective.loss(model, model, batch, 0).loss_sum.backward()
        gradients.append(torch.cat([p.grad.cpu().flatten() for p in model.parameters() if p.grad is not None]))
    difference = float((gradients[0] - gradients[1]).norm() / gradients[0].norm())
    report.check("gradient fp32", difference < LIMITS["gradient"], difference)


def forward(model: nn.Module, pixels: torch.Tensor, device: torch.device, precision: str) -> torch.Tensor:
    with torch.inference_mode(), autocast(device, precision):
        logits: torch.Tensor = model(pixels.to(device))[0]
    return logits.float().cpu()


def compare(report: Report, name: str, expected: torch.Tensor, found: torch.Tensor) -> None:
    difference = float((expected - found).abs().max() / expected.abs().max())
    report.check(f"parity {name}", difference < LIMITS[name.rpartition(" ")[2]], difference)


@contextlib.contextmanager
def tf32(on: bool) -> Iterator[None]:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


# --- runs ---------------------------------------------------------------------------------------------------------


def write_shards(folder: Path, scale: Scale) -> Path:
    """Write noise of which every second clip flickers."""
    T, H, W = scale.shape
    generator = np.random.default_rng(0)
    with ShardSetWriter(folder, clip_len=T, size=(H, W), split="Train", settings={"mode": "uniform"}) as writer:
        for i in range(scale.num_clips):
            clip = np.repeat(generator.integers(60, 180, (1, H, W, 3)), T, axis=0).astype(np.uint8)
            if i % 2:
                clip[T // 2 :: 2] += 60
            name = ("NormalVideos", "Fighting")[i % 2]
            writer.append(
                SampleRecord(
                    path=f"{name}/video-{i:05d}.mp4",
                    class_name=name,
                    label=i % 2,
                    split="Train",
                    clip_index=0,
                    frame_indices=tuple(range(T)),
                    timestamps_seconds=tuple(frame / 10 for frame in range(T)),
                    frame_gap_seconds=0.1,
                    fps=10.0,
                    num_frames=T,
                    decoder="none",
                    repeated_frames=0,
                ),
                clip,
            )
    return folder


def check_resume(report: Report, device: torch.device, scale: Scale, shards: Path, folder: Path) -> None:
    def config(name: str, **changes: Any) -> TrainConfig:
        own = {"shards": (shards,), "out": folder / name, "device": str(device), "val_fraction": 0, "epochs": 2}
        return TrainConfig(**{**own, "batch_size": scale.train_batch, **changes})

    def weights(name: str) -> dict[str, torch.Tensor]:
        return load_checkpoint(folder / name / LAST_NAME).model_state_dict

    loop.train(config("whole"))
    loop.train(config("same"))
    stop_in_the_middle(config("cut"))
    loop.train(config("cut", resume=True))
    whole = weights("whole")
    for name, title in (("same", "same seed, same weights"), ("cut", "resumed as if never stopped")):
        other = weights(name)
        report.check(title, all(torch.equal(whole[key], other[key]) for key in whole), name)


def stop_in_the_middle(config: TrainConfig) -> None:
    """Stop a run by a signal in the middle of its first epoch."""
    begin = loop.begin

    class Stop:
        def __init__(self, run: loop.TrainingRun) -> None:
            self.run = run

        @property
        def received(self) -> str | None:
            return "SIGTERM" if self.run.step >= 1 else None

    def begin_and_stop(run: loop.TrainingRun) -> None:
        begin(run)
        run.stop = Stop(run)  # type: ignore[assignment]

    loop.begin = begin_and_stop
    try:
        with contextlib.suppress(loop.RunStopped):
            loop.train(config)
    finally:
        loop.begin = begin


def check_one_rank(report: Report, device: torch.device) -> None:
    backend = "nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        summed = distributed.sum_over_ranks(torch.arange(3.0, device=device)).tolist()
        gathered = distributed.gather("rank")
        distributed.wait_for_all()
    finally:
        torch.distributed.destroy_process_group()
    report.check(f"{backend} with one rank", (summed, gathered) == ([0, 1, 2], ["rank"]), summed)


def check_training(report: Report, device: torch.device, scale: Scale, shards: Path, out: Path) -> None:
    config = TrainConfig(
        shards=(shards,),
        out=out,
        device=str(device),
        val_fraction=0,
        epochs=3,
        batch_size=scale.train_batch,
        precision="bf16",
    )
    loop.train(config)
    last = json.loads((out / METRICS_NAME).read_text().splitlines()[-1])
    report.check("stage1 train, bf16, clips/s", last["clips_per_second"] > 0, last["clips_per_second"])
    report.check("share of time waiting for data", 0 <= last["data_wait"] <= 1, last["data_wait"])


# --- speed --------------------------------------------------------------------------------------------------------


def measure_all(report: Report, device: torch.device, scale: Scale, *, compiler: str) -> list[dict[str, Any]]:
    plain = [(p, size) for p in ("bf16", "fp32") for size in scale.batch_sizes]
    compiled = [("compiled", COMPILED_BATCH if COMPILED_BATCH in scale.batch_sizes else scale.batch_sizes[-1])]
    rows = []
    for precision, size in plain + compiled:
        for name in MODELS:
            row: dict[str, Any] = {"model": name, "precision": precision, "batch": size}
            if report.is_late:
                rows.append({**row, "skipped": "no time left"})
                continue
            try:
                row |= measure(name, precision, size, device, scale, compiler)
            except torch.OutOfMemoryError:
                row["skipped"] = "out of memory"
            rows.append(row)
            print(json.dumps(row), flush=True)
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return rows


def measure(
    name: str, precision: str, size: int, device: torch.device, scale: Scale, compiler: str
) -> dict[str, float | None]:
    """Return clips/s of training and inference, and the peak of allocated memory, of a model at a batch size."""
    torch.manual_seed(0)
    model, transform = bench_model.make_model(name, "default")
    model = model.to(device)
    call = torch.compile(model, backend=compiler) if precision == "compiled" else model
    kept = "fp32" if precision == "fp32" else "bf16"
    clips = torch.randint(0, 256, (size, *scale.shape, 3), dtype=torch.uint8, device=device)
    rows, labels = torch.arange(size), torch.arange(size, device=device) % 2
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    evaluation = ClipTransform(transform.config.for_evaluation)
    is_cuda = device.type == "cuda"

    def train(epoch: int) -> None:
        plan = map_tensors(lambda t: t.to(device, non_blocking=True), transform.plan(rows, epoch, scale.shape))
        with autocast(device, kept):
            logits = bench_model.logits_of(call(transform(clips, plan=plan)))
        loss = nn.functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    def infer(_: int) -> None:
        with torch.inference_mode(), autocast(device, kept):
            call(evaluation(clips))

    if is_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    model.train()
    found: dict[str, float | None] = {"train": size / seconds_a_step(train, device, scale)}
    found["train_gb"] = torch.cuda.max_memory_allocated(device) / 1e9 if is_cuda else None
    model.eval()
    found["infer"] = size / seconds_a_step(infer, device, scale)
    return found


def seconds_a_step(step: Callable[[int], None], device: torch.device, scale: Scale) -> float:
    """Return the mean time of steps that are not waited for one by one, after three for the kernels to be chosen."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for number in range(1 if device.type == "cpu" else 3):
        step(number)
    wait()
    count, start = 0, time.perf_counter()
    while count < 2 or time.perf_counter() - start < scale.seconds:
        for _ in range(4 if device.type == "cuda" else 1):
            step(count)
            count += 1
        wait()
    return (time.perf_counter() - start) / count


def print_table(rows: list[dict[str, Any]]) -> None:
    print(f"{'':26}{'precision':>10}{'batch':>7}{'train/s':>10}{'infer/s':>10}{'train GB':>10}")
    for row in rows:
        numbers = [row.get(name) for name in ("train", "infer", "train_gb")]
        shown = "".join(f"{'-' if number is None else format(number, '.1f'):>10}" for number in numbers)
        print(f"{row['model']:26}{row['precision']:>10}{row['batch']:>7}{shown}  {row.get('skipped', '')}")


if __name__ == "__main__":
    sys.exit(main())
