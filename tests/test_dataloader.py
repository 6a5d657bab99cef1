"""The loader: every clip exactly once, the same steps on every rank, damage never silent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds

from fake_shards import random_clips, write_shards
from stage1 import reader as reader_module
from stage1.dataloader import Batch, ClipLoader, ClipReader
from stage1.sample_plan import epoch_order
from vidshard.errors import FormatError, UserError

NUM_CLIPS = 37
CLIPS = random_clips(NUM_CLIPS)
LABELS = [i % 2 for i in range(NUM_CLIPS)]


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


def test_a_million_clips_are_ordered_within_a_second() -> None:
    order = epoch_order(1_000_000, seed=0, epoch=0)
    assert order.nbytes <= 16 * len(order)
    assert np.array_equal(np.sort(order), np.arange(len(order)))


def test_some_rows_only(folder: Path) -> None:
    loader = ClipLoader(ClipReader(folder), batch_size=4, shuffle=True, rows=[1, 5, 30, 36, 2])
    assert sorted(row for batch in loader for row in batch.indices.tolist()) == [1, 2, 5, 30, 36]
    assert len(loader) == 2


def test_batches_stay_valid_while_they_are_held_and_buffers_are_used_again(folder: Path) -> None:
    loader = ClipLoader(ClipReader(folder), batch_size=4, shuffle=False)
    held = list(loader)
    assert torch.equal(torch.cat([batch.clips for batch in held]), torch.from_numpy(CLIPS))
    addresses = {batch.clips.data_ptr() for batch in held}
    del held
    for batch in loader:
        addresses.add(batch.clips.data_ptr())
    assert len(addresses) <= len(loader) + 4


def test_it_is_a_webdataset_pipeline(folder: Path) -> None:
    loader = ClipLoader(ClipReader(folder), batch_size=4, shuffle=False)
    assert isinstance(loader, wds.DataPipeline)
    sizes = list(loader.compose(wds.map(lambda batch: len(batch.labels))))
    assert sizes == [4] * 9 + [1]


@pytest.mark.parametrize("at_offset", [True, False])
def test_a_changed_pixel_names_shard_key_and_offset(
    folder: Path, monkeypatch: pytest.MonkeyPatch, at_offset: bool
) -> None:
    monkeypatch.setattr(reader_module, "_READS_AT_OFFSET", at_offset and reader_module._READS_AT_OFFSET)
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


def test_a_missing_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vidshard build"):
        ClipReader(tmp_path / "none")


def test_stopping_early_leaves_no_thread_behind(folder: Path) -> None:
    import threading

    batches = iter(ClipLoader(ClipReader(folder), batch_size=2, shuffle=False))
    assert isinstance(next(batches), Batch)
    batches.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("clip-reader")]


def _flip_byte(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        value = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([value ^ 0x10]))
