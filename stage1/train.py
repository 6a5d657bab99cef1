"""One training run, from shards to checkpoints.

What is random belongs to (seed, epoch, clip) and to nothing else, so that a resumed run ends with the same weights as
one that was never stopped, the same seed gives the same weights (on the CPU; CUDA kernels may differ in the last bit),
and the number of ranks does not change what is learnt.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from stage1 import clip_random, distributed, files, metrics, optim, plots
from stage1.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from stage1.dataloader import Batch, ClipLoader
from stage1.device import choose_device, cuda_memory_errors, device_name
from stage1.model import Stage1Model
from stage1.selection import balance_labels
from stage1.train_config import FREE_ON_RESUME, TrainConfig, option_name
from stage1.train_data import TrainData, open_data
from stage1.transforms import ClipTransform
from vidshard import __version__, atomic, console
from vidshard.errors import UserError

__all__ = ["Run", "TrainConfig", "train"]

# uint8 clips (B, T, H, W, C), their rows in the index (B,), epoch → float (B, C, T, H, W), on the device
Transform = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]

SECONDS_BETWEEN_DRAWINGS = 30.0  # of the curves


@dataclasses.dataclass(kw_only=True)
class Run:
    """What changes while training."""

    config: TrainConfig
    data: TrainData
    device: torch.device
    model: Stage1Model
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LambdaLR
    loader: ClipLoader
    validation_loader: ClipLoader | None
    train_transform: Transform
    class_weights: torch.Tensor
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # an entry an epoch, as in metrics.jsonl
    draw_after: float = dataclasses.field(default_factory=lambda: time.monotonic() + SECONDS_BETWEEN_DRAWINGS)


def train(config: TrainConfig, *, transform: Transform | None = None) -> Path:
    """Train a model on `config.shards` and return the path of its checkpoint, the best by validation AUC.

    `transform`, when given, takes the place of the augmentation of training; validation and inference keep that of
    ``config.transform``. Raises UserError on unusable input.
    """
    device = distributed.device_of_rank(choose_device(config.device))
    check_out(config)
    with distributed.joined_ranks(device), hint_to_resume(config), cuda_memory_errors(config.batch_size):
        data = open_data(config)
        run = start_run(config, data, device, transform)
        if config.resume:
            resume(run)
        distributed.check_agreement({**run.loader.agreement(), "epochs done": len(run.history)})
        _print_start(run)
        for epoch in range(len(run.history), config.epochs):
            trained = train_epoch(run, epoch)
            validated = validate(run)
            finish_epoch(run, {**trained, **validated})
    path = config.out / files.BEST_NAME
    _print(f"✓ Model checkpoint saved to: {path}")
    return path


def check_out(config: TrainConfig) -> None:
    """Raise UserError when the output folder cannot be written to, holds another run, or none to resume."""
    last = config.out / files.LAST_NAME
    files.check_out(config.out)
    if config.resume and not last.is_file():
        raise UserError(f"nothing to resume: no {last}; start the run without --resume")
    names = (files.BEST_NAME, files.LAST_NAME, files.METRICS_NAME)
    held = [name for name in names if (config.out / name).exists()]
    if held and not config.resume:
        raise UserError(
            f"{config.out} holds another run ({', '.join(held)}); go on with it by --resume, name another --out, "
            "or remove the folder"
        )


@contextlib.contextmanager
def hint_to_resume(config: TrainConfig) -> Iterator[None]:
    """Tell the user of a run that is interrupted, or finds the disk full, how to go on: that takes a finished epoch."""
    try:
        yield
    except (KeyboardInterrupt, OSError) as error:
        if (config.out / files.LAST_NAME).is_file():
            error.add_note("run the same command with --resume to go on")
        raise


# --- the run ------------------------------------------------------------------------------------------------------


def start_run(config: TrainConfig, data: TrainData, device: torch.device, transform: Transform | None = None) -> Run:
    """A run before its first epoch."""
    torch.manual_seed(config.seed)
    model = Stage1Model(config.model).to(device)
    optimizer = optim.make_optimizer(model, lr=config.lr, weight_decay=config.weight_decay)
    loader = ClipLoader(
        data.train,
        rows=data.train_rows,
        batch_size=config.batch_size,
        shuffle=True,
        seed=config.seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        clips_per_video=config.clips_per_video_per_epoch,
        balance=balance_labels(data.train) if config.balanced else None,
        block_shards=config.block_shards,
        max_bad_clips=config.max_bad_clips,
        num_threads=config.workers,
        device=device,
    )
    validation_loader = None
    if data.validation is not None:
        # Every rank scores the whole set, so that all of them see the same figures.
        validation_loader = ClipLoader(
            data.validation,
            rows=data.validation_rows,
            batch_size=config.batch_size,
            shuffle=False,
            max_bad_clips=config.max_bad_clips,
            num_threads=config.workers,
            device=device,
        )
    return Run(
        config=config,
        data=data,
        device=device,
        model=model,
        optimizer=optimizer,
        scheduler=optim.make_scheduler(
            optimizer, num_steps=config.epochs * len(loader), warmup_fraction=config.warmup_fraction
        ),
        loader=loader,
        validation_loader=validation_loader,
        train_transform=transform or ClipTransform(config.transform, seed=config.seed),
        class_weights=torch.tensor(optim.class_weights(data.train.labels[loader.order()]), device=device),
    )


def train_epoch(run: Run, epoch: int) -> dict[str, Any]:
    """One pass over the training clips. Returns the metrics of the epoch."""
    run.loader.set_epoch(epoch)
    run.model.train()
    totals = torch.zeros(4, dtype=torch.float64)  # loss × weight, weight, right, clips
    start = time.perf_counter()
    clock = _WaitClock(run.loader)
    title = f"Epoch {epoch + 1}/{run.config.epochs}"
    with console.Progress(title, total=len(run.loader), unit="step", stream=_progress_stream()) as progress:
        for step, batch in enumerate(clock):
            lr = run.scheduler.get_last_lr()[0]
            totals += train_step(run, batch, epoch, where=f"epoch {epoch + 1}, step {step + 1}")
            seconds = time.perf_counter() - start
            progress.advance(
                note=f"loss {totals[0] / totals[1]:.4f}, {totals[3] / seconds:.0f} clips/s a rank, "
                f"{clock.seconds / seconds:.0%} waiting for data"
            )
    distributed.sum_over_ranks(totals)
    seconds = time.perf_counter() - start
    loss_sum, weight, right, num_clips = totals.tolist()
    return {
        "epoch": epoch + 1,
        "loss": loss_sum / weight,
        "accuracy": right / num_clips,
        "lr": lr,
        "seconds": round(seconds, 3),
        "clips_per_second": round(num_clips / seconds, 2),
        "mb_per_second": round(num_clips * run.data.train.clip_shape.num_bytes / 1e6 / seconds, 2),
        "data_wait": round(clock.seconds / seconds, 4),  # share of the time spent waiting for clips
    }


def train_step(run: Run, batch: Batch, epoch: int, *, where: str) -> torch.Tensor:
    """One optimizer step. Returns [loss × weight, weight, right, clips] of this rank's part, padding not counted."""
    clips, labels, indices = (tensor.to(run.device, non_blocking=True) for tensor in batch)
    clip_random.seed_dropout(run.model, clip_random.clip_seeds(indices, seed=run.config.seed, epoch=epoch))
    logits, _ = run.model(run.train_transform(clips, indices, epoch))
    known = labels >= 0
    loss_sum = functional.cross_entropy(
        logits,
        labels,
        weight=run.class_weights,
        ignore_index=-1,
        reduction="sum",
        label_smoothing=run.config.label_smoothing,
    )
    weight = run.class_weights[labels[known]].sum()
    global_weight = distributed.sum_over_ranks(weight.detach().clone())
    run.optimizer.zero_grad()
    (loss_sum / global_weight).backward()  # type: ignore[no-untyped-call]
    distributed.sum_gradients(run.model.parameters())
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.config.grad_clip or math.inf)
    if not torch.isfinite(norm) or not torch.isfinite(loss_sum):
        loss = float(loss_sum.detach() / global_weight)
        raise UserError(
            f"the loss is {loss:g} and its gradient {float(norm):g} at {where}, expected finite numbers; "
            f"lower --lr (now {run.config.lr:g})"
        )
    run.optimizer.step()
    run.scheduler.step()
    right = (logits.argmax(1) == labels)[known].sum()
    return torch.stack([loss_sum.detach(), weight, right, known.sum()]).double().cpu()


