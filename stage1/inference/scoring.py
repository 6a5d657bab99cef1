"""Batch-wise scoring of clips, P(crime) and attention, in constant memory.

Every batch has the same shape (padded with black) and the same clips for any number of processes, and is computed by
one thread; several batches run in parallel to use all cores. So a score depends on the clip, its batch and the machine,
but not on the number of processes, threads or cores, nor on damaged clips elsewhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from stage1.common.device import cuda_memory_errors
from stage1.data.epoch_plan import Rows
from stage1.data.loader import Batch, ClipLoader, ClipReader
from stage1.data.reader import ClipSource
from stage1.inference.config import SCORING_PRECISIONS
from stage1.inference.score_log import ScoredBatch, ScoreLog, score_row
from stage1.metrics.calibration import logits as log_odds_of
from stage1.model.checkpoint import Checkpoint
from stage1.model.network import Ensemble, Stage1Model
from vidshard.shards import layout
from vidshard.util import console
from vidshard.util.errors import FormatError, UserError
from vidshard.util.options import check_options, option

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointClips:
    """A checkpoint and the clips that it scores."""

    checkpoint: Checkpoint
    rows: Rows  # distinct rows of the index


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """Settings of scoring. Of these, batch size, device, precision and `log_odds` determine the scores."""

    device: torch.device
    batch_size: int = option(8, at_least=1)
    precision: str = option("fp32", choices=SCORING_PRECISIONS)
    log_odds: bool = False  # in place of P(crime), and not calibrated
    threads: int | None = option(None, at_least=1)  # batches at once on the CPU; None: one per core
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def num_threads(self) -> int:
        """Number of batches that this process scores in parallel."""
        if self.device.type != "cpu":
            return 1
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.threads or max(1, available // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class BatchPlan:
    """Assignment of clips to batches: the rows of each part in order, `batch_size` at a time."""

    def __init__(self, parts: Sequence[CheckpointClips], *, num_rows: int, batch_size: int) -> None:
        self.parts, self.batch_size = tuple(parts), batch_size
        self.first_batches = []  # the first batch of each part
        self.batch_of_row = np.full(num_rows, -1, np.int32)  # -1: in no part
        self.position_of_row = np.zeros(num_rows, np.int32)  # position in the batch
        number = 0
        for part in parts:
            self.first_batches.append(number)
            places = np.arange(len(part.rows))
            self.batch_of_row[part.rows] = number + places // batch_size
            self.position_of_row[part.rows] = places % batch_size
            number += -(-len(part.rows) // batch_size)
        self.num_batches = number

    @property
    def rows(self) -> Rows:
        """Index rows of all parts, ascending."""
        return np.flatnonzero(self.batch_of_row >= 0)

    def rows_of_part(self, number: int, batches: Rows) -> Rows:
        """Return the rows, in order, of those of `batches` that belong to the part `number`."""
        part, first = self.parts[number], self.first_batches[number]
        of_row = first + np.arange(len(part.rows)) // self.batch_size
        rows: Rows = part.rows[np.isin(of_row, batches)]
        return rows


def score(
    reader: ClipReader,
    plan: BatchPlan,
    score_log: ScoreLog,
    config: ScoringConfig,
    *,
    row_seconds: npt.NDArray[np.float64] | None = None,
) -> None:
    """Score this rank's share of the batches that are missing in `score_log`, and append them to it.

    The progress counts clips or, with `row_seconds`, the seconds of video that each index row stands for. Clips that
    cannot be read are logged with the reason. Raises UserError if an output of the model is not finite.
    """
    missing = score_log.missing
    rows_of_parts = [plan.rows_of_part(number, missing) for number in range(len(plan.parts))]
    weights = np.ones(len(plan.batch_of_row)) if row_seconds is None else row_seconds
    total = sum(float(weights[rows].sum()) for rows in rows_of_parts) / config.world_size
    unit, done = "clip" if row_seconds is None else "second", 0.0
    reader.fetch_ahead(np.concatenate(rows_of_parts))
    with (
        console.Progress("Stage 1 Inference", total=int(total + 1e-3), unit=unit) as progress,
        cuda_memory_errors(config.batch_size),
    ):

        def take(rows: Rows, scored: ScoredBatch) -> None:
            nonlocal done
            score_log.append(int(plan.batch_of_row[rows[0]]), scored)
            done += float(weights[rows].sum())
            progress.advance(int(done + 1e-3) - progress.done)

        for part, rows in zip(plan.parts, rows_of_parts, strict=True):
            if len(rows):
                loader = clip_loader(reader, rows, config, max_bad_clips=None)
                for_each_batch(loader, Scorer(part.checkpoint, reader, loader, config), take, config)


def clip_loader(source: ClipSource, rows: Rows, config: ScoringConfig, *, max_bad_clips: int | None) -> ClipLoader:
    """Create a loader for this rank's share of `rows`, in order, with batches of one shape."""
    return ClipLoader(
        source,
        rows=rows,
        batch_size=config.batch_size,
        shuffle=False,
        pad=True,
        rank=config.rank,
        world_size=config.world_size,
        max_bad_clips=max_bad_clips,
        num_threads=1,
        device=config.device,
    )


