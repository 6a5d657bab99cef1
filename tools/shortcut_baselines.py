"""Accuracy of shortcuts on synthetic videos: file metadata or a single frame, instead of motion.

    python tools/shortcut_baselines.py FOLDER

fits classifiers on FOLDER/Train, normal against crime, and prints their accuracy on FOLDER/Test. A set is fair when
everything but the last row stays near 50 %: only there does the classifier see motion.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

import synthetic_videos
from stage1.evaluation.baselines import frame_features

FRAMES_PER_VIDEO = 4  # drawn for the classifiers of single frames
FLOAT_MIN = 1e-6

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """Features of one video that the classifiers see."""

    is_crime: bool
    container: Array  # [F] facts that need no decoding
    first_frame: Array  # (H, W, 3), RGB
    middle_frame: Array
    frames: Array  # (FRAMES_PER_VIDEO, H, W, 3): from the event in a crime video, from anywhere in a normal one
    motion: Array  # [2] the largest change between frames, plain and against the median change


def measure(folder: Path, *, workers: int | None = None) -> dict[str, float]:
    """Accuracy on FOLDER/Test of every shortcut, and, under `motion`, of a plain measure of motion; chance is 0.5."""
    windows = synthetic_videos.read_annotations(folder / synthetic_videos.ANNOTATIONS_NAME)
    train, test = (
        synthetic_videos.run_jobs(
            look_at_video, [(path, windows[path.name]) for path in sorted((folder / split).rglob("*.mp4"))], workers
        )
        for split in ("Train", "Test")
    )
    accuracies: dict[str, float] = {}
    for name, features in _FEATURES.items():
        data = [np.stack([features(video) for video in part]) for part in (train, test)]
        labels = [np.array([video.is_crime for video in part]) for part in (train, test)]
        for kind, accuracy in _fit_classic(*data, *labels).items():
            accuracies[f"{name}, {kind}"] = accuracy
    accuracies["frame of the event, CNN"] = _fit_cnn(train, test)
    return accuracies


def look_at_video(path: Path, windows: Sequence[tuple[int, int]]) -> VideoFacts:
    """Read one video. A frame of the event is the hardest case: no shortcut would know where to look."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        num_keyframes = sum(packet.is_keyframe for packet in packets)
        duration = float(stream.duration * stream.time_base)
        facts = [
            path.stat().st_size,
            duration,
            float(stream.average_rate),
            len(packets),
            path.stat().st_size / duration,
            stream.width,
            stream.height,
            num_keyframes,
            num_keyframes / len(packets),
        ]
    with av.open(str(path)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    rng = np.random.default_rng(sum(path.name.encode()))
    first, last = windows[0] if windows else (0, len(frames) - 1)
    picks = rng.integers(first, last + 1, FRAMES_PER_VIDEO)
    small = np.stack([cv2.resize(frame, (40, 30), interpolation=cv2.INTER_AREA) for frame in frames]).astype(np.float32)
    changes = np.abs(np.diff(small, axis=0)).mean((1, 2, 3)) + FLOAT_MIN
    return VideoFacts(
        is_crime=bool(windows),
        container=np.array(facts, np.float64),
        first_frame=frames[0],
        middle_frame=frames[len(frames) // 2],
        frames=frames[picks],
        motion=np.log([changes.max(), changes.max() / np.median(changes)]),
    )


_FEATURES = {
    "file facts": lambda video: video.container,
    "first frame": lambda video: frame_features(video.first_frame),
    "middle frame": lambda video: frame_features(video.middle_frame),
    "frame of the event": lambda video: frame_features(video.frames[0]),
    "motion": lambda video: video.motion,
}


def _fit_classic(train: Array, test: Array, train_labels: Array, test_labels: Array) -> dict[str, float]:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    models = {
        "logistic regression": make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=500)),
        "random forest": RandomForestClassifier(200, min_samples_leaf=2, random_state=0),
    }
    return {name: float(model.fit(train, train_labels).score(test, test_labels)) for name, model in models.items()}


def _fit_cnn(train: Sequence[VideoFacts], test: Sequence[VideoFacts], *, epochs: int = 6) -> float:
    """Train a small 2D CNN on all single frames at full size; a video's score is the mean over its frames."""
    import torch
    from torch import nn

    def tensors(videos: Sequence[VideoFacts]) -> tuple[torch.Tensor, torch.Tensor]:
        frames = torch.from_numpy(np.stack([video.frames for video in videos])).permute(0, 1, 4, 2, 3)
        return frames, torch.tensor([float(video.is_crime) for video in videos])

    def layer(channels_in: int, channels_out: int) -> list[nn.Module]:
        convolution = nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(channels_out), nn.ReLU()]

    torch.manual_seed(0)
    model = nn.Sequential(
        *layer(3, 16),
        *layer(16, 32),
        *layer(32, 64),
        *layer(64, 64),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(64, 1),
    )
    frames, labels = tensors(train)
    steps_per_epoch = len(frames) * FRAMES_PER_VIDEO // 32
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * steps_per_epoch)
    for _ in range(epochs * steps_per_epoch):
        videos = torch.randint(len(frames), (32,))
        batch = frames[videos, torch.randint(FRAMES_PER_VIDEO, (32,))].float() / 127.5 - 1
        batch = batch.flip(-1) if torch.rand(()) < 0.5 else batch
        loss = nn.functional.binary_cross_entropy_with_logits(model(batch)[:, 0], labels[videos])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    frames, labels = tensors(test)
    with torch.no_grad():
        scores = torch.stack([model(video.float() / 127.5 - 1).mean() for video in frames])
    return float(((scores > 0) == (labels > 0.5)).float().mean())


if __name__ == "__main__":
    for row, accuracy in measure(Path(sys.argv[1])).items():
        print(f"{row:45s} {accuracy:6.1%}")
