from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import numpy.typing as npt
import pytest
import torch

from attention_files import write as write_attention_data
from fake_shards import write_shards
from inference_runs import LABELS, some_clips, write_checkpoint
from stage1.inference import outputs as output
from stage1.inference.outputs import Detection, OutputFiles
from stage1.inference.run import InferConfig, infer
from stage1.review import film_strip
from stage1.review.config import VisualizeConfig
from stage1.review.film_strip import FilmStrip, attended
from vidshard.util.errors import FormatError, UserError


def detection(number: int = 0, *, num_frames: int = 16, top: int = 5, **changes: Any) -> Detection:
    weights = [1.0 + 9 * (i == top) for i in range(num_frames)]
    fields: dict[str, Any] = {
        "video_path": f"/videos/Fighting/{number}.mp4",
        "key": f"Fighting__{number}-000000",
        "source": f"Fighting/{number}.mp4",
        "clip_index": 0,
        "class_name": "Fighting",
        "label": 1,
        "split": None,
        "confidence": 0.75,
        "attention_weights": tuple(weight / sum(weights) for weight in weights),
        "frame_indices": tuple(range(num_frames)),
        "seconds": tuple(float(i) for i in range(num_frames)),
        "fps": 25.0,
    }
    return Detection(**{**fields, **changes})


def write_run(folder: Path, detections: list[Detection], *, num_frames: int = 16) -> OutputFiles:
    files = OutputFiles(folder=folder)
    output.write_anomalies(files.anomalies, detections)
    clips = torch.zeros(len(detections), num_frames, 8, 8, 3, dtype=torch.uint8)
    write_attention_data(files.attention_data, detections, clips)
    files.run.write_text("{}")
    return files


def pixels(png: bytes) -> npt.NDArray[np.uint8]:
    return (matplotlib.image.imread(io.BytesIO(png))[..., :3] * 255).round().astype(np.uint8)


def columns_of(image: npt.NDArray[np.uint8], rows: slice, colour: tuple[int, int, int]) -> npt.NDArray[np.int64]:
    close = np.abs(image[rows].astype(int) - colour).max(axis=2) < 12
    return np.flatnonzero(close.any(axis=0))


@pytest.mark.parametrize(("num_frames", "top"), [(16, 5), (8, 0), (3, 2)])
def test_the_highest_bar_stands_under_its_frame(num_frames: int, top: int) -> None:
    frames = np.zeros((num_frames, 8, 8, 3), np.uint8)
    frames[top] = (0, 200, 0)  # a colour that nothing else in the picture has
    strip = FilmStrip(
        detection=detection(num_frames=num_frames, top=top), frames=frames, shown=tuple(range(num_frames))
    )
    image = pixels(film_strip.draw([strip], num_detections=1))
    green = np.abs(image.astype(int) - (0, 200, 0)).max(axis=2) < 12
    frame_rows, frame_columns = np.flatnonzero(green.any(axis=1)), np.flatnonzero(green.any(axis=0))
    # The middle of the tallest bar: only it reaches this high above the line the bars stand on.
    row = frame_rows.max() + 40
    bar = columns_of(image, slice(row, row + 1), (0xD5, 0x5E, 0x00))
    assert abs((bar.min() + bar.max()) - (frame_columns.min() + frame_columns.max())) <= 4
    assert frame_columns.min() <= bar.min() <= bar.max() <= frame_columns.max()


def test_the_strongest_clip_of_each_video_comes_before_a_second_of_any() -> None:
    clips = [
        detection(0, confidence=0.9),
        detection(0, confidence=0.95),
        detection(1, confidence=0.6),
        detection(2, confidence=0.8),
    ]
    assert film_strip.strongest(clips, count=3) == [1, 3, 2]
    assert film_strip.strongest(clips, count=9) == [1, 0, 3, 2]


def test_of_a_long_clip_the_most_attended_frames_are_shown() -> None:
    one = detection(num_frames=64, top=37)
    shown = film_strip.shown_positions(one.attention_weights)
    assert len(shown) == 16
    assert 37 in shown
    assert list(shown) == sorted(shown)


