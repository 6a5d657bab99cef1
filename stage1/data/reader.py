"""Random access to the clips of a shard folder, with one copy from the page cache into the caller's buffer.

A clip is read with `preadv`, which reports failing disks, and verified. Readers that reread clips keep them in memory
if the set fits, which is faster than the page cache. Memory-mapping the shards would be as fast, but
truncating a mapped shard kills the process, and overwriting it changes its clips.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import threading
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from stage1.data.epoch_plan import Rows
from vidshard.shards import layout
from vidshard.shards.layout import Clip, ClipShape, SampleRecord
from vidshard.shards.remote_set import Prefetch, RemoteSet, open_location
from vidshard.storage.cache import CacheConfig
from vidshard.storage.urls import Location, location
from vidshard.util.errors import FormatError, UserError

CHECKSUMS = ("first", "always", "never")
MAX_OPEN_SHARDS = 64  # per thread; below any limit on open files
_NOTHING = contextlib.nullcontext()
KEPT_SHARE_OF_MEMORY = 1 / 3  # limit of all clips that the processes of a machine keep in memory
_READS_AT_OFFSET = hasattr(os, "preadv")  # Linux, macOS; elsewhere seek and readinto
_ADVISES = hasattr(os, "posix_fadvise")  # Linux


Pixels = npt.NDArray[np.uint8]


class ClipSource(Protocol):
    """Interface between a loader and a reader: columns of the index, and clips by row (see `ClipReader`)."""

    clip_shape: ClipShape
    videos: Rows  # [N], a number for each video
    shards: Rows  # [N], a number for each shard

    @property
    def labels(self) -> npt.NDArray[np.int64]: ...  # [N]
    @property
    def digest(self) -> str: ...
    def __len__(self) -> int: ...
    def read_clips(self, rows: Sequence[int] | Rows, out: Pixels | Sequence[Pixels]) -> None: ...
    def will_read(self, rows: Rows) -> None: ...
    def fetch_ahead(self, rows: Rows) -> None: ...
    def keep_clips(self) -> None: ...


class ClipReader:
    """Random access to the clips of a shard folder or URL.

    ``len(reader)`` is the number of clips, and ``reader[row]`` is the clip of an index row: uint8 (T, H, W, 3), RGB.
    `labels` (0 normal, 1 crime, -1 unknown), `videos` and `shards` hold one number per row. Only shards that the
    manifest names are opened. A reader may be used from several threads at once.

    `checksums` decides when pixels are verified: the ``first`` time a clip is read, ``always``, or ``never``. `cache`
    configures the download cache of a set behind a URL. Clips of a shard that changes meanwhile are verified at each
    read, even with ``first``. Raises UserError if the folder contains no shard set, and
    FormatError if its manifest or index is damaged.
    """

    def __init__(self, folder: Location, *, checksums: str = "first", cache: CacheConfig | None = None) -> None:
        if checksums not in CHECKSUMS:
            raise UserError(f"checksums is {checksums!r}, expected one of {', '.join(CHECKSUMS)}")
        self.shard_set = open_location(location(folder), cache=cache)
        self.manifest, self.index = self.shard_set.manifest, self.shard_set.index
        self._is_cached = self.shard_set.is_cached
        self.clip_shape = self.manifest.clip_shape
        self._header = layout.npy_header(self.clip_shape)
        self._header_crc32 = zlib.crc32(self._header)
        self._is_raw = self.manifest.codec == "raw"
        clips = self.index.clips
        self._check_index()
        # Views, so that a million clips take below 50 MB, but for a column with which callers compute.
        self._offsets, self._sizes = clips["offset"], clips["size"]
        self.shards: Rows = clips["shard"]  # [N]
        self.videos: Rows = clips["video"].astype(np.int32)  # [N], rows of index.videos
        self._checksums = checksums
        self._trusted = np.full(len(clips), checksums == "never")
        self.keeps_clips = False
        self._kept = np.zeros(len(clips), bool)
        self._memory: dict[int, Pixels] = {}  # the bytes of the kept clips, at their offsets in their shards
        self._versions: dict[int, tuple[int, ...]] = {}  # of the files, when they were first opened
        self._thread = threading.local()
        self._files: set[IO[bytes]] = set()  # of all threads
        weakref.finalize(self, _close_files, self._files)
        self._ahead: Prefetch | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the shard set: it covers every shard and the index."""
        return self.manifest.digest

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, row: int) -> Clip:
        """Return the clip of index row `row` (negative rows count from the end): uint8 (T, H, W, 3)."""
        clip: Clip = np.empty(self.clip_shape.thwc, np.uint8)
        self.read_clips([range(len(self))[row]], clip[None])
        return clip

    def read_clips(self, rows: Sequence[int] | Rows, out: Pixels | Sequence[Pixels]) -> None:
        """Read the clips of index rows `rows` into `out`.

        `out` is a contiguous uint8 array (len(rows), T, H, W, 3), or a sequence with one array (T, H, W, 3) per clip.
        Raw clips are copied once, from the page cache to `out`; compressed clips are decoded. Raises FormatError, which
        names shard, key and offset, if a clip is damaged, and ValueError if `out` has a different shape or type.
        """
        picked = np.asarray(rows, np.int64)
        shards, offsets = self.shards[picked].tolist(), self._offsets[picked].tolist()
        kept = self._kept[picked].tolist() if self.keeps_clips else [False] * len(picked)
        unchanged = {shard for shard in set(itertools.compress(shards, kept)) if self._is_unchanged(shard)}
        before, length = len(self._header), self.clip_shape.num_bytes
        for row, shard, offset, is_kept, pixels in zip(
            picked.tolist(), shards, offsets, kept, self._flat(out, len(picked)), strict=True
        ):
            if is_kept and shard in unchanged:
                pixels[:] = self._memory[shard][offset + before : offset + before + length]
            else:
                self._read_clip(row, shard, offset, pixels)

    def _flat(self, out: Pixels | Sequence[Pixels], num_clips: int) -> Pixels | list[Pixels]:
        """Return `out` with the pixels of each clip as one row. Raises ValueError if it does not fit `num_clips`."""
        if isinstance(out, np.ndarray):
            if out.shape == (num_clips, *self.clip_shape.thwc) and out.dtype == np.uint8 and out.flags.c_contiguous:
                return out.reshape(num_clips, self.clip_shape.num_bytes)
            got = f"{out.dtype} {out.shape}"
        else:
            if len(out) == num_clips:
                return [self._flat(clip[None], 1)[0] for clip in out]
            got = f"{len(out)} buffers"
        raise ValueError(f"buffer is {got}, expected uint8 {(num_clips, *self.clip_shape.thwc)}, contiguous")

    def _read_clip(self, row: int, shard: int, offset: int, pixels: Pixels) -> None:
        """Read one clip into `pixels`, a row of bytes. Raises FormatError if the clip cannot be read or is damaged."""
        try:
            sound = self._read_file(row, shard, offset, pixels)
            if not sound and isinstance(self.shard_set, RemoteSet):  # its copy was damaged in the cache
                self.shard_set.discard(shard)
                sound = self._read_file(row, shard, offset, pixels)
        except OSError as error:
            raise FormatError(f"{self._where(row)} cannot be read: {error.strerror}") from error
        if not sound:
            raise FormatError(
                f"{self._where(row)} does not match its checksum: the shard was changed or damaged after it was "
                "written; restore it, or build again"
            )
        if self.keeps_clips:
            place = offset + len(self._header)
            self._memory[shard][place : place + len(pixels)] = pixels
            self._kept[row] = True

    def _read_file(self, row: int, shard: int, offset: int, pixels: Pixels) -> bool:
        """Read one clip from its shard; return False if it does not match its checksum. Raises OSError."""
        with self._in_use(shard) if self._is_cached else _NOTHING:
            if not self._is_raw:
                return self._read_encoded(row, shard, offset, pixels)
            complete = _read_at(self._open(shard), offset + len(self._header), pixels.data)
            return complete and (self._is_trusted(row, shard) or self._is_sound(row, pixels))

    def _read_encoded(self, row: int, shard: int, offset: int, pixels: Pixels) -> bool:
        payload = bytearray(int(self._sizes[row]))
        if not _read_at(self._open(shard), offset, memoryview(payload)):
            return False
        if not self._is_trusted(row, shard) and not self._note(row, zlib.crc32(payload)):
            return False
        pixels[:] = layout.decode_clip(
            memoryview(payload), self.clip_shape, codec=self.manifest.codec, where=self._where(row)
        ).reshape(-1)
        return True

    def will_read(self, rows: Rows) -> None:
        """Advise the system to read these clips from the disk, in sequence, before they are needed. Only a hint."""
        if not _ADVISES or self._is_cached:  # whole shards of a URL are downloaded
            return
        for shard in np.unique(self.shards[rows]).tolist():
            here = np.unique(rows[self.shards[rows] == shard])  # clips are stored in the order of their rows
            begins = self._offsets[here].astype(np.int64)
            ends = begins + self._sizes[here]
            # Reading across a gap smaller than a clip is faster than skipping it.
            gaps = np.flatnonzero(begins[1:] - ends[:-1] > self.clip_shape.num_bytes) + 1
            file = self._open(shard)
            for run in np.split(np.arange(len(here)), gaps):
                first, end = int(begins[run[0]]), int(ends[run[-1]])
                os.posix_fadvise(file.fileno(), first, end - first, os.POSIX_FADV_WILLNEED)

    def fetch_ahead(self, rows: Rows) -> None:
        """Start downloading the shards of these clips in this order, if the set is remote."""
        if isinstance(self.shard_set, RemoteSet):
            shards, first = np.unique(self.shards[rows], return_index=True)
            self.close_ahead()
            self._ahead = self.shard_set.prefetch(shards[np.argsort(first)].tolist())

    def keep_clips(self) -> None:
        """Keep clips in memory once they are read, if those of the whole set fit; for loaders that read them again."""
        if self.keeps_clips or not self._is_raw or self._checksums == "always":
            return
        sizes = [sum(shard.bytes for shard in reader.manifest.shards) for reader in (self, *_KEEPING)]
        if sum(sizes) * int(os.environ.get("LOCAL_WORLD_SIZE", "1")) <= KEPT_SHARE_OF_MEMORY * _memory_bytes():
            _KEEPING.add(self)
            # Untouched pages take no memory.
            self._memory = {n: np.empty(shard.bytes, np.uint8) for n, shard in enumerate(self.manifest.shards)}
            self.keeps_clips = True

    def close_ahead(self) -> None:
        """Stop downloading shards ahead of their use."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def read_record(self, row: int) -> SampleRecord:
        """Return the record that the shard stores next to the clip of index row `row`.

        Raises FormatError if the record cannot be read or contradicts the index.
        """
        shard = int(self.shards[row])
        try:
            with self._in_use(shard):
                return self.shard_set.read_record(row, self._open(shard))
        except OSError as error:
            raise FormatError(f"the record of {self._where(row)} cannot be read: {error.strerror}") from error

    @functools.cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """Label of each clip, [N]: 0 normal, 1 crime, -1 unknown. Read on first use."""
        return self.index.clips["label"].astype(np.int64)

    @property
    def settings(self) -> dict[str, Any]:
        """Options of the build."""
        return self.manifest.settings

    def video_id(self, video: int) -> str:
        """Return a name of row `video` of the video table that is the same in every set: split/path below SOURCE."""
        return f"{self.index.split(video) or self.manifest.split or ''}/{self.index.paths[video]}"

    @property
    def where(self) -> str:
        """Display name for messages."""
        return self.shard_set.where

    def class_name(self, video: int) -> str | None:
        """Return the class of row `video` of the video table."""
        return self.index.class_name(video)

    def recording_or_video(self, video: int) -> str:
        """Return a name of the recording of row `video` of the video table, or of the video alone if it is unknown."""
        group = self.index.recording(video)
        return f"video {self.index.paths[video]}" if group is None else f"group {group}"

    @property
    def recordings(self) -> set[str]:
        """Names of the known recordings."""
        groups = map(self.index.recording, range(len(self.index.videos)))
        return {group for group in groups if group is not None}

    @property
    def splits(self) -> set[str | None]:
        """Splits of the set and of its videos."""
        return {self.manifest.split, *map(self.index.split, range(len(self.index.videos)))}

    def frame_gap_seconds(self) -> float:
        """Return the median time between consecutive frames of the clips, in seconds; 0.0 without clips."""
        return float(np.median(self.index.clips["frame_gap_seconds"])) if len(self) else 0.0

    def video_seconds(self) -> npt.NDArray[np.float64]:
        """Return the length of every video in seconds, [number of videos]; infinite if its frame rate is unknown."""
        return np.where(self.index.fps > 0, self.index.seconds, np.inf)

    def _check_index(self) -> None:
        """Raise FormatError if a raw clip is not of the size of its shape."""
        clips = self.index.clips
        is_right = clips["size"] == len(self._header) + self.clip_shape.num_bytes
        if self._is_raw and not is_right.all():
            row = int(np.flatnonzero(~is_right)[0])
            raise FormatError(
                f"row {row} of {self.shard_set.folder / self.manifest.index_name} is {clips[row]}, expected a clip of "
                f"{self.clip_shape}; build the set again"
            )

    def _is_sound(self, row: int, pixels: Pixels) -> bool:
        """Return True if the pixels just read, with the header before them, match the checksum of the index."""
        header = bytearray(len(self._header))
        complete = _read_at(self._open(int(self.shards[row])), int(self._offsets[row]), memoryview(header))
        crc32 = zlib.crc32(pixels.data, self._header_crc32)
        return complete and header == self._header and self._note(row, crc32)

    def _note(self, row: int, crc32: int) -> bool:
        """Return True if `crc32` matches the index, and then skip the check at the next read (unless "always")."""
        sound = crc32 == int(self.index.clips["crc32"][row])
        self._trusted[row] = sound and self._checksums != "always"
        return sound

    def _is_trusted(self, row: int, shard: int) -> bool:
        """Return True if pixels just read need no check: they were verified before, and the file has not changed."""
        return bool(self._trusted[row]) and (self._checksums == "never" or self._is_unchanged(shard))

    def _is_unchanged(self, shard: int) -> bool:
        """Return True if the file of a shard is as it was when it was first opened. Cached files are trusted."""
        if self._is_cached:
            return True
        try:
            return _version(self._open(shard)) == self._versions[shard]
        except OSError:
            return False

    def _open(self, shard: int) -> IO[bytes]:
        """Return the open file of a shard. Each thread has its own, as seeking moves the file's position."""
        files: OrderedDict[int, IO[bytes]] | None = getattr(self._thread, "files", None)
        if files is None:
            files = self._thread.files = OrderedDict()
        if shard in files:
            files.move_to_end(shard)
        else:
            files[shard] = self.shard_set.open_shard(shard)
            self._files.add(files[shard])
            self._versions.setdefault(shard, _version(files[shard]))
            if len(files) > MAX_OPEN_SHARDS:
                self._close(files.popitem(last=False)[1])
        return files[shard]

    def _close(self, file: IO[bytes]) -> None:
        file.close()
        self._files.discard(file)

    def close(self) -> None:
        """Stop downloads and close all shards; reading opens them again."""
        self.close_ahead()
        self._thread = threading.local()
        _close_files(self._files)

    @contextlib.contextmanager
    def _in_use(self, shard: int) -> Iterator[None]:
        """Keep the file of a shard in the cache while the block runs."""
        while self._is_cached:
            if self._ahead is not None:
                self._ahead.opened(shard)
            with self.shard_set.in_use(self._open(shard)) as is_there:
                if is_there:
                    yield
                    return
            self._close(self._thread.files.pop(shard))  # the cache has deleted the file: open it again
        yield

    def _where(self, row: int) -> str:
        clip = self.index.clips[row]
        return f"clip {self.index.key(row)!r} at byte {clip['offset']} of {self.shard_set.shard_where(clip['shard'])}"

    def __getstate__(self) -> dict[str, Any]:
        own: dict[str, Any] = {"_thread": None, "_ahead": None, "_memory": {}, "_files": set()}
        own |= {"keeps_clips": False, "_kept": np.zeros(len(self), bool)}
        return {**self.__dict__, **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._thread = threading.local()
        weakref.finalize(self, _close_files, self._files)


class JoinedReader:
    """Concatenation of several shard sets: the rows of the first set, then those of the second, and so on.

    Raises UserError if the clips of the sets differ in shape.
    """

    def __init__(self, readers: Sequence[ClipReader]) -> None:
        if not readers:
            raise UserError("no shard sets to join, expected at least one")
        self.readers = tuple(readers)
        self.clip_shape = readers[0].clip_shape
        for reader in readers:
            if reader.clip_shape != self.clip_shape:
                raise UserError(
                    f"{reader.shard_set.folder} has clips of {reader.clip_shape}, expected {self.clip_shape} as in "
                    f"{readers[0].shard_set.folder}; build both with the same `clip_len` and `frame_size`"
                )
        sizes = [len(reader) for reader in readers]
        self.sets = np.repeat(np.arange(len(readers)), sizes)  # [N], the position of each row's set in `readers`
        self._first_rows = np.cumsum([0, *sizes[:-1]])
        self.labels = np.concatenate([reader.labels for reader in readers])
        self.videos = _stacked([reader.videos for reader in readers], [len(r.index.videos) for r in readers])
        self.shards = _stacked([reader.shards for reader in readers], [len(r.manifest.shards) for r in readers])

    @property
    def digest(self) -> str:
        """Digests of all sets, in order."""
        return "+".join(reader.digest for reader in self.readers)

    @property
    def settings(self) -> dict[str, Any]:
        """Options of the first set's build."""
        return self.readers[0].settings

    def video_id(self, video: int) -> str:
        """Return the same name as `ClipReader.video_id` for an entry of `videos`."""
        reader, own = self._of_video(video)
        return reader.video_id(own)

    def recording_or_video(self, video: int) -> str:
        """Return the name of the recording of an entry of `videos` or, if it is unknown, one of the video alone."""
        reader, own = self._of_video(video)
        name = reader.recording_or_video(own)
        return f"{name} of set {self.readers.index(reader)}" if reader.index.recording(own) is None else name

    def class_name(self, video: int) -> str | None:
        """Return the class of an entry of `videos`."""
        reader, own = self._of_video(video)
        return reader.class_name(own)

    def video_seconds(self) -> npt.NDArray[np.float64]:
        """Return the length of every video in seconds, by the numbers of `videos`."""
        return np.concatenate([reader.video_seconds() for reader in self.readers])

    def _of_video(self, video: int) -> tuple[ClipReader, int]:
        """Return the reader of an entry of `videos`, and its number there."""
        for reader in self.readers:
            if video < len(reader.index.videos):
                return reader, video
            video -= len(reader.index.videos)
        raise IndexError(f"the video number exceeds the highest one by {video + 1}")

    @property
    def where(self) -> str:
        """Display name for messages."""
        return ", ".join(reader.where for reader in self.readers)

    @property
    def recordings(self) -> set[str]:
        """Names of the known recordings."""
        return set().union(*(reader.recordings for reader in self.readers))

    def frame_gap_seconds(self) -> float:
        """Return the median time between consecutive frames of all clips, in seconds; 0.0 without clips."""
        gaps = [reader.index.clips["frame_gap_seconds"] for reader in self.readers]
        return float(np.median(np.concatenate(gaps))) if len(self) else 0.0

    def __len__(self) -> int:
        return len(self.sets)

    def read_clips(self, rows: Sequence[int] | Rows, out: Pixels | Sequence[Pixels]) -> None:
        """Read clips as `ClipReader.read_clips` does."""
        picked = np.asarray(rows, np.int64)
        if len(picked) != len(out):
            raise ValueError(f"buffer has room for {len(out)} clips, expected {len(picked)}")
        sets = self.sets[picked]
        for number in np.unique(sets).tolist():
            here = np.flatnonzero(sets == number)
            self.readers[number].read_clips(picked[here] - self._first_rows[number], [out[i] for i in here.tolist()])

    def will_read(self, rows: Rows) -> None:
        """Advise the system as `ClipReader.will_read` does."""
        for number, reader in enumerate(self.readers):
            reader.will_read(rows[self.sets[rows] == number] - self._first_rows[number])

    def keep_clips(self) -> None:
        """Keep clips as `ClipReader.keep_clips` does."""
        for reader in self.readers:
            reader.keep_clips()

    def fetch_ahead(self, rows: Rows) -> None:
        """Start downloads as `ClipReader.fetch_ahead` does."""
        for number, reader in enumerate(self.readers):
            reader.fetch_ahead(rows[self.sets[rows] == number] - self._first_rows[number])


def _stacked(columns: Sequence[Rows], sizes: Sequence[int]) -> Rows:
    """Concatenate columns of numbers, shifting each set's numbers past those of the sets before it."""
    firsts = np.cumsum([0, *sizes[:-1]]).tolist()
    return np.concatenate([column + first for column, first in zip(columns, firsts, strict=True)])


def _memory_bytes() -> int:
    """Return how many bytes of memory this process may use: the machine's, or the limit of its cgroup (Linux)."""
    limits = [Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")]  # in a container
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, kinds, group = line.split(":", 2)
            if not kinds:
                limits.append(Path(f"/sys/fs/cgroup{group}/memory.max"))
            elif "memory" in kinds.split(","):
                limits.append(Path(f"/sys/fs/cgroup/memory{group}/memory.limit_in_bytes"))
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for limit in limits:
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            sizes.append(int(limit.read_text(encoding="ascii")))
    return min(sizes)


def _version(file: IO[bytes]) -> tuple[int, ...]:
    """Return what changes when an open file is written to, or another one takes its name."""
    about = os.fstat(file.fileno())
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns


def _close_files(files: set[IO[bytes]]) -> None:
    while files:
        files.pop().close()


_KEEPING: weakref.WeakSet[ClipReader] = weakref.WeakSet()


def _read_at(file: IO[bytes], offset: int, buffer: memoryview) -> bool:
    """Fill `buffer` from `offset` of an unbuffered file; return False if the file ends before."""
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
