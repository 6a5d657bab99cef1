from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest

from fake_shards import encoded
from vidshard.shards import layout
from vidshard.shards.layout import ClipShape, SampleRecord
from vidshard.util.errors import FormatError


def record(path: str = "Abuse/Abuse001_x264.mp4", clip_index: int = 0, **changes: object) -> SampleRecord:
    fields: dict[str, object] = {
        "path": path,
        "class_name": "Abuse",
        "label": 1,
        "split": "Train",
        "clip_index": clip_index,
        "frame_indices": (0, 10, 20, 30),
        "timestamps_seconds": (0.0, 0.4, 0.8, 1.2),
        "frame_gap_seconds": 0.4,
        "fps": 25.0,
        "num_frames": 31,
        "decoder": "decord",
        "repeated_frames": 0,
    }
    return SampleRecord(**{**fields, **changes})  # type: ignore[arg-type]


def clip(seed: int = 0) -> layout.Clip:
    return np.random.default_rng(seed).integers(0, 256, (4, 6, 5, 3), np.uint8)


def shard_of(*records: SampleRecord) -> bytes:
    return b"".join(encoded(r, clip(i)) for i, r in enumerate(records)) + bytes(1024)


NASTY_PATHS = [
    "a.mp4",
    "a.MP4",
    "a.mov",
    "a",
    "a..mp4",
    ".a.mp4",
    "a b.mp4",
    "a_b.mp4",
    "a__b.mp4",
    "a/b.mp4",
    "a-b.mp4",
    "_a.mp4",
    "a_.mp4",
    "a/_b.mp4",
    "a_/b.mp4",
    "a.v1.mp4",
    "a.v2.mp4",
    "é.mp4",
    "e\u0301.mp4",
    "防犯カメラ.mp4",
    "'q\"u$o`te.mp4",
    "x" * 60 + ".mp4",
    "x" * 61 + ".mp4",
    "x" * 200 + ".mp4",
    "a\n.mp4",
    "\udcff.mp4",
    "..mp4",
    " .mp4",
    "a/b/c.mp4",
    "a__b/c.mp4",
]


def test_keys_are_unique_and_plain_for_any_names() -> None:
    keys = [layout.sample_key(path, 9_999_999) for path in NASTY_PATHS]
    assert len(set(keys)) == len(NASTY_PATHS)
    assert all(layout.KEY_PATTERN.fullmatch(key) for key in keys), keys


def test_a_sample_comes_back_as_it_went_in() -> None:
    records = [record(clip_index=i) for i in range(3)]
    data = shard_of(*records)
    got = list(layout.read_shard(io.BytesIO(data)))
    assert [r for _, _, r, _ in got] == records
    for i, (key, payload, _, offset) in enumerate(got):
        shape = ClipShape(num_frames=4, height=6, width=5)
        np.testing.assert_array_equal(layout.decode_clip(payload, shape, where=key), clip(i))
        assert data[offset : offset + len(payload)] == payload
        assert layout.read_record(io.BytesIO(data), offset, len(payload)) == records[i]


def test_plain_tarfile_reads_a_shard() -> None:
    with tarfile.open(fileobj=io.BytesIO(shard_of(record()))) as tar:
        assert tar.getnames() == ["Abuse__Abuse001_x264-000000.npy", "Abuse__Abuse001_x264-000000.json"]
        member = tar.getmembers()[0]
        assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)


def test_a_shard_cut_anywhere_is_refused() -> None:
    data = shard_of(record(), record(clip_index=1))
    for length in range(0, len(data) - 1024 + 512, 100):
        with pytest.raises(FormatError):
            list(layout.read_shard(io.BytesIO(data[:length])))


def test_a_clip_of_another_shape_is_named() -> None:
    payload = layout.npy_header(ClipShape(num_frames=4, height=6, width=5)) + clip().tobytes()
    shape = ClipShape(num_frames=16, height=112, width=112)
    with pytest.raises(
        FormatError, match=r"clip 'k' in shard-000000.tar is not a uint8 clip of shape \(16, 112, 112, 3\)"
    ):
        layout.decode_clip(payload, shape, where="clip 'k' in shard-000000.tar")


def test_a_record_with_an_unknown_field_is_refused() -> None:
    with pytest.raises(FormatError, match="not in a known format version"):
        SampleRecord.from_json(record().to_json().replace(b'"fps"', b'"fpz"'))


def test_flags_come_back_and_unknown_bits_are_refused() -> None:
    assert layout.bits_to_flags(layout.flags_to_bits(layout.FLAGS)) == layout.FLAGS
    with pytest.raises(FormatError, match="contain an unknown bit"):
        layout.bits_to_flags(1 << len(layout.FLAGS))


@pytest.mark.parametrize("text", [b"[]", b'"text"', b"3", b"null", b"{}"])
def test_json_that_is_not_a_record_is_refused(text: bytes) -> None:
    with pytest.raises(FormatError, match="not in a known format version"):
        SampleRecord.from_json(text)
