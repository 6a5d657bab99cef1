"""Access to object stores and web servers through fsspec.

Failed transfers are retried with growing pauses, and the received data is checked against the expected size and hash.
Credentials come from the usual environment (`AWS_PROFILE`, `AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`, …, or
fsspec's own `FSSPEC_S3`). Messages never contain query strings, which may be signatures.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from vidshard.util.errors import UserError
from vidshard.util.hashing import file_sha256
from vidshard.util.location import Location as Location
from vidshard.util.location import Url as Url
from vidshard.util.location import local_name as local_name
from vidshard.util.location import location as location
from vidshard.util.location import redact_credentials as redact_credentials

# Pauses between attempts, in seconds. With the libraries' own timeouts, a dead server is given up after half a minute.
RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)
STALL_SECONDS = 30.0  # a download with less than STALL_BYTES in this time is restarted
STALL_BYTES = 64 << 10
_SHA256 = "sha256"  # key of the object metadata that holds the digest
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "hf": "hub"}
# The only ones opened: of fsspec's, others reach local files, run commands, or join URLs of any kind.
SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "http", "https", "memory")
# Errors of the local disk; any other OSError comes from the network and is retried.
_DISK_ERRORS = {
    errno.ENOSPC, errno.EROFS, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOTDIR, errno.EISDIR,
    getattr(errno, "EDQUOT", -1),
}  # fmt: skip
# Fields by which stores report the version of an object, in the order of preference.
_VERSION_FIELDS = (
    *("ETag", "etag", "generation", "md5Hash", "blob_id"),
    *("LastModified", "last_modified", "mtime", "updated", "created"),
)
_T = TypeVar("_T")


class StorageError(UserError):
    """An object that could not be read or written, even after retries."""


class NotThereError(StorageError):
    """An object that does not exist."""


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """Size and version of an object, as reported by the store."""

    size: int | None  # bytes; None if the store does not report it
    version: str | None  # changes when the object is replaced; None if the store does not report it


# ---- reading


def read_bytes(url: Url) -> bytes:
    """Return the content of a small object. Raises NotThereError, StorageError."""
    return _try(url, "read", lambda: bytes(_filesystem(url).cat_file(_path(url))))


def read_head(url: Url, num_bytes: int) -> bytes:
    """Return at most the first `num_bytes` bytes of an object. Raises NotThereError, StorageError."""
    return _try(url, "read", lambda: bytes(_filesystem(url).cat_file(_path(url), start=0, end=num_bytes))[:num_bytes])


def info(url: Url) -> ObjectInfo:
    """Return size and version of an object. Raises NotThereError, StorageError."""
    return _try(url, "looked up", lambda: _object_info(_filesystem(url).info(_path(url))))


def exists(url: Url) -> bool:
    """Return True if the object exists. Raises StorageError."""
    try:
        info(url)
    except NotThereError:
        return False
    return True


def list_files(url: Url) -> dict[str, ObjectInfo]:
    """Return all objects below `url` by relative name, in no particular order; empty if there are none."""
    import fsspec

    root = _path(url).rstrip("/") + "/"

    def find() -> dict[str, ObjectInfo]:
        filesystem = _filesystem(url)
        try:
            found = filesystem.find(root, detail=True)
        except FileNotFoundError:
            return {}
        strip = str(fsspec.core.strip_protocol(url.full)).rstrip("/") + "/"
        names = {name: about for name, about in found.items() if str(name).startswith(strip)}
        return {
            unquote(name[len(strip) :]) if url.is_web else name[len(strip) :]: _object_info(about)
            for name, about in names.items()
            if not name.endswith("/")  # placeholders that some tools write for empty folders
        }

    return _try(url, "listed", find)


def download(url: Url, path: Path, *, size: int | None = None, sha256: str | None = None) -> None:
    """Download an object to the local file `path`, which may be incomplete until this returns.

    `size` (bytes) and `sha256` are checked if given. Raises NotThereError, StorageError; OSError if the disk is full.
    """

    def fetch() -> None:
        _filesystem(url).get_file(_path(url), str(path), callback=_stall_watch())
        got = path.stat().st_size
        if size is not None and got != size:
            raise _BadBodyError(f"{got:,} bytes received, expected {size:,}")
        if sha256 is not None and file_sha256(path) != sha256:
            raise _BadBodyError("its SHA-256 differs from the expected one")

    _try(url, "downloaded", fetch)


# ---- writing


def check_writable(url: Url) -> None:
    """Raise UserError if `url` is of a kind that is read-only by design."""
    if url.is_web:
        raise UserError(f"{url} cannot be written to: https:// is read-only; use a folder, s3:// or gs://")


def upload(path: Path, url: Url, *, sha256: str) -> bool:
    """Upload a local file unless the object is an identical copy already; return True if it was sent.

    The object appears whole or not at all: stores show no object before its last byte. Raises StorageError.
    """
    if _is_copy(path, url, sha256):
        return False
    extra = {"Metadata": {_SHA256: sha256}} if url.scheme in ("s3", "s3a") else {}
    size = path.stat().st_size

    def send() -> None:
        _filesystem(url).put_file(str(path), _path(url), **extra)
        got = _object_info(_filesystem(url).info(_path(url))).size
        if got != size:
            raise _BadBodyError(f"{got} bytes are stored, expected {size:,}")

    _try(url, "written", send)
    return True


def remove(url: Url) -> None:
    """Delete an object if it exists. Raises StorageError."""

    def drop() -> None:
        with contextlib.suppress(FileNotFoundError):
            _filesystem(url).rm_file(_path(url))

    _try(url, "removed", drop)


def _is_copy(path: Path, url: Url, sha256: str) -> bool:
    """Return True if the object has the file's size and digest; downloads it if the store keeps no digest."""
    try:
        about = info(url)
    except NotThereError:
        return False
    if about.size != path.stat().st_size:
        return False
    if url.scheme in ("s3", "s3a"):
        kept = _try(url, "looked up", lambda: dict(_filesystem(url).metadata(_path(url))))
        if _SHA256 in kept:
            return bool(kept[_SHA256] == sha256)
    return hashlib.sha256(read_bytes(url)).hexdigest() == sha256


