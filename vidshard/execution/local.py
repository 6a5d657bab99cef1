"""Process pool that survives worker crashes and hangs.

A decoding library can segfault, exhaust memory, or hang while it holds the interpreter lock; `multiprocessing.Pool` and
`ProcessPoolExecutor` then never return, or fail as a whole. Here each child has its own pipe and one task at a time:
the parent always knows which task a dead child had, kills children that exceed their limits (only SIGKILL ends a thread
that holds the lock), starts a replacement, and retries the task once before giving it up.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import util
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from vidshard.execution.base import Attempt, Crash, ExecutorConfig, Task, TaskResult, too_little_memory
from vidshard.util.errors import UserError

_POLL_SECONDS = 0.2  # interval between checks of the children's memory
_START_SECONDS = 120.0  # a child that has not started by then never will
_MAX_FAILED_STARTS = 3
_PR_SET_PDEATHSIG = 1
_TRACKER_SECONDS = 1.0  # time for Python's resource tracker to exit
_LAST = -1000  # exit priority; other finalizers of `multiprocessing` still need the tracker


class RemoteError(Exception):
    """Replacement for an exception of a child that could not be pickled."""


class WorkerStartError(UserError):
    """Repeated death of children before they took a task."""


class Supervisor:
    """Executor in local child processes. A context manager: no child survives the block, however it ends.

    >>> with Supervisor(ExecutorConfig(workers=1)) as supervisor:
    ...     tasks = [Task(argument=word, timeout_seconds=60) for word in ("a", "bc")]
    ...     [result.value for result in supervisor.run(len, tasks)]
    [1, 2]
    """

    def __init__(self, config: ExecutorConfig) -> None:
        self.config = config
        self._children: list[_Child] = []
        self._failed_starts = 0

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *exc: object) -> None:
        for child in self._children:
            child.kill()
        for child in self._children:
            child.close()
        self._children.clear()

    def run(self, function: Callable[[Any], Any], tasks: Iterable[Task]) -> Iterator[TaskResult]:
        """Call `function` (importable from its module) on each task; yield the results as they complete, in any order.

        `tasks` is read lazily: at most one per child is in progress. Raises WorkerStartError.
        """
        source = iter(tasks)
        again: deque[Attempt] = deque()  # tasks whose child died
        exhausted = False
        try:
            while True:
                while len(busy := [child for child in self._children if child.attempt]) < self.config.workers:
                    attempt = again.popleft() if again else None
                    if attempt is None and not exhausted:
                        task = next(source, None)
                        exhausted = task is None
                        attempt = Attempt(task) if task is not None else None
                    if attempt is None:
                        break
                    self._idle_child().give(function, attempt)
                if not busy:
                    return
                for child in self._wait(busy):
                    result = self._result(child, again)
                    if result is not None:
                        yield result
        finally:
            for child in [child for child in self._children if child.attempt]:  # left early: do not wait for them
                self._discard(child)

    def _idle_child(self) -> _Child:
        for child in [child for child in self._children if not child.attempt]:
            if child.tasks_done < self.config.tasks_per_child and child.process.is_alive():
                return child
            self._discard(child)
        child = _Child(self.config)
        self._children.append(child)
        return child

    def _discard(self, child: _Child) -> None:
        child.kill()
        child.close()
        self._children.remove(child)

    def _wait(self, busy: list[_Child]) -> list[_Child]:
        """Return the children that sent a message, died, or exceeded a limit (the latter are killed here)."""
        deadline = min(child.deadline for child in busy)
        timeout = max(0.0, min(deadline - time.monotonic(), _POLL_SECONDS))
        ready = set(wait([handle for child in busy for handle in (child.connection, child.process.sentinel)], timeout))
        ended = []
        for child in busy:
            if ready & {child.connection, child.process.sentinel} or child.over_limit():
                ended.append(child)
        return ended

    def _result(self, child: _Child, again: deque[Attempt]) -> TaskResult | None:
        """Return the result of a child named by `_wait`; None if it only reported its start, or its task is retried."""
        attempt = child.attempt
        assert attempt is not None
        message = child.receive() if child.crash is None else None
        if message == ("ready",):
            self._failed_starts = 0
            return None
        if message is not None:
            _, value, error, error_trace, seconds = message
            child.finish()
            return TaskResult(task=attempt.task, value=value, error=error, error_trace=error_trace, seconds=seconds)
        crash = child.crash or child.exit_crash()
        self._discard(child)
        if not child.is_up and crash.reason != "out_of_memory":
            self._failed_starts += 1
            if self._failed_starts >= _MAX_FAILED_STARTS:
                raise WorkerStartError(
                    f"worker processes cannot start ({crash.message}); if your script calls build(), "
                    "put the call under `if __name__ == '__main__':`"
                )
            again.append(attempt)  # not the task's fault
            return None
        attempt.num_lost += 1
        if attempt.num_lost < self.config.attempts:
            again.append(attempt)
            return None
        return TaskResult(task=attempt.task, crash=crash, seconds=time.monotonic() - child.given)


class _Child:
    """Parent's side of a child process."""

    def __init__(self, config: ExecutorConfig) -> None:
        context = multiprocessing.get_context("spawn")  # not fork: a decoder used before a fork hangs in the child
        self.connection, theirs = context.Pipe(duplex=True)
        self.process: BaseProcess = context.Process(
            target=_child_main, args=(theirs, os.getpid(), config), name="vidshard-worker", daemon=True
        )
        _start_resource_tracker()  # before the block, since it would unblock SIGINT
        with _interrupt_blocked():
            self.process.start()
        theirs.close()
        self.memory_bytes = config.memory_bytes
        self.attempt: Attempt | None = None
        self.crash: Crash | None = None  # set if the parent killed the child
        self.is_up = False
        self.tasks_done = 0
        self.given = 0.0
        self.deadline = 0.0

    def give(self, function: Callable[[Any], Any], attempt: Attempt) -> None:
        self.attempt = attempt
        self.given = time.monotonic()
        self.deadline = self.given + (attempt.task.timeout_seconds if self.is_up else _START_SECONDS)
        with contextlib.suppress(OSError):  # the child is dead: `_wait` will notice
            self.connection.send((function, attempt.task.argument))

    def finish(self) -> None:
        self.attempt = None
        self.tasks_done += 1

    def receive(self) -> Any:
        """Return the next message; None if there is none because the child died."""
        try:
            message = self.connection.recv() if self.connection.poll() else None
        except (EOFError, OSError, pickle.UnpicklingError):
            return None
        if message == ("ready",) and self.attempt is not None:
            self.is_up = True
            self.given = time.monotonic()  # the time limit of a task starts when the child is up
            self.deadline = self.given + self.attempt.task.timeout_seconds
        return message

    def over_limit(self) -> bool:
        """Return True if the child exceeded its time or memory limit; it is then killed."""
        resident = _resident_bytes(self.process.pid) if self.memory_bytes is not None else 0
        if self.memory_bytes is not None and resident > self.memory_bytes:
            self.crash = Crash(
                reason="out_of_memory",
                message=too_little_memory(self.memory_bytes),
                measured=f"used {resident >> 20:,} MiB of memory",
            )
        elif time.monotonic() >= self.deadline:
            limit_seconds = self.deadline - self.given
            self.crash = Crash(reason="timeout", message=f"not done within {limit_seconds:.0f} seconds")
        if self.crash is not None:
            self.kill()
        return self.crash is not None

    def exit_crash(self) -> Crash:
        """Describe why a child that the parent did not kill has died."""
        self.process.join(1.0)
        code = self.process.exitcode
        if code is None:  # it closed its pipe but is still alive
            self.kill()
            return Crash(reason="exited", message="the worker process closed its pipe")
        if code < 0:
            name = _signal_name(-code)
            hint = "; perhaps the machine ran out of memory" if name == "sigkill" else ""
            message = f"the worker process was killed by {name.upper()}{hint}"
            return Crash(reason=f"killed_by_{name}", message=message)
        return Crash(reason="exited", message=f"the worker process ended with exit code {code}")

    def kill(self) -> None:
        if self.process.is_alive():
            self.process.kill()

    def close(self) -> None:
        self.process.join(5.0)  # a killed process only survives this inside a blocked system call
        self.connection.close()
        if self.process.exitcode is not None:
            self.process.close()


