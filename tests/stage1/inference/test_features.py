from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from schemas import check, check_json
from scoring_runs import shards_and_model
from stage1.cli.main import main
from stage1.data.reader import ClipReader
from stage1.inference.features import load_program
from stage1.model.checkpoint import load_checkpoint


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(main, ["features", *map(str, args)])


def test_features_are_the_input_of_the_classifier_one_array_a_video(tmp_path: Path) -> None:
    shards_and_model(tmp_path)
    (tmp_path / "events.txt").write_text("video-001.mp4 Fighting 3 7 -1 -1\nvideo-000.mp4 Normal -1 -1 -1 -1\n")
    options = (
        "--shards",
        tmp_path / "shards",
        "--checkpoint",
        tmp_path / "model.pt",
        "--annotations",
        tmp_path / "events.txt",
    )
    result = run(*options, "--out", tmp_path / "f", "--batch-size", 4)
    assert result.exit_code == 2, result.output  # a clip is damaged
    assert "not scored: clip 'NormalVideos__video-002-000001'" in result.stderr
    summary = json.loads((tmp_path / "f" / "features.json").read_bytes())
    check(summary, "features")
    check_json(tmp_path / "f" / "plan.json", "features_plan")
    assert (summary["clips"], len(summary["videos"]), len(summary["unscored"])) == (37, 8, 1)
    reader = ClipReader(tmp_path / "shards")
    checkpoint = load_checkpoint(tmp_path / "model.pt")
    model = checkpoint.build_model()
    video = summary["videos"][1]
    values = np.load(tmp_path / "f" / video["features"])
    assert (values.dtype, values.shape) == (np.float32, (5, summary["dimensions"]))
    with torch.inference_mode():
        clips = torch.from_numpy(np.stack([reader[row] for row in range(5, 10)]))
        pixels = checkpoint.build_transform()(clips)
        logits, _ = model(pixels)
        assert torch.allclose(model.logits(torch.from_numpy(values), pixels), logits, atol=1e-4)
    frames = np.load(tmp_path / "f" / video["frames"])
    assert frames.tolist() == [[0, 1, 2, 3]] * 5
    truth = np.load(tmp_path / "f" / video["truth"])
    assert (truth.dtype, len(truth), np.flatnonzero(truth).tolist()) == (np.uint8, video["num_frames"], [3, 4, 5, 6, 7])
    assert np.load(tmp_path / "f" / summary["videos"][0]["truth"]).sum() == 0
    assert summary["videos"][2]["truth"] is None
    damaged = np.load(tmp_path / "f" / summary["videos"][2]["features"])
    assert np.isnan(damaged).all(1).tolist() == [False, True, False, False, False]


def test_a_run_that_was_stopped_keeps_its_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards_and_model(tmp_path)
    options = ("--shards", tmp_path / "shards", "--checkpoint", tmp_path / "model.pt", "--out", tmp_path / "f")
    run(*options)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "f").iterdir()}
    kept = tmp_path / "f" / "Fighting__video-001.npy"
    before = kept.stat().st_mtime_ns
    for name in ("features.json", "NormalVideos__video-000.npy", "Fighting__video-003.npy"):
        (tmp_path / "f" / name).unlink()
    run(*options)
    again = {path.name: path.read_bytes() for path in (tmp_path / "f").iterdir()}
    assert again.keys() == whole.keys()
    assert kept.stat().st_mtime_ns == before
    assert np.allclose(np.load(tmp_path / "f" / "Fighting__video-003.npy"), np.load(_bytes(whole)), atol=1e-5)


def _bytes(whole: dict[str, bytes]):  # type: ignore[no-untyped-def]
    import io

    return io.BytesIO(whole["Fighting__video-003.npy"])


def test_an_exported_program_as_backbone(tmp_path: Path) -> None:
    class Mean(torch.nn.Module):
        def forward(self, clips: torch.Tensor) -> torch.Tensor:
            return clips.float().mean((1, 2, 3))

    shards_and_model(tmp_path)
    batch = torch.export.Dim("batch", min=1)
    example = torch.zeros((2, 4, 16, 16, 3), dtype=torch.uint8)
    program = torch.export.export(Mean(), (example,), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "mean.pt2")
    result = run("--shards", tmp_path / "shards", "--backbone", tmp_path / "mean.pt2", "--out", tmp_path / "f")
    assert result.exit_code == 2, result.output
    values = np.load(tmp_path / "f" / "NormalVideos__video-000.npy")
    reader = ClipReader(tmp_path / "shards")
    assert np.allclose(values[0], reader[0].mean((0, 1, 2)), atol=1e-3)


def test_constants_of_an_exported_program_move_with_it(tmp_path: Path) -> None:
    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.full((3,), 2.0)  # neither a parameter nor a buffer

        def forward(self, clips: torch.Tensor) -> torch.Tensor:
            return clips.float().mean((1, 2, 3)) * self.scale + torch.ones(3, device=clips.device)

    program = torch.export.export(Scaled(), (torch.zeros((2, 4, 16, 16, 3), dtype=torch.uint8),))
    torch.export.save(program, tmp_path / "scaled.pt2")
    extract = load_program(tmp_path / "scaled.pt2", torch.device("meta"))
    features = extract(torch.zeros((2, 4, 16, 16, 3), dtype=torch.uint8, device="meta"))
    assert features.device.type == "meta"


def test_bad_use_is_one_line(tmp_path: Path) -> None:
    shards_and_model(tmp_path)
    (tmp_path / "text.pt2").write_text("no")
    shards = ("--shards", tmp_path / "shards", "--out", tmp_path / "f")
    for args, text in (
        ((), "expected either checkpoint or backbone, such as --checkpoint FILE"),
        (("--backbone", "resnet"), "is neither a file nor one of r3d_18"),
        (("--backbone", tmp_path / "text.pt2"), "expected a file written by torch.export.save"),
        (("--backbone", "r3d_18", "--weights", tmp_path / "text.pt2"), "cannot be read as weights"),
    ):
        result = run(*shards, *args)
        assert (result.exit_code, text in result.stderr) == (1, True), result.output
    run(*shards, "--checkpoint", tmp_path / "model.pt")
    result = run(*shards, "--checkpoint", tmp_path / "model.pt", "--batch-size", 2)
    assert (result.exit_code, "contains features of a different model" in result.stderr) == (1, True)
