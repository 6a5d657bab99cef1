"""Files with the oddities of real recorders, muxers, editors and phones: every frame is the right one, at its time."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from vidshard import SamplingConfig
from vidshard.building.run import BuildConfig, build
from vidshard.shards import layout
from vidshard.shards.layout import SampleRecord
from vidshard.shards.manifest import Manifest

MAKER = Path(os.environ.get("VIDSHARD_TEST_DATA", ""), "tools", "field_inputs", "make_inputs.py")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MAKER.is_file(), reason="VIDSHARD_TEST_DATA has no tools/field_inputs/make_inputs.py"),
    pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not on PATH"),
]

SAMPLINGS = {"uniform": SamplingConfig(), "dense": SamplingConfig(mode="dense", fps=7.5)}
MARGIN = 0.002  # seconds

Numbers = Callable[[int], int]


@dataclasses.dataclass(frozen=True)
class Expected:
    """Content of a file of the table. Frames are 0.04 s apart, and missing ones leave a gap, unless stated."""

    num_frames: int
    case: str  # which makes it; the file name without the part that distinguishes variants
    number: Numbers = lambda index: index  # what frame `index` shows
    seconds: Callable[[int], float] = lambda index: index / 25
    most_missing: int = 0  # frames before the last
    rotation: int = 0  # degrees clockwise that a player turns it
    mirrored: bool = False
    estimated_times: bool = False


EXPECTED = {
    "cover_png": Expected(300, "covers"),
    "cover_jpg": Expected(300, "covers"),
    "copy_cut_2.0": Expected(52, "copy_cuts", most_missing=3),
    "copy_cut_ss": Expected(52, "copy_cuts", number=lambda index: index + 33, most_missing=3),
    "ipcam_i_sync_ref1": Expected(300, "ipcam_i_sync"),
    "ipcam_i_sync_ref4": Expected(300, "ipcam_i_sync"),
    "stss_missing_p": Expected(300, "stss_missing_p"),
    "stss_missing_b": Expected(300, "stss_missing_b"),
    "frag_all_sync": Expected(300, "frag_all_sync"),
    "h264_paff": Expected(12, "h264_paff"),
    "h264_paff_from_ts": Expected(12, "h264_paff"),
    "ps_h264": Expected(300, "ps_h264", estimated_times=True),
    "ps_h264_p": Expected(300, "ps_h264_p", estimated_times=True),
    "clock_jump_10min": Expected(300, "clock_jump_10min", seconds=lambda i: i / 25 + 600 * (i >= 150)),
    "clock_jump_10h": Expected(300, "clock_jump_10h", seconds=lambda i: i / 25 + 36_000 * (i >= 150)),
    "no_ctts_b": Expected(300, "no_ctts_b"),
    "hevc_nal48": Expected(60, "extra_nals"),
    "hevc_nal63": Expected(60, "extra_nals"),
    "colr_18_bytes": Expected(60, "colr_18_bytes"),
    "colour_bt2020_10_ts": Expected(20, "colour"),
    "mirrored": Expected(40, "mirrored", mirrored=True),
    "rotated_45": Expected(40, "rotated_45", rotation=45),
    "two_edits": Expected(100, "two_edits", number=lambda index: index if index < 50 else index + 100),
    "two_stsd": Expected(120, "two_stsd"),
    "two_stsd_same_size": Expected(120, "two_stsd_same_size"),
    "ts_restart_short": Expected(120, "ts_restart_short", estimated_times=True),
    "ps_hikvision_imkh": Expected(100, "ps_hikvision_imkh", estimated_times=True),
    "ts_leading_junk": Expected(100, "ts_h264_leading_junk"),
}
# For these a refusal will do.
MAY_BE_REFUSED = {
    "h264_paff", "h264_paff_from_ts", "ps_h264", "ps_h264_p", "no_ctts_b", "rotated_45", "two_edits"
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Built:
    manifest: Manifest
    clips: dict[str, list[tuple[SampleRecord, npt.NDArray[np.uint8]]]]  # by the name of the file


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("made")
    command = [sys.executable, str(MAKER), str(made), *{expected.case: None for expected in EXPECTED.values()}]
    subprocess.run(command, check=True, capture_output=True)
    folder = tmp_path_factory.mktemp("source")
    for name in EXPECTED:
        (made / f"{name}.mp4").rename(folder / f"{name}.mp4")
    return folder


@pytest.fixture(scope="module", params=SAMPLINGS)
def built(request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    out = tmp_path_factory.mktemp("out")
    (report,) = build(BuildConfig(source=source, out=out, sampling=SAMPLINGS[request.param], workers=2)).sets
    clips: dict[str, list[tuple[SampleRecord, npt.NDArray[np.uint8]]]] = {}
    for shard in report.manifest.shards:
        with open(out / shard.name, "rb") as file:
            for _, payload, record, _ in layout.read_shard(file):
                clips.setdefault(Path(record.path).stem, []).append((record, np.load(io.BytesIO(payload))))
    return Built(report.manifest, clips)


def test_every_sound_file_is_built(built: Built) -> None:
    failed = {Path(failure.path).stem: failure.message for failure in built.manifest.failures}
    assert {name: message for name, message in failed.items() if name not in MAY_BE_REFUSED} == {}
    assert set(built.clips) | set(failed) == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_every_frame_is_the_right_one_at_its_time(name: str, built: Built) -> None:
    expected = EXPECTED[name]
    if name in MAY_BE_REFUSED and name not in built.clips:
        pytest.skip("refused, as it may be")
    for record, frames in built.clips[name]:
        assert record.num_frames == expected.num_frames
        assert ("estimated_times" in record.flags) == expected.estimated_times
        last = expected.seconds(expected.num_frames - 1)
        if "clock_jump" in name:  # the mean rate leaves out the time of the jump
            last = (expected.num_frames - 1) / 25
        rates = [(expected.num_frames - 1) / (last + missing / 25) for missing in range(expected.most_missing + 1)]
        assert min(abs(record.fps - rate) for rate in rates) < 0.01
        for frame, index, seconds in zip(frames, record.frame_indices, record.timestamps_seconds, strict=True):
            missing = round((seconds - expected.seconds(index)) * 25)
            assert 0 <= missing <= expected.most_missing
            assert abs(seconds - missing / 25 - expected.seconds(index)) < MARGIN
            assert_shows(frame, expected.number(index) + missing, expected)


def test_no_clip_lies_across_a_jump_of_the_clock(built: Built) -> None:
    for name in ("clock_jump_10min", "clock_jump_10h"):
        gaps = [np.diff(record.timestamps_seconds).max() for record, _ in built.clips[name]]
        if len(gaps) > 1:  # dense
            assert len(gaps) == 6
            assert max(gaps) < 0.2


def test_bt2020_has_the_colours_of_ffmpeg(built: Built, source: Path) -> None:
    command = ["ffmpeg", "-nostdin", "-v", "error", "-i", str(source / "colour_bt2020_10_ts.mp4")]
    command += ["-vf", "scale=112:112:flags=area+accurate_rnd+full_chroma_int,format=gbrp,format=rgb24"]
    shown = subprocess.run([*command, "-f", "rawvideo", "-"], check=True, capture_output=True).stdout
    reference = np.frombuffer(shown, np.uint8).reshape(-1, 112, 112, 3).astype(np.float64)
    for record, frames in built.clips["colour_bt2020_10_ts"]:
        difference = frames - reference[list(record.frame_indices)]
        assert np.abs(difference.mean(axis=(0, 1, 2))).max() < 2  # OpenCV: up to 19


def assert_shows(frame: npt.NDArray[np.uint8], number: int, expected: Expected) -> None:
    """Check that the picture shows `number`: bit k in block k of 4 × 4; blocks cut off by a rotation are ignored.

    A picture is stored 160 × 120 and turned within these bounds.
    """
    height, width = frame.shape[:2]
    angle = np.radians(expected.rotation)
    seen = 0
    for bit in range(16):
        x, y = (bit % 4 - 1.5) * 40, (bit // 4 - 1.5) * 30  # pixels from the middle
        x = -x if expected.mirrored else x
        x, y = x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)
        if max(abs(x) / 80, abs(y) / 60) > 0.95:
            continue
        column, row = int(width * (0.5 + x / 160)), int(height * (0.5 + y / 120))
        mean = frame[row - 3 : row + 4, column - 3 : column + 4].mean()
        assert mean > 160 if number >> bit & 1 else mean < 95, f"bit {bit} of {number}: {mean:.0f}"
        seen += 1
    assert seen >= 14 if expected.rotation else seen == 16
