"""Numbering of array tasks: which share of a build this process handles.

SLURM arrays, Kubernetes indexed Jobs and `torchrun` number their tasks in different ways, and a SLURM array that is
resubmitted for its failed tasks (`--array=2,5`) looks like an array of two. So the first task in a folder records the
numbering, and a smaller array that comes later is treated as part of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vidshard.util.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Numbering:
    """Numbering of an array: `count` tasks with the numbers first, first + step, …"""

    count: int
    first: int = 0
    step: int = 1

    def index_of(self, number: int) -> int | None:
        """Return the task index, from 0, of a task number; None if there is no such task.

        >>> Numbering(count=4, first=1).index_of(4), Numbering(count=4).index_of(4)
        (3, None)
        """
        index, rest = divmod(number - self.first, self.step)
        return index if not rest and 0 <= index < self.count else None

    def numbers(self, indices: Iterable[int]) -> str:
        """Format the numbers of tasks for `sbatch --array`.

        >>> Numbering(count=9).numbers([2, 5, 6, 7])
        '2,5-7'
        """
        runs: list[list[int]] = []
        for index in sorted(indices):
            number = self.first + index * self.step
            if runs and self.step == 1 and number == runs[-1][1] + 1:
                runs[-1][1] = number
            else:
                runs.append([number, number])
        return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


@dataclass(frozen=True, kw_only=True)
class TaskRequest:
    """A task as described by options and environment; `first` to `members` apply to SLURM arrays only."""

    origin: str  # for messages: the variables or options
    number: int
    count: int | None  # None: `members`, unless this array is part of a larger one
    first: int = 0
    step: int = 1
    last: int | None = None
    members: int | None = None

    def resolve(self, recorded: Numbering | None) -> tuple[int, Numbering]:
        """Return the task index, from 0, and the numbering.

        `recorded`: the numbering of an earlier array in this folder.

        Raises UserError if the index cannot be determined.

        >>> again = TaskRequest(origin="--array=4,5", number=5, count=None, first=4, last=5, members=2)
        >>> again.resolve(Numbering(count=8))
        (5, Numbering(count=8, first=0, step=1))
        >>> again.resolve(None)
        (1, Numbering(count=2, first=4, step=1))
        """
        if self.members is None:  # numbered from 0, even if the recorded array is not
            assert self.count is not None
            numbering, index = Numbering(count=self.count), Numbering(count=self.count).index_of(self.number)
            if recorded is not None and recorded.count == self.count:
                numbering = recorded
        else:
            numbering = self._numbering(recorded)
            index = numbering.index_of(self.number)
        if index is None:
            last = numbering.first + (numbering.count - 1) * numbering.step
            raise UserError(
                f"{self.origin} is task {self.number}, expected {numbering.first} to {last} of "
                f"{numbering.count} tasks; pass `task_index` and `task_count`"
            )
        return index, numbering

    def _numbering(self, recorded: Numbering | None) -> Numbering:
        """Build the numbering from SLURM variables."""
        first, last, members = self.first, self.last, self.members
        assert last is not None
        assert members is not None
        if (
            recorded is not None
            and self.count in (None, recorded.count)
            and members <= recorded.count
            and all(recorded.index_of(number) is not None for number in (first, last, self.number))
        ):
            return recorded
        if last - first == (members - 1) * self.step and self.count in (None, members):
            return Numbering(count=members, first=first, step=self.step)
        if self.count is not None and first == 0 and last < self.count:
            return Numbering(count=self.count)
        raise UserError(
            f"{self.origin} is task {self.number} of an array with gaps, and no earlier array is recorded here: its "
            "index cannot be determined; pass `task_index` I `task_count` N, with I from 0"
        )


def find_task(index: int | None, count: int | None, environment: Mapping[str, str]) -> TaskRequest | None:
    """Return the task described by the options or else the environment; None to build everything in this process.

    Raises UserError on invalid numbers, and if two schedulers disagree about which task this is.
    """
    if count is not None and count < 1:
        raise UserError(f"`task_count` is {count}, expected at least 1")
    if count == 1 and index in (None, 0):
        return None
    if index is not None and count is not None:
        if not 0 <= index < count:
            raise UserError(f"`task_index` is {index}, expected 0 to {count - 1} with `task_count` {count}")
        return TaskRequest(origin=f"`task_index` {index} `task_count` {count}", number=index, count=count)
    task = _scheduled_task(environment)
    if task is None and (index is not None or count is not None):
        missing = "`task_count`" if count is None else "`task_index`"
        raise UserError(
            f"{missing} is missing, and no SLURM array, indexed Kubernetes Job or RANK and WORLD_SIZE defines it"
        )
    if task is None:
        return None
    if index is not None:
        task = dataclasses.replace(task, number=index, count=task.count or task.members, members=None)
    if count is not None:
        task = dataclasses.replace(task, count=count)
    if task.count is None and task.members is None:
        raise UserError(
            f"{task.origin} is task {task.number} of a Job, but spec.completions is not visible here; pass "
            "`task_count` COMPLETIONS, or `task_count` 1 to build everything here"
        )
    return task


def _scheduled_task(environment: Mapping[str, str]) -> TaskRequest | None:
    """Return the task that a scheduler gave this process, if any. Raises UserError if there are several."""
    found = []
    if environment.get("SLURM_ARRAY_TASK_ID"):
        number = _number(environment, "SLURM_ARRAY_TASK_ID")
        found.append(
            TaskRequest(
                origin=f"SLURM_ARRAY_TASK_ID={number}",
                number=number,
                count=None,
                first=_number(environment, "SLURM_ARRAY_TASK_MIN"),
                step=max(1, _number({"SLURM_ARRAY_TASK_STEP": "1", **environment}, "SLURM_ARRAY_TASK_STEP")),
                last=_number(environment, "SLURM_ARRAY_TASK_MAX"),
                members=_number(environment, "SLURM_ARRAY_TASK_COUNT"),
            )
        )
    if environment.get("JOB_COMPLETION_INDEX"):
        number = _number(environment, "JOB_COMPLETION_INDEX")
        found.append(TaskRequest(origin=f"JOB_COMPLETION_INDEX={number}", number=number, count=None))
    if environment.get("RANK") and environment.get("WORLD_SIZE"):
        number, count = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
        if count > 1:
            found.append(TaskRequest(origin=f"RANK={number} WORLD_SIZE={count}", number=number, count=count))
    if len(found) > 1:
        raise UserError(
            f"{' and '.join(task.origin for task in found)} both assign a number to this process; choose its task with "
            f"`task_index` and `task_count`, or `task_count` 1 to let this build do everything in this process"
        )
    return found[0] if found else None


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    try:
        return int(text)
    except ValueError:
        raise UserError(
            f"the environment variable {name} is {text!r}, expected a number; unset it, or pass `task_index` and "
            "`task_count`"
        ) from None
