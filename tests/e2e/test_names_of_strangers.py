"""Names that others have chosen, where people see them: in the terminal, in logs, and in spreadsheets."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from click.testing import CliRunner

from fake_shards import write_shards
from inference_runs import LABELS, some_clips, stage1, write_checkpoint
from tiny_videos import make_broken_video, make_tiny_videos
from vidshard.cli.main import main as vidshard


@pytest.mark.slow
def test_a_name_with_line_breaks_and_escape_sequences_stays_in_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_tiny_videos(Path("videos"), {"Fighting/a.mp4": 8, "NormalVideos/b.mp4": 8})
    name = "Fighting/c\x1b[2J\nfinished in 0 s.mp4"
    make_broken_video(Path("videos") / name)
    options = ["--clip-len", "4", "--frame-size", "16", "--workers", "1"]
    done = CliRunner().invoke(vidshard, ["build", "videos", "--out", "built", *options])
    assert done.exit_code == 2, done.output
    log = Path("built.log/build.log").read_text()
    for text in (done.output, log):
        assert r"Fighting/c\x1b[2J" in text
        assert "\x1b" not in text
    assert not any(line.startswith("finished in 0 s") for line in log.splitlines())
    with open("built/failures.csv", newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [name]


def test_a_spreadsheet_runs_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["=HYPERLINK(1)", "+1", "-1", "@SUM(1)", "'=1", "\t=1", "Fighting"]
    write_shards(Path("shards"), some_clips(), LABELS, class_names=names)
    write_checkpoint(Path("model.pt"))
    run = ["--shards", "shards", "--checkpoint", "model.pt", "--out", "run", "--threshold", "0", "--device", "cpu"]
    assert stage1("infer", *run).exit_code == 0
    assert stage1("extract", "run", "--out", "frames", "--for-looking").exit_code == 0
    for path in (Path("run/predictions.csv"), Path("run/videos.csv"), Path("frames/frames.csv")):
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        texts = [row["class"] for row in rows] + [row["source"] for row in rows]
        assert not [text for text in texts if text[0] in "=+-@\t"], path
        assert "'+1" in texts
    assert stage1("report", "run").exit_code == 0  # it reads them back
