"""One contract for all decoders: the frames that a viewer would see, numbered from 0, upright, at the requested
size."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from pathlib import Path

import numpy as np
import pytest

import numbered_videos
from numbered_videos import KINDS, NumberedVideo
from vidshard.video import damage
from vidshard.video.containers import VideoError
from vidshard.video.decoders import LIBRARIES, decoders_for, make_decoder
from vidshard.video.packets import PacketTable, read_packet_table

# What a decoder may refuse, so that the next one is asked. Anything else must be decoded right.
MAY_REFUSE = {
    "decord": {"av1", "avi_b_frames", "avi_named_mp4", "mirrored", "mpegts_named_mp4", "two_video_streams"},
    "decord2": {"avi_b_frames", "avi_named_mp4", "mirrored", "mpegts_named_mp4", "two_video_streams"},
    "opencv": {"av1", "bt2020", "interlaced", "mirrored"},
    "pyav": set(),
}
SIZE = 112


class Library:
    """The numbered videos, each made when first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: dict[str, tuple[NumberedVideo, PacketTable]] = {}

    def __getitem__(self, kind: str) -> tuple[NumberedVideo, PacketTable]:
        if kind not in self.made:
            video = numbered_videos.make_kind(kind, self.folder)
            self.made[kind] = video, read_packet_table(video.path)
        return self.made[kind]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library(tmp_path_factory.mktemp("numbered"))


