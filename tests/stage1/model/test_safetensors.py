"""Weights as safetensors: the same bits, with what is needed to build the model again, and a card that is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from inference_runs import write_checkpoint
from stage1.cli.main import main
from stage1.model.checkpoint import load_checkpoint
from stage1.model.config import ModelConfig
from stage1.model.network import Stage1Model


def test_the_weights_build_the_same_model_again(tmp_path: Path) -> None:
    safetensors = pytest.importorskip(
        "safetensors", reason="needs the package safetensors: pip install 'vidshard[hub]'"
    )
    path, out = write_checkpoint(tmp_path / "model.pt", threshold=0.3), tmp_path / "hub" / "model.safetensors"
    arguments = ["export", "--format", "safetensors", "--checkpoint", str(path), "--out", str(out)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    with safetensors.safe_open(out, "pt") as file:
        facts = file.metadata()
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    model = Stage1Model(ModelConfig.from_dict(json.loads(facts["model_config"])))
    model.load_state_dict(weights)
    expected = load_checkpoint(path).model_state_dict
    assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())
    assert json.loads(facts["threshold"]) == 0.3
    card = out.parent / "README.md"
    assert "0.3000 (not chosen on validation data)" in card.read_text()
    card.write_text("mine")
    assert "was kept" in CliRunner().invoke(main, arguments).stdout
    assert card.read_text() == "mine"
