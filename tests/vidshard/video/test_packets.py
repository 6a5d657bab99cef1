"""Videos refused before decoding, and storage of packet tables. Frame counts: tests/contract."""

from __future__ import annotations

import dataclasses
import errno
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from numbered_videos import make_video
from tiny_videos import make_tiny_video
from vidshard.video import containers, packets, sequence
from vidshard.video.packets import PacketTable, VideoError, read_packet_table


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("packets") / "v.mp4", num_frames=30).path


def refusal(path: Path) -> VideoError:
    with pytest.raises(VideoError) as caught:
        read_packet_table(path)
    assert str(path.parent) not in caught.value.message
    return caught.value


@pytest.mark.parametrize(
    ("content", "reason", "text"),
    [
        (b"", "empty_file", "0 bytes"),
        (b"\0" * 5000, "not_a_video", "only zeros"),
        (b"<!DOCTYPE html><title>404</title>", "not_a_video", "text"),
        (b"ffconcat version 1.0\nfile other.mp4\n", "not_a_video", "text"),
        (b"#EXTM3U\n#EXTINF:3,\nhttp://127.0.0.1:9/x.ts\n", "not_a_video", "text"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not_a_video", "git lfs pull"),
        (b"\0\0\0\1\x67" + bytes(500), "damaged", ""),
        (b"\xff\xd8\xff\xe0" + bytes(500), "not_a_video", "JPEG"),
        (b"PK\x03\x04" + bytes(500), "not_a_video", "ZIP"),
        (b"\0\0\0\x1cftypavif" + bytes(500), "not_a_video", "picture"),
        (b"\0\0\0\x1cftypisom" + bytes(16), "damaged", ""),
    ],
)
def test_files_that_are_not_videos_are_recognised_by_content(
    content: bytes, reason: str, text: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.mp4"
    path.write_bytes(content)
    error = refusal(path)
    assert error.reason == reason
    assert text in error.message


def test_a_folder_and_a_pipe_are_refused_without_waiting(tmp_path: Path) -> None:
    assert refusal(tmp_path).reason == "not_a_regular_file"
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.mp4")
        assert refusal(tmp_path / "pipe.mp4").reason == "not_a_regular_file"
    assert refusal(tmp_path / "gone.mp4").reason == "unreadable"


@pytest.mark.parametrize("index_first", [False, True])
def test_a_cut_file_is_damaged(index_first: bool, tmp_path: Path) -> None:
    options = {"movflags": "+faststart"} if index_first else {}
    path = make_video(tmp_path / "v.mp4", num_frames=60, container_options=options).path
    data = path.read_bytes()
    assert (data.index(b"moov") < data.index(b"mdat")) == index_first
    path.write_bytes(data[: len(data) * 7 // 10])
    assert refusal(path).reason == "damaged"


def test_an_index_that_lost_its_last_bytes_is_damaged(video: Path, tmp_path: Path) -> None:
    """FFmpeg reads such a file without a message if only metadata is missing."""
    data = video.read_bytes()
    assert data.index(b"mdat") < data.index(b"moov")
    path = tmp_path / "cut.mp4"
    path.write_bytes(data[:-20])
    assert "20 bytes of its moov" in refusal(path).message
    path.write_bytes(data + b"\xff" * 5000)
    assert read_packet_table(path).num_frames == 30


def test_clocks_that_cannot_be_true_are_damage(video: Path, tmp_path: Path) -> None:
    data = video.read_bytes()
    path = tmp_path / "slow.mp4"
    place = data.index(b"stts") + 16  # ticks from frame to frame, of 12,800 a second
    path.write_bytes(data[:place] + (12_800 * 3601).to_bytes(4, "big") + data[place + 4 :])
    assert "seconds apart" in refusal(path).message
    path = tmp_path / "hole.mp4"
    place = data.index(b"ctts") + 12 + 5 * 8 + 4  # the offset of its sixth entry
    path.write_bytes(data[:place] + (9000).to_bytes(4, "big") + data[place + 4 :])
    assert "steady pace" in refusal(path).message


def test_an_edit_list_that_shows_less_than_a_frame_is_damage(tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.mp4", num_frames=30, shift=-5).path
    assert read_packet_table(path).num_frames == 25
    data = path.read_bytes()
    place = data.index(b"mdhd") + 16
    path.write_bytes(data[:place] + (1).to_bytes(4, "big") + data[place + 4 :])  # ticks a second
    assert "less than one frame" in refusal(path).message


def test_tables_that_count_differently_are_damage(video: Path, tmp_path: Path) -> None:
    data, path = video.read_bytes(), tmp_path / "v.mp4"
    place = data.index(b"stsz") + 12
    path.write_bytes(data[:place] + (15).to_bytes(4, "big") + data[place + 4 :])
    assert "times of 30 frames and the places of 15" in refusal(path).message


@pytest.mark.parametrize("entry", [1, 4, 11])
def test_a_frame_that_a_wrong_time_hides_is_damage(entry: int, video: Path, tmp_path: Path) -> None:
    """FFmpeg reads such a file without a message, and returns one frame less."""
    data, path = bytearray(video.read_bytes()), tmp_path / "v.mp4"
    data[data.index(b"ctts") + 12 + entry * 8 + 4] ^= 0x80  # its offset is now an hour and more before the start
    path.write_bytes(data)
    assert "order" in refusal(path).message


@pytest.mark.parametrize("matrix", [(0x10000, 0x800, 0, 0x10000), (0x10000, 0, 0, 0x1000), (0, 0, 0, 0x10000)])
def test_a_picture_that_is_to_be_sheared_is_damage(
    matrix: tuple[int, int, int, int], video: Path, tmp_path: Path
) -> None:
    data, path = bytearray(video.read_bytes()), tmp_path / "v.mp4"
    place = data.index(b"tkhd") + 44
    a, b, c, d = matrix
    data[place : place + 20] = struct.pack(">5i", a, b, 0, c, d)
    path.write_bytes(data)
    assert "shear" in refusal(path).message


@pytest.mark.parametrize(("codec", "name"), [("libx264", "h264"), ("libx265", "hevc")])
def test_a_stream_without_a_container_has_estimated_times(codec: str, name: str, tmp_path: Path) -> None:
    table = read_packet_table(make_video(tmp_path / "v.mp4", codec=codec, container=name).path)
    assert (table.num_frames, table.container, table.estimated_times) == (60, name, True)
    np.testing.assert_allclose(np.diff(table.timestamps_seconds), 0.04, rtol=1e-6)


def test_a_cut_avi_is_damaged(tmp_path: Path) -> None:
    """FFmpeg reads the remaining frames without a message."""
    path = make_video(tmp_path / "v.avi", codec="mpeg4", container="avi").path
    assert read_packet_table(path).num_frames == 60
    data = path.read_bytes()
    path.write_bytes(data + bytes(5000))
    assert read_packet_table(path).num_frames == 60
    path.write_bytes(data[: data.index(b"idx1")])  # the index alone is gone
    assert read_packet_table(path).num_frames == 60
    path.write_bytes(data[: len(data) * 6 // 10])
    assert "ends early" in refusal(path).message


def test_a_hole_of_zeros_in_a_picture_is_damage(tmp_path: Path) -> None:
    """Decoders may read it as a picture, without a message."""
    path = tmp_path / "v.mp4"
    make_tiny_video(path, 24, size=(640, 480))
    assert read_packet_table(path).suspicion == ""
    with containers.open_container(str(path), "mov") as file:
        start, size = next((p.pos, p.size) for p in file.demux(video=0) if p.is_keyframe and p.dts)
    data = bytearray(path.read_bytes())
    assert size > 300
    data[start + size // 2 : start + size // 2 + 80] = bytes(80)
    path.write_bytes(data)
    assert "zeros" in read_packet_table(path).suspicion
    found = sequence.decode_in_sequence(path, "mov", 0)
    assert list(found.damage) == [8, 9, 10, 11, 12, 13, 14, 15]


def test_a_disk_that_fails_fails_this_video_alone(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, size: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(containers, "check_boxes", fail)
    error = refusal(video)
    assert error.reason == "damaged"
    assert str(video) not in error.message


def test_sound_alone_is_not_a_video(tmp_path: Path) -> None:
    import av

    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        output.mux(stream.encode(frame) + stream.encode(None))
    assert refusal(path).reason == "no_video_stream"


def test_a_format_that_ffmpeg_does_not_know_is_named(video: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    path.write_bytes(video.read_bytes().replace(b"avc1", b"zzzz").replace(b"avcC", b"zzzC"))
    assert refusal(path).reason == "unsupported_codec"


def test_a_huge_picture_is_refused_before_decoding(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packets, "MAX_PIXELS", 320 * 240 - 1)
    error = refusal(video)
    assert error.reason == "too_large"
    assert "320x240" in error.message


def test_table_survives_saving(video: Path, tmp_path: Path) -> None:
    table = dataclasses.replace(read_packet_table(video), pixel_format=None)
    table.save(tmp_path / "t.npz")
    loaded = PacketTable.load(tmp_path / "t.npz")
    for field in dataclasses.fields(PacketTable):
        np.testing.assert_array_equal(getattr(loaded, field.name), getattr(table, field.name))
    assert loaded.num_frames == 30
    assert loaded.fps == pytest.approx(25)


def test_video_error_survives_a_pipe_between_processes() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(VideoError("empty_file", "it has 0 bytes")))
    assert (error.reason, error.message, str(error)) == ("empty_file", "it has 0 bytes", "empty_file: it has 0 bytes")


@pytest.mark.parametrize("place", ["read_head", "open_container"])
def test_a_fault_of_the_machine_is_not_one_of_the_video(
    video: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    owner, name = (os, "stat") if place == "read_head" else (containers, "open_container")
    monkeypatch.setattr(owner, name, refuse)
    for number in (errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT):
        with pytest.raises(OSError, match=os.strerror(number)):
            read_packet_table(video)
    number = errno.EIO  # of the disk, which may have lost this file alone
    assert "Input/output error" in refusal(video).message
