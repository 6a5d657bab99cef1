from __future__ import annotations

import contextlib
import csv
import functools
import http.server
import json
import os
import tempfile
import threading
from collections.abc import Iterator
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
from stage1.model.checkpoint import load_checkpoint
from stage1.model.released import PATH
from synthetic_videos import VideoConfig, make_dataset
from tiny_videos import make_tiny_video
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
        assert sampling_config(settings, shape=shape, gap_seconds=0.0, stride=None) == sampling
    with pytest.raises(UserError, match="cannot cut from videos"):
        sampling_config(settings, shape=ClipShape(num_frames=8, height=32, width=64), gap_seconds=0.1, stride=None)
    with pytest.raises(UserError, match="`stride` needs the time between"):
        sampling_config(settings, shape=shape, gap_seconds=0.0, stride=2)


@pytest.mark.parametrize(
    ("settings", "gap", "fps"), [({"mode": "uniform"}, 0.125, 8.0), ({"mode": "dense", "fps": 5.0}, 0.3, 5.0)]
)
def test_videos_are_cut_into_overlapping_windows_at_the_frame_gap_of_training(
    settings: dict[str, Any], gap: float, fps: float
) -> None:
    shape = ClipShape(num_frames=8, height=32, width=32)
    sampling = sampling_config({**settings, "clip_len": 8}, shape=shape, gap_seconds=gap, stride=None)
    assert (sampling.mode, sampling.fps, sampling.stride) == ("dense", fps, 4)
    assert sampling.whole_if_short == (settings["mode"] == "uniform")


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


@contextlib.contextmanager
def web_server(folder: Path) -> Iterator[str]:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def infer_videos(*args: str | Path) -> Result:
    return CliRunner().invoke(main, ["infer", "--workers", "1", "--videos", *map(str, args)])


def test_mp4s_are_scored_with_the_sampling_of_the_checkpoint(dataset: Path, place: Path) -> None:
    result = infer_videos(dataset / "Test")
    assert result.exit_code == 0, result.output
    entries: list[dict[str, Any]] = json.loads((place / "stage1_output" / "anomalies.json").read_bytes())
    videos = sorted(str(path) for path in (dataset / "Test").rglob("*.mp4"))
    assert sorted({entry["video_path"] for entry in entries}) == videos
    assert all(os.path.isabs(entry["video_path"]) for entry in entries)
    assert {(entry["label"], entry["class"]) for entry in entries} == {(-1, None)}
    data = load_attention_data(place / "stage1_output" / "attention_data" / "stage1_attention_data.pt")
    assert data.clips.shape == (len(entries), 4, 32, 32, 3)
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
    shape = ClipShape(num_frames=4, height=32, width=32)
    cut = sampling_config(sampling, shape=shape, gap_seconds=0.0, stride=None)
    with temporary_shards(["wide.mp4"], shape=shape, sampling=cut, settings=sampling, workers=1) as brought:
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
    shape = ClipShape(num_frames=4, height=32, width=32)
    cut = sampling_config(sampling, shape=shape, gap_seconds=0.0, stride=None)
    with temporary_shards([str(video)], shape=shape, sampling=cut, settings=sampling, workers=1) as brought:
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
        assert {row["source"] for row in csv.DictReader(file)} == {
            good.relative_to(os.path.commonpath([place, good])).as_posix()
        }
    run = json.loads((place / "stage1_output" / "run.json").read_bytes())
    assert [Path(failure["path"]).name for failure in run["failures"]] == ["broken.mp4"]


def test_when_no_video_can_be_decoded_nothing_is_written_and_nothing_left(place: Path) -> None:
    (place / "broken.mp4").write_bytes(b"no video" * 1000)
    result = infer_videos("broken.mp4")
    assert result.exit_code == 1
    assert "no video could be decoded: broken.mp4: " in result.stderr
    assert not (place / "stage1_output").exists()
    assert list((place / "tmp").iterdir()) == []


def test_a_long_video_is_cut_into_windows_and_every_second_has_a_score(place: Path) -> None:
    make_tiny_video(place / "a b'c.mp4", 605)  # 10 frames/s; the checkpoint's frames are 0.3 s apart
    result = infer_videos("a b'c.mp4")
    assert result.exit_code == 0, result.output
    (video,) = json.loads((place / "stage1_output" / "events.json").read_bytes())["videos"]
    with open(place / "stage1_output" / "predictions.csv", newline="", encoding="utf-8") as file:
        starts = [float(row["start_seconds"]) for row in csv.DictReader(file)]
    assert len(starts) == 100
    assert starts[:3] == [0.0, 0.6, 1.2]
    assert len(video["scores"]) == 61
    assert None not in video["scores"]
    assert "meaningless" not in result.stderr
    assert "Stage 1 Inference: 60/60 seconds" in result.stderr
    assert infer_videos("a b'c.mp4", "--stride", "4").exit_code == 0
    clips = json.loads((place / "stage1_output" / "run.json").read_bytes())["clips"]
    assert clips["found"] == 51  # the last one ends at the last frame


