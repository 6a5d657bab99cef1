"""Damage detection, and how a build handles damage."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tiny_videos import make_tiny_video
from vidshard import BuildConfig, SamplingConfig, build
from vidshard.shards.layout import read_shard
from vidshard.shards.manifest import open_shards
from vidshard.util.errors import UserError
from vidshard.video.damage import capture_native_output, first_damage
from vidshard.video.packets import read_packet_table


@pytest.mark.parametrize(
    ("line", "codec", "is_damage"),
    [
        ("[h264 @ 0x1] concealing 368 DC, 368 AC, 368 MV errors in P frame", "h264", True),
        ("[OPENCV:FFMPEG:16] error while decoding MB 0 4, bytestream 25865", "h264", True),
        ("[OPENCV:FFMPEG:32] concealing 2 DC, 2 AC, 2 MV errors in P frame", "h264", True),
        ("[mov,mp4,m4a,3gp,3g2,mj2 @ 0x1] stream 0, timescale not set", "h264", False),
        ("[12:00:00] video_reader.cc:300: Some frames were corrupted and recovered from nearest frames", "h264", True),
        ("[h264 @ 0x1] SEI type 186 size 121 truncated at 27", "h264", False),
        ("[h264 @ 0x1] non-existing SPS 0 referenced in buffering period", "h264", False),
        ("[h264 @ 0x1] non-existing PPS 0 referenced", "h264", True),
        ("[hevc @ 0x1] Skipping NAL unit 63", "hevc", False),
        ("[OPENCV:FFMPEG:32] Reinit context to 320x240, pix_fmt: yuv420p", "h264", False),
        ("[h264 @ 0x1] Reinit context to 320x240, pix_fmt: yuv420p", "h264", False),
        ("[aac @ 0x1] Input buffer exhausted before END element found", "h264", False),
        ("[swscaler @ 0x1] deprecated pixel format used, make sure you did set range correctly", "mjpeg", False),
        ("Traceback (most recent call last):", "h264", False),
    ],
)
def test_which_messages_mean_damage(line: str, codec: str, is_damage: bool) -> None:
    assert (first_damage(f"x\n{line}\n", codec) is not None) == is_damage


def test_capturing_includes_output_of_c_libraries_and_re_emits_it(capfd: pytest.CaptureFixture[str]) -> None:
    with capture_native_output() as messages:
        os.write(2, b"[h264 @ 0x1] no frame!\n")
        heard = messages.text
    assert "no frame!" in heard == messages.text
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "[h264 @ 0x1] no frame!\nafter\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Write a sound video, and one with damage that uniform sampling of two frames does not decode."""
    for name in ("sound", "damaged"):
        make_tiny_video(tmp_path / "source" / "Abuse" / f"{name}.mp4", 48)
    make_tiny_video(tmp_path / "source" / "NormalVideos" / "n.mp4", 8)
    path = tmp_path / "source" / "Abuse" / "damaged.mp4"
    damage_middle(path)
    return tmp_path / "source"


def damage_middle(path: Path) -> None:
    """Overwrite pictures, not their lengths, in the middle of the coded data."""
    import av

    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    noise = np.random.default_rng(0)
    for position, size in packets[20:23]:
        inside = slice(position + 12, position + size - 2)
        data[inside] = noise.integers(1, 255, len(data[inside])).astype(np.uint8).tobytes()
    path.write_bytes(data)


def built(source: Path, out: Path, **options: object) -> tuple[dict[str, str], dict[str, set[str]]]:
    """(failed path → reason, path → flags of its clips)."""
    config = BuildConfig(source=source, out=out, frame_size=32, workers=1, **options)  # type: ignore[arg-type]
    (report,) = build(config).sets
    failed = {failure.path: failure.reason for failure in report.manifest.failures}
    flags: dict[str, set[str]] = {}
    for shard in open_shards(out).manifest.shards:
        with open(out / shard.name, "rb") as file:
            for _, _, record, _ in read_shard(file):
                flags.setdefault(record.path, set()).update(record.flags)
    return failed, flags


DENSE = SamplingConfig(mode="dense", clip_len=8)
ENDS = SamplingConfig(mode="uniform", clip_len=2)


@pytest.mark.parametrize("decoder", ["auto", "opencv", "pyav"])
def test_damage_is_a_failure_where_it_is_met(decoder: str, source: Path, tmp_path: Path) -> None:
    failed, flags = built(source, tmp_path / "out", sampling=DENSE, decoder=decoder)
    assert failed == {"Abuse/damaged.mp4": "damaged"}
    assert set(flags) == {"Abuse/sound.mp4", "NormalVideos/n.mp4"}


def test_full_check_finds_what_no_clip_needs(source: Path, tmp_path: Path) -> None:
    failed, _ = built(source, tmp_path / "lazy", sampling=ENDS, decoder="pyav")
    assert failed == {}
    failed, _ = built(source, tmp_path / "checked", sampling=ENDS, decoder="pyav", full_check=True)
    assert failed == {"Abuse/damaged.mp4": "damaged"}


def test_allowed_damage_is_flagged(source: Path, tmp_path: Path) -> None:
    failed, flags = built(source, tmp_path / "out", sampling=DENSE, decoder="pyav", allow_damaged=True)
    assert failed == {}
    assert {path: "damaged" in seen for path, seen in flags.items()} == {
        "Abuse/damaged.mp4": True,
        "Abuse/sound.mp4": False,
        "NormalVideos/n.mp4": False,
    }


def test_the_same_folder_is_not_built_under_another_rule(source: Path, tmp_path: Path) -> None:
    built(source, tmp_path / "out", sampling=ENDS)
    with pytest.raises(UserError, match="allow_damaged"):
        built(source, tmp_path / "out", sampling=ENDS, allow_damaged=True)


def test_an_intact_video_logs_nothing(source: Path) -> None:
    with capture_native_output() as messages:
        table = read_packet_table(source / "Abuse" / "sound.mp4")
    assert first_damage(messages.text, table.codec) is None
