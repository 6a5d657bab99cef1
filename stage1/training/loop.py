"""Training loop, from shards to checkpoints.

Random numbers depend on (seed, epoch, clip) only. So a resumed run ends with the same weights as an uninterrupted one,
the same seed gives the same weights (on the CPU; CUDA kernels may differ in the last bit), and the number of ranks does
not change the result.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from stage1.common import distributed, files, versions
from stage1.common.device import (
    IdleClock,
    autocast,
    channels_last,
    choose_device,
    compile_errors,
    cuda_memory_errors,
    device_name,
    map_tensors,
)
from stage1.common.distributed import rank_zero_info, rank_zero_warn
from stage1.common.earlier_results import set_aside
from stage1.common.signals import StopSignal
from stage1.data.loader import Batch, ClipLoader
from stage1.metrics import clips
from stage1.model.checkpoint import Checkpoint, load_last, save_checkpoint, save_last
from stage1.model.network import NUM_CLASSES
from stage1.training import log as train_log
from stage1.training import optim
from stage1.training.bag_objective import BagObjective
from stage1.training.clip_objective import ClipObjective, Objective, TrainBatch, Transform
from stage1.training.config import FREE_ON_RESUME, TrainConfig, changed_options, to_toml
from stage1.training.data import TrainData, open_data
from stage1.training.ensemble import train_members
from stage1.training.log import RunLog
from vidshard.util import atomic
from vidshard.util.errors import UserError
from vidshard.util.text import counted

__all__ = ["RunStopped", "TrainConfig", "TrainingRun", "train"]


FIRST_SCALE = 2.0**12  # of the loss in fp16: the first gradients fit, so that no step is lost


class RunStopped(Exception):  # noqa: N818 (it is no error)
    """A run that a signal stopped, after a checkpoint was saved. Its text is for the user."""


@dataclasses.dataclass(kw_only=True)
class EpochTotals:
    """Sums over the finished steps of the current epoch, over all ranks."""

    loss_sum: float = 0.0  # of weight × loss
    weight: float = 0.0
    num_right: float = 0.0
    num_known: float = 0.0  # clips, or bags of clips, with a label
    num_clips: float = 0.0
    lr: float = 0.0  # of the last step
    seconds: float = 0.0
    waited: float = 0.0  # seconds in which the device had nothing to do
    loader_state: dict[str, Any] | None = None  # position of the loader; None: the start of the epoch


class StepRecord(NamedTuple):
    """Results of an optimizer step, which may still be on their way from the device."""

    step: int  # of the run
    epoch: int
    lr: float
    values: torch.Tensor  # on the CPU: sums of BatchLoss, clips, ranks asked to stop, norm of the gradient
    copied: torch.cuda.Event | None


@dataclasses.dataclass(kw_only=True)
class TrainingRun:
    """State of a run."""

    config: TrainConfig
    data: TrainData
    device: torch.device
    objective: Objective
    model: nn.Module
    averaged: nn.Module | None
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LambdaLR
    scaler: torch.amp.GradScaler
    loader: ClipLoader
    validation_loader: ClipLoader | None
    log: RunLog
    stop: StopSignal = dataclasses.field(default_factory=StopSignal)
    compiled: Callable[..., Any] | None = None  # the model behind torch.compile
    step: int = 0  # completed optimizer steps
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # one entry per epoch, as in metrics.jsonl
    totals: EpochTotals = dataclasses.field(default_factory=EpochTotals)
    saved_at: float = dataclasses.field(default_factory=time.monotonic)
    clock: IdleClock = dataclasses.field(default_factory=lambda: IdleClock(torch.device("cpu")))  # of the epoch

    @property
    def global_batch(self) -> int:
        """Number of clips of one step, over all ranks."""
        return self.config.batch_size * self.config.accumulate * distributed.world_size()

    @property
    def best_weights(self) -> nn.Module:
        """Model to validate and to keep: the averaged one, if there is one."""
        return self.model if self.averaged is None else self.averaged

    def forward(self, clips_BCTHW: torch.Tensor, **options: bool) -> tuple[torch.Tensor, ...]:
        """Run the trained model, with `options`, in the precision and memory format of the config.

        Takes clips, float (B, C, T, H, W), and returns what the model does, such as logits (B, 2), as float32.
        """
        if self.config.channels_last:
            clips_BCTHW = clips_BCTHW.contiguous(memory_format=torch.channels_last_3d)
        model = self.model if self.compiled is None else self.compiled
        with autocast(self.device, self.config.precision):
            return tuple(result.float() for result in model(clips_BCTHW, **options))


@files.holds_out
def train(
    config: TrainConfig,
    *,
    transform: Transform | None = None,
    data: TrainData | None = None,
    objective: Objective | None = None,
) -> Path:
    """Train a model on `config.shards` and return the path of its checkpoint, the best by validation AUC.

    `transform` replaces the augmentation of training; validation and inference keep the one of ``config.transform``.
    `data` replaces all clips of the config's shards, and `objective` replaces the one that the config names.
    Raises UserError on unusable input, and RunStopped after Ctrl-C or SIGTERM, when a checkpoint has been saved.
    """
    if config.ensemble > 1:
        data = data or open_data(config)  # the same hold-out for all members
        return train_members(config, lambda member: train(member, transform=transform, data=data, objective=objective))
    device = distributed.device_of_rank(choose_device(config.device))
    resuming = check_out(config)
    stopped: RunStopped | None = None
    with (
        StopSignal() as stop,
        distributed.joined_ranks(device),
        hint_to_resume(config),
        cuda_memory_errors(config.batch_size),
        compile_errors(),
    ):
        objective = objective or make_objective(config, transform)
        run = start_run(config, data or open_data(config), device, objective, resuming=resuming)
        run.stop = stop
        if resuming:
            resume(run)
        objective.start(run.model, run.data, device)
        distributed.check_agreement({**run.loader.agreement(), "steps done": run.step})
        begin(run)
        try:
            run_epochs(run)
        except RunStopped as error:  # all ranks stop at the same step, so none has failed
            stopped = error
        run.log.close()
        path = config.out / files.BEST_NAME
        if stopped is None:  # inside the process group, so that only rank 0 prints
            rank_zero_info(train_log.kept_text(run.history, epochs=config.epochs, patience=config.patience))
            rank_zero_info(f"✓ Model checkpoint saved to: {path}")
    if stopped is not None:
        raise stopped
    return path


def make_objective(config: TrainConfig, transform: Transform | None = None) -> Objective:
    """Create the objective that the config names."""
    return (BagObjective if config.bags else ClipObjective)(config=config, transform=transform)


def check_out(config: TrainConfig) -> bool:
    """Return True if the run in the output folder is to be resumed.

    Raises UserError if the folder is not writable, or has no run to resume.
    """
    can_resume = any((config.out / name).exists() for name in (files.LAST_NAME, files.PREVIOUS_NAME))
    if config.resume is True and not can_resume:
        raise UserError(f"nothing to resume: no {config.out / files.LAST_NAME}; start the run without `resume`")
    return bool(config.resume) and can_resume


@contextlib.contextmanager
def hint_to_resume(config: TrainConfig) -> Iterator[None]:
    """Add a hint on how to resume to an interrupt or OSError (such as a full disk), if there is a checkpoint."""
    try:
        yield
    except (KeyboardInterrupt, OSError) as error:
        if (config.out / files.LAST_NAME).is_file():
            error.add_note(how_to_resume(config))
        raise


def how_to_resume(config: TrainConfig) -> str:
    """Return the hint for a run that was stopped; `stage1 crossval` resumes its runs by itself."""
    return f"run the same command {'again' if config.resume else 'with `resume`'} to continue"


# --- the run ------------------------------------------------------------------------------------------------------


def start_run(
    config: TrainConfig, data: TrainData, device: torch.device, objective: Objective, *, resuming: bool
) -> TrainingRun:
    """Create a run before its first step. With `resuming`, the caller loads the weights afterwards, by `resume`."""
    torch.manual_seed(config.seed)
    model = objective.make_model().to(device)
    if config.channels_last:
        channels_last(model)
    optimizer = optim.make_optimizer(model, lr=config.lr, weight_decay=config.weight_decay)
    loader, validation_loader = objective.make_loaders(data, device)
    if not resuming:  # otherwise the fit is part of the loaded weights
        objective.fit(model, data, device)
    steps_of_epoch = -(-len(loader) // config.accumulate)
    return TrainingRun(
        config=config,
        data=data,
        device=device,
        objective=objective,
        model=model,
        averaged=copy.deepcopy(model) if config.ema else None,
        optimizer=optimizer,
        scheduler=optim.make_scheduler(
            optimizer, num_steps=config.epochs * steps_of_epoch, warmup_fraction=config.warmup_fraction
        ),
        scaler=torch.amp.GradScaler(device.type, init_scale=FIRST_SCALE, enabled=config.precision == "fp16"),
        loader=loader,
        validation_loader=validation_loader,
        log=RunLog(config.out, logger=config.logger),
        compiled=torch.compile(model) if config.compile else None,
    )


def begin(run: TrainingRun) -> None:
    """Log the data and options of the run, and write its options to run.toml."""
    data, config = run.data, run.config
    counts = np.bincount(data.train_labels, minlength=2)
    rank_zero_info(f"Device: {device_name(run.device)}")
    rank_zero_info(
        f"Train: {counts[0]} normal and {counts[1]} crime clips of {data.train.clip_shape} from {data.train.where}"
    )
    num_taken = len(run.loader.order())
    if config.bags:
        rank_zero_info(f"An epoch uses {num_taken} videos, each a bag of clips (`bags` {config.bags})")
    elif num_taken < len(data.train_rows):
        rank_zero_info(
            f"An epoch uses {num_taken} of {len(data.train_rows)} clips (`clips_per_video_per_epoch` "
            f"{config.clips_per_video_per_epoch}; 0 uses all{' but extra normal ones' * bool(config.extra_normal)})"
        )
    if config.val_shards is not None and data.validation is not None:
        counts = np.bincount(data.validation.labels, minlength=2)
        rank_zero_info(f"Validation: {counts[0]} normal and {counts[1]} crime clips from {config.val_shards}")
    if data.validation is not None and getattr(run.model, "motion_classifier", None) is not None:
        rank_zero_info(
            "Note: training loss and accuracy are those of the network alone; validation adds the motion features"
        )
    for note in data.notes:
        rank_zero_info(f"Note: {note}")
    for warning in data.warnings:
        rank_zero_warn(warning)
    if run.step:
        where = f"in epoch {len(run.history) + 1}" if run.totals.loader_state else f"after epoch {len(run.history)}"
        rank_zero_info(f"Resumed {where} of {config.epochs}, after {counted(run.step, 'step')}")
    if distributed.rank() == 0 and not is_finished(run):  # else the file describes the run that gave the weights
        if not run.step:
            set_aside(config.out, files.RUN_NAMES, needed=(files.BEST_NAME, files.LAST_NAME, files.PREVIOUS_NAME))
        atomic.write_text(config.out / files.CONFIG_NAME, to_toml(config))
    run.log.start(run.step, config.to_dict())
    run.saved_at = time.monotonic()


def run_epochs(run: TrainingRun) -> None:
    """Train up to the last epoch, or until early stopping. Raises RunStopped."""
    while not is_finished(run):
        trained = train_epoch(run, len(run.history))
        validated = validate(run)
        finish_epoch(run, {**trained, **validated})


def is_finished(run: TrainingRun) -> bool:
    """Return True if all epochs are done, or if the last `patience` epochs brought no improvement."""
    since_best = next((i for i, row in enumerate(reversed(run.history)) if row["best"]), 0)
    return len(run.history) >= run.config.epochs or 0 < run.config.patience <= since_best


def train_epoch(run: TrainingRun, epoch: int) -> dict[str, Any]:
    """Train for the rest of an epoch, and return the metrics of the whole epoch. Raises RunStopped."""
    run.loader.set_epoch(epoch)
    if run.totals.loader_state is not None:
        run.loader.load_state_dict(run.totals.loader_state)
    run.model.train()
    totals, seconds_before = run.totals, run.totals.seconds
    run.clock, waited_before = IdleClock(run.device), totals.waited
    batches = _clocked(run.loader, run.clock)
    num_steps = -(-len(run.loader) // run.config.accumulate)
    start = time.perf_counter()
    title = f"Epoch {epoch + 1}/{run.config.epochs}"
    records: deque[StepRecord] = deque()  # of steps whose results were not looked at
    with train_log.progress(title, total=num_steps, unit="step") as progress:
        for step in range(1, num_steps + 1):
            records.append(train_step(run, itertools.islice(batches, run.config.accumulate), epoch))
            is_last = step == num_steps
            is_due = 0 < run.config.checkpoint_minutes * 60 <= time.monotonic() - run.saved_at
            # A CUDA device computes this step while the results of the one before are looked at. Several ranks do not:
            # they must stop at the same step, and the clock of one of them may be due first.
            is_alone = distributed.world_size() == 1
            keep = 1 if run.device.type == "cuda" and is_alone and not (is_last or is_due) else 0
            asked_to_stop = note_steps(run, records, keep=keep)
            if asked_to_stop:
                note_steps(run, records, keep=0)
            totals.seconds = seconds_before + time.perf_counter() - start
            totals.waited = waited_before + run.clock.seconds
            progress.advance(note=_progress_note(run, totals))
            if asked_to_stop or is_last or is_due:
                totals.loader_state = run.loader.state_dict()
            if asked_to_stop:
                stop_run(run)
            elif is_due and not is_last:
                save(run)
    next(batches, None)  # so that the loader ends its epoch
    for name, buffer in run.model.named_buffers():
        if name.endswith(("running_mean", "running_var")):  # of batch normalisation; they differ between ranks
            distributed.sum_over_ranks(buffer).div_(distributed.world_size())
    return {
        "epoch": epoch + 1,
        "loss": totals.loss_sum / totals.weight,
        "accuracy": totals.num_right / totals.num_known,
        "lr": totals.lr,
        "seconds": round(totals.seconds, 3),
        "clips_per_second": round(totals.num_clips / totals.seconds, 2),
        "mb_per_second": round(_mb_per_second(run, totals), 2),
        "data_wait": round(totals.waited / totals.seconds, 4),  # share of the time spent waiting for clips
    }


def train_step(run: TrainingRun, batches: Iterable[TrainBatch], epoch: int) -> StepRecord:
    """Do one optimizer step on a global batch. Nothing in it waits for a CUDA device (but for fp16's scaler)."""
    run.optimizer.zero_grad()
    sums = torch.zeros(6, dtype=torch.float64, device=run.device)
    for batch in batches:
        on_device = map_tensors(lambda tensor: tensor.to(run.device, non_blocking=True), batch)
        loss = run.objective.loss(run.model, run.forward, on_device, epoch)
        run.scaler.scale(loss.loss_sum / run.global_batch).backward()  # type: ignore[no-untyped-call]
        sums[:4] += torch.stack([part.detach().double() for part in loss])
        sums[4] += (on_device.labels >= 0).sum()
    sums[5] = run.stop.received is not None
    distributed.sum_over_ranks(sums)

    parameters = [parameter for parameter in run.model.parameters() if parameter.grad is not None]
    distributed.sum_gradients(parameters)
    run.scaler.unscale_(run.optimizer)
    factor = run.global_batch / sums[1]  # the loss of a step is the weighted mean over all clips of the global batch
    for parameter in parameters:
        parameter.grad *= factor  # type: ignore[operator]
    norm = torch.nn.utils.clip_grad_norm_(parameters, run.config.grad_clip or math.inf)
    lr, scale = float(run.scheduler.get_last_lr()[0]), run.scaler.get_scale()
    run.scaler.step(run.optimizer)  # skips the step if a gradient in fp16 overflowed, and then lowers the scale
    run.scaler.update()
    if run.scaler.get_scale() >= scale:
        run.scheduler.step()
    if run.averaged is not None:
        optim.update_average(run.averaged, run.model, step=run.step, decay=run.config.ema)
    run.step += 1
    values = torch.cat([sums, norm.double()[None]]).to("cpu", non_blocking=True)
    copied = torch.cuda.current_stream(run.device).record_event() if run.device.type == "cuda" else None
    run.clock.idle()
    return StepRecord(run.step, epoch, lr, values, copied)


def note_steps(run: TrainingRun, records: deque[StepRecord], *, keep: int) -> bool:
    """Add the results of all but the last `keep` steps to the run. Return True if a rank was asked to stop."""
    any_asked = False
    while len(records) > keep:
        record = records.popleft()
        if record.copied is not None:
            record.copied.synchronize()
        loss_sum, weight, num_right, num_known, num_clips, asked_to_stop, norm = record.values.tolist()
        _check_finite(run, loss_sum / weight, norm, where=f"epoch {record.epoch + 1}, step {record.step} of the run")
        run.totals.lr = record.lr
        run.totals.loss_sum += loss_sum
        run.totals.weight += weight
        run.totals.num_right += num_right
        run.totals.num_known += num_known
        run.totals.num_clips += num_clips
        run.log.add_step(record.step, loss=loss_sum / weight, lr=record.lr)
        any_asked = any_asked or bool(asked_to_stop)
    return any_asked


@torch.no_grad()
def validate(run: TrainingRun) -> dict[str, Any]:
    """Compute metrics on the validation clips, scored as in inference; {} without any. Raises RunStopped."""
    if run.validation_loader is None:
        return {}
    model = run.best_weights.eval()
    results, indices = [], []
    with _network_logits(model) as network:  # of the last batch
        for batch in run.validation_loader:
            if _is_asked_to_stop(run):
                stop_run(run)
            on_device = Batch(*(tensor.to(run.device) for tensor in batch))
            logits_BK = run.objective.score(model, on_device)
            parts = [on_device.labels[:, None], logits_BK, *network[-1:]]
            results.append(torch.cat([part.double() for part in parts], dim=1))
            indices.append(on_device.indices)
    num_rows = len(run.validation_loader.labels)
    table, is_scored = distributed.merge_rows(torch.cat(results), torch.cat(indices), num_rows=num_rows)
    rows_N, table = is_scored.nonzero()[:, 0].cpu(), table[is_scored].cpu()
    if not torch.isfinite(table).all():  # before anything is saved, so that the run can be resumed
        raise UserError(
            f"the model's outputs on the validation clips are not finite numbers after step {run.step} of the run; "
            f"lower `lr` (now {run.config.lr:g}) and start again in another `out`"
        )
    labels_N = table[:, 0].long()
    both, *alone = (
        _validation_metrics(*run.objective.aggregate(logits_NK, labels_N, rows_N))
        for logits_NK in torch.split(table[:, 1:], NUM_CLASSES, dim=1)
    )
    return both | {f"network_{name}": one[name] for one in alone for name in ("val_loss", "val_accuracy", "val_auc")}


@contextlib.contextmanager
def _network_logits(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect the logits of the network alone, if `model` adds those of a motion classifier to them."""
    found: list[torch.Tensor] = []
    if getattr(model, "motion_classifier", None) is None:
        yield found
        return
    hook = model.get_submodule("classifier").register_forward_hook(lambda _module, _inputs, out: found.append(out))
    try:
        yield found
    finally:
        hook.remove()


def _validation_metrics(logits_NK: torch.Tensor, labels_N: torch.Tensor) -> dict[str, Any]:
    scores = clips.score(labels_N.numpy(), logits_NK.softmax(1)[:, 1].numpy())
    loss_sum = float(functional.cross_entropy(logits_NK, labels_N, ignore_index=-1, reduction="sum"))
    return {
        "val_loss": loss_sum / max(1, scores.num_clips),
        "val_accuracy": scores.accuracy,
        "val_auc": scores.auc,
        "val_confusion": [list(row) for row in scores.confusion],
    }


def finish_epoch(run: TrainingRun, entry: dict[str, Any]) -> None:
    """Log the epoch, and write the files of the run: last.pt first, as `resume` can write the others from it."""
    entry["best"] = is_best(entry, run.history, patience=run.config.patience)
    run.history.append(entry)
    run.totals = EpochTotals()
    run.log.add_epoch(entry, run.step)
    saved = save(run)
    if distributed.rank() == 0:
        write_derived_files(run, saved)


def write_derived_files(run: TrainingRun, last: Checkpoint) -> None:
    """Write the files that follow from last.pt: metrics, curves and, if it is the best, the best checkpoint."""
    if run.history[-1]["best"]:
        save_checkpoint(run.config.out / files.BEST_NAME, last)
    run.log.write(run.history, run.step, last=is_finished(run))


def is_best(entry: dict[str, Any], history: Sequence[dict[str, Any]], *, patience: int) -> bool:
    """Return True if the checkpoint of `entry` is to be kept in place of those of `history`.

    It is the last one, as the learning rate has then fallen to almost nothing, and a choice by few validation clips is
    a choice by chance. With early stopping (`patience` above 0) it is the one with the lowest validation loss, that of
    the network alone where motion features are added to it, since they do not change in training.

    >>> is_best({"val_loss": 0.6}, [{"val_loss": 0.5}], patience=0), is_best({"val_loss": 0.6}, [], patience=3)
    (True, True)
    >>> is_best({"val_loss": 0.6}, [{"val_loss": 0.5}], patience=3)
    False
    """

    def loss(row: dict[str, Any]) -> float:
        found: float = row.get("network_val_loss", row["val_loss"])
        return found

    return not patience or "val_loss" not in entry or all(loss(entry) < loss(row) for row in history)


# --- checkpoints --------------------------------------------------------------------------------------------------


def save(run: TrainingRun) -> Checkpoint:
    """Write last.pt, on rank 0, and return the checkpoint."""
    checkpoint = make_checkpoint(run)
    if distributed.rank() == 0:
        save_last(run.config.out, checkpoint)
    run.log.flush()
    run.saved_at = time.monotonic()
    return checkpoint


def stop_run(run: TrainingRun) -> NoReturn:
    """Save a checkpoint and raise RunStopped, on all ranks at once."""
    save(run)
    distributed.wait_for_all()  # torchrun may kill the other ranks when one ends early
    raise RunStopped(
        f"stopped by {run.stop.received or 'a signal to another process'} after {counted(run.step, 'step')}; "
        + how_to_resume(run.config)
    )


def make_checkpoint(run: TrainingRun) -> Checkpoint:
    """Return a checkpoint of the current state of the run."""
    data = run.data
    return Checkpoint(
        epoch=len(run.history),
        step=run.step,
        model_state_dict=run.best_weights.state_dict(),
        optimizer_state_dict=run.optimizer.state_dict(),
        scheduler_state_dict=run.scheduler.state_dict(),
        model_config=dataclasses.asdict(run.config.model),
        transform_config=dataclasses.asdict(run.config.transform.for_evaluation),
        clip_shape=dataclasses.asdict(data.train.clip_shape),
        sampling=data.train.settings,
        frame_gap_seconds=data.frame_gap_seconds(),
        metrics=run.history[-1] if run.history else {},
        warnings=list(data.warnings),
        train_config=run.config.to_dict(),
        data_digests=data.digests,
        train_videos=data.train_videos,
        packages=versions.package_versions(),
        git_commit=versions.git_commit(),
        run_state={
            "history": run.history,
            "epoch_so_far": dataclasses.asdict(run.totals),
            "global_batch": run.global_batch,
            "scaler": run.scaler.state_dict(),
            # Weights from which training resumes, as model_state_dict holds the averaged ones.
            "trained_weights": run.model.state_dict() if run.averaged is not None else None,
        },
    )


def resume(run: TrainingRun) -> None:
    """Restore the run from its last checkpoint. Raises UserError if data or options differ from that run's."""
    saved, warning = load_last(run.config.out)
    path = run.config.out / files.LAST_NAME
    _check_same_run(run, saved, path)
    if run.averaged is None:
        run.model.load_state_dict(saved.model_state_dict)
    else:
        run.model.load_state_dict(saved.run_state["trained_weights"])
        run.averaged.load_state_dict(saved.model_state_dict)
    run.optimizer.load_state_dict(saved.optimizer_state_dict)
    run.scheduler.load_state_dict(saved.scheduler_state_dict)
    run.scaler.load_state_dict(saved.run_state["scaler"])
    run.step, run.history = saved.step, saved.run_state["history"]
    run.totals = EpochTotals(**saved.run_state["epoch_so_far"])
    if run.totals.loader_state is not None:
        run.loader.load_state_dict(run.totals.loader_state)
    if warning is not None:
        rank_zero_warn(warning)
    if (epochs := saved.train_config["epochs"]) != run.config.epochs and run.history and not is_finished(run):
        rank_zero_info(
            f"Note: `epochs` changed from {epochs} to {run.config.epochs}; the learning-rate schedule is adjusted, so "
            f"the weights will differ from those of a run with `epochs` {run.config.epochs}"
        )
    if distributed.rank() == 0:
        if warning is not None:
            path.unlink(missing_ok=True)  # so that the damaged file does not become previous.pt
        if run.history and run.totals.loader_state is None:  # the run may have been killed before writing these
            write_derived_files(run, saved)


def _check_same_run(run: TrainingRun, saved: Checkpoint, path: Path) -> None:
    """Raise UserError if data or options of the checkpoint `path` differ from those of `run`."""
    before, now = saved.data_digests, run.data.digests
    roles = {"train": "train shards", "validation": "validation shards", "extra": "extra normal shards"}
    roles |= {"labels": "labels of the clips"} if "labels" in before else {}  # earlier versions recorded none
    for role, what in roles.items():
        if before.get(role) != now.get(role) and (role in now or role != "validation"):
            raise UserError(
                f"the {what} differ from those that {path} was trained on; pass the same ones, or another `out`"
            )
    options = {name: value for name, value in run.config.to_dict().items() if name not in FREE_ON_RESUME}
    changed = changed_options(saved.train_config, options)
    if changed:
        raise UserError(
            f"{path} was trained with {changed[0]}; resume with the same options (only options that do not affect the "
            "weights may differ), or choose another `out`"
        )
    if saved.run_state["global_batch"] != run.global_batch:
        raise UserError(
            f"{path} was trained with {saved.run_state['global_batch']} clips per step, got {run.global_batch} "
            f"(`batch_size` {run.config.batch_size} × `accumulate` {run.config.accumulate} × "
            f"{distributed.world_size()} processes); keep the product, or choose another `out`"
        )


# --- helpers ------------------------------------------------------------------------------------------------------


def _mb_per_second(run: TrainingRun, totals: EpochTotals) -> float:
    """Return the throughput in megabytes of clips per second."""
    return totals.num_clips * run.data.train.clip_shape.num_bytes / 1e6 / totals.seconds


def _progress_note(run: TrainingRun, totals: EpochTotals) -> str:
    if not totals.weight:
        return ""
    return (
        f"loss {totals.loss_sum / totals.weight:.4f}, {totals.num_clips / totals.seconds:.0f} clips/s, "
        f"{_mb_per_second(run, totals):.1f} MB/s, {totals.waited / totals.seconds:.0%} waiting for data"
    )


def _clocked(batches: ClipLoader, clock: IdleClock) -> Iterator[Any]:
    """Yield the batches; until one is there, the device has nothing to do."""
    iterator = iter(batches)
    while True:
        clock.idle()
        batch = next(iterator, None)
        clock.busy()
        if batch is None:
            return
        yield batch


def _is_asked_to_stop(run: TrainingRun) -> bool:
    """Return True if any rank was asked to stop. All ranks must call this."""
    return bool(distributed.sum_over_ranks(torch.tensor(float(run.stop.received is not None), device=run.device)))


def _check_finite(run: TrainingRun, loss: float, norm: float, *, where: str) -> None:
    """Raise UserError if the loss or the gradient is not finite."""
    # When gradients overflow in fp16, the scaler skips the step and lowers its scale.
    if not math.isfinite(loss) or (not math.isfinite(norm) and not run.scaler.is_enabled()):
        raise UserError(
            f"the loss is {loss:g} and its gradient {norm:g} at {where}, expected finite numbers; "
            f"lower `lr` (now {run.config.lr:g})"
        )
