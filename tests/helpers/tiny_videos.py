"""Tiny MP4s, made in milliseconds: a moving gradient of a given number of frames, for tests of the builder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import av
import numpy as np

FPS = 10


def make_tiny_videos(root: Path, num_frames: Mapping[str, int], *, size: tuple[int, int] = (64, 48)) -> Path:
    """Write a video for each path of `num_frames` (relative to `root`, of so many frames) and return `root`."""
    for seed, (path, count) in enumerate(num_frames.items()):
        make_tiny_video(root / path, count, seed=seed, size=size)
    return root


def make_tiny_video(
    path: Path,
    num_frames: int,
    *,
    seed: int = 0,
    size: tuple[int, int] = (64, 48),
    encoder: str = "libx264",
    break_before: int | None = None,  # frame that is shown ten minutes late, with all after it
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    ramp = np.add.outer(np.arange(height), np.arange(width))
    with av.open(str(path), "w", format="mp4") as output:
        options = {"g": "8", "preset": "ultrafast" if encoder == "libx264" else "12"}
        stream = output.add_stream(encoder, rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for i in range(num_frames):
            picture = np.stack([ramp * 2 + 7 * i, ramp + 31 * seed, ramp[::-1] + 3 * i], axis=-1).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = i + (600 * FPS if break_before is not None and i >= break_before else 0)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def make_broken_video(path: Path) -> None:
    """Write a file that is a video in name only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"this is no video\n" * 100)


def damage_pictures(path: Path) -> None:
    """Zero all pictures of a tiny video except the first; its tables, size and time stay the same."""
    status, data = path.stat(), bytearray(path.read_bytes())
    with av.open(str(path)) as video:
        places = [(packet.pos, packet.size) for packet in video.demux() if packet.size]
    for start, size in places[1:]:
        data[start + size // 2 : start + size] = bytes(size - size // 2)  # the head of the picture stays
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
