"""Share of a build that a process handles, according to schedulers and users."""

from __future__ import annotations

import pytest

from vidshard.execution.array_task import Numbering, find_task
from vidshard.util.errors import UserError


def slurm(*numbers: int, step: int = 1) -> dict[str, str]:
    """Return the variables that SLURM 22.05 sets: ID, MIN, MAX, COUNT; STEP is 1 for `--array=2,5`."""
    names = ("ID", "MIN", "MAX", "COUNT", "STEP")
    return {f"SLURM_ARRAY_TASK_{name}": str(number) for name, number in zip(names, (*numbers, step), strict=True)}


RANK = {"RANK": "2", "WORLD_SIZE": "3"}
POD = {"JOB_COMPLETION_INDEX": "2"}
EIGHT = Numbering(count=8)


@pytest.mark.parametrize(
    ("environment", "options", "recorded", "task"),
    [
        ({}, (2, 3), None, (2, Numbering(count=3))),
        (slurm(5, 0, 7, 8), (None, None), None, (5, EIGHT)),
        (slurm(5, 1, 8, 8), (None, None), None, (4, Numbering(count=8, first=1))),
        (slurm(5, 1, 7, 4, step=2), (None, None), None, (2, Numbering(count=4, first=1, step=2))),
        (slurm(5, 2, 5, 2), (None, None), EIGHT, (5, EIGHT)),  # --array=2,5 again
        (slurm(3, 2, 3, 2), (None, None), EIGHT, (3, EIGHT)),  # --array=2,3: is no array of two
        (slurm(3, 3, 3, 1), (None, None), Numbering(count=8, first=1), (2, Numbering(count=8, first=1))),
        (slurm(3, 0, 15, 16), (None, None), EIGHT, (3, Numbering(count=16))),  # a larger one begins anew
        (slurm(5, 2, 5, 2), (None, 8), EIGHT, (5, EIGHT)),
        (slurm(5, 0, 7, 8), (None, 8), None, (5, EIGHT)),
        (slurm(5, 0, 5, 2), (None, 8), None, (5, EIGHT)),
        (slurm(5, 0, 7, 8), (1, None), None, (1, EIGHT)),
        ({}, (2, 8), Numbering(count=8, first=1), (2, Numbering(count=8, first=1))),
        (POD, (None, 4), None, (2, Numbering(count=4))),
        (RANK, (None, None), None, (2, Numbering(count=3))),
        (RANK, (0, 2), None, (0, Numbering(count=2))),
    ],
)  # fmt: skip
def test_the_task_is_found(
    environment: dict[str, str],
    options: tuple[int | None, int | None],
    recorded: Numbering | None,
    task: tuple[int, Numbering],
) -> None:
    request = find_task(*options, environment)
    assert request is not None
    assert request.resolve(recorded) == task


@pytest.mark.parametrize(
    ("environment", "options"),
    [
        ({}, (None, None)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, (None, None)),
        (RANK, (None, 1)),
        (POD, (None, 1)),
        (slurm(5, 0, 7, 8), (None, 1)),
        ({}, (0, 1)),
    ],
)
def test_there_is_none(environment: dict[str, str], options: tuple[int | None, int | None]) -> None:
    assert find_task(*options, environment) is None


@pytest.mark.parametrize(
    ("environment", "options", "told"),
    [
        ({}, (3, None), "`task_count` is missing"),
        ({}, (None, 3), "`task_index` is missing"),
        ({}, (3, 3), "`task_index` is 3, expected 0 to 2 with `task_count` 3"),
        ({}, (-1, 3), "`task_index` is -1, expected 0 to 2"),
        ({}, (None, 0), "`task_count` is 0, expected at least 1"),
        (POD, (None, None), "pass `task_count` COMPLETIONS"),
        (POD, (None, 2), "JOB_COMPLETION_INDEX=2 is task 2, expected 0 to 1"),
        ({**slurm(5, 0, 7, 8), **RANK}, (None, None), "both assign a number to this process"),
        ({**POD, "JOB_COMPLETION_INDEX": "x"}, (None, 4), "JOB_COMPLETION_INDEX is 'x', expected a number"),
        ({"SLURM_ARRAY_TASK_ID": "4"}, (None, None), "SLURM_ARRAY_TASK_MIN is '', expected a number"),
        (slurm(5, 2, 5, 2), (None, 8), "an array with gaps, and no earlier array is recorded here"),
        (slurm(4, 1, 4, 3), (None, None), "an array with gaps"),
        (slurm(5, 2, 5, 2), (None, None), "an array with gaps"),
    ],
)
def test_undecidable_numbers_are_refused(
    environment: dict[str, str], options: tuple[int | None, int | None], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        find_task(*options, environment).resolve(None)  # type: ignore[union-attr]
