"""Training data for stage 2: detections with their clips, as one file of tensors or as WebDataset shards of any size.

Both formats contain the same data, and `load_attention_data` reads both; docs/OUTPUTS.md is the specification.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stage1.common.files import HashingFile, save_tensors
from stage1.inference.outputs import SCHEMA_VERSION, Detection
from vidshard.shards import layout
from vidshard.shards.layout import ClipShape
from vidshard.util import atomic
from vidshard.util.errors import FormatError, UserError

ATTENTION_FORMAT = "stage1 attention data"
MAX_CLIP_BYTES = 8 * 2**30  # clips in one file of tensors
SHARD_BYTES = 256 * 2**20
TRAINED_ON = {"yes": 1, "no": 0, "unknown": -1}
_READ_CLIPS = 64  # at a time

ReadClips = Callable[[range, npt.NDArray[np.uint8]], None]  # the clips of these detections, into this buffer
# Columns of `AttentionData` → their fields in the record of a detection; numbers with their types.
_STRINGS = {
    "video_paths": "video_path",
    "keys": "key",
    "sources": "source",
    "classes": "stage2_class",
    "splits": "split",
}
_NUMBERS = {
    "clip_indices": ("clip_index", torch.int64),
    "labels": ("label", torch.int64),
    "confidences": ("confidence", torch.float32),
    "attention_weights": ("attention_weights", torch.float32),
    "frame_indices": ("frame_indices", torch.int64),
    "seconds": ("seconds", torch.float64),
    "fps": ("fps", torch.float32),
    "trained_on": ("trained_on", torch.int8),
}
_PER_FRAME = ("attention_weights", "frame_indices", "seconds")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """Origin of all detections of a run."""

    checkpoint_sha256: str  # of the model, or of all out-of-fold models, joined by +
    shards_digest: str
    threshold: float
    out_of_fold: bool
    missed_crimes: int  # crime clips that were not detected and are missing here


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionSource(Provenance):
    """Provenance of detections, and the shape of their clips."""

    clip_shape: ClipShape


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionData(Provenance):
    """Detections as tensors, for stage 2: N detections of T frames. N may be 0."""

    video_paths: list[str]
    keys: list[str]
    sources: list[str]  # paths of the videos below SOURCE
    classes: list[str | None]  # class of the video; Normal for false alarms
    splits: list[str | None]
    clip_indices: torch.Tensor  # int64 [N]: number of the clip within its video
    labels: torch.Tensor  # int64 [N]: 0 normal (a false alarm), 1 crime, -1 unknown
    confidences: torch.Tensor  # float32 [N]
    attention_weights: torch.Tensor  # float32 [N, T]
    frame_indices: torch.Tensor  # int64 [N, T]
    seconds: torch.Tensor  # float64 [N, T]
    fps: torch.Tensor  # float32 [N], of the video
    trained_on: torch.Tensor  # int8 [N]: 1 the model was trained on this video, 0 it was not, -1 unknown
    clips: torch.Tensor | ShardClips  # uint8 [N, T, H, W, 3], read from disk when indexed

    def __len__(self) -> int:
        return len(self.keys)


class ShardClips:
    """Lazy array of the clips in attention shards: uint8 [N, T, H, W, 3].

    Index it as a tensor's first dimension: by a number, a slice, or a list of numbers.
    """

    ndim = 5

    def __init__(self, places: Sequence[tuple[Path, int]], shape: ClipShape) -> None:
        self._places, self._shape = list(places), shape

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        return (len(self._places), *self._shape.thwc)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, key: int | slice | Sequence[int]) -> torch.Tensor:
        if isinstance(key, int):
            return self._read(key)
        rows = range(len(self))[key] if isinstance(key, slice) else [int(row) for row in key]
        clips = torch.empty((len(rows), *self._shape.thwc), dtype=torch.uint8)
        for i, row in enumerate(rows):
            clips[i] = self._read(row)
        return clips

    def _read(self, row: int) -> torch.Tensor:
        path, offset = self._places[row]
        with open(path, "rb") as file:
            file.seek(offset)
            data = bytearray(file.read(self._shape.num_bytes))
        if len(data) != self._shape.num_bytes:
            raise FormatError(f"{path} ends within the clip at byte {offset}; run `stage1 infer` again")
        return torch.frombuffer(data, dtype=torch.uint8).reshape(self._shape.thwc)


# --- writing ------------------------------------------------------------------------------------------------------


def check_clip_bytes(num_detections: int, clip_shape: ClipShape, *, threshold: float) -> None:
    """Raise UserError if a file of tensors would be too large to be loaded at once."""
    total = num_detections * clip_shape.num_bytes
    if total > MAX_CLIP_BYTES:
        raise UserError(
            f"the clips of {num_detections:,} detections take {total / 2**30:.1f} GiB, but a file of tensors holds at "
            f"most {MAX_CLIP_BYTES / 2**30:.0f} GiB; the scores are kept: run the same command with `resume` and "
            f"`attention_format` shards, which have no limit, or with a `threshold` above {threshold:g}"
        )


def write_file(
    path: Path,
    detections: Iterable[Detection],
    trained_on: Sequence[int],
    read_clips: ReadClips,
    source: AttentionSource,
) -> None:
    """Write one file for `torch.load(weights_only=True)`. Clips pass through a temporary file instead of memory.

    `trained_on` holds a value of `TRAINED_ON` for each detection.
    """
    columns = _columns(map(_record, detections, trained_on), len(trained_on), source.clip_shape.num_frames)
    with atomic.atomic_open(path) as file, _spooled_clips(path, len(trained_on), read_clips, source) as clips:
        fields = {"schema_version": SCHEMA_VERSION, **columns, "clips": clips, **_provenance(source)}
        save_tensors(fields, file)


def _record(detection: Detection, trained_on: int) -> dict[str, Any]:
    return {**detection.to_json(), "stage2_class": detection.stage2_class, "trained_on": trained_on}


def _columns(records: Iterable[Mapping[str, Any]], count: int, num_frames: int) -> dict[str, Any]:
    """Return the columns of `count` records, filled one by one: a list of records would take ten times the memory."""
    strings: dict[str, list[str | None]] = {name: [] for name in _STRINGS}
    shapes = {name: (count, num_frames) if name in _PER_FRAME else (count,) for name in _NUMBERS}
    numbers = {name: torch.empty(shapes[name], dtype=dtype) for name, (_, dtype) in _NUMBERS.items()}
    for row, record in enumerate(records):
        for name, field in _STRINGS.items():
            strings[name].append(record[field])
        for name, (field, dtype) in _NUMBERS.items():
            numbers[name][row] = torch.tensor(record[field], dtype=dtype)
    return {**strings, **numbers}


def _provenance(source: AttentionSource) -> dict[str, Any]:
    return {field.name: getattr(source, field.name) for field in dataclasses.fields(Provenance)}


@contextlib.contextmanager
def _spooled_clips(
    path: Path, num_clips: int, read_clips: ReadClips, source: AttentionSource
) -> Iterator[torch.Tensor]:
    """Yield all clips as one tensor that is mapped to a temporary file."""
    shape = (num_clips, *source.clip_shape.thwc)
    if not num_clips:
        yield torch.empty(shape, dtype=torch.uint8)
        return
    spool = atomic.partial_path(path.with_name(path.name + ".clips"))
    try:
        with atomic.create(spool) as file:
            for rows, clips in _read_in_pieces(num_clips, read_clips, source.clip_shape):
                file.write(clips[: len(rows)].tobytes())
        yield torch.from_numpy(np.memmap(spool, np.uint8, "c", shape=shape))
    finally:
        with contextlib.suppress(OSError):
            spool.unlink()


def _read_in_pieces(
    num_clips: int, read_clips: ReadClips, shape: ClipShape
) -> Iterator[tuple[range, npt.NDArray[np.uint8]]]:
    buffer = np.empty((min(num_clips, _READ_CLIPS), *shape.thwc), np.uint8)
    for first in range(0, num_clips, _READ_CLIPS):
        rows = range(first, min(first + _READ_CLIPS, num_clips))
        read_clips(rows, buffer[: len(rows)])
        yield rows, buffer


def write_shards(
    folder: Path,
    detections: Iterable[Detection],
    trained_on: Sequence[int],
    read_clips: ReadClips,
    source: AttentionSource,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write shards of `<key>.npy` (the clip) and `<key>.json` (its detection), and their manifest last."""
    samples = _samples(map(_record, detections, trained_on), len(trained_on), read_clips, source)
    shards: list[dict[str, Any]] = []
    classes: Counter[str] = Counter()
    splits: set[str] = set()
    sample = next(samples, None)
    while sample is not None:
        path = folder / layout.shard_name(len(shards))
        num_samples = num_bytes = 0
        with atomic.atomic_open(path) as file:
            hashed = HashingFile(file)
            with tarfile.open(fileobj=hashed, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
                while sample is not None and num_bytes < shard_bytes:
                    record, clip = sample
                    _add(tar, record["key"] + ".npy", layout.encode_clip(clip, codec="raw"))
                    _add(tar, record["key"] + ".json", json.dumps(record, allow_nan=False).encode("ascii"))
                    classes[record["stage2_class"] or ""] += 1
                    splits |= {record["split"]} - {None}
                    num_samples, num_bytes = num_samples + 1, num_bytes + clip.nbytes
                    sample = next(samples, None)
        shards.append({"name": path.name, "bytes": hashed.size, "samples": num_samples, "sha256": hashed.hexdigest()})
    manifest = {
        "format": ATTENTION_FORMAT,
        "schema_version": SCHEMA_VERSION,
        "clip_shape": dataclasses.asdict(source.clip_shape),
        **_provenance(source),
        "num_detections": len(trained_on),
        "splits": sorted(splits),
        "stage2_classes": dict(sorted(classes.items())),
        "shards": shards,
    }
    atomic.write_json(folder / layout.MANIFEST_NAME, manifest)


def _samples(
    records: Iterator[dict[str, Any]], num_detections: int, read_clips: ReadClips, source: AttentionSource
) -> Iterator[tuple[dict[str, Any], npt.NDArray[np.uint8]]]:
    words = {number: word for word, number in TRAINED_ON.items()}
    for rows, clips in _read_in_pieces(num_detections, read_clips, source.clip_shape):
        for record, clip in zip(itertools.islice(records, len(rows)), clips, strict=False):
            yield {**record, "trained_on": words[record["trained_on"]]}, clip


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # mtime, uid, gid are 0: nothing varies from run to run
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


# --- reading ------------------------------------------------------------------------------------------------------


def load_attention_data(path: str | os.PathLike[str], *, for_training: bool = False) -> AttentionData:
    """Load the attention data of `stage1 infer`: the file of tensors, the folder of shards, or the run's folder.

    Clips stay on disk until they are accessed. `for_training` refuses detections of the split Test, and of videos that
    the model was (or may have been) trained on. Raises UserError if there is no such file or it is refused, and
    FormatError if it is another kind of file or damaged.
    """
    found = _find(Path(path))
    data = _load_shards(found) if found.is_dir() else _load_file(found)
    if for_training and (reason := why_not_for_training(data.splits, data.trained_on.tolist())) is not None:
        raise UserError(
            f"{found} is for evaluation only ({reason}): train stage 2 on out-of-fold detections over Train "
            "(`stage1 crossval --save-attention`)"
        )
    return data


def _find(path: Path) -> Path:
    """Return `path` itself, or the file or folder of shards in it if it is the output folder of a run."""
    folders = (path, path / "shards", path / "attention_data" / "shards")
    for folder in folders:
        if (folder / layout.MANIFEST_NAME).is_file():
            return folder
    name = "stage1_attention_data.pt"
    for file in (path, path / name, path / "attention_data" / name):
        if file.is_file():
            return file
    raise UserError(f"no attention data at {path}: run `stage1 infer` first")


def why_not_for_training(splits: Sequence[str | None], trained_on: Sequence[int]) -> str | None:
    """Return why stage 2 must not be trained on detections with these splits and `trained_on`; None if it may be."""
    test = sum(split == "Test" for split in splits)
    if test:
        return f"{test:,} of {len(splits):,} detections belong to the split Test"
    seen = sum(value != TRAINED_ON["no"] for value in trained_on)
    if seen:
        sure = "was" if TRAINED_ON["yes"] in trained_on else "may have been"
        return f"the model {sure} trained on the videos of {seen:,} of {len(splits):,} detections"
    return None


def _load_file(path: Path) -> AttentionData:
    try:
        fields = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError:
        raise
    except Exception as error:  # torch raises half a dozen types on other files
        reason = str(error).partition("\n")[0]
        raise FormatError(f"{path} is not attention data written by stage1 infer: {reason}") from error
    version = fields.pop("schema_version", None) if isinstance(fields, dict) else None
    return _checked(path, version, fields)


def _load_shards(folder: Path) -> AttentionData:
    path = folder / layout.MANIFEST_NAME
    try:
        manifest = json.loads(path.read_bytes())
        if manifest["format"] != ATTENTION_FORMAT:
            raise FormatError(f"{path} has format {manifest['format']!r}, expected {ATTENTION_FORMAT!r}")
        shape = ClipShape(**manifest["clip_shape"])
        records: list[dict[str, Any]] = []
        places: list[tuple[Path, int]] = []
        for number, shard in enumerate(manifest["shards"]):
            if shard["name"] != layout.shard_name(number):  # not joined to the folder unless it is ours
                raise FormatError(
                    f"{path} calls shard {number} {shard['name']!r:.100}, expected {layout.shard_name(number)}"
                )
            for record, offset in _read_shard(folder / shard["name"], shard["bytes"], shape):
                records.append({**record, "trained_on": TRAINED_ON[record["trained_on"]]})
                places.append((folder / shard["name"], offset))
        provenance = {field.name: manifest[field.name] for field in dataclasses.fields(Provenance)}
        if len(records) != manifest["num_detections"]:
            raise FormatError(
                f"the shards of {path} hold {len(records)} detections, expected {manifest['num_detections']}"
            )
        columns = _columns(records, len(records), shape.num_frames)
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{path} is not a manifest of attention shards: {error!r}") from error
    return _checked(path, manifest["schema_version"], {**columns, "clips": ShardClips(places, shape), **provenance})


def _read_shard(path: Path, size: int, shape: ClipShape) -> Iterator[tuple[dict[str, Any], int]]:
    """Read the record of each sample of a shard, and the offset of its pixels."""
    got = path.stat().st_size if path.is_file() else None
    if got != size:
        raise FormatError(f"{path} {'is missing' if got is None else f'has {got:,} bytes'}, expected {size:,} bytes")
    header = len(layout.npy_header(shape))
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                text = tar.next()
                file = tar.extractfile(text) if text is not None else None
                if file is None or member.size != header + shape.num_bytes:
                    raise FormatError(f"{path} has no clip of {shape} and record at {member.name!r}")
                yield json.loads(file.read()), member.offset_data + header
    except tarfile.TarError as error:
        raise FormatError(f"{path} is not a shard: {error}") from error


def _checked(path: Path, version: object, fields: dict[str, Any]) -> AttentionData:
    if version != SCHEMA_VERSION:
        raise FormatError(
            f"{path} has schema version {version!r}, but this stage1 reads only {SCHEMA_VERSION}; run "
            "`stage1 infer` again"
        )
    try:
        data = AttentionData(**fields)
    except TypeError as error:
        raise FormatError(f"{path} has a missing or unknown field: {error}") from error
    if (key := next((key for key in data.keys if not layout.KEY_PATTERN.fullmatch(str(key))), None)) is not None:
        raise FormatError(f"{path} contains {key!r:.100}, which is not a valid clip key; do not use it")
    fault = _wrong_length(data)
    if fault:
        raise FormatError(f"{path} is damaged: {fault}; run `stage1 infer` again")
    return data


def _wrong_length(data: AttentionData) -> str | None:
    """Return a fault if a field lacks one entry per detection or frame, or None."""
    if data.clips.ndim != 5:
        return f"clips has the shape {tuple(data.clips.shape)}, expected (N, T, H, W, 3)"
    shape_NT = (len(data), data.clips.shape[1])
    for name in (*_STRINGS, *_NUMBERS, "clips"):
        column = getattr(data, name)
        if name in _PER_FRAME and tuple(column.shape) != shape_NT:
            return f"{name} has the shape {tuple(column.shape)}, expected {shape_NT}"
        if len(column) != len(data):
            return f"{name} has {len(column)} entries, expected {len(data)} as keys has"
    return None
