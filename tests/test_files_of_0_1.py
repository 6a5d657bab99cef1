"""Files written by version 0.1, in tests/fixtures/0.1: they must remain readable.

They come from four numbered videos of 64 × 64 pixels (`numbered_videos.py`): a finished set of clips of 4 × 16 × 16
pixels; the checkpoint of one epoch on it; labels that a reviewer exported from a report on it; and another build of the
same videos that was killed after its first shard. `clips.json` has what 0.1 wrote about each clip and its score.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import stage1
import vidshard
from builds import digests
from stage1.cli.main import main as stage1_main
from vidshard.planning.settings import package_versions

FILES = Path(__file__).parent / "fixtures" / "0.1"
TRAIN = FILES / "shards" / "Train"
CLIPS: dict[str, dict[str, Any]] = json.loads((FILES / "clips.json").read_text())


def train(out: Path, *options: str) -> str:
    """Train as run.toml says, into `out`, and return what is printed."""
    files = ["--config", str(FILES / "training" / "run.toml"), "--shards", str(TRAIN), "--out", str(out)]
    shown = CliRunner().invoke(stage1_main, ["train", *files, *options], catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    return shown.output


def test_a_set_verifies_and_its_clips_are_those_that_were_written() -> None:
    assert not vidshard.verify(TRAIN, deep=True).faults
    reader = stage1.ClipReader(vidshard.open_shards(TRAIN).folder)
    assert len(reader) == len(CLIPS)
    for row in range(len(reader)):
        expected = CLIPS[reader.index.key(row)]
        record = json.loads(json.dumps(dataclasses.asdict(reader.read_record(row))))
        record["source_group"] = record.pop("recording")  # as 0.1 called it
        assert {name: record[name] for name in expected.keys() & record.keys()} == {
            name: value for name, value in expected.items() if name not in ("pixels_sha256", "probability")
        }
        assert hashlib.sha256(reader[row].tobytes()).hexdigest() == expected["pixels_sha256"]


def test_a_checkpoint_gives_the_scores_that_it_gave() -> None:
    checkpoint = stage1.load_checkpoint(FILES / "training" / "binary_stage1_with_attention.pt")
    model, transform = checkpoint.build_model(), checkpoint.build_transform()
    reader = stage1.ClipReader(TRAIN)
    clips = torch.from_numpy(np.stack([reader[row] for row in range(len(reader))]))
    with torch.no_grad():
        logits, _ = model(transform(clips))
    keys = [reader.index.key(row) for row in range(len(reader))]
    probabilities = torch.softmax(logits, dim=1)[:, 1]
    np.testing.assert_allclose(probabilities, [CLIPS[key]["probability"] for key in keys], atol=1e-4)


def test_a_run_is_repeated_by_its_run_toml(tmp_path: Path) -> None:
    train(tmp_path / "out")
    before, now = (
        tomllib.loads(path.read_text(encoding="utf-8"))
        for path in (FILES / "training" / "run.toml", tmp_path / "out" / "run.toml")
    )
    elsewhere = {"shards": str(TRAIN), "out": str(tmp_path / "out")}
    assert values_of(now, like=before) == {**before, **elsewhere}


def values_of(table: Mapping[str, Any], *, like: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of `table` that `like` has too, in nested tables as well."""
    return {
        name: values_of(table[name], like=value) if isinstance(value, dict) else table[name]
        for name, value in like.items()
    }


def test_review_labels_of_a_report_are_taken(tmp_path: Path) -> None:
    shown = train(tmp_path / "out", "--marks", str(FILES / "marks.csv"))
    assert "1 of 4 marked clips contradict their label and are relabelled" in shown


@pytest.fixture
def unfinished(tmp_path: Path) -> Path:
    """Copy the unfinished build and its videos, as if it had been started here: with these packages and file times."""
    pytest.importorskip("zstandard")
    shutil.copytree(FILES / "videos", tmp_path / "videos")
    out = tmp_path / "shards" / "unfinished"
    shutil.copytree(FILES / "shards" / "unfinished", out)
    path = out / ".work" / "fingerprint.json"
    fingerprint = json.loads(path.read_text())
    fingerprint["packages"] = package_versions("zstd")
    path.write_text(json.dumps(fingerprint))
    for name, *_, modified in fingerprint["videos"]:
        os.utime(tmp_path / "videos" / "Train" / name, ns=(modified, modified))
    return out


def test_an_unfinished_build_resumes(unfinished: Path) -> None:
    first = unfinished / "shard-000000.tar"
    before = first.stat().st_ino, first.stat().st_mtime_ns
    videos = unfinished.parents[1] / "videos" / "Train"
    options: dict[str, Any] = {
        "sampling": vidshard.SamplingConfig(mode="dense", clip_len=16, stride=4),
        **{"frame_size": 64, "decoder": "pyav", "codec": "zstd", "shard_mb": 1, "workers": 1},
    }
    vidshard.build(videos, out=unfinished, **options)
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == before  # not built again
    fresh = unfinished.parent / "fresh"
    vidshard.build(videos, out=fresh, **options)
    assert digests(unfinished) == digests(fresh)
    assert len(list(fresh.glob("shard-*.tar"))) == 4
