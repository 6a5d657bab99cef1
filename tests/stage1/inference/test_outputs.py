from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from detections_made import detection
from stage1.inference import outputs as output
from stage1.inference.events import Event
from stage1.inference.outputs import OutputFiles, Prediction, VideoScore
from vidshard.util.errors import FormatError, UserError


def test_an_anomaly_record_holds_every_promised_field_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "anomalies.json"
    output.write_anomalies(path, [detection(), detection(class_name=None, split=None)])
    entry = json.loads(path.read_text(encoding="utf-8"))[0]
    assert entry["video_path"] == "/videos/Fighting/a.mp4"
    assert entry["confidence"] == 0.75
    assert entry["attention_weights"] == [0.1, 0.4, 0.1, 0.2, 0.1, 0.1]
    assert entry["top_attention_indices"] == [1, 3, 0, 2, 4]
    assert entry["frame_importance"] == [0.25, 1.0, 0.25, 0.5, 0.25, 0.25]
    assert (entry["source"], entry["clip_index"], entry["class"], entry["split"]) == (
        "Fighting/a.mp4",
        2,
        "Fighting",
        "Test",
    )
    assert (entry["frame_indices"][1], entry["seconds"][1]) == (2, 0.2)
    assert output.read_anomalies(path) == [detection(), detection(class_name=None, split=None)]


def test_a_short_clip_has_fewer_top_frames() -> None:
    assert detection(attention_weights=(0.2, 0.8)).top_attention_indices == [1, 0]


def test_predictions_are_decided_by_the_confidence_that_is_written(tmp_path: Path) -> None:
    confidence = output.shortest_floats(np.array([0.7], np.float32))[0]  # 0.69999999 as a 64-bit float
    rows = [
        Prediction(
            key="a-000000",
            source='Fighting/a "b", c.mp4',
            clip_index=0,
            class_name=None,
            label=-1,
            split=None,
            confidence=value,
            predicted=None if value is None else value >= 0.7,
            start_seconds=0.0,
            end_seconds=1.5,
        )
        for value in (confidence, None)
    ]
    output.write_predictions(tmp_path / "p.csv", rows)
    with open(tmp_path / "p.csv", newline="", encoding="utf-8") as file:
        scored, unscored = csv.DictReader(file)
    assert (scored["confidence"], scored["predicted"], scored["class"]) == ("0.7", "1", "")
    assert scored["source"] == 'Fighting/a "b", c.mp4'
    assert (unscored["confidence"], unscored["predicted"]) == ("", "")
    assert output.read_predictions(tmp_path / "p.csv") == rows


def test_a_name_that_is_not_unicode_survives(tmp_path: Path) -> None:
    odd = detection(source="Fighting/\udcff.mp4", video_path="/v/Fighting/\udcff.mp4")
    output.write_anomalies(tmp_path / "a.json", [odd])
    assert output.read_anomalies(tmp_path / "a.json") == [odd]


def test_reading_refuses_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `stage1 infer"):
        output.read_anomalies(tmp_path / "anomalies.json")
    (tmp_path / "a.json").write_text('[{"video_path": 1}]')
    with pytest.raises(FormatError, match=r"a\.json: 0: lacks confidence; run `stage1 infer` again"):
        output.read_anomalies(tmp_path / "a.json")


def test_videos_become_a_row_and_an_entry(tmp_path: Path) -> None:
    event = Event(
        start_frame=30,
        end_frame=59,
        start_seconds=1.0,
        end_seconds=2.0,
        peak_confidence=0.9,
        peak_seconds=1.0,
        mean_confidence=0.9,
    )
    video = VideoScore(
        source="Fighting/a.mp4",
        video_path="/v/Fighting/a.mp4",
        class_name="Fighting",
        label=1,
        split=None,
        num_frames=90,
        fps=30.0,
        duration_seconds=3.0,
        num_clips=4,
        num_unscored=1,
        scores=(0.1, 0.9, None),
        events=(event,),
        true_events=((45, 59),),
    )
    empty = dataclasses.replace(video, scores=(None,), events=(), true_events=None)
    output.write_videos(
        tmp_path / "v.csv", tmp_path / "e.json", [video, empty], threshold=0.5, settings={"low_ratio": 0.8}
    )
    written = json.loads((tmp_path / "e.json").read_text())
    assert (written["schema_version"], written["threshold"], written["low_ratio"]) == (1, 0.5, 0.8)
    first, second = written["videos"]
    assert first["events"] == [dataclasses.asdict(event)]
    assert first["truth"] == [{"start_frame": 45, "end_frame": 59, "start_seconds": 1.5, "end_seconds": 2.0}]
    assert (first["scores"], second["truth"]) == ([0.1, 0.9, None], None)
    with open(tmp_path / "v.csv", newline="", encoding="utf-8") as file:
        row, blank = csv.DictReader(file)
    assert (row["confidence"], row["mean_confidence"], row["predicted"], row["event_seconds"]) == (
        "0.9",
        "0.5",
        "1",
        "1.0",
    )
    assert (blank["confidence"], blank["predicted"], blank["num_events"]) == ("", "", "0")
    output.write_videos(tmp_path / "v.csv", tmp_path / "e.json", [], threshold=0.5, settings={})
    assert json.loads((tmp_path / "e.json").read_text())["videos"] == []


def test_old_outputs_are_moved_together_and_nothing_else(tmp_path: Path) -> None:
    files = OutputFiles(folder=tmp_path)
    written = (files.run, files.anomalies, files.attention_data, files.report, tmp_path / "report-1.html")
    for path in (*written, tmp_path / "notes.txt"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    files.set_old_aside()
    left = {path for path in tmp_path.rglob("*") if path.is_file()}
    earlier = tmp_path / "earlier-1"
    assert left == {tmp_path / "notes.txt", *(earlier / path.relative_to(tmp_path) for path in written)}


def test_outputs_of_a_killed_run_are_not_a_result(tmp_path: Path) -> None:
    files = OutputFiles(folder=tmp_path)
    files.anomalies.write_text("x")
    files.set_old_aside()
    assert list(tmp_path.iterdir()) == []
