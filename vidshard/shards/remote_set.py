"""Remote shard sets, read through the local cache with prefetching."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vidshard.shards import layout, manifest
from vidshard.shards.manifest import Index, Manifest, ShardSet
from vidshard.storage import urls
from vidshard.storage.cache import CacheConfig, ShardCache
from vidshard.storage.urls import Location, Url
from vidshard.util.errors import FormatError, UserError
from vidshard.util.lists import VIDEO_SUFFIXES

_THREADS = 4  # number of download threads
_AHEAD_SHARE = 0.5  # of the cache: limit of prefetched data


def open_location(where: Location, *, cache: CacheConfig | None = None) -> ShardSet:
    """Open a finished shard folder by path or URL; the shards of a URL are downloaded when they are read.

    Raises UserError if there is none, FormatError if it is damaged or of an unknown format.
    """
    if isinstance(where, Path):
        return manifest.open_shards(where)
    kept = ShardCache(cache or CacheConfig())
    about = read_manifest(where)
    url = where / about.index_name
    path = kept.path(url, about.index_sha256)
    for _ in range(2):
        kept.fetch(url, size=about.index_bytes, sha256=about.index_sha256)
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() == about.index_sha256:
            break
        kept.discard(url, about.index_sha256)  # the copy was damaged in the cache
    index = Index.from_bytes(data, where=str(url), about=about)
    return RemoteSet(folder=path.parent, manifest=about, index=index, url=where, cache=kept)


def read_manifest(url: Location) -> Manifest:
    """Read the manifest of a set. Raises UserError if there is none, FormatError if it cannot be read."""
    if isinstance(url, Path):
        return manifest.read_manifest(url)
    path = url / layout.MANIFEST_NAME
    try:
        return Manifest.from_bytes(urls.read_bytes(path), where=str(path))
    except urls.NotThereError as error:
        raise UserError(_no_shards(url)) from error


def _no_shards(url: Url) -> str:
    """Explain why the URL is not a finished shard folder."""
    names = list(urls.list_files(url))
    below = f"/{layout.MANIFEST_NAME}"
    sets = sorted(str(url / name.removesuffix(below)) for name in names if name.endswith(below))
    if sets:
        do = "does: did you mean it?" if len(sets) == 1 else "do: did you mean one of them?"
        return f"{url} contains no shards, but {', '.join(sets[:4])} {do}"
    if any(name.lower().endswith(VIDEO_SUFFIXES) for name in names):
        return f"{url} contains videos, not shards; build shards first: vidshard build {url}"
    return (
        f"{url} has no {layout.MANIFEST_NAME}: build it first with `vidshard build SOURCE --out {url}`; if that "
        "was interrupted, run the same command again"
    )


@dataclass(frozen=True, kw_only=True)
class RemoteMetadata(ShardSet):
    """Manifest and index of a remote set, without its shards. `folder` is meaningless."""

    url: Url

    @property
    def where(self) -> str:
        return str(self.url)


def open_metadata(where: Location) -> ShardSet:
    """Open only the manifest and index of a set. Raises UserError if there is none, FormatError if it is damaged."""
    if isinstance(where, Path):
        return manifest.open_shards(where)
    about = read_manifest(where)
    path = where / about.index_name
    data = urls.read_bytes(path)
    if hashlib.sha256(data).hexdigest() != about.index_sha256:
        raise FormatError(f"{path} does not match its manifest: it was changed or damaged; build again")
    index = Index.from_bytes(data, where=str(path), about=about)
    return RemoteMetadata(folder=Path(), manifest=about, index=index, url=where)


@dataclass(frozen=True, kw_only=True)
class RemoteSet(RemoteMetadata):
    """A remote shard set. `folder` is the cache folder of its index."""

    cache: ShardCache

    @property
    def is_cached(self) -> bool:
        return True

    def shard_path(self, number: int) -> Path:
        return self.cache.path(self._shard_url(number), self.manifest.shards[number].sha256)

    def shard_where(self, number: int) -> str:
        return f"{self._shard_url(number)} (copy: {self.shard_path(number)})"

    def _shard_url(self, number: int) -> Url:
        return self.url / self.manifest.shards[number].name

    def open_shard(self, number: int) -> IO[bytes]:
        shard = self.manifest.shards[number]
        return self.cache.open(self._shard_url(number), size=shard.bytes, sha256=shard.sha256)

    def in_use(self, file: IO[bytes]) -> AbstractContextManager[bool]:
        return self.cache.in_use(file)

    def discard(self, number: int) -> None:
        """Delete the damaged copy of a shard, so that it is downloaded again."""
        self.cache.discard(self._shard_url(number), self.manifest.shards[number].sha256)

    def fetch(self, number: int, *, wait: bool) -> bool:
        """Download a shard to the cache; return False if `wait` is False and another process is downloading it."""
        shard = self.manifest.shards[number]
        url = self._shard_url(number)
        return self.cache.fetch(url, size=shard.bytes, sha256=shard.sha256, wait=wait) is not None

    def prefetch(self, shards: Sequence[int]) -> Prefetch:
        return Prefetch(self, shards)


def check_room(shards: ShardSet, *, block_shards: int) -> None:
    """Raise UserError if reading in random order would download shards again and again.

    `block_shards`: number of shards shuffled together; 0: all.
    """
    if not isinstance(shards, RemoteSet):
        return
    sizes, limit = [shard.bytes for shard in shards.manifest.shards], shards.cache.limit_bytes
    largest = max(sizes, default=1)
    if sum(sizes) > limit and not 0 < 2 * block_shards * largest <= limit:
        fitting = limit // (2 * largest)
        block = f"`block_shards` {fitting}, " if fitting else ""
        raise UserError(
            f"{shards.where} has {sum(sizes) / 1e9:.3g} GB, but the cache {shards.cache.folder} holds only "
            f"{limit / 1e9:.3g} GB: in random order, shards would be downloaded repeatedly; use {block}a larger "
            "`cache_gb`, or another `cache_dir`"
        )


class Prefetch:
    """Background threads that download shards ahead of their reader, in the reader's order.

    Shards that another process is downloading are skipped. Errors are ignored: the reader meets them itself.
    """

    def __init__(self, shards: RemoteSet, order: Sequence[int]) -> None:
        self._shards, self._order = shards, list(order)
        self._place = {shard: place for place, shard in reversed(list(enumerate(order)))}
        self._ends: list[int] = []  # bytes up to and with each shard of the order
        for shard in order:
            self._ends.append((self._ends[-1] if self._ends else 0) + shards.manifest.shards[shard].bytes)
        self._next = self._opened = 0  # places in the order
        self._condition = threading.Condition()
        self._closed = False
        for _ in range(min(_THREADS, len(self._order))):
            threading.Thread(target=self._run, name="prefetch-shards", daemon=True).start()

    def opened(self, shard: int) -> None:
        """Record that the reader has opened `shard`, which allows further downloads."""
        place = self._place.get(shard, 0)
        if place > self._opened:
            with self._condition:
                self._opened = max(self._opened, place)
                self._condition.notify_all()

    def close(self) -> None:
        """Start no more downloads."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def _run(self) -> None:
        while (shard := self._take()) is not None:
            try:
                self._shards.fetch(shard, wait=False)
            except UserError:
                return

    def _take(self) -> int | None:
        with self._condition:
            while not self._closed and self._next < len(self._order):
                before = self._ends[self._opened - 1] if self._opened else 0
                ahead = self._ends[self._next] - before
                if ahead <= _AHEAD_SHARE * self._shards.cache.limit_bytes or self._next <= self._opened:
                    self._next += 1
                    return self._order[self._next - 1]
                self._condition.wait()
        return None
