"""Batches of clips from a shard folder: an exact plan, one copy from the page cache to the batch, no decoding.

A `ClipLoader` is a `webdataset.DataPipeline` whose first stage is ours: instead of streaming tars and shuffling what
passes by, it reads whole batches by a plan, from (seed, epoch) and the index. So every clip comes exactly once an
epoch, every rank has the same number of steps, and neither depends on how the clips lie in shards.
"""

from __future__ import annotations

import os
import threading
import weakref
import zlib
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import webdataset as wds

from vidshard import manifest, shard_format
from vidshard.errors import FormatError
from vidshard.shard_format import Clip, SampleRecord

PADDING_ROW = -1  # index and label of a clip that only fills a batch; never counted
MAX_OPEN_SHARDS = 64  # a thread; below any limit on open files
_READS_AT_OFFSET = hasattr(os, "preadv")  # Linux, macOS; elsewhere seek and readinto

Rows = npt.NDArray[np.int64]


class Batch(NamedTuple):
    """Clips that go to the device together. The tensors stay valid as long as they are held."""

    clips: torch.Tensor  # uint8 (B, T, H, W, C), RGB
    labels: torch.Tensor  # int64 (B,): 0 normal, 1 crime, -1 unknown or padding
    indices: torch.Tensor  # int64 (B,): rows of the index; -1 for padding