def test_a_slow_frame_gap_leaves_no_second_without_a_score(place: Path) -> None:
    sampling = {"mode": "uniform", "clip_len": 4, "clips_per_video": 1, "frame_size": 32}
    path = place / "checkpoints" / "binary_stage1_with_attention.pt"
    write_checkpoint(path, shape=(4, 32, 32), sampling=sampling, frame_gap_seconds=4.0)
    make_tiny_video(place / "camera.mp4", 395)
    result = infer_videos("camera.mp4", "--stride", "4")
    assert result.exit_code == 0, result.output
    (video,) = json.loads((place / "stage1_output" / "events.json").read_bytes())["videos"]
    assert len(video["scores"]) == 40
    assert None not in video["scores"]


def test_a_video_not_longer_than_a_window_is_one_clip_as_in_training(place: Path) -> None:
    make_tiny_video(place / "short.mp4", 10)
    make_tiny_video(place / "long.mp4", 30)
    result = infer_videos("short.mp4", "long.mp4")
    assert result.exit_code == 0, result.output
    entries = json.loads((place / "stage1_output" / "anomalies.json").read_bytes())
    by_video = {
        name: [e["frame_indices"] for e in entries if e["source"] == name] for name in ("short.mp4", "long.mp4")
    }
    assert by_video["short.mp4"] == [[0, 3, 6, 9]]
    assert by_video["long.mp4"][:2] == [[0, 3, 6, 9], [6, 9, 12, 15]]


def test_without_a_trained_model_videos_are_scored_with_the_released_one_and_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_tiny_video(tmp_path / "camera.mp4", 40)
    result = infer_videos("camera.mp4")
    assert result.exit_code == 0, result.output
    assert "only knows fights of 36 recordings; it is there to try, not for decisions about people" in result.stderr
    assert Path(json.loads((tmp_path / "stage1_output" / "run.json").read_bytes())["checkpoint"]["path"]) == PATH
    assert (tmp_path / "stage1_output" / "events.json").exists()
    result = infer_videos("camera.mp4", "--checkpoint", "checkpoints/other.pt")
    assert (result.exit_code, "no checkpoint checkpoints/other.pt" in result.stderr) == (1, True)
    result = CliRunner().invoke(main, ["infer", "--shards", "shards"])
    assert "no checkpoint" in result.stderr  # shards are those of someone who trains


def test_the_released_model_is_small_and_names_what_it_was_trained_on() -> None:
    assert PATH.stat().st_size < 2_000_000
    checkpoint = load_checkpoint(PATH)
    assert len(checkpoint.train_videos) == 233
    assert checkpoint.train_config["shards"] == ["fight/Train", "fight/Validation", "fight/Test"]
    assert (checkpoint.optimizer_state_dict, checkpoint.run_state) == ({}, {})


def test_videos_at_urls_are_scored(place: Path) -> None:
    make_tiny_video(place / "web" / "hall" / "a.mp4", 30)
    make_tiny_video(place / "web" / "yard" / "b.mp4", 30)
    with web_server(place / "web") as url:
        result = infer_videos(f"{url}/hall/a.mp4?token=secret", "--out", "one")
        assert result.exit_code == 0, result.output
        result = infer_videos(f"{url}/hall/a.mp4", f"{url}/yard/b.mp4", "--out", "two")
        assert result.exit_code == 0, result.output
        (entry, *_) = json.loads((place / "one" / "anomalies.json").read_bytes())
        assert (entry["source"], entry["video_path"]) == ("a.mp4", f"{url}/hall/a.mp4?…")
        assert "secret" not in (place / "one" / "run.json").read_text()
        entries = json.loads((place / "two" / "anomalies.json").read_bytes())
        assert {entry["source"] for entry in entries} == {"hall/a.mp4", "yard/b.mp4"}
        result = infer_videos(f"{url}/hall/a.mp4", "web/yard/b.mp4")
    assert result.exit_code == 1
    assert "--videos mixes paths and URLs, expected one kind" in result.stderr


@pytest.mark.parametrize("path", ["rtsp://me:secret@camera/1", "0", "/dev/video1"])
def test_live_streams_and_cameras_are_refused_in_a_sentence(place: Path, path: str) -> None:
    result = infer_videos(path)
    assert result.exit_code == 1
    what = "stream" if "://" in path else "camera"
    shown = path.replace("me:secret@", "")
    assert result.stderr.startswith(f"error: --videos {shown} is a live {what}, expected files; record it first")
