"""Lock files that allow one writer per folder and are taken over from dead holders.

A lock is a plain file created with O_EXCL: advisory locks differ between systems and are missing on some cluster disks.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vidshard.util.errors import UserError

logger = logging.getLogger(__name__)

REFRESH_SECONDS = 60.0
STALE_SECONDS = 600.0  # a lock of another host is stale after this time without refresh
EMPTY_SECONDS = 10.0  # a lock without a readable holder, which was killed before it wrote its name
WATCHED_STALE_SECONDS = 180.0  # the same for a watched lock: three refresh intervals
_WAIT_SECONDS = 1.0  # polling interval
_STILL_ACTIVE = 259  # Windows: exit code of a running process
_PROCESS_QUERY_LIMITED_INFORMATION = 0x1000


class LockHeldError(UserError):
    """Another process holds the lock and is alive, or may be."""


@contextlib.contextmanager
def hold_lock(path: Path, *, what: str, verb: str = "built", watch: StalenessWatch | None = None) -> Iterator[None]:
    """Hold the lock file `path` while the block runs. Raises LockHeldError, naming the other holder, if any.

    `what` is being built, or what `verb` says, for messages. `watch`: the caller's observations of the lock; a holder
    that was silent for too long is considered dead.
    """
    file = _take(path, f"{what} is being {verb} by", watch)
    done = threading.Event()
    refresher = threading.Thread(target=_refresh, args=(path, done), daemon=True)
    refresher.start()
    try:
        yield
    finally:
        done.set()
        refresher.join()
        with contextlib.suppress(OSError):
            with file:  # it stayed open, as a process with too many open files must be able to give its lock back
                is_mine = os.fstat(file.fileno()).st_nlink > 0  # else another process took the lock over
            if is_mine:
                path.unlink()


class StalenessWatch:
    """Watch for stale locks: how long each went without a refresh, by the clock of this process alone.

    The age of a file on a shared disk depends on two clocks that may differ, and a task restarted after its machine
    died should not wait until that age is beyond doubt.
    """

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[tuple[str, float], float]] = {}
        self._refreshed: set[Path] = set()

    def seconds(self, path: Path, content: str, modified: float) -> float:
        """Return for how many seconds the lock has been unchanged; 0.0 if it is new or was refreshed."""
        now = time.monotonic()
        seen, since = self._seen.get(path, (None, now))
        if seen != (content, modified):
            if seen is not None:
                self._refreshed.add(path)
            since = now
            self._seen[path] = ((content, modified), now)
        return now - since

    def may_end(self, path: Path) -> bool:
        """Return True if the holder may still turn out to be dead: it is on another host and gave no sign of life."""
        return path not in self._refreshed and _is_elsewhere(path)


@contextlib.contextmanager
def hold_whole(path: Path, tasks_folder: Path, *, what: str, wait: bool = False) -> Iterator[None]:
    """Hold the lock `path` of a whole folder while no task holds a lock in the folder `tasks_folder`.

    `wait`: wait until remote holders are certainly dead. Raises LockHeldError.
    """
    with hold_lock(path, what=what):
        watch = StalenessWatch()
        while living := _living(tasks_folder, watch):
            if not wait or not all(watch.may_end(lock) for lock in living):
                tasks = ", ".join(f"{lock.stem} ({holder})" for lock, holder in list(living.items())[:8])
                raise LockHeldError(
                    f"{what} is being built by array tasks that are still running: {tasks}; wait for them, or build "
                    f"into another `out` (locks: {tasks_folder})"
                )
            time.sleep(_WAIT_SECONDS)
        yield


@contextlib.contextmanager
def hold_task(path: Path, whole: Path, *, what: str) -> Iterator[None]:
    """Hold the lock `path` of one task while no process holds the lock `whole` of the whole folder.

    Waits until a holder on another machine is certainly dead; that may be this task before it was restarted. Raises
    LockHeldError.
    """
    watch = StalenessWatch()
    logged = False

    def wait(error: LockHeldError) -> None:
        nonlocal logged
        if not watch.may_end(path):
            raise error
        if not logged:
            logger.info(f"waiting up to {WATCHED_STALE_SECONDS:.0f} s to see whether the holder is alive: {error}")
        logged = True
        time.sleep(_WAIT_SECONDS)

    with _hold_after(wait, path, what, watch):
        if (holder := holder_of(whole)) is not None:
            raise LockHeldError(f"{what} is being built as a whole by {holder}; wait for it (lock: {whole})")
        yield


def wait_for_lock(path: Path, *, what: str) -> contextlib.AbstractContextManager[None]:
    """Hold the lock `path`, which others hold only briefly: wait until it is released, or its holder is dead."""
    return _hold_after(lambda _: time.sleep(_WAIT_SECONDS / 10), path, what, StalenessWatch())


@contextlib.contextmanager
def _hold_after(wait: Callable[[LockHeldError], None], path: Path, what: str, watch: StalenessWatch) -> Iterator[None]:
    """Hold a lock, calling `wait` after each failed attempt."""
    with contextlib.ExitStack() as held:
        while True:
            try:
                held.enter_context(hold_lock(path, what=what, watch=watch))
                break
            except LockHeldError as error:
                wait(error)
        yield


def _living(tasks_folder: Path, watch: StalenessWatch) -> dict[Path, str]:
    """Return lock → holder for the locks in a folder whose holder is not known to be dead."""
    living = {}
    for path in sorted(tasks_folder.glob("*.lock")):
        holder = holder_of(path)
        with contextlib.suppress(OSError):
            quiet = watch.seconds(path, path.read_text(encoding="utf-8"), path.stat().st_mtime)
            if holder is not None and quiet <= WATCHED_STALE_SECONDS:
                living[path] = holder
    return living


def holder_of(path: Path) -> str | None:
    """Describe the live holder, or return None."""
    try:
        text, age = path.read_text(encoding="utf-8"), time.time() - path.stat().st_mtime
    except OSError:
        return None
    holder = _parse(text)
    return None if _is_dead(holder, age) else _named(holder)


def _is_elsewhere(path: Path) -> bool:
    """Return True if another host holds the lock: only a stale heartbeat can prove it dead."""
    try:
        holder = _parse(path.read_text(encoding="utf-8"))
    except OSError:
        return False
    return holder is None or holder["host"] != socket.gethostname()


def _take(path: Path, what: str, watch: StalenessWatch | None) -> io.FileIO:
    """Create the lock file, which names this process; return it, open."""
    me = json.dumps(
        {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": process_start(os.getpid()),
            "job": os.environ.get("SLURM_JOB_ID", ""),
            "restart": _num_restarts(),
        }
    )
    for _ in range(3 + round(EMPTY_SECONDS / _WAIT_SECONDS)):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            _remove_if_dead(path, what, watch)
            continue
        file = os.fdopen(descriptor, "wb", buffering=0)
        try:
            file.write(me.encode())
        except OSError:  # an empty lock would seem to be that of another process
            file.close()
            path.unlink()
            raise
        return file
    raise LockHeldError(f"{what} a series of other processes; run the same command again")


def _remove_if_dead(path: Path, what: str, watch: StalenessWatch | None) -> None:
    """Remove the lock if its holder is dead; raise LockHeldError if not."""
    try:
        text, modified = path.read_text(encoding="utf-8"), path.stat().st_mtime
    except FileNotFoundError:
        return  # just released
    holder = _parse(text)
    is_silent = watch is not None and watch.seconds(path, text, modified) > WATCHED_STALE_SECONDS
    if not is_silent and not _is_dead(holder, time.time() - modified):
        if holder is None:
            time.sleep(_WAIT_SECONDS)
            return
        raise LockHeldError(f"{what} {_named(holder)}; wait for it, or choose another `out` (lock: {path})")
    # Renamed first and checked again: of two processes only one may take a dead lock, and none may take a new one.
    claimed = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        os.replace(path, claimed)
        if claimed.read_text(encoding="utf-8") != text:
            os.replace(claimed, path)
        else:
            claimed.unlink()


def _num_restarts() -> int:
    """Return how often SLURM has requeued this job."""
    count = os.environ.get("SLURM_RESTART_COUNT", "")
    return int(count) if count.isdigit() else 0


def _named(holder: dict[str, Any] | None) -> str:
    return f"process {holder['pid']} on {holder['host']}" if holder else "another process"


def _is_dead(holder: dict[str, Any] | None, age_seconds: float) -> bool:
    if holder is not None and holder["job"] and holder["job"] == os.environ.get("SLURM_JOB_ID"):
        is_older = holder["restart"] < _num_restarts()
        if is_older:  # this job was queued again: SLURM has ended that holder
            return True
    if holder is None or holder["host"] != socket.gethostname():
        return age_seconds > (EMPTY_SECONDS if holder is None else STALE_SECONDS)
    started = process_start(holder["pid"])
    return started is None or started != holder["started"]


def _parse(text: str) -> dict[str, Any] | None:
    try:
        holder = json.loads(text)
        return {
            "pid": int(holder["pid"]),
            "host": str(holder["host"]),
            "started": holder["started"],
            "job": holder.get("job", ""),
            "restart": int(holder.get("restart", 0)),
        }
    except (ValueError, KeyError, TypeError):
        return None


def process_start(pid: int) -> str | None:
    """Return an identifier that distinguishes reused process numbers; "" if unknown, None if the process is gone."""
    if os.name == "nt":
        return "" if _runs_on_windows(pid) else None
    try:
        # Field 22 of /proc/PID/stat; the name, field 2, may hold spaces. A zombie (field 3) holds no lock.
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
        return ""  # running, but owned by another user
    return ""


def _runs_on_windows(pid: int) -> bool:
    """Return True if the process is running; os.kill(pid, 0) would end it on Windows."""
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
