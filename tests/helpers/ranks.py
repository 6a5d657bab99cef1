"""Real processes joined by gloo, started from one that has torch imported, for tests of several ranks."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from stage1.common import distributed
from vidshard.util.errors import UserError

_FORKSERVER = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
_FORKSERVER.set_forkserver_preload(
    ["stage1.data.loader", "stage1.common.distributed", "stage1.model.network", "fake_shards"]
)

OnARank = Callable[..., None]  # what a rank runs: a function of a module, called with the arguments given


@dataclasses.dataclass(frozen=True)
class Ranks:
    """The processes of one run."""

    processes: list[BaseProcess]
    outputs: list[Path]
    started: float

    def join(self, timeout_seconds: float = 120) -> list[tuple[int | None, str]]:
        """Exit code and output of every rank; None as code: it did not end in time and was killed."""
        until = time.monotonic() + timeout_seconds
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
            process.join()
        return [(code, path.read_text()) for code, path in zip(codes, self.outputs, strict=True)]


def start_ranks(folder: Path, world_size: int, on_a_rank: OnARank, *args: Any) -> Ranks:
    """Start `world_size` processes that run ``on_a_rank(*args)`` inside `distributed.joined_ranks`."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outputs = [folder / f"output-of-{rank}-of-{world_size}.txt" for rank in range(world_size)]
    started = time.monotonic()
    processes = []
    for rank, output in enumerate(outputs):
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": world_size, "RANK": rank}
        arguments = (output, {name: str(value) for name, value in environment.items()}, on_a_rank, args)
        process = _FORKSERVER.Process(target=_run_rank, args=arguments)
        process.start()
        processes.append(process)
    return Ranks(processes, outputs, started)


def run_ranks(folder: Path, world_size: int, on_a_rank: OnARank, *args: Any) -> None:
    """`start_ranks`, and fail the test unless all of them succeed."""
    results = start_ranks(folder, world_size, on_a_rank, *args).join()
    if any(code != 0 for code, _ in results):
        pytest.fail("\n".join(f"rank {rank}: {code}\n{output}" for rank, (code, output) in enumerate(results)))


def _run_rank(output: Path, environment: dict[str, str], on_a_rank: OnARank, args: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    if os.name == "posix":  # what ranks start in turn need not import torch again
        multiprocessing.set_start_method("fork", force=True)
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        with distributed.joined_ranks(torch.device("cpu")):
            on_a_rank(*args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(3)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
