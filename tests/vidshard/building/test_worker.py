"""Decoding the chunks of a video: the decoder's messages after the last frame count, too."""

from __future__ import annotations

import dataclasses
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tiny_videos import make_tiny_video
from vidshard import SamplingConfig
from vidshard.building import worker
from vidshard.building.worker import Decoded, DecodeJob, ProbeJob
from vidshard.planning.config import BuildConfig
from vidshard.planning.shard_plan import Chunk
from vidshard.planning.video_metadata import VideoFailure, VideoMetadata
from vidshard.sources.folders import Video
from vidshard.video import packets
from vidshard.video.packets import PacketTable, VideoError


class Ending:
    """Decoder that returns all frames, and then does something else."""

    name = "ending"

    def __init__(self, how: str) -> None:
        self.how = how
        self.is_closed = False
        self.calls: list[bool] = []

    def frames(
        self, path: Path, table: Any, frame_indices: Any, *, height: int, width: int, in_sequence: bool = False
    ) -> Iterator[Any]:
        self.calls.append(in_sequence)
        try:
            for _ in frame_indices:
                yield np.zeros((height, width, 3), np.uint8)
                if self.how == "message between":
                    os.write(2, b"[h264 @ 0x55d0] error while decoding MB 0 4, bytestream 25865\n")
        finally:
            self.is_closed = True
        if self.how == "raise":
            raise VideoError(packets.DAMAGED, "more frames than its packets promise")
        if self.how == "another frame":
            yield np.zeros((height, width, 3), np.uint8)
        if self.how == "message":
            os.write(2, b"[h264 @ 0x55d0] error while decoding MB 0 4, bytestream 25865\n")


def decode(
    tmp_path: Path, how: str | Ending, monkeypatch: pytest.MonkeyPatch, *, damaged: bool = False, suspicion: str = ""
) -> Decoded | VideoFailure:
    """`suspicion`: that of the packet table."""
    decoder = how if isinstance(how, Ending) else Ending(how)
    path, sampling = tmp_path / "a.mp4", SamplingConfig(mode="dense", clip_len=4)
    make_tiny_video(path, 8)
    probe = worker.probe_video(ProbeJob(video_path=path, table_path=tmp_path / "a.npz", sampling=sampling))
    assert isinstance(probe, VideoMetadata)
    table = PacketTable.load(tmp_path / "a.npz")
    dataclasses.replace(table, suspicion=suspicion or table.suspicion).save(tmp_path / "a.npz")
    monkeypatch.setattr(worker.decoders, "decoders_for", lambda choice: [decoder])
    job = DecodeJob(
        video=Video(path="a.mp4", class_name=None, label=-1),
        split=None,
        video_path=path,
        table_path=tmp_path / "a.npz",
        chunks=(Chunk(video=0, clip_start=0, clip_stop=2, shard=0),),
        fragment_paths=(tmp_path / "0.part",),
        config=BuildConfig(source=tmp_path, sampling=sampling, frame_size=16),
        damaged=damaged,
    )
    return worker.decode_chunks(job)


@pytest.mark.parametrize("how", ["raise", "another frame", "message"])
def test_a_decoder_that_calls_a_sound_video_damaged_is_not_believed(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Ending(how)
    outcome = decode(tmp_path, decoder, monkeypatch)
    assert isinstance(outcome, VideoFailure)
    assert outcome.reason == packets.UNSUPPORTED  # so that the next decoder is asked
    assert decoder.calls == [False, True]


@pytest.mark.parametrize("how", ["raise", "another frame", "message"])
def test_damage_after_the_last_frame_is_damage(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_damaged_frames", lambda path, table: {7: "error while decoding MB 0 4"})
    outcome = decode(tmp_path, how, monkeypatch)
    assert isinstance(outcome, VideoFailure)
    assert outcome.reason == packets.DAMAGED
    assert "frame 7" in outcome.message


def test_damage_to_unrequested_frames_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_damaged_frames", lambda path, table: {8: "error while decoding MB 0 4"})
    assert isinstance(decode(tmp_path, "message", monkeypatch), Decoded)


def test_what_the_packets_make_suspect_is_settled_though_the_decoder_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Ending("nothing")
    assert isinstance(decode(tmp_path, decoder, monkeypatch, suspicion="a hole"), Decoded)
    assert decoder.calls == [True]
    monkeypatch.setattr(worker, "_damaged_frames", lambda path, table: {5: "a hole"})
    outcome = decode(tmp_path, "nothing", monkeypatch, suspicion="a hole")
    assert isinstance(outcome, VideoFailure)
    assert outcome.reason == packets.DAMAGED


def test_a_suspicion_of_the_packets_is_settled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = packets.read_packet_table
    monkeypatch.setattr(packets, "read_packet_table", lambda path: dataclasses.replace(read(path), suspicion="a hole"))
    asked: list[Path] = []
    monkeypatch.setattr(worker, "_damaged_frames", lambda path, table: asked.append(path) or {5: "it has a hole"})
    outcome = decode(tmp_path, "nothing", monkeypatch)
    assert isinstance(outcome, VideoFailure)
    assert outcome.message == "frame 5 is damaged, one of 1 (it has a hole)"
    assert len(asked) == 1  # when the video was probed, not again by each job


def test_a_decoder_that_crashed_workers_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "0.decoder").write_text("ending")  # it may have been chance
    assert isinstance(decode(tmp_path, "nothing", monkeypatch), Decoded)
    (tmp_path / "0.decoder").write_text("ending ending")
    outcome = decode(tmp_path, "nothing", monkeypatch)
    assert isinstance(outcome, VideoFailure)
    assert "crashes" in outcome.message


def test_where_damage_is_allowed_the_clips_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(decode(tmp_path, "raise", monkeypatch, damaged=True), Decoded)
    assert isinstance(decode(tmp_path, "nothing", monkeypatch), Decoded)


def test_the_decoder_of_a_refused_video_is_closed_before_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Ending("message between")  # left alive, decord decodes on and speaks while the next video is listened to
    gc.disable()
    try:
        assert isinstance(decode(tmp_path, decoder, monkeypatch), VideoFailure)
        assert decoder.is_closed
    finally:
        gc.enable()
