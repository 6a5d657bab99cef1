"""Non-deterministic build logs, kept outside the shard set."""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from vidshard import __version__
from vidshard.shards import layout
from vidshard.storage import urls
from vidshard.storage.urls import Location
from vidshard.util import atomic, console

logger = logging.getLogger(__name__)


class BuildLog:
    """Writer of `build.log`, for people, and `source.json`, with the absolute source root.

    An array task writes its own `build.task-00002.log` and leaves `source.json` to `finalize`.
    """

    def __init__(self, folder: Path, *, root: Location, about: str, task: int | None = None) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self._root = root
        self._start = time.monotonic()
        self.seconds: dict[str, float] = defaultdict(float)  # video → decoding time
        self._task = task
        name = "build.log" if task is None else f"build.task-{task:05d}.log"
        self._command = [urls.redact_credentials(word) for word in sys.argv]
        self._write_source({})
        self._file = open(self.folder / name, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        self.line(f"vidshard {__version__}: {' '.join(self._command)}")
        self.line(about)

    def __enter__(self) -> BuildLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self.line(f"stopped: {type(error).__name__}: {error}")
        with contextlib.suppress(OSError):  # the disk may be full; the original error is more important
            self._file.close()

    def line(self, text: str) -> None:
        """Write a line with the time, and log it at level DEBUG."""
        logger.debug(text)
        with contextlib.suppress(OSError):
            self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {console.shown_line(text)}\n")
            self._file.flush()

    def finish(self) -> None:
        seconds = time.monotonic() - self._start
        self.line(f"finished in {seconds:.1f} s")
        slow = {path: round(spent, 3) for path, spent in self.seconds.items()}
        self._write_source({"seconds": round(seconds, 1), "seconds_per_video": slow})

    def _write_source(self, more: dict[str, Any]) -> None:
        """Record the source root so that `root / path` finds each video again."""
        if self._task is not None:
            return
        about = {"root": str(self._root), "host": socket.gethostname(), "command": self._command}
        atomic.write_json(self.folder / layout.SOURCE_NAME, {**about, **more})
