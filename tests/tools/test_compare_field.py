"""The comparison with ffmpeg: correct videos pass, and each kind of fault is found."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import compare_field
from compare_field import Asked, Outcome, Reference
from tiny_videos import make_broken_video, make_tiny_videos

pytestmark = pytest.mark.skipif(
    shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None, reason="the ffmpeg program is not installed"
)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_videos(tmp_path_factory.mktemp("video"), {"a.mp4": 40}) / "a.mp4"


@pytest.fixture(scope="module")
def reference(video: Path) -> Reference:
    return compare_field.read_reference(video, 1000)


@pytest.mark.slow
def test_a_folder_of_any_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_tiny_videos(tmp_path / "mine", {"flat.mp4": 21, "Train/Abuse/deep.mp4": 5, "again/flat.mp4": 30})
    make_broken_video(folder / "broken.mp4")
    (folder / "notes.txt").write_text("no video")
    out = tmp_path / "report.json"
    arguments = [str(folder), "--decoders", "auto,pyav", "--workers", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["compare", *arguments])
    assert compare_field.main() == 0
    report = json.loads(out.read_text())
    readers = ("vidshard auto", "vidshard pyav", "OpenCV loop", "decord loop")
    assert report["totals"] == {reader: {"right": 3} for reader in readers}
    assert [Path(row["path"]).name for row in report["not_counted"]] == ["broken.mp4"]
    assert "ffprobe says" in capsys.readouterr().out


def test_refusals_of_auto_are_reported_and_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_tiny_videos(tmp_path / "mine", {"a.mp4": 20})
    command = ["ffmpeg", "-v", "error", "-i", str(folder / "a.mp4"), str(folder / "a.y4m")]
    subprocess.run(command, check=True)  # raw pictures, which are not read
    (folder / "a.mp4").unlink()
    monkeypatch.setattr(sys, "argv", ["compare", str(folder), "--decoders", "auto", "--workers", "1"])
    assert compare_field.main() == 1
    assert "refused " in capsys.readouterr().out


def test_the_right_frames_are_right(reference: Reference) -> None:
    assert (reference.num_frames, reference.errors) == (40, "")
    assert reference.seconds is not None
    assert reference.seconds.tolist() == pytest.approx([i / 10 for i in range(40)])
    outcome = compare_field.judge(40, [asked(reference, [0, 20, 39])], reference)
    assert outcome == Outcome(verdict="right", frames=3, lowest_db=99.0)


def test_times_that_run_backwards_are_not_a_reference() -> None:
    assert compare_field.usable_seconds(np.array([0.0, 0.12, 0.08]), 3) is None
    assert compare_field.usable_seconds(np.array([0.0, np.nan]), 2) is None
    assert compare_field.usable_seconds(np.array([0.0, 0.04]), 3) is None
    seconds = compare_field.usable_seconds(np.array([1.0, 1.04]), 2)
    assert seconds is not None
    assert seconds.tolist() == pytest.approx([0, 0.04])


def test_swapped_frames_are_wrong(reference: Reference) -> None:
    swapped = asked(reference, [0, 20, 21])
    swapped.pictures[[1, 2]] = swapped.pictures[[2, 1]]
    outcome = compare_field.judge(40, [swapped], reference)
    assert outcome.verdict == "wrong"
    assert "in place of frame 20 came frame 21" in outcome.why


@pytest.mark.parametrize(
    ("num_frames", "late", "lighter", "why"),
    [
        (41, 0.0, 0, "count: 41 frames, ffmpeg has 40"),
        (40, 0.06, 0, "is +0.060 s from ffmpeg's"),
        (40, 0.0, 20, "has 22.1 dB"),
    ],
)
def test_each_fault_is_found(reference: Reference, num_frames: int, late: float, lighter: int, why: str) -> None:
    frames = asked(reference, [0, 20, 39])
    pictures = np.where(frames.pictures < 128, frames.pictures + lighter, frames.pictures - lighter).astype(np.uint8)
    assert frames.seconds is not None
    frames = Asked(indices=frames.indices, pictures=pictures, seconds=frames.seconds + late)
    outcome = compare_field.judge(num_frames, [frames], reference)
    assert outcome.verdict == "wrong"
    assert why in outcome.why


def test_a_long_video_is_compared_on_its_first_frames(video: Path) -> None:
    start = compare_field.read_reference(video, 10)
    assert (start.num_frames, len(start.pictures)) == (40, 10)
    frames = Asked(indices=np.array([5, 30]), pictures=start.pictures[[5, 5]])
    assert compare_field.judge(40, [frames], start) == Outcome(verdict="right", frames=1, lowest_db=99.0)


def test_a_loop_that_dies_or_raises_is_a_refusal(video: Path, reference: Reference) -> None:
    died = compare_field.run_loop(die, video, reference, 1000)
    assert (died.verdict, died.why) == ("refused", "the process died (exit code 3)")
    missing = compare_field.run_loop(compare_field.opencv_loop, video.with_name("none.mp4"), reference, 1000)
    assert (missing.verdict, missing.why) == ("refused", "ValueError: cv2.VideoCapture does not open it")


def asked(reference: Reference, indices: list[int]) -> Asked:
    assert reference.seconds is not None
    return Asked(
        indices=np.array(indices), pictures=reference.pictures[indices], seconds=reference.seconds[indices].copy()
    )


def die(path: Path, max_frames: int) -> tuple[int, Asked]:
    import os

    os._exit(3)
