"""A video behind a URL as a local file, for as long as it is decoded."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vidshard.storage import urls
from vidshard.storage.urls import Location, Url
from vidshard.video.packets import VideoError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NOT_DOWNLOADED = "not_downloaded"  # the reason of a video that could not be fetched


@contextlib.contextmanager
def local_file(video: Location) -> Iterator[Path]:
    """The path of a video; one behind a URL is downloaded into the folder for temporary files and removed at the end.

    A worker has one at a time. What a killed worker left is removed by the next download on this machine. Raises
    VideoError `not_downloaded` when it cannot be fetched, OSError when the local disk is full.
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
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # it is held by a living process
        try:
            _download(video, path)
        except OSError as error:  # this disk is full
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
    """Raises VideoError with a message that is the same in every run; what happened goes to standard error."""
    try:
        urls.download(video, path)
    except urls.NotThereError as error:
        raise VideoError(NOT_DOWNLOADED, "it is not there any more") from error
    except urls.StorageError as error:
        print(error, file=sys.stderr, flush=True)
        raise VideoError(NOT_DOWNLOADED, "it could not be downloaded, however often it was tried") from error


def _remove_abandoned(folder: Path) -> None:
    """Remove the files of processes that were killed: nobody holds their lock."""
    if fcntl is None:
        return
    for path in folder.iterdir():
        with contextlib.suppress(OSError), open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
