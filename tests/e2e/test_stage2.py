"""From videos to a classifier of crimes: cross-validation → out-of-fold detections → extracted frames → stage 2."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from scipy.stats import binomtest

from stage1 import load_attention_data
from stage1.evaluation.crossval import CrossvalConfig, crossval
from stage1.inference.extract import ExtractConfig, extract
from stage1.inference.run import InferConfig, infer
from stage1.model.network import ModelConfig
from stage1.training.config import TrainConfig
from synthetic_videos import CRIMES, VideoConfig, make_dataset
from vidshard.building.run import BuildConfig, build
from vidshard.video.sampling import SamplingConfig

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twenty_lines_learn_the_crime_from_out_of_fold_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stage1.evaluation.crossval.NUM_RESAMPLES", 20)
    # The demo's videos, smaller and shorter, to be quick.
    videos = VideoConfig(width=96, height=72, num_frames=(32, 48))
    make_dataset(tmp_path / "videos", num_videos={"Train": 140, "Validation": 100}, seed=1, config=videos, workers=1)
    for split in ("Train", "Validation"):
        sampling = SamplingConfig(clip_len=8)
        source, out = tmp_path / "videos" / split, tmp_path / split
        build(BuildConfig(source=source, out=out, sampling=sampling, frame_size=48, workers=1))
    model = ModelConfig(channels=(8, 16, 24), temporal_stages=(1, 2), attention_units=8, dropout=0.0)
    training = TrainConfig(shards=tmp_path / "Train", epochs=10, lr=5e-3, device="cpu", model=model)
    crossval(
        CrossvalConfig(
            shards=(tmp_path / "Train",),
            training=training,
            out=tmp_path / "cv",
            folds=2,
            seeds=1,
            random_split=False,
            shortcuts=False,
            save_attention=True,
        )
    )
    (out_of_fold,) = (tmp_path / "cv" / "out_of_fold").iterdir()
    data = load_attention_data(out_of_fold, for_training=True)
    assert data.out_of_fold
    assert sum(name in CRIMES for name in data.classes) >= 45  # of 70
    extract(ExtractConfig(folder=out_of_fold, out=tmp_path / "train2", top_k=4))

    (checkpoint,) = (tmp_path / "cv").glob("grouped-seed0-fold0/*attention.pt")
    infer(InferConfig(shards=tmp_path / "Validation", checkpoint=checkpoint, out=tmp_path / "held"))
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
    assert (num_classes, total >= 20) == (len(CRIMES), True), shown
    assert binomtest(right, total, 1 / num_classes, alternative="greater").pvalue < 0.01, shown
