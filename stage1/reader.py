"""Random access to the clips of a shard folder: one copy from the page cache into a buffer of the caller."""

from __future__ import annotations

import contextlib
import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from stage1.sample_plan import Rows
from vidshard import shard_format
from vidshard.errors import FormatError, UserError
from vidshard.remote_set import Prefetch, RemoteSet, open_location
from vidshard.shard_cache import CacheConfig
from vidshard.shard_format import Clip, ClipShape, SampleRecord
from vidshard.storage import Location, location

CHECKSUMS = ("first", "always", "never")
MAX_OPEN_SHARDS = 64  # a thread; below any limit on open files
_NOTHING = contextlib.nullcontext()
_READS_AT_OFFSET = hasattr(os, "preadv")  # Linux, macOS; elsewhere seek and readinto
_ADVISES = hasattr(os, "posix_fadvise")  # Linux


class ClipSource(Protocol):
    """What a loader needs of a reader: columns of the index, and clips by their row."""

    clip_shape: ClipShape
    labels: npt.NDArray[np.int64]
    videos: Rows  # of each row; numbers that tell videos apart
    shards: Rows  # of each row; numbers that tell shards apart

    @property
    def digest(self) -> str: ...
    def __len__(self) -> int: ...
    def read_clips(self, rows: Sequence[int] | Rows, out: npt.NDArray[np.uint8]) -> None: ...
    def will_read(self, rows: Rows) -> None: ...
    def fetch_ahead(self, rows: Rows) -> None: ...


