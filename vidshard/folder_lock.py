"""One builder a folder: a lock file that names its holder, and is taken over from a holder that is dead.

A plain file made with O_EXCL, not an advisory lock: these exist on no two systems alike and not on every cluster disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vidshard.errors import UserError

REFRESH_SECONDS = 60.0
STALE_SECONDS = (
    600.0  # the lock of another host, or one without a readable holder, is dead after so long without refresh
)
_STILL_ACTIVE = 259  # Windows: exit code of a process that runs
_PROCESS_QUERY_LIMITED_INFORMATION = 0x1000


@contextlib.contextmanager
def hold_lock(path: Path, *, what: str) -> Iterator[None]:
    """Hold the lock file `path` while the block runs. Raises UserError that names its holder, if another has it."""
    _take(path, what)
    done = threading.Event()
    refresher = threading.Thread(target=_refresh, args=(path, done), daemon=True)
    refresher.start()
    try:
        yield
    finally:
        done.set()
        refresher.join()
        with contextlib.suppress(OSError):
            path.unlink()


def _take(path: Path, what: str) -> None:
    me = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": process_start(os.getpid())})
    for _ in range(3):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            _remove_if_dead(path, what)
            continue
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(me)
        return
    raise UserError(f"{what} is being built by others who come and go; run the same command again")


def _remove_if_dead(path: Path, what: str) -> None:
    """Remove the lock if its holder is dead; raise UserError if not."""
    try:
        text, age = path.read_text(encoding="utf-8"), time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return  # just given back
    holder = _parse(text)
    if not _is_dead(holder, age):
        who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
        raise UserError(f"{what} is being built by {who}; wait for it, or build into another --out (lock: {path})")
    # Renamed first, and looked at again: of two who find it dead only one may take it, and nobody a new holder's.
    grave = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        os.replace(path, grave)
        if grave.read_text(encoding="utf-8") != text:
            os.replace(grave, path)
        else:
            grave.unlink()


def _is_dead(holder: dict[str, Any] | None, age_seconds: float) -> bool:
    if holder is None or holder["host"] != socket.gethostname():
        return age_seconds > STALE_SECONDS
    started = process_start(holder["pid"])
    return started is None or started != holder["started"]


def _parse(text: str) -> dict[str, Any] | None:
    try:
        holder = json.loads(text)
        return {"pid": int(holder["pid"]), "host": str(holder["host"]), "started": holder["started"]}
    except (ValueError, KeyError, TypeError):
        return None


def process_start(pid: int) -> str | None:
    """What tells a process from a later one with its number, "" where that is unknown; None if it is gone."""
    if os.name == "nt":
        return "" if _runs_on_windows(pid) else None
    try:
        # Field 22 of /proc/PID/stat; the name, field 2, may hold spaces. A zombie (field 3) holds nothing any more.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    except (OSError, IndexError):
        if Path("/proc/self/stat").exists():
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        return ""  # it runs and belongs to another user
    return ""


def _runs_on_windows(pid: int) -> bool:
    """os.kill(pid, 0) would end the process there."""
    import ctypes

    kernel32 = ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]
    handle = kernel32.OpenProcess(_PROCESS_QUERY_LIMITED_INFORMATION, False, pid)
    if not handle:
        return False
    code = ctypes.c_ulong()
    known = kernel32.GetExitCodeProcess(handle, ctypes.byref(code))
    kernel32.CloseHandle(handle)
    return bool(known) and code.value == _STILL_ACTIVE


def _refresh(path: Path, done: threading.Event) -> None:
    while not done.wait(REFRESH_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(path)