@pytest.mark.parametrize("kind", KINDS)
def test_packet_table_names_every_frame_that_is_shown(kind: str, library: Library) -> None:
    video, table = library[kind]
    assert table.num_frames == len(video.numbers)
    np.testing.assert_allclose(table.timestamps_seconds, video.seconds, atol=2e-3)  # Matroska counts milliseconds
    size = KINDS[kind].get("size", (320, 240))
    turned = kind in ("rotated_90", "rotated_270")
    assert (table.width, table.height) == (size[::-1] if turned else size)
    assert table.keyframes[0] == 0 or table.discarded > 0


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("kind", KINDS)
def test_decoder_gives_the_frames_that_were_asked_for(kind: str, name: str, library: Library) -> None:
    video, table = library[kind]
    n = table.num_frames
    reads = {"all": list(range(n)), "sparse": sorted({i * (n - 1) // 15 for i in range(16)}), "last": [n - 1]}
    for read, indices in reads.items():
        decoder = make_decoder(name)
        frames = decoder.frames(video.path, table, indices, height=SIZE, width=SIZE)
        if kind in MAY_REFUSE[decoder.name]:
            with pytest.raises(VideoError, match="unsupported_by_decoder"):
                list(frames)
            continue
        with damage.capture_native_output() as messages:
            got = list(frames)
        messages.refuse_damage(table.codec)  # a sound video is no false alarm
        assert {(frame.shape, frame.dtype.str) for frame in got} == {((SIZE, SIZE, 3), "|u1")}
        shown = [numbered_videos.read_number(numbered_videos.upright(frame, kind)) for frame in got]
        assert shown == [video.numbers[i] for i in indices], read


@pytest.mark.parametrize("kind", KINDS)
def test_one_of_the_automatic_decoders_takes_it(kind: str) -> None:
    assert any(kind not in MAY_REFUSE[decoder.name] for decoder in decoders_for("auto"))


@pytest.mark.parametrize("name", LIBRARIES)
def test_colours_are_rgb(name: str, tmp_path: Path) -> None:
    path = numbered_videos.make_coloured(tmp_path / "red.mp4", (200, 40, 60))
    (frame,) = make_decoder(name).frames(path, read_packet_table(path), [1], height=SIZE, width=SIZE)
    np.testing.assert_allclose(frame.mean(axis=(0, 1)), (200, 40, 60), atol=8)


@pytest.mark.parametrize("name", LIBRARIES)
def test_resize_does_not_alias(name: str, tmp_path: Path) -> None:
    """A pattern of one-pixel stripes becomes even grey, not bands."""
    path = numbered_videos.make_striped(tmp_path / "stripes.mp4")
    (frame,) = make_decoder(name).frames(path, read_packet_table(path), [0], height=60, width=86)
    assert float(frame[5:-5, 5:-5].std()) < 12


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("side", [1, 3, 16, 24, 48, 50, 72, 97, 224])
def test_any_frame_size_can_be_asked_for(side: int, name: str, library: Library) -> None:
    video, table = library["two_frames"]
    frames = list(make_decoder(name).frames(video.path, table, [0, 1], height=side, width=side))
    assert [frame.shape for frame in frames] == [(side, side, 3)] * 2


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("file_name", ['a b.c\'s "x".mp4', "Ünïcødé 防犯.mp4", "c:d.mp4", b"not-utf8-\xff\xfe.mp4"])
def test_any_file_name_opens(file_name: str | bytes, name: str, library: Library, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(file_name)
    try:
        path.write_bytes(library["two_frames"][0].path.read_bytes())
    except OSError as error:
        pytest.skip(f"this file system has no such name: {error.strerror}")
    assert len(list(make_decoder(name).frames(path, read_packet_table(path), [0, 1], height=32, width=32))) == 2


@pytest.mark.parametrize("name", LIBRARIES)
def test_wrong_frame_indices_are_a_bug_of_the_caller(name: str, library: Library) -> None:
    video, table = library["two_frames"]
    for wrong in ([1, 0], [0, 0], [2], [-1]):
        with pytest.raises(ValueError, match="frame indices"):
            list(make_decoder(name).frames(video.path, table, wrong, height=32, width=32))


@pytest.mark.parametrize("name", LIBRARIES)
def test_missing_frames_are_damage_and_never_silence(name: str, library: Library, tmp_path: Path) -> None:
    """The packet table of a whole file, and the file after losing its second half."""
    video, table = library["fragmented"]
    path = tmp_path / "half.mp4"
    data = video.path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(VideoError) as caught:
        list(make_decoder(name).frames(path, table, range(table.num_frames), height=SIZE, width=SIZE))
    assert caught.value.reason == "damaged"
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("read", ["all", "last"])
def test_a_frame_more_than_promised_is_damage(read: str, name: str, library: Library) -> None:
    """The packet table of a video that has grown since, read with and without seeking."""
    video, table = library["constant_rate"]
    n = table.num_frames - 1
    assert table.pts is not None
    short = dataclasses.replace(table, timestamps_seconds=table.timestamps_seconds[:n], pts=table.pts[:n])
    frames = make_decoder(name).frames(video.path, short, range(n) if read == "all" else [n - 1], height=32, width=32)
    with pytest.raises(VideoError) as caught:
        list(frames)
    assert caught.value.reason == "damaged"


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_flipped_bit_is_heard(name: str, library: Library, tmp_path: Path) -> None:
    """Each decoder conceals most of these and returns frames as if nothing were wrong; none may go unnoticed."""
    video, table = library["constant_rate"]
    data = video.path.read_bytes()
    start = data.index(b"mdat") + 4
    span = data.index(b"moov") - start if data.index(b"moov") > start else len(data) - start
    unheard = 0
    for seed in range(10):
        broken = bytearray(data)
        for place in np.random.default_rng(seed).integers(start, start + span, 4):
            broken[place] ^= 1 << seed % 8
        path = tmp_path / "flipped.mp4"
        path.write_bytes(broken)
        with contextlib.suppress(VideoError):
            with damage.capture_native_output() as messages:
                got = list(make_decoder(name).frames(path, table, range(table.num_frames), height=SIZE, width=SIZE))
            messages.refuse_damage(table.codec)
            unheard += [numbered_videos.read_number(frame) for frame in got] != list(video.numbers)
    assert unheard == 0


def real_videos() -> list[Path]:
    folder = os.environ.get("VIDSHARD_TEST_DATA")
    return sorted(Path(folder, "data", "surv-fight", "Train").rglob("*.mp4"))[::40] if folder else []


@pytest.mark.skipif(not real_videos(), reason="VIDSHARD_TEST_DATA names no folder with data/surv-fight in it")
def test_decoders_agree_on_real_videos() -> None:
    for path in real_videos():
        table = read_packet_table(path)
        indices = [i * (table.num_frames - 1) // 7 for i in range(8)]
        pictures = {
            name: np.stack(list(make_decoder(name).frames(path, table, indices, height=SIZE, width=SIZE))).astype(
                np.float64
            )
            for name in LIBRARIES
        }
        # Neighbours of these eight frames differ by 15–27 dB.
        for one, other in itertools.combinations(pictures, 2):
            error = np.mean((pictures[one] - pictures[other]) ** 2, axis=(1, 2, 3)).max()
            assert 10 * np.log10(255**2 / error) > 38, f"{one} differs from {other} on {path.name}"
