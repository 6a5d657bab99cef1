"""A decoder that is not there is said; one that is there and broken stops the build."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tiny_videos import make_tiny_video, make_tiny_videos
from vidshard import builder, decoders, packets
from vidshard.builder import BuildConfig
from vidshard.decoders import decord_decoder
from vidshard.decoders.base import VideoError
from vidshard.errors import UserError


@pytest.fixture
def no_decord(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decord_decoder, "DISTRIBUTIONS", ("no-such-distribution",))


def test_an_installed_decord_that_cannot_be_imported_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "decord.py").write_text("raise RuntimeError('libdecord.so: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "decord", raising=False)
    with pytest.raises(UserError, match=r"decord .* cannot be imported \(libdecord.*--decoder opencv"):
        decord_decoder._load_decord()


@pytest.mark.usefixtures("no_decord")
def test_a_decord_that_is_not_installed_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_tiny_videos(tmp_path / "source", {"Abuse/a.mp4": 9, "NormalVideos/b.mp4": 9})
    told: list[str] = []
    builder.build(BuildConfig(source=source, out=tmp_path / "out", workers=1), tell=told.append)
    assert sum("decord is not installed" in line for line in told) == 1
    assert decoders.missing_note("opencv") == ""
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(VideoError) as caught:
        decord_decoder._load_decord()
    assert caught.value.reason == packets.UNSUPPORTED


def test_what_no_asked_decoder_supports_names_the_ones_not_asked(tmp_path: Path) -> None:
    make_tiny_video(tmp_path / "source/Abuse/a.mp4", 9, size=(64, 64), encoder="libsvtav1")
    make_tiny_video(tmp_path / "source/NormalVideos/b.mp4", 9)
    report = builder.build(BuildConfig(source=tmp_path / "source", out=tmp_path / "out", workers=1))
    (failure,) = report.sets[0].manifest.failures
    assert failure.reason == packets.UNSUPPORTED
    assert "OpenCV has no decoder for av1; not asked: pyav (--decoder); try another --decoder" in failure.message
