"""The file names of a run, and whether its folder can be written to. Loads no torch: --help needs these names."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from vidshard.util.errors import UserError

BEST_NAME = "binary_stage1_with_attention.pt"
LAST_NAME = "last.pt"  # where a run goes on
PREVIOUS_NAME = "previous.pt"  # the one before, should that be damaged
CONFIG_NAME = "run.toml"
METRICS_NAME = "metrics.jsonl"
CURVES_NAME = "curves.png"
TENSORBOARD_NAME = "tensorboard"

# Where `stage1 train` writes, and `stage1 infer` reads, unless told otherwise.
DEFAULT_RUN = Path("checkpoints")
DEFAULT_CHECKPOINT = DEFAULT_RUN / BEST_NAME


def check_out(folder: Path) -> None:
    """Raise UserError unless files can be written to `folder`, which need not exist: to ask before hours of work."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir():
        what = "is a file" if nearest == folder else f"lies below the file {nearest}"
        raise UserError(f"--out {folder} {what}, expected a folder; name another --out")
    try:
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise UserError(
            f"--out {folder} cannot be written to ({error.strerror}: {nearest}); name another --out"
        ) from error