@torch.no_grad()
def validate(run: Run) -> dict[str, Any]:
    """Metrics on the validation clips; nothing without them."""
    if run.validation_loader is None:
        return {}
    run.model.eval()
    transform = ClipTransform(run.config.transform.for_evaluation)
    labels: list[int] = []
    probabilities: list[float] = []
    loss_sum = 0.0
    for batch in run.validation_loader:
        logits, _ = run.model(transform(batch.clips.to(run.device)))
        on_device = batch.labels.to(run.device)
        loss_sum += float(functional.cross_entropy(logits, on_device, ignore_index=-1, reduction="sum"))
        labels += batch.labels.tolist()
        probabilities += logits.double().softmax(1)[:, 1].tolist()
    scores = metrics.score(labels, probabilities)
    return {
        "val_loss": loss_sum / max(1, scores.num_clips),
        "val_accuracy": scores.accuracy,
        "val_auc": scores.auc,
        "val_confusion": [list(row) for row in scores.confusion],
    }


def finish_epoch(run: Run, entry: dict[str, Any]) -> None:
    """Note the epoch, say so, and write the files of the run: last.pt first, from which `resume` writes the others."""
    entry["best"] = is_best(entry, run.history)
    run.history.append(entry)
    _print(epoch_line(entry))
    if distributed.rank() == 0:
        saved = make_checkpoint(run)
        save_checkpoint(run.config.out / files.LAST_NAME, saved)
        write_the_rest(run, saved)


