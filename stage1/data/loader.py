"""Batches of clips from shard folders: an exact plan, one copy from the page cache to the batch, no decoding.

A `ClipLoader` is a `webdataset.DataPipeline` whose first stage is ours: instead of streaming tars and shuffling what
passes by, it reads whole batches by a plan, from (seed, epoch) and the index. So every clip comes exactly once an
epoch, every rank has the same number of steps, and neither depends on how the clips lie in shards.
"""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import webdataset as wds

from stage1.data import epoch_plan
from stage1.data.epoch_plan import PADDING_ROW, Rows
from stage1.data.reader import ClipReader, ClipSource, JoinedReader
from stage1.data.selection import Balance
from vidshard.util.errors import FormatError, UserError

__all__ = ["BagLoader", "Batch", "ClipLoader", "ClipReader", "JoinedReader"]

STATE_VERSION = 1


class Batch(NamedTuple):
    """Clips that go to the device together. The tensors stay valid as long as they are held."""

    clips: torch.Tensor  # uint8 (B, T, H, W, C), RGB
    labels: torch.Tensor  # int64 (B,): 0 normal, 1 crime, -1 unknown or padding
    indices: torch.Tensor  # int64 (B,): rows of the index; -1 for padding


class ClipLoader(wds.DataPipeline):  # type: ignore[misc]  # webdataset has no types
    """Iterates over the batches of an epoch: a WebDataset pipeline whose source reads by a plan.

    Every clip comes exactly once an epoch, in `len(loader)` steps, the same on every rank. Each iteration is the next
    epoch; `set_epoch` names another. What goes wrong while reading ahead is raised here. More stages:
    ``loader.compose(wds.map(…))``. A batch that was let go (``del batch``) before the next is asked for lends it its
    buffer, which then still is in the cache of the processor.

    For evaluation and inference, on any number of ranks: ``ClipLoader(reader, batch_size=8, shuffle=False, pad=True,
    rank=distributed.rank(), world_size=distributed.world_size(), max_bad_clips=None)``. Clips come in the order of the
    index; all batches have one shape, so that on the CPU, with a fixed number of threads, a clip gets the same result
    on any rank, byte for byte; `indices` say whose it is, -1 (padding, a damaged clip) that it is nobody's.
    `distributed.merge_rows` makes one table of what all ranks got; `bad_clips` names what this rank could not read.

    shuffle: a new order each epoch; without it, that of `rows`.
    block_shards: shuffle within windows of so many shards and read these in sequence (network disks, data larger than
        memory); 0 shuffles all clips.
    rows: the index rows to load; by default all. See `stage1.data.selection`.
    labels: one for each row of the index, in place of those of the shards.
    clips_per_video: how many clips of each video an epoch takes, others each epoch; 0: all.
    balance: shares of an epoch by group; clips then come as often as that takes.
    drop_last, pad: leave out the last, smaller batch, or fill it with padding (row and label -1, black).
    max_bad_clips: so many damaged clips are reported on standard error and replaced by another clip of the same label;
        without `shuffle` they become padding, never another clip. One more is an error; None: there may be any number,
        and it is left to the caller to report `bad_clips`. Each rank counts its own.
    num_threads: threads that read ahead; 0 reads when asked, which is faster where there is no core to spare.
    num_processes: DataLoader processes in their place; slower, as nothing is
        decoded, unless further stages cost much.
    device: batches come on this device; for CUDA through pinned buffers, copied while the step before computes.
    """

    def __init__(
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
        balance: Balance | None = None,
        max_bad_clips: int | None = 0,
        num_threads: int = 1,
        num_processes: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"{batch_size=} must be positive and 0 <= {rank=} < {world_size=}")
        if min(block_shards, clips_per_video, max_bad_clips or 0, num_threads, num_processes) < 0:
            raise ValueError(
                f"{block_shards=}, {clips_per_video=}, {max_bad_clips=}, {num_threads=}, {num_processes=}: none may be "
                "below 0"
            )
        self.reader = reader
        self.rows = _row_numbers(np.arange(len(reader)) if rows is None else np.asarray(rows), len(reader))
        self.labels = reader.labels if labels is None else np.asarray(labels, np.int64)
        if len(self.labels) != len(reader) or (balance is not None and len(balance.groups) != len(reader)):
            raise ValueError(f"labels and balance must have one entry for each of the {len(reader)} rows of the index")
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.drop_last, self.pad, self.block_shards = drop_last, pad, block_shards
        self.clips_per_video, self.balance = clips_per_video, balance
        self.rank, self.world_size = rank, world_size
        self.max_bad_clips, self.num_threads, self.num_processes = max_bad_clips, num_threads, num_processes
        self.device = torch.device(device)
        self.epoch = 0
        self.bad_clips: dict[int, str] = {}  # index row → what is wrong with it
        self._start = self._position = 0  # where the next iteration starts, where this one is; clips of the order
        self._order: tuple[int, Rows, Rows] | None = None
        self._buffers = _BufferPool(
            (batch_size, *reader.clip_shape.thwc),
            max_free=num_threads + 3,
            pinned=self.device.type == "cuda" and not num_processes,
        )
        super().__init__(self._iterate)

    def __iter__(self) -> Iterator[Batch]:
        # webdataset's own would hold each batch, and so its buffer, until the next one is there.
        return self.iterator1() if self.repetitions == 1 else super().__iter__()  # type: ignore[no-any-return]

    def compose(self, *stages: Any) -> ClipLoader:
        """A loader of the same clips with more stages behind; it counts its epochs and steps by itself."""
        composed: ClipLoader = super().compose(*stages)
        composed.pipeline[0] = composed._iterate  # not that of this loader
        return composed

    # --- where it stands

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration takes, from its first batch unless a state of that epoch was loaded."""
        if epoch != self.epoch:
            self.epoch, self._start, self._position = epoch, 0, 0

    def __len__(self) -> int:
        """Steps of the next iteration: those of an epoch, or what is left of it after `load_state_dict`."""
        return self._num_steps(self._start)

    def state_dict(self) -> dict[str, Any]:
        """Where the run stands, after the batch that came last; batches read ahead do not count. The same on each rank.

        For JSON. Valid for another number of ranks, threads, processes and batch per rank.
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
        """Go on where `state` was taken. Raises UserError when it is of other data, another selection or seed."""
        expected = {**self.state_dict(), "epoch": state.get("epoch"), "position": state.get("position")}
        for name, what in (
            ("version", "another version of this loader"),
            ("digest", "other shards"),
            ("plan", "another selection of clips (rows, labels, clips per video, balance, shuffling)"),
            ("seed", "another seed"),
        ):
            if state.get(name) != expected[name]:
                raise UserError(
                    f"the loader's state is of {what}: {name} is {state.get(name)!r}, expected {expected[name]!r}; "
                    "load it into a loader of the same data and options, or start the epoch anew"
                )
        self.epoch = int(state["epoch"])
        self._start = self._position = int(state["position"])

    @property
    def plan_digest(self) -> str:
        """Names all that decides the order but data set, seed and epoch."""
        digest = hashlib.sha256(repr((self.shuffle, self.block_shards, self.clips_per_video)).encode())
        for column in (self.rows, self.labels, *((self.balance.groups,) if self.balance else ())):
            digest.update(np.ascontiguousarray(column, "<i8").tobytes())
        digest.update(repr(self.balance.weights if self.balance else None).encode())
        return digest.hexdigest()[:16]

    def agreement(self) -> dict[str, Any]:
        """What must be the same on every rank: for `distributed.check_agreement`."""
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
        """The index rows of this epoch, of all ranks, in order."""
        return self._epoch_order()[0]

    def plan(self) -> Iterator[Rows]:
        """The index rows of each batch of this rank that the next iteration gives, in order; -1 is padding."""
        order = self.order()[self._start :]
        for step in range(len(self)):
            yield self._rank_batch(order, step)

    def _epoch_order(self) -> tuple[Rows, Rows]:
        """The order of the epoch, and where windows of shards begin in it (none unless block_shards)."""
        if self._order is None or self._order[0] != self.epoch:
            self._order = (self.epoch, *self._make_order())
        return self._order[1:]

    def _make_order(self) -> tuple[Rows, Rows]:
        draw = {"seed": self.seed, "epoch": self.epoch}
        rows: Rows = self.rows
        starts: Rows = np.zeros(0, np.int64)
        if self.clips_per_video:
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

    def _num_steps(self, start: int) -> int:
        num_clips = max(0, len(self.order()) - start)
        return epoch_plan.num_steps(num_clips, global_batch=self._global_batch, drop_last=self.drop_last)

    @property
    def _global_batch(self) -> int:
        return self.batch_size * self.world_size

    def _rank_batch(self, order: Rows, step: int) -> Rows:
        return epoch_plan.rank_batch(
            order, step, batch_size=self.batch_size, rank=self.rank, world_size=self.world_size, pad=self.pad
        )

    # --- reading

    def _iterate(self) -> Iterator[Batch]:
        """The first stage of the pipeline: the batches of the plan."""
        plan = list(self.plan()) if self.num_processes else self.plan()
        self.reader.fetch_ahead(self.order()[self._start :])
        batches = self._from_processes() if self.num_processes else self._read_ahead(plan)
        if self.device.type == "cuda":
            batches = _on_cuda(batches, self.device)
        yield from map(self._count_step, batches, itertools.count(self._start + self._global_batch, self._global_batch))
        self.epoch, self._start, self._position = self.epoch + 1, 0, 0

    def _count_step(self, batch: Batch, end: int) -> Batch:
        """Note that the batch that ends at position `end` of the order is handed out."""
        self._start = 0  # another iteration, after this one was left, begins the epoch anew
        self._position = min(end, len(self.order()))
        return batch

    def _read_ahead(self, plan: Iterable[Rows]) -> Iterator[Batch]:
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
        """For each window of shards from the start on: the position one window before its own, and its rows."""
        order, starts = self._epoch_order()
        ends = [*starts[1:].tolist(), len(order)]
        before = 0
        for begins, end in zip(starts.tolist(), ends, strict=False):
            if end > self._start:
                yield before, order[begins:end]
            before = begins

    def _from_processes(self) -> Iterator[Batch]:
        # In turns, as a DataLoader asks its workers: so the order is that of the plan.
        yield from wds.WebLoader(_StepsOfWorker(self), batch_size=None, num_workers=self.num_processes)

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
        return Batch(torch.from_numpy(clips), torch.from_numpy(labels), torch.from_numpy(rows))

    def _read_or_replace(self, row: int, out: npt.NDArray[np.uint8]) -> int:
        """Read the clip of `row`, or of another one in its place. Returns which; -1 for black padding."""
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
        """Clips of the same label, those behind `row` in the index first."""
        if self.shuffle:
            same = np.sort(self.rows[self.labels[self.rows] == self.labels[row]])
            yield from np.roll(same, -int(np.searchsorted(same, row, side="right"))).tolist()

    def _note_bad_clip(self, row: int, error: FormatError) -> None:
        self.bad_clips[row] = str(error)
        if self.max_bad_clips is None:
            return
        if len(self.bad_clips) > self.max_bad_clips:
            raise FormatError(f"{len(self.bad_clips)} bad clips, allowed are {self.max_bad_clips}: {error}") from error
        fate = "replaced" if self.shuffle else "left out"
        print(
            f"WARNING: bad clip {len(self.bad_clips)} of {self.max_bad_clips} allowed, {fate}: {error}", file=sys.stderr
        )


