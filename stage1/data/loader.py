"""Batches of clips from shard folders, read by an exact plan, with one copy from the page cache and no decoding.

A `ClipLoader` is a `webdataset.DataPipeline` with a first stage of its own. Instead of streaming tars through a shuffle
buffer, it reads whole batches by a plan that follows from (seed, epoch) and the index. So every clip appears exactly
once per epoch, every rank has the same number of steps, and neither depends on how clips are distributed over shards.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import math
import multiprocessing
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import webdataset as wds

from stage1.common.device import map_tensors
from stage1.data import epoch_plan
from stage1.data.epoch_plan import PADDING_ROW, Rows
from stage1.data.reader import ClipReader, ClipSource, JoinedReader
from stage1.data.selection import Balance, Quota
from vidshard.util.errors import FormatError, UserError

logger = logging.getLogger(__name__)

__all__ = ["BagLoader", "Batch", "ClipLoader", "ClipReader", "JoinedReader"]

STATE_VERSION = 1
MAX_PINNED_BYTES = 2 << 30  # of the pinned buffers of a loader; the system cannot use such memory for anything else


class Batch(NamedTuple):
    """One batch. Its tensors stay valid as long as the caller holds them."""

    clips: torch.Tensor  # uint8 (B, T, H, W, C), RGB
    labels: torch.Tensor  # int64 (B,): 0 normal, 1 crime, -1 unknown or padding
    indices: torch.Tensor  # int64 (B,): rows of the index; -1 for padding


class ClipLoader(wds.DataPipeline):  # type: ignore[misc]  # webdataset has no types
    """Iterable over the batches of an epoch: a WebDataset pipeline whose source reads by a plan.

    Every clip appears exactly once per epoch, in `len(loader)` steps on every rank. Each iteration is one epoch, and
    the next iteration is the next epoch, unless `set_epoch` changes it. The iteration raises errors that occurred
    while reading ahead. ``loader.compose(wds.map(…))`` adds stages. Release a batch (``del batch``) before requesting
    the next one, which then reuses its buffer while that is still in the processor's cache.

    For evaluation and inference, on any number of ranks, use ``ClipLoader(reader, batch_size=8, shuffle=False,
    pad=True, rank=distributed.rank(), world_size=distributed.world_size(), max_bad_clips=None)``. Clips then follow the
    order of the index and all batches have one shape, so that on the CPU, with a fixed number of threads, a clip gets
    the same result on any rank, byte for byte. `indices` holds the row of each clip, or -1 for padding and damaged
    clips. `distributed.merge_rows` merges the results of all ranks into one table, and `bad_clips` maps the rows that
    this rank could not read to their errors.

    reader: the shard set to read.
    batch_size: clips per batch and rank.
    shuffle: use a new order in each epoch; otherwise the order of `rows`.
    seed: the seed of the order and of the selection in each epoch.
    rank, world_size: which part of each global batch this loader reads.
    block_shards: shuffle within windows of this many shards, which are read in sequence (for network disks, and data
        larger than memory); 0 shuffles all clips.
    rows: the index rows to load; all rows by default. See `stage1.data.selection`.
    labels: a label for each row of the index, in place of those of the shards.
    clips_per_video: number of clips of each video in an epoch, different ones in each epoch; 0 uses all clips.
    quota: the same for any groups of clips, in place of `clips_per_video`.
    balance: shares of an epoch by group; clips are repeated as often as that requires.
    drop_last, pad: drop the last, smaller batch, or fill it with padding (row and label -1, black pixels).
    max_bad_clips: number of damaged clips to tolerate on this rank. They are reported on standard error and replaced by
        other clips of the same label, or by padding without `shuffle`. One more raises FormatError. None tolerates any
        number, and leaves it to the caller to report `bad_clips`.
    num_threads: threads that read ahead; 0 reads on request, which is faster without a spare core.
    num_processes: DataLoader processes to use instead of threads; slower, as nothing is decoded, unless further stages
        are expensive. In a ``DataLoader(loader, batch_size=None, num_workers=N)`` of your own, the processes share the
        batches in the same way, but call `set_epoch` before each epoch.
    device: device of the batches. For CUDA they are copied through pinned buffers while the previous step computes.
    prepare: function of (batch on the CPU, epoch), called in the threads that read; what it returns, nested tuples of
        tensors and other values, takes the place of the batch, and its tensors are copied to `device`.

    Raises ValueError if an argument is out of range.
    """

    def __init__(  # noqa: PLR0913  # public, and every option is a keyword
        self,
        reader: ClipSource,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        pad: bool = False,
        block_shards: int = 0,
        rows: npt.ArrayLike | None = None,
        labels: npt.ArrayLike | None = None,
        clips_per_video: int = 0,
        quota: Quota | None = None,
        balance: Balance | None = None,
        max_bad_clips: int | None = 0,
        num_threads: int = 1,
        num_processes: int = 0,
        device: torch.device | str = "cpu",
        prepare: Callable[[Batch, int], Any] | None = None,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"{batch_size=}, {rank=}, {world_size=}: expected batch_size >= 1, 0 <= rank < world_size")
        if min(block_shards, clips_per_video, max_bad_clips or 0, num_threads, num_processes) < 0:
            raise ValueError(
                f"{block_shards=}, {clips_per_video=}, {max_bad_clips=}, {num_threads=}, {num_processes=}: expected 0 "
                "or more for each"
            )
        self.reader = reader
        self.rows = _row_numbers(np.arange(len(reader)) if rows is None else np.asarray(rows), len(reader))
        self.labels = reader.labels if labels is None else np.asarray(labels, np.int64)
        columns: dict[str, Rows] = {"labels": self.labels}
        columns |= {name: of.groups for name, of in (("balance", balance), ("quota", quota)) if of is not None}
        for name, column in columns.items():
            if len(column) != len(reader):
                raise ValueError(
                    f"{name} has {len(column)} entries, expected one for each of the {len(reader)} rows of the index"
                )
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.drop_last, self.pad, self.block_shards = drop_last, pad, block_shards
        self.clips_per_video, self.quota, self.balance = clips_per_video, quota, balance
        self.rank, self.world_size = rank, world_size
        self.max_bad_clips, self.num_threads, self.num_processes = max_bad_clips, num_threads, num_processes
        self.device, self.prepare = torch.device(device), prepare
        self.epoch = 0
        self.bad_clips: dict[int, str] = {}  # index row → error
        # Positions in the order, in clips: the start of the next iteration, and the end of the last batch handed out.
        self._start = self._position = 0
        self._order: tuple[int, Rows, Rows] | None = None
        self._buffers = BufferPool(
            (batch_size, *reader.clip_shape.thwc),
            max_free=num_threads + 3,
            pinned=self.device.type == "cuda" and not num_processes,
        )
        super().__init__(self._iterate)

    def __iter__(self) -> Iterator[Batch]:
        # webdataset's own method would hold each batch, and so its buffer, until the next batch is read.
        return self.iterator1() if self.repetitions == 1 else super().__iter__()  # type: ignore[no-any-return]

    def compose(self, *stages: Any) -> ClipLoader:
        """Return a loader of the same clips with more stages; it has its own count of epochs and steps."""
        composed: ClipLoader = super().compose(*stages)
        composed.pipeline[0] = composed._iterate  # the copied stage is bound to this loader
        return composed

    # --- position

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration. It starts at the first batch unless a state of that epoch was loaded."""
        if epoch != self.epoch:
            self.epoch, self._start, self._position = epoch, 0, 0

    def __len__(self) -> int:
        """Return the steps of the next iteration: those of an epoch, or the rest of it after `load_state_dict`."""
        num_clips = max(0, len(self.order()) - self._start)
        return epoch_plan.num_steps(num_clips, global_batch=self._global_batch, drop_last=self.drop_last)

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch handed out, as values for JSON; the same on every rank.

        Batches that were read ahead do not count. The state may be loaded with a different number of ranks, threads and
        processes, and a different batch size.
        """
        return {
            "version": STATE_VERSION,
            "digest": self.reader.digest,
            "plan": self.plan_digest,
            "seed": self.seed,
            "epoch": self.epoch,
            "position": self._position,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume at the position of `state`. Raises UserError if its data set, selection of clips or seed differs."""
        expected = {**self.state_dict(), "epoch": state.get("epoch"), "position": state.get("position")}
        for name, what in (
            ("version", "a different version of the loader"),
            ("digest", "different shards"),
            ("plan", "a different selection of clips (rows, labels, clips per video, balance, shuffling)"),
            ("seed", "a different seed"),
        ):
            if state.get(name) != expected[name]:
                raise UserError(
                    f"the loader's state is from {what}: {name} is {state.get(name)!r}, expected {expected[name]!r}; "
                    "load it into a loader with the same data and options, or restart the epoch"
                )
        self.epoch = int(state["epoch"])
        self._start = self._position = int(state["position"])

    @property
    def plan_digest(self) -> str:
        """Digest of everything that determines the order, except data set, seed and epoch."""
        digest = hashlib.sha256(repr((self.shuffle, self.block_shards, self.clips_per_video)).encode())
        for column in (self.rows, self.labels, *((self.balance.groups,) if self.balance else ())):
            digest.update(np.ascontiguousarray(column, "<i8").tobytes())
        digest.update(repr(self.balance.weights if self.balance else None).encode())
        if self.quota is not None:
            digest.update(self.quota.groups.tobytes() + self.quota.counts.tobytes())
        return digest.hexdigest()[:16]

    def agreement(self) -> dict[str, Any]:
        """Return the values that must be equal on all ranks, for `distributed.check_agreement`."""
        return {
            "data set": self.reader.digest,
            "selection": self.plan_digest,
            "seed": self.seed,
            "epoch": self.epoch,
            "position": self._start,
            "batch size": self.batch_size,
            "world size": self.world_size,
            "steps": len(self),
        }

    # --- the plan

    def order(self) -> Rows:
        """Return the index rows of this epoch, of all ranks, in order."""
        return self._epoch_order()[0]

    def plan(self) -> Iterator[Rows]:
        """Yield the index rows of each batch of this rank in the next iteration; -1 is padding."""
        order = self.order()[self._start :]
        for step in range(len(self)):
            yield self._rank_batch(order, step)

    def _epoch_order(self) -> tuple[Rows, Rows]:
        """Return the order of the epoch, and the positions at which windows of shards begin (with block_shards)."""
        if self._order is None or self._order[0] != self.epoch:
            self._order = (self.epoch, *self._make_order())
        return self._order[1:]

    def _make_order(self) -> tuple[Rows, Rows]:
        draw = {"seed": self.seed, "epoch": self.epoch}
        rows: Rows = self.rows
        starts: Rows = np.zeros(0, np.int64)
        if self.quota is not None:
            groups = self.quota.groups[rows]
            rows = rows[epoch_plan.clips_of_epoch(groups, per_video=self.quota.counts[groups], **draw)]
        elif self.clips_per_video:
            rows = rows[epoch_plan.clips_of_epoch(self.reader.videos[rows], per_video=self.clips_per_video, **draw)]
        if self.balance is not None:
            picked = epoch_plan.balanced_clips(self.balance.groups[rows], weights=self.balance.weights, **draw)
            rows = rows[picked]
        if self.shuffle and self.block_shards:
            order, starts = epoch_plan.block_order(self.reader.shards[rows], window_shards=self.block_shards, **draw)
            rows = rows[order]
        elif self.shuffle:
            rows = rows[epoch_plan.epoch_order(len(rows), **draw)]
        return rows, starts

    @property
    def _global_batch(self) -> int:
        return self.batch_size * self.world_size

    def _rank_batch(self, order: Rows, step: int) -> Rows:
        return epoch_plan.rank_batch(
            order, step, batch_size=self.batch_size, rank=self.rank, world_size=self.world_size, pad=self.pad
        )

    # --- reading

    def _iterate(self) -> Iterator[Batch]:
        """Yield the batches of the plan: the first stage of the pipeline."""
        self.reader.fetch_ahead(self.order()[self._start :])
        if self.shuffle and not self.num_processes and torch.utils.data.get_worker_info() is None:
            self.reader.keep_clips()
        if self.num_processes:  # a DataLoader asks its workers in turn, which keeps the order of the plan
            batches = iter(wds.WebLoader(_StepsOfWorker(self), batch_size=None, num_workers=self.num_processes))
        elif torch.utils.data.get_worker_info() is not None:  # the caller's DataLoader does the same
            batches = iter(_StepsOfWorker(self))
        else:
            batches = self.read_ahead(self.plan())
        if self.device.type == "cuda":
            batches = _on_cuda(batches, self.device)
        yield from map(self._count_step, batches, itertools.count(self._start + self._global_batch, self._global_batch))
        self.epoch, self._start, self._position = self.epoch + 1, 0, 0

    def _count_step(self, batch: Batch, end: int) -> Batch:
        """Record that the batch that ends at position `end` of the order is handed out."""
        self._start = 0  # if this iteration is abandoned, the next one restarts the epoch
        self._position = min(end, len(self.order()))
        return batch

    def read_ahead(self, plan: Iterable[Rows]) -> Iterator[Batch]:
        """Yield the batches of `plan`, which are read ahead by threads."""
        pending: deque[Future[Batch]] = deque()
        threads = ThreadPoolExecutor(max(1, self.num_threads), thread_name_prefix="clip-reader")
        adviser = ThreadPoolExecutor(1, thread_name_prefix="clip-reader")
        windows = self._windows()
        position, begins = self._start, -1
        try:
            for rows in plan:
                while position >= begins:
                    begins, window = next(windows, (sys.maxsize, None))
                    if window is not None:
                        adviser.submit(self.reader.will_read, window)
                position += self._global_batch
                if not self.num_threads:
                    yield self._read_batch(rows)
                    continue
                pending.append(threads.submit(self._read_batch, rows))
                if len(pending) > self.num_threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            adviser.shutdown(cancel_futures=True)
            threads.shutdown(cancel_futures=True)

    def _windows(self) -> Iterator[tuple[int, Rows]]:
        """Yield (position at which to advise the system, rows) of each window of shards, one window ahead."""
        order, starts = self._epoch_order()
        ends = [*starts[1:].tolist(), len(order)]
        before = 0
        for begins, end in zip(starts.tolist(), ends, strict=False):
            if end > self._start:
                yield before, order[begins:end]
            before = begins

    def _read_batch(self, rows: Rows) -> Batch:
        clips = self._buffers.take(len(rows))
        rows = rows.astype(np.int64)
        count = int(np.count_nonzero(rows != PADDING_ROW))  # padding comes last
        if count < len(rows):
            clips[count:] = 0
        try:
            self.reader.read_clips(rows[:count], clips[:count])
        except FormatError:
            if self.max_bad_clips == 0:
                raise
            for i in range(count):
                rows[i] = self._read_or_replace(int(rows[i]), clips[i : i + 1])
        labels = self.labels[rows]
        labels[rows == PADDING_ROW] = PADDING_ROW
        batch = Batch(torch.from_numpy(clips), torch.from_numpy(labels), torch.from_numpy(rows))
        return batch if self.prepare is None else self.prepare(batch, self.epoch)

    def _read_or_replace(self, row: int, out: npt.NDArray[np.uint8]) -> int:
        """Read the clip of `row` or a replacement into `out`. Return the row that was read, or -1 for black padding."""
        for candidate in itertools.chain([row], self._replacements(row)):
            try:
                if candidate not in self.bad_clips:
                    self.reader.read_clips([candidate], out)
                    return candidate
            except FormatError as error:
                self._note_bad_clip(candidate, error)
        out[:] = 0
        return PADDING_ROW

    def _replacements(self, row: int) -> Iterator[int]:
        """Yield the rows of clips with the same label, starting after `row` in the index."""
        if self.shuffle:
            same = np.sort(self.rows[self.labels[self.rows] == self.labels[row]])
            yield from np.roll(same, -int(np.searchsorted(same, row, side="right"))).tolist()

    def _note_bad_clip(self, row: int, error: FormatError) -> None:
        self.bad_clips[row] = str(error)
        if self.max_bad_clips is None:
            return
        if len(self.bad_clips) > self.max_bad_clips:
            raise FormatError(
                f"{len(self.bad_clips)} bad clips, more than the {self.max_bad_clips} that `max_bad_clips` allows; "
                f"the last: {error}"
            ) from error
        outcome = "replaced" if self.shuffle else "left out"
        logger.warning(f"bad clip {len(self.bad_clips)} of {self.max_bad_clips} allowed, {outcome}: {error}")


