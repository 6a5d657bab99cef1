"""Temporary local copies of remote videos."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vidshard.storage import urls
from vidshard.storage.urls import Location, Url
from vidshard.video.packets import VideoError

logger = logging.getLogger(__name__)

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NOT_DOWNLOADED = "not_downloaded"  # failure reason of a video that could not be downloaded


@contextlib.contextmanager
def local_file(video: Location) -> Iterator[Path]:
    """Yield the path of a video; a remote one is downloaded to a temporary file that is deleted at the end.

    A worker holds one at a time. Files left by a killed worker are deleted by the next download on this machine. Raises
    VideoError `not_downloaded` if the video cannot be downloaded, OSError if the local disk is full.
    """
    if isinstance(video, Path):
        yield video
        return
    folder = fetch_folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    _remove_abandoned(folder)
    descriptor, name = tempfile.mkstemp(dir=folder, suffix=os.path.splitext(video.name)[1])
    path = Path(name)
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # marks the file as used by a living process
        try:
            _download(video, path)
        except OSError as error:  # the local disk is full
            error.filename = str(folder)
            raise
        yield path
    finally:
        os.close(descriptor)
        path.unlink(missing_ok=True)


def fetch_folder() -> Path:
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"vidshard-videos-{user}"


def _download(video: Url, path: Path) -> None:
    """Download a video. Raises VideoError with a message that never varies; details go to standard error."""
    try:
        urls.download(video, path)
    except urls.NotThereError as error:
        raise VideoError(NOT_DOWNLOADED, "it no longer exists") from error
    except urls.StorageError as error:
        logger.warning(str(error))
        raise VideoError(NOT_DOWNLOADED, "it could not be downloaded, even after retries") from error


def _remove_abandoned(folder: Path) -> None:
    """Delete the files of killed processes, whose locks are free."""
    if fcntl is None:
        return
    for path in folder.iterdir():
        with contextlib.suppress(OSError), open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