def write_the_rest(run: Run, last: Checkpoint) -> None:
    """Write what follows from last.pt: the best checkpoint, where that is it, metrics and curves."""
    if run.history[-1]["best"]:
        save_checkpoint(run.config.out / files.BEST_NAME, last)
    lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in run.history)
    atomic.write_text(run.config.out / files.METRICS_NAME, lines)
    # Drawing takes half a second: of short epochs not every one is drawn, but the last always is.
    if len(run.history) == run.config.epochs or time.monotonic() >= run.draw_after:
        plots.plot_curves(run.history, run.config.out / files.CURVES_NAME)
        run.draw_after = time.monotonic() + SECONDS_BETWEEN_DRAWINGS


def is_best(entry: dict[str, Any], history: Sequence[dict[str, Any]]) -> bool:
    """Whether the checkpoint of `entry` is the one to keep: highest validation AUC, then lowest validation loss.

    Without validation it is always the last. Where AUC is undefined (one class), loss decides.

    >>> is_best({"val_auc": 0.8, "val_loss": 0.5}, [{"val_auc": 0.8, "val_loss": 0.6}])
    True
    """

    def rank(row: dict[str, Any]) -> tuple[float, float]:
        return (-1.0 if row["val_auc"] is None else row["val_auc"], -row["val_loss"])

    return "val_loss" not in entry or all(rank(entry) > rank(row) for row in history)


def epoch_line(entry: dict[str, Any]) -> str:
    """What is printed after an epoch.

    >>> epoch_line({"epoch": 1, "loss": 0.69314, "accuracy": 0.5125, "lr": 1e-4})
    'Epoch 1 | Loss: 0.6931 | Accuracy: 51.25% | LR: 0.000100'
    """
    line = f"Epoch {entry['epoch']} | Loss: {entry['loss']:.4f} | Accuracy: {entry['accuracy']:.2%}"
    line += f" | LR: {entry['lr']:.6f}"
    if "val_loss" in entry:
        auc = "n/a" if entry["val_auc"] is None else f"{entry['val_auc']:.3f}"
        line += f" | Val Accuracy: {entry['val_accuracy']:.2%} | Val AUC: {auc}"
    return line


# --- checkpoints --------------------------------------------------------------------------------------------------


