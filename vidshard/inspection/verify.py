"""Integrity check of a shard folder. Reports every fault, not only the first, and changes nothing.

The manifest records the SHA-256 of the index and of every shard, so that the plain check already finds any changed bit.
The samples of a shard that fails are then read one by one to find the damaged ones; `deep` reads those of all shards.
"""

from __future__ import annotations

import bisect
import contextlib
import csv
import dataclasses
import hashlib
import io
import itertools
import os
import tempfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vidshard.planning.build_state import STATE_NAME
from vidshard.shards import layout, remote_set
from vidshard.shards.layout import TAR_BLOCK
from vidshard.shards.manifest import Failure, Index, Manifest, Shard
from vidshard.storage import urls
from vidshard.storage.urls import Location
from vidshard.util import atomic
from vidshard.util import files as regular_files
from vidshard.util.console import Progress, shown_line
from vidshard.util.errors import FormatError
from vidshard.util.hashing import file_sha256
from vidshard.util.text import counted, first_of, path_bytes

_MAX_THREADS = 4  # hashing and crc32 release the interpreter lock
_MAX_BYTES = 256 << 20  # of the clips that all threads decode at once
_NOT_LISTED = "does not belong to this set: the manifest does not list it"
_LEFT_OVER = "is left from an interrupted"
_SHOWN_FILES = 5  # of those that do not belong to the set
_SHOWN_PER_FILE = 10  # faults of one file in the text report
# Errors that a record with values of the wrong type may raise wherever it is used.
_MALFORMED = (FormatError, TypeError, ValueError, LookupError, ArithmeticError)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault: the file, the sample (None if it concerns no single sample), and a message."""

    file: str
    key: str | None
    message: str


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """Result of a check. `faults` is empty if everything is correct."""

    folder: Location
    deep: bool
    num_shards: int
    num_clips: int
    num_bytes: int
    faults: tuple[Fault, ...]
    other_files: tuple[str, ...] = ()  # added by the user or other tools; no fault

    def to_json(self) -> dict[str, Any]:
        faults = [dataclasses.asdict(fault) for fault in self.faults]
        return {
            "folder": str(self.folder),
            "deep": self.deep,
            "shards": self.num_shards,
            "clips": self.num_clips,
            "bytes": self.num_bytes,
            "faults": faults,
            "other_files": list(self.other_files),
        }


def verify(folder: Location, *, deep: bool = False, strict: bool = False) -> VerifyReport:
    """Check a finished shard folder against its manifest; with `deep`, also every sample against the index.

    Files that are not named like ours, such as a README, are listed in the report; with `strict` they are faults.

    Raises UserError if there is no finished shard folder, or a URL cannot be read; anything wrong with an existing one
    is reported as a fault. The shards of a URL are downloaded one after another and deleted.
    """
    files = SetFiles(folder)
    try:
        manifest = remote_set.read_manifest(folder)
    except FormatError as error:
        message = f"{error}; without it no shard can be checked"
        fault = Fault(file=layout.MANIFEST_NAME, key=None, message=message)
        return VerifyReport(folder=folder, deep=deep, num_shards=0, num_clips=0, num_bytes=0, faults=(fault,))
    index, index_faults = _check_index_file(files, manifest)
    names = files.names()
    faults = [
        *_check_failures(files, manifest),
        *index_faults,
        *(_check_index(manifest, index) if index is not None else ()),
        *_check_shards(files, manifest, index, deep=deep),
        *_check_stray_files(files, manifest, names),
    ]
    other_files = [name for name in names if not _may_be_ours(name)]
    if strict:
        faults += [_fault(_NOT_LISTED, file=name) for name in other_files]
    return VerifyReport(
        folder=folder,
        deep=deep,
        num_shards=len(manifest.shards),
        num_clips=manifest.num_clips,
        num_bytes=sum(shard.bytes for shard in manifest.shards),
        faults=tuple(faults),
        other_files=() if strict else tuple(other_files),
    )


def _may_be_ours(name: str) -> bool:
    return layout.is_set_name(name) or name.endswith(atomic.PARTIAL_SUFFIX) or name == STATE_NAME


def faults_text(report: VerifyReport) -> str:
    """Format a report for people; of a file with many faults, only the first ones."""
    if not report.faults:
        checked = "checksums and every sample" if report.deep else "checksums"
        others = report.other_files
        shown = first_of(map(shown_line, others), _SHOWN_FILES)
        return (
            f"✓ {report.folder}: {counted(report.num_clips, 'clip')} in {counted(report.num_shards, 'shard')}, "
            f"{report.num_bytes / 1e6:,.1f} MB: {checked} are correct"
            + (f"\n  files that do not belong to the set: {shown}" if others else "")
        )
    of_file: dict[str, list[Fault]] = defaultdict(list)
    for fault in report.faults:
        of_file[fault.file].append(fault)
    lines = [f"✗ {report.folder}: {counted(len(report.faults), 'fault')}"]
    for file, faults in of_file.items():
        for fault in faults[:_SHOWN_PER_FILE]:
            about = f"{file}: {f'sample {fault.key}: ' if fault.key else ''}{fault.message}"
            lines.append(f"  {shown_line(about)}")
        if len(faults) > _SHOWN_PER_FILE:
            lines.append(f"  {file}: {counted(len(faults) - _SHOWN_PER_FILE, 'more fault')}; `json` lists all")
    if not all(fault.message.startswith((_NOT_LISTED, _LEFT_OVER)) for fault in report.faults):
        lines.append("damaged files can only be restored from a copy or rebuilt: delete the folder and build it again")
    return "\n".join(lines)


# ---- the files


class SetFiles:
    """Files of a local or remote shard folder, by name."""

    def __init__(self, folder: Location) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        if isinstance(self._folder, Path):
            return sorted(entry.name for entry in self._folder.iterdir())
        return sorted(urls.list_files(self._folder))

    def read(self, name: str) -> bytes:
        """Return the content of a file. Raises OSError."""
        place = self._folder / name
        if isinstance(place, Path):
            return regular_files.read_bytes(place)
        try:
            return urls.read_bytes(place)
        except urls.NotThereError as error:
            raise FileNotFoundError(str(error)) from error

    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """Yield a local path of a file while the block runs; the path does not exist if the file is missing."""
        place = self._folder / name
        if isinstance(place, Path):
            yield place
            return
        with tempfile.TemporaryDirectory(prefix="vidshard-verify-") as folder:
            path = Path(folder) / name
            with contextlib.suppress(urls.NotThereError):
                urls.download(place, path)
            yield path


# ---- manifest, index, failures.csv, and foreign files


def _check_failures(files: SetFiles, manifest: Manifest) -> Iterator[Fault]:
    """Check that failures.csv matches the manifest."""
    name = layout.FAILURES_NAME
    try:
        text = files.read(name).decode("utf-8", "surrogateescape")
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except FileNotFoundError:
        yield _fault("is missing", file=name)
        return
    except (OSError, csv.Error) as error:
        yield _fault(f"cannot be read: {error}", file=name)
        return
    expected = [[field.name for field in dataclasses.fields(Failure)]]
    expected += [list(dataclasses.astuple(failure)) for failure in manifest.failures]
    for number, (got, want) in enumerate(itertools.zip_longest(rows, expected), start=1):
        if got != want:
            yield _fault(f"row {number} is {_row(got)}, the manifest says {_row(want)}", file=name)


def _row(row: Sequence[str] | None) -> str:
    return "missing" if row is None else repr(",".join(row))


def _check_index_file(files: SetFiles, manifest: Manifest) -> tuple[Index | None, list[Fault]]:
    """Read the index; None, with faults, if it does not match the manifest."""
    name = manifest.index_name
    try:
        data = files.read(name)
    except OSError as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        return None, [_fault(f"{what}; samples are not checked against it", file=name)]
    message = _wrong_bytes(len(data), hashlib.sha256(data).hexdigest(), manifest.index_bytes, manifest.index_sha256)
    if message:
        return None, [_fault(f"{message}; samples are not checked against it", file=name)]
    try:
        return Index.from_bytes(data, where=name, about=manifest), []
    except FormatError as error:
        return None, [_fault(str(error), file=name)]


def _check_index(manifest: Manifest, index: Index) -> list[Fault]:
    """Check counts, row numbers, uniqueness and order of an index with the right checksum."""
    name = manifest.index_name
    rows, videos = index.clips, index.videos
    faults: list[Fault] = []

    def expect(right: object, message: str) -> None:
        if not right:
            faults.append(_fault(message, file=name))

    expect(len(rows) == manifest.num_clips, f"has {len(rows):,} clips, the manifest {manifest.num_clips:,}")
    expect(len(videos) == manifest.videos_ok, f"has {len(videos):,} videos, the manifest {manifest.videos_ok:,} ok")
    twice = [path for path, count in Counter(index.paths).items() if count > 1]
    expect(not twice, f"lists a video twice: {', '.join(twice)}")

    known = manifest.classes
    counts = Counter(zip([index.class_name(v) for v in rows["video"].tolist()], rows["label"].tolist(), strict=True))
    expected = Counter({(row.name, row.label): row.clips for row in known if row.clips})
    expect(counts == expected, f"counts clips by class and label as {dict(counts)}, the manifest as {dict(expected)}")
    per_class = Counter(index.class_name(video) for video in range(len(videos)))
    expected_videos = {row.name: row.videos for row in known}
    expect(per_class == expected_videos, f"counts videos as {dict(per_class)}, the manifest as {expected_videos}")

    pairs = np.stack([rows["video"], rows["clip"]], axis=1).astype(np.int64)
    _, first = np.unique(pairs, axis=0, return_index=True)
    for row in sorted(set(range(len(rows))) - set(first.tolist())):
        faults.append(_fault("occurs twice", file=name, key=index.key(row)))
    shard_counts = np.bincount(rows["shard"], minlength=len(manifest.shards))
    for shard, count in zip(manifest.shards, shard_counts.tolist(), strict=False):
        expect(count == shard.samples, f"has {count:,} clips in {shard.name}, the manifest {shard.samples:,}")
    faults += _order_faults(manifest, index)
    return faults


def _order_faults(manifest: Manifest, index: Index) -> Iterator[Fault]:
    """Check that shards and offsets ascend, and within a generation also the path bytes and then the clip index.

    Videos added later have shards of their own after the others.
    """
    name, rows = manifest.index_name, index.clips
    paths = list(map(path_bytes, index.paths))
    columns = [rows[column].tolist() for column in ("shard", "offset", "video", "clip")]
    first_shards = [extension.first_shard for extension in manifest.extended]
    before: tuple[Any, ...] | None = None
    for row, (shard, offset, video, clip) in enumerate(zip(*columns, strict=True)):
        place = ((shard, offset), (bisect.bisect_right(first_shards, shard), paths[video], clip))
        if before is not None and (place[0] <= before[0] or place[1] <= before[1]):
            yield _fault("is out of order", file=name, key=index.key(row))
        before = place


def _check_stray_files(files: SetFiles, manifest: Manifest, names: Sequence[str]) -> Iterator[Fault]:
    """Report files named like ours that the manifest does not list; a shard is compared with those of the set."""
    digests = {shard.sha256: shard.name for shard in manifest.shards}
    ours = {layout.MANIFEST_NAME, manifest.index_name, layout.FAILURES_NAME, layout.CARD_NAME}
    ours |= {shard.name for shard in manifest.shards}
    for name in names:
        if name in ours or not _may_be_ours(name):
            continue
        if name.endswith(atomic.PARTIAL_SUFFIX):
            message = f"{_LEFT_OVER} write; delete it"
        elif name == STATE_NAME:
            message = f"{_LEFT_OVER} build or finalize, and no part of the set; run the same command again"
        elif layout.SHARD_PATTERN.fullmatch(name):
            try:
                with files.local(name) as path:
                    twin = digests.get(file_sha256(path))
            except OSError:
                twin = None
            message = _NOT_LISTED + (f"; a copy of {twin}" if twin else "")
        else:
            message = _NOT_LISTED
        yield _fault(message, file=name)


# ---- shards


def _check_shards(files: SetFiles, manifest: Manifest, index: Index | None, *, deep: bool) -> list[Fault]:
    """Return the faults of all shards, in order; several shards are read concurrently."""
    check = _ShardCheck(files, manifest, index, deep)
    threads = min(_MAX_THREADS, os.cpu_count() or 1, max(1, _MAX_BYTES // manifest.clip_shape.num_bytes))
    faults: list[Fault] = []
    keys: dict[str, str] = {}  # key → shard, checked only if there is no index
    with (
        ThreadPoolExecutor(threads) as pool,
        Progress("Checking", total=len(manifest.shards), unit="shard") as progress,
    ):
        for shard, (found, found_keys) in zip(
            manifest.shards, pool.map(check.faults_of, range(len(manifest.shards))), strict=True
        ):
            faults += found
            for key in found_keys:
                if keys.setdefault(key, shard.name) != shard.name:
                    faults.append(_fault(f"is in {keys[key]} as well", file=shard.name, key=key))
            progress.advance()
    return faults


class _ShardCheck:
    """Check of single shards by number; threads share it and only read."""

    def __init__(self, files: SetFiles, manifest: Manifest, index: Index | None, deep: bool) -> None:
        self.files, self.manifest, self.index, self.deep = files, manifest, index, deep
        self.name_of_digest = {shard.sha256: shard.name for shard in manifest.shards}
        shard_of = index.clips["shard"] if index is not None else np.zeros(0, np.uint32)
        self.rows = np.argsort(shard_of, kind="stable")  # index rows sorted by shard
        self.first = np.searchsorted(shard_of[self.rows], np.arange(len(manifest.shards) + 1))

    def faults_of(self, number: int) -> tuple[list[Fault], list[str]]:
        """Return the faults of a shard, and the keys found in it if there is no index."""
        with self.files.local(self.manifest.shards[number].name) as path:
            return self._faults_of(number, path)

    def _faults_of(self, number: int, path: Path) -> tuple[list[Fault], list[str]]:
        shard = self.manifest.shards[number]
        keys: list[str] = []
        try:
            if not path.is_file():
                what = "is not a regular file" if os.path.lexists(path) else "is missing"
                return [_fault(f"{what}; {shard.samples:,} samples are lost", file=shard.name)], keys
            size, digest = path.stat().st_size, file_sha256(path)
            message = _wrong_bytes(size, digest, shard.bytes, shard.sha256)
            faults = [_fault(message, file=shard.name)] if message else []
            twin = self.name_of_digest.get(digest)
            if message and twin:  # swapped or overwritten: the samples are intact, but in the wrong file
                return [_fault(f"contains the samples of {twin}, byte for byte", file=shard.name)], keys
            if message or self.deep:
                if self.index is not None:
                    faults += self._samples_by_index(path, number, size, self.index)
                else:
                    faults += self._samples_in_turn(path, shard, keys)
            return faults, keys
        except OSError as error:
            return [_fault(f"cannot be read: {error.strerror}", file=shard.name)], keys

    def _samples_by_index(self, path: Path, number: int, size: int, index: Index) -> Iterator[Fault]:
        """Read each sample at its position, so that a damaged one does not hide those after it."""
        rows = self.rows[self.first[number] : self.first[number + 1]]
        starts = [max(0, int(offset) - TAR_BLOCK) for offset in index.clips["offset"][rows]]
        end = self.manifest.shards[number].bytes - len(layout.end_of_shard())
        lost: list[str] = []
        with open(path, "rb") as file:
            if rows.size and starts[0] != 0:
                yield _fault(f"has {starts[0]:,} bytes before its first sample", file=path.name)
            for row, start, stop in zip(rows.tolist(), starts, [*starts[1:], end], strict=True):
                if stop > size:
                    lost.append(index.key(row))
                    continue
                file.seek(start)
                for message in self._sample_faults(file.read(max(0, stop - start)), row, index):
                    yield _fault(message, file=path.name, key=index.key(row))
            if lost:
                message = f"is beyond the end of the file, with the {len(lost) - 1:,} samples after it"
                yield _fault(message, file=path.name, key=lost[0])
            file.seek(end if rows.size else 0)
            if not lost and file.read() != layout.end_of_shard():
                yield _fault(f"does not end with two empty blocks at byte {end:,}", file=path.name)

    def _sample_faults(self, data: bytes, row: int, index: Index) -> Iterator[str]:
        """Yield the faults of a sample; `data` is everything up to the next sample."""
        clip_row = index.clips[row]
        payload = memoryview(data)[TAR_BLOCK : TAR_BLOCK + int(clip_row["size"])]
        crc32 = zlib.crc32(payload)
        if crc32 != clip_row["crc32"]:
            yield f"its clip has crc32 {crc32:08x}, the index {int(clip_row['crc32']):08x}"
        try:
            yield from self._read_sample_faults(data, row, index, intact=crc32 == clip_row["crc32"])
        except _MALFORMED as error:
            yield f"it cannot be read: {error}"

    def _read_sample_faults(self, data: bytes, row: int, index: Index, *, intact: bool) -> Iterator[str]:
        size = int(index.clips["size"][row])
        label_member = self.manifest.label_member
        samples = list(layout.read_shard(io.BytesIO(data + layout.end_of_shard()), label_member=label_member))
        if len(samples) != 1:
            yield f"there are {len(samples)} samples where the index has one"
            return
        key, payload, record, offset = samples[0]
        if key != index.key(row):
            yield f"its position contains sample {key!r}"
            return
        if (offset, len(payload)) != (TAR_BLOCK, size):
            yield f"its clip has {len(payload):,} bytes, the index {size:,}"
        yield from record.faults(self.manifest.clip_shape, self.manifest.split)
        yield from index.record_faults(record, row)
        if intact:  # damage has already been reported
            self._decode(payload)
        expected = layout.join_members(record, payload, codec=self.manifest.codec, label_member=label_member)
        if data != expected:
            size = min(len(data), len(expected))
            same = np.frombuffer(data, np.uint8, size) == np.frombuffer(expected, np.uint8, size)
            byte = size if same.all() else int(np.argmin(same))
            yield f"its headers, record or padding were changed after writing (byte {byte:,} of the sample)"

    def _decode(self, payload: bytes) -> None:
        """Raise FormatError if the payload is not a clip of the set's shape."""
        layout.decode_clip(payload, self.manifest.clip_shape, codec=self.manifest.codec, where="its clip")

    def _samples_in_turn(self, path: Path, shard: Shard, keys: list[str]) -> Iterator[Fault]:
        """Read front to back, without an index, up to the first damage."""
        known = set()
        with open(path, "rb") as file:
            try:
                for key, payload, record, _ in layout.read_shard(file, label_member=self.manifest.label_member):
                    if key in known:
                        yield _fault("occurs twice", file=path.name, key=key)
                    known.add(key)
                    keys.append(key)
                    self._decode(payload)
                    for message in record.faults(self.manifest.clip_shape, self.manifest.split):
                        yield _fault(message, file=path.name, key=key)
            except _MALFORMED as error:
                place = f"after sample {keys[-1]}" if keys else "at its first sample"
                yield _fault(f"cannot be read {place}: {error}", file=path.name)
                return
        if len(keys) != shard.samples:
            yield _fault(f"has {len(keys):,} samples, the manifest {shard.samples:,}", file=path.name)


# ---- helpers


def _fault(message: str, *, file: str = layout.MANIFEST_NAME, key: str | None = None) -> Fault:
    return Fault(file=file, key=key, message=message)


def _wrong_bytes(size: int, sha256: str, expected_size: int, expected_sha256: str) -> str:
    """Describe how a file differs from the manifest in size or digest; empty if it does not."""
    if size < expected_size:
        return f"is truncated: it has {size:,} bytes, the manifest {expected_size:,}"
    if size > expected_size:
        return f"is too long: it has {size:,} bytes, the manifest {expected_size:,}"
    if sha256 != expected_sha256:
        return f"was changed after it was written: SHA-256 {sha256[:12]}…, the manifest {expected_sha256[:12]}…"
    return ""
