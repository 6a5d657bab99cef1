from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stage1 import detections as output
from stage1.detections import Detection, OutputFiles, Prediction
from vidshard.errors import FormatError, UserError
from vidshard.shard_format import ClipShape


def detection(**changes: Any) -> Detection:
    fields: dict[str, Any] = {
        "video_path": "/videos/Fighting/a.mp4",
        "key": "Fighting__a-000002",
        "source": "Fighting/a.mp4",
        "clip_index": 2,
        "class_name": "Fighting",
        "label": 1,
        "split": "Test",
        "confidence": 0.75,
        "attention_weights": (0.1, 0.4, 0.1, 0.2, 0.1, 0.1),
        "frame_indices": (0, 2, 4, 6, 8, 10),
        "seconds": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    }
    return Detection(**{**fields, **changes})


def write_pt(path: Path, detections: list[Detection], clips: torch.Tensor) -> None:
    output.write_attention_data(path, detections, clips, checkpoint_sha256="c", shards_digest="s")


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
            start_seconds=0.0,
            end_seconds=1.5,
        )
        for value in (confidence, None)
    ]
    output.write_predictions(tmp_path / "p.csv", rows, threshold=0.7)
    with open(tmp_path / "p.csv", newline="", encoding="utf-8") as file:
        scored, unscored = csv.DictReader(file)
    assert (scored["confidence"], scored["predicted"], scored["class"]) == ("0.7", "1", "")
    assert scored["source"] == 'Fighting/a "b", c.mp4'
    assert (unscored["confidence"], unscored["predicted"]) == ("", "")


@pytest.mark.parametrize("num", [0, 2])
def test_attention_data_loads_with_weights_only_and_keeps_its_shapes(tmp_path: Path, num: int) -> None:
    path = tmp_path / "attention_data" / "x.pt"
    clips = torch.randint(0, 256, (num, 6, 4, 5, 3), dtype=torch.uint8)
    write_pt(path, [detection()] * num, clips)
    fields = torch.load(path, weights_only=True)
    assert fields["schema_version"] == 1
    assert fields["video_paths"] == ["/videos/Fighting/a.mp4"] * num
    assert fields["splits"] == ["Test"] * num
    assert (fields["confidences"].shape, fields["confidences"].dtype) == ((num,), torch.float32)
    assert (fields["attention_weights"].shape, fields["frame_indices"].shape) == ((num, 6), (num, 6))
    assert torch.equal(fields["clips"], clips)
    data = output.load_attention_data(path)
    assert len(data) == num
    assert data.clips.shape == (num, 6, 4, 5, 3)


def test_a_name_that_is_no_unicode_survives_in_both_files(tmp_path: Path) -> None:
    odd = detection(source="Fighting/\udcff.mp4", video_path="/v/Fighting/\udcff.mp4")
    output.write_anomalies(tmp_path / "a.json", [odd])
    write_pt(tmp_path / "a.pt", [odd], torch.zeros(1, 6, 2, 2, 3, dtype=torch.uint8))
    assert output.read_anomalies(tmp_path / "a.json") == [odd]
    assert output.load_attention_data(tmp_path / "a.pt").video_paths == [odd.video_path]


def test_reading_refuses_what_is_missing_damaged_or_of_another_version(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `stage1 infer"):
        output.read_anomalies(tmp_path / "anomalies.json")
    with pytest.raises(UserError, match="run `stage1 infer"):
        output.load_attention_data(tmp_path / "x" / "a.pt")
    (tmp_path / "a.json").write_text('[{"video_path": 1}]')
    with pytest.raises(FormatError, match="no list of detections"):
        output.read_anomalies(tmp_path / "a.json")
    (tmp_path / "a.pt").write_bytes(b"no zip")
    with pytest.raises(FormatError, match="no attention data"):
        output.load_attention_data(tmp_path / "a.pt")
    torch.save({"schema_version": 9}, tmp_path / "b.pt")
    with pytest.raises(FormatError, match="schema version 9, this stage1 reads 1"):
        output.load_attention_data(tmp_path / "b.pt")


@pytest.mark.parametrize(
    ("field", "text"),
    [
        *((name, f"{name} has 1 entries, expected 2 as keys has") for name in ("video_paths", "classes", "splits")),
        *((name, f"{name} has 1 entries, expected 2 as keys has") for name in ("labels", "confidences", "clips")),
        *((name, f"{name} has the shape (1, 6), expected (2, 6)") for name in ("attention_weights", "frame_indices")),
        ("seconds", "seconds has the shape (1, 6), expected (2, 6)"),
    ],
)
def test_a_field_of_another_length_is_refused(tmp_path: Path, field: str, text: str) -> None:
    path = tmp_path / "data.pt"
    write_pt(path, [detection(), detection()], torch.zeros((2, 6, 4, 4, 3), dtype=torch.uint8))
    fields = torch.load(path, weights_only=True)
    torch.save({**fields, field: fields[field][:1]}, path)
    with pytest.raises(FormatError) as error:
        output.load_attention_data(path)
    assert text in str(error.value)


def test_old_outputs_are_removed_and_nothing_else(tmp_path: Path) -> None:
    files = OutputFiles(folder=tmp_path)
    for path in (files.run, files.anomalies, files.attention_data, tmp_path / "notes.txt"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    files.remove_old()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "notes.txt"]


def test_more_clips_than_memory_are_refused() -> None:
    shape = ClipShape(num_frames=16, height=112, width=112)
    output.check_clip_bytes(1000, shape, threshold=0.5)
    with pytest.raises(UserError, match=r"20,000 detections are 11.2 GiB, .* at most 8 GiB; .* --threshold above 0.5"):
        output.check_clip_bytes(20_000, shape, threshold=0.5)
