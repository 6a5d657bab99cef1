"""Bytes that have changed since a set was written, in files that are only partly covered by checksums when read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fake_shards import moving_clips, write_shards
from inference_runs import place as place
from inference_runs import stage1
from vidshard.shards.manifest import open_shards


def change_record(folder: Path, row: int, old: bytes, new: bytes) -> str:
    """Replace a part of the record of a clip, in a shard; return the clip's key."""
    shards = open_shards(folder)
    clip = shards.index.clips[row]
    path = shards.shard_path(int(clip["shard"]))
    data = bytearray(path.read_bytes())
    place = data.index(old, int(clip["offset"]) + int(clip["size"]))
    data[place : place + len(old)] = new
    path.write_bytes(data)
    return shards.index.key(row)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (b'_seconds":[0.0', b'_seconds":[9.0', "has frames or times that are not ascending"),
        (b'_indices":[0,1,2,3', b'_indices":[0,1,2,4', "names frame 4 of a video of 4 frames"),
        (b'_seconds":[0.0,0.1', b'_seconds":[0.0,"1"', "time 1 is '1'"),
        (b'"label":1', b'"label":0', "says label 0, the index 1"),
        (b'"fps":10.0', b'"fps":90.0', "says fps 90.0, the index 10.0"),
    ],
)
def test_a_record_that_contradicts_the_index_is_refused(place: Path, old: bytes, new: bytes, why: str) -> None:
    key = change_record(place / "shards" / "Test", 1, old, new)
    done = stage1("infer", "--device", "cpu")
    assert done.exit_code == 2, done.output
    assert f"not scored: clip '{key}'" in done.output
    assert why in done.output


TRAIN = ["-c", "from stage1.cli.main import main; main()", "train", "--shards", "shards", "--val-fraction", "0"]


@pytest.mark.parametrize("change", ["cut", "overwritten"])
def test_training_stops_when_a_shard_changes_under_it(tmp_path: Path, change: str) -> None:
    clips, labels = moving_clips(24)
    path = write_shards(tmp_path / "shards", clips, labels) / "shard-000001.tar"
    command = [sys.executable, *TRAIN, "--device", "cpu", "--epochs", "200", "--model-size", "small"]
    with open(tmp_path / "errors", "w") as file:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=file, text=True)
    assert process.stdout is not None
    while not process.stdout.readline().startswith("Epoch 2 "):
        pass
    if change == "cut":
        os.truncate(path, 1000)
    else:
        with open(path, "r+b") as file:
            file.write(bytes(path.stat().st_size))
    process.communicate(timeout=100)
    errors = [
        line for line in (tmp_path / "errors").read_text().splitlines() if not line.startswith(("Epoch", "Motion"))
    ]
    assert process.returncode == 1, errors
    assert len(errors) == 1, errors
    assert "shard-000001.tar does not match its checksum: the shard was changed or damaged" in errors[0]