@contextlib.contextmanager
def _interrupt_blocked() -> Iterator[None]:
    """Start a child that inherits a blocked SIGINT, so that only the parent handles Ctrl-C.

    A pending Ctrl-C reaches the parent when the block ends. Does nothing where there are no signal masks (Windows).
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_resource_tracker() -> None:
    """Start Python's resource tracker early, so that it can be ended before this process ends.

    The tracker cleans up shared memory, which is not used here, and notices only afterwards that its parent is gone:
    it would outlive a build by the time that Python takes to exit, and by seconds on a busy machine. Newer Python
    versions wait for it. A tracker that another library has started is left alone.
    """
    if os.name != "posix":
        return
    from multiprocessing import resource_tracker

    tracker: Any = resource_tracker._resource_tracker  # noqa: SLF001  # there is no public way to end it
    if tracker._fd is None:  # noqa: SLF001
        tracker.ensure_running()
        util.Finalize(None, _end_resource_tracker, args=(tracker,), exitpriority=_LAST)


def _end_resource_tracker(tracker: Any) -> None:
    descriptor, pid = tracker._fd, tracker._pid  # noqa: SLF001
    if descriptor is None or pid is None:
        return
    tracker._fd = tracker._pid = None  # noqa: SLF001
    os.close(descriptor)  # it exits when the other end of its pipe is closed everywhere
    deadline = time.monotonic() + _TRACKER_SECONDS
    with contextlib.suppress(ChildProcessError):  # another thread has waited for it
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:  # held open by a child that even SIGKILL cannot end (disk hang)
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.002)


def _signal_name(number: int) -> str:
    """Return the lower-case name of a signal.

    >>> _signal_name(11)
    'sigsegv'
    """
    try:
        return signal.Signals(number).name.lower()
    except ValueError:
        return f"signal_{number}"


def _resident_bytes(pid: int | None) -> int:
    """Return the resident memory of a process in bytes; 0 if unknown (no /proc, or the process is gone)."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0


