"""The place of the reader in version 0.1; it warns. Use `stage1.data.reader`, or `from stage1 import ClipReader`."""

import warnings

from stage1.data.reader import *  # noqa: F403
from stage1.data.reader import ClipReader as ClipReader

warnings.warn(
    "stage1.reader moved to stage1.data.reader and goes away in the next version", FutureWarning, stacklevel=2
)
