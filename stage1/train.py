"""One training run, from shards to checkpoints.

Every epoch starts from random numbers of (seed, epoch) alone, so that a resumed run ends with the same weights as one
that was never stopped, and the same seed gives the same weights (on the CPU; CUDA kernels may differ in the last bit).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from stage1 import distributed, files, metrics, optim, plots
from stage1.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from stage1.dataloader import Batch, ClipLoader, ClipReader
from stage1.device import choose_device, cuda_memory_errors, device_name
from stage1.model import ModelConfig, Stage1Model
from stage1.selection import balance_labels
from stage1.transforms import ClipTransform, TransformConfig
from vidshard import __version__, atomic, console
from vidshard.errors import UserError
from vidshard.shard_cache import CacheConfig
from vidshard.storage import Location, Url

Transform = Callable[[torch.Tensor], torch.Tensor]  # uint8 (B, T, H, W, C) → float (B, C, T, H, W), on the device
Rows = npt.NDArray[np.int64]

MAX_MOTION_GAP_SECONDS = 0.5
# Settings of a build that say which videos and where to, not which pixels a video gives.
SETTINGS_WITHOUT_PIXELS = ("sources_sha256", "limit", "normal", "seed", "shard_mb")
CLASS_NAMES = ("normal", "crime")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All options of a run."""

    shards: Location
    val_shards: Location | None = None
    out: Path = files.DEFAULT_RUN
    epochs: int = 5
    batch_size: int = 8  # of each rank
    lr: float = 1e-3  # the highest of the schedule
    weight_decay: float = 0.05
    warmup_fraction: float = 0.1  # of all steps
    grad_clip: float = 1.0  # largest norm of the gradient; 0 is no limit
    label_smoothing: float = 0.0
    val_fraction: float = 0.1  # of the videos, held out where there are no val_shards; 0: no validation
    seed: int = 0
    device: str = "auto"
    workers: int = 1  # threads that read shards
    clips_per_video_per_epoch: int = 1  # others each epoch, so that long videos do not fill every epoch; 0: all
    balanced: bool = False  # as many crime as normal clips in an epoch, in place of a weighted loss
    block_shards: int = 0  # shuffle within windows of so many shards, read in sequence; 0: among all clips
    checksums: str = "first"  # when to verify those of the clips
    max_bad_clips: int = 0  # damaged clips that are replaced rather than an error
    cache_dir: Path | None = None  # where shards of a URL are kept; None: the default of CacheConfig
    cache_gb: float | None = None  # how much of them
    resume: bool = False
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    transform: TransformConfig = dataclasses.field(default_factory=lambda: TransformConfig(augment=True))

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "workers"):
            if getattr(self, name) < 1:
                raise UserError(f"{_option(name)} is {getattr(self, name)}, expected at least 1")
        if not self.lr > 0:
            raise UserError(f"--lr is {self.lr}, expected above 0")
        for name in (
            *("weight_decay", "grad_clip", "seed"),
            *("clips_per_video_per_epoch", "block_shards", "max_bad_clips"),
        ):
            if not getattr(self, name) >= 0:
                raise UserError(f"{_option(name)} is {getattr(self, name)}, expected 0 or more")
        for name in ("val_fraction", "warmup_fraction", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{_option(name)} is {getattr(self, name)}, expected 0 or more and below 1")

    def to_dict(self) -> dict[str, Any]:
        """As a checkpoint keeps it: paths as strings."""
        fields = dataclasses.asdict(self)
        return {name: str(value) if isinstance(value, Path | Url) else value for name, value in fields.items()}


# Named sets of options: what the command fills in where the user gives none.
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "notebook": {"epochs": 5, "batch_size": 4, "lr": 1e-4, "grad_clip": 1.0},
}
# A resumed run may differ in these; all others decide the weights.
FREE_ON_RESUME = (
    *("shards", "val_shards", "out", "epochs", "device", "workers", "resume"),
    *("checksums", "max_bad_clips", "cache_dir", "cache_gb"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainData:
    """The clips of a run: row numbers of the readers' indexes."""

    train: ClipReader
    train_rows: Rows
    validation: ClipReader | None
    validation_rows: Rows
    notes: tuple[str, ...]  # for the user to know
    warnings: tuple[str, ...]  # kept in the checkpoint

    @property
    def digests(self) -> dict[str, str]:
        """Digest of each shard set, by its role."""
        digests = {"train": self.train.manifest.digest}
        if self.validation is not None:
            digests["validation"] = self.validation.manifest.digest
        return digests

    @property
    def train_videos(self) -> list[str]:
        """The videos trained on: what a model says of these is worthless to whoever learns from it."""
        return sorted({self.train.video_id(video) for video in np.unique(self.train.videos[self.train_rows]).tolist()})

    @property
    def train_labels(self) -> Rows:
        return self.train.labels[self.train_rows]


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


# --- data ---------------------------------------------------------------------------------------------------------


def open_data(config: TrainConfig) -> TrainData:
    """Open the shards named and nothing else, and say what is to be known about them."""
    cache = CacheConfig(folder=config.cache_dir, limit_gb=config.cache_gb)
    reader = ClipReader(config.shards, checksums=config.checksums, cache=cache)
    rows = np.arange(len(reader))
    _check_labels(reader, rows)
    notes, warnings = [], []
    if config.val_shards is not None:
        validation: ClipReader | None = ClipReader(config.val_shards, checksums=config.checksums, cache=cache)
        assert validation is not None
        validation_rows = np.arange(len(validation))
        _check_validation(reader, validation)
        warnings += validation_warnings(reader, validation)
    else:
        train_rows, validation_rows = hold_out(reader, fraction=config.val_fraction, seed=config.seed)
        validation = reader if len(validation_rows) else None
        notes.append(_describe_hold_out(reader, validation_rows, config.val_fraction))
        rows = train_rows
    _check_both_classes(reader, rows)
    if reader.manifest.split == "Test":
        warnings.append(f"{config.shards} is marked Test: a model trained on it cannot be judged on it")
    gap = reader.frame_gap_seconds()
    if gap > MAX_MOTION_GAP_SECONDS:
        notes.append(
            f"the frames of a clip lie {gap:.1f} s apart (median): above {MAX_MOTION_GAP_SECONDS} s motion input means "
            "little; dense sampling (see `vidshard build --help`) keeps frames close"
        )
    return TrainData(
        train=reader,
        train_rows=rows,
        validation=validation,
        validation_rows=validation_rows,
        notes=tuple(notes),
        warnings=tuple(warnings),
    )


def hold_out(reader: ClipReader, *, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Rows to train on and rows held out: `fraction` of the videos of each class, whole source groups at a time.

    A video without a source group is a group of its own. The last group of a class stays in training, whatever other
    classes it holds.
    """
    index = reader.index
    groups: dict[str, list[int]] = {}  # source group → its videos
    for video in np.unique(index.clips["video"]).tolist():
        group = index.source_group(video)
        groups.setdefault(f"video {index.paths[video]}" if group is None else f"group {group}", []).append(video)
    names = sorted(groups)
    order = [names[i] for i in np.random.default_rng((seed, 1)).permutation(len(names))]

    videos_of_class = {group: Counter(_class_of(reader, video) for video in groups[group]) for group in order}
    groups_left = Counter(name for counts in videos_of_class.values() for name in counts)  # class → groups in training
    held: set[str] = set()
    for class_name in sorted(groups_left):
        sizes = {group: counts[class_name] for group, counts in videos_of_class.items() if class_name in counts}
        wanted = max(1, round(fraction * sum(sizes.values()))) if fraction else 0
        wanted -= sum(size for group, size in sizes.items() if group in held)
        while wanted > 0:
            free = {
                group: size
                for group, size in sizes.items()
                if group not in held and all(groups_left[name] > 1 for name in videos_of_class[group])
            }
            if not free:
                break
            fitting = [group for group, size in free.items() if size <= wanted]
            group = fitting[0] if fitting else min(free, key=lambda name: free[name])
            if not fitting and free[group] > 2 * wanted and groups_left[class_name] < len(sizes):
                break  # nearer to what is wanted without it
            held.add(group)
            groups_left.subtract(videos_of_class[group].keys())
            wanted -= free[group]
    is_held = np.isin(index.clips["video"], sorted(video for group in held for video in groups[group]))
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def validation_warnings(train: ClipReader, validation: ClipReader) -> list[str]:
    """What makes a validation set unfit to choose a checkpoint by: it is the Test set, or was trained on."""
    warnings = []
    folder = validation.shard_set.where
    splits = {validation.manifest.split} | {
        validation.index.split(video) for video in range(len(validation.index.videos))
    }
    if "Test" in splits:
        warnings.append(
            f"{folder} is marked Test: the checkpoint is chosen on it, so its accuracy there says nothing about new "
            "videos; choose on a Validation split"
        )
    shared = shared_videos(train, validation)
    if shared:
        warnings.append(
            f"{len(shared)} of {len(validation.index.videos)} videos of {folder} are also trained on (such as "
            f"{shared[0]!r}): validation accuracy will look better than it is"
        )
    groups = _source_groups(train) & _source_groups(validation)
    if groups:
        warnings.append(
            f"{len(groups)} source groups of {folder} are also trained on (such as {min(groups)!r}): videos cut from "
            "one recording look alike, so validation accuracy will look better than it is"
        )
    resizes = [reader.manifest.settings.get("resize", "squash") for reader in (train, validation)]
    if resizes[0] != resizes[1]:
        warnings.append(
            f"frames were made square by --resize {resizes[1]} in {folder}, but by {resizes[0]} in training: build "
            "both with the same --resize"
        )
    gaps = train.frame_gap_seconds(), validation.frame_gap_seconds()
    if max(gaps) > 2 * min(gaps) and min(gaps) > 0:
        warnings.append(
            f"frames lie {gaps[1]:.2g} s apart in {folder}, but {gaps[0]:.2g} s in training: build both with the "
            "same sampling"
        )
    return warnings


def shared_videos(train: ClipReader, validation: ClipReader) -> list[str]:
    """Paths (in `validation`) of the videos that are in both sets.

    Built with the same sampling, a video gives the same clips under any name. With another, the same name, length
    and size must do.
    """

    def sampling(reader: ClipReader) -> dict[str, Any]:
        settings = reader.manifest.settings.items()
        return {name: value for name, value in settings if name not in SETTINGS_WITHOUT_PIXELS}

    def pixels(reader: ClipReader, row: int) -> tuple[int, int]:
        clip = reader.index.clips[row]
        return int(clip["crc32"]), int(reader.index.videos["num_frames"][clip["video"]])

    def identity(reader: ClipReader, video: int) -> tuple[Any, ...]:
        row = reader.index.videos[video]
        return reader.index.paths[video], *(row[name].item() for name in ("num_frames", "width", "height", "fps"))

    if sampling(train) == sampling(validation):
        known = {pixels(train, row) for row in range(len(train))}
        rows = [row for row in range(len(validation)) if pixels(validation, row) in known]
        videos = sorted({int(validation.index.clips["video"][row]) for row in rows})
    else:
        names = {identity(train, video) for video in range(len(train.index.videos))}
        videos = [v for v in range(len(validation.index.videos)) if identity(validation, v) in names]
    return [validation.index.paths[video] for video in videos]


def _check_labels(reader: ClipReader, rows: Rows) -> None:
    folder = reader.shard_set.where
    if not len(rows):
        raise UserError(f"{folder} holds no clips; see what failed with `vidshard inspect {folder}`")
    unknown = int((reader.labels[rows] < 0).sum())
    if unknown:
        raise UserError(
            f"{unknown} of {len(rows)} clips of {folder} have no label, expected normal or crime; build from "
            "SOURCE/<Class>/*.mp4, where the folder names the class"
        )


def _check_both_classes(reader: ClipReader, rows: Rows) -> None:
    counts = np.bincount(reader.labels[rows], minlength=2)
    if not counts.all():
        there, lacking = (CLASS_NAMES[i] for i in (int(counts.argmax()), int(counts.argmin())))
        raise UserError(
            f"{reader.shard_set.where} has {counts.max()} {there} clips to train on and no {lacking} one, expected "
            f"both; add {lacking} videos and build again"
        )


def _check_validation(train: ClipReader, validation: ClipReader) -> None:
    _check_labels(validation, np.arange(len(validation)))
    if validation.clip_shape != train.clip_shape:
        raise UserError(
            f"{validation.shard_set.where} has clips of {validation.clip_shape}, expected {train.clip_shape} as in "
            f"{train.shard_set.where}; build both with the same --clip-len and --frame-size"
        )


def _describe_hold_out(reader: ClipReader, rows: Rows, fraction: float) -> str:
    if not len(rows):
        reason = "--val-fraction 0" if not fraction else "too few videos to hold any out"
        return f"no validation ({reason}): the last epoch is kept"
    videos = np.unique(reader.index.clips["video"][rows])
    note = (
        f"no --val-shards: {len(videos)} of {len(reader.index.videos)} videos ({len(rows)} clips) of "
        f"{reader.shard_set.where} are held out for validation, by source group and class"
    )
    if not _source_groups(reader):
        note += "; its source groups are unknown, so videos of one recording may be on both sides"
    return note


def _class_of(reader: ClipReader, video: int) -> str:
    return reader.index.class_name(video) or ""


def _source_groups(reader: ClipReader) -> set[str]:
    groups = (reader.index.source_group(video) for video in range(len(reader.index.videos)))
    return {group for group in groups if group is not None}


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
        train_transform=transform or ClipTransform(config.transform),
        class_weights=torch.tensor(optim.class_weights(data.train.labels[loader.order()]), device=device),
    )


def train_epoch(run: Run, epoch: int) -> dict[str, Any]:
    """One pass over the training clips. Returns the metrics of the epoch."""
    _seed_epoch(run, epoch)
    run.loader.set_epoch(epoch)
    run.model.train()
    totals = torch.zeros(4, dtype=torch.float64)  # loss × weight, weight, right, clips
    start = time.perf_counter()
    clock = _WaitClock(run.loader)
    title = f"Epoch {epoch + 1}/{run.config.epochs}"
    with console.Progress(title, total=len(run.loader), unit="step", stream=_progress_stream()) as progress:
        for step, batch in enumerate(clock):
            lr = run.scheduler.get_last_lr()[0]
            totals += train_step(run, batch, where=f"epoch {epoch + 1}, step {step + 1}")
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


def train_step(run: Run, batch: Batch, *, where: str) -> torch.Tensor:
    """One optimizer step. Returns [loss × weight, weight, right, clips] of this rank's part, padding not counted."""
    labels = batch.labels.to(run.device, non_blocking=True)
    logits, _ = run.model(run.train_transform(batch.clips.to(run.device, non_blocking=True)))
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
            f"{path} was trained with {_option(name)} {saved.train_config.get(name)}, got {now[name]}; resume with the "
            "same options (only --epochs, --device and --workers may differ), or name another --out"
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


def _seed_epoch(run: Run, epoch: int) -> None:
    """Draw the random numbers of dropout and augmentation from (seed, epoch, rank) alone."""
    words = np.random.SeedSequence((run.config.seed, epoch, distributed.rank())).generate_state(2, np.uint64)
    torch.manual_seed(int(words[0] >> np.uint64(1)))
    if isinstance(run.train_transform, ClipTransform):
        run.train_transform.seed(int(words[1] >> np.uint64(1)))


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


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
