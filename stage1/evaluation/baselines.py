"""Shortcut baselines: file metadata, one frame, the border, motion numbers. A model must beat them to be meaningful.

Each baseline is fitted on the training clips and scores the clips on which the model is evaluated. Its score is the
mean of a logistic regression and a random forest, neither tuned. Everything is read from shards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stage1.data.epoch_plan import evenly_spaced
from stage1.data.reader import ClipReader
from stage1.metrics.clips import Array, Interval
from vidshard.shards.layout import Clip
from vidshard.util import console

MAJORITY = "majority"
BORDER_SHARE = 8  # the border is 1/8 of height and width on each side
CUT_CHANGE = 25.0  # mean change in grey levels between two frames that counts as a cut
REPEATED_CHANGE = 0.5  # largest change of a repeated frame: compression noise only
_SIDE = 32  # side of the small pictures that classifiers see
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_READ = 64  # clips in memory at once

Features = npt.NDArray[np.float32]


def score_shortcuts(
    train: ClipReader, train_rows: Sequence[int], test: ClipReader, test_rows: Sequence[int]
) -> dict[str, Array]:
    """Return P(crime) of the clips `test_rows` by each shortcut, fitted on `train_rows`. All clips must be labelled."""
    labels = train.labels[np.asarray(train_rows)]
    seen = [all_features(reader, rows) for reader, rows in ((train, train_rows), (test, test_rows))]
    scores = {MAJORITY: np.full(len(test_rows), float(labels.mean()))}
    for name in seen[0]:
        scores[name] = fit_and_score(seen[0][name], labels, seen[1][name])
    return scores


def fit_and_score(train: Features, labels: npt.NDArray[np.int64], test: Features) -> Array:
    """Return P(crime) of each row of `test`, [N]: the mean of two classifiers fitted on `train`."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    models: list[Any] = [
        make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=500, class_weight="balanced")),
        RandomForestClassifier(200, min_samples_leaf=2, class_weight="balanced", random_state=0),
    ]
    return np.asarray(
        np.mean([model.fit(train, labels).predict_proba(test)[:, 1] for model in models], axis=0), np.float64
    )


def flags(rows: Sequence[Mapping[str, Any]], metric: str) -> list[str]:
    """Return a warning for each shortcut that the model does not beat in a paired comparison at 95 %."""
    above = {row["name"]: Interval(**row["model_above"]) for row in rows}
    return [
        f"not above the shortcut {name!r}: {metric} differs by {interval.text()}"
        for name, interval in above.items()
        if interval.value is not None and not interval.above_zero
    ]


def some_rows(reader: ClipReader, *, per_video: int) -> list[int]:
    """Return index rows of labelled clips, at most `per_video` of each video, evenly spaced."""
    rows: list[int] = []
    for video in np.unique(reader.videos).tolist():
        own = np.flatnonzero((reader.videos == video) & (reader.labels >= 0))
        if len(own):
            rows += own[evenly_spaced(len(own), per_video)].tolist()
    return rows


def all_features(reader: ClipReader, rows: Sequence[int]) -> dict[str, Features]:
    """Compute the features [N, F] that each shortcut except the majority sees of these clips."""
    found: dict[str, list[Array]] = {name: [] for name in CLIP_FEATURES}
    with console.Progress("Shortcut baselines", total=len(rows), unit="clip") as progress:
        for first in range(0, len(rows), _READ):
            part = rows[first : first + _READ]
            clips = np.empty((len(part), *reader.clip_shape.thwc), np.uint8)
            reader.read_clips(part, clips)
            for clip in clips:
                for name, features in CLIP_FEATURES.items():
                    found[name].append(features(clip))
                progress.advance()
    metadata = {"file metadata": np.array([file_metadata(reader, row) for row in rows], np.float32)}
    return metadata | {name: np.array(values, np.float32) for name, values in found.items()}


# --- features of a clip: uint8 (T, H, W, 3) → [F] -----------------------------------------------------------------


def file_metadata(reader: ClipReader, row: int) -> list[float]:
    """Return video metadata (number of frames, size, frame rate, length) and the time between frames."""
    video = reader.index.videos[reader.videos[row]]
    num_frames, fps = float(video["num_frames"]), float(video["fps"])
    gap = float(reader.index.clips["frame_gap_seconds"][row])
    return [num_frames, float(video["width"]), float(video["height"]), fps, num_frames / fps if fps else 0.0, gap]


def first_frame(clip: Clip) -> Array:
    return frame_features(clip[0])


def border_only(clip: Clip) -> Array:
    """Describe the first frame with its interior blacked out: clocks, logos, bars, the edge of the scene."""
    frame = clip[0].copy()
    height, width = (max(1, side // BORDER_SHARE) for side in frame.shape[:2])
    frame[height:-height, width:-width] = 0
    return frame_features(frame)


def motion_numbers(clip: Clip) -> Array:
    """Return maximum, mean and deviation of the change between frames, and the ratio of maximum to median."""
    changes = frame_changes(clip) + 1e-6
    return np.log([changes.max(), changes.mean(), changes.std() + 1e-6, changes.max() / np.median(changes)])


def num_cuts(clip: Clip) -> Array:
    return np.array([(frame_changes(clip) >= CUT_CHANGE).sum()], np.float64)


def share_of_repeated_frames(clip: Clip) -> Array:
    return np.array([(frame_changes(clip) <= REPEATED_CHANGE).mean()], np.float64)


CLIP_FEATURES: dict[str, Callable[[Clip], Array]] = {
    "first frame": first_frame,
    "frame border": border_only,
    "four motion numbers": motion_numbers,
    "number of cuts": num_cuts,
    "share of repeated frames": share_of_repeated_frames,
}
SHORTCUTS = (MAJORITY, "file metadata", *CLIP_FEATURES)


def frame_changes(clip: Clip) -> Array:
    """Return the mean change in grey levels from each frame to the next, [T − 1]; [0] for a clip of one frame."""
    if len(clip) < 2:
        return np.zeros(1)
    small = _small(clip, 40)
    return np.asarray(np.abs(np.diff(small, axis=0)).mean((1, 2, 3)), np.float64)


def frame_features(frame: npt.NDArray[np.uint8]) -> Array:
    """Describe a frame (H, W, 3) by a small grey picture, gradient directions (HOG), colours and texture."""
    grey = _small(frame[None], _SIDE)[0] @ _LUMA / 255.0
    dy, dx = np.gradient(grey)
    angles, strengths = np.arctan2(dy, dx) % np.pi, np.hypot(dy, dx)
    bins = np.minimum((angles / np.pi * 8).astype(int), 7)
    hog = np.stack([np.where(bins == i, strengths, 0).reshape(4, 8, 4, 8).sum((1, 3)).ravel() for i in range(8)], 1)
    colours = [
        np.histogram(frame[..., channel], bins=12, range=(0, 255), density=True)[0] * 255 for channel in range(3)
    ]
    fine = frame.astype(np.float32) @ _LUMA
    texture = [np.abs(np.diff(fine, axis=axis)).mean() / 8 for axis in (0, 1)]  # noise and compression artefacts
    return np.concatenate([grey.ravel(), hog.ravel(), *colours, texture])


def _small(frames: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.float32]:
    """Downscale frames to at most `side` × `side` by averaging: uint8 (T, H, W, 3) → float32 (T, side, side, 3)."""
    pixels_TCHW = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    return torch.nn.functional.adaptive_avg_pool2d(pixels_TCHW, side).permute(0, 2, 3, 1).numpy()
