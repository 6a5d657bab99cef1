"""A polite end: SIGTERM or SIGUSR1 (what schedulers send before they take a machine away) sets a flag, no more.

The run looks at the flag between two steps, writes a checkpoint and ends.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))  # Windows has one


class StopSignal:
    """Listens while the `with` block runs; in a thread other than the main one, where Python allows none, it does not.

    The same signal again, when it was heard and not yet obeyed, changes nothing: SIGKILL is there for that.
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
