"""The loader: every clip exactly once, the same steps on every rank, damage never silent."""

from __future__ import annotations

import gc
import itertools
import json
import os
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds

from fake_shards import random_clips, write_shards
from stage1.data import loader as loader_module
from stage1.data import reader as reader_module
from stage1.data.epoch_plan import PADDING_ROW
from stage1.data.loader import Batch, ClipLoader, ClipReader
from vidshard.util import console
from vidshard.util.errors import FormatError, UserError

NUM_CLIPS = 37
CLIPS = random_clips(NUM_CLIPS)
LABELS = [i % 2 for i in range(NUM_CLIPS)]


@pytest.fixture(autouse=True)
def shown_logs() -> None:
    """Show log messages as the command does: warnings on standard error."""
    console.show_logs()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "shards", CLIPS, LABELS, clips_per_shard=8)


@pytest.mark.parametrize("clips_per_shard", [37, 7, 1])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 4, 10])
@pytest.mark.parametrize("drop_last", [False, True])
def test_every_clip_comes_once_in_equal_steps(
    tmp_path: Path, clips_per_shard: int, world_size: int, batch_size: int, drop_last: bool
) -> None:
    reader = ClipReader(write_shards(tmp_path / "shards", CLIPS, LABELS, clips_per_shard=clips_per_shard))
    seen: list[int] = []
    steps = set()
    for rank in range(world_size):
        loader = ClipLoader(
            reader,
            batch_size=batch_size,
            shuffle=True,
            seed=3,
            rank=rank,
            world_size=world_size,
            drop_last=drop_last,
        )
        batches = list(loader)
        assert len(batches) == len(loader)
        steps.add(len(batches))
        for batch in batches:
            for clip, label, row in zip(batch.clips, batch.labels.tolist(), batch.indices.tolist(), strict=True):
                if row == -1:
                    assert label == -1
                    assert not clip.any()
                else:
                    assert torch.equal(clip, torch.from_numpy(CLIPS[row]))
                    assert label == LABELS[row]
                    seen.append(row)
    assert len(steps) == 1
    if drop_last:
        assert len(seen) == len(set(seen)) == NUM_CLIPS // (batch_size * world_size) * batch_size * world_size
    else:
        assert sorted(seen) == list(range(NUM_CLIPS))