# ---- internals


class _BadBodyError(Exception):
    """Truncated, stalled or corrupted transfer."""


def _try(url: Url, what: str, call: Callable[[], _T]) -> _T:
    """Run `call`, retrying after each pause of RETRY_SECONDS if the error may be temporary."""
    for pause in (*RETRY_SECONDS, None):
        try:
            return call()
        except (FileNotFoundError, NotThereError) as error:
            raise NotThereError(f"{url} does not exist") from error
        except PermissionError as error:
            raise StorageError(
                f"{url} cannot be {what}: access is denied ({_one_line(error)}); check the credentials in "
                "the environment"
            ) from error
        except ImportError as error:
            extra = _EXTRAS.get(url.scheme)
            hint = f"pip install 'vidshard[{extra}]'" if extra else f"install fsspec's package for {url.scheme}://"
            raise StorageError(f"{url} cannot be {what}: {_one_line(error)}; {hint}") from error
        except Exception as error:  # the storage libraries raise dozens of types
            if isinstance(error, UserError) or (isinstance(error, OSError) and error.errno in _DISK_ERRORS):
                raise
            if type(error).__name__ == "NoCredentialsError":
                raise StorageError(
                    f"{url} cannot be {what}: there are no credentials; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
                    "AWS_SECRET_ACCESS_KEY, or FSSPEC_S3='{\"anon\": true}' for public data"
                ) from error
            if pause is None:
                tries = len(RETRY_SECONDS) + 1
                raise StorageError(f"{url} could not be {what} in {tries} tries: {_one_line(error)}") from error
        time.sleep(pause)
    raise AssertionError("unreachable")


def _one_line(error: BaseException) -> str:
    """Format an error on one line, without credentials."""
    return redact_credentials(" ".join(f"{type(error).__name__}: {error}".split()))[:300].rstrip(": ")


def _filesystem(url: Url) -> Any:
    """Return the fsspec file system of a URL. fsspec caches it, per process and, where needed, per thread."""
    import fsspec

    if url.scheme not in SCHEMES:
        raise UserError(f"{url} has an unsupported scheme; expected a path, s3://, gs:// or https://")
    options: dict[str, Any] = {}
    if url.scheme in ("s3", "s3a"):
        # One request per object (not a dozen for its ranges); no listing cache, since listings may have changed; one
        # attempt per call, since `_try` retries with pauses of its own.
        network = {"connect_timeout": 10, "read_timeout": 20, "retries": {"total_max_attempts": 1, "mode": "standard"}}
        options = {"max_concurrency": 1, "use_listings_cache": False, "config_kwargs": network}
    elif url.scheme in ("gs", "gcs"):
        options = {"use_listings_cache": False}
    elif url.is_web:
        import aiohttp

        options = {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=20)}}
    return fsspec.filesystem(url.scheme, **{**options, **fsspec.config.conf.get(url.scheme, {})})


def _path(url: Url) -> str:
    return url.full if url.is_web else url.full.partition("://")[2]


def _object_info(about: dict[str, Any]) -> ObjectInfo:
    if about.get("type") == "directory":
        raise FileNotFoundError
    size = about.get("size")
    version = next((str(about[name]) for name in _VERSION_FIELDS if about.get(name) is not None), None)
    return ObjectInfo(size=None if size is None else int(size), version=version)


def _stall_watch() -> Any:
    """Create an fsspec callback that aborts a stalled download."""
    from fsspec.callbacks import Callback

    class Watch(Callback):  # type: ignore[misc]  # fsspec has no types
        def __init__(self) -> None:
            super().__init__()
            self.since, self.brought = time.monotonic(), 0

        def relative_update(self, inc: int = 1) -> None:
            self.brought += inc
            if self.brought >= STALL_BYTES:
                self.since, self.brought = time.monotonic(), 0
            elif time.monotonic() - self.since > STALL_SECONDS:
                raise _BadBodyError(f"{self.brought:,} bytes received in {STALL_SECONDS:.0f} seconds")

    return Watch()
