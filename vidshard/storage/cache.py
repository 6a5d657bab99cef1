"""Local cache of remote objects: one checked download per machine, shared by all processes, of bounded size.

Each file is stored under a hash of its URL and the SHA-256 of its content, so that equal names in different places
never mix. Locks are kernel locks (`flock`), which end with their holder: an exclusive one on an unfinished file during
its download, a shared one on a finished file while it is read, and one on the folder while space is freed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vidshard.storage import urls
from vidshard.storage.urls import Url
from vidshard.util.errors import FormatError, UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FREE_SHARE = 0.8  # of the free space, unless the user sets a limit
WAIT_SECONDS = 120.0  # for other readers to release the shards that fill the cache
_PARTIAL = re.compile(r"[0-9a-f]{64}\.(\d+)\.partial")  # the name holds the size of the finished file
_FINISHED = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Folder and size limit of the cache."""

    folder: Path | None = None  # default: vidshard-cache-<user> in the folder for temporary files, which is local
    limit_gb: float | None = None  # 10⁹ bytes; default: 80 % of the free space

    def __post_init__(self) -> None:
        if self.limit_gb is not None and not self.limit_gb > 0:
            raise UserError(f"`cache_gb` is {self.limit_gb:g}, expected more than 0 (in GB)")


class ShardCache:
    """The cache in one folder. Safe for concurrent use by processes and threads."""

    def __init__(self, config: CacheConfig) -> None:
        if fcntl is None:
            raise UserError(
                "reading shards from a URL needs file locks that this system lacks; copy the shards to a folder"
            )
        self.folder = config.folder or Path(tempfile.gettempdir()) / f"vidshard-cache-{os.getuid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if config.folder is None:
                _check_own(self.folder)
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise UserError(
                f"`cache_dir` {self.folder} cannot be used: {error.strerror}; choose another one"
            ) from error
        limit = int(config.limit_gb * 1e9) if config.limit_gb else int(FREE_SHARE * (free + self._used_bytes()))
        self.limit_bytes = limit

    def path(self, url: Url, sha256: str) -> Path:
        """Return the path of the cached object, whether or not it is there."""
        return self.folder / hashlib.sha256(url.as_posix().encode()).hexdigest()[:16] / sha256

    def fetch(self, url: Url, *, size: int, sha256: str, wait: bool = True) -> Path | None:
        """Return the local copy of an object, downloading it if needed.

        Returns None if `wait` is False and another process is downloading the object. `size`: bytes.

        Raises FormatError if the object differs from `size` and `sha256`, StorageError if it cannot be downloaded, and
        UserError if it does not fit into the cache.
        """
        final = self.path(url, sha256)
        if _has_size(final, size):
            return final
        if size > self.limit_bytes:
            raise UserError(
                f"{url} has {_gb(size)}, more than the cache holds ({_gb(self.limit_bytes)} in {self.folder}); give "
                "a larger `cache_gb`"
            )
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            return self._fetch(url, final, size, sha256, wait)
        except urls.NotThereError as error:
            raise FormatError(f"{url} is missing, although its manifest lists it; restore it or build again") from error
        except OSError as error:
            if error.errno == errno.ENOSPC or error.errno == getattr(errno, "EDQUOT", -1):
                raise self._disk_is_full(url, size) from error
            raise UserError(f"the cache {self.folder} cannot be written: {error.strerror}") from error

    def _fetch(self, url: Url, final: Path, size: int, sha256: str, wait: bool) -> Path | None:
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            with _download_lock(final.with_name(f"{sha256}.{size}.partial"), wait=wait) as partial:
                if partial is None:
                    return None
                if _has_size(final, size):
                    return final
                if self._make_room(partial, size):
                    if shutil.disk_usage(self.folder).free < size:
                        raise self._disk_is_full(url, size)
                    self._download(url, partial, size, sha256)
                    os.replace(partial, final)
                    return final
            if time.monotonic() > deadline:
                raise UserError(
                    f"the cache {self.folder} is full of shards in use (limit {_gb(self.limit_bytes)}); "
                    "set a larger `cache_gb`"
                )
            time.sleep(random.uniform(0.05, 0.5))

    def _download(self, url: Url, partial: Path, size: int, sha256: str) -> None:
        try:
            urls.download(url, partial, size=size, sha256=sha256)
        except urls.NotThereError:
            raise
        except urls.StorageError as error:
            about = urls.info(url)
            if about.size == size and "SHA-256" not in str(error):
                raise
            raise FormatError(
                f"{url} is not the object that its manifest lists ({about.size} bytes, expected {size:,}): it was "
                f"replaced or damaged; build again or restore it ({error})"
            ) from error

    def _disk_is_full(self, url: Url, size: int) -> UserError:
        return UserError(
            f"the disk of the cache {self.folder} is full: {url} needs {_gb(size)}; free some space, set a smaller "
            f"`cache_gb` (now {self.limit_bytes / 1e9:.3g}), or another `cache_dir`"
        )

    def discard(self, url: Url, sha256: str) -> None:
        """Delete a damaged copy, so that the object is downloaded again."""
        _drop(self.path(url, sha256))

    # ---- reading

    def open(self, url: Url, *, size: int, sha256: str) -> IO[bytes]:
        """Open the local copy for unbuffered reading. Data read from it is valid only inside `in_use`."""
        while True:
            path = self.fetch(url, size=size, sha256=sha256)
            assert path is not None
            with contextlib.suppress(FileNotFoundError):  # evicted since `fetch` returned
                return open(path, "rb", buffering=0)

    @contextlib.contextmanager
    def in_use(self, file: IO[bytes]) -> Iterator[bool]:
        """Protect an open copy from eviction while the block runs. Yields False if it was evicted before."""
        fcntl.flock(file, fcntl.LOCK_SH)
        try:
            is_there = os.fstat(file.fileno()).st_nlink > 0
            if is_there:
                os.utime(file.fileno())  # the modification time orders files by last use
            yield is_there
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)

    # ---- eviction

    def _make_room(self, own: Path, size: int) -> bool:
        """Evict the least recently used files until the limit holds, counting unfinished files at their full size."""
        with open(self.folder / ".lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            finished, used = [], 0
            for path in self._files():
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                partial = _PARTIAL.fullmatch(path.name)
                if partial and path != own and _drop(path):  # left by a killed process
                    continue
                used += int(partial[1]) if partial else status.st_size
                if not partial:
                    finished.append((status.st_mtime_ns, status.st_size, path))
            for _, freed, path in sorted(finished):
                if used <= self.limit_bytes:
                    break
                if _drop(path):
                    used -= freed
            return used <= self.limit_bytes

    def _files(self) -> Iterator[Path]:
        for folder in self.folder.iterdir():
            if folder.is_dir():
                yield from (p for p in folder.iterdir() if _PARTIAL.fullmatch(p.name) or _FINISHED.fullmatch(p.name))

    def _used_bytes(self) -> int:
        used = 0
        for path in self._files():
            with contextlib.suppress(OSError):
                used += path.stat().st_size
        return used


def _check_own(folder: Path) -> None:
    """Raise UserError unless only this user may write to `folder`, whose name anyone could have taken before."""
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o022:
        raise UserError(
            f"the cache {folder} is a link, belongs to someone else, or others may write to it; remove it, or give a "
            "`cache_dir` of your own"
        )


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


@contextlib.contextmanager
def _download_lock(partial: Path, *, wait: bool) -> Iterator[Path | None]:
    """Hold the lock of the unfinished file `partial`, which is created if needed and deleted unless it was renamed.

    Yields None if `wait` is False and another process holds the lock.
    """
    while True:
        with open(partial, "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield None
                return
            if not _is_same(file, partial):  # the previous holder has renamed or deleted it
                continue
            try:
                yield partial
            finally:
                if _is_same(file, partial):
                    partial.unlink()
            return


def _drop(path: Path) -> bool:
    """Delete an unlocked file; return False if it is in use."""
    try:
        with open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same(file, path):
                path.unlink()
                file.truncate()  # frees the space even while another process has the file open
            return True
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False


def _is_same(file: IO[bytes], path: Path) -> bool:
    """Return True if `path` is still the open `file`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.3g} GB"