def epoch_order(num_clips: int, *, seed: int, epoch: int) -> Rows:
    """The order of all clips in an epoch: a permutation that depends on the arguments alone.

    >>> epoch_order(5, seed=0, epoch=1), epoch_order(5, seed=0, epoch=2)
    (array([3, 1, 4, 2, 0]), array([3, 0, 2, 4, 1]))
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch)))).permutation(num_clips)


def num_steps(num_clips: int, *, global_batch: int, drop_last: bool = False) -> int:
    """Steps of an epoch; the same on every rank.

    >>> num_steps(10, global_batch=4), num_steps(10, global_batch=4, drop_last=True)
    (3, 2)
    """
    return num_clips // global_batch if drop_last else -(-num_clips // global_batch)


def rank_batch(order: Rows, step: int, *, batch_size: int, rank: int = 0, world_size: int = 1) -> Rows:
    """The rows that `rank` reads at `step`: its part of the global batch, a slice of the order.

    The last global batch may be smaller: it is split as evenly as possible, and a rank that gets nothing reads one
    clip of padding (row -1), so that all ranks take the same number of steps.

    >>> order = np.arange(9)
    >>> [rank_batch(order, step, batch_size=2, rank=0, world_size=2).tolist() for step in range(3)]
    [[0, 1], [4, 5], [-1]]
    >>> [rank_batch(order, step, batch_size=2, rank=1, world_size=2).tolist() for step in range(3)]
    [[2, 3], [6, 7], [8]]
    """
    global_batch = batch_size * world_size
    rows = order[step * global_batch : (step + 1) * global_batch]
    part = rows[len(rows) * rank // world_size : len(rows) * (rank + 1) // world_size]
    return part if len(part) else np.array([PADDING_ROW])


class ClipReader:
    """Random access to the clips of a shard folder; opens only the shards that its manifest names.

    Usable from several threads at once. Raises UserError or FormatError when the folder is no sound shard set.
    """

    def __init__(self, folder: Path) -> None:
        self.shard_set = manifest.open_shards(folder)
        self.manifest, self.index = self.shard_set.manifest, self.shard_set.index
        self.clip_shape = self.manifest.clip_shape
        self._header = shard_format.npy_header(self.clip_shape)
        self._header_crc32 = zlib.crc32(self._header)
        clips = self.index.clips
        self._check_index()
        # Columns of their own: reading a field of one row of a structured array is slow.
        self._shards, self._offsets = clips["shard"].astype(np.int64), clips["offset"].astype(np.int64)
        self.labels = clips["label"].astype(np.int64)  # [N]
        self._verified = np.zeros(len(clips), np.bool_)
        self._thread = threading.local()

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, row: int) -> Clip:
        """The clip of index row `row` (negative counts from the end): uint8 (T, H, W, 3)."""
        clip: Clip = np.empty(self.clip_shape.thwc, np.uint8)
        self.read_clips([range(len(self))[row]], clip[None])
        return clip

    def read_clips(self, rows: Sequence[int], out: npt.NDArray[np.uint8]) -> None:
        """Read the clips of index rows `rows` into `out`, uint8 (len(rows), T, H, W, 3), contiguous.

        One copy, from the page cache to `out`. Checksums are verified the first time a clip is read. Raises
        FormatError, naming shard, key and offset, when a clip is damaged.
        """
        if out.shape != (len(rows), *self.clip_shape.thwc) or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise ValueError(f"buffer is {out.dtype} {out.shape}, expected uint8 {(len(rows), *self.clip_shape.thwc)}")
        picked = np.asarray(rows, np.int64)
        places = zip(
            picked.tolist(),
            self._shards[picked].tolist(),
            self._offsets[picked].tolist(),
            self._verified[picked].tolist(),
            strict=True,
        )
        for clip, (row, shard, offset, verified) in zip(out, places, strict=True):
            complete = _read_at(self._open(shard), offset + len(self._header), clip.data)
            if not complete or not (verified or self._is_sound(row, clip)):
                raise FormatError(
                    f"{self._where(row)} does not match its checksum: the shard was changed or damaged after it was "
                    "written; restore it, or build again"
                )

    def read_record(self, row: int) -> SampleRecord:
        """All that the shard says about the clip of index row `row`. Raises FormatError."""
        clip = self.index.clips[row]
        with open(self.shard_set.shard_path(int(clip["shard"])), "rb") as file:
            record = shard_format.read_record(file, int(clip["offset"]), int(clip["size"]))
        if record.key != self.index.key(row):
            raise FormatError(f"{self._where(row)} is followed by the record of {record.key!r}; build again")
        return record

    def frame_gap_seconds(self) -> float:
        """Median time between neighbouring frames of the clips, in seconds; 0.0 without clips."""
        return float(np.median(self.index.clips["frame_gap_seconds"])) if len(self) else 0.0

    def _check_index(self) -> None:
        clips, shards = self.index.clips, self.manifest.shards
        size = len(self._header) + self.clip_shape.num_bytes
        shard_bytes = np.array([shard.bytes for shard in shards], np.uint64)
        sound = (
            (clips["size"] == size)
            & (clips["shard"] < len(shards))
            & (clips["video"] < len(self.index.videos))
            & (clips["label"] >= shard_format.UNKNOWN_LABEL)
            & (clips["label"] <= shard_format.CRIME_LABEL)
            & (clips["flags"] < 1 << len(shard_format.FLAGS))
        )
        if sound.all():
            sound = clips["offset"] + size <= shard_bytes[clips["shard"]] if len(clips) else sound
        if not sound.all():
            row = int(np.flatnonzero(~sound)[0])
            raise FormatError(
                f"row {row} of {self.shard_set.folder / shard_format.INDEX_NAME} is no clip of {self.clip_shape} in a "
                f"shard of the manifest, or has a label or flag this version does not know: {clips[row]}"
            )

    def _is_sound(self, row: int, clip: npt.NDArray[np.uint8]) -> bool:
        """Whether the pixels just read, with the header before them, have the checksum of the index."""
        header = bytearray(len(self._header))
        complete = _read_at(self._open(int(self._shards[row])), int(self._offsets[row]), memoryview(header))
        crc32 = zlib.crc32(clip.data, self._header_crc32)
        sound = complete and header == self._header and crc32 == int(self.index.clips["crc32"][row])
        self._verified[row] = sound
        return sound

    def _open(self, shard: int) -> IO[bytes]:
        """The open file of a shard: one a thread, as the fallback moves the file's position."""
        files: OrderedDict[int, IO[bytes]] | None = getattr(self._thread, "files", None)
        if files is None:
            files = self._thread.files = OrderedDict()
        if shard in files:
            files.move_to_end(shard)
        else:
            files[shard] = open(self.shard_set.shard_path(shard), "rb", buffering=0)  # noqa: SIM115
            if len(files) > MAX_OPEN_SHARDS:
                files.popitem(last=False)[1].close()
        return files[shard]

    def _where(self, row: int) -> str:
        clip = self.index.clips[row]
        return f"clip {self.index.key(row)!r} at byte {clip['offset']} of {self.shard_set.shard_path(clip['shard'])}"


