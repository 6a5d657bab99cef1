"""Codecs: round trips, reports of damage, and one clear line if a library is missing."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tiny_videos import make_tiny_videos
from vidshard import SamplingConfig
from vidshard.building.run import BuildConfig, build
from vidshard.shards import codecs, layout, manifest
from vidshard.shards.layout import Clip, ClipShape
from vidshard.util.errors import FormatError, UserError

SHAPE = ClipShape(num_frames=5, height=32, width=48)


def smooth_clip() -> Clip:
    """Pixels like those of a video, because JPEG handles noise badly."""
    t, h, w = np.meshgrid(np.arange(5), np.arange(32), np.arange(48), indexing="ij")
    return np.stack([3 * h + 20 * t, 200 - 2 * w + t, 60 + h + w], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_lossless_codecs_give_the_same_clip(codec: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, SHAPE.thwc, dtype=np.uint8)
    payload = layout.encode_clip(noise, codec=codec)
    assert np.array_equal(layout.decode_clip(payload, SHAPE, codec=codec, where=""), noise)
    assert payload == layout.encode_clip(noise, codec=codec)


def test_zstd_is_a_compressed_npy() -> None:
    zstandard = pytest.importorskip("zstandard")
    payload = layout.encode_clip(smooth_clip(), codec="zstd")
    content = zstandard.ZstdDecompressor().decompress(payload)
    assert np.array_equal(np.load(io.BytesIO(content)), smooth_clip())


def test_jpeg_keeps_frames_apart_and_colours_in_order() -> None:
    clip = smooth_clip()
    payload = layout.encode_clip(clip, codec="jpeg")
    got = layout.decode_clip(memoryview(payload), SHAPE, codec="jpeg", where="")
    assert got.shape == SHAPE.thwc
    assert got.flags.c_contiguous
    error = np.mean((got.astype(float) - clip) ** 2)
    assert 10 * np.log10(255**2 / error) > 36
    assert payload == layout.encode_clip(clip, codec="jpeg")


@pytest.mark.parametrize("codec", ["zstd", "jpeg"])
@pytest.mark.parametrize("damage", [b"", b"\0" * 40, "cut", "other shape"])
def test_damage_is_reported_with_its_position(codec: str, damage: Any) -> None:
    payload, shape = layout.encode_clip(smooth_clip(), codec=codec), SHAPE
    if damage == "cut":
        payload = payload[: len(payload) // 8]
    elif damage == "other shape":
        shape = ClipShape(num_frames=4, height=32, width=48)
    else:
        payload = damage
    with pytest.raises(FormatError, match=r"clip 'k' in shard 3"):
        layout.decode_clip(payload, shape, codec=codec, where="clip 'k' in shard 3")


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("zstandard", "compression", "compression.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"pip install 'vidshard\[zstd\]'"):
        BuildConfig(source=tmp_path, codec="zstd")
    assert BuildConfig(source=tmp_path).codec == "raw"


def test_a_strip_wider_than_a_jpeg_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="71,680 pixels wide, but a JPEG can have at most 65,500; choose codec zstd"):
        BuildConfig(source=tmp_path, codec="jpeg", frame_size=1120, sampling=SamplingConfig(clip_len=64))


def test_an_unknown_codec_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="codec is 'png', expected one of raw, zstd, jpeg"):
        BuildConfig(source=tmp_path, codec="png")


def test_shards_of_every_codec_hold_the_same_clips(tmp_path: Path) -> None:
    source = make_tiny_videos(tmp_path / "source", {"Abuse/a.mp4": 20, "NormalVideos/n.mp4": 20})
    clips: dict[str, list[Clip]] = {}
    for codec in ("raw", "zstd", "jpeg"):
        out = tmp_path / codec
        build(BuildConfig(source=source, out=out, codec=codec, frame_size=32, workers=1))
        shards = manifest.open_shards(out)
        assert shards.manifest.codec == codec
        assert ("zstandard" in shards.manifest.packages) == (codec == "zstd")
        with tarfile.open(out / "shard-000000.tar") as tar:
            suffix = layout.CODEC_SUFFIX[codec]
            assert [name.partition(".")[2] for name in tar.getnames()] == [suffix[1:], "json"] * 2
        with open(out / "shard-000000.tar", "rb") as file:
            found = list(layout.read_shard(file))
        shape = shards.manifest.clip_shape
        clips[codec] = [layout.decode_clip(data, shape, codec=codec, where="") for _, data, _, _ in found]
        assert [(offset, len(data)) for _, data, _, offset in found] == [
            (row["offset"], row["size"]) for row in shards.index.clips
        ]
    assert np.array_equal(clips["raw"], clips["zstd"])
    assert 0 < np.abs(np.subtract(clips["raw"], clips["jpeg"], dtype=float)).mean() < 4
    with pytest.raises(UserError, match="codec raw, now jpeg"):
        build(BuildConfig(source=source, out=tmp_path / "raw", codec="jpeg", frame_size=32, workers=1))


def test_jpeg_without_opencv_names_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match="pip install opencv-python-headless"):
        codecs.check_codec("jpeg")


def test_a_small_jpeg_of_a_huge_picture_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(codecs.jpeg_encode(np.zeros((8, 16, 3), np.uint8)))
    size = data.index(b"\xff\xc0") + 5
    data[size : size + 4] = (65_000).to_bytes(2) * 2
    monkeypatch.setattr(codecs.load_cv2(), "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(FormatError, match="a is a picture of 65000×65000 pixels, expected a JPEG of 8×16"):
        codecs.jpeg_decode(bytes(data), height=8, width=16, where="a")
