"""The place of the loader in version 0.1; it warns. Use `stage1.data.loader`, or `from stage1 import ClipLoader`."""

import warnings

from stage1.data.loader import *  # noqa: F403
from stage1.data.loader import ClipLoader as ClipLoader

warnings.warn(
    "stage1.dataloader moved to stage1.data.loader and goes away in the next version", FutureWarning, stacklevel=2
)