class ClipLoader(wds.DataPipeline):  # type: ignore[misc]  # webdataset has no types
    """Iterates over the batches of an epoch: a WebDataset pipeline whose source reads by a plan.

    Every clip (of `rows`, when given) comes exactly once an epoch; `len(loader)` steps, the same on every rank; a new
    order each epoch when `shuffle` is on (call `set_epoch`). Batches are read ahead by `num_threads` threads; what
    goes wrong there is raised here. More stages: ``loader.compose(wds.map(…))``.
    """

    def __init__(
        self,
        reader: ClipReader,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        rows: npt.ArrayLike | None = None,
        num_threads: int = 1,
    ) -> None:
        if batch_size < 1 or num_threads < 1 or not 0 <= rank < world_size:
            raise ValueError(f"{batch_size=}, {num_threads=} must be positive and 0 <= {rank=} < {world_size=}")
        self.reader = reader
        self.rows: Rows = np.arange(len(reader)) if rows is None else np.asarray(rows, np.int64)
        self.batch_size, self.shuffle, self.seed, self.drop_last = batch_size, shuffle, seed, drop_last
        self.rank, self.world_size, self.num_threads = rank, world_size, num_threads
        self.epoch = 0
        self._buffers = _BufferPool((batch_size, *reader.clip_shape.thwc), max_free=num_threads + 3)
        super().__init__(self._read_batches)

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose order the next iteration takes."""
        self.epoch = epoch

    def __len__(self) -> int:
        return num_steps(len(self.rows), global_batch=self.batch_size * self.world_size, drop_last=self.drop_last)

    def plan(self) -> Iterator[Rows]:
        """The index rows of each batch of this rank, in order; -1 is padding."""
        order = self.rows
        if self.shuffle:
            order = order[epoch_order(len(order), seed=self.seed, epoch=self.epoch)]
        for step in range(len(self)):
            yield rank_batch(order, step, batch_size=self.batch_size, rank=self.rank, world_size=self.world_size)

    def _read_batches(self) -> Iterator[Batch]:
        """The first stage of the pipeline: the batches of the plan, a few of them read ahead."""
        pending: deque[Future[Batch]] = deque()
        threads = ThreadPoolExecutor(self.num_threads, thread_name_prefix="clip-reader")
        try:
            for rows in self.plan():
                pending.append(threads.submit(self._read_batch, rows))
                if len(pending) > self.num_threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            threads.shutdown(cancel_futures=True)

    def _read_batch(self, rows: Rows) -> Batch:
        clips = self._buffers.take(len(rows))
        if rows[0] == PADDING_ROW:
            clips[:] = 0
            labels = torch.from_numpy(rows.copy())
        else:
            self.reader.read_clips(rows, clips)  # type: ignore[arg-type]  # an array is a sequence of rows
            labels = torch.from_numpy(self.reader.labels[rows])
        return Batch(torch.from_numpy(clips), labels, torch.from_numpy(rows.copy()))


class _BufferPool:
    """Batch buffers used again once nobody holds them: filling fresh memory costs more than the reading itself.

    A buffer comes back when the last tensor over it is gone, so a caller may keep any batch for as long as it likes.
    """

    def __init__(self, shape: tuple[int, ...], *, max_free: int) -> None:
        self.shape, self.max_free = shape, max_free
        self._free: deque[npt.NDArray[np.uint8]] = deque(maxlen=max_free)

    def take(self, num_clips: int) -> npt.NDArray[np.uint8]:
        """An array of `num_clips` clips, its contents undefined."""
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = np.empty(self.shape, np.uint8)
        handed_out = buffer[:num_clips]  # a new array object over the same memory: its life is what we watch
        weakref.finalize(handed_out, self._free.append, buffer).atexit = False
        return handed_out


def _read_at(file: IO[bytes], offset: int, buffer: memoryview) -> bool:
    """Fill `buffer` from `offset` of an unbuffered file; False when the file ends before."""
    view = buffer.cast("B")
    done = 0
    while done < len(view):
        if _READS_AT_OFFSET:
            count = os.preadv(file.fileno(), [view[done:]], offset + done)
        else:
            file.seek(offset + done)
            count = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            return False
        done += count
    return True
