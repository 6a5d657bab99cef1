"""Real-world videos built with `auto`: which decoder is used, and what the clips show."""

from __future__ import annotations

import io
import os
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from numbered_videos import make_video, read_number
from tiny_videos import make_tiny_video
from vidshard.building.run import BuildConfig, build
from vidshard.shards import layout
from vidshard.shards.layout import SampleRecord

# The folder takes the place of decord, in the workers too: they get the module path of this process.
ABORTING_DECORD = """
import os, types

class DECORDError(Exception):
    pass

logging = types.SimpleNamespace(INFO=0, set_level=lambda level: None)
cpu = lambda number: number
VideoReader = lambda *arguments, **options: os.abort()
"""
# On this one OpenCV 5.0 corrupts its heap, and the process ends.
CRASHES_OPENCV = "dataset__demo.avi"


def only_clip(source: Path, out: Path, **options: object) -> tuple[SampleRecord, np.ndarray]:
    """Build one video of one clip: its record and its frames."""
    (report,) = build(BuildConfig(source=source, out=out, workers=1, **options)).sets  # type: ignore[arg-type]
    assert [failure.message for failure in report.manifest.failures] == []
    (shard,) = report.manifest.shards
    with open(out / shard.name, "rb") as file:
        ((_, payload, record, _),) = layout.read_shard(file)
    return record, np.load(io.BytesIO(payload))


def test_a_decoder_that_crashes_its_worker_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "decord.py").write_text(ABORTING_DECORD)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    make_tiny_video(tmp_path / "source" / "a.mp4", 16)
    record, _ = only_clip(tmp_path / "source", tmp_path / "out")
    assert record.decoder == "opencv"


def find_video_that_crashes_opencv() -> Path | None:
    folder = os.environ.get("VIDSHARD_TEST_DATA")
    return next(iter(Path(folder, "data", "field").rglob(CRASHES_OPENCV)), None) if folder else None


@pytest.mark.skipif(
    find_video_that_crashes_opencv() is None, reason=f"VIDSHARD_TEST_DATA has no {CRASHES_OPENCV} below data/field"
)
def test_a_real_video_that_crashes_opencv_is_built(tmp_path: Path) -> None:
    video = find_video_that_crashes_opencv()
    assert video is not None
    (tmp_path / "source").mkdir()
    shutil.copyfile(video, tmp_path / "source" / video.name)
    record, _ = only_clip(tmp_path / "source", tmp_path / "out")
    assert record.decoder == "pyav"


def test_letterbox_counts_the_shape_of_a_pixel(tmp_path: Path) -> None:
    """Stored as a square, shown twice as wide as high: bars above and below."""
    (tmp_path / "source").mkdir()
    make_video(tmp_path / "source" / "a.mp4", num_frames=16, size=(160, 160), sample_aspect=Fraction(2, 1))
    _, frames = only_clip(tmp_path / "source", tmp_path / "out", frame_size=96, resize="letterbox")
    assert frames[:, :23].max() < 5
    assert frames[:, -23:].max() < 5
    assert [read_number(frame[24:72]) for frame in frames] == list(range(16))
