"""Executors of tasks: their interface, limits and results. Imports no executor."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

# Name → class, in a module that is imported on first use. It is called with an `ExecutorConfig`.
_CLASSES = {
    "local": "vidshard.execution.local:Supervisor",
    "ray": "vidshard.execution.ray:RayExecutor",
}
EXECUTORS = tuple(_CLASSES)


@dataclass(frozen=True, kw_only=True)
class ExecutorConfig:
    """Limits of the worker processes."""

    workers: int  # number of processes
    all_cpus: bool = False  # an executor with CPUs on other machines uses all of them instead
    memory_bytes: int | None = 4 << 30  # resident memory of one child; None: no limit. Needs /proc (Linux)
    attempts: int = 2  # number of attempts of a task whose child dies
    tasks_per_child: int = 500  # the child is then replaced, since libraries leak
    unset_prefixes: tuple[str, ...] = ()  # environment variables to remove in the children
    stderr_path: Path | None = None  # file for the children's output (decoders are noisy); None: the terminal

    def __post_init__(self) -> None:
        if min(self.workers, self.attempts, self.tasks_per_child) < 1:
            raise ValueError(f"workers, attempts and tasks_per_child must be at least 1, got {self}")
        if self.memory_bytes is not None and self.memory_bytes < 1:
            raise ValueError(f"memory_bytes must be positive, got {self.memory_bytes}")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One call: the argument of the task function and its time limit."""

    argument: Any  # picklable
    timeout_seconds: float
    name: str = ""  # shown by schedulers, such as the path of the video


@dataclass
class Attempt:
    """A task given to workers, until one returns its result."""

    task: Task
    num_lost: int = 0  # workers that were lost while running it


@dataclass(frozen=True, kw_only=True)
class Crash:
    """Reason why a task was given up."""

    reason: str  # a code: `timeout`, `out_of_memory`, `killed_by_sigsegv`, `exited`
    message: str  # the same in every run
    measured: str = ""  # details that vary between runs, for the log

    @property
    def is_of_decoder(self) -> bool:
        """True if native code ended the worker, not a limit or the system."""
        return self.reason == "exited" or (self.reason.startswith("killed_by_") and self.reason != "killed_by_sigkill")


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """Result of a task: a `value`, an `error` that the function raised, or a `crash` of its child."""

    task: Task
    value: Any = None
    error: Exception | None = None
    error_trace: str = ""
    crash: Crash | None = None
    seconds: float = 0.0


def too_little_memory(memory_bytes: int) -> str:
    """Return the message about a task that needs more memory than this, whether the parent or the child noticed."""
    return f"needs more than {memory_bytes >> 20:,} MiB of memory"


class Executor(Protocol):
    """Executor of tasks. A context manager: no worker survives the block."""

    config: ExecutorConfig

    def __enter__(self) -> Executor: ...
    def __exit__(self, *exc: object) -> None: ...
    def run(self, function: Callable[[Any], Any], tasks: Iterable[Task]) -> Iterator[TaskResult]:
        """Call `function` on each task; yield the results as they complete, in any order."""


def make_executor(name: str, config: ExecutorConfig) -> Executor:
    module, _, class_name = _CLASSES[name].partition(":")
    executor: Executor = getattr(importlib.import_module(module), class_name)(config)
    return executor


def available_cpus() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
