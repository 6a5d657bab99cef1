"""Sets whose samples have a member with the label (`label_member`, format version 2)."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vidshard
from tiny_videos import damage_pictures, make_tiny_video, make_tiny_videos
from vidshard import BuildConfig, SamplingConfig, ShardSetWriter
from vidshard.building import array
from vidshard.execution.array_task import find_task
from vidshard.shards import layout
from vidshard.util.errors import UserError

VIDEOS = {"Abuse/a.mp4": 24, "Abuse/b.mp4": 24, "NormalVideos/n.mp4": 40}
OPTIONS: dict[str, Any] = {
    "sampling": SamplingConfig(mode="dense", clip_len=4),
    "frame_size": 16,
    "workers": 1,
    "label_member": True,
}


def members(folder: Path) -> list[tuple[str, bytes]]:
    found = []
    for path in sorted(folder.glob("shard-*.tar")):
        with tarfile.open(path) as archive:
            found += [(member.name, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]
    return found


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_videos(tmp_path_factory.mktemp("source") / "source", VIDEOS)


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "out"
    vidshard.build(source, out=out, **OPTIONS)
    return out


def test_each_sample_has_its_label_behind_its_record(built: Path, source: Path, tmp_path: Path) -> None:
    names = members(built)
    assert [Path(name).suffix for name, _ in names] == [".npy", ".json", ".cls"] * (len(names) // 3)
    labels = {"1" if name.startswith("Abuse") else "0" for name, _ in names}
    assert labels == {"0", "1"}
    assert all(data == (b"1" if name.startswith("Abuse") else b"0") for name, data in names if name.endswith(".cls"))
    shards = vidshard.open_shards(built)
    assert b'"format_version": 2,' in (built / "manifest.json").read_bytes()
    assert not list(vidshard.verify(built).faults)
    without = tmp_path / "without"
    vidshard.build(source, out=without, **{**OPTIONS, "label_member": False})
    assert b'"format_version": 1,' in (without / "manifest.json").read_bytes()
    plain = vidshard.open_shards(without)
    for row in range(len(plain.index)):  # any reader by the index needs to know nothing
        clip, record = plain.read_clip(row)
        assert np.array_equal(shards.read_clip(row)[0], clip)
        assert shards.read_clip(row)[1] == record
    with pytest.raises(UserError, match="label_member True, now none"):
        vidshard.build(source, out=built, **{**OPTIONS, "label_member": False})


@pytest.mark.filterwarnings("ignore")
def test_stock_webdataset_reads_pairs_of_clip_and_label(built: Path) -> None:
    import webdataset

    shards = [str(path) for path in sorted(built.glob("shard-*.tar"))]
    pairs = list(webdataset.WebDataset(shards, shardshuffle=False).decode().to_tuple("npy", "cls"))
    assert [label for _, label in pairs] == vidshard.open_shards(built).index.clips["label"].tolist()
    assert all(clip.shape == (4, 16, 16, 3) for clip, _ in pairs)


def test_a_label_that_was_changed_is_found(built: Path, tmp_path: Path) -> None:
    out = shutil.copytree(built, tmp_path / "out")
    path = out / layout.shard_name(0)
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        place = archive.getmember(members(out)[2][0]).offset_data
    data[place : place + 1] = b"0"
    path.write_bytes(data)
    faults = [fault.message for fault in vidshard.verify(out).faults]
    assert any("expected 'Abuse__a-000000.cls' with b'1'" in fault for fault in faults)


def test_repairing_and_extending_keep_the_member(built: Path, source: Path, tmp_path: Path) -> None:
    changing, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(source, changing)
    damage_pictures(changing / "Abuse" / "b.mp4")
    assert vidshard.build(changing, out=out, **OPTIONS).videos["failed"] == 1
    make_tiny_video(changing / "Abuse" / "b.mp4", VIDEOS["Abuse/b.mp4"], seed=1)
    vidshard.build(changing, out=out, retry_failed=True, **OPTIONS)
    assert bytes_of(out) == bytes_of(built)
    make_tiny_video(changing / "Abuse" / "c.mp4", 16)
    vidshard.build(changing, out=out, extend=True, **OPTIONS)
    assert not list(vidshard.verify(out).faults)
    assert members(out)[-1][0].endswith(".cls")


def test_array_tasks_give_the_same_set(built: Path, source: Path, tmp_path: Path) -> None:
    for index in range(2):
        task = find_task(index, 2, {})
        assert task is not None
        array.build_task(BuildConfig(source=source, out=tmp_path / "out", **OPTIONS), task)
    array.finalize(tmp_path / "out")
    assert bytes_of(tmp_path / "out") == bytes_of(built)


def test_finalize_cuts_a_half_failed_video_out(tmp_path: Path) -> None:
    """Video b begins in shard 0 and ends in shard 1. It becomes damaged between the two tasks."""
    lengths = {"Abuse/a.mp4": 24, "Abuse/b.mp4": 100, "NormalVideos/n.mp4": 24}
    videos = make_tiny_videos(tmp_path / "source", lengths)
    sampling = SamplingConfig(mode="dense", clip_len=8)
    options = {**OPTIONS, "sampling": sampling, "frame_size": 64, "shard_mb": 1}  # 10 clips a shard
    out, plain = tmp_path / "out", tmp_path / "plain"
    for index in range(2):
        task = find_task(index, 2, {})
        assert task is not None
        array.build_task(BuildConfig(source=videos, out=out, **options), task)
        if index == 0:
            assert members(out)[-1][0] == "Abuse__b-000006.cls"
            damage_pictures(videos / "Abuse" / "b.mp4")
    assert array.finalize(out).videos == {"found": 3, "ok": 2, "failed": 1, "skipped": 0}
    assert [name for name, _ in members(out)[6:9]] == [f"Abuse__a-000002.{suffix}" for suffix in ("npy", "json", "cls")]
    vidshard.build(videos, out=plain, **options)
    assert bytes_of(out) == bytes_of(plain)
    assert not list(vidshard.verify(out).faults)


def test_the_writer_of_clips_writes_it(tmp_path: Path) -> None:
    with ShardSetWriter(tmp_path / "set", clip_len=2, size=8, label_member=True) as writer:
        writer.add(np.zeros((2, 8, 8, 3), np.uint8), video="a.mp4", label=-1)
    assert [(name, data) for name, data in members(tmp_path / "set") if name.endswith(".cls")] == [
        ("a-000000.cls", b"-1")
    ]
    assert not list(vidshard.verify(tmp_path / "set").faults)
