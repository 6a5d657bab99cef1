"""Executor on a Ray cluster, existing or started locally.

Each actor holds a `Supervisor` with one child, so that the time and memory limits apply and a crash stays in the child.
The executor watches the actors: it replaces one whose process or node is lost, and gives its task to another. On a
cluster that it did not start, it grows and shrinks with it: while tasks wait, some actors are always requested, which
an autoscaler answers with new nodes; idle actors are dropped once no task waits. Output and log folder must be on a
disk that all nodes share.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import os
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from vidshard.execution.base import Attempt, Crash, ExecutorConfig, Task, TaskResult
from vidshard.execution.local import Supervisor
from vidshard.util.errors import UserError
from vidshard.util.text import counted

logger = logging.getLogger(__name__)

_MAX_LOST = 4  # workers lost with one task before the task is blamed
_MAX_FAILED_STARTS = 3  # in a row
_START_SECONDS = 180.0  # until the first worker starts
_AUTOSCALE_SECONDS = 900.0  # the same on a cluster that may have to start a machine for it
_MEMORY_BYTES = 1 << 30  # asked for each worker; few need more, and none may take more than its limit
_POLL_SECONDS = 1.0
_NODE_SECONDS = 30.0  # after the loss of a worker: time for the cluster to notice that its node is lost, too
_MIN_REQUESTED = 2  # workers that are requested while tasks wait, also where none can start now
_OBJECT_BYTES = 100 << 20  # object store of a local cluster: results are small, clips go through files


class RayExecutor:
    """Executor in the workers of a Ray cluster. A context manager: no worker survives the block.

    RAY_ADDRESS names the cluster; without it, a local one is started, and stopped at the end. Raises UserError if Ray
    is missing.
    """

    def __init__(self, config: ExecutorConfig) -> None:
        self.config = config
        self._slots: list[Any] = []  # actors
        self._node_of: dict[Any, str] = {}  # actor → ID of its node, once it has started
        self._losses: dict[str, tuple[float, list[str]]] = {}  # ID of a node → since when, errors; not yet logged
        self._owns_cluster = self._is_shared = self._is_elastic = False

    def __enter__(self) -> RayExecutor:
        ray = _import_ray()
        if not ray.is_initialized():
            self._owns_cluster = True
            _connect(ray, self.config.workers)
        options: dict[str, Any] = {"num_cpus": 1, "max_restarts": 0, "max_task_retries": 0}
        if os.environ.get("RAY_ADDRESS"):
            self._is_shared, self._is_elastic = True, self.config.all_cpus
            memory = min(_MEMORY_BYTES, self.config.memory_bytes or _MEMORY_BYTES)
            options |= {"memory": memory, "scheduling_strategy": "SPREAD"}
        if self._is_elastic:  # the size of tasks follows from the number of workers now
            workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
            self.config = dataclasses.replace(self.config, workers=workers)
        self._ray = ray
        self._slot_class = ray.remote(**options)(_Slot)
        return self

    def __exit__(self, *exc: object) -> None:
        for slot in list(self._slots):
            self._drop(slot)
        if self._owns_cluster:
            self._ray.shutdown()

    def run(self, function: Callable[[Any], Any], tasks: Iterable[Task]) -> Iterator[TaskResult]:
        """Run tasks like `Supervisor.run`. Raises UserError if no worker can be started."""
        source = iter(tasks)
        waiting: deque[Attempt] = deque()
        starting: dict[Any, Any] = {}  # pending answer → slot
        busy: dict[Any, tuple[Any, Attempt]] = {}
        idle = list(self._slots)
        failed_starts, start = 0, time.monotonic()
        try:
            while True:
                wanted = self._max_slots(starting) - len(waiting) - len(busy)
                waiting += [Attempt(task) for task in itertools.islice(source, max(0, wanted))]
                if not waiting and not busy:
                    return
                while idle and waiting:
                    slot, attempt = idle.pop(), waiting.popleft()
                    name = f"{function.__name__} {attempt.task.name}"
                    busy[slot.run.options(name=name).remote(function, attempt.task)] = slot, attempt
                while len(starting) < len(waiting) and len(self._slots) < self._max_slots(starting):
                    slot = self._new_slot()
                    starting[slot.ready.remote()] = slot
                if not waiting:
                    self._release(idle, starting)
                self._check_waited(busy, time.monotonic() - start)
                self._log_losses()
                answered, _ = self._ray.wait([*busy, *starting], num_returns=1, timeout=_POLL_SECONDS)
                for answer in answered:
                    result = None
                    if answer in starting:
                        slot = starting.pop(answer)
                        failed_starts = self._check_started(slot, answer, failed_starts)
                    else:
                        slot, attempt = busy.pop(answer)
                        result = self._result(slot, answer, attempt, waiting)
                    idle += [slot] if slot in self._slots else []
                    if result is not None:
                        yield result
        finally:
            self._log_losses(at_end=True)
            for slot in [*starting.values(), *(slot for slot, _ in busy.values())]:  # left early: do not wait
                self._drop(slot)

    def _max_slots(self, starting: Collection[Any]) -> int:
        """Return how many workers there may be, those that start included."""
        if not self._is_elastic:
            return self.config.workers
        started = len(self._slots) - len(starting)
        return started + max(_MIN_REQUESTED, started)

    def _release(self, idle: list[Any], starting: dict[Any, Any]) -> None:
        """On an elastic cluster, drop the workers that have nothing to do, so that their nodes may be removed."""
        if not self._is_elastic:
            return
        for slot in [*idle, *starting.values()]:
            self._drop(slot)
        idle.clear()
        starting.clear()

    def _new_slot(self) -> Any:
        slot = self._slot_class.remote(self.config)
        self._slots.append(slot)
        return slot

    def _check_started(self, slot: Any, answer: Any, failed_starts: int) -> int:
        """Return the number of consecutive failed starts. Raises UserError if there were too many."""
        try:
            self._node_of[slot] = self._ray.get(answer)
        except self._ray.exceptions.RayError as error:
            self._drop(slot)
            if failed_starts + 1 >= _MAX_FAILED_STARTS:
                raise UserError(f"Ray workers cannot start: {_first_line(error)}") from error
            return failed_starts + 1
        return 0

    def _check_waited(self, busy: Collection[Any], seconds: float) -> None:
        """Raise UserError if no worker has started for too long."""
        limit = _AUTOSCALE_SECONDS if self._is_elastic else _START_SECONDS
        if busy or seconds <= limit:
            return
        free, all_ = self._ray.available_resources(), self._ray.cluster_resources()
        raise UserError(
            f"no Ray worker started within {limit:.0f} seconds; each needs one CPU and up to "
            f"{_MEMORY_BYTES >> 20:,} MiB of memory, and {free.get('CPU', 0):g} of the cluster's "
            f"{all_.get('CPU', 0):g} CPUs and {int(free.get('memory', 0)) >> 20:,} MiB are free"
        )

    def _result(self, slot: Any, answer: Any, attempt: Attempt, waiting: deque[Attempt]) -> TaskResult | None:
        """Return the result of a task; None if its worker was lost and the task, put back in `waiting`, is retried."""
        try:
            result: TaskResult = pickle.loads(self._ray.get(answer))
        except self._ray.exceptions.RayTaskError as error:  # the supervisor of that worker failed
            raise (error.cause if isinstance(error.cause, UserError) else error) from error
        except self._ray.exceptions.RayError as error:
            attempt.num_lost += 1
            self._losses.setdefault(self._node_of[slot], (time.monotonic(), []))[1].append(_first_line(error))
            self._drop(slot)
            if attempt.num_lost < _MAX_LOST:
                waiting.appendleft(attempt)
                return None
            message = f"the worker was lost {_MAX_LOST} times"
            return TaskResult(task=attempt.task, crash=Crash(reason="worker_lost", message=message))
        return dataclasses.replace(result, task=attempt.task)

    def _log_losses(self, *, at_end: bool = False) -> None:
        """Log lost workers, in one line for each node, once it is known whether the node was lost with them."""
        if not self._losses:
            return
        nodes = {node["NodeID"]: node for node in self._ray.nodes()}
        for node_id, (since, errors) in list(self._losses.items()):
            node = nodes.get(node_id, {})
            name = node.get("NodeName") or node.get("NodeManagerHostname") or node_id
            lost = f"{counted(len(errors), 'worker')}; their tasks are tried again"
            if not node.get("Alive"):
                logger.warning(f"the Ray node {name} was lost, with {lost}")
            elif at_end or not self._is_shared or time.monotonic() > since + _NODE_SECONDS:
                logger.warning(f"a Ray worker was lost on the node {name} ({errors[0]}): {lost}")
            else:
                continue
            del self._losses[node_id]

    def _drop(self, slot: Any) -> None:
        self._slots.remove(slot)
        self._node_of.pop(slot, None)
        with contextlib.suppress(Exception):  # the actor or the cluster is dead
            self._ray.kill(slot, no_restart=True)


class _Slot:
    """Ray actor: a supervisor of one child. The child dies with it, however it ends."""

    def __init__(self, config: ExecutorConfig) -> None:
        self._supervisor = Supervisor(dataclasses.replace(config, workers=1))

    def ready(self) -> str:
        """Return the ID of the node."""
        node_id: str = _import_ray().get_runtime_context().get_node_id()
        return node_id

    def run(self, function: Callable[[Any], Any], task: Task) -> bytes:
        (result,) = self._supervisor.run(function, [task])
        return pickle.dumps(result)  # arrays that Ray transfers itself are read-only


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise UserError(f"`executor` ray needs Ray ({error}): pip install 'vidshard[ray]'") from error
    return ray


def _connect(ray: Any, workers: int) -> None:
    """Join the cluster of RAY_ADDRESS, or start one, and restore the SIGTERM handler that Ray replaces."""
    quiet = {"log_to_driver": False, "logging_level": "error", "configure_logging": True}
    address = os.environ.get("RAY_ADDRESS")
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if in_main else None
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            ray.init(
                address="local", num_cpus=workers, include_dashboard=False, object_store_memory=_OBJECT_BYTES, **quiet
            )
    except Exception as error:  # Ray raises a dozen types
        where = f"the Ray cluster at {address}" if address else "a local Ray cluster"
        raise UserError(f"{where} cannot be used: {_first_line(error)}") from error
    finally:
        if in_main and before is not None:
            signal.signal(signal.SIGTERM, before)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
