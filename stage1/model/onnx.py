"""ONNX export of a checkpoint, with preprocessing and calibration: uint8 clips in, P(crime) and attention out."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from stage1.common import files
from stage1.data.epoch_plan import evenly_spaced
from stage1.data.reader import ClipReader
from stage1.model.checkpoint import Checkpoint, check_clip_shape, load_checkpoint
from vidshard.shards import layout
from vidshard.storage.urls import Location
from vidshard.util import atomic
from vidshard.util.errors import UserError
from vidshard.util.hashing import file_sha256
from vidshard.util.text import counted

TOLERANCE = 1e-4
logger = logging.getLogger(__name__)

NUM_CHECKED = 32
_BATCH = 4
INPUT, OUTPUTS = "clips", ("probabilities", "attention")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportReport:
    """Result of an export: the file, and its largest differences from the checkpoint on the checked clips."""

    path: Path
    num_checked: int
    probability_difference: float  # largest absolute difference of P(crime)
    attention_difference: float  # largest absolute difference of the attention

    @property
    def summary(self) -> str:
        return (
            f"✓ {self.path}: on {counted(self.num_checked, 'clip')} within {self.probability_difference:.1e} "
            f"(P(crime)) and {self.attention_difference:.1e} (attention) of the checkpoint"
        )


class WholeModel(nn.Module):
    """Preprocessing, model and calibration in one module: uint8 (B, T, H, W, 3) → P(crime) (B,), attention (B, T')."""

    scale: torch.Tensor
    offset: torch.Tensor

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.model = checkpoint.build_model()
        calibration = checkpoint.build_calibration()
        self.temperature, self.shift = calibration.temperature, calibration.shift
        config = checkpoint.build_transform().config
        self.register_buffer("scale", (255 * torch.tensor(config.std)).reciprocal().view(1, 3, 1, 1, 1))
        self.register_buffer("offset", (-torch.tensor(config.mean) / torch.tensor(config.std)).view(1, 3, 1, 1, 1))

    def forward(self, clips_BTHWC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return calibrated P(crime), float (B,), and attention, float (B, T'), of uint8 clips."""
        clips_BCTHW = clips_BTHWC.permute(0, 4, 1, 2, 3).float() * self.scale + self.offset
        logits_BK, attention_BT = self.model(clips_BCTHW)
        normal, crime = layout.NORMAL_LABEL, layout.CRIME_LABEL
        log_odds_B = (logits_BK[:, crime] - logits_BK[:, normal]) / self.temperature + self.shift
        return log_odds_B.sigmoid(), attention_BT


def export(
    checkpoint_path: Path, out: Path, *, shards: Location | None = None, num_checked: int = NUM_CHECKED
) -> ExportReport:
    """Export a checkpoint to the ONNX file `out`, after checking that onnxruntime reproduces its outputs.

    The check uses `num_checked` evenly spaced clips of `shards`, or random noise. Raises UserError if packages are
    missing, if clips of the shards do not fit the checkpoint, or if an output differs by more than 1e-4.
    """
    _onnxruntime()  # report missing packages before the long export
    checkpoint = load_checkpoint(checkpoint_path)
    model = WholeModel(checkpoint).eval()
    clips = _clips_to_check(checkpoint, checkpoint_path, shards, num_checked)
    logger.info("Exporting and checking the model, which takes up to a minute")
    data = _to_onnx(model, checkpoint, file_sha256(checkpoint_path))
    differences = np.zeros(2)
    run = _run_by_onnxruntime(data, checkpoint_path)
    for first in range(0, len(clips), _BATCH):
        batch = clips[first : first + _BATCH]
        with torch.inference_mode():
            expected = [value.numpy() for value in model(torch.from_numpy(batch))]
        got = run(batch)
        differences = np.maximum(differences, [np.abs(a - b).max() for a, b in zip(got, expected, strict=True)])
    if not (differences <= TOLERANCE).all():
        raise UserError(
            f"onnxruntime differs from {checkpoint_path} by {differences[0]:.1e} in P(crime) and {differences[1]:.1e} "
            f"in attention, expected at most {TOLERANCE:.0e}; nothing was written; try another version of onnxruntime"
        )
    with files.hold_out(out.parent, name=f".{out.name}.lock"):
        atomic.write_bytes(out, data)
    return ExportReport(
        path=out,
        num_checked=len(clips),
        probability_difference=float(differences[0]),
        attention_difference=float(differences[1]),
    )


def _run_by_onnxruntime(data: bytes, checkpoint_path: Path) -> Callable[[npt.NDArray[np.uint8]], Any]:
    """Return a function that runs the ONNX file `data`; it raises UserError if onnxruntime cannot load or run it."""
    session = None

    def run(clips: npt.NDArray[np.uint8]) -> Any:
        nonlocal session
        try:
            if session is None:
                session = _onnxruntime().InferenceSession(data, providers=["CPUExecutionProvider"])
            return session.run(list(OUTPUTS), {INPUT: clips})
        except Exception as error:  # onnxruntime's exceptions have no common base class
            reason = str(error).partition("\n")[0][:200]
            raise UserError(
                f"onnxruntime cannot run the export of {checkpoint_path} ({reason}); nothing was written; try another "
                "version of onnxruntime, or a model with `backbone` stage1"
            ) from error

    return run


def _onnxruntime() -> Any:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install 'vidshard[onnx]'") from error
    return onnxruntime


def _clips_to_check(checkpoint: Checkpoint, path: Path, shards: Location | None, count: int) -> npt.NDArray[np.uint8]:
    shape = checkpoint.shape
    if shards is None:
        return np.random.default_rng(0).integers(0, 256, (min(count, NUM_CHECKED), *shape.thwc), np.uint8)
    reader = ClipReader(shards)
    check_clip_shape(checkpoint, path, reader.clip_shape, where=str(shards))
    rows = evenly_spaced(len(reader), count)
    clips = np.empty((len(rows), *shape.thwc), np.uint8)
    reader.read_clips(rows, clips)
    return clips


def _to_onnx(model: WholeModel, checkpoint: Checkpoint, sha256: str) -> bytes:
    """Convert the model to an ONNX file for any batch size, with its origin as metadata, and return its bytes."""
    example = torch.zeros((2, *checkpoint.shape.thwc), dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _quiet_logs():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            dynamic_shapes={"clips_BTHWC": {0: batch}},
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            custom_translation_table={torch.ops.aten.mean.dim: _mean_in_double()},
            optimize=False,  # the optimiser removes additions of 1e-8; onnxruntime optimises by itself
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    facts = {
        "checkpoint_sha256": sha256,
        "threshold": checkpoint.threshold,
        "clip_shape": list(checkpoint.shape.thwc),
        "sampling": checkpoint.sampling,
        "frame_gap_seconds": checkpoint.frame_gap_seconds,
        "attention_frame_ranges": model.model.attention_frame_ranges(checkpoint.shape.num_frames),
    }
    for name, value in facts.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = f"stage1.{name}", value if isinstance(value, str) else json.dumps(value)
    data: bytes = proto.SerializeToString()
    return data


def _mean_in_double() -> Callable[..., Any]:
    """Return the ONNX operators of a mean in double precision.

    onnxruntime sums sequentially. In single precision the error of a sum over all pixels of a clip would change the
    motion features of nearly still clips.
    """
    import onnx
    import onnxscript

    operators: Any = onnxscript.opset18

    def mean(x: Any, dim: Any, keepdim: bool = False, dtype: int = -1) -> Any:
        doubles = operators.Cast(x, to=onnx.TensorProto.DOUBLE)
        return operators.Cast(operators.ReduceMean(doubles, dim, keepdims=keepdim), to=onnx.TensorProto.FLOAT)

    return mean


@contextlib.contextmanager
def _quiet_logs() -> Any:
    """Disable logging in the block, because the exporter warns about operators that are not needed here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
