"""torchvision's networks behind our interface, and loading of their weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fake_shards import write_shards
from stage1.cli.main import main
from stage1.model import backbones
from stage1.model.backbones import TorchvisionBackbone, load_weights
from stage1.model.checkpoint import load_checkpoint
from stage1.model.network import ModelConfig, Stage1Model
from vidshard.util.errors import UserError


def never(question: str) -> bool:
    raise AssertionError(f"asked: {question}")


@pytest.mark.parametrize("name", backbones.NAMES)
def test_attention_has_the_length_the_backbone_leaves(name: str) -> None:
    model = Stage1Model(ModelConfig(backbone=name)).eval()
    for num_frames in (16, 5):
        _, attention = model(torch.randn(1, 3, num_frames, 32, 32))
        ranges = model.attention_frame_ranges(num_frames)
        assert attention.shape == (1, len(ranges))
        assert torch.allclose(attention.sum(1), torch.ones(1))
        assert [frame for first, last in ranges for frame in range(first, last + 1)] == list(range(num_frames))
    assert len(model.attention_frame_ranges(16)) == (16 if name == "mc3_18" else 2)


def test_padding_leaves_a_step_that_holds_a_frame() -> None:
    model = Stage1Model(ModelConfig(backbone="r3d_18")).eval()
    there = torch.ones(1, 16, dtype=torch.bool)
    there[0, 4:] = False
    assert model(torch.randn(1, 3, 16, 32, 32), there)[1].tolist() == [[1.0, 0.0]]


def test_group_norm_makes_a_clip_the_same_in_any_batch() -> None:
    network = TorchvisionBackbone("mc3_18", norm="group").train()
    clips = torch.randn(2, 3, 2, 32, 32)
    assert torch.allclose(network(clips), torch.cat([network(clips[:1]), network(clips[1:])]), atol=1e-4)


def test_frozen_statistics_stay_while_training() -> None:
    network = TorchvisionBackbone("mc3_18", norm="frozen").train()
    before = network.network.stem[1].running_mean.clone()
    network(torch.randn(2, 3, 2, 32, 32))
    assert torch.equal(network.network.stem[1].running_mean, before)


def test_weights_from_a_file_with_a_report_of_what_did_not_fit(tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = TorchvisionBackbone("mc3_18", norm="frozen")
    state = {f"module.{name}": value for name, value in other.network.state_dict().items()}
    state["module.layer1.0.conv1.0.weight"] = torch.zeros(3)
    state["module.extra"] = torch.zeros(1)
    state["module.fc.weight"] = torch.zeros(400, 512)
    del state["module.layer2.0.conv1.0.weight"]
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": state, "epoch": 3}, path)
    network = TorchvisionBackbone("mc3_18", norm="frozen")
    report = load_weights(network, str(path), confirm=never)
    assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert report.missing == ("layer2.0.conv1.0.weight",)
    assert report.misfit == ("layer1.0.conv1.0.weight",)
    assert report.unexpected == ("extra",)
    assert report.num_loaded == len(network.network.state_dict()) - 2
    assert "of a different shape, kept at their initial values: layer1.0.conv1.0.weight" in report.text
    assert torch.equal(network.network.stem[0].weight, other.network.stem[0].weight)


def test_weights_of_another_network_or_no_weights_are_refused(tmp_path: Path) -> None:
    network = TorchvisionBackbone("mc3_18")
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(2, 2)}, path)
    with pytest.raises(
        UserError, match="contains no weights for mc3_18: none of its 1 tensors fits, such as a; expected names"
    ):
        load_weights(network, str(path), confirm=never)
    path.write_bytes(b"not torch")
    with pytest.raises(UserError, match=r"cannot be read as weights \(Weights only load failed\)"):
        load_weights(network, str(path), confirm=never)
    with pytest.raises(
        UserError, match=r"no such file, and mc3_18 has no weights of that name; expected.*KINETICS400_V1"
    ):
        load_weights(network, "IMAGENET", confirm=never)


def test_the_network_is_used_only_after_a_yes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_args, **_options: pytest.fail("downloaded"))
    asked: list[str] = []

    def refuse(question: str) -> bool:
        asked.append(question)
        return False

    network = TorchvisionBackbone("r3d_18", norm="frozen")
    with pytest.raises(UserError, match="the download was declined; confirm it, or pass a weights file"):
        load_weights(network, "R3D_18_Weights.KINETICS400_V1", confirm=refuse)
    assert "127 MB" in asked[0]
    assert "https://download.pytorch.org/" in asked[0]

    def download(_url: str, path: str, *, hash_prefix: str) -> None:
        assert hash_prefix == "b3b3357e"
        torch.save(network.network.state_dict(), path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert load_weights(network, "KINETICS400_V1", confirm=lambda _question: True).missing == ()
    assert load_weights(network, "KINETICS400_V1", confirm=never).missing == ()  # from the cache


def test_training_from_weights_applies_and_records_their_normalisation(tmp_path: Path) -> None:
    clips = np.random.default_rng(0).integers(0, 255, (4, 4, 32, 32, 3), np.uint8)
    shards = write_shards(tmp_path / "shards", clips, [0, 1, 0, 1])
    path = tmp_path / "weights.pth"
    torch.save(TorchvisionBackbone("mc3_18", norm="frozen").network.state_dict(), path)
    out = tmp_path / "run"
    command = ["train", "--shards", str(shards), "--out", str(out), "--epochs", "1", "--val-fraction", "0"]
    done = CliRunner().invoke(main, [*command, "--backbone", "mc3_18", "--weights", str(path)])
    assert done.exit_code == 0, done.output
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert sha256 in done.output
    checkpoint = load_checkpoint(out / "binary_stage1_with_attention.pt")
    assert checkpoint.transform_config["mean"] == backbones.MEAN
    assert (checkpoint.model_config["norm"], checkpoint.train_config["weights_sha256"]) == ("frozen", sha256)
    assert checkpoint.build_model()(torch.zeros(1, 3, 4, 32, 32))[1].shape == (1, 4)
    refused = CliRunner().invoke(main, [*command, "--weights", str(path)])
    assert isinstance(refused.exception, UserError | SystemExit)
    assert refused.exit_code == 1