class BagLoader(ClipLoader):
    """All clips of a video as one batch: for learning from bags of instances.

    A step is `batch_size` = 1 video a rank; batches differ in size. `max_clips`: of longer videos as many, others each
    epoch when shuffled (`sample_plan.clips_of_bag`), else spread evenly; 0: no limit. A rank without a video gets one
    clip of padding.
    """

    def __init__(self, reader: ClipSource, *, max_clips: int = 0, **options: Any) -> None:
        rows = np.asarray(options.pop("rows", None) if options.get("rows") is not None else np.arange(len(reader)))
        by_video = rows[np.argsort(reader.videos[rows], kind="stable")]
        bags = np.split(by_video, np.flatnonzero(np.diff(reader.videos[by_video])) + 1) if len(rows) else []
        self.max_clips = max_clips
        self.bags = {int(bag[0]): bag for bag in bags}  # by its first clip, which stands for it in the order
        super().__init__(reader, batch_size=1, rows=[int(bag[0]) for bag in bags], **options)
        longest = max((len(bag) for bag in bags), default=1)
        self._buffers = _BufferPool(
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
            places: Rows = np.unique(np.linspace(0, len(bag) - 1, self.max_clips).round().astype(int))
        else:
            draw = {"seed": self.seed, "epoch": self.epoch, "bag": int(first[0])}
            places = epoch_plan.clips_of_bag(len(bag), max_clips=self.max_clips, **draw)
        taken: Rows = bag[places]
        return taken


class _StepsOfWorker(torch.utils.data.IterableDataset[Batch]):
    """The batches of an iteration that one of several DataLoader workers reads."""

    def __init__(self, loader: ClipLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        first, every = (worker.id, worker.num_workers) if worker else (0, 1)
        if worker:
            threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
        yield from self.loader._read_ahead(itertools.islice(self.loader.plan(), first, None, every))


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, however that ended.

    A DataLoader worker asks for its parent's number now and then, which tells nothing when a fork server started it.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _BufferPool:
    """Batch buffers used again once nobody holds them: filling fresh memory costs more than the reading itself.

    A buffer comes back when the last tensor over it is gone, so a caller may keep any batch for as long as it likes.
    """

    def __init__(self, shape: tuple[int, ...], *, max_free: int, pinned: bool = False) -> None:
        self.shape, self.max_free, self.pinned = shape, max_free, pinned
        self._lock = threading.Lock()
        # Each with a weak reference to the array that was handed out over it; the one used last comes first.
        self._buffers: deque[tuple[weakref.ref[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]] = deque(maxlen=max_free)

    def take(self, num_clips: int) -> npt.NDArray[np.uint8]:
        """An array of `num_clips` clips, its contents undefined."""
        with self._lock:
            for i, (handed_out, free) in enumerate(self._buffers):
                if handed_out() is None:  # nobody holds it; the one used last is warmest
                    buffer = free
                    del self._buffers[i]
                    break
            else:
                buffer = self._new_buffer()
            taken = buffer[:num_clips]  # a new array object over the same memory: its life is what we watch
            self._buffers.appendleft((weakref.ref(taken), buffer))
        return taken

    def _new_buffer(self) -> npt.NDArray[np.uint8]:
        if self.pinned:
            return torch.empty(self.shape, dtype=torch.uint8, pin_memory=True).numpy()
        return np.empty(self.shape, np.uint8)  # numpy asks for huge pages, torch does not

    def __reduce__(self) -> tuple[Any, ...]:
        return _make_pool, (self.shape, self.max_free)  # in another process: empty


def _make_pool(shape: tuple[int, ...], max_free: int) -> _BufferPool:
    return _BufferPool(shape, max_free=max_free)


def _on_cuda(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on `device`, each copied on a stream of its own while the one before is computed on.

    A pinned buffer is held until its copy is done: only then may it be filled again.
    """
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    copying: deque[tuple[torch.cuda.Event, Batch]] = deque()
    ahead: Batch | None = None
    try:
        for host in batches:
            with torch.cuda.stream(stream):
                moved = Batch(*(tensor.to(device, non_blocking=True) for tensor in host))
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
    """Make `stream` wait for the copy of `batch`, and keep its memory until `stream` is done with it."""
    stream.wait_event(copied)
    for tensor in batch:
        tensor.record_stream(stream)


def _row_numbers(rows: Rows, num_rows: int) -> Rows:
    """Rows in as few bytes as they need: an order is kept in memory for all clips."""
    if len(rows) and not 0 <= rows.min() <= rows.max() < num_rows:
        raise ValueError(f"rows lie between {rows.min()} and {rows.max()}, expected 0 to {num_rows - 1}")
    return rows.astype(np.int32 if num_rows <= np.iinfo(np.int32).max else np.int64)
