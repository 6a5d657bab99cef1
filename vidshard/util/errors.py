"""Errors reported to the user as one line, without a traceback."""

from __future__ import annotations

import errno

# Faults of the machine rather than of a file: they may pass.
FAULTS = {
    getattr(errno, name, -1)
    for name in ("EIO", "ENOSPC", "EDQUOT", "ESTALE", "ETIMEDOUT", "EMFILE", "ENFILE", "ENOMEM", "ENODEV")
}
# Those that say nothing of a file that was to be opened: unlike a failing disk, which may have lost that file alone.
MACHINE_FAULTS = FAULTS - {errno.EIO, errno.ENOSPC}


class UserError(Exception):
    """Wrong usage or unusable input; exit code 1.

    The message states what is wrong and where, the value received, the value expected, and what to do.
    """


class FormatError(UserError):
    """A shard folder, index or sample that is damaged or that this version cannot read."""


def fault_in(error: BaseException | None) -> OSError | None:
    """Return the fault of the machine that `error` is or was caused by, if any.

    >>> fault_in(FileNotFoundError(2, "none", "a")), fault_in(OSError(28, "No space left on device", "a"))
    (None, OSError(28, 'No space left on device'))
    """
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__
    return error if error is not None and error.errno in FAULTS else None
