"""Deletion and insertion against matched random frames, on a model whose important frames are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fake_shards
from pictures import count_pixels, panel, read_picture
from schemas import check_json
from stage1.data.reader import ClipReader
from stage1.evaluation import explain as explaining
from stage1.evaluation import plots
from stage1.evaluation.explain import ExplainConfig, Explainer, explain, freeze, matched_frames, run_lengths
from stage1.model.checkpoint import Checkpoint, load_checkpoint
from stage1.model.network import ModelConfig
from stage1.training.config import TrainConfig
from stage1.training.loop import train
from vidshard.util.errors import UserError

SHAPE = (8, 16, 16)


def test_matched_frames_have_the_same_runs_wherever_they_lie() -> None:
    generator = np.random.default_rng(0)
    frames = [0, 1, 5, 9, 10, 11]
    places = np.zeros(12)
    for _ in range(2000):
        drawn = matched_frames(frames, 12, generator)
        assert sorted(run_lengths(drawn)) == [1, 2, 3]
        assert max(drawn) < 12
        places[drawn] += 1
    assert places.min() > 500  # every frame is taken about half of the time: 6 of 12


def test_all_frames_but_one_can_be_matched() -> None:
    drawn = {tuple(matched_frames([0, 1, 2], 4, np.random.default_rng(seed))) for seed in range(50)}
    assert drawn == {(0, 1, 2), (1, 2, 3)}


def test_freezing_takes_the_nearest_frame() -> None:
    clip = torch.arange(6).view(6, 1)
    assert freeze(clip, [1, 2, 3]).flatten().tolist() == [0, 0, 0, 4, 4, 5]
    assert freeze(clip, []).flatten().tolist() == list(range(6))


class BrightFrame(torch.nn.Module):
    """Crime where a frame is bright; attention on the brightest frame, or (`blind`) on the darkest."""

    config = ModelConfig()

    def __init__(self, *, blind: bool) -> None:
        super().__init__()
        self.blind = blind
        self.classifier = torch.nn.Linear(1, 2)
        with torch.no_grad():
            self.classifier.weight[:] = torch.tensor([[-3.0], [3.0]])
            self.classifier.bias[:] = 0

    def forward(self, clips_BCTHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features_BTD, attention_BT = self.frame_features(clips_BCTHW)
        return self.logits(self.pool(features_BTD, attention_BT), clips_BCTHW), attention_BT

    def frame_features(self, clips_BCTHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features_BTD = clips_BCTHW.mean((1, 3, 4)).unsqueeze(2)
        sign = -1 if self.blind else 1
        return features_BTD, (sign * 20 * features_BTD[..., 0]).softmax(1)

    def pool(self, features_BTD: torch.Tensor, attention_BT: torch.Tensor) -> torch.Tensor:
        return features_BTD.amax(1)

    def pooled(self, clips_BCTHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.forward(clips_BCTHW)

    def logits(self, pooled_BD: torch.Tensor, clips_BCTHW: torch.Tensor) -> torch.Tensor:
        return self.classifier(pooled_BD)

    def attention_frame_ranges(self, num_frames: int) -> list[tuple[int, int]]:
        return [(frame, frame) for frame in range(num_frames)]


@pytest.fixture
def bright(tmp_path: Path) -> Path:
    """Crimes with one bright frame among 8 dark ones, each from its own recording."""
    clips = np.full((12, *SHAPE, 3), 40, np.uint8)
    for i in range(12):
        clips[i, i % 8] = 220
        clips[i, (i + 3) % 8] = 60
    groups = [f"recording {i}" for i in range(12)]
    return fake_shards.write_shards(tmp_path / "bright", clips, [1] * 12, source_groups=groups)


def explained(folder: Path, *, blind: bool, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    class Fake(Checkpoint):
        def build_model(self) -> Any:
            return BrightFrame(blind=blind)

    shape = {"num_frames": SHAPE[0], "height": SHAPE[1], "width": SHAPE[2]}
    from dataclasses import asdict

    from stage1.data.transforms import TransformConfig

    checkpoint = Fake(
        epoch=1,
        model_state_dict={},
        optimizer_state_dict={},
        scheduler_state_dict={},
        model_config={},
        transform_config=asdict(TransformConfig()),
        clip_shape=shape,
        sampling={},
        frame_gap_seconds=0.1,
        threshold=0.0,
    )
    monkeypatch.setattr(explaining, "load_checkpoint", lambda _path: checkpoint)
    lines = [f"video-{i:03d}.mp4 Fighting {i % 8} {i % 8}" for i in range(12)]
    (folder.parent / "annotations.txt").write_text("\n".join(lines), encoding="utf-8")
    (folder.parent / "model.pt").write_bytes(b"of the fake")
    report = explain(
        ExplainConfig(
            checkpoint=folder.parent / "model.pt",
            shards=folder,
            annotations=folder.parent / "annotations.txt",
            out=folder.parent / "out",
            num_resamples=100,
        )
    )
    assert json.loads((folder.parent / "out" / "explanation.json").read_text()) == json.loads(json.dumps(report.fields))
    check_json(folder.parent / "out" / "explanation.json", "explanation")
    picture = read_picture(folder.parent / "out" / "explanation.png")
    for number in range(3):  # deletion, insertion, gaps: a line of attention in each
        assert count_pixels(panel(picture, 0, number, (1, 3)), plots.RED) > 50
    return report.fields


def test_attention_on_the_frame_that_decides_is_found_to_matter(bright: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = explained(bright, blind=False, monkeypatch=monkeypatch)
    gap = fields["deletion"]["gap"]["attention"]
    assert gap["low"] > 0
    assert fields["insertion"]["gap"]["attention"]["low"] > 0
    assert fields["attention_on_event"]["mass"]["value"] > 0.9
    assert fields["attention_on_event"]["even_attention"] == pytest.approx(1 / 8)
    assert fields["effective_frames"]["value"] < 1.5
    # Brightness is the evidence, too: mean pooling orders frames alike, so attention is not above it.
    assert fields["deletion"]["attention_above"]["mean pooling"]["value"] == pytest.approx(0, abs=0.2)
    assert not fields["claims"]["attention_explains"]
    # Who knows the event gains nothing over attention that is on it, in the few frames that are taken first.
    assert fields["deletion"]["curves"]["true event"]["own"][0] == fields["deletion"]["curves"]["attention"]["own"][0]


def test_attention_on_frames_that_do_not_matter_is_found_out(bright: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = explained(bright, blind=True, monkeypatch=monkeypatch)
    assert fields["deletion"]["gap"]["attention"]["value"] < 0
    assert fields["attention_on_event"]["mass"]["value"] < 0.1
    assert fields["deletion"]["event_above"]["attention"]["low"] > 0
    assert not fields["claims"]["attention_explains"]


@pytest.mark.parametrize("pooling", ["attention", "mean"])
def test_a_trained_model_can_be_explained(pooling: str, tmp_path: Path) -> None:
    clips, labels = fake_shards.moving_clips(16, shape=SHAPE)
    shards = fake_shards.write_shards(tmp_path / "train", clips, labels)
    model = ModelConfig(channels=(8, 8), temporal_stages=(0,), groups=2, dropout=0.0, pooling=pooling)
    path = train(TrainConfig(shards=shards, val_fraction=0, out=tmp_path / "run", epochs=1, model=model))
    config = ExplainConfig(checkpoint=path, shards=shards, random_sets=1, max_clips=2)
    explainer = Explainer(load_checkpoint(path), torch.device("cpu"), config)
    clip = explainer.explain(ClipReader(shards), 1, 0.7, {})
    assert clip.attention.sum() == pytest.approx(1, abs=1e-5)
    assert set(clip.deletion) == set(explaining.METHODS)
    assert explaining.summarise([clip], config)["deletion"]["event_above"] is None  # no annotations
    assert all(len(own) == len(explaining.steps(8)) for own, _ in clip.deletion.values())
    assert 0 <= clip.permuted <= 1


def test_normal_clips_alone_are_nothing_to_explain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fake_shards.write_shards(tmp_path / "n", fake_shards.random_clips(4, shape=SHAPE), [0] * 4)
    with pytest.raises(UserError, match="is labelled crime, expected at least one;"):
        explained(folder, blind=False, monkeypatch=monkeypatch)


def test_clips_of_one_frame_have_no_order_to_explain(tmp_path: Path) -> None:
    clips, labels = fake_shards.moving_clips(8, shape=(1, 16, 16))
    shards = fake_shards.write_shards(tmp_path / "train", clips, labels)
    model = ModelConfig(channels=(8,), temporal_stages=(), dropout=0.0)
    path = train(TrainConfig(shards=shards, val_fraction=0, out=tmp_path / "run", epochs=1, model=model))
    with pytest.raises(UserError, match="have one frame, expected at least two;"):
        explain(ExplainConfig(checkpoint=path, shards=shards, out=tmp_path / "out"))


def test_a_model_without_attention_is_said_to_have_none(bright: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BrightFrame, "config", ModelConfig(pooling="mean"))
    fields = explained(bright, blind=False, monkeypatch=monkeypatch)
    assert fields["pooling"] == "mean"
    assert "pools frames by their mean: what is called attention" in explaining.to_text(fields, ExplainConfig())
