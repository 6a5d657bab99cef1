"""The last line of each command: it works when typed, and goes to standard error only."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import stage1.cli.main
import vidshard.cli.main
from tiny_videos import make_tiny_video

GROUPS = {"vidshard": vidshard.cli.main.main, "stage1": stage1.cli.main.main}
TRAIN = "--epochs 1 --set model.channels=[8] --set model.temporal_stages=[] --device cpu"
# What a user types, in this order; each line but the first uses what those before have written.
COMMANDS = (
    "vidshard build videos/Train --frame-size 32 --clip-len 4",
    "vidshard build videos/Validation --frame-size 32 --clip-len 4",
    "vidshard build videos/Test --frame-size 32 --clip-len 4",
    "vidshard inspect shards/Train",
    "vidshard verify shards/Train",
    "vidshard preview shards/Test",
    "stage1 preview-augment --shards shards/Train",
    f"stage1 train --shards shards/Train --val-shards shards/Validation {TRAIN}",
    "stage1 infer --threshold 0",
    "stage1 visualize",
    "stage1 evaluate --val-shards shards/Validation",
    "stage1 report --evaluation evaluation",
    "stage1 clips",
    "stage1 extract --for-looking",
    "stage1 features --shards shards/Test --checkpoint checkpoints/binary_stage1_with_attention.pt --out features",
    "stage1 infer --shards shards/Validation --out other --threshold 0",
    "stage1 explain --max-clips 2",
    "stage1 review export --format label-studio",
    "stage1 review export other --format activitynet --marks marks.csv",
    "stage1 review import other/activitynet.json --format activitynet --run other",
)


def label_a_clip(folder: Path) -> None:
    """Write marks.csv with a label of the first clip of a run."""
    with open(folder / "predictions.csv", encoding="utf-8", newline="") as file:
        row = next(csv.DictReader(file))
    names = ("key", "start_seconds", "end_seconds")
    Path("marks.csv").write_text(
        f"{','.join(names)},mark\n{','.join(row[name] for name in names)},false\n", encoding="utf-8"
    )


def typed(line: str) -> Result:
    program, *words = shlex.split(line, comments=True)
    return CliRunner().invoke(GROUPS[program], words)


@pytest.mark.slow
def test_every_next_line_works_when_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for split, count in (("Train", 6), ("Validation", 4), ("Test", 4)):
        for number in range(count):
            for seed, name in enumerate(("NormalVideos", "Fighting")):
                make_tiny_video(Path("videos", split, name, f"{number}.mp4"), 12, seed=7 * number + seed)
    printed = []
    for command in COMMANDS:
        if "--marks" in command:
            label_a_clip(Path("other"))
        result = typed(command)
        assert result.exit_code == 0, (command, result.output)
        (line,) = re.findall(r"^Next: (.+)$", result.stderr, re.MULTILINE)
        assert result.stderr.endswith(f"Next: {line}\n")
        assert "Next:" not in result.stdout
        printed.append(line)
    assert len(printed) == len(COMMANDS)
    for line in dict.fromkeys(printed):
        words = f"{line} {TRAIN}" if line.startswith("stage1 train") else line
        result = typed(words)
        assert result.exit_code == 0, (line, result.output)


def test_quiet_and_json_have_no_next_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("NormalVideos", "Fighting")):
        make_tiny_video(Path("videos", name, "a.mp4"), 12, seed=number)
    (line,) = re.findall(r"^Next: (.+)$", typed("vidshard split videos --out lists").stderr, re.MULTILINE)
    assert typed(f"{line} --frame-size 32").exit_code == 0
    assert "Next: stage1 train --shards shards/videos" in typed("vidshard build videos --frame-size 32").stderr
    assert "Next:" not in typed("vidshard inspect shards/videos --json").output
    assert "Next:" not in typed("vidshard inspect shards/videos --quiet").output


README = Path(__file__).parents[2] / "README.md"


@pytest.mark.slow
def test_the_quick_start_typed_twice_ends_well_both_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for split, count in (("Train", 6), ("Validation", 4), ("Test", 4)):
        for number in range(count):
            for seed, name in enumerate(("NormalVideos", "Fighting")):
                make_tiny_video(Path(split, name, f"{number}.mp4"), 20, seed=7 * number + seed)
    (block,) = re.findall(r"```\n(vidshard build Train/ .+?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    lines = [command for line in block.splitlines() for command in line.partition("#")[0].strip().split(" && ")]
    assert len(lines) == 8
    next_lines = []
    for _ in range(2):
        for line in lines:
            result = typed(f"{line} {TRAIN}" if line.startswith("stage1 train") else line)
            assert result.exit_code == 0, (line, result.output)
            next_lines += re.findall(r"^Next: (.+)$", result.stderr, re.MULTILINE)
    assert len(next_lines) == 2 * len(lines)
    for line in dict.fromkeys(next_lines):
        result = typed(f"{line} {TRAIN}" if line.startswith("stage1 train") else line)
        assert result.exit_code == 0, (line, result.output)
    for path in ("checkpoints/binary_stage1_with_attention.pt", "stage1_output/anomalies.json"):
        assert Path(path).is_file()
        assert (Path(path).parent / "earlier-1" / Path(path).name).is_file()
