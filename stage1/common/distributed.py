"""Which process of a run this is; the only user of `torch.distributed`.

A run of one process needs nothing of this: rank 0 of world size 1.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from vidshard.util.errors import UserError

POLL_SECONDS = 0.5  # how often a rank asks whether another has stopped
GRACE_SECONDS = 5.0  # that a rank has to stop by itself, and the one that failed waits for the others to know
LEAVE_SECONDS = 60.0  # that rank 0 waits at most for the others to end
SIGN_SECONDS = 5.0  # how often a rank gives a sign of life
SILENT_SECONDS = 30.0  # without one: its host is cut off, or the process stands still
_FAILURE, _KNOWN, _LEFT = "stage1/failure", "stage1/known", "stage1/left"  # keys of the store that all ranks share


def rank() -> int:
    """Number of this process among those of the run, from 0."""
    return dist.get_rank() if _is_active() else 0


def world_size() -> int:
    """How many processes the run has."""
    return dist.get_world_size() if _is_active() else 1


def expect_one_process(command: str) -> None:
    """Raise UserError under `torchrun` with several processes, each of which would do all of `command` at once."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"stage1 {command} runs as one process, and WORLD_SIZE is {os.environ['WORLD_SIZE']}: start it without "
            "torchrun (train and infer share their work)"
        )


def device_of_rank(device: torch.device) -> torch.device:
    """The device of this process: that of LOCAL_RANK, of CUDA devices without a number. Raises UserError."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or device.type != "cuda" or device.index is not None:
        return device
    index = int(os.environ.get("LOCAL_RANK", "0"))
    if index >= torch.cuda.device_count():
        raise UserError(
            f"process {index} of this machine has no GPU, there are {torch.cuda.device_count()}; start no more "
            "processes (--nproc-per-node), or give --device cpu"
        )
    own = torch.device("cuda", index)
    torch.cuda.set_device(own)  # what collective operations and unnumbered tensors use
    return own


@contextlib.contextmanager
def joined_ranks(device: torch.device) -> Iterator[None]:
    """Join the processes that `torchrun` started, if it did (WORLD_SIZE > 1), and leave them at the end.

    When one rank fails in between, all fail, with its message: those that wait for it too, within 20 seconds. When a
    host is cut off from the others, all fail within a minute. Raises UserError without torch.distributed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _is_active():
        yield
        return
    if not dist.is_available():
        raise UserError("WORLD_SIZE is above 1, but this torch has no torch.distributed; run one process")
    from torch.distributed.rendezvous import rendezvous

    store, own_rank, num_ranks = next(iter(rendezvous("env://")))
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", store=store, rank=own_rank, world_size=num_ranks
    )
    watch = _FailureWatch(store.clone(), own_rank, num_ranks)
    try:
        yield
    except BaseException as error:
        failure = watch.failure_after(error)
        if failure:
            raise UserError(failure) from error
        raise
    finally:
        watch.close()
        dist.destroy_process_group()


def check_agreement(facts: Mapping[str, Any]) -> None:
    """Raise UserError on every rank unless `facts` (name → value) are the same on all of them."""
    if not _is_active():
        return
    facts_of_rank = gather(dict(facts))
    for name in facts:
        values = [other.get(name) for other in facts_of_rank]
        if any(value != values[0] for value in values):
            told = ", ".join(f"rank {number} has {value}" for number, value in enumerate(values))
            raise UserError(f"the processes of this run differ in {name}: {told}; start all alike, on the same data")


def sum_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """`value` added up over all processes, in place."""
    if _is_active():
        dist.all_reduce(value)
    return value


def wait_for_all() -> None:
    """Return when every process has come here."""
    if _is_active():
        dist.barrier()


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Add up the gradients over all processes, so that a sum loss gives the gradient of the whole global batch."""
    if _is_active():
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = sum_over_ranks(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def gather(value: Any) -> list[Any]:
    """`value` of every rank, in order of rank, on every rank: for small things, such as names and counts."""
    if not _is_active():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def merge_rows(values: torch.Tensor, rows: torch.Tensor, *, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One table of the results that the ranks have of their rows, the same on every rank, bit for bit as they were.

    `values` (N, …): what this rank got; `rows` (N,): of which rows of the table, -1 for values that count for nobody
    (padding). Returns the table (`num_rows`, …), and which rows of it some rank has; the others are 0. Raises
    ValueError when a row was given more than once: it would count twice.

    >>> merge_rows(torch.tensor([0.5, 9.0, 0.25]), torch.tensor([2, -1, 0]), num_rows=3)
    (tensor([0.2500, 0.0000, 0.5000]), tensor([ True, False,  True]))
    """
    rows = rows.to(values.device)
    real = rows >= 0
    counts = sum_over_ranks(torch.bincount(rows[real], minlength=num_rows))
    if (counts > 1).any():
        raise ValueError(f"row {int(counts.argmax())} has {int(counts.max())} results, expected one")
    table = torch.zeros((num_rows, *values.shape[1:]), dtype=values.dtype, device=values.device)
    table[rows[real]] = values[real]
    # Added up as bytes: all but one rank add 0, and no bit changes, not even that of -0.0 or a NaN.
    sum_over_ranks(table.view(-1).view(torch.uint8))
    return table, counts > 0


