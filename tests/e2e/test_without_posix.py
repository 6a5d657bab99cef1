"""The basic commands without POSIX: as close to Windows as a test on another system can be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pictures import count_pixels, read_picture
from stage1.review.film_strip import TOP_COLOUR
from synthetic_videos import make_dataset

# Runs at the start of every Python process of the test, spawned workers included. What multiprocessing of this
# system itself needs stays: os.fork, signal.SIGKILL.
TAKE_POSIX_AWAY = """
import importlib.abc, os, signal, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
for name in ("preadv", "pread", "setsid", "killpg", "getpgid", "sched_getaffinity", "sendfile", "copy_file_range",
             "fdatasync", "posix_fadvise", "getuid", "getloadavg", "mkfifo"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGALRM", "setitimer", "alarm"):
    if hasattr(signal, name):
        delattr(signal, name)
"""


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(), ("--clip-len", "8", "--frame-size", "64")], ids=["default", "small"])
def test_build_inspect_train_infer_and_visualize_need_no_posix(tmp_path: Path, shape: tuple[str, ...]) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(TAKE_POSIX_AWAY)
    make_dataset(tmp_path / "videos", num_videos={"Train": 8, "Test": 4})
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "PYTHONUTF8": "1"}

    def run(*command: str) -> str:
        shown = subprocess.run(
            [sys.executable, "-c", f"from {command[0]}.cli.main import main; main()", *command[1:]],
            cwd=tmp_path, env=environment, capture_output=True, text=True, encoding="utf-8",
        )  # fmt: skip
        assert shown.returncode == 0, shown.stdout + shown.stderr
        return shown.stdout

    run("vidshard", "build", "videos/Train", "--workers", "2", "--yes", *shape)
    run("vidshard", "build", "videos/Test", "--yes", *shape)
    assert ("(8, 64, 64, 3)" if shape else "(16, 112, 112, 3)") in run("vidshard", "inspect", "shards/Train")
    run("stage1", "train", "--shards", "shards/Train", "--epochs", "1", "--val-fraction", "0")
    assert "Stage 1 Complete" in run("stage1", "infer", "--threshold", "0")
    run("stage1", "visualize")
    picture = read_picture(tmp_path / "stage1_output" / "attention_visualization.png")
    assert count_pixels(picture, TOP_COLOUR) > 500  # the frames of highest attention
