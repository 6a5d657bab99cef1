from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds

import stage1
from attention_files import some_detections, write
from detections_made import detection
from stage1.inference import attention_data
from stage1.inference.attention_data import load_attention_data
from vidshard.shards.layout import ClipShape
from vidshard.util.errors import FormatError, UserError


@pytest.mark.parametrize("num", [0, 3])
@pytest.mark.parametrize("name", ["attention_data/x.pt", "attention_data/shards"])
def test_both_formats_give_the_same_data(tmp_path: Path, num: int, name: str) -> None:
    clips = torch.randint(0, 256, (num, 6, 4, 5, 3), dtype=torch.uint8)
    data = stage1.load_attention_data(write(tmp_path / name, some_detections(num), clips))
    assert len(data) == num
    assert data.video_paths == ["/videos/Fighting/a.mp4"] * num
    assert (data.classes, data.splits) == (["Fighting"] * num, ["Test"] * num)
    assert (data.confidences.shape, data.confidences.dtype) == ((num,), torch.float32)
    assert (data.attention_weights.shape, data.frame_indices.shape, data.seconds.shape) == ((num, 6),) * 3
    assert (data.fps.tolist(), data.trained_on.tolist()) == ([10.0] * num, [0] * num)
    assert (data.threshold, data.missed_crimes, data.out_of_fold) == (0.5, 3, False)
    assert tuple(data.clips.shape) == (num, 6, 4, 5, 3)
    assert torch.equal(data.clips[0:num], clips)
    if num:
        assert torch.equal(data.clips[2], clips[2])
        assert torch.equal(data.clips[[2, 0]], clips[[2, 0]])
    assert not list(tmp_path.rglob("*.partial"))


def test_shards_are_read_by_stock_webdataset_and_are_the_same_again(tmp_path: Path) -> None:
    clips = torch.randint(0, 256, (3, 6, 4, 5, 3), dtype=torch.uint8)
    for name in ("a", "b"):
        write(tmp_path / name, some_detections(3), clips)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["manifest.json", "shard-000000.tar", "shard-000001.tar"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    urls = [str(tmp_path / "a" / name) for name in names[1:]]
    samples = list(wds.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [entry.key for entry in some_detections(3)]
    assert np.array_equal(samples[2]["npy"], clips[2].numpy())
    assert (samples[2]["json"]["stage2_class"], samples[2]["json"]["trained_on"]) == ("Fighting", "no")
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert (manifest["num_detections"], manifest["stage2_classes"], manifest["splits"]) == (
        3,
        {"Fighting": 3},
        ["Test"],
    )


def test_a_normal_detected_by_mistake_stays_as_class_normal(tmp_path: Path) -> None:
    false_alarm = detection(label=0, class_name="Training_Normal_Videos_Anomaly")
    clips = torch.zeros((2, 6, 4, 5, 3), dtype=torch.uint8)
    for name in ("x.pt", "x"):
        data = load_attention_data(write(tmp_path / name, [false_alarm, detection()], clips))
        assert data.classes == ["Normal", "Fighting"]


@pytest.mark.parametrize("name", ["x.pt", "x"])
def test_training_on_uninformative_data_is_refused(tmp_path: Path, name: str) -> None:
    clips = torch.zeros((1, 6, 4, 5, 3), dtype=torch.uint8)
    path = write(tmp_path / name, [detection()], clips)
    load_attention_data(path)
    with pytest.raises(UserError, match=r"1 of 1 detections belong to the split Test"):
        load_attention_data(path, for_training=True)
    write(path, [detection(split="Train")], clips, trained_on=1)
    with pytest.raises(UserError, match=r"the model was trained on the videos of .*crossval --save-attention"):
        load_attention_data(path, for_training=True)
    write(path, [detection(split="Train")], clips, trained_on=-1)
    with pytest.raises(UserError, match="may have been trained on"):
        load_attention_data(path, for_training=True)
    write(path, [detection(split="Train")], clips, trained_on=0, out_of_fold=True)
    assert load_attention_data(path, for_training=True).out_of_fold


def test_damaged_shards_are_refused(tmp_path: Path) -> None:
    clips = torch.zeros((3, 6, 4, 5, 3), dtype=torch.uint8)
    folder = write(tmp_path / "x", some_detections(3), clips)
    shard = folder / "shard-000001.tar"
    data = shard.read_bytes()
    shard.write_bytes(data[:-512])
    with pytest.raises(FormatError, match=r"shard-000001\.tar has .* bytes, expected"):
        load_attention_data(folder)
    shard.unlink()
    with pytest.raises(FormatError, match=r"shard-000001\.tar is missing"):
        load_attention_data(folder)
    manifest = folder / "manifest.json"
    shard.write_bytes(data)
    fields = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**fields, "num_detections": 4}))
    with pytest.raises(FormatError, match="hold 3 detections, expected 4"):
        load_attention_data(folder)
    manifest.write_text(json.dumps({**fields, "schema_version": 9}))
    with pytest.raises(FormatError, match="schema version 9, but this stage1 reads only 1"):
        load_attention_data(folder)
    manifest.write_text(
        json.dumps({**fields, "shards": [{**fields["shards"][0], "name": "../other/shard-000000.tar"}]})
    )
    with pytest.raises(FormatError, match=r"calls shard 0 '\.\./other/shard-000000\.tar'"):
        load_attention_data(folder)
    manifest.write_text("{}")
    with pytest.raises(FormatError, match="not a manifest of attention shards"):
        load_attention_data(folder)


