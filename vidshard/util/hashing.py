"""Digests of files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from vidshard.util import files


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    with files.open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
