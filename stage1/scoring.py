"""Clips → P(crime) and attention, batch by batch, in memory that does not grow with the number of clips.

Every batch has the same shape (padded with black) and the same clips however many processes share the work, and is
computed by one thread; several batches at once keep the cores busy. So a score depends on the clip, its batch and the
machine, not on the number of processes, threads or cores, nor on which other clips can be read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from stage1.calibration import Calibration
from stage1.checkpoint import Checkpoint
from stage1.dataloader import Batch, ClipLoader, ClipReader
from stage1.device import cuda_memory_errors
from stage1.model import Stage1Model
from stage1.reader import ClipSource
from stage1.sample_plan import Rows
from stage1.score_journal import ScoredBatch, ScoreJournal, score_row
from stage1.transforms import ClipTransform
from vidshard import console, shard_format
from vidshard.errors import FormatError, UserError

T = TypeVar("T")

PRECISIONS = ("fp32", "bf16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Clips that one checkpoint scores."""

    checkpoint: Checkpoint
    rows: Rows  # of the index, each once


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """How clips are scored. Of these, batch size, device and precision decide the scores."""

    device: torch.device
    batch_size: int = 8
    precision: str = "fp32"  # or bf16: autocast
    threads: int | None = None  # batches at once, on the CPU; None: as many as this process has cores
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"--batch-size is {self.batch_size}, expected at least 1")
        if self.threads is not None and self.threads < 1:
            raise UserError(f"--threads is {self.threads}, expected at least 1")
        if self.precision not in PRECISIONS:
            raise UserError(f"--precision is {self.precision!r}, expected one of {', '.join(PRECISIONS)}")

    @property
    def num_threads(self) -> int:
        """Batches at once in this process."""
        if self.device.type != "cpu":
            return 1
        return self.threads or max(1, _available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class BatchPlan:
    """Which clip is in which batch: the rows of each part, in order, `batch_size` at a time."""

    def __init__(self, parts: Sequence[Part], *, num_rows: int, batch_size: int) -> None:
        self.parts, self.batch_size = tuple(parts), batch_size
        self.first_batches = []  # of each part
        self.batch_of_row = np.full(num_rows, -1, np.int32)  # -1: in no part
        self.position_of_row = np.zeros(num_rows, np.int32)  # in its batch
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
        """Index rows that are in a part, rising."""
        return np.flatnonzero(self.batch_of_row >= 0)

    def rows_of_part(self, number: int, batches: Rows) -> Rows:
        """The rows of those of `batches` (rising) that belong to a part, in order."""
        part, first = self.parts[number], self.first_batches[number]
        of_row = first + np.arange(len(part.rows)) // self.batch_size
        rows: Rows = part.rows[np.isin(of_row, batches)]
        return rows


def score(reader: ClipReader, plan: BatchPlan, journal: ScoreJournal, config: ScoringConfig) -> None:
    """Score this rank's share of the batches that `journal` lacks. A clip that cannot be read is noted there, with why.

    Raises UserError when the model gives values that are not numbers.
    """
    missing = journal.missing
    rows_of_parts = [plan.rows_of_part(number, missing) for number in range(len(plan.parts))]
    num_clips = sum(len(rows) for rows in rows_of_parts) // config.world_size
    reader.fetch_ahead(np.concatenate(rows_of_parts))
    with (
        _one_thread_a_batch(config),
        console.Progress("Stage 1 Inference", total=num_clips, unit="clip") as progress,
        cuda_memory_errors(config.batch_size),
    ):
        for part, rows in zip(plan.parts, rows_of_parts, strict=True):
            if len(rows):
                _score_part(part, _loader(reader, rows, config), reader, plan, journal, config, progress)


def _loader(reader: ClipReader, rows: Rows, config: ScoringConfig) -> ClipLoader:
    return ClipLoader(
        reader,
        rows=rows,
        batch_size=config.batch_size,
        shuffle=False,
        pad=True,
        rank=config.rank,
        world_size=config.world_size,
        max_bad_clips=None,
        num_threads=1,
        device=config.device,
    )


def _score_part(
    part: Part,
    loader: ClipLoader,
    reader: ClipReader,
    plan: BatchPlan,
    journal: ScoreJournal,
    config: ScoringConfig,
    progress: console.Progress,
) -> None:
    model = part.checkpoint.build_model().to(config.device)
    transform, calibration = part.checkpoint.build_transform(), part.checkpoint.build_calibration()
    batches = _Shared(zip(list_plan(loader), loader, strict=True))
    writing = threading.Lock()

    def work() -> None:
        try:
            with torch.inference_mode():
                for rows, batch in batches:
                    if not len(rows):
                        continue  # padding alone: another rank has the last batch
                    scored = _score_batch(model, transform, calibration, reader, loader, rows, batch, config)
                    del batch  # its buffer is lent to the next one
                    with writing:
                        journal.append(int(plan.batch_of_row[rows[0]]), scored)
                        progress.advance(len(rows))
        except BaseException:
            batches.stop()
            raise

    if config.num_threads == 1:
        work()
        return
    with ThreadPoolExecutor(config.num_threads, thread_name_prefix="scorer") as threads:
        futures = [threads.submit(work) for _ in range(config.num_threads)]
        try:
            for future in futures:
                future.result()
        finally:
            batches.stop()


def list_plan(loader: ClipLoader) -> Iterator[Rows]:
    """The rows of each batch that the loader will give, without padding."""
    for rows in loader.plan():
        yield rows[rows >= 0].astype(np.int64)


def _score_batch(
    model: Stage1Model,
    transform: ClipTransform,
    calibration: Calibration,
    reader: ClipReader,
    loader: ClipLoader,
    rows: Rows,
    batch: Batch,
    config: ScoringConfig,
) -> ScoredBatch:
    clips = transform(batch.clips.to(config.device, non_blocking=True))
    with torch.autocast(config.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        logits_BK, attention_BT = model(clips)
    count = len(rows)
    probabilities_BK = torch.softmax(logits_BK[:count].double(), dim=1)
    scores = np.zeros(count, score_row(reader.clip_shape.num_frames))
    scores["confidence"] = calibration.apply(probabilities_BK[:, shard_format.CRIME_LABEL].cpu().numpy())
    scores["attention"] = attention_of_frames(model, attention_BT[:count].float().cpu(), reader.clip_shape.num_frames)
    reasons: dict[int, str] = {}
    for position, row in enumerate(rows.tolist()):
        reason = loader.bad_clips.get(row) or _fill_times(reader, row, scores, position)
        if reason is not None:
            reasons[position] = reason
            scores[position] = 0
            scores["confidence"][position] = np.nan
    sound = [position for position in range(count) if position not in reasons]
    if not (np.isfinite(scores["confidence"][sound]).all() and np.isfinite(scores["attention"][sound]).all()):
        raise UserError("the model gives values that are not numbers: the checkpoint is unusable; train it again")
    return ScoredBatch(rows=scores, reasons=reasons)


@torch.inference_mode()
def crime_probabilities(
    checkpoint: Checkpoint,
    reader: ClipSource,
    rows: Rows,
    *,
    batch_size: int,
    device: torch.device,
    advance: Callable[[int], None] = lambda num_clips: None,
) -> npt.NDArray[np.float64]:
    """P(crime), not calibrated, of the clips of `rows` in their order, [N]: in this process, batch by batch.

    Raises FormatError on a clip that is damaged, UserError where the model gives no numbers or memory is too small.
    """
    transform, model = checkpoint.build_transform(), checkpoint.build_model().to(device)
    loader = ClipLoader(reader, rows=rows, batch_size=batch_size, shuffle=False, device=device)
    scores = []
    with cuda_memory_errors(batch_size):
        for batch in loader:
            logits_BK, _ = model(transform(batch.clips.to(device)))
            scores.append(logits_BK.double().softmax(1)[:, shard_format.CRIME_LABEL].cpu().numpy())
            advance(len(logits_BK))
    probabilities = np.concatenate(scores)
    if not np.isfinite(probabilities).all():
        raise UserError("the model gives values that are not numbers: the checkpoint is unusable; train it again")
    return probabilities


def attention_of_frames(model: Stage1Model, attention_BT: torch.Tensor, num_frames: int) -> npt.NDArray[np.float32]:
    """Attention with one weight a frame, (B, num_frames), sum 1.

    Where a backbone shrinks time, the frames that a step stands for share its weight evenly.
    """
    ranges = model.attention_frame_ranges(num_frames)
    weights = np.zeros((len(attention_BT), num_frames), np.float32)
    for step, (first, last) in enumerate(ranges):
        weights[:, first : last + 1] = attention_BT[:, step : step + 1].numpy() / (last + 1 - first)
    return weights


def _fill_times(reader: ClipReader, row: int, scores: npt.NDArray[np.void], position: int) -> str | None:
    """Note where in the video the clip of `row` lies. Returns why its record cannot be read, None if it can."""
    try:
        record = reader.read_record(row)
    except FormatError as error:
        return str(error)
    scores["first_frame"][position], scores["last_frame"][position] = record.frame_indices[0], record.frame_indices[-1]
    seconds = record.timestamps_seconds
    scores["start_seconds"][position], scores["last_seconds"][position] = seconds[0], seconds[-1]
    return None


class _Shared(Generic[T]):
    """One iterator for several threads."""

    def __init__(self, items: Iterator[T]) -> None:
        self._items, self._lock = items, threading.Lock()
        self._stopped = False

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._lock:
                if self._stopped:
                    return
                try:
                    item = next(self._items)
                except StopIteration:
                    self._stopped = True
                    return
                except BaseException:
                    self._stopped = True
                    raise
            yield item

    def stop(self) -> None:
        self._stopped = True


@contextlib.contextmanager
def _one_thread_a_batch(config: ScoringConfig) -> Iterator[None]:
    """Compute every operation on one thread, and on CUDA with kernels that give the same again."""
    before, deterministic = torch.get_num_threads(), torch.backends.cudnn.deterministic
    torch.set_num_threads(1)
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.backends.cudnn.deterministic = deterministic


def _available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
