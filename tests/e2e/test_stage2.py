"""From shards to a classifier of crimes: cross-validation → out-of-fold detections → extracted frames → stage 2."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fake_shards import write_shards
from stage1 import load_attention_data
from stage1.crossval import CrossvalConfig, crossval
from stage1.extract import ExtractConfig, extract
from stage1.infer import InferConfig, infer
from stage1.model import ModelConfig
from stage1.train_config import TrainConfig

ROOT = Path(__file__).resolve().parent.parent.parent
CRIMES = ("Arson", "Fighting", "Robbery")


def generated(folder: Path, num_clips: int, split: str, seed: int) -> Path:
    """Clips of 8×24×24, half of them crimes: these flicker, in the colour of the crime."""
    rng = np.random.default_rng(seed)
    clips = np.repeat(rng.integers(40, 150, (num_clips, 1, 24, 24, 3)), 8, axis=1)
    names = ["NormalVideos" if i % 2 == 0 else CRIMES[i // 2 % 3] for i in range(num_clips)]
    for i, name in enumerate(names):
        if name in CRIMES:
            clips[i, ..., CRIMES.index(name)] += rng.integers(20, 100, (8, 1, 1))
    labels = [int(name in CRIMES) for name in names]
    groups = [f"{split}-{i}" for i in range(num_clips)]
    noisy = (clips + rng.normal(0, 6, clips.shape)).clip(0, 255).astype(np.uint8)
    return write_shards(folder, noisy, labels, class_names=names, source_groups=groups, split=split, prefix=f"{split}-")


@pytest.mark.slow
def test_twenty_lines_learn_the_crime_from_out_of_fold_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stage1.crossval.NUM_RESAMPLES", 20)
    train, held_out = generated(tmp_path / "Train", 96, "Train", 0), generated(tmp_path / "Held", 60, "Validation", 1)
    model = ModelConfig(channels=(8, 16), temporal_stages=(1,), attention_units=8, dropout=0.0)
    training = TrainConfig(shards=train, epochs=8, lr=5e-3, device="cpu", model=model)
    crossval(
        CrossvalConfig(
            shards=(train,),
            training=training,
            out=tmp_path / "cv",
            folds=2,
            seeds=1,
            random_split=False,
            save_attention=True,
        )
    )
    (out_of_fold,) = (tmp_path / "cv" / "out_of_fold").iterdir()
    data = load_attention_data(out_of_fold, for_training=True)
    assert data.out_of_fold
    assert sum(name in CRIMES for name in data.classes) >= 30  # of 48
    extract(ExtractConfig(folder=out_of_fold, out=tmp_path / "train2", top_k=4))

    (checkpoint,) = (tmp_path / "cv").glob("grouped-seed0-fold0/*attention.pt")
    infer(InferConfig(shards=held_out, checkpoint=checkpoint, out=tmp_path / "held"))
    extract(ExtractConfig(folder=tmp_path / "held", out=tmp_path / "test2", top_k=4))

    command = [
        sys.executable,
        ROOT / "tools" / "train_stage2.py",
        tmp_path / "train2/shards",
        tmp_path / "test2/shards",
        "30",
    ]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    right, total, num_classes = map(int, re.findall(r"\d+", shown)[:3])
    assert (num_classes, total >= 20) == (3, True), shown
    # Chance is a third; three standard deviations above it no luck reaches.
    assert right / total > 1 / 3 + 3 * np.sqrt(2 / 9 / total), shown
