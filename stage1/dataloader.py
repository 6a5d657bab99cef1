"""Deprecated alias of `stage1.data.loader`, its name in version 0.1. Use `from stage1 import ClipLoader`."""

import warnings

from stage1.data.loader import *  # noqa: F403
from stage1.data.loader import ClipLoader as ClipLoader

warnings.warn(
    "stage1.dataloader is now stage1.data.loader; the old name will be removed in the next version",
    FutureWarning,
    stacklevel=2,
)
