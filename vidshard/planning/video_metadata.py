"""Result of probing a video: its metadata, or the reason why it cannot be used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoMetadata:
    """Metadata of a video, as needed for planning and for the index."""

    num_frames: int
    fps: float
    width: int
    height: int
    num_clips: int
    damage: str | None = None  # result of the full check, if damaged videos are allowed
    breaks: int = 0  # moments at which the recording paused, or its clock was changed


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoFailure:
    """Reason why a video cannot be used: a code, and a message for people without absolute paths."""

    reason: str
    message: str

    num_frames = 0  # of a video without metadata
    num_clips = 0
    damage = None


Probe = VideoMetadata | VideoFailure


def probe_from_json(fields: Mapping[str, Any]) -> Probe:
    return VideoFailure(**fields) if "reason" in fields else VideoMetadata(**fields)
