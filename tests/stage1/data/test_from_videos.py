from __future__ import annotations

import csv
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from click.testing import CliRunner, Result

from inference_runs import write_checkpoint
from stage1.cli.main import main
from stage1.data.from_videos import find_videos, sampling_config, temporary_shards
from stage1.data.reader import ClipReader
from stage1.inference.attention_data import load_attention_data
from synthetic_videos import VideoConfig, make_dataset
from vidshard.shards.layout import ClipShape
from vidshard.util.errors import UserError
from vidshard.video.sampling import SamplingConfig


def test_files_folders_and_globs_become_one_sorted_list_without_labels(tmp_path: Path) -> None:
    for name in ("a/Abuse/1.mp4", "a/NormalVideos/2.MOV", "b/3.mp4", "b/[x] 4.mp4", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    source = find_videos([str(tmp_path / path) for path in ("a", "b/3.mp4", "*/3.mp4", "b/[[]*")])
    assert source.root == tmp_path
    paths = [video.path for video in source.videos]
    assert paths == ["a/Abuse/1.mp4", "a/NormalVideos/2.MOV", "b/3.mp4", "b/[x] 4.mp4"]
    assert {(video.class_name, video.label) for video in source.videos} == {(None, -1)}
    assert [video.path for video in find_videos([str(tmp_path / "b" / "[x] 4.mp4")]).videos] == ["[x] 4.mp4"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("none.mp4", "none.mp4: no such file or folder, and no video matches it as a pattern"),
        ("*.mp4", "no video matches it as a pattern"),
        ("notes.txt", "is not a video name"),
        ("empty", "no video in"),
    ],
)
def test_a_path_without_a_video_is_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as error:
        find_videos([str(tmp_path / name)])
    assert text in str(error.value)


def test_the_sampling_of_a_manifest_comes_back() -> None:
    shape = ClipShape(num_frames=8, height=32, width=32)
    for sampling in (
        SamplingConfig(clip_len=8, clips_per_video=3),
        SamplingConfig(mode="dense", clip_len=8, stride=4, frame_step=2),
    ):
        settings = {**sampling.to_settings(), "frame_size": 32, "resize": "squash", "seed": 0}
        assert sampling_config(settings, shape=shape) == sampling
    with pytest.raises(UserError, match="cannot cut out of videos"):
        sampling_config(settings, shape=ClipShape(num_frames=8, height=32, width=64))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    make_dataset(folder, num_videos={"Test": 2}, config=VideoConfig(num_frames=(24, 32)), workers=1)
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter a folder that holds a checkpoint, with a separate folder for temporary files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    write_checkpoint(
        tmp_path / "checkpoints" / "binary_stage1_with_attention.pt",
        shape=(4, 32, 32),
        sampling={"mode": "uniform", "clip_len": 4, "clips_per_video": 2, "frame_size": 32, "decoder": "auto"},
        threshold=0.0,
        frame_gap_seconds=0.3,
    )
    return tmp_path


def infer_videos(*args: str | Path) -> Result:
    return CliRunner().invoke(main, ["infer", "--workers", "1", "--videos", *map(str, args)])


def test_mp4s_are_scored_with_the_sampling_of_the_checkpoint(dataset: Path, place: Path) -> None:
    result = infer_videos(dataset / "Test")
    assert result.exit_code == 0, result.output
    entries: list[dict[str, Any]] = json.loads((place / "stage1_output" / "anomalies.json").read_bytes())
    videos = sorted(str(path) for path in (dataset / "Test").rglob("*.mp4"))
    assert [entry["video_path"] for entry in entries] == [video for video in videos for _ in range(2)]
    assert all(os.path.isabs(entry["video_path"]) for entry in entries)
    assert [entry["clip_index"] for entry in entries] == [0, 1, 0, 1]
    assert {(entry["label"], entry["class"]) for entry in entries} == {(-1, None)}
    data = load_attention_data(place / "stage1_output" / "attention_data" / "stage1_attention_data.pt")
    assert data.clips.shape == (4, 4, 32, 32, 3)
    assert "Accuracy" not in result.stdout
    assert list((place / "tmp").iterdir()) == []


