"""Process-group helpers; the only module that uses `torch.distributed`.

In a single-process run, every function works without a process group, as rank 0 of world size 1.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from vidshard.util.errors import UserError

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5  # interval at which a rank checks whether another rank has failed
GRACE_SECONDS = 5.0  # time for a rank to stop by itself, and for the failed rank to wait until the others know
LEAVE_SECONDS = 60.0  # longest time that rank 0 waits for the other ranks to end
HEARTBEAT_SECONDS = 5.0  # interval of a rank's heartbeat
MAX_SILENT_SECONDS = 30.0  # without a heartbeat for this long, the host is cut off or the process hangs
_FAILURE, _KNOWN, _LEFT = "stage1/failure", "stage1/known", "stage1/left"  # keys of the store that all ranks share


def rank() -> int:
    """Return the rank of this process, from 0."""
    return dist.get_rank() if _is_active() else 0


def world_size() -> int:
    """Return the number of processes of the run."""
    return dist.get_world_size() if _is_active() else 1


def rank_zero_info(message: str) -> None:
    """Log a message on rank 0 only, for events common to all ranks."""
    if rank() == 0:
        logger.info(message)


def rank_zero_warn(message: str) -> None:
    """Log a warning on rank 0 only."""
    if rank() == 0:
        logger.warning(message)


def expect_one_process(command: str) -> None:
    """Raise UserError if `torchrun` started several processes, as each of them would run all of `command`."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"stage1 {command} runs as one process, but WORLD_SIZE is {os.environ['WORLD_SIZE']}; start it without "
            "torchrun (only infer, and train without `ensemble`, can run distributed)"
        )


def device_of_rank(device: torch.device) -> torch.device:
    """Return the device of this process: `device`, or for a CUDA device without a number under torchrun that of
    LOCAL_RANK. A process that sees one GPU only, as schedulers arrange it, takes that.

    Raises UserError if this machine has fewer GPUs than processes, or if they would share one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or device.type != "cuda":
        return device
    num_processes, count = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if device.index is not None and num_processes > 1:
        raise UserError(
            f"`device` is {device}, which the {num_processes} processes of this machine would share; use `device` "
            "cuda, so that each takes a GPU of its own"
        )
    index = int(os.environ.get("LOCAL_RANK", "0")) if count > 1 else 0
    if index >= count:
        raise UserError(
            f"process {index} of this machine has no GPU: it has {count}, numbered from 0; start at most that many "
            "processes (--nproc-per-node), or use `device` cpu"
        )
    own = torch.device("cuda", index if device.index is None else device.index)
    torch.cuda.set_device(own)  # the default of collective operations and unnumbered tensors
    return own


@contextlib.contextmanager
def joined_ranks(device: torch.device) -> Iterator[None]:
    """Create the process group of `torchrun` (if WORLD_SIZE > 1) for the block, and destroy it afterwards.

    If one rank fails in the block, all ranks fail with its message within 20 seconds, even those that wait for it in a
    collective operation. If a host is cut off from the others, all ranks fail within a minute. Raises UserError if
    WORLD_SIZE is above 1 and torch lacks torch.distributed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _is_active():
        yield
        return
    if not dist.is_available():
        raise UserError("WORLD_SIZE is above 1, but this torch has no torch.distributed; run a single process")
    from torch.distributed.rendezvous import rendezvous

    store, own_rank, num_ranks = next(iter(rendezvous("env://")))
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", store=store, rank=own_rank, world_size=num_ranks
    )
    watch = _FailureWatch(store.clone(), own_rank, num_ranks)
    try:
        if device.type == "cuda":
            expect_own_gpu(store, str(torch.cuda.get_device_properties(device).uuid), own_rank)
        yield
    except BaseException as error:
        failure = watch.failure_after(error)
        if failure:
            raise UserError(failure) from error
        raise
    finally:
        watch.close()
        dist.destroy_process_group()


