"""Times that do not depend on what else runs on this machine, or on when Python collects garbage."""

from __future__ import annotations

import time
from collections.abc import Callable


def processor_seconds(function: Callable[[], object], tries: int = 3) -> float:
    """Return the least processor time, in seconds, that this process takes for a call of `function`."""
    seconds = []
    for _ in range(tries):
        start = time.process_time()
        function()
        seconds.append(time.process_time() - start)
    return min(seconds)
