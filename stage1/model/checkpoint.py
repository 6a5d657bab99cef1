"""Checkpoints: all that rebuilds the model and its preprocessing, and all that resumes a run.

Written whole or not at all, and read with ``weights_only=True``: a checkpoint from somebody else runs no code. The file
is one of `torch.save`, and behind it a line with the SHA-256 of all bytes before, which `torch.load` passes over: torch
itself reads most damaged files without a word.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import re
from pathlib import Path
from typing import IO, Any, cast

import torch

from stage1.common.files import BEST_NAME, LAST_NAME, PREVIOUS_NAME
from stage1.data.transforms import ClipTransform, TransformConfig
from stage1.metrics.calibration import Calibration
from stage1.model.network import ModelConfig, Stage1Model
from vidshard.shards.layout import ClipShape
from vidshard.util import atomic
from vidshard.util.errors import UserError

CHECKPOINT_FORMAT = "stage1 checkpoint"
FORMAT_VERSION = 2
_DIGEST_LINE = b"\nstage1 checkpoint, SHA-256 of the bytes before this line: %s\n"
_DIGEST_LINE_SIZE = len(_DIGEST_LINE % (b"0" * 64))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a checkpoint holds: tensors, numbers, strings, and lists and dicts of these."""

    epoch: int  # how many epochs were done, whole ones
    step: int = 0  # how many optimizer steps were done
    model_state_dict: dict[str, Any]
    optimizer_state_dict: dict[str, Any]
    scheduler_state_dict: dict[str, Any]
    model_config: dict[str, Any]
    transform_config: dict[str, Any]  # that of evaluation: no augmentation
    clip_shape: dict[str, int]
    sampling: dict[str, Any]  # the settings of the build of the training shards
    frame_gap_seconds: float  # median of the training clips
    threshold: float = 0.5  # on P(crime), calibrated
    threshold_target: str = ""  # what the threshold was chosen for, on validation; "": not chosen
    calibration: dict[str, Any] = dataclasses.field(default_factory=dict)  # {}: P(crime) is as the model gives it
    # calibration, threshold and threshold_target of scores beside their video; None: not chosen
    relative: dict[str, Any] | None = None
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)  # of this epoch
    warnings: list[str] = dataclasses.field(default_factory=list)
    train_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    data_digests: dict[str, str] = dataclasses.field(default_factory=dict)  # shard folder → its digest
    train_videos: list[str] = dataclasses.field(default_factory=list)  # SPLIT/path of those trained on; []: not known
    packages: dict[str, str] = dataclasses.field(default_factory=dict)  # their versions
    git_commit: str = ""  # of the source tree, with "-dirty" where it was changed; "": not one
    run_state: dict[str, Any] = dataclasses.field(default_factory=dict)  # what else a resumed run needs

    def build_model(self) -> Stage1Model:
        """The model with its weights, in evaluation mode, on the CPU."""
        model = Stage1Model(ModelConfig.from_dict(self.model_config))
        model.load_state_dict(self.model_state_dict)
        return model.eval()

    def build_transform(self) -> ClipTransform:
        """The preprocessing the model was trained for, without augmentation."""
        return ClipTransform(TransformConfig.from_dict(self.transform_config).for_evaluation)

    def build_calibration(self) -> Calibration:
        """What turns the model's P(crime) into the one that `threshold` is about."""
        return Calibration(**self.calibration)

    @property
    def shape(self) -> ClipShape:
        """Shape of the clips the model was trained on."""
        return ClipShape(**self.clip_shape)


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Replace `path` by `checkpoint`; a kill or a full disk leaves the old file whole. Raises OSError."""
    with atomic.atomic_open(path) as file:
        _write(file, checkpoint)


def save_last(folder: Path, checkpoint: Checkpoint) -> None:
    """Make `checkpoint` the last one of the run in `folder`, and the last one so far the previous one. Raises OSError.

    Whenever it is killed, one of the two files is whole.
    """
    last = folder / LAST_NAME
    with atomic.atomic_open(last) as file:
        _write(file, checkpoint)
        file.flush()
        os.fsync(file.fileno())
        if last.is_file():
            last.replace(folder / PREVIOUS_NAME)


def load_last(folder: Path) -> tuple[Checkpoint, str | None]:
    """The last checkpoint of the run in `folder`, or else the previous one, with a warning that says so.

    Raises UserError when neither can be read.
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
            raise error from None  # of the newest
        why = str(error).partition(";")[0] if last.is_file() else f"there is no {last}: the run was killed while saving"
        return saved, f"{why}; going on from {previous.name}, after {saved.step} steps"


def load_checkpoint(path: Path, map_location: str | torch.device = "cpu") -> Checkpoint:
    """Read a checkpoint. Raises UserError when there is none, or the file is damaged or something else."""
    if not path.is_file():
        raise UserError(f"no checkpoint {path}: train one with `stage1 train`, or name one with --checkpoint FILE")
    data = path.read_bytes()
    payload, digest = data[:-_DIGEST_LINE_SIZE], _digest_at_the_end(data)
    if digest is not None and hashlib.sha256(payload).hexdigest().encode() != digest:
        raise UserError(f"{path} is damaged: its SHA-256 is not the one that it was written with; {_REPLACE_IT}")
    try:
        fields = torch.load(io.BytesIO(data), map_location=map_location, weights_only=True)
    except Exception as error:  # torch, zipfile and pickle raise a dozen kinds on other files
        reason = str(error).split("\n")[0].split(". ")[0][:120]
        raise UserError(f"{path} is no stage1 checkpoint, or is damaged ({reason}); expected {_EXPECTED}") from error
    if not isinstance(fields, dict) or fields.pop("format", None) != CHECKPOINT_FORMAT:
        raise UserError(f"{path} is no stage1 checkpoint, though torch can read it; expected {_EXPECTED}")
    version = fields.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} is a stage1 checkpoint of format version {version}, this stage1 reads version {FORMAT_VERSION}; "
            "install the one that wrote it, or train again"
        )
    if digest is None:
        raise UserError(f"{path} is damaged: the line with its SHA-256 is not at its end; {_REPLACE_IT}")
    try:
        return Checkpoint(**fields)
    except TypeError as error:
        raise UserError(f"{path} is a stage1 checkpoint that lacks or has an unknown field: {error}") from error


def _write(file: IO[bytes], checkpoint: Checkpoint) -> None:
    fields = {field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)}
    hashing = _HashingFile(file)
    torch.save({"format": CHECKPOINT_FORMAT, "format_version": FORMAT_VERSION, **fields}, cast(IO[bytes], hashing))
    file.write(_DIGEST_LINE % hashing.sha256.hexdigest().encode())


class _HashingFile(io.RawIOBase):
    """Passes on what is written, and takes its SHA-256 on the way."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha256 = file, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return self.file.write(data)


def _digest_at_the_end(data: bytes) -> bytes | None:
    match = re.fullmatch(re.escape(_DIGEST_LINE).replace(b"%s", b"([0-9a-f]{64})"), data[-_DIGEST_LINE_SIZE:])
    return match[1] if match else None


_REPLACE_IT = "take a copy that is whole, or train again"
_EXPECTED = f"a file such as {BEST_NAME}, written by `stage1 train`"
