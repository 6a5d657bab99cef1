"""Deprecated alias of `stage1.data.reader`, its name in version 0.1. Use `from stage1 import ClipReader`."""

import warnings

from stage1.data.reader import *  # noqa: F403
from stage1.data.reader import ClipReader as ClipReader

warnings.warn(
    "stage1.reader is now stage1.data.reader; the old name will be removed in the next version",
    FutureWarning,
    stacklevel=2,
)
