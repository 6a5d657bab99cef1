"""Checkpoints made by others: with a different layout, with impossible values, or larger in memory than on disk."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from inference_runs import place as place
from inference_runs import stage1
from stage1.common.files import DEFAULT_CHECKPOINT

Change = Callable[[dict[str, Any]], None]
DIGEST_LINE = b"\nstage1 checkpoint, SHA-256 of the bytes before this line: %s\n"


def sign(data: bytes) -> bytes:
    """Append the digest that marks the file as intact, which anybody can compute."""
    return data + DIGEST_LINE % hashlib.sha256(data).hexdigest().encode()


def rewrite(path: Path, change: Change) -> None:
    fields = torch.load(path, weights_only=True)
    change(fields)
    buffer = io.BytesIO()
    torch.save(fields, buffer)
    path.write_bytes(sign(buffer.getvalue()))


def set_field(*names: str, value: Any) -> Change:
    def change(fields: dict[str, Any]) -> None:
        for name in names[:-1]:
            fields = fields[name]
        fields[names[-1]] = value

    return change


def rename_weights(fields: dict[str, Any]) -> None:
    fields["model_state_dict"] = {f"module.{k}": v for k, v in fields["model_state_dict"].items()}


def share_one_number(fields: dict[str, Any]) -> None:
    """Claim three gigabytes of weights that are one number of the file."""
    fields["model_config"]["attention_units"] = 1 << 25
    fields["model_state_dict"]["attention.hidden.weight"] = torch.zeros(1).expand(1 << 25, 16)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (rename_weights, "its weights have a different layout"),
        (share_one_number, "has more numbers than the file"),
        (set_field("model_config", "channels", value=[1 << 20, 1 << 20]), "expected torch.float32 (1048576,"),
        (set_field("model_config", "groups", value=0), "groups is 0, expected 1 or more"),
        (set_field("model_config", "channels", value="8"), "channels is '8'"),
        (set_field("transform_config", "mean", value=["a", 0.0, 0.0]), "mean is ['a', 0.0, 0.0]"),
        (set_field("model_state_dict", "classifier.bias", value=torch.tensor([0.0, torch.nan])), "not finite"),
        (set_field("model_state_dict", "classifier.bias", value=[0.0, 0.0]), "expected torch.float32 (2,)"),
        (set_field("epoch", value="3"), "epoch is '3'"),
        (set_field("step", value=1 << 70), "step is 1180591620717411303424"),
        (set_field("model_config", "stem_stride", value=1 << 70), "stem_stride is 1180591620717411303424"),
        (set_field("model_config", "motion_gain", value=1 << 70), "motion_gain is 1180591620717411303424"),
        (set_field("threshold", value=float("nan")), "threshold is nan"),
        (set_field("calibration", value={"temperature": "hot"}), "temperature is 'hot'"),
        (set_field("clip_shape", value={"num_frames": 0, "height": 1, "width": 1}), "positive whole numbers"),
        (set_field("train_videos", value=7), "train_videos is 7"),
        (set_field("relative", value={"threshold": 0.5}), "'threshold_target'"),
    ],
)
def test_a_field_that_cannot_be_is_one_line(place: Path, change: Change, why: str) -> None:
    rewrite(place / DEFAULT_CHECKPOINT, change)
    done = stage1("infer", "--device", "cpu")
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {DEFAULT_CHECKPOINT} ")
    assert why in done.stderr


def test_an_archive_that_unpacks_to_more_than_the_file_is_not_unpacked(place: Path) -> None:
    path = place / DEFAULT_CHECKPOINT
    rewrite(path, set_field("run_state", value={"zeros": torch.zeros(1 << 25)}))
    packed = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    path.write_bytes(sign(packed.getvalue()))
    assert path.stat().st_size < 1 << 20
    done = stage1("infer", "--device", "cpu")
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: {DEFAULT_CHECKPOINT} is not a stage1 checkpoint, or is damaged")
