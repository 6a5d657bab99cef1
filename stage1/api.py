"""Public functions of `stage1`: keyword options in, files and a report out."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from stage1.common import distributed
from stage1.data.loader import Batch, ClipLoader
from stage1.data.reader import ClipReader
from stage1.data.transforms import BatchTransform, TransformConfig
from stage1.evaluation import foreign_scores
from stage1.evaluation import run as evaluation
from stage1.evaluation.foreign_scores import ScoresConfig, ScoresReport
from stage1.evaluation.run import EvaluateConfig, EvaluateReport
from stage1.inference import attention_data
from stage1.inference import run as inference
from stage1.inference.attention_data import AttentionData
from stage1.inference.events import EventConfig
from stage1.inference.outputs import Detection
from stage1.inference.run import InferConfig, InferReport
from stage1.model import backbones, checkpoint
from stage1.model.checkpoint import Checkpoint
from stage1.model.config import SIZES, ModelConfig
from stage1.model.network import Stage1Model
from stage1.review import film_strip
from stage1.review.config import VisualizeConfig
from stage1.training import config as training_options
from stage1.training import loop
from stage1.training.config import PRESETS, TrainConfig
from stage1.training.loop import RunStopped
from vidshard.util.errors import UserError
from vidshard.util.options import check_names, make_config

__all__ = [
    "AttentionData", "Batch", "Checkpoint", "ClipLoader", "ClipReader", "Detection", "EvaluateConfig",
    "EvaluateReport", "EventConfig", "InferConfig", "InferReport", "ModelConfig", "RunStopped", "ScoresConfig",
    "ScoresReport", "Stage1Model", "TrainConfig", "TransformConfig", "evaluate", "infer", "load_attention_data",
    "load_checkpoint", "train", "visualize",
]  # fmt: skip

PathLike = str | os.PathLike[str]
BatchFunction = Callable[[torch.Tensor], torch.Tensor]  # float (B, 3, T, H, W) → the same


def train(
    config: TrainConfig | PathLike | None = None,
    *,
    transform: TransformConfig | Mapping[str, Any] | BatchFunction | None = None,
    **options: Any,
) -> Path:
    """Train a model on shards and return the path of its checkpoint, the best epoch by validation AUC.

    ``stage1.train(shards="shards/Train", epochs=20)`` does what ``stage1 train --shards shards/Train --epochs 20`` does
    and prints the same lines.

    Args:
        config: A `TrainConfig`; then pass no options. Or the path of a TOML file of options, such as the run.toml of
            a run.
        transform: A `TransformConfig` or a mapping of its fields; or a function that replaces the augmentation. It is
            called on float32 (B, 3, T, H, W), RGB in [0, 1], on the device, and returns float (B, 3, T, H', W'). The
            result is normalised by ``mean`` and ``std`` of the `TransformConfig`. Validation and inference normalise
            only. A resumed run needs the function again, and reproduces its random numbers only from the start of an
            epoch.
        options: Fields of `TrainConfig`: ``shards``, ``val_shards``, ``out``, ``epochs``, ``batch_size`` in clips,
            ``lr``, ``model={"dropout": 0.3}``, … Also ``preset``, ``model_size`` and ``backbone``, as on the command
            line.

    Returns:
        Path: ``<out>/binary_stage1_with_attention.pt``.

    Raises:
        UserError: An unknown option, a bad value, or unusable shards. An earlier run in `out` is moved aside.
        RunStopped: Ctrl-C, SIGTERM or SIGUSR1 arrived. A checkpoint was saved; call again with ``resume=True``.
    """
    function = transform if callable(transform) else None
    if transform is not None and function is None:
        options["transform"] = transform
    if isinstance(config, TrainConfig):
        check_names(options, (), function="train with a TrainConfig")
    else:
        config = _train_config(options, {} if config is None else training_options.read_toml(Path(config)))
    return loop.train(config, transform=None if function is None else BatchTransform(function, config.transform))


def _train_config(options: dict[str, Any], from_file: dict[str, Any]) -> TrainConfig:
    """Merge options in the order of the command: preset, file, network, then the options that are passed."""
    preset, size = options.pop("preset", "default"), options.pop("model_size", None)
    for name, value, known in (("preset", preset, PRESETS), ("model_size", size or "base", SIZES)):
        if value not in known:
            raise UserError(f"{name} is {value!r}, expected one of {', '.join(known)}")
    network: dict[str, Any] = {} if size is None else {"model": SIZES[size]}
    if options.keys() & {"backbone", "weights"}:
        name, weights = options.pop("backbone", "stage1"), options.pop("weights", None)
        found = backbones.training_options(name, weights, confirm=backbones.never)
        network = training_options.merge(network, found)
    return training_options.make_config(training_options.merge(PRESETS[preset], from_file, network, options))


def infer(config: InferConfig | None = None, **options: Any) -> InferReport | None:
    """Score every clip of a shard set, or of videos, and write the detections with their attention.

    ``stage1.infer(shards="shards/Test", checkpoint=checkpoint)`` does what ``stage1 infer --shards shards/Test
    --checkpoint …`` does. ``print(report.summary)`` shows what the command prints at its end.

    Args:
        config: An `InferConfig`; then pass no options.
        options: Fields of `InferConfig`: ``shards`` or ``videos`` (files, folders or globs), ``checkpoint``, ``out``,
            ``threshold`` of P(crime), ``batch_size`` in clips, … Also ``event_low_ratio``, ``event_top_share``,
            ``event_smooth_seconds`` and ``event_min_seconds``.

    Returns:
        InferReport: ``detections`` (a list of `Detection`), ``videos`` (scores per second and events), ``metrics`` if
        clips have labels, ``files`` (the paths of the outputs) and ``unscored`` (key of a damaged clip → reason).
        None on ranks other than 0 of a distributed run.

    Raises:
        UserError: An unknown option, a bad value, or a checkpoint that does not fit the shards.
    """
    if config is None:
        names = [field.name for field in dataclasses.fields(EventConfig)]
        events = {name: options.pop(f"event_{name}") for name in names if f"event_{name}" in options}
        if events:
            options["events"] = dataclasses.replace(options.get("events", EventConfig()), **events)
        if options.get("videos") and "shards" in options:
            raise UserError("shards and videos cannot be combined: pass one of them")
        config = make_config(InferConfig, options, function="infer")
    else:
        check_names(options, (), function="infer with an InferConfig")
    return inference.infer(config)


def evaluate(config: EvaluateConfig | ScoresConfig | None = None, **options: Any) -> EvaluateReport | ScoresReport:
    """Evaluate a checkpoint on a shard set, or any model's scores against annotations, with 95 % confidence intervals.

    Args:
        config: An `EvaluateConfig` or `ScoresConfig`; then pass no options.
        options: Fields of `EvaluateConfig`: ``checkpoint``, ``shards``, ``val_shards``, ``target``, ``out``, … With
            ``scores`` (a path, or None for what a perfect scorer reaches), fields of `ScoresConfig`: ``annotations``, …

    Returns:
        EvaluateReport | ScoresReport: ``text`` is the table that the command prints; ``fields`` is the content of
        evaluation.json (docs/EVALUATION.md).

    Raises:
        UserError: An unknown option, a bad value, or unusable files.
    """
    distributed.expect_one_process("evaluate")  # several would all do the same work
    if config is not None:
        check_names(options, (), function=f"evaluate with a {type(config).__name__}")
    elif "scores" not in options:
        config = make_config(EvaluateConfig, options, function="evaluate")
    elif options.get("annotations") is None:
        raise UserError("scores need annotations: pass the file of the true events")
    else:
        config = make_config(ScoresConfig, options, function="evaluate with scores")
    if isinstance(config, ScoresConfig):
        return foreign_scores.evaluate_scores(config)
    return evaluation.evaluate(config)


def load_checkpoint(path: PathLike, map_location: str | torch.device = "cpu") -> Checkpoint:
    """Read a checkpoint written by `train`.

    ``checkpoint.build_model()`` is the `Stage1Model` with its weights, in evaluation mode on the CPU, or the average of
    several after training with `ensemble`, which is called in the same way;
    ``checkpoint.build_transform()`` turns uint8 clips (B, T, H, W, 3) into its input, float (B, 3, T, H, W).

    Args:
        path: The file.
        map_location: Device of the tensors.

    Raises:
        UserError: The file is missing, damaged or not a checkpoint.
    """
    return checkpoint.load_checkpoint(Path(path), map_location)


def load_attention_data(path: PathLike, *, for_training: bool = False) -> AttentionData:
    """Read the detections that `infer` wrote for stage 2.

    N detections of T frames: ``clips`` uint8 (N, T, H, W, 3), read from disk when indexed; ``attention_weights``
    float32 (N, T), each row summing to 1; ``frame_indices`` int64 (N, T) and ``seconds`` float64 (N, T) in the video;
    ``confidences`` float32 (N,), P(crime); ``labels`` int64 (N,); ``classes``, ``video_paths``, ``keys``: lists of N.

    Args:
        path: Output folder of `infer`, or its file of tensors or folder of attention shards.
        for_training: Refuse detections that stage 2 must not be trained on: those of the Test split, and of videos
        that the
            model was (or may have been) trained on.

    Raises:
        UserError: No such file, or its detections are refused. `FormatError`, a subclass, if it is damaged or another
        kind of file.
    """
    return attention_data.load_attention_data(path, for_training=for_training)


def visualize(folder: PathLike = "stage1_output") -> Path:
    """Draw the strongest detections of a run as film strips, with the attention of each frame.

    Args:
        folder: Output folder of `infer`.

    Returns:
        Path: ``<folder>/attention_visualization.png``. If there are no detections, the picture says so.

    Raises:
        UserError: The folder contains no finished run. `FormatError`, a subclass, if its files do not belong together.
    """
    return film_strip.visualize(VisualizeConfig(folder=Path(folder))).path
