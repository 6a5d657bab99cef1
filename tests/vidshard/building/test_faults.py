"""Interrupted builds: by a failure of the n-th write, for every n, and by SIGKILL at random moments."""

from __future__ import annotations

import builtins
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import crash_test_build
from builds import SameProcess, digests, run
from tiny_videos import damage_pictures, make_tiny_video, make_tiny_videos
from vidshard.building import existing_set
from vidshard.building import run as builder
from vidshard.shards import manifest, writer
from vidshard.util import atomic

# 3 + 3 + 2 clips, 4 a shard: the second video reaches into the second shard.
VIDEOS = {"Abuse/a.mp4": 12, "Abuse/b.mp4": 12, "NormalVideos/n.mp4": 8}
SHARD_CLIPS = 4


class FaultyDisk:
    """Lets the `number`-th write, fsync or rename fail, and all that come after it in the same build."""

    def __init__(self, patch: pytest.MonkeyPatch, number: int, code: int) -> None:
        self.number, self.code, self.count = number, code, 0
        for module in (atomic, writer, existing_set):
            patch.setattr(module, "open", self.open, raising=False)
        for name in ("fsync", "replace"):
            patch.setattr(os, name, self.faulty(getattr(os, name)))

    def faulty(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self.number:
                raise OSError(self.code, os.strerror(self.code))
            return function(*arguments, **options)

        return call

    def open(self, path: Any, mode: str = "r", **options: Any) -> Any:
        file = builtins.open(path, mode, **options)  # noqa: SIM115
        return _Faulty(file, self) if mode == "wb" else file


class _Faulty:
    def __init__(self, file: Any, disk: FaultyDisk) -> None:
        self._file = file
        self.write = disk.faulty(file.write)

    def __enter__(self) -> _Faulty:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.fixture
def same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidshard.execution.local.Supervisor", SameProcess)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # thousands of them: what they do is not tested here
    monkeypatch.setattr(builder.shard_plan, "clips_per_shard", lambda shape, shard_mb: SHARD_CLIPS)


@pytest.mark.parametrize(
    ("codes", "step"),
    [
        ([errno.ENOSPC], 17),
        pytest.param([errno.ENOSPC, errno.EIO], 1, marks=pytest.mark.slow),  # in turn
    ],
)
@pytest.mark.parametrize("change", ["build", "--extend", "--retry-failed"])
@pytest.mark.usefixtures("same_process")
def test_every_step_th_fault_of_the_disk(
    change: str, codes: list[int], step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_tiny_videos(tmp_path / "source", VIDEOS)
    if change == "--retry-failed":
        damage_pictures(source / "Abuse" / "b.mp4")
    base, expected, out = tmp_path / "base", tmp_path / "expected", tmp_path / "out"
    more = [] if change == "build" else [change]
    if more:
        run(source, base)
        if change == "--extend":
            make_tiny_video(source / "Abuse" / "0.mp4", 4)
        else:
            make_tiny_video(source / "Abuse" / "b.mp4", 12, seed=1)
        shutil.copytree(base, expected)
    assert run(source, expected, *more).exit_code == 0
    assert len(manifest.read_manifest(expected).shards) == (3 if change == "--extend" else 2)
    wanted, old = digests(expected), digests(base) if more else {}
    number, told = 1 - step, 0
    while True:
        number += step
        code = codes[number % len(codes)]
        if more:
            shutil.copytree(base, out)
        with monkeypatch.context() as patch:
            disk = FaultyDisk(patch, number, code)
            result = run(source, out, *more)
        if disk.count < number:
            break
        where = f"operation {number}: {result.output}"
        if result.exit_code == 1:
            told += 1
            assert f"error: {os.strerror(code)}" in result.stderr, where
        else:
            assert result.exit_code == 0, where  # it was about the log
        assert "Traceback" not in result.output, where
        for name, digest in digests(out).items() if out.exists() else ():
            assert digest in (wanted.get(name), old.get(name)) or name in ("failures.csv",), f"{name}, {where}"
        if change == "--extend":
            manifest.open_shards(out)  # the old set or the new one, at every moment
        result = run(source, out, *more)
        assert result.exit_code == 0, f"after {where}: {result.output}"
        assert digests(out) == wanted, f"after {where}"
        assert not (out / ".work").exists(), f"after {where}"
        shutil.rmtree(out)
    assert told >= 20 // step


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no process groups")
def test_killed_at_random_moments(tmp_path: Path) -> None:
    report = crash_test_build.run(5, 0, 2, tmp_path)
    assert report["byte_identical"]
