"""Start and end of the process of the `stage1` command, also for ``python -m stage1``."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys

from stage1.cli.main import main


def run() -> None:
    """Run the command that the process was started with, and exit with its code.

    PyTorch makes some 200,000 objects while it is imported, which all live until the end. To look for garbage among
    them again and again, and to free each of them at the end, takes up to a second.
    """
    gc.set_threshold(50_000)
    code: int | None = None

    def leave() -> None:
        if code is None:  # a traceback was printed
            return
        with contextlib.suppress(OSError):  # Python says itself that a stream cannot be flushed
            for stream in filter(None, (sys.stdout, sys.stderr)):  # None after a broken pipe
                stream.flush()
            os._exit(code)

    atexit.register(leave)  # registered first, it is called after all others
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
        raise


if __name__ == "__main__":
    run()