class BagLoader(ClipLoader):
    """Loader of one video per batch and rank, for multiple-instance learning.

    Batches differ in size. A video of more than `max_clips` clips contributes that many: different ones in each epoch
    with `shuffle` (`epoch_plan.clips_of_bag`), evenly spaced ones otherwise; 0 sets no limit. A rank without a video
    gets one clip of padding. Other options are those of `ClipLoader`.
    """

    def __init__(self, reader: ClipSource, *, max_clips: int = 0, **options: Any) -> None:
        rows = np.asarray(options.pop("rows", None) if options.get("rows") is not None else np.arange(len(reader)))
        bags = epoch_plan.rows_by_video(rows, reader.videos)
        self.max_clips = max_clips
        self.bags = {int(bag[0]): bag for bag in bags}  # by the first clip, which represents the bag in the order
        super().__init__(reader, batch_size=1, rows=[int(bag[0]) for bag in bags], **options)
        longest = max((len(bag) for bag in bags), default=1)
        self._buffers = BufferPool(
            (min(longest, max_clips or longest), *reader.clip_shape.thwc),
            max_free=self.num_threads + 3,
            pinned=self._buffers.pinned,
        )

    def _rank_batch(self, order: Rows, step: int) -> Rows:
        first = super()._rank_batch(order, step)
        bag: Rows = self.bags.get(int(first[0]), first)
        if not 0 < self.max_clips < len(bag):
            return bag
        if not self.shuffle:
            places = epoch_plan.evenly_spaced(len(bag), self.max_clips)
        else:
            draw = {"seed": self.seed, "epoch": self.epoch, "bag": int(first[0])}
            places = epoch_plan.clips_of_bag(len(bag), max_clips=self.max_clips, **draw)
        taken: Rows = bag[places]
        return taken