def make_checkpoint(run: Run) -> Checkpoint:
    """The run as it stands after an epoch."""
    last = run.history[-1]
    return Checkpoint(
        epoch=last["epoch"],
        model_state_dict=run.model.state_dict(),
        optimizer_state_dict=run.optimizer.state_dict(),
        scheduler_state_dict=run.scheduler.state_dict(),
        model_config=dataclasses.asdict(run.config.model),
        transform_config=dataclasses.asdict(run.config.transform.for_evaluation),
        clip_shape=dataclasses.asdict(run.data.train.clip_shape),
        sampling=run.data.train.manifest.settings,
        frame_gap_seconds=run.data.train.frame_gap_seconds(),
        metrics=last,
        warnings=list(run.data.warnings),
        train_config=run.config.to_dict(),
        data_digests=run.data.digests,
        train_videos=run.data.train_videos,
        packages={
            "vidshard": __version__,
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        run_state={"history": run.history, "world_size": distributed.world_size()},
    )


def resume(run: Run) -> None:
    """Go on where last.pt ended. Raises UserError when data or options are others."""
    path = run.config.out / files.LAST_NAME
    saved = load_checkpoint(path, map_location="cpu")
    for role, digest in run.data.digests.items():
        if saved.data_digests.get(role) != digest:
            raise UserError(f"the {role} shards are not those {path} was trained with; name those, or another --out")
    now = run.config.to_dict()
    changed = [name for name in now if name not in FREE_ON_RESUME and now[name] != saved.train_config.get(name)]
    if changed:
        name = changed[0]
        raise UserError(
            f"{path} was trained with {option_name(name)} {saved.train_config.get(name)}, got {now[name]}; resume with "
            "the same options (only --epochs, --device and --workers may differ), or name another --out"
        )
    before = saved.run_state.get("world_size", 1)
    if before != distributed.world_size():
        raise UserError(
            f"{path} was trained by {before} processes, each with --batch-size {run.config.batch_size}, got "
            f"{distributed.world_size()}: another global batch; resume with as many processes, or name another --out"
        )
    run.model.load_state_dict(saved.model_state_dict)
    run.optimizer.load_state_dict(saved.optimizer_state_dict)
    run.scheduler.load_state_dict(saved.scheduler_state_dict)
    run.history = saved.run_state["history"]
    if distributed.rank() == 0:  # the run may have been killed before these were written
        write_the_rest(run, saved)


# --- small things -------------------------------------------------------------------------------------------------


class _WaitClock:
    """Iterates over `batches` and adds up the seconds spent waiting for them."""

    def __init__(self, batches: ClipLoader) -> None:
        self.batches, self.seconds = batches, 0.0

    def __iter__(self) -> Iterator[Batch]:
        iterator = iter(self.batches)
        while True:
            start = time.perf_counter()
            batch = next(iterator, None)
            self.seconds += time.perf_counter() - start
            if batch is None:
                return
            yield batch


def _print_start(run: Run) -> None:
    data, config = run.data, run.config
    counts = np.bincount(data.train_labels, minlength=2)
    _print(f"Device: {device_name(run.device)}")
    _print(f"Train: {counts[0]} normal and {counts[1]} crime clips of {data.train.clip_shape} from {config.shards}")
    num_taken = len(run.loader.order())
    if num_taken < len(data.train_rows):
        _print(
            f"An epoch takes {num_taken} of {len(data.train_rows)} clips (--clips-per-video-per-epoch "
            f"{config.clips_per_video_per_epoch}; 0 takes all)"
        )
    if config.val_shards is not None and data.validation is not None:
        counts = np.bincount(data.validation.labels, minlength=2)
        _print(f"Validation: {counts[0]} normal and {counts[1]} crime clips from {config.val_shards}")
    for note in data.notes:
        _print(f"Note: {note}")
    for warning in data.warnings:
        _print(f"WARNING: {warning}", stream=sys.stderr)
    if run.history:
        _print(f"Resumed after epoch {len(run.history)} of {config.epochs}")


def _progress_stream() -> Any:
    """Where progress goes: standard error of rank 0."""
    return sys.stderr


def _print(line: str, *, stream: Any = None) -> None:
    if distributed.rank() == 0:
        print(line, file=stream or sys.stdout, flush=True)