class ClipReader:
    """Random access to the clips of a shard folder; opens only the shards that its manifest names.

    `checksums`: verify those of pixels the ``first`` time a clip is read, ``always``, or ``never``. Usable from several
    threads at once. Raises UserError or FormatError when the folder is no sound shard set.
    """

    def __init__(self, folder: Location, *, checksums: str = "first", cache: CacheConfig | None = None) -> None:
        if checksums not in CHECKSUMS:
            raise UserError(f"checksums is {checksums!r}, expected one of {', '.join(CHECKSUMS)}")
        self.shard_set = open_location(location(folder), cache=cache)
        self.manifest, self.index = self.shard_set.manifest, self.shard_set.index
        self._may_vanish = self.shard_set.may_vanish
        self.clip_shape = self.manifest.clip_shape
        self._header = shard_format.npy_header(self.clip_shape)
        self._header_crc32 = zlib.crc32(self._header)
        self._is_raw = self.manifest.codec == "raw"
        clips = self.index.clips
        self._check_index()
        # Columns of their own: reading a field of one row of a structured array is slow.
        self.shards: Rows = clips["shard"].astype(np.int64)  # [N]
        self._offsets, self._sizes = clips["offset"].astype(np.int64), clips["size"].astype(np.int64)
        self.labels = clips["label"].astype(np.int64)  # [N]
        self.videos: Rows = clips["video"].astype(np.int64)  # [N], rows of index.videos
        self._checks_again = checksums == "always"
        self._trusted = np.full(len(clips), checksums == "never")
        self._thread = threading.local()
        self._ahead: Prefetch | None = None

    @property
    def digest(self) -> str:
        """SHA-256 that names the data set: every shard and the index."""
        return self.manifest.digest

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, row: int) -> Clip:
        """The clip of index row `row` (negative counts from the end): uint8 (T, H, W, 3)."""
        clip: Clip = np.empty(self.clip_shape.thwc, np.uint8)
        self.read_clips([range(len(self))[row]], clip[None])
        return clip

    def read_clips(self, rows: Sequence[int] | Rows, out: npt.NDArray[np.uint8]) -> None:
        """Read the clips of index rows `rows` into `out`, uint8 (len(rows), T, H, W, 3), contiguous.

        Raw clips take one copy, from the page cache to `out`; others are decoded. Raises FormatError, naming shard, key
        and offset, on a damaged clip.
        """
        if out.shape != (len(rows), *self.clip_shape.thwc) or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise ValueError(f"buffer is {out.dtype} {out.shape}, expected uint8 {(len(rows), *self.clip_shape.thwc)}")
        picked = np.asarray(rows, np.int64)
        places = zip(
            picked.tolist(),
            self.shards[picked].tolist(),
            self._offsets[picked].tolist(),
            self._trusted[picked].tolist(),
            strict=True,
        )
        for clip, (row, shard, offset, trusted) in zip(out, places, strict=True):
            try:
                with self._in_use(shard) if self._may_vanish else _NOTHING:
                    sound = self._read_clip(row, shard, offset, clip, trusted=trusted)
            except OSError as error:
                raise FormatError(f"{self._where(row)} cannot be read: {error.strerror}") from error
            if not sound:
                raise FormatError(
                    f"{self._where(row)} does not match its checksum: the shard was changed or damaged after it was "
                    "written; restore it, or build again"
                )

    def _read_clip(self, row: int, shard: int, offset: int, clip: npt.NDArray[np.uint8], *, trusted: bool) -> bool:
        """Read one clip into `clip`; False when it is not what was written."""
        if self._is_raw:
            complete = _read_at(self._open(shard), offset + len(self._header), clip.data)
            return complete and (trusted or self._is_sound(row, clip))
        payload = bytearray(int(self._sizes[row]))
        if not _read_at(self._open(shard), offset, memoryview(payload)):
            return False
        if not trusted and not self._note(row, zlib.crc32(payload)):
            return False
        clip[:] = shard_format.decode_clip(
            memoryview(payload), self.clip_shape, codec=self.manifest.codec, where=self._where(row)
        )
        return True

    def will_read(self, rows: Rows) -> None:
        """Tell the system which clips come next, so that it reads them from the disk in sequence; a hint, no more."""
        if not _ADVISES or self._may_vanish:  # of a URL whole shards are fetched
            return
        for shard in np.unique(self.shards[rows]).tolist():
            here = np.unique(rows[self.shards[rows] == shard])  # rows lie in the shard in their order
            begins, ends = self._offsets[here], self._offsets[here] + self._sizes[here]
            gaps = np.flatnonzero(begins[1:] - ends[:-1] > self.clip_shape.num_bytes) + 1  # small ones are read faster
            file = self._open(shard)
            for run in np.split(np.arange(len(here)), gaps):
                first, end = int(begins[run[0]]), int(ends[run[-1]])
                os.posix_fadvise(file.fileno(), first, end - first, os.POSIX_FADV_WILLNEED)

    def fetch_ahead(self, rows: Rows) -> None:
        """Begin to download the shards of these clips, in this order, where they are not on a disk of this machine."""
        if isinstance(self.shard_set, RemoteSet):
            shards, first = np.unique(self.shards[rows], return_index=True)
            self.close_ahead()
            self._ahead = self.shard_set.prefetch(shards[np.argsort(first)].tolist())

    def close_ahead(self) -> None:
        """Begin no more downloads ahead."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def read_record(self, row: int) -> SampleRecord:
        """All that the shard says about the clip of index row `row`. Raises FormatError."""
        clip = self.index.clips[row]
        shard = int(clip["shard"])
        with self._in_use(shard):
            record = shard_format.read_record(self._open(shard), int(clip["offset"]), int(clip["size"]))
        if record.key != self.index.key(row):
            raise FormatError(f"{self._where(row)} is followed by the record of {record.key!r}; build again")
        return record

    def video_id(self, video: int) -> str:
        """A name of row `video` of the video table that holds beyond this set: its split and its path below SOURCE."""
        return f"{self.index.split(video) or self.manifest.split or ''}/{self.index.paths[video]}"

    def frame_gap_seconds(self) -> float:
        """Median time between neighbouring frames of the clips, in seconds; 0.0 without clips."""
        return float(np.median(self.index.clips["frame_gap_seconds"])) if len(self) else 0.0

    def _check_index(self) -> None:
        clips, shards = self.index.clips, self.manifest.shards
        size = len(self._header) + self.clip_shape.num_bytes
        shard_bytes = np.array([shard.bytes for shard in shards], np.uint64)
        sound = (
            ((clips["size"] == size) if self._is_raw else (clips["size"] > 0))
            & (clips["shard"] < len(shards))
            & (clips["video"] < len(self.index.videos))
            & (clips["label"] >= shard_format.UNKNOWN_LABEL)
            & (clips["label"] <= shard_format.CRIME_LABEL)
            & (clips["flags"] < 1 << len(shard_format.FLAGS))
        )
        if sound.all():
            sound = clips["offset"] + clips["size"] <= shard_bytes[clips["shard"]] if len(clips) else sound
        if not sound.all():
            row = int(np.flatnonzero(~sound)[0])
            raise FormatError(
                f"row {row} of {self.shard_set.folder / self.manifest.index_name} is no clip of {self.clip_shape} in a "
                f"shard of the manifest, or has a label or flag this version does not know: {clips[row]}"
            )

    def _is_sound(self, row: int, clip: npt.NDArray[np.uint8]) -> bool:
        """Whether the pixels just read, with the header before them, have the checksum of the index."""
        header = bytearray(len(self._header))
        complete = _read_at(self._open(int(self.shards[row])), int(self._offsets[row]), memoryview(header))
        crc32 = zlib.crc32(clip.data, self._header_crc32)
        return complete and header == self._header and self._note(row, crc32)

    def _note(self, row: int, crc32: int) -> bool:
        """Whether `crc32` is the one of the index; the next time it is taken on trust."""
        sound = crc32 == int(self.index.clips["crc32"][row])
        self._trusted[row] = sound and not self._checks_again
        return sound

    def _open(self, shard: int) -> IO[bytes]:
        """The open file of a shard: one a thread, as the fallback moves the file's position."""
        files: OrderedDict[int, IO[bytes]] | None = getattr(self._thread, "files", None)
        if files is None:
            files = self._thread.files = OrderedDict()
        if shard in files:
            files.move_to_end(shard)
        else:
            files[shard] = self.shard_set.open_shard(shard)
            if len(files) > MAX_OPEN_SHARDS:
                files.popitem(last=False)[1].close()
        return files[shard]

    @contextlib.contextmanager
    def _in_use(self, shard: int) -> Iterator[None]:
        """Keep the file of a shard while the block runs."""
        while self._may_vanish:
            if self._ahead is not None:
                self._ahead.opened(shard)
            with self.shard_set.in_use(self._open(shard)) as is_there:
                if is_there:
                    yield
                    return
            self._thread.files.pop(shard).close()  # the cache dropped it: open it again
        yield

    def _where(self, row: int) -> str:
        clip = self.index.clips[row]
        return f"clip {self.index.key(row)!r} at byte {clip['offset']} of {self.shard_set.shard_where(clip['shard'])}"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_thread", "_ahead")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _ahead=None)
        self._thread = threading.local()