class _StepsOfWorker(torch.utils.data.IterableDataset[Batch]):
    """Batches of an iteration that one of several DataLoader workers reads."""

    def __init__(self, loader: ClipLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        first, every = (worker.id, worker.num_workers) if worker else (0, 1)
        if worker:
            threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
        yield from self.loader.read_ahead(itertools.islice(self.loader.plan(), first, None, every))


def _end_with_parent() -> None:
    """End this process when its parent process has ended for any reason.

    A DataLoader worker only compares its parent's id now and then, which does not help if a fork server started it.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class BufferPool:
    """Pool of reusable batch buffers, because page faults in fresh memory cost more than reading the clips.

    A buffer is free again when its last tensor is deleted, so a caller may keep any batch as long as it likes. With
    `pinned`, batches for which pinned buffers would take more than MAX_PINNED_BYTES get buffers that are not.
    """

    def __init__(self, shape: tuple[int, ...], *, max_free: int, pinned: bool = False) -> None:
        self.shape, self.max_free, self.pinned = shape, max_free, pinned
        most = MAX_PINNED_BYTES // (max_free * math.prod(shape[1:]))
        self._pinned_clips = min(shape[0], most) if pinned else 0  # clips of a pinned buffer
        self._lock = threading.Lock()
        # (weak reference to the array that was handed out, its buffer), most recently used first.
        self._buffers: deque[tuple[weakref.ref[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]] = deque(maxlen=max_free)

    def take(self, num_clips: int) -> npt.NDArray[np.uint8]:
        """Return an array for `num_clips` clips with undefined contents."""
        with self._lock:
            for i, (handed_out, free) in enumerate(self._buffers):
                # Free, and large enough; the most recently used one is warmest in the cache.
                if handed_out() is None and len(free) >= num_clips:
                    buffer = free
                    del self._buffers[i]
                    break
            else:
                buffer = self._new_buffer(num_clips)
            taken = buffer[:num_clips]  # a new array object over the same memory, whose lifetime the pool watches
            self._buffers.appendleft((weakref.ref(taken), buffer))
        return taken

    def _new_buffer(self, num_clips: int) -> npt.NDArray[np.uint8]:
        if num_clips <= self._pinned_clips:
            return torch.empty((self._pinned_clips, *self.shape[1:]), dtype=torch.uint8, pin_memory=True).numpy()
        return np.empty(self.shape, np.uint8)  # numpy requests huge pages, torch does not

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process starts with an empty pool, without pinned memory.
        return functools.partial(BufferPool, max_free=self.max_free), (self.shape,)


def _on_cuda(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield the batches on `device`. Each is copied on a separate stream while the previous one is in use.

    A pinned buffer is held until its copy is complete, as it must not be refilled before.
    """

    def move(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(device, non_blocking=True)

    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    copying: deque[tuple[torch.cuda.Event, Batch]] = deque()
    ahead: Batch | None = None
    try:
        for host in batches:
            with torch.cuda.stream(stream):
                moved = map_tensors(move, host)
                copying.append((stream.record_event(), host))
            if ahead is not None:
                yield ahead
            while len(copying) > 1 and copying[0][0].query():  # type: ignore[no-untyped-call]
                copying.popleft()
            _use_on(torch.cuda.current_stream(device), moved, copying[-1][0])
            ahead = moved
        if ahead is not None:
            yield ahead
    finally:
        stream.synchronize()


def _use_on(stream: torch.cuda.Stream, batch: Batch, copied: torch.cuda.Event) -> None:
    """Make `stream` wait for the copy of `batch`, and keep the memory of `batch` until `stream` has used it."""

    def use(tensor: torch.Tensor) -> torch.Tensor:
        tensor.record_stream(stream)
        return tensor

    stream.wait_event(copied)
    map_tensors(use, batch)


def _row_numbers(rows: Rows, num_rows: int) -> Rows:
    """Return `rows` as int32 if possible, because the order of all clips is kept in memory.

    Raises ValueError if a row is out of range.
    """
    if len(rows) and not 0 <= rows.min() <= rows.max() < num_rows:
        raise ValueError(f"rows are {rows.min()} to {rows.max()}, expected 0 to {num_rows - 1}")
    return rows.astype(np.int32 if num_rows <= np.iinfo(np.int32).max else np.int64)
