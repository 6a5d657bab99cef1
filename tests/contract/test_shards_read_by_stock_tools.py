"""Stock tools read the output of `vidshard build`: tarfile, numpy, tar and webdataset."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tiny_videos import make_tiny_videos
from vidshard import BuildConfig, SamplingConfig, build

VIDEOS = {"Abuse/a b.v1.mp4": 40, "Abuse/a b.v2.mp4": 24, "NormalVideos/ñ.mp4": 30, "NormalVideos/s.mp4": 3}
LABELS = {"Abuse": 1, "NormalVideos": 0}


@pytest.fixture(scope="module", params=[(8, 64), (16, 112)], ids=["8x64x64", "16x112x112"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[int, ...]]:
    clip_len, frame_size = request.param
    folder = tmp_path_factory.mktemp("built")
    make_tiny_videos(folder / "source", VIDEOS)
    sampling = SamplingConfig(mode="dense", clip_len=clip_len)
    config = BuildConfig(
        source=folder / "source", out=folder / "out", sampling=sampling, frame_size=frame_size, shard_mb=1, workers=1
    )
    assert build(config).videos["ok"] == len(VIDEOS)
    return folder / "out", (clip_len, frame_size, frame_size, 3)


def test_tarfile_and_numpy_read_every_sample(built: tuple[Path, tuple[int, ...]]) -> None:
    folder, shape = built
    found = set()
    for path in sorted(folder.glob("shard-*.tar")):
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            assert all(m.mtime == m.uid == m.gid == 0 and m.isreg() for m in members)
            for clip_member, record_member in zip(members[::2], members[1::2], strict=True):
                clip = np.load(io.BytesIO(tar.extractfile(clip_member).read()))  # type: ignore[union-attr]
                record = json.load(tar.extractfile(record_member))  # type: ignore[arg-type]
                assert (clip.dtype, clip.shape) == (np.uint8, shape)
                assert clip_member.name.removesuffix(".npy") == record_member.name.removesuffix(".json")
                found.add((record["path"], record["clip_index"]))
    assert len(found) == json.loads((folder / "manifest.json").read_text())["clips"]
    assert {path for path, _ in found} == set(VIDEOS)


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar command here")
def test_tar_lists_a_shard(built: tuple[Path, tuple[int, ...]]) -> None:
    shard = sorted(built[0].glob("shard-*.tar"))[0]
    shown = subprocess.run(["tar", "tf", shard], capture_output=True, text=True, check=True)
    names = shown.stdout.split()
    assert names
    assert [name.rpartition(".")[2] for name in names] == ["npy", "json"] * (len(names) // 2)


@pytest.mark.filterwarnings("ignore")
def test_stock_webdataset_decodes_every_sample(built: tuple[Path, tuple[int, ...]]) -> None:
    import webdataset

    folder, shape = built
    shards = [str(path) for path in sorted(folder.glob("shard-*.tar"))]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
    assert len(samples) == json.loads((folder / "manifest.json").read_text())["clips"]
    for sample in samples:
        assert (sample["npy"].dtype, sample["npy"].shape) == (np.uint8, shape)
        assert sample["json"]["label"] == LABELS[sample["json"]["class"]]
    assert len({sample["__key__"] for sample in samples}) == len(samples)
