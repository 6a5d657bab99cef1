"""Time in which a device has nothing to do, on the CPU and by CUDA's events."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from stage1.common.device import IdleClock, constant, map_tensors


def test_only_the_time_between_idle_and_busy_counts() -> None:
    clock = IdleClock(torch.device("cpu"))
    clock.busy()  # nothing was idle before
    time.sleep(0.02)
    clock.idle()
    time.sleep(0.02)
    clock.idle()  # still is
    clock.busy()
    assert 0.02 <= clock.seconds < 0.04


def test_on_cuda_the_device_says_how_long_it_was_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only gaps whose end the device has reached are read, so that nothing waits for it."""
    moments = iter([1.0, 4.0, 6.0, 7.0])
    reached: set[float] = set()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: str) -> None:
            assert stream == "of cuda:1"
            self.moment = next(moments)

        def query(self) -> bool:
            return self.moment in reached

        def elapsed_time(self, end: Any) -> float:
            return 1000 * float(end.moment - self.moment)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"of {device}")
    clock = IdleClock(torch.device("cuda:1"))
    for _ in range(2):
        clock.idle()
        clock.busy()
    assert clock.seconds == 0
    reached.add(4.0)
    assert clock.seconds == 3
    reached.add(7.0)
    assert clock.seconds == 4


def test_tensors_in_nested_tuples_are_mapped() -> None:
    value = (torch.tensor(1), "name", (torch.tensor(2), None))
    assert map_tensors(lambda tensor: tensor + 1, value) == (torch.tensor(2), "name", (torch.tensor(3), None))


def test_constants_take_the_type_of_a_tensor() -> None:
    found = constant((0.5, 1.5), torch.zeros(1, dtype=torch.bfloat16, device="meta"))
    assert (found.dtype, found.device.type, tuple(found.shape)) == (torch.bfloat16, "meta", (2,))
