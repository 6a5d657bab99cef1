"""Locks: one holder at a time, and takeover from a dead one."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vidshard.util import lock as folder_lock
from vidshard.util.errors import UserError
from vidshard.util.lock import hold_lock


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def lock_of(path: Path, **holder: object) -> Path:
    path.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": "1", **holder}))
    return path


def test_it_is_given_back(tmp_path: Path) -> None:
    for _ in range(2):
        with hold_lock(tmp_path / "lock", what="out"):
            assert (tmp_path / "lock").exists()
    assert list(tmp_path.iterdir()) == []


def test_it_is_given_back_with_too_many_open_files(tmp_path: Path) -> None:
    with contextlib.ExitStack() as opened, hold_lock(tmp_path / "lock", what="out"):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        opened.callback(resource.setrlimit, resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE))
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        with pytest.raises(OSError, match="Too many open files"):
            (tmp_path / "lock").read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_was_taken_over_is_left_to_its_new_holder(tmp_path: Path) -> None:
    with hold_lock(tmp_path / "lock", what="out"):
        (tmp_path / "lock").unlink()
        lock_of(tmp_path / "lock", host="another")
    assert json.loads((tmp_path / "lock").read_text())["host"] == "another"


def test_a_living_holder_is_named(tmp_path: Path) -> None:
    with hold_lock(tmp_path / "lock", what="shards/Train"):
        told = f"shards/Train is being built by process {os.getpid()} on "
        with pytest.raises(UserError, match=told), hold_lock(tmp_path / "lock", what="shards/Train"):
            pass
        assert (tmp_path / "lock").exists()


def test_a_dead_holder_is_replaced(tmp_path: Path) -> None:
    with hold_lock(lock_of(tmp_path / "lock", pid=dead_pid()), what="out"):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="start times are read from /proc")
def test_a_later_process_with_the_same_number_is_not_the_holder(tmp_path: Path) -> None:
    with hold_lock(lock_of(tmp_path / "lock", started="long ago"), what="out"):
        assert json.loads((tmp_path / "lock").read_text())["started"] == folder_lock.process_start(os.getpid())


def test_the_lock_of_another_host_expires(tmp_path: Path) -> None:
    lock = lock_of(tmp_path / "lock", host="another")
    with pytest.raises(UserError, match="is being built by"), hold_lock(lock, what="out"):
        pass
    old = time.time() - folder_lock.STALE_SECONDS - 1
    os.utime(lock, (old, old))
    with hold_lock(lock, what="out"):
        assert json.loads(lock.read_text())["host"] == socket.gethostname()


def test_a_lock_of_nobody_ends_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may be killed after it created the lock and before it wrote its name."""
    (tmp_path / "lock").touch()
    monkeypatch.setattr(folder_lock, "EMPTY_SECONDS", 0.1)
    monkeypatch.setattr(folder_lock, "_WAIT_SECONDS", 0.05)
    with hold_lock(tmp_path / "lock", what="out"):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_a_holder_that_is_about_to_write_its_name_keeps_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lock").touch()
    monkeypatch.setattr(folder_lock.time, "sleep", lambda _: lock_of(tmp_path / "lock", host="another"))
    with pytest.raises(UserError, match="on another; wait for it"), hold_lock(tmp_path / "lock", what="out"):
        pass
