"""Verdicts on damaged remuxes: intact ones are right, and missing frames are distinguished from wrong ones."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import bad_inputs
import bad_remuxes
from tiny_videos import make_tiny_videos


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg program is not installed")
def test_a_small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clips = make_tiny_videos(tmp_path / "clips", {"a.mp4": 20, "deep/b.mp4": 30})
    tree = tmp_path / "tree"
    arguments = [str(clips), "--container", "mkv", "--damaged", "2", "--sound", "3", "--workers", "1"]
    monkeypatch.setattr(sys, "argv", ["bad_remuxes", *arguments, "--tree", str(tree), "--max-wrong", "0"])
    assert bad_remuxes.main() == 0
    assert capsys.readouterr().out.count("sound and right 100.0%") == 2
    assert len(list(tree.rglob("*.mkv"))) == 5
    monkeypatch.setattr(bad_remuxes.bad_inputs, "what_is_wrong", lambda row, video: "all")
    shutil.rmtree(tree)
    shutil.rmtree(tmp_path / "tree-truth")
    assert bad_remuxes.main() == 1


def test_missing_frames_are_distinguished_from_wrong_frames() -> None:
    pictures = [np.full((24, 32, 3), 20 * number, np.uint8) for number in range(6)]
    truth = np.stack([bad_inputs.thumb(picture) for picture in pictures])

    def seen(*numbers: int) -> bad_inputs.Seen:
        return bad_inputs.Seen(num_frames=len(numbers), frames={i: pictures[n] for i, n in enumerate(numbers)})

    assert bad_inputs.is_part(seen(0, 1, 4), truth)
    assert not bad_inputs.is_part(seen(0, 4, 1), truth)
    assert not bad_inputs.is_part(seen(0, 1, 1), truth)
    assert not bad_inputs.is_part(seen(*range(6)), truth)


def test_a_crash_is_no_refusal(tmp_path: Path) -> None:
    row = {"path_hex": bytes(tmp_path / "a.mkv").hex(), "cls": "cut", "expect": "either"}
    for reason, verdict in (("damaged", "refused"), ("timeout", "crashed"), ("killed_by_sigsegv", "crashed")):
        told = bad_inputs.verdict(row, tmp_path, {}, {"a.mkv": f"failed: {reason}: it is so"})
        assert (told.verdict, told.is_bad) == (verdict, verdict == "crashed")


@pytest.mark.parametrize("damage", bad_remuxes.DAMAGES)
def test_each_damage_changes_the_file_and_spares_its_beginning(damage: bad_remuxes.Damage) -> None:
    data = np.random.default_rng(0).bytes(50_000)
    changed = [damage(bytearray(data), bad_remuxes.random.Random(seed)) for seed in range(20)]
    assert all(other != data for other in changed)
    assert all(other[:1024] == data[:1024] for other in changed)
