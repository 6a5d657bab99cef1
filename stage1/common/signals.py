"""Graceful shutdown on SIGTERM or SIGUSR1, which schedulers send before they take a machine away.

The signal only sets a flag. The run checks the flag between two steps, writes a checkpoint and ends.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)
)  # Windows has no SIGUSR1


class StopSignal:
    """Context manager that records a stop signal received while its block runs.

    It has no effect outside the main thread, where Python allows no signal handlers. A second signal changes nothing
    while shutdown is pending; use SIGKILL to end the process at once.
    """

    def __init__(self) -> None:
        self.received: str | None = None  # name of the signal
        self._before: dict[Any, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
