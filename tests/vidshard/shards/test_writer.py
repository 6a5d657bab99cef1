"""Fragments joined into a shard: the same bytes as when written at once, and nothing half-written under a final
name."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest

from fake_shards import encoded
from vidshard.shards import layout
from vidshard.shards.layout import SampleRecord
from vidshard.shards.writer import Cancelled, FragmentWriter, join_fragments


def sample(clip_index: int, label: int = 1, flags: tuple[str, ...] = ()) -> tuple[SampleRecord, np.ndarray]:
    record = SampleRecord(
        path="Abuse/a.mp4", class_name="Abuse", label=label, split="Train", clip_index=clip_index,
        frame_indices=(0, 1), timestamps_seconds=(0.0, 0.1), frame_gap_seconds=0.1, fps=10.0, num_frames=2,
        decoder="decord", repeated_frames=0, flags=flags,
    )  # fmt: skip
    return record, np.random.default_rng(clip_index).integers(0, 256, (2, 8, 8, 3), np.uint8)


def write_fragment(path: Path, clips: range, **fields: object) -> FragmentWriter:
    with FragmentWriter(path) as writer:
        for clip in clips:
            writer.append(*sample(clip, **fields))  # type: ignore[arg-type]
    return writer


def test_joined_parts_are_the_samples_in_order(tmp_path: Path) -> None:
    write_fragment(tmp_path / "a", range(2))
    write_fragment(tmp_path / "b", range(2, 5))
    size, sha256 = join_fragments(tmp_path / "shard-000000.tar", [tmp_path / "a", tmp_path / "b"])
    data = (tmp_path / "shard-000000.tar").read_bytes()
    assert data == b"".join(encoded(*sample(i)) for i in range(5)) + layout.end_of_shard()
    assert (size, sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_rows_point_at_the_clips(tmp_path: Path) -> None:
    rows = write_fragment(tmp_path / "a", range(3), label=-1, flags=("repeated",)).rows
    data = (tmp_path / "a").read_bytes()
    found = list(layout.read_shard(io.BytesIO(data + layout.end_of_shard())))
    assert rows["offset"].tolist() == [offset for _, _, _, offset in found]
    assert rows["size"].tolist() == [len(payload) for _, payload, _, _ in found]
    assert rows["clip"].tolist() == [0, 1, 2]
    assert rows["label"].tolist() == [-1, -1, -1]
    assert rows["flags"].tolist() == [1, 1, 1]
    assert rows["frame_gap_seconds"].tolist() == pytest.approx([0.1] * 3)


def test_no_part_gives_an_empty_shard(tmp_path: Path) -> None:
    assert join_fragments(tmp_path / "shard-000000.tar", [])[0] == 1024
    assert (tmp_path / "shard-000000.tar").read_bytes() == bytes(1024)


def test_a_join_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    write_fragment(tmp_path / "a", range(2))
    with pytest.raises(Cancelled):
        join_fragments(tmp_path / "shard-000000.tar", [tmp_path / "a"], cancelled=lambda: True)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
