"""Children that segfault, exit, hang or exhaust memory: the job continues, the task is named, no process remains."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from misbehaving import misbehave
from vidshard.execution.base import ExecutorConfig, Task, TaskResult
from vidshard.execution.local import RemoteError, Supervisor, WorkerStartError
from vidshard.util.errors import UserError

needs_signals = pytest.mark.skipif(os.name == "nt", reason="Windows has no signals")
needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")


def run(arguments: list[Any], *, timeout_seconds: float = 30.0, **config: Any) -> dict[Any, TaskResult]:
    config = {"workers": 2, "stderr_path": Path(os.devnull), **config}
    with Supervisor(ExecutorConfig(**config)) as supervisor:
        tasks = [Task(argument=argument, timeout_seconds=timeout_seconds) for argument in arguments]
        return {result.task.argument: result for result in supervisor.run(misbehave, tasks)}


def test_every_task_gives_its_value() -> None:
    results = run(list(range(50)))
    assert {argument: result.value for argument, result in results.items()} == {i: i * i for i in range(50)}


@needs_signals
@pytest.mark.parametrize(("what", "reason"), [("segfault", "killed_by_sigsegv"), ("abort", "killed_by_sigabrt")])
def test_a_signal_is_named_and_the_others_are_done(what: str, reason: str) -> None:
    results = run([1, what, 2, 3])
    crash = results.pop(what).crash
    assert crash is not None
    assert crash.reason == reason
    assert {result.value for result in results.values()} == {1, 4, 9}


def test_an_exit_is_named() -> None:
    crash = run(["exit", 2])["exit"].crash
    assert crash is not None
    assert (crash.reason, crash.message) == ("exited", "the worker process ended with exit code 3")


@pytest.mark.parametrize("what", ["hang", pytest.param("hang with the lock", marks=needs_signals)])
def test_a_hang_ends_at_its_limit(what: str) -> None:
    results = run([1, what, 2], timeout_seconds=0.5, attempts=1)
    crash = results[what].crash
    assert crash is not None
    assert crash.reason == "timeout"
    assert results[2].value == 4  # although a hang takes 1,000 s


@needs_proc
def test_a_child_that_eats_memory_is_killed() -> None:
    results = run(["eat memory", 2], memory_bytes=400 << 20, attempts=1)
    crash = results["eat memory"].crash
    if crash is None:  # faster than the parent's watch: the second fence held
        assert isinstance(results["eat memory"].error, MemoryError)
    else:
        assert crash.reason == "out_of_memory"
        assert crash.message == "needs more than 400 MiB of memory"  # no number that another run would not give
        assert crash.measured.startswith("used ")
    assert results[2].value == 4


def test_an_exception_is_a_value() -> None:
    results = run(["raise", "raise oddly", 3])
    assert isinstance(results["raise"].error, ValueError)
    assert "bad value" in results["raise"].error_trace
    assert isinstance(results["raise oddly"].error, RemoteError)
    assert str(results["raise oddly"].error) == "OddError: ab"


@needs_signals
def test_a_task_whose_child_died_is_tried_once_more(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    assert run([flag])[flag].value == "second time"


def test_children_are_recycled() -> None:
    with Supervisor(ExecutorConfig(workers=1, tasks_per_child=2)) as supervisor:
        tasks = [Task(argument="pid", timeout_seconds=30) for _ in range(4)]
        pids = [result.value for result in supervisor.run(misbehave, tasks)]
    assert pids[0] == pids[1] != pids[2] == pids[3]


def test_tasks_are_read_lazily_and_leaving_early_does_not_wait() -> None:
    taken = []

    def endless() -> Any:
        for i in range(1000):
            taken.append(i)
            yield Task(argument=i if i < 3 else "hang", timeout_seconds=600)

    with Supervisor(ExecutorConfig(workers=2)) as supervisor:
        for result in supervisor.run(misbehave, endless()):
            children = multiprocessing.active_children()
            if result.task.argument == 2:
                break
    assert len(taken) <= 6
    assert children
    assert not set(children) & set(multiprocessing.active_children())


def test_workers_that_cannot_start_raise_instead_of_starting_for_ever(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from vidshard.execution.base import *\nfrom vidshard.execution.local import *\n"
        "with Supervisor(ExecutorConfig(workers=1)) as supervisor:\n"
        "    print(list(supervisor.run(len, [Task(argument='a', timeout_seconds=9)])))\n"
    )
    shown = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert shown.returncode == 1
    assert WorkerStartError.__name__ in shown.stderr
    assert issubclass(WorkerStartError, UserError)  # one line, not a traceback
    assert "put the call under `if __name__ == '__main__':`" in shown.stderr


@needs_signals
def test_no_process_outlives_the_parent() -> None:
    """Not Python's resource tracker either, which by itself only begins to end then."""
    script = (
        "from vidshard.execution.base import *\nfrom vidshard.execution.local import *\n"
        "with Supervisor(ExecutorConfig(workers=2)) as supervisor:\n"
        "    print(list(supervisor.run(len, [Task(argument='ab', timeout_seconds=60)] * 2))[0].value)\n"
    )
    command = [sys.executable, "-c", script]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert parent.communicate(timeout=60)[0] == "2\n"
    with pytest.raises(ProcessLookupError):
        os.killpg(parent.pid, 0)


ORPHANS = """
import os, signal, sys, time
sys.path[:0] = [{tests!r}]
from misbehaving import misbehave
from vidshard.execution.base import ExecutorConfig, Task
from vidshard.execution.local import Supervisor

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have what they start with `&` ignore it
    with Supervisor(ExecutorConfig(workers=2)) as supervisor:
        tasks = [Task(argument=a, timeout_seconds=600) for a in ("pid", "pid", {what!r}, {what!r})]
        for result in supervisor.run(misbehave, tasks):
            print(result.value, flush=True)
"""


@needs_signals
@pytest.mark.parametrize("signal_name", ["SIGKILL", "SIGINT"])
def test_no_child_outlives_its_parent(tmp_path: Path, signal_name: str) -> None:
    what = "hang with the lock" if sys.platform == "linux" else "hang"
    script = tmp_path / "script.py"
    script.write_text(ORPHANS.format(tests=str(Path(__file__).parents[2] / "helpers"), what=what))
    parent = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    assert parent.stdout is not None
    pids = [int(parent.stdout.readline()) for _ in range(2)]
    time.sleep(0.5)
    parent.send_signal(getattr(signal, signal_name))
    assert parent.wait(timeout=60) != 0
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)
    parent.stdout.close()


def alive(pid: int) -> bool:
    """Return True if a process runs; a zombie, which ended but was not waited for, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return False
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
