"""Shared by tests: misbehave."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path
from typing import Any


class OddError(Exception):
    """Cannot be unpickled: its constructor wants two arguments."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


def misbehave(what: Any) -> Any:
    if isinstance(what, int):
        return what * what
    if what == "segfault":
        ctypes.string_at(0)
    if what == "abort":
        os.abort()
    if what == "exit":
        os._exit(3)
    if what == "hang":
        time.sleep(1000)
    if what == "hang with the lock":
        ctypes.PyDLL(None).sleep(1000)  # PyDLL keeps the interpreter's lock
    if what == "raise":
        raise ValueError("bad value")
    if what == "raise oddly":
        raise OddError("a", "b")
    if what == "eat memory":
        hoard = []
        while True:
            hoard.append(b"x" * (16 << 20))
    if what == "pid":
        return os.getpid()
    if isinstance(what, Path):  # fails once
        if what.exists():
            return "second time"
        what.touch()
        os.abort()
    raise AssertionError(what)
