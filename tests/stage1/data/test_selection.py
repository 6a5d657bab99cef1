"""Selection at load time: rows, labels and shares, from the index alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fake_shards import random_clips, write_shards
from stage1.data.loader import BagLoader, ClipLoader, ClipReader, JoinedReader
from stage1.data.selection import balance_classes, balance_labels, map_labels, mixture, select
from vidshard.util.errors import UserError

CLASSES = ["NormalVideos"] * 12 + ["Fighting"] * 6 + ["Arson"] * 2  # videos of two clips


@pytest.fixture
def reader(tmp_path: Path) -> ClipReader:
    labels = [0 if name == "NormalVideos" else 1 for name in CLASSES]
    clips = random_clips(len(CLASSES), shape=(2, 4, 4))
    folder = write_shards(tmp_path / "a", clips, labels, class_names=CLASSES, split="Train", clips_per_video=2)
    return ClipReader(folder)


def test_rows_by_class_split_video_and_fraction(reader: ClipReader) -> None:
    assert select(reader).tolist() == list(range(20))
    assert select(reader, classes=["Arson", "Fighting"]).tolist() == list(range(12, 20))
    assert select(reader, splits=["Train"], videos=["Fighting/video-007.mp4"]).tolist() == [14, 15]
    half, most = select(reader, fraction=0.5), select(reader, fraction=0.8)
    assert len(half) == 10
    assert set(half) <= set(most)
    assert select(reader, with_flags=["damaged"]).tolist() == []
    assert len(select(reader, without_flags=["damaged", "repeated"])) == 20


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"classes": ["Figting"]}, "class is 'Figting', which is not in the shards; expected one of: Arson, Fighting"),
        ({"videos": ["x.mp4"]}, "video is 'x.mp4'"),
        ({"with_flags": ["torn"]}, "flag is 'torn'"),
        ({"fraction": 0}, "fraction is 0"),
    ],
)
def test_names_that_are_not_there(reader: ClipReader, options: dict[str, object], text: str) -> None:
    with pytest.raises(UserError, match=text):
        select(reader, **options)  # type: ignore[arg-type]


def test_other_labels(reader: ClipReader) -> None:
    labels = map_labels(reader, {"Fighting": 1, "Arson": 0})
    assert labels.tolist() == [-1] * 12 + [1] * 6 + [0] * 2
    loader = ClipLoader(reader, labels=labels, batch_size=20, shuffle=False)
    assert next(iter(loader)).labels.tolist() == labels.tolist()


def test_balance(reader: ClipReader) -> None:
    def drawn(**options: object) -> list[int]:
        loader = ClipLoader(reader, batch_size=4, shuffle=True, **options)  # type: ignore[arg-type]
        return [row for batch in loader for row in batch.indices.tolist()]

    labels = reader.labels[drawn(balance=balance_labels(reader))]
    assert (labels == 1).sum() == 10
    rows = drawn(balance=balance_classes(reader, {"Fighting": 1, "Arson": 3}))
    assert [CLASSES[row] for row in rows].count("Arson") == 15
    assert len(set(rows) & {18, 19}) == 2


def test_a_mixture_of_sets(tmp_path: Path, reader: ClipReader) -> None:
    other = ClipReader(write_shards(tmp_path / "b", random_clips(5, shape=(2, 4, 4), seed=1), [1] * 5, prefix="b-"))
    joined = JoinedReader([reader, other])
    assert len(joined) == 25
    assert len(np.unique(joined.videos)) == 10 + 5
    loader = ClipLoader(joined, batch_size=10, shuffle=True, balance=mixture(joined, [1, 4]))
    rows = []
    for batch in loader:
        for clip, row in zip(batch.clips.numpy(), batch.indices.tolist(), strict=True):
            assert np.array_equal(clip, reader[row] if row < 20 else other[row - 20])
            rows.append(row)
    assert sum(row >= 20 for row in rows) == 20
    shape = ClipReader(write_shards(tmp_path / "c", random_clips(1, shape=(2, 6, 6)), [1]))
    with pytest.raises(UserError, match=r"2×6×6, expected 2×4×4"):
        JoinedReader([reader, shape])


def test_bags_hold_all_clips_of_a_video(reader: ClipReader) -> None:
    seen = []
    for rank in range(3):
        loader = BagLoader(reader, shuffle=True, rank=rank, world_size=3)
        batches = list(loader)
        assert len(batches) == len(loader) == 4
        seen += [batch.indices.tolist() for batch in batches if batch.indices[0] >= 0]
    assert sorted(seen) == [[2 * video, 2 * video + 1] for video in range(10)]
    assert {len(batch.labels) for batch in BagLoader(reader, shuffle=False, max_clips=1)} == {1}


def test_long_bags_are_cut_to_other_clips_each_epoch(reader: ClipReader) -> None:
    videos = reader.videos.copy()
    videos[:] = np.arange(len(videos)) // 10  # two videos of 10 clips
    joined = JoinedReader([reader])
    joined.videos = videos
    seen = []
    for loader in (BagLoader(joined, max_clips=5, shuffle=True), BagLoader(joined, max_clips=5, shuffle=True)):
        seen.append([[batch.indices.tolist() for batch in loader] for _ in range(8)])
    assert seen[0] == seen[1]  # of (seed, epoch, video)
    for bag in (bag for epoch in seen[0] for bag in epoch):
        assert [row % 10 // 2 for row in bag] == [0, 1, 2, 3, 4]  # one of each stretch
    assert {row for epoch in seen[0] for bag in epoch for row in bag} == set(range(20))
    even = [batch.indices.tolist() for batch in BagLoader(joined, max_clips=5, shuffle=False)]
    assert even == [[0, 2, 4, 7, 9], [10, 12, 14, 17, 19]]
