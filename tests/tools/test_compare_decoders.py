"""The comparison of decoders: every frame is counted once, and the figures are correct."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import compare_decoders
from tiny_videos import make_broken_video, make_tiny_videos


def test_every_frame_is_compared_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_tiny_videos(tmp_path, {"Abuse/a.mp4": 21, "Abuse/short.mp4": 5}, size=(320, 240))
    make_broken_video(source / "Abuse" / "broken.mp4")  # by all alike
    monkeypatch.setattr(sys, "argv", ["compare", str(source), "--decoders", "decord", "pyav", "--workers", "1"])
    assert compare_decoders.main() == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["videos"], figures["frames"], figures["differently_built"]) == (2, 26, [])
    decibels = figures["pairs"]["decord/pyav"]
    assert 35 <= decibels["lowest_db"] <= decibels["mean_db"] < 99
    for name in ("decord", "pyav"):
        options = argparse.Namespace(workers=1)
        compare_decoders.build_all(source, tmp_path / name, name, options)
    sets = [str(tmp_path / name) for name in ("decord", "pyav")]
    monkeypatch.setattr(sys, "argv", ["compare", "--sets", *sets])
    assert compare_decoders.main() == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["pairs"] == {"/".join(sets): decibels}


def test_psnr_of_each_frame() -> None:
    one = np.full((2, 4, 4, 3), 100, np.uint8)
    other = one.copy()
    other[1] += 1
    assert compare_decoders.psnr(one, other).tolist() == pytest.approx([99.0, 48.13], abs=0.01)
