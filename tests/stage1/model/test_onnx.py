from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import CliRunner

from fake_shards import random_clips, write_shards
from inference_runs import write_checkpoint
from stage1.cli.main import main
from stage1.model.checkpoint import load_checkpoint, save_checkpoint
from stage1.model.motion_features import motion_features

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.slow
def test_the_file_alone_gives_what_the_checkpoint_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calibration = {"temperature": 1.7, "shift": -0.3, "prior": 0.4}
    clips = random_clips(200)
    write_checkpoint(tmp_path / "model.pt", calibration=calibration, threshold=0.3)
    fit_motion_classifier(tmp_path / "model.pt", clips)
    write_shards(tmp_path / "shards", clips, [0, 1] * 100)
    args = ["--checkpoint", tmp_path / "model.pt", "--out", tmp_path / "model.onnx", "--shards", tmp_path / "shards"]
    result = CliRunner().invoke(main, ["export", *map(str, args), "--num-checked", "200"])
    assert result.exit_code == 0, result.output
    assert "on 200 clips within" in result.stdout
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    checkpoint = load_checkpoint(tmp_path / "model.pt")
    with torch.inference_mode():
        logits_BK, attention_BT = checkpoint.build_model()(checkpoint.build_transform()(torch.from_numpy(clips)))
    expected = checkpoint.build_calibration().apply(logits_BK.double().softmax(1)[:, 1].numpy())
    for size in (1, 3, 200):  # any batch
        probabilities, attention = session.run(None, {"clips": clips[:size]})
        assert np.abs(probabilities - expected[:size]).max() < 1e-4
        assert np.abs(attention - attention_BT[:size].numpy()).max() < 1e-4
    assert expected.std() > 0.01  # not all the same
    facts = session.get_modelmeta().custom_metadata_map
    assert (facts["stage1.threshold"], facts["stage1.clip_shape"]) == ("0.3", "[4, 16, 16, 3]")

    # A model that differs from what was exported: nothing is written.
    data = (tmp_path / "model.onnx").read_bytes()
    monkeypatch.setattr("stage1.model.onnx._to_onnx", lambda *_: data)
    write_checkpoint(tmp_path / "model.pt", calibration={**calibration, "shift": 0.3})
    result = CliRunner().invoke(main, ["export", *map(str, args[:3]), str(tmp_path / "other.onnx")])
    assert (result.exit_code, "nothing was written" in result.stderr) == (1, True), result.output
    assert not (tmp_path / "other.onnx").exists()

    # One that onnxruntime does not run, as it does not some of torchvision's networks: no traceback.
    monkeypatch.setattr("stage1.model.onnx._to_onnx", lambda *_: b"no model")
    result = CliRunner().invoke(main, ["export", *map(str, args[:3]), str(tmp_path / "other.onnx")])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: onnxruntime cannot run the export of {tmp_path / 'model.pt'} (")
    assert not (tmp_path / "other.onnx").exists()


def fit_motion_classifier(path: Path, clips: npt.NDArray[np.uint8]) -> None:
    """Let the motion features count in the checkpoint, as after training."""
    checkpoint = load_checkpoint(path)
    model = checkpoint.build_model()
    assert model.motion_classifier is not None
    statistics = motion_features(checkpoint.build_transform()(torch.from_numpy(clips))).numpy()
    model.motion_classifier.fit(statistics, (statistics[:, 0] > np.median(statistics[:, 0])).astype(np.int64))
    save_checkpoint(path, dataclasses.replace(checkpoint, model_state_dict=model.state_dict()))


def test_clips_of_another_shape_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model.pt")
    write_shards(tmp_path / "shards", random_clips(2, shape=(8, 16, 16)), [0, 1])
    args = ["--checkpoint", str(tmp_path / "model.pt"), "--shards", str(tmp_path / "shards")]
    result = CliRunner().invoke(main, ["export", *args])
    assert (result.exit_code, "was trained on 4×16×16" in result.stderr) == (1, True), result.output
