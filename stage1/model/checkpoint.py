"""Checkpoints, which rebuild the model with its preprocessing and resume a run.

A checkpoint is written atomically and read with ``weights_only=True``, so that loading an untrusted file runs no code.
The content is checked before it is used: its size when unpacked, the type of every field, and that the weights are
finite and have the shapes of the model.
The file is that of `torch.save`, followed by a line with the SHA-256 of all bytes before it. `torch.load` ignores that
line, but without it torch would load most damaged files without an error.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
import os
import re
import reprlib
import types
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, get_args, get_origin, get_type_hints

import torch

from stage1.common.files import BEST_NAME, LAST_NAME, PREVIOUS_NAME, save_tensors
from stage1.data.transforms import ClipTransform, TransformConfig
from stage1.metrics.calibration import Calibration
from stage1.model.config import MAX_MEMBERS
from stage1.model.network import Ensemble, ModelConfig, Stage1Model
from vidshard.shards.layout import ClipShape
from vidshard.util import atomic
from vidshard.util.errors import UserError
from vidshard.util.text import counted

CHECKPOINT_FORMAT = "stage1 checkpoint"
CHECKPOINT_VERSION = 2
_DIGEST_LINE = b"\nstage1 checkpoint, SHA-256 of the bytes before this line: %s\n"
_DIGEST_LINE_SIZE = len(_DIGEST_LINE % (b"0" * 64))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Contents of a checkpoint: tensors, numbers, strings, and lists and dicts of these."""

    epoch: int  # number of completed epochs
    step: int = 0  # number of completed optimizer steps
    model_state_dict: dict[str, Any]
    optimizer_state_dict: dict[str, Any]
    scheduler_state_dict: dict[str, Any]
    model_config: dict[str, Any]
    transform_config: dict[str, Any]  # for evaluation, without augmentation
    clip_shape: dict[str, int]
    sampling: dict[str, Any]  # build settings of the training shards
    frame_gap_seconds: float  # median time between frames of the training clips
    threshold: float = 0.5  # on calibrated P(crime)
    threshold_target: str = ""  # the target for which the threshold was chosen on validation data; "": not chosen
    calibration: dict[str, Any] = dataclasses.field(default_factory=dict)  # {}: not calibrated
    # calibration, threshold and threshold_target of scores centred per video; None: not chosen
    relative: dict[str, Any] | None = None
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)  # of this epoch
    warnings: list[str] = dataclasses.field(default_factory=list)
    train_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    data_digests: dict[str, str] = dataclasses.field(default_factory=dict)  # shard folder → its digest
    train_videos: list[str] = dataclasses.field(default_factory=list)  # SPLIT/path of training videos; []: unknown
    packages: dict[str, str] = dataclasses.field(default_factory=dict)  # package → version
    git_commit: str = ""  # of the source tree, with "-dirty" if files were changed; "": unknown
    run_state: dict[str, Any] = dataclasses.field(default_factory=dict)  # further state of a run that resumes

    def __post_init__(self) -> None:
        """Raise ValueError if a field has an invalid type or value."""
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            _expect(_is_of_type(value, hints[field.name]), field.name, value)
        _expect(self.epoch >= 0 and self.step >= 0, "epoch or step", min(self.epoch, self.step))
        _expect(0 <= self.frame_gap_seconds < math.inf, "frame_gap_seconds", self.frame_gap_seconds)
        for chosen in (vars(self), *([self.relative] if self.relative is not None else [])):
            _expect(_is_of_type(chosen["threshold"], float) and 0 <= chosen["threshold"] <= 1, "threshold", chosen)
            _expect(_is_of_type(chosen["threshold_target"], str), "threshold_target", chosen["threshold_target"])
            _check_like(Calibration(prior=0.5), chosen["calibration"])
            Calibration(**chosen["calibration"])
        _ = self.shape

    def check_model(self, num_bytes: int) -> None:
        """Raise ValueError unless the fields, from a file of `num_bytes`, describe a model with finite weights.

        No memory is allocated for a model of the size that the file claims.
        """
        _check_tensors(vars(self), num_bytes)
        _check_like(ModelConfig(), self.model_config)
        _check_like(TransformConfig(), self.transform_config)
        self.build_transform()
        with torch.device("meta"):
            expected = self._untrained_model().state_dict()
        found = self.model_state_dict
        if found.keys() != expected.keys():
            names = sorted(found.keys() ^ expected.keys(), key=str)
            raise ValueError(
                f"its weights have a different layout: {len(names)} names differ, such as {reprlib.repr(names[0])}"
            )
        for name, like in expected.items():
            weight = found[name]
            if not isinstance(weight, torch.Tensor) or (weight.shape, weight.dtype) != (like.shape, like.dtype):
                got = (weight.dtype, tuple(weight.shape)) if isinstance(weight, torch.Tensor) else weight
                raise ValueError(f"{name} is {reprlib.repr(got)}, expected {like.dtype} {tuple(like.shape)}")
            if not weight.isfinite().all():
                raise ValueError(f"{name} contains numbers that are not finite")

    def _untrained_model(self) -> Stage1Model | Ensemble:
        config = ModelConfig.from_dict(self.model_config)
        members = {name.split(".")[1] for name in self.model_state_dict if name.startswith("members.")}
        if len(members) > MAX_MEMBERS:
            raise ValueError(f"an ensemble of {len(members)} networks, expected at most {MAX_MEMBERS}")
        return Ensemble(config, len(members)) if members else Stage1Model(config)

    def build_model(self) -> Stage1Model | Ensemble:
        """Build the model with its weights, in evaluation mode, on the CPU."""
        model = self._untrained_model()
        model.load_state_dict(self.model_state_dict)
        return model.eval()

    def build_transform(self) -> ClipTransform:
        """Build the preprocessing of the model, without augmentation."""
        return ClipTransform(TransformConfig.from_dict(self.transform_config).for_evaluation)

    def build_calibration(self) -> Calibration:
        """Build the calibration of the model's P(crime), to which `threshold` applies."""
        return Calibration(**self.calibration)

    @property
    def shape(self) -> ClipShape:
        """Shape of the clips on which the model was trained."""
        return ClipShape(**self.clip_shape)


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` to `path` atomically. Raises OSError, for example on a full disk, and keeps the old file."""
    with atomic.atomic_open(path) as file:
        _write(file, checkpoint)


def save_last(folder: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` as last.pt of `folder`, and keep the old last.pt as previous.pt. Raises OSError.

    One of the two files is always complete, even if the process is killed meanwhile.
    """
    last = folder / LAST_NAME
    with atomic.atomic_open(last) as file:
        _write(file, checkpoint)
        file.flush()
        os.fsync(file.fileno())
        if last.is_file():
            last.replace(folder / PREVIOUS_NAME)


def load_last(folder: Path) -> tuple[Checkpoint, str | None]:
    """Load last.pt of `folder`, or previous.pt and a warning if last.pt cannot be read.

    Raises UserError if neither file can be read.
    """
    last, previous = folder / LAST_NAME, folder / PREVIOUS_NAME
    try:
        return load_checkpoint(last), None
    except UserError as error:
        if not previous.is_file():
            raise
        try:
            saved = load_checkpoint(previous)
        except UserError:
            raise error from None  # report the error of the newer file
        why = str(error).partition(";")[0] if last.is_file() else f"there is no {last}: the run was killed while saving"
        return saved, f"{why}; resuming from {previous.name}, after {counted(saved.step, 'step')}"


def load_checkpoint(path: Path, map_location: str | torch.device = "cpu") -> Checkpoint:
    """Load a checkpoint, with its tensors on the device `map_location`.

    Raises UserError if the file does not exist, is damaged, or is not a stage1 checkpoint of this format version.
    """
    if path.is_dir():
        raise UserError(f"no checkpoint {path}: it is a folder, expected a file; did you mean {path / BEST_NAME}?")
    if not path.is_file():
        raise UserError(f"no checkpoint {path}; train one with `stage1 train`, or pass another `checkpoint`")
    data = path.read_bytes()
    payload, digest = data[:-_DIGEST_LINE_SIZE], _digest_at_the_end(data)
    if digest is not None and hashlib.sha256(payload).hexdigest().encode() != digest:
        raise UserError(f"{path} is damaged: its SHA-256 differs from the one recorded in the file; {_REPLACE_IT}")
    try:
        _check_unpacked_size(payload if digest is not None else data)
        fields = torch.load(io.BytesIO(data), map_location=map_location, weights_only=True)
    except Exception as error:  # torch, zipfile and pickle raise a dozen types on other files
        raise UserError(f"{path} is not a stage1 checkpoint, or is damaged; expected {_EXPECTED}") from error
    if not isinstance(fields, dict) or fields.pop("format", None) != CHECKPOINT_FORMAT:
        raise UserError(f"{path} is not a stage1 checkpoint, though torch can read it; expected {_EXPECTED}")
    version = fields.pop("format_version", None)
    if version != CHECKPOINT_VERSION:
        raise UserError(
            f"{path} is a stage1 checkpoint of format version {version}, but this stage1 reads only version "
            f"{CHECKPOINT_VERSION}; install the stage1 version that wrote it, or train again"
        )
    if digest is None:
        raise UserError(f"{path} is damaged: it does not end with its SHA-256 line; {_REPLACE_IT}")
    return _checked(fields, len(data), path)


def check_clip_shape(checkpoint: Checkpoint, path: Path, shape: ClipShape, *, where: str) -> None:
    """Raise UserError unless the clips in `where` have the shape of the training clips of the checkpoint `path`."""
    if shape != checkpoint.shape:
        raise UserError(
            f"clips in {where} are {shape} (frames×height×width), {path} was trained on {checkpoint.shape}; build them "
            f"with `vidshard build SOURCE {build_options(checkpoint)}`, or use another checkpoint"
        )


def build_options(checkpoint: Checkpoint) -> str:
    """Return the options of `vidshard build` that sample clips like the training clips of the checkpoint.

    Dense sampling replaces annotated sampling, because the events of new videos are unknown.
    """
    sampling, shape = checkpoint.sampling, checkpoint.shape
    mode = sampling.get("mode")
    options = {"sampling": "dense" if mode == "annotated" else mode}
    options |= {name: sampling.get(name) for name in ("clips_per_video", "stride", "frame_step", "fps")}
    options |= {"clip_len": shape.num_frames, "frame_size": shape.height}
    options |= {name: sampling.get(name) for name in ("resize", "codec")}
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in options.items() if value is not None)


def _write(file: IO[bytes], checkpoint: Checkpoint) -> None:
    fields = {field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)}
    hashing = save_tensors({"format": CHECKPOINT_FORMAT, "format_version": CHECKPOINT_VERSION, **fields}, file)
    file.write(_DIGEST_LINE % hashing.hexdigest().encode())


def _digest_at_the_end(data: bytes) -> bytes | None:
    match = re.fullmatch(re.escape(_DIGEST_LINE).replace(b"%s", b"([0-9a-f]{64})"), data[-_DIGEST_LINE_SIZE:])
    return match[1] if match else None


def _checked(fields: dict[str, Any], num_bytes: int, path: Path) -> Checkpoint:
    """Return the checkpoint with these fields, read from the file `path`. Raises UserError if they are not the fields
    of a checkpoint."""
    try:
        checkpoint = Checkpoint(**fields)
    except TypeError as error:
        raise UserError(
            f"{path} is a stage1 checkpoint with a missing or unknown field ({error}); install the stage1 version that "
            "wrote it, or train again"
        ) from error
    except (ValueError, LookupError, UserError) as error:
        raise UserError(f"{path} has an unexpected field: {error}; {_REPLACE_IT}") from error
    try:
        checkpoint.check_model(num_bytes)
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, RecursionError) as error:
        raise UserError(
            f"{path} contains no model that this version of stage1 can load: {error}; {_REPLACE_IT}"
        ) from error
    return checkpoint


def _check_unpacked_size(data: bytes) -> None:
    """Raise ValueError unless `data` is an archive that unpacks to no more than its own size, as torch compresses
    nothing."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(member.file_size for member in archive.infolist()) > len(data):
            raise ValueError("it would unpack to more bytes than the file has")


