from __future__ import annotations

import csv
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

from attention_files import some_detections, write
from inference_runs import write_checkpoint
from schemas import check_rows
from stage1 import load_attention_data
from stage1.cli.main import main
from stage1.data.loader import ClipLoader, ClipReader
from stage1.data.selection import map_labels
from stage1.inference.run import InferConfig, infer
from tiny_videos import make_tiny_videos
from vidshard.building.run import BuildConfig, build
from vidshard.inspection.verify import verify
from vidshard.video.sampling import SamplingConfig


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output folder of infer over three unseen real videos, one of them normal."""
    folder = tmp_path_factory.mktemp("run")
    make_tiny_videos(folder / "Train", {"Fighting/a.mp4": 20, "Robbery/b.mp4": 20, "NormalVideos/c.mp4": 20})
    sampling = SamplingConfig(mode="dense", clip_len=4, stride=8)
    build(BuildConfig(source=folder / "Train", out=folder / "shards", sampling=sampling, frame_size=16, workers=1))
    write_checkpoint(folder / "model.pt", train_videos=["Train/other.mp4"], frame_gap_seconds=0.0)
    infer(InferConfig(shards=folder / "shards", checkpoint=folder / "model.pt", out=folder / "out", threshold=0.0))
    return folder / "out"


def extract(folder: Path, out: Path, *args: str | Path) -> Result:
    return CliRunner().invoke(main, ["extract", str(folder), "--out", str(out), *map(str, args)])


def rows_of(out: Path) -> list[dict[str, str]]:
    with open(out / "frames.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_most_attended_frames_become_pictures_and_shards(run_folder: Path, tmp_path: Path) -> None:
    result = extract(run_folder, tmp_path / "x", "--top-k", "3")
    assert result.exit_code == 0, result.output
    data = load_attention_data(run_folder)
    rows = rows_of(tmp_path / "x")
    check_rows(tmp_path / "x" / "frames.csv", "frames")
    assert len(rows) == 3 * len(data) > 0
    assert {path.name for path in (tmp_path / "x" / "frames").iterdir()} == {"Fighting", "Robbery", "Normal"}
    best = [row for row in rows if row["rank"] == "1"]
    assert [int(row["position"]) for row in best] == data.attention_weights.argmax(1).tolist()
    for row in rows:
        picture = cv2.imread(str(tmp_path / "x" / row["file"]))
        assert picture.shape == (16, 16, 3)
        i = data.keys.index(row["key"])
        frame = data.clips[i][int(row["position"])].numpy()
        assert np.abs(picture[..., ::-1].astype(int) - frame).mean() < 25  # JPEG of colour noise
        assert int(row["frame_index"]) == int(data.frame_indices[i][int(row["position"])])
    reader = ClipReader(tmp_path / "x" / "shards")
    assert (str(reader.clip_shape), len(reader)) == ("3×16×16", len(data))
    assert verify(tmp_path / "x" / "shards", deep=True).faults == ()
    classes = {"Normal": 0, "Fighting": 1, "Robbery": 2}
    loader = ClipLoader(reader, labels=map_labels(reader, classes), batch_size=64, shuffle=False)
    (batch,) = loader
    assert batch.labels.tolist() == [classes[name or ""] for name in data.classes]
    chosen = sorted(int(row["position"]) for row in rows if row["key"] == data.keys[0])
    assert np.array_equal(batch.clips[0].numpy(), data.clips[0][chosen].numpy())


def test_frames_of_the_video_have_its_resolution(run_folder: Path, tmp_path: Path) -> None:
    result = extract(run_folder, tmp_path / "x", "--frames-from", "video", "--top-k", "2", "--frame-size", "24")
    assert result.exit_code == 0, result.output
    data = load_attention_data(run_folder)
    for row in rows_of(tmp_path / "x"):
        picture = cv2.imread(str(tmp_path / "x" / row["file"]))[..., ::-1]
        assert picture.shape == (48, 64, 3)
        capture = cv2.VideoCapture(row["video_path"])
        for _ in range(int(row["frame_index"]) + 1):
            _, frame = capture.read()
        assert np.abs(picture.astype(int) - frame[..., ::-1]).mean() < 12
    assert str(ClipReader(tmp_path / "x" / "shards").clip_shape) == "2×24×24"
    assert len(ClipReader(tmp_path / "x" / "shards")) == len(data)


def test_videos_that_are_gone_are_named_and_the_others_extracted(run_folder: Path, tmp_path: Path) -> None:
    moved = run_folder.parent / "Train" / "Robbery" / "b.mp4"
    shutil.move(moved, tmp_path / "b.mp4")
    try:
        result = extract(run_folder, tmp_path / "x", "--frames-from", "video")
    finally:
        shutil.move(tmp_path / "b.mp4", moved)
    assert result.exit_code == 2
    assert "frames of" in result.stderr
    assert "b.mp4 cannot be decoded" in result.stderr
    assert {row["class"] for row in rows_of(tmp_path / "x")} == {"Fighting", "Normal"}


def test_data_not_for_training_is_refused_but_may_be_inspected(tmp_path: Path) -> None:
    import torch

    write(tmp_path / "run", some_detections(1), torch.zeros((1, 6, 4, 5, 3), dtype=torch.uint8))
    result = extract(tmp_path / "run", tmp_path / "x")
    assert (result.exit_code, "to the split Test" in result.stderr) == (1, True)
    result = extract(tmp_path / "run", tmp_path / "x", "--for-looking")
    assert result.exit_code == 0, result.output
    assert "3 crime clips were missed" in result.stdout
    assert len(rows_of(tmp_path / "x")) == 5
    assert not (tmp_path / "x" / "shards").exists()
    result = extract(tmp_path / "run", tmp_path / "x", "--for-looking")
    assert (result.exit_code, "is not empty" in result.stderr) == (1, True)


def test_folds_of_stage_2_that_leak_are_warned_of(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "fold.txt").write_text("Fighting/Fighting003_x264.mp4\nRobbery/Robbery009_x264.mp4\n")
    (tmp_path / "test.txt").write_text("Fighting/Fighting003_x264.mp4\nAbuse/Abuse028_x264.mp4\n")
    result = extract(run_folder, tmp_path / "x")
    assert "official folds for stage 2 (action recognition) contain 121 to 145" in result.stderr
    lists = ("--stage2-list", tmp_path / "fold.txt", "--test-list", tmp_path / "test.txt")
    result = extract(run_folder, tmp_path / "y", *lists)
    assert result.exit_code == 0
    assert "fold.txt would leak: 1 of its 2 videos are test videos of stage 1" in result.stderr
    result = extract(run_folder, tmp_path / "z", *lists[:2])
    assert (result.exit_code, "stage2_list needs test_list" in result.stderr) == (1, True)


def test_a_run_that_was_killed_is_repeated(run_folder: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert extract(run_folder, whole).exit_code == 0
    (killed / "frames").mkdir(parents=True)
    (killed / "frames" / "left.jpg").touch()
    assert "is not empty" in extract(run_folder, killed).stderr
    (killed / ".unfinished").touch()
    assert extract(run_folder, killed).exit_code == 0
    names = [{path.relative_to(folder) for path in folder.rglob("*")} for folder in (whole, killed)]
    assert names[0] == names[1]
