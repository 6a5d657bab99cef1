"""`vidshard verify` reports every kind of fault of a shard folder, with its place."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from fake_shards import encoded, random_clips, write_shards
from tiny_videos import make_tiny_videos
from vidshard.building import finish
from vidshard.cli.main import main
from vidshard.inspection.verify import Fault, verify
from vidshard.shards import layout, manifest
from vidshard.shards.manifest import Failure


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return make_set(tmp_path / "Train")


def make_set(folder: Path, *, seed: int = 0, num_clips: int = 10) -> Path:
    """Three shards of four, four and two clips."""
    clips = random_clips(num_clips, shape=(2, 8, 8), seed=seed)
    labels = sorted(i % 2 for i in range(num_clips))[::-1]  # Fighting, then NormalVideos: in the order of the paths
    write_shards(folder, clips, labels, split="Train", clips_per_shard=4)
    finish.write_failures(folder / layout.FAILURES_NAME, ())
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["verify", *map(str, arguments)])


def named(folder: Path, *, deep: bool = False) -> set[tuple[str, str | None]]:
    return {(fault.file, fault.key) for fault in verify(folder, deep=deep).faults}


def replace_manifest(folder: Path, **changes: object) -> None:
    """Write a valid manifest with different values."""
    about = dataclasses.replace(manifest.read_manifest(folder), **changes)  # type: ignore[arg-type]
    (folder / layout.MANIFEST_NAME).write_bytes(about.to_bytes())


def replace_shard(folder: Path, number: int, data: bytes) -> None:
    """Different content, with a manifest that lists its checksum: only the deep check finds it."""
    shards = list(manifest.read_manifest(folder).shards)
    sha256 = hashlib.sha256(data).hexdigest()
    shards[number] = dataclasses.replace(shards[number], bytes=len(data), sha256=sha256)
    (folder / shards[number].name).write_bytes(data)
    replace_manifest(folder, shards=tuple(shards))


# ----- a set that is right --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deep", [False, True])
def test_a_sound_set_has_no_fault(shards: Path, deep: bool) -> None:
    report = verify(shards, deep=deep)
    assert report.faults == ()
    assert (report.num_shards, report.num_clips) == (3, 10)


def test_the_command_reports_it(shards: Path) -> None:
    result = run(shards)
    assert result.exit_code == 0, result.output
    assert "10 clips in 3 shards" in result.stdout
    assert "every sample" in run(shards, "--deep").stdout


def test_a_folder_that_holds_no_set_is_one_clear_line(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.exit_code == 1
    assert "has no manifest.json" in result.stderr


def test_a_set_that_was_built_and_extended_has_no_fault(tmp_path: Path) -> None:
    source = make_tiny_videos(tmp_path / "Train", {"Fighting/f.mp4": 20, "NormalVideos/n.mp4": 20})
    (source / "Fighting" / "notes, mine.txt").write_text("a name that CSV must quote")
    build = [
        *("build", str(source), "--out", str(tmp_path / "set"), "--workers", "1"),
        *("--clips-per-video", "2", "--frame-size", "16"),
    ]
    assert CliRunner().invoke(main, build).exit_code == 0
    assert verify(tmp_path / "set", deep=True).faults == ()
    make_tiny_videos(source, {"Abuse/a.mp4": 20})
    assert CliRunner().invoke(main, [*build, "--extend"]).exit_code == 0
    report = verify(tmp_path / "set", deep=True)
    assert (report.num_clips, report.faults) == (6, ())


# ----- bit flips ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_each_of_1000_bit_flips_is_found_and_named(shards: Path) -> None:
    """Anywhere in shards, index and manifest, drawn by size; a flip in a sample names the sample."""
    generator = random.Random(0)
    may_change = (layout.FAILURES_NAME, layout.CARD_NAME)  # which say nothing that the others do not
    files = [path for path in sorted(shards.iterdir()) if path.name not in may_change]
    sizes = [path.stat().st_size for path in files]
    index = manifest.open_shards(shards).index
    ends = {name: whole_samples(shards, name) for name in {p.name for p in files} if name.endswith(".tar")}
    missed = []
    for _ in range(1000):
        path = generator.choices(files, sizes)[0]
        data = bytearray(path.read_bytes())
        bit = generator.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        original = path.read_bytes()
        path.write_bytes(data)
        faults = verify(shards, deep=True).faults
        key = next((key for stop, key in ends.get(path.name, ()) if bit // 8 < stop), None)
        if not any(fault.file == path.name and (key is None or fault.key == key) for fault in faults):
            missed.append((path.name, bit, key, faults))
        path.write_bytes(original)
    assert not missed, missed[:5]
    assert len(index) == 10
    assert verify(shards, deep=True).faults == ()


def whole_samples(folder: Path, name: str) -> list[tuple[int, str]]:
    """Where each sample of a shard ends, and its key."""
    with open(folder / name, "rb") as file:
        samples = [(offset, key) for key, _, _, offset in layout.read_shard(file)]
    end = (folder / name).stat().st_size - len(layout.end_of_shard())
    stops = [offset - layout.TAR_BLOCK for offset, _ in samples[1:]] + [end]
    return [(stop, key) for stop, (_, key) in zip(stops, samples, strict=True)]


def test_all_faults_are_reported_not_only_the_first(shards: Path) -> None:
    index = manifest.open_shards(shards).index
    for row in (1, 2, 9):
        path = shards / layout.shard_name(int(index.clips["shard"][row]))
        data = bytearray(path.read_bytes())
        data[int(index.clips["offset"][row]) + 200] ^= 1
        path.write_bytes(data)
    (shards / "index-000002.npz").write_text("mine")
    expected = {("shard-000000.tar", index.key(1)), ("shard-000000.tar", index.key(2)), ("index-000002.npz", None)}
    assert expected | {("shard-000002.tar", index.key(9))} <= named(shards)
    result = run(shards)
    assert result.exit_code == 1
    for text in (index.key(1), index.key(2), index.key(9), "crc32", "index-000002.npz", "shard-000002.tar"):
        assert text in result.stdout


def test_json_lists_every_fault(shards: Path) -> None:
    (shards / "shard-000001.tar").unlink()
    result = run(shards, "--json")
    assert result.exit_code == 1
    fault = {"file": "shard-000001.tar", "key": None, "message": "is missing; 4 samples are lost"}
    assert json.loads(result.stdout)["faults"] == [fault]


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "[" * 100_000])
def test_an_invalid_manifest_is_a_fault(shards: Path, text: str) -> None:
    (shards / "manifest.json").write_text(text)
    (fault,) = verify(shards).faults
    assert fault.file == "manifest.json"


@pytest.mark.parametrize("codec", ["zstd", "jpeg"])
def test_flips_in_compressed_clips(tmp_path: Path, codec: str) -> None:
    source = make_tiny_videos(tmp_path / "Train", {"Fighting/f.mp4": 20, "NormalVideos/n.mp4": 20})
    folder = tmp_path / "set"
    build = ["build", str(source), "--out", str(folder), "--workers", "1", "--frame-size", "16", "--codec", codec]
    assert CliRunner().invoke(main, build).exit_code == 0
    assert verify(folder, deep=True).faults == ()
    path = folder / "shard-000000.tar"
    original = path.read_bytes()
    samples = whole_samples(folder, path.name)
    generator = random.Random(0)
    for _ in range(50):
        data = bytearray(original)
        bit = generator.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        key = next((key for stop, key in samples if bit // 8 < stop), None)
        faults = verify(folder).faults
        assert {fault.file for fault in faults} == {path.name}
        assert {key} <= {None, *(fault.key for fault in faults)}


# ----- files that are missing, cut, swapped, foreign ------------------------------------------------------------------


@pytest.mark.parametrize("deep", [False, True])
def test_a_missing_file_is_named(shards: Path, deep: bool) -> None:
    for name in ("shard-000001.tar", "index.npz", "failures.csv"):
        (shards / name).rename(shards.parent / name)
        assert name in {file for file, _ in named(shards, deep=deep)}
        (shards.parent / name).rename(shards / name)


def test_a_cut_shard_names_the_first_sample_that_is_lost(shards: Path) -> None:
    shutil.copytree(shards, shards.parent / "copy")
    path = shards / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    faults = verify(shards).faults
    assert "is truncated" in faults[0].message
    assert faults[-1].key == manifest.open_shards(shards.parent / "copy").index.key(6)
    assert "beyond the end of the file" in faults[-1].message


def test_swapped_shards_are_distinguished_from_damage(shards: Path) -> None:
    first, second = shards / "shard-000000.tar", shards / "shard-000001.tar"
    first_bytes, second_bytes = first.read_bytes(), second.read_bytes()
    first.write_bytes(second_bytes)
    second.write_bytes(first_bytes)
    assert verify(shards).faults == (
        Fault(file="shard-000000.tar", key=None, message="contains the samples of shard-000001.tar, byte for byte"),
        Fault(file="shard-000001.tar", key=None, message="contains the samples of shard-000000.tar, byte for byte"),
    )


def test_a_duplicated_shard_is_named(shards: Path) -> None:
    shutil.copy(shards / "shard-000000.tar", shards / "shard-000003.tar")
    (fault,) = verify(shards).faults
    assert fault.file == "shard-000003.tar"
    assert "a copy of shard-000000.tar" in fault.message


def test_a_foreign_shard_is_named(shards: Path, tmp_path: Path) -> None:
    other = make_set(tmp_path / "other", seed=1)
    shutil.copy(other / "shard-000001.tar", shards / "shard-000001.tar")  # the same keys and sizes, other pixels
    shutil.copy(other / "shard-000000.tar", shards / "shard-000007.tar")
    index = manifest.open_shards(shards).index
    expected = {("shard-000001.tar", index.key(row)) for row in range(4, 8)} | {("shard-000007.tar", None)}
    assert expected <= named(shards)


@pytest.mark.parametrize("name", ["NOTES.md", ".DS_Store", "shard-000000.tar.idx", "Thumbs.db"])
def test_what_others_add_is_listed_and_no_fault(shards: Path, name: str) -> None:
    (shards / name).write_bytes(b"")
    report = verify(shards)
    assert (report.faults, report.other_files) == ((), (name,))
    result = run(shards)
    assert (result.exit_code, f"files that do not belong to the set: {name}" in result.output) == (0, True)
    result = run(shards, "--strict")
    assert result.exit_code == 1
    assert f"  {name}: does not belong to this set" in result.output
    assert "build it again" not in result.output


@pytest.mark.parametrize("name", ["shard-000000.tar.partial", ".work", "index-000002.npz"])
def test_what_does_not_belong_there_is_named(shards: Path, name: str) -> None:
    (shards / name).write_bytes(b"")
    assert named(shards) == {(name, None)}


def test_a_folder_in_the_place_of_a_shard(shards: Path) -> None:
    (shards / "shard-000000.tar").unlink()
    (shards / "shard-000000.tar").mkdir()
    assert "not a regular file" in verify(shards).faults[0].message


def test_failures_csv_must_say_what_the_manifest_says(shards: Path) -> None:
    failure = Failure(path="Abuse/a.mp4", outcome="failed", reason="damaged", message='cut, "early"')
    replace_manifest(shards, videos_found=11, failures=(failure,))
    assert "row 2 is missing" in verify(shards).faults[0].message
    finish.write_failures(shards / "failures.csv", (failure,))
    assert verify(shards).faults == ()
    finish.write_failures(shards / "failures.csv", (failure, failure))
    assert "row 3" in verify(shards).faults[0].message


# ----- what checksums cannot tell -------------------------------------------------------------------------------------


def test_a_sample_that_never_was_right_needs_the_deep_check(shards: Path) -> None:
    """A shard with another sample in place of one of its own, and a manifest that vouches for it."""
    with open(shards / "shard-000001.tar", "rb") as file:
        samples = list(layout.read_shard(file))
    shape = manifest.read_manifest(shards).clip_shape
    clips = [layout.decode_clip(payload, shape, where="") for _, payload, _, _ in samples]
    records = [record for _, _, record, _ in samples]
    clips[2] = 255 - clips[2]
    data = b"".join(encoded(r, c) for r, c in zip(records, clips, strict=True))
    replace_shard(shards, 1, data + layout.end_of_shard())
    assert verify(shards).faults == ()
    assert named(shards, deep=True) == {("shard-000001.tar", samples[2][0])}


def test_a_record_that_contradicts_the_index(shards: Path) -> None:
    with open(shards / "shard-000002.tar", "rb") as file:
        samples = list(layout.read_shard(file))
    shape = manifest.read_manifest(shards).clip_shape
    clips = [layout.decode_clip(payload, shape, where="") for _, payload, _, _ in samples]
    records = [record for _, _, record, _ in samples]
    records[1] = dataclasses.replace(records[1], label=1, num_frames=3, frame_indices=(1, 0))
    data = b"".join(encoded(r, c) for r, c in zip(records, clips, strict=True))
    replace_shard(shards, 2, data + layout.end_of_shard())
    messages = [fault.message for fault in verify(shards, deep=True).faults if fault.key == samples[1][0]]
    for text in ("label 1, the index 0", "num_frames 3, the index 2", "frames or times that are not ascending"):
        assert any(text in message for message in messages), messages


def test_an_index_that_contradicts_the_manifest(shards: Path) -> None:
    opened = manifest.open_shards(shards)
    rows = opened.index.clips.copy()
    rows[[3, 4]] = rows[[4, 3]]
    rows["label"][0] = -1
    data = manifest.Index(
        clips=rows,
        videos=opened.index.videos,
        paths=opened.index.paths,
        classes=opened.index.classes,
        splits=opened.index.splits,
        recordings=opened.index.recordings,
        decoders=opened.index.decoders,
    ).to_bytes()
    (shards / "index.npz").write_bytes(data)
    replace_manifest(shards, index_bytes=len(data), index_sha256=hashlib.sha256(data).hexdigest())
    messages = [fault.message for fault in verify(shards).faults]
    assert "is out of order" in messages
    assert any("counts clips by class and label" in message for message in messages)


def test_without_an_index_the_samples_are_still_read(shards: Path) -> None:
    (shards / "index.npz").write_bytes(b"gone")
    path = shards / "shard-000000.tar"
    data = bytearray(path.read_bytes())
    data[0] ^= 0xFF
    path.write_bytes(data)
    faults = verify(shards).faults
    assert [fault.file for fault in faults] == ["index.npz", "shard-000000.tar", "shard-000000.tar"]
    assert "at its first sample" in faults[-1].message


def test_random_bytes_never_crash_it(shards: Path) -> None:
    generator = np.random.default_rng(0)
    path = shards / "shard-000000.tar"
    original = path.read_bytes()
    for _ in range(50):
        data = np.frombuffer(original, np.uint8).copy()
        places = generator.integers(0, len(data), 40)
        data[places] = generator.integers(0, 256, 40)
        path.write_bytes(data.tobytes()[: int(generator.integers(1, len(data)))])
        assert verify(shards, deep=True).faults