def expect_own_gpu(store: Any, gpu: str, own_rank: int) -> None:
    """Raise UserError if another rank has the GPU with the identifier `gpu`, of which NCCL says little."""
    first = int(store.compare_set(f"stage1/gpu/{gpu}", "", str(own_rank)))
    if first != own_rank:
        raise UserError(
            f"ranks {first} and {own_rank} have the same GPU ({gpu}); start at most one process for each GPU "
            "(--nproc-per-node), or use `device` cpu"
        )


def check_agreement(facts: Mapping[str, Any]) -> None:
    """Raise UserError on every rank unless all ranks pass the same `facts` (name → value)."""
    if not _is_active():
        return
    facts_of_rank = gather(dict(facts))
    for name in facts:
        values = [other.get(name) for other in facts_of_rank]
        if any(value != values[0] for value in values):
            listed = ", ".join(f"rank {number} has {value}" for number, value in enumerate(values))
            raise UserError(
                f"the processes of this run differ in {name}: {listed}; start all with the same options and data"
            )


def sum_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """Sum `value` over all ranks, in place, and return it."""
    if _is_active():
        dist.all_reduce(value)
    return value


def wait_for_all() -> None:
    """Wait until every rank has called this function."""
    if _is_active():
        dist.barrier()


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Sum the gradients over all ranks, in place.

    With a loss that sums over clips, this gives the gradient of the whole global batch.
    """
    if _is_active():
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = sum_over_ranks(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def gather(value: Any) -> list[Any]:
    """Return the `value` of every rank, in order of rank, on every rank. For small values such as names and counts."""
    if not _is_active():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def merge_rows(values: torch.Tensor, rows: torch.Tensor, *, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge the results of all ranks into one table, the same on every rank and bit-identical to the inputs.

    `values` (N, …) holds this rank's results, and `rows` (N,) their rows in the table; -1 marks padding, which is
    ignored. Returns the table (`num_rows`, …), and a bool tensor (`num_rows`,) that is True for the rows with a result;
    the other rows are 0. Raises ValueError if a row has more than one result.

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
    # Sum as bytes: all ranks but one add 0, so no bit changes, not even of -0.0 or a NaN.
    sum_over_ranks(table.view(-1).view(torch.uint8))
    return table, counts > 0


class _FailureWatch:
    """Failure propagation between ranks: reports this rank's failure, and ends this rank after another's.

    A rank that waits for a dead one in a collective operation cannot be woken, so a thread ends its process. Rank 0
    holds the store through which the ranks communicate, so it leaves last.

    If the network is cut, nothing fails and everything waits. So each rank increments a heartbeat counter in the store,
    which rank 0 watches, and a second thread ends a rank whose own requests to the store go unanswered.
    """

    def __init__(self, store: Any, rank: int, num_ranks: int) -> None:
        self._store, self._rank, self._num_ranks = store, rank, num_ranks
        self._other_failure: str | None = None  # why another rank failed, once this one knows
        self._failed = False
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._last_answer = self._last_heartbeat = time.monotonic()  # of the store; of this rank
        # On rank 0: rank → (its last heartbeat count, when the count last changed).
        self._heartbeats = dict.fromkeys(range(1, num_ranks), (0, self._last_answer)) if rank == 0 else {}
        self._thread = threading.Thread(target=self._watch, name="failure-watch", daemon=True)
        self._thread.start()
        threading.Thread(target=self._watch_the_store, name="store-watch", daemon=True).start()

    def failure_after(self, error: BaseException) -> str | None:
        """Return why another rank failed before `error` stopped this one, or None if this rank failed first.

        In the second case the other ranks are notified.
        """
        if self._check_failure() is None and isinstance(error, RuntimeError):
            self._closed.wait(2 * POLL_SECONDS)  # `error` may follow from another rank's failure, not yet reported
        if self._check_failure() is None:
            self._failed = True
            text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            with contextlib.suppress(RuntimeError), self._lock:  # if the store is gone, no rank can be notified
                self._store.set(_FAILURE, f"rank {self._rank} stopped: {text}")
            self._wait_for(_KNOWN, self._num_ranks - 1, seconds=GRACE_SECONDS)
        return self._other_failure

    def close(self) -> None:
        """Stop watching. Rank 0 first waits until the other ranks have left or know of the failure."""
        self._closed.set()
        self._thread.join()
        if self._failed:
            return
        if self._other_failure is not None:
            self._leave_after_failure()
            return
        with contextlib.suppress(RuntimeError):
            self._store.add(_LEFT, 1)
        if self._rank == 0:
            self._wait_for(_LEFT, self._num_ranks, seconds=LEAVE_SECONDS)

    def _check_failure(self) -> str | None:
        """Return why another rank failed, or None if no failure is known."""
        with self._lock:
            if self._other_failure is None:
                try:
                    text = str(self._store.get(_FAILURE).decode()) if self._store.check([_FAILURE]) else ""
                    self._last_answer = time.monotonic()
                    if text and not text.startswith(f"rank {self._rank} "):
                        self._other_failure = text
                        self._store.add(_KNOWN, 1)
                except RuntimeError:
                    gone = "rank 0, which coordinates the run, has ended: see its output"
                    self._other_failure = self._other_failure or gone
            return self._other_failure

    def _send_heartbeat(self) -> None:
        """Increment this rank's heartbeat; on rank 0, check those of the other ranks."""
        with contextlib.suppress(RuntimeError), self._lock:  # `_check_failure` reports that the store is gone
            self._store.add(f"stage1/sign/{self._rank}", 1)
            self._last_heartbeat = now = time.monotonic()
            for other, (before, since) in self._heartbeats.items():
                count = self._store.add(f"stage1/sign/{other}", 0)
                if count != before:
                    self._heartbeats[other] = (count, now)
                elif now - since > MAX_SILENT_SECONDS and not self._store.check([_FAILURE]):
                    text = f"no heartbeat for {MAX_SILENT_SECONDS:.0f} s; is its host cut off from this one?"
                    self._store.set(_FAILURE, f"rank {other} stopped: {text}")

    def _watch_the_store(self) -> None:
        """End the process when the store stops answering, since its other threads may then wait forever."""
        while not self._closed.wait(POLL_SECONDS):
            if time.monotonic() - self._last_answer > MAX_SILENT_SECONDS:
                logger.error(
                    f"rank {self._rank} has not heard from rank 0, which coordinates the run, for "
                    f"{MAX_SILENT_SECONDS:.0f} s; is this host cut off from that of rank 0?"
                )
                _end_stuck_agent()
                os._exit(1)

    def _leave_after_failure(self) -> None:
        if self._rank == 0:
            self._wait_for(_KNOWN, self._num_ranks - 1, seconds=GRACE_SECONDS)

    def _wait_for(self, counter: str, number: int, *, seconds: float) -> None:
        """Wait until `number` ranks have checked in, but no longer than `seconds`."""
        until = time.monotonic() + seconds
        with contextlib.suppress(RuntimeError):
            while time.monotonic() < until:
                with self._lock:
                    if self._store.add(counter, 0) >= number:
                        return
                time.sleep(POLL_SECONDS / 10)

    def _watch(self) -> None:
        while not self._closed.wait(POLL_SECONDS):
            if time.monotonic() - self._last_heartbeat >= HEARTBEAT_SECONDS:
                self._send_heartbeat()
            if self._check_failure() is not None and not self._closed.wait(GRACE_SECONDS):
                logger.error(self._other_failure)
                self._leave_after_failure()
                os._exit(1)


def _end_stuck_agent() -> None:
    """Kill the `torchrun` that started this process, if it is cut off from its store.

    Between two checks of its processes, `torchrun` queries that store without a timeout and ignores SIGTERM. It would
    notice that they have ended only when the system gives up on the connection, a quarter of an hour later.
    """
    agent = os.getppid()
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{agent}/cmdline").read_bytes()
        if b"torch.distributed.run" in command or b"torchrun" in command:
            os.kill(agent, signal.SIGKILL)


def _is_active() -> bool:
    return dist.is_available() and dist.is_initialized()
