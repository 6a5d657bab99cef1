"""Contact sheet of augmented clips, to check augmentation before training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from stage1.common import files, plots
from stage1.data.reader import ClipReader, Pixels
from stage1.data.transforms import ClipTransform, TransformConfig
from vidshard.storage.urls import Location
from vidshard.util.errors import UserError

NUM_CLIPS, NUM_VIEWS, NUM_FRAMES = 6, 7, 8


def preview_augment(shards: Location, transform: TransformConfig, path: Path, *, seed: int = 0) -> Path:
    """Write a PNG to `path` that shows clips, drawn by `seed`, without augmentation and as in the first epochs.

    It shows the middle frame of every clip, and below them one clip over time. Raises UserError without clips.
    """
    with files.hold_out(path.parent, name=f".{path.name}.lock"):
        return _preview_augment(shards, transform, path, seed)


def _preview_augment(shards: Location, transform: TransformConfig, path: Path, seed: int) -> Path:
    if path.is_dir():
        raise UserError(f"`out` {path} is a folder, expected the PNG to write, such as {path / 'augmentation.png'}")
    reader = ClipReader(shards)
    if not len(reader):
        raise UserError(f"{shards} contains no clips to show; list the failures with `vidshard inspect {shards}`")
    rows = np.sort(np.random.default_rng(seed).permutation(len(reader))[:NUM_CLIPS])
    clips_BTHWC = np.empty((len(rows), *reader.clip_shape.thwc), np.uint8)
    reader.read_clips(rows, clips_BTHWC)
    views = [augmented(clips_BTHWC, rows, transform, seed=seed, epoch=epoch) for epoch in range(NUM_VIEWS)]
    middle = reader.clip_shape.num_frames // 2
    sheet = [[clips_BTHWC[b, middle], *(view[b, middle] for view in views)] for b in range(len(rows))]
    shown = np.linspace(0, reader.clip_shape.num_frames - 1, NUM_FRAMES).round().astype(int)
    strips = [[clip[frame] for frame in shown] for clip in (clips_BTHWC[0], views[0][0], views[1][0])]
    plots.plot_sheet(
        [*sheet, *strips],
        row_names=[
            *(reader.index.key(int(row)) for row in rows),
            "the first clip over time, from left to right: original",
            "in epoch 1",
            "in epoch 2",
        ],
        column_names=["original", *(f"epoch {epoch + 1}" for epoch in range(NUM_VIEWS))],
        path=path,
    )
    return path


def augmented(
    clips_BTHWC: Pixels, rows: npt.NDArray[np.int64], transform: TransformConfig, *, seed: int, epoch: int
) -> Pixels:
    """Return clips as augmented in `epoch` of a run with `seed`, as uint8 pixels (B, T, H, W, C)."""
    as_pixels = dataclasses.replace(transform, augment=True, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    clips_BCTHW = ClipTransform(as_pixels, seed=seed)(torch.from_numpy(clips_BTHWC), torch.from_numpy(rows), epoch)
    pixels: Pixels = (clips_BCTHW * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 4, 1).numpy()
    return pixels