@pytest.mark.parametrize("resize", ["squash", "crop", "letterbox"])
def test_mp4s_become_square_as_the_training_clips_did(place: Path, resize: str) -> None:
    # A bright bar at the left edge of a wide frame: squashed it stays there, cropped it goes, with borders it moves in.
    frame = np.full((32, 96, 3), 40, np.uint8)
    frame[:, :24] = 220
    with av.open(str(place / "wide.mp4"), "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 32, "yuv420p"
        for _ in range(8):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode(None))
    sampling = {"mode": "uniform", "clip_len": 4, "clips_per_video": 1, "resize": resize, "codec": "jpeg"}
    with temporary_shards(
        ["wide.mp4"], shape=ClipShape(num_frames=4, height=32, width=32), sampling=sampling, workers=1
    ) as brought:
        reader = ClipReader(brought.folder)
        clips = np.empty((1, 4, 32, 32, 3), np.uint8)
        reader.read_clips([0], clips)
        assert reader.manifest.codec == "jpeg"
    corner, left_edge = clips[0, 0, 2, 2].mean(), clips[0, 0, 16, 2].mean()
    expected = {"squash": (220, 220), "crop": (40, 40), "letterbox": (0, 220)}[resize]
    assert (corner, left_edge) == pytest.approx(expected, abs=25)


@pytest.mark.parametrize(
    "sampling",
    [
        {"mode": "dense", "clip_len": 4, "stride": 4, "fps": 5.0},
        {"mode": "annotated", "clip_len": 4, "stride": 8, "frame_step": 2},
    ],
)
def test_mp4s_are_cut_as_dense_clips_by_time_or_by_frames(dataset: Path, place: Path, sampling: dict[str, Any]) -> None:
    video = next((dataset / "Test").rglob("*.mp4"))
    with temporary_shards(
        [str(video)], shape=ClipShape(num_frames=4, height=32, width=32), sampling=sampling, workers=1
    ) as brought:
        reader = ClipReader(brought.folder)
        assert {name: reader.manifest.settings[name] for name in sampling} == sampling
        gap = 1 / 5 if "fps" in sampling else 2 / VideoConfig().fps
        assert reader.frame_gap_seconds() == pytest.approx(gap, abs=0.05)
        assert len(reader) > 1


def test_a_video_that_cannot_be_decoded_is_named_and_the_others_are_scored(dataset: Path, place: Path) -> None:
    (place / "broken.mp4").write_bytes(b"no video" * 1000)
    good = next((dataset / "Test").rglob("*.mp4"))
    result = infer_videos(place / "broken.mp4", good)
    assert result.exit_code == 2, result.output
    assert "not decoded: " in result.stderr
    assert "broken.mp4" in result.stderr
    with open(place / "stage1_output" / "predictions.csv", newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 2
    run = json.loads((place / "stage1_output" / "run.json").read_bytes())
    assert [Path(failure["path"]).name for failure in run["failures"]] == ["broken.mp4"]


def test_when_no_video_can_be_decoded_nothing_is_written_and_nothing_left(place: Path) -> None:
    (place / "broken.mp4").write_bytes(b"no video" * 1000)
    result = infer_videos("broken.mp4")
    assert result.exit_code == 1
    assert "no video could be decoded: broken.mp4: " in result.stderr
    assert not (place / "stage1_output").exists()
    assert list((place / "tmp").iterdir()) == []


def test_another_frame_gap_is_a_warning_for_mp4s(dataset: Path, place: Path) -> None:
    path = place / "checkpoints" / "binary_stage1_with_attention.pt"
    sampling = {"mode": "uniform", "clip_len": 4, "clips_per_video": 1, "frame_size": 32}
    write_checkpoint(path, shape=(4, 32, 32), sampling=sampling, frame_gap_seconds=20.0)
    shutil.copy(next((dataset / "Test").rglob("*.mp4")), place / "a b'c.mp4")
    result = infer_videos("a b'c.mp4")
    assert result.exit_code == 0, result.output
    assert "trained on 20 s" in result.stderr
