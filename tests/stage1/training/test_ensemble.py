"""Ensembles: members are runs of their own, and one checkpoint averages them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fake_shards import moving_clips, write_shards
from stage1.common.files import BEST_NAME, CONFIG_NAME, MEMBERS_NAME
from stage1.data.loader import ClipReader
from stage1.evaluation.explain import ExplainConfig, explain
from stage1.inference.config import FeaturesConfig, InferConfig
from stage1.inference.features import features
from stage1.inference.run import infer
from stage1.model.checkpoint import load_checkpoint, save_checkpoint
from stage1.model.config import ModelConfig
from stage1.training import loop
from stage1.training.config import TrainConfig
from stage1.training.loop import train
from vidshard.util.errors import UserError

TINY = ModelConfig(channels=(8,), temporal_stages=(), attention_units=8)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    clips, labels = moving_clips(12, shape=(4, 16, 16))
    return write_shards(tmp_path / "Train", clips, labels, split="Train")


def config(shards: Path, out: Path, **options: Any) -> TrainConfig:
    return TrainConfig(
        **{"shards": shards, "out": out, "epochs": 2, "lr": 3e-3, "model": TINY, "ensemble": 3, "seed": 5, **options}
    )


def member(out: Path, seed: int) -> Path:
    return out / MEMBERS_NAME / f"seed-{seed}" / BEST_NAME


def outputs(path: Path, shards: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and attention of all clips."""
    reader, checkpoint = ClipReader(shards), load_checkpoint(path)
    clips = torch.from_numpy(np.stack([reader[row] for row in range(len(reader))]))
    with torch.inference_mode():
        return checkpoint.build_model()(checkpoint.build_transform()(clips))


def test_logits_and_attention_are_means_over_seeds(tmp_path: Path, shards: Path) -> None:
    path = train(config(shards, tmp_path / "out"))
    assert path == tmp_path / "out" / BEST_NAME
    members = [outputs(member(tmp_path / "out", seed), shards) for seed in (5, 6, 7)]
    for value, of_members in zip(outputs(path, shards), zip(*members, strict=True), strict=True):
        assert torch.allclose(value, torch.stack(of_members).mean(0), atol=1e-6)
        assert (of_members[0] - of_members[1]).abs().max() > 1e-3
    assert "ensemble = 3\n" in (tmp_path / "out" / CONFIG_NAME).read_text()


def test_an_ensemble_scores_exports_and_gives_features_as_one_model(tmp_path: Path, shards: Path) -> None:
    path = train(config(shards, tmp_path / "out"))
    report = infer(InferConfig(shards=shards, checkpoint=path, out=tmp_path / "scores"))
    assert report is not None
    assert (report.num_clips, report.unscored) == (12, {})
    features(FeaturesConfig(shards=shards, checkpoint=path, out=tmp_path / "features"))
    with pytest.raises(UserError, match=r"is an ensemble.*pass one of its members"):
        explain(ExplainConfig(shards=shards, checkpoint=path, out=tmp_path / "explanation"))


def test_a_stopped_ensemble_resumes_to_the_same_weights(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_checkpoint(train(config(shards, tmp_path / "whole"))).model_state_dict
    finish_epoch, finished = loop.finish_epoch, []

    def fail_in_the_second_network(run: Any, entry: dict[str, Any]) -> None:
        finish_epoch(run, entry)
        finished.append(run.config.seed)
        if finished == [5, 5, 6]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "finish_epoch", fail_in_the_second_network)
        with pytest.raises(KeyboardInterrupt):
            train(config(shards, tmp_path / "out"))
    assert not (tmp_path / "out" / BEST_NAME).exists()
    again = load_checkpoint(train(config(shards, tmp_path / "out", resume=True))).model_state_dict
    assert all(torch.equal(again[name], weight) for name, weight in whole.items())
    # A finished ensemble is left as it is, with the threshold that was chosen for it.
    path = tmp_path / "out" / BEST_NAME
    save_checkpoint(path, dataclasses.replace(load_checkpoint(path), threshold=0.7))
    assert load_checkpoint(train(config(shards, tmp_path / "out", resume=True))).threshold == 0.7


def test_a_second_run_moves_the_first_aside(tmp_path: Path, shards: Path) -> None:
    with pytest.raises(UserError, match="nothing to resume"):
        train(config(shards, tmp_path / "out", resume=True))
    first = train(config(shards, tmp_path / "out", ensemble=2)).read_bytes()
    train(config(shards, tmp_path / "out", ensemble=2, seed=8))
    assert (tmp_path / "out" / "earlier-1" / BEST_NAME).read_bytes() == first
    assert sorted(path.name for path in (tmp_path / "out" / MEMBERS_NAME).iterdir()) == ["seed-8", "seed-9"]
    assert member(tmp_path / "out" / "earlier-1", 5).is_file()


def test_several_processes_are_refused(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="start it without torchrun"):
        train(config(shards, tmp_path / "out"))
    assert not (tmp_path / "out" / MEMBERS_NAME).exists()
