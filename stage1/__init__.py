"""Classify clips read from shards as normal or crime, with 3D convolutions and attention over the frames."""
# ruff: noqa: F403, F405  # the names of `__all__` come from `api`; tests/test_public_api.py looks each of them up

import importlib
from typing import TYPE_CHECKING, Any

from vidshard import __version__

if TYPE_CHECKING:
    from stage1.api import *

__all__ = [
    "AttentionData", "Batch", "Checkpoint", "ClipLoader", "ClipReader", "Detection", "EvaluateConfig",
    "EvaluateReport", "EventConfig", "InferConfig", "InferReport", "ModelConfig", "RunStopped", "ScoresConfig",
    "ScoresReport", "Stage1Model", "TrainConfig", "TransformConfig", "__version__", "evaluate", "infer",
    "load_attention_data", "load_checkpoint", "train", "visualize",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load the public API on first use: importing the package alone must not load torch."""
    if name in __all__:
        return getattr(importlib.import_module("stage1.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