def for_each_batch(
    loader: ClipLoader, compute: Callable[[Rows, Batch], T], take: Callable[[Rows, T], None], config: ScoringConfig
) -> None:
    """Call ``take(rows, compute(rows, batch))`` for every batch of the loader that has clips.

    `rows` excludes padding. `compute` runs in worker threads, one per batch; `take` runs in this thread, in the order
    of the loader.
    """

    def run(rows: Rows, batch: Batch) -> T:
        with torch.inference_mode():
            return compute(rows, batch)

    pending: deque[tuple[Rows, Future[T]]] = deque()

    def take_first() -> None:
        rows, future = pending.popleft()
        take(rows, future.result())

    with _one_thread_a_batch():
        threads = ThreadPoolExecutor(config.num_threads, thread_name_prefix="scorer")
        try:
            for planned, batch in zip(loader.plan(), loader, strict=True):
                rows = planned[planned >= 0].astype(np.int64)
                if len(rows):  # a batch of padding only means that other ranks have the last clips
                    pending.append((rows, threads.submit(run, rows, batch)))
                del batch  # release the buffer for a later batch
                if len(pending) > config.num_threads:
                    take_first()
            while pending:
                take_first()
        finally:
            threads.shutdown(cancel_futures=True)


class Scorer:
    """Function from a batch to its results: P(crime), attention, and each clip's position in its video."""

    def __init__(self, checkpoint: Checkpoint, reader: ClipReader, loader: ClipLoader, config: ScoringConfig) -> None:
        self.model = checkpoint.build_model().to(config.device)
        self.transform, self.calibration = checkpoint.build_transform(), checkpoint.build_calibration()
        self.reader, self.loader, self.config = reader, loader, config

    def __call__(self, rows: Rows, batch: Batch) -> ScoredBatch:
        """Score a batch, and log the reason for clips that cannot be read."""
        config, count, num_frames = self.config, len(rows), self.reader.clip_shape.num_frames
        clips = self.transform(batch.clips.to(config.device, non_blocking=True))
        with torch.autocast(config.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            logits_BK, attention_BT = self.model(clips)
        scores = np.zeros(count, score_row(num_frames))
        probabilities = _crime_probabilities(logits_BK[:count])
        scores["confidence"] = log_odds_of(probabilities) if config.log_odds else self.calibration.apply(probabilities)
        scores["attention"] = attention_of_frames(self.model, attention_BT[:count], num_frames)
        reasons: dict[int, str] = {}
        for position, row in enumerate(rows.tolist()):
            reason = self.loader.bad_clips.get(row) or _fill_times(self.reader, row, scores, position)
            if reason is not None:
                reasons[position] = reason
                scores[position] = 0
                scores["confidence"][position] = np.nan
        sound = [position for position in range(count) if position not in reasons]
        _check_numbers(scores["confidence"][sound], scores["attention"][sound])
        return ScoredBatch(rows=scores, reasons=reasons)


def crime_probabilities(
    checkpoint: Checkpoint,
    reader: ClipSource,
    rows: Rows,
    *,
    batch_size: int,
    device: torch.device,
    advance: Callable[[int], None] = lambda num_clips: None,
) -> npt.NDArray[np.float64]:
    """Return uncalibrated P(crime), [N], of the clips of `rows` in their order, equal to that of `score`.

    `advance` is called with the number of clips after each batch. Raises FormatError if a clip is damaged, and
    UserError if an output of the model is not finite or CUDA memory is too small.
    """
    config = ScoringConfig(device=device, batch_size=min(batch_size, max(1, len(rows))))
    probabilities: list[npt.NDArray[np.float64]] = []

    def take(rows: Rows, of_batch: npt.NDArray[np.float64]) -> None:
        probabilities.append(of_batch)
        advance(len(rows))

    with cuda_memory_errors(batch_size):
        transform, model = checkpoint.build_transform(), checkpoint.build_model().to(device)

        def compute(rows: Rows, batch: Batch) -> npt.NDArray[np.float64]:
            return _crime_probabilities(model(transform(batch.clips.to(device)))[0][: len(rows)])

        for_each_batch(clip_loader(reader, rows, config, max_bad_clips=0), compute, take, config)
    found = np.concatenate(probabilities)
    _check_numbers(found)
    return found


def _crime_probabilities(logits_BK: torch.Tensor) -> npt.NDArray[np.float64]:
    probabilities_B: npt.NDArray[np.float64] = logits_BK.double().softmax(1)[:, layout.CRIME_LABEL].cpu().numpy()
    return probabilities_B


def _check_numbers(*values: npt.NDArray[Any]) -> None:
    if not all(np.isfinite(array).all() for array in values):
        raise UserError("the model's outputs are not finite numbers, so the checkpoint is unusable; train it again")


def attention_of_frames(
    model: Stage1Model | Ensemble, attention_BT: torch.Tensor, num_frames: int
) -> npt.NDArray[np.float32]:
    """Return attention with one weight per frame, (B, num_frames), that sums to 1.

    If the backbone downsamples time, the weight of a time step is divided equally among its frames.
    """
    ranges = model.attention_frame_ranges(num_frames)
    attention_BT = attention_BT.float().cpu()
    weights = np.zeros((len(attention_BT), num_frames), np.float32)
    for step, (first, last) in enumerate(ranges):
        weights[:, first : last + 1] = attention_BT[:, step : step + 1].numpy() / (last + 1 - first)
    return weights


def _fill_times(reader: ClipReader, row: int, scores: npt.NDArray[np.void], position: int) -> str | None:
    """Fill in the position of a clip in its video. Return the reason if its record cannot be read, or None."""
    try:
        record = reader.read_record(row)
    except FormatError as error:
        return str(error)
    scores["first_frame"][position], scores["last_frame"][position] = record.frame_indices[0], record.frame_indices[-1]
    seconds = record.timestamps_seconds
    scores["start_seconds"][position], scores["last_seconds"][position] = seconds[0], seconds[-1]
    return None


@contextlib.contextmanager
def _one_thread_a_batch() -> Iterator[None]:
    """Run each operation in the block on one thread, and on CUDA with deterministic kernels."""
    before, deterministic = torch.get_num_threads(), torch.backends.cudnn.deterministic
    torch.set_num_threads(1)
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.backends.cudnn.deterministic = deterministic
