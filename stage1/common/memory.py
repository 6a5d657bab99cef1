"""How the C library treats memory that is free again."""

from __future__ import annotations

import contextlib
import ctypes

# Options of glibc's mallopt(3), and what they are set to.
_OPTIONS = {"M_ARENA_MAX": (-8, 1), "M_MMAP_THRESHOLD": (-3, 2**28), "M_TRIM_THRESHOLD": (-1, 2**31 - 1)}


def keep_freed_memory() -> None:
    """Let this process use memory that is free again instead of giving it back to the system: blocks up to 256 MiB.

    By default glibc maps every large tensor anew, and the system fills it with zeros page by page: with batches of 8
    clips of 16×112×112 that is nearly half of the CPU time of inference and a quarter of that of training, and threads
    wait for each other in it. To be called first in a process: what threads allocate is kept in one place only if there
    is one when they start. Without glibc nothing happens.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # no mallopt here; no handle of the process itself
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in _OPTIONS.values():
            mallopt(option, value)