def test_visualize_draws_what_infer_wrote(tmp_path: Path) -> None:
    files = write_run(tmp_path, [detection(i, confidence=0.5 + i / 20) for i in range(8)])
    result = film_strip.visualize(VisualizeConfig(folder=tmp_path))
    assert (result.path, result.num_shown) == (files.picture, 6)
    first = files.picture.read_bytes()
    film_strip.visualize(VisualizeConfig(folder=tmp_path))
    assert files.picture.read_bytes() == first  # nothing in it varies from run to run
    assert pixels(first).shape[1] == 1600


def test_only_frames_above_the_equal_share_are_marked_as_attended() -> None:
    one = detection(num_frames=4, top=2, attention_weights=(0.25, 0.24, 0.27, 0.24))
    assert len(one.top_attention_indices) == 4
    assert attended(one) == [2]


@pytest.mark.parametrize("num_frames", [7, 12, 16, 24])
def test_equal_weights_mark_no_frame(num_frames: int) -> None:
    """The shortest float32 next to 1/12, say, is above it."""
    (weight,) = output.shortest_floats(np.array([1 / num_frames], np.float32))
    assert attended(detection(num_frames=num_frames, top=0, attention_weights=(weight,) * num_frames)) == []


def test_a_false_alarm_is_among_the_strongest() -> None:
    detections = [detection(i, confidence=0.9 - i / 100, label=int(i != 8)) for i in range(10)]
    assert film_strip.chosen(detections, 6) == [0, 1, 2, 3, 4, 8]
    assert film_strip.chosen(detections, 2, sort="weakest") == [9, 8]
    assert film_strip.chosen(detections, 3, sort="time") == [0, 1, 2]


def test_a_miss_is_drawn_from_the_shards_and_says_so(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", some_clips(), LABELS)
    model = write_checkpoint(tmp_path / "model.pt")
    infer(InferConfig(shards=shards, checkpoint=model, out=tmp_path / "run"))
    crimes = [
        clip.confidence for clip in output.read_predictions(tmp_path / "run" / "predictions.csv") if clip.label == 1
    ]
    lowest = min(confidence for confidence in crimes if confidence is not None)
    infer(InferConfig(shards=shards, checkpoint=model, out=tmp_path / "run", threshold=lowest + 1e-4))
    miss = film_strip.strongest_miss(OutputFiles(folder=tmp_path / "run"))
    clips = [clip for clip in output.read_predictions(tmp_path / "run" / "predictions.csv") if clip.outcome == "miss"]
    assert miss is not None
    assert miss.detection.confidence == max(clip.confidence or 0 for clip in clips)
    config = VisualizeConfig(folder=tmp_path / "run", num=2, out=tmp_path / "two.png")
    result = film_strip.visualize(config)
    assert (result.path, result.num_shown) == (tmp_path / "two.png", 2)
    shutil.rmtree(shards)
    assert film_strip.strongest_miss(OutputFiles(folder=tmp_path / "run")) is None


@pytest.mark.filterwarnings("error::UserWarning")
def test_names_of_any_kind_are_drawn(tmp_path: Path) -> None:
    names = ["Fighting/$x^{.mp4", "Fighting/\udcff普.mp4", "Fighting/" + "n" * 300 + ".mp4"]
    write_run(tmp_path, [detection(i, source=name) for i, name in enumerate(names)])
    assert film_strip.visualize(VisualizeConfig(folder=tmp_path)).num_shown == 3


@pytest.mark.parametrize("num_frames", [1, 2, 40])
def test_clips_of_any_length_are_drawn(tmp_path: Path, num_frames: int) -> None:
    write_run(tmp_path, [detection(num_frames=num_frames, top=0)], num_frames=num_frames)
    assert film_strip.visualize(VisualizeConfig(folder=tmp_path)).num_shown == 1


def test_without_detections_the_picture_says_so(tmp_path: Path) -> None:
    files = write_run(tmp_path, [])
    result = film_strip.visualize(VisualizeConfig(folder=tmp_path))
    assert (result.path, result.num_shown) == (files.picture, 0)
    assert (pixels(files.picture.read_bytes()) < 100).any()


def test_a_folder_without_a_finished_run_or_of_two_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished run of stage1 infer; run `stage1 infer --out"):
        film_strip.visualize(VisualizeConfig(folder=tmp_path))
    files = write_run(tmp_path, [detection(0)])
    output.write_anomalies(files.anomalies, [detection(1)])
    with pytest.raises(FormatError, match="different runs"):
        film_strip.visualize(VisualizeConfig(folder=tmp_path))
