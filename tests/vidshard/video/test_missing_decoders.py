"""A missing decoder is reported; an installed but broken one stops the build."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path

import pytest

from tiny_videos import make_tiny_video, make_tiny_videos
from vidshard.building import run as builder
from vidshard.building.run import BuildConfig
from vidshard.util.errors import UserError
from vidshard.video import decoders, packets
from vidshard.video.containers import VideoError
from vidshard.video.decoders import decord_decoder


@pytest.fixture
def no_decord(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (decoders, decord_decoder):
        monkeypatch.setattr(module, "DECORDS", ("no-such-distribution",))


def decode(folder: Path) -> None:
    """Decode a frame with decord."""
    video = folder / "one.mp4"
    make_tiny_video(video, 1)
    list(decord_decoder.DecordDecoder().frames(video, packets.read_packet_table(video), [0], height=48, width=64))


def test_an_installed_decord_that_cannot_be_imported_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "decord.py").write_text("raise RuntimeError('libdecord.so: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "decord", raising=False)
    with pytest.raises(UserError, match=r"decord.* cannot be imported \(libdecord.*`decoder` opencv"):
        decode(tmp_path)


def test_a_folder_left_by_an_uninstalled_decord_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two in one folder, one was removed: the other has lost its files, and Python imports an empty module."""
    monkeypatch.setitem(sys.modules, "decord", types.ModuleType("decord"))
    with pytest.raises(UserError, match=r"cannot be imported .*; run `pip install --force-reinstall --no-deps decord"):
        decode(tmp_path)


@pytest.mark.parametrize("installed", ["decord", "decord2"])
def test_records_and_manifest_distinguish_decord_and_decord2(installed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {installed: "1.2.3"})
    (decoder,) = decoders.decoders_for("decord")
    assert decoder.name == installed
    assert decoders.decoder_versions() == {installed: "1.2.3", "opencv": "absent", "pyav": "absent"}
    assert decoders.others_than("decord") == ["opencv", "pyav"]


def test_decord_and_decord2_at_once_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {"decord": "0.6.0", "decord2": "3.4.0"})
    for choice in ("auto", "decord"):
        with pytest.raises(UserError, match="`pip uninstall decord decord2`, then `pip install decord2`"):
            BuildConfig(source=tmp_path, decoder=choice)
    BuildConfig(source=tmp_path, decoder="opencv")


def install(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]) -> None:
    """Let these distributions alone be installed."""

    def installed_version(distributions: Sequence[str]) -> str | None:
        return next((versions[name] for name in distributions if name in versions), None)

    monkeypatch.setattr(decord_decoder, "installed_version", installed_version)
    monkeypatch.setattr(decoders, "installed_version", installed_version)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_opencv_decodes_by_its_own_ffmpeg_after_decord() -> None:
    """decord exposes its FFmpeg to all libraries loaded later, unless that is prevented."""
    code = (
        "import ctypes; from vidshard.video.decoders import decord_decoder; decord = decord_decoder._load_decord(); "
        "decord.__file__; print(hasattr(ctypes.CDLL(None), 'avcodec_open2'))"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert shown.stdout.strip() == "False"


@pytest.mark.usefixtures("no_decord")
def test_a_missing_decord_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = make_tiny_videos(tmp_path / "source", {"Abuse/a.mp4": 9, "NormalVideos/b.mp4": 9})
    with caplog.at_level("INFO", logger="vidshard"):
        builder.build(BuildConfig(source=source, out=tmp_path / "out", workers=1))
    assert sum("decord is not installed" in line for line in caplog.messages) == 1
    assert decoders.missing_note("opencv") == ""
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(VideoError) as caught:
        decode(tmp_path)
    assert caught.value.reason == packets.UNSUPPORTED


def test_what_no_asked_decoder_supports_names_the_ones_not_asked(tmp_path: Path) -> None:
    make_tiny_video(tmp_path / "source/Abuse/a.mp4", 9, size=(64, 64), encoder="libsvtav1")
    make_tiny_video(tmp_path / "source/NormalVideos/b.mp4", 9)
    report = builder.build(BuildConfig(source=tmp_path / "source", out=tmp_path / "out", workers=1, decoder="opencv"))
    (failure,) = report.sets[0].manifest.failures
    assert failure.reason == packets.UNSUPPORTED
    assert "OpenCV has no decoder for av1; not tried: decord, pyav (`decoder`); try another" in failure.message


def test_decord_loads_no_cuda_library(tmp_path: Path) -> None:
    """decord2 would load all that came with torch: half a second and 650 MiB in every worker."""
    (tmp_path / "nvidia" / "cublas" / "lib").mkdir(parents=True)
    (tmp_path / "nvidia" / "cublas" / "lib" / "libfake.so").touch()
    code = (
        "import importlib.util\n"
        "from vidshard.video.decoders.decord_decoder import _load_decord\n"
        "import ctypes\n"
        "loaded, real = [], ctypes.CDLL\n"
        "ctypes.CDLL = lambda name, *args, **options: (loaded.append(str(name)), real(name, *args, **options))[1]\n"
        "_load_decord()\n"
        "assert not any('libfake' in name for name in loaded), loaded\n"
        "assert importlib.util.find_spec('nvidia') is not None\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
