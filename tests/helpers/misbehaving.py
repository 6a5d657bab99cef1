"""A task that can fail in every possible way."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class OddError(Exception):
    """Exception that cannot be unpickled: its constructor takes two arguments."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


def _raise(error: Exception) -> None:
    raise error


def _eat_memory() -> None:
    hoard = []
    while True:
        hoard.append(b"x" * (16 << 20))


WAYS: dict[str, Callable[[], Any]] = {
    "segfault": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "exit": lambda: os._exit(3),
    "hang": lambda: time.sleep(1000),
    "hang with the lock": lambda: ctypes.PyDLL(None).sleep(1000),  # PyDLL keeps the interpreter's lock
    "raise": lambda: _raise(ValueError("bad value")),
    "raise oddly": lambda: _raise(OddError("a", "b")),
    "eat memory": _eat_memory,
    "pid": os.getpid,
}


def misbehave(what: Any) -> Any:
    """Square a number, take one of WAYS, or crash if the file `what` is missing, and create it."""
    if isinstance(what, int):
        return what * what
    if isinstance(what, Path):
        if what.exists():
            return "second time"
        what.touch()
        os.abort()
    return WAYS[what]()