def test_the_global_batches_do_not_depend_on_ranks_or_shards(tmp_path: Path, folder: Path) -> None:
    def global_batches(folder: Path, world_size: int) -> list[list[int]]:
        reader = ClipReader(folder)
        loaders = [
            ClipLoader(reader, batch_size=12 // world_size, shuffle=True, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        steps = zip(*(loader.plan() for loader in loaders), strict=True)
        return [[row for part in step for row in part.tolist() if row != -1] for step in steps]

    other = write_shards(tmp_path / "other", CLIPS, LABELS, clips_per_shard=5)
    assert global_batches(folder, 1) == global_batches(folder, 3) == global_batches(other, 4)


def test_the_order_is_new_each_epoch_and_the_same_each_time(folder: Path) -> None:
    def order(epoch: int, seed: int = 0) -> list[int]:
        loader = ClipLoader(ClipReader(folder), batch_size=4, shuffle=True, seed=seed)
        loader.set_epoch(epoch)
        return [row for batch in loader for row in batch.indices.tolist()]

    assert order(0) == order(0)
    assert len({tuple(order(0)), tuple(order(1)), tuple(order(0, seed=1)), tuple(range(NUM_CLIPS))}) == 4


def test_some_rows_only(folder: Path) -> None:
    loader = ClipLoader(ClipReader(folder), batch_size=4, shuffle=True, rows=[1, 5, 30, 36, 2])
    assert sorted(row for batch in loader for row in batch.indices.tolist()) == [1, 2, 5, 30, 36]
    assert len(loader) == 2


def test_batches_stay_valid_while_they_are_held_and_buffers_are_used_again(folder: Path) -> None:
    loader = ClipLoader(ClipReader(folder), batch_size=4, shuffle=False)
    held = list(loader)
    assert torch.equal(torch.cat([batch.clips for batch in held]), torch.from_numpy(CLIPS))
    del held
    addresses = {batch.clips.data_ptr() for batch in loader}
    assert len(addresses) <= 4
    loader = ClipLoader(ClipReader(folder), batch_size=4, shuffle=False, num_threads=0)
    addresses = set()
    for batch in loader:
        addresses.add(batch.clips.data_ptr())
        del batch
    assert len(addresses) == 1


def test_what_is_prepared_of_a_batch_takes_its_place_in_the_thread_that_reads(folder: Path) -> None:
    def prepare(batch: Batch, epoch: int) -> tuple[Any, ...]:
        return batch.indices + 100 * epoch, threading.current_thread().name

    loader = ClipLoader(ClipReader(folder), batch_size=20, shuffle=False, prepare=prepare)
    loader.set_epoch(2)
    found = list(loader)
    assert torch.cat([rows for rows, _ in found]).tolist() == list(range(200, 200 + NUM_CLIPS))
    assert all(name.startswith("clip-reader") for _, name in found)


def test_pinned_buffers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[tuple[int, ...], bool]] = []
    empty = torch.empty

    def counting(shape: tuple[int, ...], *, dtype: torch.dtype, pin_memory: bool) -> torch.Tensor:
        made.append((shape, pin_memory))
        return empty(shape, dtype=dtype)

    monkeypatch.setattr(torch, "empty", counting)
    monkeypatch.setattr(loader_module, "MAX_PINNED_BYTES", 4 * 10 * 100)
    pool = loader_module.BufferPool((1000, 100), max_free=4, pinned=True)
    small, large = pool.take(10), pool.take(11)
    assert (len(small), len(large)) == (10, 11)
    assert made == [((10, 100), True)]  # the larger one is not pinned
    del small, large
    assert len(pool.take(700)) == 700
    assert len(pool.take(3)) == 3
    assert len(made) == 1  # both are used again


def test_it_is_a_webdataset_pipeline(folder: Path) -> None:
    loader = ClipLoader(ClipReader(folder), batch_size=4, shuffle=False)
    assert isinstance(loader, wds.DataPipeline)
    sizes = list(loader.compose(wds.map(lambda batch: len(batch.labels))))
    assert sizes == [4] * 9 + [1]


@pytest.mark.parametrize("at_offset", [True, False])
def test_a_changed_pixel_names_shard_key_and_offset(
    folder: Path, monkeypatch: pytest.MonkeyPatch, at_offset: bool
) -> None:
    if not at_offset:  # as on Windows
        monkeypatch.setattr(reader_module, "_READS_AT_OFFSET", False)
    reader = ClipReader(folder)
    row = 10
    offset = int(reader.index.clips["offset"][row])
    _flip_byte(folder / "shard-000001.tar", offset + 500)
    with pytest.raises(FormatError) as caught:
        list(ClipLoader(reader, batch_size=4, shuffle=True))
    text = str(caught.value)
    assert repr(reader.index.key(row)) in text
    assert f"at byte {offset} of" in text
    assert "shard-000001.tar" in text
    assert "checksum" in text
    assert np.array_equal(reader[9], CLIPS[9])


def test_a_changed_header_is_found_and_a_cut_shard_too(folder: Path) -> None:
    reader = ClipReader(folder)
    _flip_byte(folder / "shard-000000.tar", int(reader.index.clips["offset"][0]) + 20)
    with pytest.raises(FormatError, match="checksum"):
        reader[0]
    with open(folder / "shard-000004.tar", "r+b") as file:
        file.truncate(int(reader.index.clips["offset"][36]) + 300)
    with pytest.raises(FormatError, match="shard-000004"):
        reader[36]


def test_without_positional_reads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "_READS_AT_OFFSET", False)
    monkeypatch.setattr(reader_module, "MAX_OPEN_SHARDS", 2)
    batches = list(ClipLoader(ClipReader(folder), batch_size=5, shuffle=True, num_threads=3))
    for batch in batches:
        assert np.array_equal(batch.clips.numpy(), CLIPS[batch.indices.numpy()])


def test_only_shards_of_the_manifest_are_opened(folder: Path) -> None:
    (folder / "shard-000099.tar").write_bytes(b"not of this set")
    assert len(ClipReader(folder)) == NUM_CLIPS
    (folder / "shard-000002.tar").unlink()
    with pytest.raises(FormatError, match=r"shard-000002\.tar is missing"):
        ClipReader(folder)


def test_random_access_and_records(folder: Path) -> None:
    clips = ClipReader(folder)
    assert len(clips) == NUM_CLIPS
    assert np.array_equal(clips[-1], CLIPS[-1])
    with pytest.raises(IndexError):
        clips[NUM_CLIPS]
    record = clips.read_record(5)
    assert (record.key, record.label) == (clips.index.key(5), 1)