@pytest.mark.parametrize("name", ["x.pt", "x"])
def test_a_key_that_leads_to_another_folder_is_refused(tmp_path: Path, name: str) -> None:
    """`stage1 extract` names its pictures by the keys."""
    path = write(
        tmp_path / name, [dataclasses.replace(detection(), key="../../a")], torch.zeros((1, 6, 4, 4, 3)).byte()
    )
    with pytest.raises(FormatError, match=r"contains '\.\./\.\./a', which is not a valid clip key"):
        load_attention_data(path)


def test_a_folder_is_searched_for_either_format(tmp_path: Path) -> None:
    clips = torch.zeros((1, 6, 4, 5, 3), dtype=torch.uint8)
    write(tmp_path / "a" / "attention_data" / "stage1_attention_data.pt", [detection()], clips)
    write(tmp_path / "b" / "attention_data" / "shards", [detection()], clips)
    for name in ("a", "a/attention_data", "b", "b/attention_data"):
        assert len(load_attention_data(tmp_path / name)) == 1


def test_reading_refuses_missing_damaged_and_unsupported_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `stage1 infer"):
        load_attention_data(tmp_path / "x" / "a.pt")
    (tmp_path / "a.pt").write_bytes(b"no zip")
    with pytest.raises(FormatError, match="not attention data"):
        load_attention_data(tmp_path / "a.pt")
    torch.save({"schema_version": 9}, tmp_path / "b.pt")
    with pytest.raises(FormatError, match="schema version 9, but this stage1 reads only 1"):
        load_attention_data(tmp_path / "b.pt")


@pytest.mark.parametrize(
    ("field", "text"),
    [
        *((name, f"{name} has 1 entries, expected 2 as keys has") for name in ("video_paths", "classes", "splits")),
        *((name, f"{name} has 1 entries, expected 2 as keys has") for name in ("fps", "trained_on")),
        *((name, f"{name} has 1 entries, expected 2 as keys has") for name in ("labels", "confidences", "clips")),
        *((name, f"{name} has the shape (1, 6), expected (2, 6)") for name in ("attention_weights", "frame_indices")),
        ("seconds", "seconds has the shape (1, 6), expected (2, 6)"),
    ],
)
def test_a_field_of_another_length_is_refused(tmp_path: Path, field: str, text: str) -> None:
    path = tmp_path / "data.pt"
    write(path, [detection(), detection()], torch.zeros((2, 6, 4, 4, 3), dtype=torch.uint8))
    fields = torch.load(path, weights_only=True)
    torch.save({**fields, field: fields[field][:1]}, path)
    with pytest.raises(FormatError) as error:
        load_attention_data(path)
    assert text in str(error.value)


def test_more_clips_than_memory_are_refused() -> None:
    shape = ClipShape(num_frames=16, height=112, width=112)
    attention_data.check_clip_bytes(1000, shape, threshold=0.5)
    with pytest.raises(UserError, match=r"20,000 detections take 11.2 GiB, .* at most 8 GiB; .* `threshold` above 0.5"):
        attention_data.check_clip_bytes(20_000, shape, threshold=0.5)
