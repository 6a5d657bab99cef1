"""The shard format that `vidshard` writes and `stage1` reads; docs/SHARD_FORMAT.md is the normative text.

Imports only the standard library, numpy and small modules; codecs load their libraries on first use.

A sample is two members of a plain ustar file, ``<key>.npy`` (the clip, uint8, T H W C, RGB; or compressed) and
``<key>.json`` (its `SampleRecord`), so that ``tar`` and stock ``webdataset`` can read a shard without this package.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import itertools
import json
import math
import re
import statistics
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from vidshard.shards import codecs
from vidshard.util.errors import FormatError
from vidshard.util.text import path_bytes

FORMAT_NAME = "vidshard"
FORMAT_VERSIONS = (1, 2)  # in 2, each sample has a third member, with its label

# All file names of a shard folder.
MANIFEST_NAME = "manifest.json"
INDEX_NAME = "index.npz"
FAILURES_NAME = "failures.csv"
CARD_NAME = "README.md"
LOG_SUFFIX = ".log"  # shards/Train → shards/Train.log/, for everything that varies from run to run
SOURCE_NAME = "source.json"  # in the log folder: the location of SOURCE
SHARD_PATTERN = re.compile(r"shard-(\d{6,})\.tar")
INDEX_PATTERN = re.compile(r"index(-\d{6,})?\.npz")

CODEC_SUFFIX = {"raw": ".npy", "zstd": ".npy.zst", "jpeg": ".jpg"}
READABLE_CODECS = tuple(CODEC_SUFFIX)
RECORD_SUFFIX = ".json"
LABEL_SUFFIX = ".cls"
MAX_PACKED_CLIP_BYTES = 256 << 20  # pixels of a compressed clip: a few bytes can unpack to any number

NORMAL_LABEL = 0
CRIME_LABEL = 1
UNKNOWN_LABEL = -1

# Flags of a clip, one bit each, in this order. Readers reject unknown bits.
FLAGS = ("repeated", "damaged", "estimated_times")

TAR_BLOCK = 512
KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,80}")
_MAX_SLUG = 60
_HASH_DIGITS = 10
_PLAIN_PART = re.compile(r"[A-Za-z0-9-](?:[A-Za-z0-9-]|_(?!_))*(?<!_)")

Clip = npt.NDArray[np.uint8]
Piece = bytes | memoryview


def shard_name(number: int) -> str:
    """Return the file name of shard `number`.

    >>> shard_name(12)
    'shard-000012.tar'
    """
    return f"shard-{number:06d}.tar"


def index_name(generation: int) -> str:
    """Return the file name of the index of this generation. It changes: the old index stays until the new one is final.

    >>> index_name(1), index_name(2)
    ('index.npz', 'index-000002.npz')
    """
    return INDEX_NAME if generation == 1 else f"index-{generation:06d}.npz"


def is_data_name(name: str) -> bool:
    """Return True if a file of this name is a shard or an index."""
    return any(pattern.fullmatch(name) for pattern in (SHARD_PATTERN, INDEX_PATTERN))


def is_set_name(name: str) -> bool:
    """Return True if a file of this name may be in a shard folder."""
    return name in (MANIFEST_NAME, FAILURES_NAME, CARD_NAME) or is_data_name(name)


def video_key(path: str) -> str:
    """Return the ASCII name of a video, which depends only on its path relative to SOURCE.

    Folders are joined by ``__`` and ``.mp4`` is dropped. If the path cannot be recovered from that letter by letter
    (spaces, dots, Unicode, another suffix, too long), a hash of the whole path is appended: no two paths share a key,
    and adding a video never renames another.

    >>> video_key("Abuse/Abuse001_x264.mp4")
    'Abuse__Abuse001_x264'
    >>> video_key("Abuse/a b.mp4")
    'Abuse__a_b-1bec5b7e1b'
    """
    parts = PurePosixPath(path).parts
    stem, dot, suffix = parts[-1].rpartition(".")
    names = [*parts[:-1], stem if dot else suffix]
    plain = suffix == "mp4" and dot == "." and all(_PLAIN_PART.fullmatch(name) for name in names)
    slug = "__".join(names)
    if plain and len(slug) <= _MAX_SLUG:
        return slug
    slug = "__".join(re.sub(r"[^A-Za-z0-9-]+", "_", name).strip("_") for name in names)
    digest = hashlib.sha256(path_bytes(path)).hexdigest()
    return f"{slug[: _MAX_SLUG - _HASH_DIGITS - 1]}-{digest[:_HASH_DIGITS]}"


def sample_key(path: str, clip_index: int) -> str:
    """Return the key of clip `clip_index` of the video at `path`: ``[A-Za-z0-9_-]``, at most 80 characters, no dot.

    >>> sample_key("Abuse/Abuse001_x264.mp4", 3)
    'Abuse__Abuse001_x264-000003'
    """
    return f"{video_key(path)}-{clip_index:06d}"


def flags_to_bits(flags: tuple[str, ...]) -> int:
    """Encode the flags of a clip as an integer.

    >>> flags_to_bits(("repeated", "damaged"))
    3
    """
    return sum(1 << FLAGS.index(flag) for flag in flags)


def bits_to_flags(bits: int) -> tuple[str, ...]:
    """Decode the result of `flags_to_bits`. Raises FormatError on an unknown bit."""
    if bits >> len(FLAGS):
        raise FormatError(f"clip flags {bits:#x} contain an unknown bit, expected only {', '.join(FLAGS)}")
    return tuple(flag for bit, flag in enumerate(FLAGS) if bits >> bit & 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipShape:
    """Shape of every clip of a shard set: T frames of H × W pixels, RGB."""

    num_frames: int
    height: int
    width: int

    def __post_init__(self) -> None:
        sizes = (self.num_frames, self.height, self.width)
        if not all(type(size) is int for size in sizes) or min(sizes) < 1:
            raise ValueError(f"clip shape {self} must consist of positive whole numbers")

    @property
    def thwc(self) -> tuple[int, int, int, int]:
        return (self.num_frames, self.height, self.width, 3)

    @property
    def num_bytes(self) -> int:
        """Bytes of the pixels, without the `.npy` header."""
        return self.num_frames * self.height * self.width * 3

    def __str__(self) -> str:
        return f"{self.num_frames}×{self.height}×{self.width}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleRecord:
    """Content of ``<key>.json``, which describes one clip; `class_name` is stored as ``class``, `recording` as
    ``source_group``.
    """

    path: str  # of the video, relative to SOURCE, with forward slashes
    class_name: str | None  # None if the video was in no class folder
    label: int  # 0 normal, 1 crime, -1 unknown
    split: str | None  # Train, Validation, Test, or None
    clip_index: int
    frame_indices: tuple[int, ...]  # presentation order, from 0; one per frame of the clip (T)
    timestamps_seconds: tuple[float, ...]  # of these frames, from the first frame of the video
    frame_gap_seconds: float  # median time between consecutive different frames; 0 if all are the same frame
    fps: float  # mean frames per second of the video
    num_frames: int  # of the video
    decoder: str  # the decoder that read the clip
    repeated_frames: int  # number of frames that repeat the previous one
    flags: tuple[str, ...] = ()
    recording: str | None = None  # shared by videos cut from one recording

    @property
    def key(self) -> str:
        return sample_key(self.path, self.clip_index)

    def to_json(self) -> bytes:
        fields = {**vars(self)}  # `asdict` would copy each tuple deeply
        fields["class"], fields["source_group"] = fields.pop("class_name"), fields.pop("recording")
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")

    @classmethod
    def from_json(cls, data: bytes) -> SampleRecord:
        """Parse a record. Raises FormatError if `data` is not a record of this format version."""
        try:
            fields = json.loads(data)
            fields["class_name"], fields["recording"] = fields.pop("class"), fields.pop("source_group", None)
            for name in ("frame_indices", "timestamps_seconds", "flags"):
                fields[name] = tuple(fields[name])
            record = cls(**fields)
            record._check_types()
            return record
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise FormatError(f"the sample record is not in a known format version: {error!r:.300}") from error

    def _check_types(self) -> None:
        """Raise ValueError if a value is of the wrong type or out of range."""
        texts = {"path": self.path, "decoder": self.decoder}
        optional = {"class": self.class_name, "split": self.split, "source_group": self.recording}
        texts |= {name: text for name, text in optional.items() if text is not None}
        texts |= {f"flag {i}": flag for i, flag in enumerate(self.flags)}
        counts = {"clip_index": self.clip_index, "num_frames": self.num_frames, "repeated_frames": self.repeated_frames}
        counts |= {f"frame index {i}": index for i, index in enumerate(self.frame_indices)}
        numbers = {"frame_gap_seconds": self.frame_gap_seconds, "fps": self.fps}
        times = {f"time {i}": seconds for i, seconds in enumerate(self.timestamps_seconds)}
        for fields, is_right in (
            (texts, _is_text),
            (counts, _is_count),
            (numbers, lambda value: _is_number(value) and value >= 0),
            (times, _is_number),
        ):
            if (name := next((name for name, value in fields.items() if not is_right(value)), None)) is not None:
                raise ValueError(f"{name} is {fields[name]!r:.100}")
        if type(self.label) is not int or abs(self.label) > 1:
            raise ValueError(f"label is {self.label!r:.100}")

    def faults(self, shape: ClipShape, split: str | None) -> Iterator[str]:
        """Yield statements of the record that cannot be true, given the shape and split of the set.

        >>> fields = dict(path="a.mp4", class_name=None, label=-1, split=None, clip_index=0, frame_gap_seconds=0.1)
        >>> record = SampleRecord(**fields, fps=9.0, frame_indices=(0, 9), timestamps_seconds=(0.0, 0.1), num_frames=5,
        ...     decoder="decord", repeated_frames=0)
        >>> list(record.faults(ClipShape(num_frames=2, height=1, width=1), None))
        ['its record names frame 9 of a video of 5 frames']
        """
        indices, times = self.frame_indices, self.timestamps_seconds
        if (len(indices), len(times)) != (shape.num_frames, shape.num_frames):
            yield f"its record has {len(indices)} frames and {len(times)} times, expected {shape.num_frames} of both"
            return
        if not 0 <= min(indices) <= max(indices) < self.num_frames:
            worst = max(indices) if min(indices) >= 0 else min(indices)
            yield f"its record names frame {worst:,} of a video of {self.num_frames:,} frames"
        if any(b < a for a, b in itertools.pairwise(indices)) or any(b < a for a, b in itertools.pairwise(times)):
            yield "its record has frames or times that are not ascending"
        repeated = sum(a == b for a, b in itertools.pairwise(indices))
        if self.repeated_frames != repeated:
            yield f"its record counts {self.repeated_frames} repeated frames, its frame indices {repeated}"
        gap = frame_gap_seconds(times)
        if not math.isclose(gap, self.frame_gap_seconds, rel_tol=1e-3, abs_tol=1e-5):
            yield f"its record says that frames are {self.frame_gap_seconds:g} s apart, its times {gap:g} s"
        if self.split != split:
            yield f"its record says split {self.split!r}, the manifest {split!r}"


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e18


def frame_gap_seconds(seconds: Sequence[float]) -> float:
    """Return the median time in seconds between consecutive different frames of a clip; 0.0 if there are none.

    >>> frame_gap_seconds([0.0, 0.5, 1.0, 1.0, 1.0])
    0.5
    """
    gaps = [b - a for a, b in itertools.pairwise(seconds) if b > a]
    return statistics.median(gaps) if gaps else 0.0


@functools.lru_cache(maxsize=16)
def npy_header(shape: ClipShape) -> bytes:
    """Return the bytes before the pixels in the `.npy` of a clip; they are the same for all clips of a set.

    >>> len(npy_header(ClipShape(num_frames=16, height=112, width=112)))
    128
    """
    buffer = io.BytesIO()
    fields: dict[str, Any] = {"descr": "|u1", "fortran_order": False, "shape": shape.thwc}
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue()


def encode_pieces(
    record: SampleRecord, clip: Clip, *, codec: str = "raw", label_member: bool = False
) -> tuple[list[Piece], int, int]:
    """Encode a sample as its tar members, in pieces to be written in order; return size and CRC-32 of its clip, too.

    `clip`: uint8 (T, H, W, 3); raw pixels are not copied. The bytes depend only on the arguments. The encoded clip (the
    header of a `.npy` included) comes after the first tar header.
    """
    if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[3] != 3:
        raise ValueError(f"clip {record.key!r} is {clip.dtype} {clip.shape}, expected uint8 (T, H, W, 3)")
    payload = _clip_pieces(clip, codec=codec)
    crc32 = 0
    for piece in payload:
        crc32 = zlib.crc32(piece, crc32)
    return _member_pieces(record, payload, codec=codec, label_member=label_member), sum(map(len, payload)), crc32


def join_members(record: SampleRecord, payload: Piece, *, codec: str, label_member: bool = False) -> bytes:
    """Return the tar members of a sample whose clip is already encoded."""
    return b"".join(_member_pieces(record, [payload], codec=codec, label_member=label_member))


def encode_clip(clip: Clip, *, codec: str) -> bytes:
    """Encode a clip as its tar member: a `.npy`, a compressed `.npy`, or its frames side by side in one JPEG."""
    return b"".join(_clip_pieces(clip, codec=codec))


def _member_pieces(record: SampleRecord, payload: Sequence[Piece], *, codec: str, label_member: bool) -> list[Piece]:
    key = record.key
    pieces = _tar_member(key + CODEC_SUFFIX[codec], payload) + _tar_member(key + RECORD_SUFFIX, [record.to_json()])
    return pieces + (_tar_member(key + LABEL_SUFFIX, [_label_text(record)]) if label_member else [])


def _label_text(record: SampleRecord) -> bytes:
    return str(record.label).encode("ascii")


def _clip_pieces(clip: Clip, *, codec: str) -> list[Piece]:
    if codec == "jpeg":
        return [codecs.jpeg_encode(np.concatenate(clip, axis=1))]
    shape = ClipShape(num_frames=clip.shape[0], height=clip.shape[1], width=clip.shape[2])
    pieces: list[Piece] = [npy_header(shape), np.ascontiguousarray(clip).data.cast("B")]
    return [codecs.zstd_compress(b"".join(pieces))] if codec == "zstd" else pieces


def decode_clip(payload: bytes | memoryview, shape: ClipShape, *, codec: str = "raw", where: str) -> Clip:
    """Decode the bytes of a clip's tar member to uint8 (T, H, W, 3).

    Raises FormatError, naming `where`, if they do not contain a clip of this shape, and UserError if the library of
    the codec is not installed.
    """
    if codec == "jpeg":
        strip = codecs.jpeg_decode(payload, height=shape.height, width=shape.num_frames * shape.width, where=where)
        frames = strip.reshape(shape.height, shape.num_frames, shape.width, 3)
        return np.ascontiguousarray(frames.transpose(1, 0, 2, 3))
    if codec == "zstd":
        payload = codecs.zstd_decompress(payload, len(npy_header(shape)) + shape.num_bytes, where=where)
    header = npy_header(shape)
    if bytes(payload[: len(header)]) != header or len(payload) != len(header) + shape.num_bytes:
        raise FormatError(f"{where} is not a uint8 clip of shape {shape.thwc} ({len(payload):,} bytes)")
    return np.frombuffer(payload, np.uint8, offset=len(header)).reshape(shape.thwc)


def end_of_shard() -> bytes:
    """Return the end of a tar file: two empty blocks."""
    return bytes(2 * TAR_BLOCK)


def read_shard(file: IO[bytes], *, label_member: bool = False) -> Iterator[tuple[str, bytes, SampleRecord, int]]:
    """Yield the samples of an open shard in order: key, bytes of the encoded clip, record, offset of the clip.

    `label_member`: that of the manifest. Reads front to back. Raises FormatError on anything that is not a shard of
    this format, including a truncated one.
    """
    offset = 0
    while True:
        clip_name, payload = _read_member(file, offset)
        if not clip_name:
            return
        clip_offset = offset + TAR_BLOCK
        offset = clip_offset + padded(len(payload))
        record_name, text = _read_member(file, offset)
        offset += TAR_BLOCK + padded(len(text))
        record = SampleRecord.from_json(text)
        clip_names = {record.key + suffix for suffix in CODEC_SUFFIX.values()}
        if clip_name not in clip_names or record_name != record.key + RECORD_SUFFIX:
            raise FormatError(f"members {clip_name!r}, {record_name!r} do not belong to sample {record.key!r}")
        if label_member:
            label = _read_member(file, offset)
            offset += TAR_BLOCK + padded(len(label[1]))
            if label != (expected := (record.key + LABEL_SUFFIX, _label_text(record))):
                raise FormatError(
                    f"member {label[0]!r} is {label[1]!r:.20}, expected {expected[0]!r} with {expected[1]!r}"
                )
        yield record.key, payload, record, clip_offset


def read_record(file: IO[bytes], clip_offset: int, clip_size: int) -> SampleRecord:
    """Return the record of the sample whose clip is at `clip_offset` of an open shard. Raises FormatError."""
    offset = clip_offset + padded(clip_size)
    file.seek(offset)
    _, text = _read_member(file, offset)
    return SampleRecord.from_json(text)


def read_sample(file: IO[bytes], clip_offset: int, clip_size: int, *, crc32: int, where: str) -> bytes:
    """Return all bytes of the sample whose clip is at `clip_offset`: all members, ready for another shard.

    Raises FormatError, naming `where`, if the clip's CRC-32 differs from `crc32`.
    """
    file.seek(clip_offset - TAR_BLOCK)
    clip = file.read(TAR_BLOCK + padded(clip_size))
    if zlib.crc32(clip[TAR_BLOCK : TAR_BLOCK + clip_size]) != crc32:
        raise FormatError(f"{where} is damaged: the checksum of a clip differs from its index; build the set again")
    header = file.read(TAR_BLOCK)
    file.seek(clip_offset + padded(clip_size))
    name, text = _read_member(file, clip_offset + padded(clip_size))
    label = file.read(2 * TAR_BLOCK)  # if it is one: a header begins with the name
    label_name = name.removesuffix(RECORD_SUFFIX) + LABEL_SUFFIX
    is_label = label.startswith(label_name.encode("ascii") + b"\0")
    return clip + header + text + bytes(padded(len(text)) - len(text)) + (label if is_label else b"")


def padded(size: int) -> int:
    """Return the bytes that a tar member of this size takes, without its header."""
    return -(-size // TAR_BLOCK) * TAR_BLOCK


def _tar_member(name: str, data: Sequence[Piece]) -> list[Piece]:
    info = tarfile.TarInfo(name)  # mtime, uid, gid are 0, mode 0644: nothing varies from run to run
    info.size = sum(map(len, data))
    return [info.tobuf(tarfile.USTAR_FORMAT), *data, bytes(padded(info.size) - info.size)]


def _read_member(file: IO[bytes], offset: int) -> tuple[str, bytes]:
    """Return name and data of the tar member at the file position (`offset` is for messages); ('', b'') at the end."""
    header = file.read(TAR_BLOCK)
    if header == bytes(TAR_BLOCK):
        return "", b""
    try:
        info = tarfile.TarInfo.frombuf(header, "ascii", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise FormatError(f"no tar header at byte {offset}: {error}") from error
    if not info.isreg():
        raise FormatError(f"member {info.name!r} at byte {offset} is not a regular file")
    data = file.read(info.size)
    if len(data) < info.size or len(file.read(padded(info.size) - info.size)) < padded(info.size) - info.size:
        raise FormatError(f"member {info.name!r} at byte {offset} is truncated")
    return info.name, data
