"""Checkpoints: all that rebuilds the model and its preprocessing, and all that resumes a run.

Written whole or not at all, and read with ``weights_only=True``: a checkpoint from somebody else runs no code.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from stage1.calibration import Calibration
from stage1.files import BEST_NAME
from stage1.model import ModelConfig, Stage1Model
from stage1.transforms import ClipTransform, TransformConfig
from vidshard import atomic
from vidshard.errors import UserError
from vidshard.shard_format import ClipShape

FORMAT_NAME = "stage1 checkpoint"
FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a checkpoint holds: tensors, numbers, strings, and lists and dicts of these."""

    epoch: int  # how many epochs were done
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
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)  # of this epoch
    warnings: list[str] = dataclasses.field(default_factory=list)
    train_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    data_digests: dict[str, str] = dataclasses.field(default_factory=dict)  # shard folder → its digest
    train_videos: list[str] = dataclasses.field(default_factory=list)  # SPLIT/path of those trained on; []: not known
    packages: dict[str, str] = dataclasses.field(default_factory=dict)
    run_state: dict[str, Any] = dataclasses.field(default_factory=dict)  # random numbers and best so far, to go on

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
    fields = {field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)}
    with atomic.atomic_open(path) as file:
        torch.save({"format": FORMAT_NAME, "format_version": FORMAT_VERSION, **fields}, file)


def load_checkpoint(path: Path, map_location: str | torch.device = "cpu") -> Checkpoint:
    """Read a checkpoint. Raises UserError when there is none, or the file is damaged or something else."""
    if not path.is_file():
        raise UserError(f"no checkpoint {path}: train one with `stage1 train`, or name one with --checkpoint FILE")
    try:
        fields = torch.load(path, map_location=map_location, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch, zipfile and pickle raise a dozen kinds on other files
        reason = str(error).split("\n")[0].split(". ")[0][:120]
        raise UserError(f"{path} is no stage1 checkpoint, or is damaged ({reason}); expected {_EXPECTED}") from error
    if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT_NAME:
        raise UserError(f"{path} is no stage1 checkpoint, though torch can read it; expected {_EXPECTED}")
    version = fields.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} is a stage1 checkpoint of format version {version}, this stage1 reads version {FORMAT_VERSION}; "
            "install the one that wrote it, or train again"
        )
    try:
        return Checkpoint(**fields)
    except TypeError as error:
        raise UserError(f"{path} is a stage1 checkpoint that lacks or has an unknown field: {error}") from error


_EXPECTED = f"a file such as {BEST_NAME}, written by `stage1 train`"
