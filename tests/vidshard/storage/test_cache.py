"""Shards at URLs: one download per machine, checked, retried, and of bounded size."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fake_shards import random_clips, write_shards
from object_store import CREDENTIALS, ObjectStore, read_all_clips, running_store, use_store
from stage1.data.loader import ClipLoader, ClipReader
from vidshard.shards.remote_set import RemoteSet, check_room
from vidshard.storage import cache as shard_cache
from vidshard.storage import urls
from vidshard.storage.cache import CacheConfig, ShardCache
from vidshard.storage.urls import Url
from vidshard.util.errors import FormatError, UserError

pytestmark = pytest.mark.skipif(shard_cache.fcntl is None, reason="the cache needs POSIX file locks")

LABELS = [i % 2 for i in range(40)]


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with running_store() as store:
        yield store


@pytest.fixture
def store(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    return use_store(server, monkeypatch)


@pytest.fixture
def url(store: ObjectStore, tmp_path: Path) -> Url:
    """40 clips in 5 shards, all GETs counted from here on."""
    folder = write_shards(tmp_path / "local", random_clips(40), LABELS)
    name = f"sets/{tmp_path.name}"
    store.put_folder(folder, name)
    return Url(f"s3://bucket/{name}")


def reader(url: Url, tmp_path: Path, *, limit_gb: float | None = None) -> ClipReader:
    return ClipReader(url, cache=CacheConfig(folder=tmp_path / "cache", limit_gb=limit_gb))


def all_clips(one: ClipReader) -> Any:
    return np.stack([one[row] for row in range(len(one))])


def test_a_remote_set_gives_the_clips_of_the_local_one(url: Url, store: ObjectStore, tmp_path: Path) -> None:
    remote, local = reader(url, tmp_path), ClipReader(tmp_path / "local")
    assert remote.digest == local.digest
    np.testing.assert_array_equal(all_clips(remote), all_clips(local))
    assert remote.read_record(13) == local.read_record(13)
    assert set(store.shard_gets().values()) == {1}
    assert len(store.shard_gets()) == 5
    all_clips(reader(url, tmp_path))  # again: nothing is downloaded
    assert set(store.shard_gets().values()) == {1}


def test_a_loader_downloads_ahead_once_and_gives_exact_epochs(url: Url, store: ObjectStore, tmp_path: Path) -> None:
    loaders = [ClipLoader(reader(url, tmp_path), batch_size=4, shuffle=True, rank=r, world_size=2) for r in range(2)]
    seen = [row for loader in loaders for batch in loader for row in batch.indices.tolist()]
    assert sorted(seen) == list(range(40))
    assert store.shard_gets() == dict.fromkeys(store.shard_gets(), 1)
    assert len(store.shard_gets()) == 5


@pytest.mark.slow
def test_many_processes_download_each_shard_once(url: Url, store: ObjectStore, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    processes = [
        context.Process(target=read_all_clips, args=(url.full, str(tmp_path / "c"), barrier)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(store.shard_gets()) == 5
    assert set(store.shard_gets().values()) == {1}


@pytest.mark.slow
@pytest.mark.parametrize("faults", [["503", "503"], ["cut"], ["cut", "503", "cut"], ["stall"], ["flip"]])
def test_faults_of_the_server_are_tried_again(faults: list[str], url: Url, store: ObjectStore, tmp_path: Path) -> None:
    store.faults = {"shard-000002.tar": list(faults), "manifest.json": ["503", "503"], "index.npz": ["cut"]}
    np.testing.assert_array_equal(all_clips(reader(url, tmp_path)), all_clips(ClipReader(tmp_path / "local")))
    assert not any(store.faults.values())
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_a_server_that_never_answers_right_is_given_up(url: Url, store: ObjectStore, tmp_path: Path) -> None:
    one = reader(url, tmp_path)
    store.faults = {"shard-000002.tar": ["503"] * 99}
    with pytest.raises(urls.StorageError, match=r"s3://.*shard-000002\.tar could not be downloaded in 6 tries"):
        one[17]
    assert one[0] is not None


def test_a_shard_that_was_replaced_is_named(url: Url, store: ObjectStore, tmp_path: Path) -> None:
    name = f"sets/{tmp_path.name}/shard-000001.tar"
    one = reader(url, tmp_path)
    store.put(name, bytes(len(store.get(name))))
    with pytest.raises(FormatError, match=r"shard-000001\.tar is not the object that its manifest lists"):
        one[9]
    store.put(name, b"")
    with pytest.raises(FormatError, match=r"0 bytes, expected"):
        one[9]
    store.client().delete_object(Bucket="bucket", Key=name)
    with pytest.raises(FormatError, match="is missing, although its manifest lists it"):
        one[9]


def test_equal_names_in_two_places_never_mix(store: ObjectStore, tmp_path: Path) -> None:
    sets = {}
    for seed, split in enumerate(("train", "val")):
        folder = write_shards(tmp_path / split, random_clips(8, seed=seed), LABELS[:8])
        store.put_folder(folder, f"{tmp_path.name}/{split}")
        sets[split] = folder
    for split in ("train", "val", "train"):
        remote = reader(Url(f"s3://bucket/{tmp_path.name}/{split}"), tmp_path)
        np.testing.assert_array_equal(all_clips(remote), all_clips(ClipReader(sets[split])))
    assert store.shard_gets() == {f"{tmp_path.name}/{split}/shard-000000.tar": 1 for split in ("train", "val")}


def test_a_replaced_set_is_read_anew(url: Url, store: ObjectStore, tmp_path: Path) -> None:
    all_clips(reader(url, tmp_path))
    other = write_shards(tmp_path / "other", random_clips(40, seed=9), LABELS)
    store.put_folder(other, f"sets/{tmp_path.name}")
    np.testing.assert_array_equal(all_clips(reader(url, tmp_path)), all_clips(ClipReader(other)))


def shard_bytes(one: ClipReader) -> int:
    return one.manifest.shards[0].bytes


def cache_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_cache_is_bounded_and_drops_what_was_used_least_recently(
    url: Url, store: ObjectStore, tmp_path: Path
) -> None:
    first = reader(url, tmp_path)
    limit = 2 * shard_bytes(first) + first.manifest.index_bytes
    one = reader(url, tmp_path, limit_gb=limit / 1e9)
    expected = all_clips(ClipReader(tmp_path / "local"))
    for row in (0, 8, 1, 16, 2):  # shards 0, 1, 0, 2, 0: the second goes when the third comes
        np.testing.assert_array_equal(one[row], expected[row])
        assert cache_bytes(tmp_path / "cache") <= limit
    assert {name[-10:]: count for name, count in store.shard_gets().items()} == {
        "000000.tar": 1, "000001.tar": 1, "000002.tar": 1,
    }  # fmt: skip
    for row in np.random.default_rng(0).permutation(40).tolist():
        np.testing.assert_array_equal(one[row], expected[row])
        assert cache_bytes(tmp_path / "cache") <= limit


def test_a_shard_in_use_is_not_dropped(
    url: Url, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_cache, "WAIT_SECONDS", 0.3)
    size = shard_bytes(reader(url, tmp_path))
    one = reader(url, tmp_path, limit_gb=1.5 * size / 1e9)
    assert isinstance(one.shard_set, RemoteSet)
    shards = one.shard_set
    file = shards.open_shard(0)
    with shards.in_use(file) as is_there:
        assert is_there
        with pytest.raises(UserError, match="full of shards in use"):
            shards.open_shard(1)
    shards.open_shard(1).close()
    with shards.in_use(file) as is_there:
        assert not is_there
    assert os.fstat(file.fileno()).st_size == 0  # its bytes are free, although it is still open
    file.close()


def test_readers_in_threads_share_a_cache_for_two_shards(url: Url, tmp_path: Path) -> None:
    limit = 2.2 * shard_bytes(reader(url, tmp_path)) / 1e9
    expected = all_clips(ClipReader(tmp_path / "local"))
    wrong: list[int] = []

    def work(seed: int) -> None:
        one = reader(url, tmp_path, limit_gb=limit)
        for row in np.random.default_rng(seed).permutation(40).tolist():
            if not np.array_equal(one[row], expected[row]):
                wrong.append(row)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_clips_that_are_kept_in_memory_need_no_shard(url: Url, store: ObjectStore, tmp_path: Path) -> None:
    size = shard_bytes(reader(url, tmp_path))
    one = reader(url, tmp_path, limit_gb=13 * size / 1e9)
    one.keep_clips()
    clips = all_clips(one)
    other = write_shards(tmp_path / "other", random_clips(120, seed=1), LABELS * 3)
    store.put_folder(other, f"{tmp_path.name}/other")
    crowd = reader(Url(f"s3://bucket/{tmp_path.name}/other"), tmp_path, limit_gb=13 * size / 1e9)
    assert len(all_clips(crowd)) == 120
    assert cache_bytes(tmp_path / "cache") <= 13 * size
    store.gets.clear()
    np.testing.assert_array_equal(all_clips(one), clips)
    assert not store.shard_gets()


def test_leftovers_of_a_killed_process_are_removed(url: Url, tmp_path: Path) -> None:
    size = shard_bytes(reader(url, tmp_path))
    cache = ShardCache(CacheConfig(folder=tmp_path / "cache", limit_gb=2.2 * size / 1e9))
    left = cache.path(url / "x", "0" * 64).with_name(f"{'0' * 64}.{2 * size}.partial")
    left.parent.mkdir()
    left.write_bytes(b"half")
    assert reader(url, tmp_path, limit_gb=2.2 * size / 1e9)[0] is not None
    assert not left.exists()


def test_an_order_that_the_cache_cannot_serve_is_refused(url: Url, tmp_path: Path) -> None:
    size = shard_bytes(reader(url, tmp_path))
    small = reader(url, tmp_path, limit_gb=4.5 * size / 1e9)
    for block_shards in (0, 3):
        with pytest.raises(UserError, match=r"downloaded repeatedly; use `block_shards` 2, a larger `cache_gb`"):
            check_room(small.shard_set, block_shards=block_shards)
    check_room(small.shard_set, block_shards=2)
    check_room(reader(url, tmp_path).shard_set, block_shards=0)
    check_room(ClipReader(tmp_path / "local").shard_set, block_shards=0)


def test_windows_of_shards_pass_through_a_small_cache(url: Url, store: ObjectStore, tmp_path: Path) -> None:
    size = shard_bytes(reader(url, tmp_path))
    one = reader(url, tmp_path, limit_gb=3.5 * size / 1e9)
    loader = ClipLoader(one, batch_size=4, shuffle=True, block_shards=1)
    for _ in range(2):
        assert sorted(row for batch in loader for row in batch.indices.tolist()) == list(range(40))
        assert cache_bytes(tmp_path / "cache") <= 3.5 * size + one.manifest.index_bytes
    assert max(store.shard_gets().values()) <= 2  # once an epoch


def test_a_shard_larger_than_the_cache_is_refused(url: Url, tmp_path: Path) -> None:
    one = reader(url, tmp_path)
    small = reader(url, tmp_path, limit_gb=0.9 * shard_bytes(one) / 1e9)
    with pytest.raises(UserError, match=r"more than the cache holds .* larger `cache_gb`"):
        small[0]
    with pytest.raises(UserError, match="`cache_gb` is -1, expected more than 0"):
        CacheConfig(limit_gb=-1)


def test_a_full_disk_is_a_clear_error(url: Url, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = reader(url, tmp_path)

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(urls, "download", full)
    with pytest.raises(UserError, match=r"the disk of the cache .* is full: .* a smaller `cache_gb`"):
        one[0]
    assert not list((tmp_path / "cache").rglob("*.partial"))


@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="mounting a small disk takes root on Linux")
def test_a_really_full_disk(url: Url, store: ObjectStore, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        one = ClipReader(url, cache=CacheConfig(folder=disk / "cache", limit_gb=1))
        with pytest.raises(UserError, match=r"the disk of the cache .* is full"):
            all_clips(one)
        assert not list((disk / "cache").rglob("*.partial"))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_cache_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"`cache_dir` .* cannot be used: Not a directory"):
        ShardCache(CacheConfig(folder=tmp_path / "file" / "cache"))


def test_no_set_at_a_url(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"s3://bucket/nothing has no manifest.json: build it first"):
        reader(Url("s3://bucket/nothing"), tmp_path)
    with pytest.raises(UserError, match=r"s3://no-such-bucket/x has no manifest.json"):
        reader(Url("s3://no-such-bucket/x"), tmp_path)
    with pytest.raises(UserError, match=r"nonsense://x/manifest.json has an unsupported scheme"):
        reader(Url("nonsense://x"), tmp_path)


def test_no_secret_is_shown_or_kept(store: ObjectStore, tmp_path: Path) -> None:
    signed = Url("https://me:hunter2@127.0.0.1:1/set?X-Amz-Signature=abcdef&X-Amz-Credential=AKIA")
    with pytest.raises(UserError) as error:
        reader(signed, tmp_path)
    shown = f"{error.value} {signed!r} {signed / 'a b.tar'} {urls.local_name(signed)} {signed.as_posix()}"
    assert not [word for word in ("hunter2", "abcdef", "AKIA", *CREDENTIALS.values()) if word in shown]
    assert (signed / "a b.tar").full == signed.full.replace("/set?", "/set/a%20b.tar?")


def test_a_copy_that_was_damaged_in_the_cache_is_downloaded_again(url: Url, tmp_path: Path) -> None:
    clips = all_clips(reader(url, tmp_path))
    for path in (tmp_path / "cache").glob("*/*"):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    np.testing.assert_array_equal(all_clips(reader(url, tmp_path)), clips)


@pytest.mark.parametrize("trap", ["link", "open to others"])
def test_a_cache_that_another_user_may_have_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: str
) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    folder = tmp_path / f"vidshard-cache-{os.getuid()}"
    if trap == "link":
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir()
        folder.chmod(0o777)
    with pytest.raises(UserError, match=r"the cache .* is a link, belongs to someone else, or others may write to it"):
        ShardCache(CacheConfig())
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "new"))
    assert ShardCache(CacheConfig()).folder.is_dir()
