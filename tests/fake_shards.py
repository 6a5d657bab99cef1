"""A small valid shard folder made from arrays: for tests of what reads shards, without any video."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vidshard import atomic, manifest, shard_format
from vidshard.shard_format import ClipShape, SampleRecord

CLASS_OF_LABEL = {0: "NormalVideos", 1: "Fighting", -1: None}


def write_shards(
    folder: Path,
    clips: npt.NDArray[np.uint8],
    labels: Sequence[int],
    *,
    class_names: Sequence[str | None] | None = None,
    split: str | None = None,
    settings: dict[str, Any] | None = None,
    clips_per_shard: int = 8,
    clips_per_video: int = 1,
    frame_gap_seconds: float = 0.1,
    source_groups: Sequence[str | None] | None = None,
    prefix: str = "",
    codec: str = "raw",
) -> Path:
    """Write `clips` (N, T, H, W, 3) as the shard folder `folder` and return it.

    Clip i is clip ``i % clips_per_video`` of video ``i // clips_per_video``, at ``CLASS/video-000.mp4`` (`prefix` comes
    before ``video``). Labels, classes and source groups are one a clip; classes follow from the labels by default.
    """
    num_frames, height, width = clips.shape[1:4]
    shape = ClipShape(num_frames=num_frames, height=height, width=width)
    names = class_names if class_names is not None else [CLASS_OF_LABEL[int(label)] for label in labels]
    groups = source_groups if source_groups is not None else [None] * len(clips)
    records = [
        SampleRecord(
            path="/".join(part for part in (names[i], f"{prefix}video-{i // clips_per_video:03d}.mp4") if part),
            class_name=names[i],
            label=int(labels[i]),
            split=split,
            clip_index=i % clips_per_video,
            frame_indices=tuple(range(num_frames)),
            timestamps_seconds=tuple(frame * frame_gap_seconds for frame in range(num_frames)),
            frame_gap_seconds=frame_gap_seconds,
            fps=1 / frame_gap_seconds if frame_gap_seconds else 0.0,
            num_frames=num_frames * clips_per_video,
            decoder="decord",
            repeated_frames=0,
            source_group=groups[i],
        )
        for i in range(len(clips))
    ]
    classes, splits, group_names = _table(names), _table([split]), _table(groups)
    paths = list(dict.fromkeys(record.path for record in records))

    folder.mkdir(parents=True, exist_ok=True)
    clip_rows = np.zeros(len(clips), manifest.CLIP_ROW)
    video_rows = np.zeros(len(paths), manifest.VIDEO_ROW)
    shards: list[manifest.Shard] = []
    for first in range(0, len(clips), clips_per_shard):
        data = bytearray()
        for row in range(first, min(first + clips_per_shard, len(clips))):
            record = records[row]
            sample, member = shard_format.encode_sample(record, clips[row], codec=codec)
            clip_rows[row] = (
                len(shards),
                len(data) + member.offset,
                member.size,
                member.crc32,
                paths.index(record.path),
                record.clip_index,
                record.label,
                0,
                record.frame_gap_seconds,
            )
            video_rows[paths.index(record.path)] = (
                _row(classes, record.class_name),
                _row(splits, record.split),
                _row(group_names, record.source_group),
                0,
                record.num_frames,
                width,
                height,
                record.fps,
            )
            data += sample
        data += shard_format.end_of_shard()
        name = shard_format.shard_name(len(shards))
        atomic.write_bytes(folder / name, bytes(data))
        digest = hashlib.sha256(data).hexdigest()
        num_samples = min(clips_per_shard, len(clips) - first)
        shards.append(manifest.Shard(name=name, bytes=len(data), samples=num_samples, sha256=digest))

    index_data = manifest.Index(
        clips=clip_rows,
        videos=video_rows,
        paths=paths,
        classes=classes,
        splits=splits,
        source_groups=group_names,
        decoders=["decord"],
    ).to_bytes()
    kinds = sorted({(record.class_name or "", record.label) for record in records})
    manifest.write_index_and_manifest(
        folder,
        manifest.Manifest(
            split=split,
            clip_shape=shape,
            codec=codec,
            settings=settings or {"mode": "uniform", "clip_len": num_frames, "clips_per_video": clips_per_video},
            packages={"numpy": np.__version__},
            classes=tuple(
                manifest.ClassCount(
                    name=name or None,
                    label=label,
                    videos=len({r.path for r in records if (r.class_name or "", r.label) == (name, label)}),
                    clips=sum((r.class_name or "", r.label) == (name, label) for r in records),
                )
                for name, label in kinds
            ),
            videos_found=len(paths),
            videos_ok=len(paths),
            failures=(),
            shards=tuple(shards),
            index_bytes=len(index_data),
            index_sha256=hashlib.sha256(index_data).hexdigest(),
        ),
        index_data,
    )
    return folder


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


def _table(values: Sequence[str | None]) -> list[str]:
    return sorted({value for value in values if value is not None})


def _row(table: Sequence[str], value: str | None) -> int:
    return table.index(value) if value is not None else -1
