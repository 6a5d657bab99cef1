"""Manifest and index of a shard set.

The manifest marks a set as finished: it is written last and records the SHA-256 of everything else. This module
imports only the standard library, numpy and small modules, so that training nodes can read it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import os
import re
import struct
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from vidshard.shards import layout
from vidshard.shards.layout import Clip, ClipShape, SampleRecord
from vidshard.util import atomic, files
from vidshard.util.errors import FormatError, UserError
from vidshard.util.lists import VIDEO_SUFFIXES
from vidshard.util.text import first_of, path_bytes

# Limits of the search for shard sets below a folder without one: depth, and number of folders and of entries in each.
_MAX_DEPTH = 3
_MAX_LOOKED_AT = 1000
_MAX_SUGGESTIONS = 4

_CHECKED_ROWS = 1 << 14  # of an index, checked at once: few enough for the caches of a processor

# One row per clip. `offset` and `size` locate the encoded clip in its shard (the `.npy`, header included).
CLIP_ROW = np.dtype(
    [
        ("shard", "<u4"),
        ("offset", "<u8"),
        ("size", "<u4"),
        ("crc32", "<u4"),
        ("video", "<u4"),  # row of the video table
        ("clip", "<u4"),  # clip index within the video
        ("label", "i1"),
        ("flags", "u1"),
        ("frame_gap_seconds", "<f4"),
    ]
)

# One row per video with clips. Names are row numbers of the string tables; -1 is none.
VIDEO_ROW = np.dtype(
    [
        ("class", "<i2"),
        ("split", "i1"),
        ("source_group", "<i4"),
        ("decoder", "i1"),
        ("num_frames", "<u4"),
        ("width", "<u2"),
        ("height", "<u2"),
        ("fps", "<f4"),
    ]
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One shard, as listed in the manifest."""

    name: str
    bytes: int
    samples: int
    sha256: str

    def __post_init__(self) -> None:
        _expect(_is_text(self.name) and bool(layout.SHARD_PATTERN.fullmatch(self.name)), "name", self.name)
        _expect_counts(bytes=self.bytes, samples=self.samples)
        _expect(_is_sha256(self.sha256), "sha256", self.sha256)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """A video without samples, with the reason."""

    path: str  # relative to SOURCE
    outcome: str  # "failed" or "skipped"
    reason: str  # a code, such as `damaged`
    message: str  # for people; holds no absolute path

    def __post_init__(self) -> None:
        _expect(_is_video_path(self.path), "path", self.path)
        _expect(self.outcome in ("failed", "skipped"), "outcome", self.outcome)
        _expect(_is_text(self.reason), "reason", self.reason)
        _expect(_is_text(self.message), "message", self.message)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassCount:
    """Number of videos and clips of one class in the set."""

    name: str | None
    label: int
    videos: int
    clips: int

    def __post_init__(self) -> None:
        _expect(self.name is None or _is_text(self.name), "class", self.name)
        _expect(type(self.label) is int and abs(self.label) <= 1, "label", self.label)
        _expect_counts(videos=self.videos, clips=self.clips)

    def to_json(self) -> dict[str, Any]:
        return {"class": self.name, "label": self.label, "videos": self.videos, "clips": self.clips}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extension:
    """Videos added to a finished set; their shards follow the existing ones."""

    first_shard: int
    failed: tuple[str, ...]  # paths of the videos without samples

    def __post_init__(self) -> None:
        _expect_counts(first_shard=self.first_shard)
        _expect(all(map(_is_video_path, self.failed)), "failed", self.failed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """Description of a shard set. The same input, settings and package versions give identical bytes."""

    split: str | None
    clip_shape: ClipShape
    codec: str
    settings: dict[str, Any]  # everything that determines the bytes: sampling, resize, seed, …
    packages: dict[str, str]
    classes: tuple[ClassCount, ...]
    videos_found: int
    videos_ok: int
    failures: tuple[Failure, ...]
    shards: tuple[Shard, ...]
    index_bytes: int
    index_sha256: str
    extended: tuple[Extension, ...] = ()  # one entry per extension
    breaks: Mapping[str, int] = dataclasses.field(default_factory=dict)  # path of a video → number of breaks, if any

    def __post_init__(self) -> None:
        _expect(self.split is None or _is_text(self.split), "split", self.split)
        _expect(max(self.clip_shape.thwc) < 1 << 20, "shape", self.clip_shape)
        is_packed = self.codec != "raw"
        _expect(not is_packed or self.clip_shape.num_bytes <= layout.MAX_PACKED_CLIP_BYTES, "shape", self.clip_shape)
        _expect(type(self.settings) is dict, "settings", self.settings)
        _expect(type(self.packages) is dict and all(map(_is_text, self.packages.values())), "packages", self.packages)
        _expect_counts(found=self.videos_found, ok=self.videos_ok, index_bytes=self.index_bytes)
        _expect(_is_sha256(self.index_sha256), "index sha256", self.index_sha256)
        _expect(all(map(_is_video_path, self.breaks)), "breaks", self.breaks)
        _expect_counts(**self.breaks)
        for number, shard in enumerate(self.shards):
            _expect(shard.name == layout.shard_name(number), f"name of shard {number}", shard.name)
        found, *ended = self.videos.values()
        _expect(found == sum(ended), "videos", self.videos)  # found = ok + failed + skipped

    @property
    def generation(self) -> int:
        """1, plus 1 for each time videos were added."""
        return 1 + len(self.extended)

    @property
    def label_member(self) -> bool:
        """True if each sample has a member with its label: format version 2."""
        return self.settings.get("label_member") is True

    @property
    def index_name(self) -> str:
        return layout.index_name(self.generation)

    @property
    def num_clips(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def failed(self) -> list[Failure]:
        """The failures that are not skipped files."""
        return [failure for failure in self.failures if failure.outcome == "failed"]

    @property
    def videos(self) -> dict[str, int]:
        """Number of videos by outcome: found = ok + failed + skipped."""
        return {
            "found": self.videos_found,
            "ok": self.videos_ok,
            "failed": len(self.failed),
            "skipped": len(self.failures) - len(self.failed),
        }

    @property
    def digest(self) -> str:
        """SHA-256 that identifies the data set: it covers the manifest and, through it, every shard and the index."""
        digest = hashlib.sha256()
        for piece in self._pieces({}):
            digest.update(piece)
        return digest.hexdigest()

    def _fields(self) -> dict[str, Any]:
        return {
            "format": layout.FORMAT_NAME,
            "format_version": 2 if self.label_member else 1,
            "generation": self.generation,
            "split": self.split,
            "clip_shape": dataclasses.asdict(self.clip_shape),
            "codec": self.codec,
            "settings": self.settings,
            "packages": self.packages,
            "videos": self.videos,
            "clips": self.num_clips,
            "classes": [row.to_json() for row in self.classes],
            "failures": [dataclasses.asdict(failure) for failure in self.failures],
            "shards": [],  # `_pieces` fills them in
            "extended": [dataclasses.asdict(extension) for extension in self.extended],
            "index": {"name": self.index_name, "bytes": self.index_bytes, "sha256": self.index_sha256},
            **({"breaks": dict(self.breaks)} if self.breaks else {}),
        }

    def _pieces(self, more: dict[str, Any]) -> Iterator[bytes]:
        """Yield the canonical JSON, with more fields. The shards, of which there may be thousands, are fast."""
        # Only names of the outermost object are indented by one space, and no string contains a line break.
        before, name, after = _canonical({**self._fields(), **more}).partition(b'\n "shards": ')
        yield before + name + b"["
        for number, shard in enumerate(self.shards):
            yield (
                f'{"," if number else ""}\n  {{\n   "bytes": {shard.bytes},\n   "name": "{shard.name}",\n'
                f'   "samples": {shard.samples},\n   "sha256": "{shard.sha256}"\n  }}'
            ).encode("ascii")
        yield (b"\n " if self.shards else b"") + after.removeprefix(b"[")

    def to_bytes(self) -> bytes:
        return b"".join(self._pieces({"digest": self.digest}))

    def write(self, file: IO[bytes]) -> None:
        file.writelines(self._pieces({"digest": self.digest}))

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str) -> Manifest:
        """Parse a manifest. Raises FormatError, naming `where`, if it is damaged or of an unsupported format."""
        try:
            fields = json.loads(data)
            named = {name: fields.get(name) for name in ("format", "format_version", "codec")}
        except (ValueError, AttributeError, RecursionError) as error:
            raise _no_json(where, error) from error
        if named["format"] != layout.FORMAT_NAME:
            raise FormatError(f"{where} has format {named['format']!r}, expected {layout.FORMAT_NAME!r}")
        if named["format_version"] not in layout.FORMAT_VERSIONS:
            raise FormatError(
                f"{where} has format version {named['format_version']!r}, but this vidshard reads only versions "
                f"{' and '.join(map(str, layout.FORMAT_VERSIONS))}; install the vidshard that wrote it, or build again"
            )
        if named["codec"] not in layout.READABLE_CODECS:
            readable = ", ".join(layout.READABLE_CODECS)
            raise FormatError(f"{where} has codec {named['codec']!r}, but this vidshard reads only {readable}")
        try:
            manifest = cls._from_fields(fields)
            if manifest.to_bytes() == data:
                return manifest
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            _check_digest(data, fields, where)
            raise FormatError(f"{where} has a missing, unknown or invalid field: {error!r}") from error
        _check_digest(data, fields, where)  # an unknown field, or a count that others contradict
        raise FormatError(f"{where} contradicts itself, or has a field that this version does not know")

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> Manifest:
        """Build a manifest from its JSON. Raises KeyError, TypeError, ValueError or AttributeError if it is none."""
        return cls(
            split=fields["split"],
            clip_shape=ClipShape(**fields["clip_shape"]),
            codec=fields["codec"],
            settings=fields["settings"],
            packages=fields["packages"],
            classes=tuple(
                ClassCount(name=row["class"], label=row["label"], videos=row["videos"], clips=row["clips"])
                for row in fields["classes"]
            ),
            videos_found=fields["videos"]["found"],
            videos_ok=fields["videos"]["ok"],
            failures=tuple(Failure(**row) for row in fields["failures"]),
            shards=tuple(Shard(**row) for row in fields["shards"]),
            index_bytes=fields["index"]["bytes"],
            index_sha256=fields["index"]["sha256"],
            extended=tuple(
                Extension(first_shard=row["first_shard"], failed=tuple(row["failed"])) for row in fields["extended"]
            ),
            breaks=dict(fields.get("breaks", {})),
        )


_SHA256 = re.compile(r"[0-9a-f]{64}")


def _expect(is_right: bool, name: str, value: Any) -> None:
    if not is_right:
        raise ValueError(f"{name} is {value!r:.200}")


def _expect_counts(**values: Any) -> None:
    for name, value in values.items():
        _expect(type(value) is int and 0 <= value < 1 << 63, name, value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_sha256(value: Any) -> bool:
    return _is_text(value) and _SHA256.fullmatch(value) is not None


def _is_video_path(value: Any) -> bool:
    """Return True for a path below SOURCE; anything else may point to other files on a reader's machine."""
    return _is_text(value) and not value.startswith("/") and "\0" not in value and ".." not in value.split("/")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Index:
    """Table of all clips in shard order, and table of all videos; strings are stored once."""

    clips: npt.NDArray[np.void]  # CLIP_ROW
    videos: npt.NDArray[np.void]  # VIDEO_ROW
    paths: Sequence[str]  # of the videos, relative to SOURCE
    classes: Sequence[str]
    splits: Sequence[str]
    recordings: Sequence[str]
    decoders: Sequence[str]

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def fps(self) -> npt.NDArray[np.float64]:
        """Frame rate of each video; 0 if unknown."""
        fps: npt.NDArray[np.float64] = self.videos["fps"].astype(np.float64)
        return fps

    @property
    def seconds(self) -> npt.NDArray[np.float64]:
        """Length of each video; 0 if unknown."""
        fps, seconds = self.fps, np.zeros(len(self.videos))
        np.divide(self.videos["num_frames"], fps, out=seconds, where=fps > 0)
        return seconds

    def key(self, row: int) -> str:
        clip = self.clips[row]
        return layout.sample_key(self.paths[clip["video"]], int(clip["clip"]))

    def class_name(self, video: int) -> str | None:
        return _name(self.classes, self.videos["class"][video])

    def split(self, video: int) -> str | None:
        return _name(self.splits, self.videos["split"][video])

    def recording(self, video: int) -> str | None:
        return _name(self.recordings, self.videos["source_group"][video])

    def decoder(self, video: int) -> str | None:
        return _name(self.decoders, self.videos["decoder"][video])

    def to_bytes(self) -> bytes:
        buffer = io.BytesIO()
        self.write(buffer, [self.clips], len(self.clips))
        return buffer.getvalue()

    def write(self, file: IO[bytes], blocks: Iterable[npt.NDArray[np.void]], num_clips: int) -> None:
        """Write an index with these rows instead of `clips`, block by block: the bytes of `numpy.savez`."""
        tables = {name: _pack(getattr(self, field)) for field, name in _STRING_TABLES.items()}
        with zipfile.ZipFile(file, "w") as archive:
            with archive.open("clips.npy", "w", force_zip64=True) as member:
                header: dict[str, Any] = {"descr": CLIP_ROW.descr, "fortran_order": False, "shape": (num_clips,)}
                np.lib.format.write_array_header_1_0(member, header)
                num_written = 0
                for block in blocks:
                    member.write(block.tobytes())
                    num_written += len(block)
                assert num_written == num_clips, f"{num_written:,} rows, expected {num_clips:,}"
            for name, table in {"videos": self.videos, **tables}.items():
                with archive.open(name + ".npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, table, allow_pickle=False)

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str, about: Manifest) -> Index:
        """Parse the index of the set that `about` describes.

        Raises FormatError, naming `where`, if `data` is not an index of this format version, or has a value that cannot
        be right.
        """
        try:
            arrays = _arrays(data)
            clips, videos = arrays["clips"], arrays["videos"]
            tables = {field: _unpack(arrays[name]) for field, name in _STRING_TABLES.items()}
        except Exception as error:  # numpy and zipfile raise a dozen types of errors on damaged files
            raise FormatError(f"{where} is not an index written by vidshard build: {error}") from error
        if clips.dtype != CLIP_ROW or videos.dtype != VIDEO_ROW or len(tables["paths"]) != len(videos):
            raise FormatError(
                f"{where} has columns {clips.dtype}, expected {CLIP_ROW}; was it built by another version?"
            )
        try:
            layout.bits_to_flags(int(np.bitwise_or.reduce(clips["flags"])))
        except FormatError as error:
            raise FormatError(f"{where}: {error}; install the vidshard that wrote it, or build again") from error
        index = cls(clips=clips, videos=videos, **tables)
        index._check_values(where, about)
        return index

    def record_faults(self, record: SampleRecord, row: int) -> Iterator[str]:
        """Yield differences between a record and row `row`."""
        clip = self.clips[row]
        number = int(clip["video"])
        video = self.videos[number]
        try:
            bits = layout.flags_to_bits(record.flags)
        except ValueError:
            bits = -1
        columns: dict[str, tuple[object, object]] = {
            "path": (record.path, self.paths[number]),
            "class": (record.class_name, self.class_name(number)),
            "split": (record.split, self.split(number)),
            "source_group": (record.recording, self.recording(number)),
            "decoder": (record.decoder, self.decoder(number)),
            "label": (record.label, int(clip["label"])),
            "clip_index": (record.clip_index, int(clip["clip"])),
            "num_frames": (record.num_frames, int(video["num_frames"])),
            "fps": (np.float32(record.fps), video["fps"]),
            "frame_gap_seconds": (np.float32(record.frame_gap_seconds), clip["frame_gap_seconds"]),
            "flags": (bits, int(clip["flags"])),
        }
        for name, (got, expected) in columns.items():
            if got != expected:
                yield f"its record says {name} {got!s}, the index {expected!s}"

    def _check_values(self, where: str, about: Manifest) -> None:
        """Raise FormatError if a value is out of range, or a path leads out of SOURCE."""
        clips, videos = self.clips, self.videos
        shard_bytes = np.array([shard.bytes for shard in about.shards] or [0], np.uint64)
        for start in range(0, len(clips), _CHECKED_ROWS):
            part = clips[start : start + _CHECKED_ROWS]
            ends = part["offset"] + part["size"]
            is_right = (part["shard"] < len(about.shards)) & (part["size"] > 0) & (part["video"] < len(videos))
            is_right &= (part["label"] >= layout.UNKNOWN_LABEL) & (part["label"] <= layout.CRIME_LABEL)
            is_right &= (part["frame_gap_seconds"] >= 0) & np.isfinite(part["frame_gap_seconds"])
            is_right &= ends <= shard_bytes[np.minimum(part["shard"], len(shard_bytes) - 1)]
            is_right &= ends > part["offset"]  # without an overflow
            if not is_right.all():
                row = start + int(np.argmin(is_right))
                raise FormatError(
                    f"row {row} of {where} is {clips[row]}, expected a clip in a shard of the manifest, with a label "
                    "and a video that exist; build the set again"
                )
        columns = {"class": self.classes, "split": self.splits, "source_group": self.recordings}
        for name, table in {**columns, "decoder": self.decoders}.items():
            if len(videos) and (videos[name].min() < -1 or videos[name].max() >= len(table)):
                raise FormatError(f"{where} has {name} numbers outside its table of {len(table)}; build again")
        if not (np.isfinite(videos["fps"]) & (videos["fps"] >= 0)).all():
            raise FormatError(f"{where} has a frame rate that is negative or not finite; build again")
        if (path := next(itertools.filterfalse(_is_video_path, self.paths), None)) is not None:
            raise FormatError(f"{where} lists a video {path!r:.200}, expected a path inside the source; do not use it")


_NPY_HEADER_BYTES = 4096  # more than the headers that numpy writes for these columns
# Field of `Index` → name in the file, in the order of the file.
_STRING_TABLES = {
    "paths": "paths",
    "classes": "classes",
    "splits": "splits",
    "recordings": "source_groups",
    "decoders": "decoders",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardSet:
    """A finished shard folder, opened: its manifest and its index."""

    folder: Path
    manifest: Manifest
    index: Index

    @property
    def where(self) -> str:
        """Display name for messages."""
        return str(self.folder)

    @property
    def is_cached(self) -> bool:
        """True if shards are cached copies that may be evicted; they must be read inside `in_use`."""
        return False

    def shard_path(self, number: int) -> Path:
        return self.folder / self.manifest.shards[number].name

    def shard_where(self, number: int) -> str:
        """Return the display name of a shard for messages."""
        return str(self.shard_path(number))

    def open_shard(self, number: int) -> IO[bytes]:
        """Open a shard for unbuffered reading."""
        return open(self.shard_path(number), "rb", buffering=0)

    def in_use(self, file: IO[bytes]) -> AbstractContextManager[bool]:
        """Protect an open shard from eviction while the block runs; yields False if it must be reopened."""
        return contextlib.nullcontext(True)

    def read_clip(self, row: int) -> tuple[Clip, SampleRecord]:
        """Read the clip of a row of the index, unchecked, and its record. Raises FormatError, OSError.

        A local set only: the shard of a URL may be missing.
        """
        clip_row = self.index.clips[row]
        offset, size = int(clip_row["offset"]), int(clip_row["size"])
        with open(self.shard_path(int(clip_row["shard"])), "rb") as file:
            file.seek(offset)
            clip = layout.decode_clip(
                file.read(size),
                self.manifest.clip_shape,
                codec=self.manifest.codec,
                where=f"clip {self.index.key(row)!r}",
            )
            return clip, self.read_record(row, file)

    def read_record(self, row: int, file: IO[bytes]) -> SampleRecord:
        """Read the record of a row of the index from its open shard.

        Records have no checksum of their own. Raises FormatError if this one cannot be read, contradicts the index,
        or contains impossible values.
        """
        clip = self.index.clips[row]
        where = f"clip {self.index.key(row)!r} at byte {clip['offset']} of {self.shard_where(int(clip['shard']))}"
        try:
            record = layout.read_record(file, int(clip["offset"]), int(clip["size"]))
        except FormatError as error:
            raise FormatError(f"{where} is damaged: {error}; restore the shard, or build again") from error
        of_itself = record.faults(self.manifest.clip_shape, self.manifest.split)
        for fault in itertools.chain(of_itself, self.index.record_faults(record, row)):
            raise FormatError(f"{where} is damaged: {fault}; restore the shard, or build again")
        return record

    @property
    def log_folder(self) -> Path:
        return log_folder(self.folder)


def log_folder(folder: Path) -> Path:
    """Return the log folder of `folder`, which is next to it so that the folder itself never varies between runs."""
    named = folder if folder.name not in ("", "..") else Path(os.path.abspath(folder))
    if not named.name:
        raise UserError(f"the folder {folder} has no name to derive the name of a log folder from; use another folder")
    return named.with_name(named.name + layout.LOG_SUFFIX)


def open_shards(folder: Path) -> ShardSet:
    """Open a finished shard folder, checking the manifest, the index, and the names and sizes of the shards.

    Raises UserError if there is none, FormatError if it is damaged or of an unknown format.
    """
    manifest = read_manifest(folder)
    index_path = folder / manifest.index_name
    try:
        data = files.read_bytes(index_path)
    except OSError as error:
        raise FormatError(
            f"{index_path} cannot be read: {error.strerror}, although the manifest lists it; restore it, or build again"
        ) from error
    if len(data) != manifest.index_bytes or hashlib.sha256(data).hexdigest() != manifest.index_sha256:
        raise FormatError(f"{index_path} does not match its manifest: it was changed or damaged; build again")
    sizes = _file_sizes(folder)
    for shard in manifest.shards:
        size = sizes.get(shard.name)
        if size != shard.bytes:
            got = "is missing" if size is None else f"has {size:,} bytes"
            raise FormatError(f"{folder / shard.name} {got}, expected {shard.bytes:,} bytes; build again or restore it")
    return ShardSet(
        folder=folder, manifest=manifest, index=Index.from_bytes(data, where=str(index_path), about=manifest)
    )


def _file_sizes(folder: Path) -> dict[str, int]:
    """Return the sizes of the shards in a folder, by one listing and one call for each."""
    sizes = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if layout.SHARD_PATTERN.fullmatch(entry.name) and entry.is_file():
                sizes[entry.name] = entry.stat().st_size
    return sizes


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a shard folder. Raises UserError if there is none, FormatError if it cannot be read."""
    path = folder / layout.MANIFEST_NAME
    if not path.is_file():
        raise UserError(_no_shards(folder))
    return Manifest.from_bytes(path.read_bytes(), where=str(path))


def _no_shards(folder: Path) -> str:
    """Explain why `folder` is not a finished shard folder, and suggest the one that may be meant."""
    if folder.is_file() and folder.name.lower().endswith(VIDEO_SUFFIXES):
        return f"{folder} is a video, not a shard folder; build shards first: vidshard build {folder}"
    if not folder.is_dir():
        return f"no shard folder {folder}: build it first with `vidshard build SOURCE --out {folder}`"
    if any(layout.SHARD_PATTERN.fullmatch(entry.name) for entry in folder.iterdir()):
        return f"{folder} has no {layout.MANIFEST_NAME}; its build did not finish: run the same build command again"
    sets, holds_videos = _look_below(folder)
    if holds_videos and not sets:
        sets, _ = _look_below(Path("shards") / Path(os.path.abspath(folder)).name)  # the default output folder
    if sets:
        do, which = ("does", "it") if len(sets) == 1 else ("do", "one of them")
        return f"{folder} contains no shards, but {first_of(sets, _MAX_SUGGESTIONS)} {do}: did you mean {which}?"
    if holds_videos:
        return f"{folder} contains videos, not shards; build shards first: vidshard build {folder}"
    return f"{folder} has no {layout.MANIFEST_NAME}; is it a shard folder?"


def _look_below(folder: Path) -> tuple[list[Path], bool]:
    """Return the shard folders at most three levels down, and whether there is a video; gives up in a large tree."""
    sets, holds_videos, folders = [], False, deque([(folder, 0)])
    for _ in range(_MAX_LOOKED_AT):
        if not folders:
            break
        place, depth = folders.popleft()
        with contextlib.suppress(OSError), os.scandir(place) as entries:
            found = sorted(itertools.islice(entries, _MAX_LOOKED_AT), key=lambda entry: entry.name)
            names = {entry.name for entry in found}
            if {layout.MANIFEST_NAME, layout.shard_name(0)} <= names:
                sets.append(place)
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    if depth < _MAX_DEPTH and not entry.name.startswith("."):
                        folders.append((Path(entry.path), depth + 1))
                else:
                    holds_videos = holds_videos or entry.name.lower().endswith(VIDEO_SUFFIXES)
    return sets, holds_videos


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, which finishes a set: the last write of a build."""
    with atomic.atomic_open(folder / layout.MANIFEST_NAME) as file:
        manifest.write(file)


def _canonical(fields: dict[str, Any]) -> bytes:
    return (json.dumps(fields, indent=1, sort_keys=True, allow_nan=False) + "\n").encode("ascii")


def _check_digest(data: bytes, fields: dict[str, Any], where: str) -> None:
    """Raise FormatError if these bytes of a manifest were changed after they were written."""
    digest = fields.get("digest")
    try:
        content = _canonical({name: value for name, value in fields.items() if name != "digest"})
        if digest == hashlib.sha256(content).hexdigest() and data == _canonical(fields):
            return
    except (ValueError, TypeError, RecursionError) as error:  # NaN and infinity are not JSON
        raise _no_json(where, error) from error
    raise FormatError(f"{where} was changed or damaged after it was written; build again or restore it")


def _no_json(where: str, error: Exception) -> FormatError:
    return FormatError(f"{where} is not JSON: {error}; is it a manifest written by vidshard build?")


def _name(table: Sequence[str], row: int) -> str | None:
    return table[row] if row >= 0 else None


def _arrays(data: bytes) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays [N] of an .npz file without compression, as views of `data`: a large index is not copied.

    Raises ValueError and what zipfile and numpy raise on other files.
    """
    found = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{member.filename} is compressed, which vidshard never does")
            # The local header, whose name and extra field may be longer than those of the directory.
            name_bytes, extra_bytes = struct.unpack_from("<HH", data, member.header_offset + 26)
            start = member.header_offset + 30 + name_bytes + extra_bytes
            file = io.BytesIO(memoryview(data)[start : start + min(member.file_size, _NPY_HEADER_BYTES)])
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            if dtype.hasobject or len(shape) != 1 or file.tell() + shape[0] * dtype.itemsize != member.file_size:
                raise ValueError(f"{member.filename} has {shape} values of {dtype}, but {member.file_size} bytes")
            array = np.frombuffer(data, dtype, shape[0], start + file.tell())
            found[member.filename.removesuffix(".npy")] = array
    return found


def _pack(strings: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Encode strings as one array of bytes, each terminated by a zero byte (which no file name contains)."""
    return np.frombuffer(b"".join(path_bytes(text) + b"\0" for text in strings), np.uint8)


def _unpack(packed: npt.NDArray[np.uint8]) -> list[str]:
    return packed.tobytes().decode("utf-8", "surrogateescape").split("\0")[:-1]
