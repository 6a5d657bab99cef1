"""Earlier results of a folder: moved aside by a new run instead of being replaced, and kept for three runs.

The files of a result move together into a folder `earlier-N` next to them, with increasing N, so that their relative
links still hold. A single page moves to a numbered name in its own folder instead, as it links to files next to it.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from vidshard.util import atomic

logger = logging.getLogger(__name__)

MAX_KEPT = 3


def set_aside(folder: Path, names: Sequence[str], *, needed: Sequence[str] = ()) -> Path | None:
    """Move the files and folders `names` that are in `folder` to `earlier-N` inside it; return the latter.

    Without one of `needed`, by default the first of `names`, there is no result: nothing moves, and None is returned.
    The next call finishes an interrupted move. Only the last three results are kept.
    """
    held = [name for name in names if os.path.lexists(folder / name)]
    moving = sorted(folder.glob(f"earlier-*{atomic.PARTIAL_SUFFIX}"))
    if not moving and set(held).isdisjoint(needed or names[:1]):
        return None
    target = moving[0].with_suffix("") if moving else folder / f"earlier-{_next_number(folder, 'earlier-', '')}"
    partial = atomic.partial_path(target)
    for name in held:
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder / name, partial / name)
    os.replace(partial, target)
    atomic.sync_folder(folder)
    logger.info(f"The earlier result in {folder} was moved to {target}")
    _remove_oldest(folder, "earlier-", "")
    return target


def write_file(path: Path, data: bytes) -> None:
    """Write a file. One with other content moves to a numbered name before, such as report-1.html; the last three are
    kept."""
    if path.is_file():
        if path.read_bytes() == data:
            return
        prefix = f"{path.stem}-"
        target = path.with_name(f"{prefix}{_next_number(path.parent, prefix, path.suffix)}{path.suffix}")
        os.replace(path, target)
        logger.info(f"The earlier {path} was moved to {target}")
        _remove_oldest(path.parent, prefix, path.suffix)
    atomic.write_bytes(path, data)


def _numbered(folder: Path, prefix: str, suffix: str) -> dict[int, Path]:
    """Return the earlier results in `folder` by number, oldest first."""
    pattern = re.compile(rf"{re.escape(prefix)}([1-9]\d*){re.escape(suffix)}")
    matches = {path: pattern.fullmatch(path.name) for path in folder.iterdir()}
    return dict(sorted((int(match[1]), path) for path, match in matches.items() if match))


def _next_number(folder: Path, prefix: str, suffix: str) -> int:
    return max(_numbered(folder, prefix, suffix), default=0) + 1


def _remove_oldest(folder: Path, prefix: str, suffix: str) -> None:
    for path in list(_numbered(folder, prefix, suffix).values())[:-MAX_KEPT]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        logger.info(f"{path} was removed: the last {MAX_KEPT} earlier results are kept")
