"""A decoding library that dies, hangs or eats memory on chosen files, through the whole command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crash_test_build import living
from tiny_videos import make_tiny_videos
from vidshard.shards.manifest import open_shards

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals, memory limits and /proc")

REASONS = {  # what the file is called → how it ends
    "segfault": "killed_by_sigsegv",
    "abort": "killed_by_sigabrt",
    "memory": "out_of_memory",
    "hang": "timeout",
}
GOOD = ["a", "h", "i", "n", "t"]  # before, between and after those in the order of the build

# Stands before the real library on the path of the children; hands out the real one, with one function spoilt.
SHIM = """
import ctypes, importlib, os, sys

sys.path = [place for place in sys.path if os.path.abspath(place or ".") != {folder!r}]
del sys.modules[{library!r}]
real = importlib.import_module({library!r})


def misbehave(name):
    what = os.path.basename(str(name)).removesuffix(".mp4")
    if what == "segfault":
        ctypes.string_at(0)
    if what == "abort":
        os.abort()
    if what == "memory":
        hoard = []
        while True:
            hoard.append(b"x" * (8 << 20))
    if what == "hang":
        ctypes.PyDLL(None).sleep(10000)  # PyDLL keeps the interpreter's lock


def spoilt(name, *arguments, __function=real.{function}, **options):
    misbehave(name)
    return __function(name, *arguments, **options)


real.{function} = spoilt
"""


@pytest.mark.parametrize(
    ("library", "function", "built_by_others"),
    [
        ("decord", "VideoReader", {"segfault", "abort"}),
        pytest.param("av", "open", set(), marks=pytest.mark.slow),
    ],
)
def test_everything_else_is_built_and_the_ledger_names_the_cause(
    library: str, function: str, built_by_others: set[str], tmp_path: Path
) -> None:
    """decord decodes, and where it crashes, OpenCV does; PyAV reads the packets before that."""
    source = make_tiny_videos(tmp_path / "source", {f"Abuse/{name}.mp4": 8 for name in [*REASONS, *GOOD]})
    shims = tmp_path / "shims"
    (shims / library).mkdir(parents=True)
    text = SHIM.format(folder=str(shims), library=library, function=function)
    (shims / library / "__init__.py").write_text(text)
    command = [sys.executable, "-c", "from vidshard.cli.main import main; main()", "build", str(source), "--yes"]
    command += ["--out", str(tmp_path / "out"), "--workers", "2", "--timeout-seconds", "4", "--memory-mb", "500"]
    path = os.pathsep.join([str(shims), *filter(None, [os.environ.get("PYTHONPATH")])])

    build = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    said, _ = build.communicate(timeout=250)  # a hang alone takes longer

    assert build.returncode == 2, said
    assert living(build.pid) == []
    opened = open_shards(tmp_path / "out")
    about, index = opened.manifest, opened.index
    failed = {name: why for name, why in REASONS.items() if name not in built_by_others}
    assert {Path(f.path).stem: f.reason for f in about.failures} == failed
    assert about.videos == {"found": 9, "ok": 9 - len(failed), "failed": len(failed), "skipped": 0}
    decoders = {Path(path).stem: index.decoder(number) for number, path in enumerate(index.paths)}
    assert {name for name, decoder in decoders.items() if decoder == "opencv"} == built_by_others
    messages = {Path(f.path).stem: f.message for f in about.failures}
    if not built_by_others:
        assert "SIGSEGV" in messages["segfault"]
        assert "SIGABRT" in messages["abort"]
    assert "500 MiB" in messages["memory"]
    assert "4 seconds" in messages["hang"]
    assert not (tmp_path / "out" / ".work").exists()