def test_a_missing_folder_is_an_error_with_advice(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vidshard build"):
        ClipReader(tmp_path / "none")


def test_stopping_early_leaves_no_thread_behind(folder: Path) -> None:
    import threading

    before = set(threading.enumerate())
    batches = iter(ClipLoader(ClipReader(folder), batch_size=2, shuffle=False))
    assert isinstance(next(batches), Batch)
    assert set(threading.enumerate()) - before
    batches.close()  # type: ignore[attr-defined]
    assert not set(threading.enumerate()) - before


@pytest.mark.parametrize("codec", ["zstd", "jpeg"])
def test_encoded_clips_come_through_the_same_interface(tmp_path: Path, codec: str) -> None:
    clips = np.repeat(np.repeat(CLIPS[:9, :, :4, :4], 8, axis=2), 8, axis=3)  # blocks that JPEG keeps
    folder = write_shards(tmp_path / "shards", clips, LABELS[:9], clips_per_shard=4, codec=codec)
    for _ in range(2):
        for batch in ClipLoader(ClipReader(folder), batch_size=4, shuffle=True, block_shards=1, num_threads=2):
            error = batch.clips.numpy().astype(int) - clips[batch.indices.numpy()]
            assert np.abs(error).mean() < (12 if codec == "jpeg" else 1e-9)  # noise in colour: 85 from one another
    reader = ClipReader(folder)
    _flip_byte(folder / "shard-000000.tar", int(reader.index.clips["offset"][1]) + 60)
    with pytest.raises(FormatError, match="checksum"):
        reader[1]


def _global_batches(reader: ClipReader, world_size: int, *, steps: int | None = None, **options: Any) -> Any:
    """Return what all ranks read at each step, and the states of the ranks after `steps` steps."""
    state = options.pop("state", None)
    parts, states = [], []
    for rank in range(world_size):
        loader = ClipLoader(reader, shuffle=True, seed=5, rank=rank, world_size=world_size, **options)
        if state is not None:
            loader.load_state_dict(state)
        batches = iter(loader)
        parts.append([next(batches) for _ in range(len(loader) if steps is None else steps)])
        states.append(json.dumps(loader.state_dict()))
        batches.close()
    clips = [torch.cat([batch.clips[batch.indices >= 0] for batch in step]) for step in zip(*parts, strict=True)]
    return clips, states


@pytest.mark.parametrize("options", [{}, {"clips_per_video": 1}, {"block_shards": 2}, {"num_threads": 3}])
def test_a_stopped_epoch_resumes_with_other_ranks(tmp_path: Path, options: dict[str, Any]) -> None:
    folder = write_shards(tmp_path / "shards", CLIPS, LABELS, clips_per_shard=8, clips_per_video=2)
    reader = ClipReader(folder)
    whole, _ = _global_batches(reader, 1, batch_size=4, **options)
    first, states = _global_batches(reader, 4, batch_size=1, steps=3, **options)
    assert len(set(states)) == 1
    assert len(states[0]) < 400
    rest, _ = _global_batches(reader, 2, batch_size=2, state=json.loads(states[0]), **options)
    assert len(first) == 3
    assert len(first + rest) == len(whole)
    assert all(torch.equal(one, other) for one, other in zip(first + rest, whole, strict=True))


def test_a_state_of_other_data_selection_or_seed_is_refused(tmp_path: Path, folder: Path) -> None:
    state = ClipLoader(ClipReader(folder), batch_size=4, shuffle=True).state_dict()
    other = write_shards(tmp_path / "other", CLIPS + 1, LABELS, clips_per_shard=8)
    for reader, options, text in [
        (ClipReader(other), {}, "different shards"),
        (ClipReader(folder), {"rows": [1, 2]}, "a different selection"),
        (ClipReader(folder), {"seed": 1}, "a different seed"),
    ]:
        with pytest.raises(UserError, match=text):
            ClipLoader(reader, batch_size=4, shuffle=True, **options).load_state_dict(state)


def test_each_iteration_is_the_next_epoch_and_leaving_one_begins_it_anew(folder: Path) -> None:
    loader = ClipLoader(ClipReader(folder), batch_size=5, shuffle=True)
    epochs = [[row for batch in loader for row in batch.indices.tolist()] for _ in range(2)]
    assert epochs[0] != epochs[1]
    for batch in loader:
        assert len(batch.labels)
        break
    loader.set_epoch(2)
    assert sorted(row for batch in loader for row in batch.indices.tolist()) == list(range(NUM_CLIPS))
    assert loader.epoch == 3


@pytest.mark.parametrize("num_processes", [1, 3])
def test_processes_give_what_threads_give(folder: Path, num_processes: int) -> None:
    threads = ClipLoader(ClipReader(folder), batch_size=4, shuffle=True)
    processes = ClipLoader(ClipReader(folder), batch_size=4, shuffle=True, num_processes=num_processes)
    for _ in range(2):
        for one, other in zip(threads, processes, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert threads.state_dict() == processes.state_dict()


def test_a_sequential_pass_masks_bad_clips_in_any_number(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for row in (9, 11, 20):
        _flip_byte(folder / f"shard-00000{row // 8}.tar", int(ClipReader(folder).index.clips["offset"][row]) + 200)
    loader = ClipLoader(ClipReader(folder), batch_size=5, shuffle=False, pad=True, max_bad_clips=None)
    for _ in range(2):
        batches = list(loader)
        assert [len(batch.clips) for batch in batches] == [5] * 8
        rows = [row for batch in batches for row in batch.indices.tolist()]
        bad = {9, 11, 20, 37, 38, 39}
        assert rows == [PADDING_ROW if row in bad else row for row in range(40)]
        assert [label for batch in batches for label in batch.labels.tolist()] == [
            PADDING_ROW if row == PADDING_ROW else LABELS[row] for row in rows
        ]
        assert not any(batch.clips[batch.indices < 0].any() for batch in batches)
    assert set(loader.bad_clips) == {9, 11, 20}
    assert all("shard-00000" in reason for reason in loader.bad_clips.values())
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(sys.platform != "linux", reason="the version of a file is that of POSIX")
def test_a_shard_that_is_cut_meanwhile_is_an_error_and_no_crash(folder: Path) -> None:
    loader = ClipLoader(ClipReader(folder), batch_size=5, shuffle=True)
    for _ in range(2):  # read, then copied from memory
        for batch in loader:
            assert np.array_equal(batch.clips.numpy(), CLIPS[batch.indices.numpy()])
    os.truncate(folder / "shard-000003.tar", 600)
    with pytest.raises(FormatError, match=r"shard-000003\.tar does not match its checksum"):
        list(loader)


def test_a_shard_that_is_cut_at_every_moment_never_ends_the_process(folder: Path) -> None:
    """While another thread truncates and restores a shard, batches are correct, or an error names the shard."""
    path = folder / "shard-000002.tar"
    whole = path.read_bytes()
    reader = ClipReader(folder)
    list(ClipLoader(reader, batch_size=5, shuffle=True))
    done = threading.Event()

    def cut() -> None:
        while not done.is_set():
            os.truncate(path, 512)
            path.write_bytes(whole)

    other = threading.Thread(target=cut)
    other.start()
    errors = []
    for epoch in range(200):
        loader = ClipLoader(reader, batch_size=5, shuffle=True, seed=epoch)
        try:
            for batch in loader:
                assert np.array_equal(batch.clips.numpy(), CLIPS[batch.indices.numpy()])
        except FormatError as error:
            errors.append(str(error))
    done.set()
    other.join()
    assert errors
    assert all("shard-000002.tar" in error for error in errors)


@pytest.mark.parametrize("memory", [10**9, 0])
def test_a_shard_that_is_overwritten_gives_no_other_pixels(
    folder: Path, monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    monkeypatch.setattr(reader_module, "_memory_bytes", lambda: memory)
    loader = ClipLoader(ClipReader(folder), batch_size=5, shuffle=True)
    list(loader)
    path = folder / "shard-000003.tar"
    before = path.stat()
    with open(path, "r+b") as file:
        file.write(bytes(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as `rsync --inplace --times` does
    with pytest.raises(FormatError, match=r"shard-000003\.tar does not match its checksum"):
        list(loader)


def test_a_set_larger_than_its_share_of_memory_is_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "_KEEPING", weakref.WeakSet())
    total = sum(path.stat().st_size for path in folder.glob("*.tar"))
    for memory, keeps in ((3 * total, True), (3 * total - 1, False)):
        monkeypatch.setattr(reader_module, "_memory_bytes", lambda memory=memory: memory)
        reader = ClipReader(folder)
        loader = ClipLoader(reader, batch_size=5, shuffle=True)
        for batch in itertools.chain(loader, loader):
            assert np.array_equal(batch.clips.numpy(), CLIPS[batch.indices.numpy()])
        assert reader.keeps_clips == keeps
        del reader, loader, batch


def test_more_stages_make_a_loader_with_epochs_of_its_own(folder: Path) -> None:
    loader = ClipLoader(ClipReader(folder), batch_size=4, shuffle=True)
    rows = loader.compose(wds.map(lambda batch: batch.indices.tolist()))
    rows.set_epoch(3)
    loader.set_epoch(3)
    assert list(rows) == [batch.indices.tolist() for batch in loader]
    loader.set_epoch(0)
    iterator = iter(rows)
    next(iterator)
    assert (rows.state_dict()["epoch"], rows.state_dict()["position"]) == (4, 4)
    assert (loader.epoch, loader.state_dict()["position"]) == (0, 0)


def test_checksums_first_always_never(folder: Path) -> None:
    readers = {name: ClipReader(folder, checksums=name) for name in ("first", "always", "never")}
    for reader in readers.values():
        reader[3]
    _flip_byte(folder / "shard-000000.tar", int(readers["first"].index.clips["offset"][3]) + 200)
    readers["never"][3]
    for name in ("first", "always"):  # "first" verifies again what has changed
        with pytest.raises(FormatError, match="checksum"):
            readers[name][3]
    with pytest.raises(UserError, match="expected one of first, always, never"):
        ClipReader(folder, checksums="sometimes")


def test_bad_clips_are_replaced_within_a_budget(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    offsets = ClipReader(folder).index.clips["offset"]
    for row in (9, 11):
        _flip_byte(folder / "shard-000001.tar", int(offsets[row]) + 200)
    loader = ClipLoader(ClipReader(folder), batch_size=5, shuffle=True, max_bad_clips=2)
    batches = list(loader)
    assert len(batches) == 8
    assert set(loader.bad_clips) == {9, 11}
    rows = [row for batch in batches for row in batch.indices.tolist()]
    assert len(rows) == NUM_CLIPS
    assert set(range(NUM_CLIPS)) - set(rows) == {9, 11}
    for batch in batches:
        assert np.array_equal(batch.clips.numpy(), CLIPS[batch.indices.numpy()])
    assert [LABELS[row] for row in rows].count(1) == LABELS.count(1)
    assert capsys.readouterr().err.count("WARNING: bad clip") == 2

    evaluation = ClipLoader(ClipReader(folder), batch_size=5, shuffle=False, max_bad_clips=2)
    assert [row for batch in evaluation for row in batch.indices.tolist() if row >= 0] == [
        row for row in range(NUM_CLIPS) if row not in (9, 11)
    ]
    with pytest.raises(FormatError, match="2 bad clips, more than the 1 that `max_bad_clips` allows"):
        list(ClipLoader(ClipReader(folder), batch_size=5, shuffle=True, max_bad_clips=1))


def test_of_a_thousand_flipped_bits_none_reaches_a_batch(tmp_path: Path) -> None:
    clips, labels = CLIPS[:12, :2, :6, :6], LABELS[:12]
    folder = write_shards(tmp_path / "shards", clips, labels, clips_per_shard=12)
    shard, index = folder / "shard-000000.tar", folder / "index.npz"
    where = [(int(clip["offset"]), int(clip["offset"]) + int(clip["size"])) for clip in ClipReader(folder).index.clips]
    generator = np.random.default_rng(0)
    refused = 0
    for flip in range(1000):
        path = index if flip % 4 == 0 else shard
        sound = path.read_bytes()
        data = bytearray(sound)
        byte = int(generator.integers(len(data)))
        data[byte] ^= 1 << int(generator.integers(8))
        path.write_bytes(data)
        matters = path == index or any(begin <= byte < end for begin, end in where)
        try:
            for batch in ClipLoader(ClipReader(folder), batch_size=4, shuffle=True, num_threads=0):
                assert np.array_equal(batch.clips.numpy(), clips[batch.indices.numpy()])
                assert batch.labels.tolist() == [labels[row] for row in batch.indices]
            assert not matters, f"bit flip in byte {byte} of {path.name} went unnoticed"
        except FormatError:
            assert matters, f"byte {byte} of {path.name} belongs to no clip"
            refused += 1
        path.write_bytes(sound)
    assert 300 < refused < 900  # the others hit headers, records and gaps, which no batch holds


def _flip_byte(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        value = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([value ^ 0x10]))


def test_processes_of_a_dataloader_share_the_batches(folder: Path) -> None:
    loader = ClipLoader(ClipReader(folder), batch_size=5, shuffle=True)
    expected = [batch.indices.tolist() for batch in ClipLoader(ClipReader(folder), batch_size=5, shuffle=True)]
    batches = torch.utils.data.DataLoader(loader, batch_size=None, num_workers=2)
    assert [batch.indices.tolist() for batch in batches] == expected


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_shards_are_closed(folder: Path) -> None:
    reader = ClipReader(folder)
    list(ClipLoader(reader, batch_size=5, shuffle=False, num_threads=2))

    def is_open() -> bool:
        return any(str(folder) in os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.exists())

    assert is_open()
    reader.close()
    assert not is_open()
    assert np.array_equal(reader[3], CLIPS[3])
    del reader
    gc.collect()  # the loader's pipeline refers to the loader
    assert not is_open()
