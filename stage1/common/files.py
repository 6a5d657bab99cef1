"""File names of a run, and the check that its folder is writable. Does not import torch, because --help needs these
names."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from vidshard.util import lock
from vidshard.util.errors import UserError

BEST_NAME = "binary_stage1_with_attention.pt"
LAST_NAME = "last.pt"  # the state from which a run resumes
PREVIOUS_NAME = "previous.pt"  # the last.pt before, in case the newer file is damaged
CONFIG_NAME = "run.toml"
METRICS_NAME = "metrics.jsonl"
CURVES_NAME = "curves.png"
MEMBERS_NAME = "members"  # runs of an ensemble
TENSORBOARD_NAME, METRICS_CSV_NAME, WANDB_NAME, MLFLOW_NAME = "tensorboard", "metrics.csv", "wandb", "mlruns"
RUN_ID_NAME = "tracker.txt"
# All files of a run.
RUN_NAMES = (
    *(BEST_NAME, LAST_NAME, PREVIOUS_NAME, CONFIG_NAME, METRICS_NAME, CURVES_NAME, MEMBERS_NAME),
    *(TENSORBOARD_NAME, METRICS_CSV_NAME, WANDB_NAME, MLFLOW_NAME, RUN_ID_NAME),
)
EVALUATION_NAMES = ("evaluation.json", "evaluation.png")

LOCK_NAME = ".lock"  # while a command writes to a folder
_HELD: set[Path] = set()  # locks of this process

# Default output of `stage1 train` and default input of `stage1 infer`.
DEFAULT_RUN = Path("checkpoints")
DEFAULT_CHECKPOINT = DEFAULT_RUN / BEST_NAME


def check_out(folder: Path) -> None:
    """Raise UserError unless files can be written to `folder`, which need not exist yet.

    Commands call it first, so that hours of work are not lost to a folder that cannot be written.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir():
        what = "is a file" if nearest == folder else f"is below the file {nearest}"
        raise UserError(f"`out` {folder} {what}, expected a folder; choose another `out`")
    try:
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise UserError(
            f"`out` {folder} cannot be written to ({error.strerror}: {nearest}); choose another `out`"
        ) from error


@contextlib.contextmanager
def hold_out(folder: Path, *, name: str = LOCK_NAME) -> Iterator[None]:
    """Check that `folder` can be written to, and hold its lock while the block runs, on rank 0.

    `name` is that of the lock, for commands that write a single file to a shared folder. Raises UserError, which
    names the other process, if one writes there, and then leaves no new folder behind.
    """
    check_out(folder)
    path = folder.absolute() / name
    if os.environ.get("RANK", "0") != "0" or path in _HELD:
        yield
        return
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    _HELD.add(path)
    try:
        with lock.hold_lock(path, what=f"`out` {folder}", verb="written"):
            yield
    finally:
        _HELD.discard(path)
        with contextlib.suppress(OSError):
            for parent in made:
                parent.rmdir()


_Function = TypeVar("_Function", bound=Callable[..., Any])


def holds(folder_of: Callable[[Any], Path]) -> Callable[[_Function], _Function]:
    """Make a function of a config run inside `hold_out` of the folder that `folder_of` returns for the config."""

    def decorate(function: _Function) -> _Function:
        @functools.wraps(function)
        def run(config: Any, *args: Any, **options: Any) -> Any:
            with hold_out(folder_of(config)):
                return function(config, *args, **options)

        return cast(_Function, run)

    return decorate


holds_out = holds(lambda config: config.out)


class HashingFile(io.RawIOBase):
    """File that forwards writes to another file, and keeps track of the size and SHA-256 of all bytes written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._sha256, self.size = file, hashlib.sha256(), 0
        self.error: OSError | None = None  # of the last write

    def writable(self) -> bool:
        """Return True, as `io.RawIOBase` requires of a writable file."""
        return True

    def write(self, data: Any) -> int:
        """Write `data` to the other file, and return the number of bytes."""
        self._sha256.update(data)
        self.size += len(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


def save_tensors(fields: dict[str, Any], file: IO[bytes]) -> HashingFile:
    """Write `fields` as `torch.save` does. Raises OSError on a full disk, where torch would raise an error of its
    own."""
    import torch

    hashing = HashingFile(file)
    try:
        torch.save(fields, cast(IO[bytes], hashing))
    except RuntimeError:
        if hashing.error is not None:
            raise hashing.error from None
        raise
    return hashing
