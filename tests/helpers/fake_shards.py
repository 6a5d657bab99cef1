"""Small valid shard folders made from arrays, without videos, for tests of shard readers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vidshard.shards import layout
from vidshard.shards.layout import SampleRecord
from vidshard.shards.set_writer import ShardSetWriter

CLASS_OF_LABEL = {0: "NormalVideos", 1: "Fighting", -1: None}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Layout of the clips of `write_shards`. Classes and source groups are given per clip."""

    class_names: Sequence[str | None] | None = None  # default: those of the labels
    split: str | None = None
    settings: dict[str, Any] | None = None
    clips_per_shard: int = 8
    clips_per_video: int = 1
    consecutive: bool = False  # the clips of a video follow one another; otherwise all have its first frames
    frame_gap_seconds: float = 0.1
    source_groups: Sequence[str | None] | None = None
    prefix: str = ""  # of the names of videos
    codec: str = "raw"


def write_shards(folder: Path, clips: npt.NDArray[np.uint8], labels: Sequence[int], **options: Any) -> Path:
    """Write `clips` (N, T, H, W, 3) with a label each as the shard folder `folder` and return it; see `Options`.

    Clip i is clip ``i % clips_per_video`` of video ``i // clips_per_video``, at ``CLASS/PREFIXvideo-000.mp4``.
    """
    o = Options(**options)
    num_frames, height, width = clips.shape[1:4]
    names = o.class_names if o.class_names is not None else [CLASS_OF_LABEL[int(label)] for label in labels]
    groups = o.source_groups if o.source_groups is not None else [None] * len(clips)

    def frames_of(clip: int) -> tuple[int, ...]:
        first = clip % o.clips_per_video * num_frames * o.consecutive
        return tuple(range(first, first + num_frames))

    records = [
        SampleRecord(
            path="/".join(part for part in (names[i], f"{o.prefix}video-{i // o.clips_per_video:03d}.mp4") if part),
            class_name=names[i],
            label=int(labels[i]),
            split=o.split,
            clip_index=i % o.clips_per_video,
            frame_indices=frames_of(i),
            timestamps_seconds=tuple(frame * o.frame_gap_seconds for frame in frames_of(i)),
            frame_gap_seconds=o.frame_gap_seconds,
            fps=1 / o.frame_gap_seconds if o.frame_gap_seconds else 0.0,
            num_frames=num_frames * o.clips_per_video,
            decoder="decord",
            repeated_frames=0,
            recording=groups[i],
        )
        for i in range(len(clips))
    ]
    sample_bytes = len(encoded(records[0], clips[0], codec=o.codec)) if records else 1
    with ShardSetWriter(
        folder,
        clip_len=num_frames,
        size=(height, width),
        split=o.split,
        codec=o.codec,
        settings=o.settings or {"mode": "uniform", "clip_len": num_frames, "clips_per_video": o.clips_per_video},
        shard_mb=o.clips_per_shard * sample_bytes / 2**20,
    ) as writer:
        for record, clip in zip(records, clips, strict=True):
            writer.append(record, clip)
    return folder


def encoded(record: SampleRecord, clip: npt.NDArray[np.uint8], *, codec: str = "raw") -> bytes:
    """Return the members of a sample."""
    return b"".join(layout.encode_pieces(record, clip, codec=codec)[0])


def random_clips(num_clips: int, *, shape: tuple[int, int, int] = (4, 16, 16), seed: int = 0) -> npt.NDArray[np.uint8]:
    """Noise clips, uint8 (N, T, H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (num_clips, *shape, 3), np.uint8)


def moving_clips(num_clips: int, *, shape: tuple[int, int, int] = (8, 16, 16), seed: int = 0) -> tuple[Any, list[int]]:
    """Clips and labels that a network learns in seconds: the odd ones (label 1) flicker in the second half."""
    generator = np.random.default_rng(seed)
    num_frames, height, width = shape
    background = generator.integers(60, 180, (num_clips, 1, height, width, 3))
    clips = np.repeat(background, num_frames, axis=1)
    labels = [i % 2 for i in range(num_clips)]
    for i in range(1, num_clips, 2):
        clips[i, num_frames // 2 :: 2] += 60
    return clips.astype(np.uint8), labels