# ----- in the child ---------------------------------------------------------------------------------------------------


def _child_main(connection: Connection, parent_pid: int, config: ExecutorConfig) -> None:
    """Run tasks until the parent closes the pipe."""
    with contextlib.suppress(ValueError, OSError, AttributeError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in [name for name in os.environ if name.startswith(config.unset_prefixes)]:
        del os.environ[name]
    _die_with_parent(parent_pid)
    if config.stderr_path is not None:
        _redirect_output(config.stderr_path)
    if config.memory_bytes is not None:
        _limit_memory(2 * config.memory_bytes)
    connection.send(("ready",))
    while True:
        try:
            function, argument = connection.recv()
        except (EOFError, OSError):
            return
        connection.send(_call(function, argument))


def _call(function: Callable[[Any], Any], argument: Any) -> tuple[str, Any, Exception | None, str, float]:
    start = time.monotonic()
    try:
        value, error, trace = function(argument), None, ""
    except Exception as raised:
        value, error, trace = None, _sendable(raised), traceback.format_exc()
    return ("done", value, error, trace, time.monotonic() - start)


def _sendable(error: Exception) -> Exception:
    """Return the exception itself if it can be pickled (many with their own arguments cannot), else a RemoteError."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RemoteError(f"{type(error).__name__}: {error}")


def _die_with_parent(parent_pid: int) -> None:
    """End this process when its parent ends, even by SIGKILL or while this process hangs with the lock held (Linux).

    Elsewhere a thread watches the parent; it cannot run while the lock is held.
    """
    if sys.platform == "linux":
        with contextlib.suppress(Exception):
            import ctypes

            if ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) == 0:
                if os.getppid() != parent_pid:  # the parent died before the call
                    os._exit(1)
                return
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_when, args=(parent.sentinel,), daemon=True).start()


def _exit_when(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _redirect_output(path: Path) -> None:
    """Append the output of C libraries, which bypass `sys.stderr`, to a file."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)


def _limit_memory(num_bytes: int) -> None:
    """Set a hard memory limit, in case memory grows faster than the parent can notice. Not available on Windows."""
    with contextlib.suppress(ImportError, ValueError, OSError, AttributeError):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (num_bytes, resource.getrlimit(resource.RLIMIT_DATA)[1]))
