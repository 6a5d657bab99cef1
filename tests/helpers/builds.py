"""Shared by tests: SameProcess, digests, OPTIONS, run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from vidshard.cli.main import main
from vidshard.execution.base import ExecutorConfig, Task, TaskResult

OPTIONS = ["--sampling", "dense", "--clip-len", "4", "--frame-size", "16"]


class SameProcess:
    """A supervisor without children: quick, and its tasks meet the same faults."""

    def __init__(self, config: ExecutorConfig) -> None:
        self.config = config

    def __enter__(self) -> SameProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def run(self, function: Callable[[Any], Any], tasks: Iterable[Task]) -> Iterator[TaskResult]:
        for task in tasks:
            try:
                yield TaskResult(task=task, value=function(task.argument))
            except OSError as error:
                yield TaskResult(task=task, error=error)


def run(source: Path, out: Path, *more: str) -> Result:
    return CliRunner().invoke(main, ["build", str(source), "--out", str(out), "--workers", "1", *OPTIONS, *more])


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir()) if path.is_file()
    }
