"""Learning from bags: with video labels alone, the correct clip is classified as crime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import fake_shards
from stage1.cli.main import main
from stage1.data.reader import ClipReader
from stage1.metrics.clips import roc_auc
from stage1.model.checkpoint import load_checkpoint
from stage1.model.network import ModelConfig
from stage1.training.bag_objective import BagObjective, bag_score, bag_scores, fit_bag_classifier
from stage1.training.clip_objective import ClipObjective
from stage1.training.config import TrainConfig
from stage1.training.loop import make_objective, train
from vidshard.util.errors import UserError

SHAPE = (8, 16, 16)
CLIPS = 6  # of a video


def untrimmed(folder: Path, *, videos: int, seed: int) -> tuple[Path, list[int]]:
    """Videos of 6 clips; in every other one a single clip flickers. Returns which clips do."""
    clips, kinds = fake_shards.moving_clips(2 * CLIPS * videos, shape=SHAPE, seed=seed)
    quiet, loud = clips[np.array(kinds) == 0], clips[np.array(kinds) == 1]
    truth = [int(i // CLIPS % 2 == 1 and i % CLIPS == i // CLIPS % 5) for i in range(CLIPS * videos)]
    chosen = np.stack([loud[i] if true else quiet[i] for i, true in enumerate(truth)])
    labels = [i // CLIPS % 2 for i in range(CLIPS * videos)]
    path = fake_shards.write_shards(folder, chosen, labels, clips_per_video=CLIPS, prefix=folder.name)
    return path, truth


def config(shards: Path, out: Path, **options: Any) -> TrainConfig:
    model = ModelConfig(channels=(8, 8), temporal_stages=(0,), groups=2, dropout=0.0)
    return TrainConfig(**{"shards": shards, "out": out, "model": model, "lr": 1e-2, "accumulate": 2, **options})


@pytest.mark.slow
@pytest.mark.parametrize("bags", ["topk", "attention"])
def test_video_labels_alone_find_the_clip(bags: str, tmp_path: Path) -> None:
    shards, _ = untrimmed(tmp_path / "train", videos=16, seed=0)
    val, truth = untrimmed(tmp_path / "val", videos=8, seed=1)
    path = train(config(shards, tmp_path / "run", val_shards=val, bags=bags, epochs=8))
    checkpoint, reader = load_checkpoint(path), ClipReader(val)
    assert checkpoint.train_config["bags"] == bags
    clips = torch.from_numpy(np.stack([reader[row] for row in range(len(reader))]))
    with torch.inference_mode():
        logits_BK, _ = checkpoint.build_model()(checkpoint.build_transform()(clips))
    scores = (logits_BK[:, 1] - logits_BK[:, 0]).numpy()
    of_crimes = reader.labels == 1
    auc = roc_auc(np.array(truth)[of_crimes], scores[of_crimes])
    assert auc is not None
    assert auc >= 0.9
    confusion = checkpoint.metrics["val_confusion"]
    assert sum(map(sum, confusion)) == 8  # videos, not clips


def test_a_long_video_weighs_as_much_as_a_short_one() -> None:
    objective = BagObjective(config=TrainConfig(shards=Path(), bags="topk"))
    model = torch.nn.Linear(1, 2)

    def forward(clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return model(clips.flatten(1)[:, :1]), clips

    for count in (3, 30):
        clips = torch.zeros(count, *SHAPE, 3, dtype=torch.uint8)
        from stage1.data.loader import Batch

        batch = Batch(clips, torch.ones(count, dtype=torch.int64), torch.arange(count))
        loss = objective.loss(model, forward, objective.prepare(batch, 0), 0)
        assert float(loss.weight) == float(loss.num_known) == 1.0


def test_padding_alone_learns_nothing() -> None:
    objective = BagObjective(config=TrainConfig(shards=Path(), bags="topk"))
    model = torch.nn.Linear(1, 2)
    from stage1.data.loader import Batch

    nothing = Batch(torch.zeros(1, *SHAPE, 3, dtype=torch.uint8), torch.tensor([-1]), torch.tensor([-1]))
    prepared = objective.prepare(nothing, 0)
    loss = objective.loss(model, lambda clips: (model(clips.flatten(1)[:, :1]), clips), prepared, 0)
    loss.loss_sum.backward()
    assert float(loss.weight) == 0
    assert all(float(p.grad.abs().sum()) == 0 for p in model.parameters() if p.grad is not None)


def test_the_score_of_a_bag() -> None:
    scores = torch.arange(16.0)
    assert float(bag_score(scores, "topk")) == 14.5
    assert 14 < float(bag_score(scores, "attention")) < 15


@pytest.mark.parametrize("bags", ["topk", "attention"])
def test_bags_of_any_size_are_scored_at_once_as_one_by_one(bags: str) -> None:
    generator = torch.Generator().manual_seed(0)
    own = [torch.randn(size, generator=generator) for size in (1, 9, 17)]
    known = torch.arange(17) < torch.tensor([[1], [9], [17]])
    together = torch.full((3, 17), 5.0)
    together[known] = torch.cat(own)
    torch.testing.assert_close(bag_scores(together, known, bags), torch.stack([bag_score(x, bags) for x in own]))


@pytest.mark.parametrize("bags", ["topk", "attention"])
def test_a_bag_classifier_is_found_by_what_few_clips_of_a_video_show(bags: str) -> None:
    generator = np.random.default_rng(0)
    videos = np.repeat(np.arange(40), 16)
    labels = videos % 2
    points = generator.normal(size=(len(videos), 3))
    events = (labels == 1) & (np.arange(len(videos)) % 16 < 2)
    points[events, 0] += 3.0  # in two of 16 clips of a crime video
    order = generator.permutation(len(videos))  # clips come in any order
    weights, bias = fit_bag_classifier(points[order], labels[order], videos[order], bags)
    assert weights[0] > 3 * np.abs(weights[1:]).max()
    scores = points @ weights + bias
    of_crimes = labels == 1
    assert (auc := roc_auc(events[of_crimes].astype(int), scores[of_crimes])) is not None
    assert auc > 0.95
    right = [(scores[videos == video].max() > 0) == video % 2 for video in range(40)]
    assert np.mean(right) > 0.6


def test_what_makes_no_sense_with_bags_is_refused() -> None:
    with pytest.raises(UserError, match="`mixup` and `bags` cannot be combined"):
        make_objective(TrainConfig(shards=Path(), bags="topk", mixup=0.2))
    with pytest.raises(UserError, match="`block_shards` and `bags` cannot be combined"):
        make_objective(TrainConfig(shards=Path(), bags="topk", block_shards=2))
    with pytest.raises(UserError, match="`clips_per_video_per_epoch` and `bags` cannot be combined"):
        make_objective(TrainConfig(shards=Path(), bags="topk", clips_per_video_per_epoch=0))
    with pytest.raises(UserError, match="bags is 'max', expected topk or attention"):
        TrainConfig(shards=Path(), bags="max")
    assert type(make_objective(TrainConfig(shards=Path()))) is ClipObjective


def test_the_command_trains_with_and_without_bags(tmp_path: Path) -> None:
    shards, _ = untrimmed(tmp_path / "train", videos=4, seed=0)
    for name, extra in (("clips", []), ("bags", ["--bags", "topk", "--bag-clips", "2"])):
        out = tmp_path / name
        arguments = ["train", f"--shards={shards}", f"--out={out}", "--val-fraction=0", "--epochs=1", *extra]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        assert load_checkpoint(out / "binary_stage1_with_attention.pt").train_config["bags"] == (
            "topk" if extra else ""
        )
    result = CliRunner().invoke(main, ["train", f"--shards={shards}", "--bags=max"])
    assert "bags is 'max', expected topk or attention" in result.output
