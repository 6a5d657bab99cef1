"""Atomic file writes: a crash, a kill or a full disk never leaves a partial file under its final name.

Every write uses a temporary name, then fsync, rename, and fsync of the folder. Temporary names end in ``.partial``,
which distinguishes the leftovers of a killed process from finished files.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

PARTIAL_SUFFIX = ".partial"


def partial_path(path: Path) -> Path:
    """Return the temporary name of `path`, in the same folder so that the rename is atomic."""
    return path.with_name(path.name + PARTIAL_SUFFIX)


@contextlib.contextmanager
def atomic_open(path: Path) -> Iterator[IO[bytes]]:
    """Open `path` for binary writing; the file appears under its name only if the block ends without an error.

    Raises OSError (disk full, no permission), which names `path`, and leaves the old file, if any, unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = partial_path(path)
    try:
        with create(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)  # errors of writing name no file
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path, whose file takes the place of `path` if the block ends without an error. No fsync."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = partial_path(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def create(path: Path) -> IO[bytes]:
    """Open a new file for writing, in place of what is left there of a killed process. Links are not followed."""
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)  # Windows
    return os.fdopen(os.open(path, flags, 0o666), "wb")


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the content of `path` with `data` atomically."""
    with atomic_open(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Replace the content of `path` with `text` in UTF-8, atomically. Names that are not UTF-8 keep their raw bytes."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_json(path: Path, value: Any) -> None:
    """Replace the content of `path` with `json_bytes` of `value`, atomically."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return `value` as indented JSON. Raises ValueError if it contains NaN."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable. Does nothing where folders cannot be opened (Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
