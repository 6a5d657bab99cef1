"""Shared by tests: detection."""

from __future__ import annotations

from typing import Any

from stage1.inference.outputs import Detection


def detection(**changes: Any) -> Detection:
    fields: dict[str, Any] = {
        "video_path": "/videos/Fighting/a.mp4",
        "key": "Fighting__a-000002",
        "source": "Fighting/a.mp4",
        "clip_index": 2,
        "class_name": "Fighting",
        "label": 1,
        "split": "Test",
        "confidence": 0.75,
        "attention_weights": (0.1, 0.4, 0.1, 0.2, 0.1, 0.1),
        "frame_indices": (0, 2, 4, 6, 8, 10),
        "seconds": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
        "fps": 10.0,
    }
    return Detection(**{**fields, **changes})
