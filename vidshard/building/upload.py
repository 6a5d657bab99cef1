"""Upload of a finished local shard folder to a URL, with the manifest last."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vidshard.shards import layout, manifest, remote_set
from vidshard.shards.manifest import Manifest, ShardSet
from vidshard.storage import urls
from vidshard.storage.urls import Url
from vidshard.util import atomic
from vidshard.util.console import Progress
from vidshard.util.errors import UserError
from vidshard.util.hashing import file_sha256
from vidshard.util.text import first_of

STAGING = Path("shards.staging")  # default folder of sets before upload
_T = TypeVar("_T")
_THREADS = 4  # concurrent transfers


@dataclass(frozen=True, kw_only=True)
class Uploaded:
    """Result of an upload."""

    sent: int  # objects
    kept: int  # unchanged objects


def staging_folder(url: Url, given: Path | None, *, of_several: bool = False) -> Path:
    """Return the local folder of a set for `url`; it is kept until the upload is complete, so that it can resume."""
    if given is None:
        return STAGING / urls.local_name(url)
    return given / url.name if of_several else given


def check_output(url: Url) -> None:
    """Raise UserError if `url` is read-only or contains foreign objects."""
    urls.check_writable(url)
    foreign = sorted(name for name in urls.list_files(url) if not layout.is_set_name(name))
    if foreign:
        raise UserError(f"the output {url} contains other objects ({first_of(foreign, 3)}); choose another `out`")


def upload_set(folder: Path, url: Url) -> Uploaded:
    """Make `url` a copy of the finished shard folder: shards, index, failures.csv and, last, the manifest.

    Unchanged objects are not sent again, so that an interrupted upload resumes. If objects of an older manifest are
    replaced, that manifest is deleted first. Raises StorageError, FormatError.
    """
    about = manifest.open_shards(folder).manifest
    old = _old_manifest(url)
    if old is not None and old != about and _replaces(old, about):
        urls.remove(url / layout.MANIFEST_NAME)
    digests = {shard.name: shard.sha256 for shard in about.shards}
    digests[about.index_name] = about.index_sha256
    digests[layout.FAILURES_NAME] = file_sha256(folder / layout.FAILURES_NAME)
    if (folder / layout.CARD_NAME).exists():  # sets of earlier versions have none
        digests[layout.CARD_NAME] = file_sha256(folder / layout.CARD_NAME)

    def send(name: str) -> bool:
        return urls.upload(folder / name, url / name, sha256=digests[name])

    sent = sum(_with_threads(send, list(digests), title="Uploading"))
    data = folder / layout.MANIFEST_NAME
    sent += urls.upload(data, url / layout.MANIFEST_NAME, sha256=file_sha256(data))
    for name in urls.list_files(url):
        if name not in digests and layout.is_data_name(name):
            urls.remove(url / name)  # left from the replaced set
    return Uploaded(sent=sent, kept=len(digests) + 1 - sent)


def download_set(url: Url, folder: Path) -> ShardSet:
    """Make `folder` a copy of the finished set at `url`; unchanged files are kept. Raises StorageError."""
    about = remote_set.read_manifest(url)
    files = [(shard.name, shard.bytes, shard.sha256) for shard in about.shards]
    files.append((about.index_name, about.index_bytes, about.index_sha256))
    folder.mkdir(parents=True, exist_ok=True)

    def fetch(number: int) -> bool:
        name, size, sha256 = files[number]
        path = folder / name
        if path.is_file() and path.stat().st_size == size and file_sha256(path) == sha256:
            return False
        partial = atomic.partial_path(path)
        urls.download(url / name, partial, size=size, sha256=sha256)
        partial.replace(path)
        return True

    list(_with_threads(fetch, range(len(files)), title="Downloading"))
    atomic.write_bytes(folder / layout.FAILURES_NAME, urls.read_bytes(url / layout.FAILURES_NAME))
    atomic.write_bytes(folder / layout.MANIFEST_NAME, about.to_bytes())
    return manifest.open_shards(folder)


def _old_manifest(url: Url) -> Manifest | None:
    if not urls.exists(url / layout.MANIFEST_NAME):
        return None
    return remote_set.read_manifest(url)


def _replaces(old: Manifest, new: Manifest) -> bool:
    """Return True if objects named by `old` will change or disappear."""
    contents = {(shard.name, shard.sha256) for shard in new.shards} | {(new.index_name, new.index_sha256)}
    shards_stay = contents.issuperset((shard.name, shard.sha256) for shard in old.shards)
    return not shards_stay or (old.index_name == new.index_name and old.index_sha256 != new.index_sha256)


def _with_threads(call: Callable[[_T], bool], items: Sequence[_T], *, title: str) -> Iterator[bool]:
    with (
        Progress(title, total=len(items), unit="file") as progress,
        ThreadPoolExecutor(_THREADS, thread_name_prefix="objects") as pool,
    ):
        try:
            for result in pool.map(call, items):
                progress.advance()
                yield result
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