class _FailureWatch:
    """Tells the other ranks when this one fails, and ends this one when another did.

    A rank that waits for a dead one in a collective operation cannot be woken: a thread ends its process. Rank 0 holds
    the store through which ranks learn of each other, so it leaves last.

    Where the network is cut nothing fails, everything waits. So each rank counts up a sign of life in the store, which
    rank 0 looks at; and a second thread ends a rank whose own questions to the store are not answered.
    """

    def __init__(self, store: Any, rank: int, num_ranks: int) -> None:
        self._store, self._rank, self._num_ranks = store, rank, num_ranks
        self._told: str | None = None  # what another rank failed of, once this one knows
        self._failed = False
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._answered = self._signed = time.monotonic()  # the store did, this rank did
        self._signs = dict.fromkeys(range(1, num_ranks), (0, self._answered)) if rank == 0 else {}
        self._thread = threading.Thread(target=self._watch, name="failure-watch", daemon=True)
        self._thread.start()
        threading.Thread(target=self._watch_the_store, name="store-watch", daemon=True).start()

    def failure_after(self, error: BaseException) -> str | None:
        """To be called when `error` stops this rank. Returns what another failed of; None if this was first."""
        if self._look() is None and isinstance(error, RuntimeError):
            self._closed.wait(2 * POLL_SECONDS)  # perhaps the echo of another's end, whose word is still to come
        if self._look() is None:
            self._failed = True
            text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            with contextlib.suppress(RuntimeError), self._lock:  # the store is gone: nobody to tell
                self._store.set(_FAILURE, f"rank {self._rank} stopped: {text}")
            self._wait_for(_KNOWN, self._num_ranks - 1, seconds=GRACE_SECONDS)
        return self._told

    def close(self) -> None:
        """Stop watching. Rank 0 waits for the others: until they have left too, or know what went wrong."""
        self._closed.set()
        self._thread.join()
        if self._failed:
            return
        if self._told is not None:
            self._leave_after_failure()
            return
        with contextlib.suppress(RuntimeError):
            self._store.add(_LEFT, 1)
        if self._rank == 0:
            self._wait_for(_LEFT, self._num_ranks, seconds=LEAVE_SECONDS)

    def _look(self) -> str | None:
        """What another rank failed of; None while nothing is known."""
        with self._lock:
            if self._told is None:
                try:
                    text = str(self._store.get(_FAILURE).decode()) if self._store.check([_FAILURE]) else ""
                    self._answered = time.monotonic()
                    if text and not text.startswith(f"rank {self._rank} "):
                        self._told = text
                        self._store.add(_KNOWN, 1)
                except RuntimeError:
                    self._told = self._told or "rank 0, which holds the run together, is gone: see its output"
            return self._told

    def _sign(self) -> None:
        """Give a sign of life; on rank 0, look for those of the others."""
        with contextlib.suppress(RuntimeError), self._lock:  # `_look` tells that the store is gone
            self._store.add(f"stage1/sign/{self._rank}", 1)
            self._signed = now = time.monotonic()
            for other, (before, since) in self._signs.items():
                count = self._store.add(f"stage1/sign/{other}", 0)
                if count != before:
                    self._signs[other] = (count, now)
                elif now - since > SILENT_SECONDS and not self._store.check([_FAILURE]):
                    text = f"it gave no sign of life for {SILENT_SECONDS:.0f} s; is its host cut off from this one?"
                    self._store.set(_FAILURE, f"rank {other} stopped: {text}")

    def _watch_the_store(self) -> None:
        """End the process when the store does not answer: then the other thread waits, and perhaps the main one."""
        while not self._closed.wait(POLL_SECONDS):
            if time.monotonic() - self._answered > SILENT_SECONDS:
                print(
                    f"error: rank {self._rank} hears nothing of rank 0, which holds the run together, for "
                    f"{SILENT_SECONDS:.0f} s; is this host cut off from that one?",
                    file=sys.stderr,
                    flush=True,
                )
                _end_stuck_agent()
                os._exit(1)

    def _leave_after_failure(self) -> None:
        if self._rank == 0:
            self._wait_for(_KNOWN, self._num_ranks - 1, seconds=GRACE_SECONDS)

    def _wait_for(self, counter: str, number: int, *, seconds: float) -> None:
        """Wait until `number` ranks have counted themselves, but no longer than `seconds`."""
        until = time.monotonic() + seconds
        with contextlib.suppress(RuntimeError):
            while time.monotonic() < until:
                with self._lock:
                    if self._store.add(counter, 0) >= number:
                        return
                time.sleep(POLL_SECONDS / 10)

    def _watch(self) -> None:
        while not self._closed.wait(POLL_SECONDS):
            if time.monotonic() - self._signed >= SIGN_SECONDS:
                self._sign()
            if self._look() is not None and not self._closed.wait(GRACE_SECONDS):
                print(f"error: {self._told}", file=sys.stderr, flush=True)
                self._leave_after_failure()
                os._exit(1)


def _end_stuck_agent() -> None:
    """End the `torchrun` that started this process, where it is cut off from its store.

    Between two looks at its processes it asks that store, without a time limit and deaf to SIGTERM: it would not see
    that they have ended before the system gives up the connection, a quarter of an hour later.
    """
    agent = os.getppid()
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{agent}/cmdline").read_bytes()
        if b"torch.distributed.run" in command or b"torchrun" in command:
            os.kill(agent, signal.SIGKILL)


def _is_active() -> bool:
    return dist.is_available() and dist.is_initialized()
