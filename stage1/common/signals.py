"""Graceful shutdown on Ctrl-C, and on SIGTERM or SIGUSR1, which schedulers send before they take a machine away.

The signal only sets a flag. The run checks the flag between two steps, writes a checkpoint and ends.
"""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)  # Windows has no SIGUSR1


class StopSignal:
    """Context manager that records a stop signal received while its block runs.

    It has no effect outside the main thread, where Python allows no signal handlers. While shutdown is pending, a
    second Ctrl-C raises KeyboardInterrupt, and other signals have no effect; SIGKILL ends the process at once.
    """

    def __init__(self) -> None:
        self.received: str | None = None  # name of the signal
        self._before: dict[Any, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
        if number == signal.SIGINT:
            logger.warning("stopping after the current step; press Ctrl-C again to stop at once, without a checkpoint")