class JoinedReader:
    """Several shard sets as one: their rows one after another. All clips must have one shape."""

    def __init__(self, readers: Sequence[ClipReader]) -> None:
        if not readers:
            raise UserError("no shard sets to join, expected at least one")
        self.readers = tuple(readers)
        self.clip_shape = readers[0].clip_shape
        for reader in readers:
            if reader.clip_shape != self.clip_shape:
                raise UserError(
                    f"{reader.shard_set.folder} has clips of {reader.clip_shape}, expected {self.clip_shape} as in "
                    f"{readers[0].shard_set.folder}; build both with the same --clip-len and --frame-size"
                )
        sizes = [len(reader) for reader in readers]
        self.sets = np.repeat(np.arange(len(readers)), sizes)  # of each row
        self._first_rows = np.cumsum([0, *sizes[:-1]])
        self.labels = np.concatenate([reader.labels for reader in readers])
        self.videos = _stacked([reader.videos for reader in readers], [len(r.index.videos) for r in readers])
        self.shards = _stacked([reader.shards for reader in readers], [len(r.manifest.shards) for r in readers])

    @property
    def digest(self) -> str:
        """The digests of all sets, in order."""
        return "+".join(reader.digest for reader in self.readers)

    def __len__(self) -> int:
        return len(self.sets)

    def read_clips(self, rows: Sequence[int] | Rows, out: npt.NDArray[np.uint8]) -> None:
        """As `ClipReader.read_clips`."""
        if len(rows) != len(out):
            raise ValueError(f"buffer is for {len(out)} clips, expected {len(rows)}")
        for i, row in enumerate(np.asarray(rows).tolist()):
            number = int(self.sets[row])
            self.readers[number].read_clips([row - int(self._first_rows[number])], out[i : i + 1])

    def will_read(self, rows: Rows) -> None:
        """As `ClipReader.will_read`."""
        for number, reader in enumerate(self.readers):
            reader.will_read(rows[self.sets[rows] == number] - self._first_rows[number])

    def fetch_ahead(self, rows: Rows) -> None:
        """As `ClipReader.fetch_ahead`."""
        for number, reader in enumerate(self.readers):
            reader.fetch_ahead(rows[self.sets[rows] == number] - self._first_rows[number])


def _stacked(columns: Sequence[Rows], sizes: Sequence[int]) -> Rows:
    """Numbers of several sets as numbers of one: each set's begin after those of the sets before it."""
    firsts = np.cumsum([0, *sizes[:-1]]).tolist()
    return np.concatenate([column + first for column, first in zip(columns, firsts, strict=True)])


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
