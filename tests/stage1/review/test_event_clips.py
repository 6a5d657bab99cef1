from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from click.testing import CliRunner, Result

from stage1.cli.main import main
from tiny_videos import FPS, make_broken_video, make_tiny_video

GOP = 8  # frames between the keyframes of a tiny video


def write_run(folder: Path, events: dict[str, list[tuple[float, float]]]) -> Path:
    """Write what a run of inference leaves of its events; `events`: start and end of each, by video."""
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    videos = [
        {
            "source": name,
            "video_path": str(folder.parent / name),
            "scores": [0.5] * 60,
            "events": [{"start_seconds": start, "end_seconds": end} for start, end in spans],
        }
        for name, spans in events.items()
    ]
    (folder / "events.json").write_text(json.dumps({"videos": videos}))
    return folder


def clips(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["clips", *map(str, arguments)])


def pictures(path: Path) -> tuple[list[float], list[Any]]:
    with av.open(str(path)) as video:
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in video.decode(video=0)]
    return [time for time, _ in frames], [picture for _, picture in frames]


def test_an_event_is_cut_at_the_keyframe_before_it(tmp_path: Path) -> None:
    make_tiny_video(tmp_path / "a.mp4", 300)
    run = write_run(tmp_path / "run", {"a.mp4": [(10.0, 14.0), (27.0, 30.0)]})
    result = clips(run, "--seconds", "1")
    assert result.exit_code == 0, result.output
    assert "✓ 2 event clips saved to" in result.stdout
    _, whole = pictures(tmp_path / "a.mp4")
    for number, (start, end) in enumerate([(9.0, 15.0), (26.0, 30.0)], start=1):
        times, frames = pictures(run / "clips" / f"a-event-{number:03d}.mp4")
        first = int(start * FPS) // GOP * GOP  # less than a keyframe's distance before
        assert 0 <= times[0] <= 0.2
        assert len(frames) >= end * FPS - first
        assert all(np.array_equal(a, b) for a, b in zip(frames, whole[first:], strict=False))
        assert len(frames) <= end * FPS - first + 3


def test_score_and_time_are_drawn_into_the_frames(tmp_path: Path) -> None:
    make_tiny_video(tmp_path / "a.mp4", 100, size=(320, 240))
    run = write_run(tmp_path / "run", {"a.mp4": [(3.0, 6.0)]})
    assert clips(run, "--seconds", "0", "--burn-in").exit_code == 0
    times, frames = pictures(run / "clips" / "a-event-001.mp4")
    _, whole = pictures(tmp_path / "a.mp4")
    assert len(frames) == 30
    assert times[-1] == pytest.approx(2.9, abs=0.01)
    differs = np.abs(frames[0].astype(int) - whole[30]).max(axis=2) > 90
    assert differs[-15:, :40].mean() > 0.3  # the box of the text
    assert differs[:200].mean() < 0.01


def test_a_video_that_cannot_be_cut_is_named_and_the_others_are_cut(tmp_path: Path) -> None:
    make_tiny_video(tmp_path / "a.mp4", 100)
    make_broken_video(tmp_path / "b.mp4")
    run = write_run(tmp_path / "run", {"b.mp4": [(3.0, 6.0)], "a.mp4": [(3.0, 6.0)], "gone.mp4": [(0.0, 1.0)]})
    result = clips(run)
    assert result.exit_code == 2
    assert [line.split(" cannot be cut")[0].rpartition("/")[2] for line in result.stderr.splitlines()[1:3]] == [
        "b.mp4",
        "gone.mp4",
    ]
    assert [path.name for path in (run / "clips").iterdir()] == ["a-event-001.mp4"]


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe is not on PATH")
def test_a_clip_plays(tmp_path: Path) -> None:
    make_tiny_video(tmp_path / "a.mp4", 200)
    run = write_run(tmp_path / "run", {"a.mp4": [(5.0, 8.0)]})
    clips(run)
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_entries", "stream=nb_read_frames,start_time"]
    shown = subprocess.run(
        [*command, "-of", "csv=p=0", str(run / "clips" / "a-event-001.mp4")], capture_output=True, text=True, check=True
    )
    start, frames = shown.stdout.strip().split(",")
    assert shown.stderr == ""
    assert float(start) < 0.2
    assert int(frames) >= 70