def _check_tensors(fields: Mapping[str, Any], num_bytes: int) -> None:
    """Raise ValueError if there is anything but plain values, or the tensors claim more than `num_bytes`."""
    left, seen, claimed = [fields], set[int](), 0
    while left:
        value: Any = left.pop()
        if isinstance(value, torch.Tensor):
            claimed += value.numel() * value.element_size()
            if value.layout != torch.strided or value.is_quantized or claimed > num_bytes:
                raise ValueError(f"a tensor of shape {tuple(value.shape)} has more numbers than the file")
        elif isinstance(value, Mapping | list | tuple):
            if id(value) not in seen:  # a small file may refer to one list again and again
                seen.add(id(value))
                left += value.values() if isinstance(value, Mapping) else value
        elif not isinstance(value, str | int | float | None):
            raise ValueError(f"a value is of type {type(value).__name__}")


def _check_like(example: Any, fields: Mapping[str, Any]) -> None:
    """Raise ValueError if a field differs in type from that of the dataclass `example`."""
    for name, value in fields.items():
        like = getattr(example, name, None)
        is_right = like is None or _is_of_type(value, type(like))
        if isinstance(like, tuple):
            is_right = isinstance(value, list | tuple) and all(_is_of_type(part, type(like[0])) for part in value)
        _expect(is_right or (value is None and name == "prior"), name, value)


def _is_of_type(value: Any, hint: Any) -> bool:
    """Return True if `value` is of the annotated type, and an integer also of 64 bits.

    An integer is a float, but neither is a bool.
    """
    if hint is Any:
        return True
    if type(value) is int and abs(value) >= 1 << 63:
        return False
    if isinstance(hint, types.UnionType):
        return any(_is_of_type(value, part) for part in get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    origin = get_origin(hint) or hint
    if not (type(value) is origin if origin is int else isinstance(value, origin)):
        return False
    parts = get_args(hint)
    if origin is dict:
        return not parts or all(_is_of_type(k, parts[0]) and _is_of_type(v, parts[1]) for k, v in value.items())
    return origin is not list or all(_is_of_type(part, parts[0]) for part in value)


def _expect(is_right: bool, name: str, value: Any) -> None:
    if not is_right:
        raise ValueError(f"{name} is {reprlib.repr(value)}")


_REPLACE_IT = "use an intact copy, or train again"
_EXPECTED = f"a file such as {BEST_NAME}, written by `stage1 train`"
