from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidshard.shards import layout, manifest
from vidshard.shards.layout import ClipShape
from vidshard.shards.manifest import ClassCount, Failure, Index, Manifest, Shard
from vidshard.util.errors import FormatError, UserError


def small_index() -> Index:
    clips = np.zeros(3, manifest.CLIP_ROW)
    clips["clip"] = range(3)
    clips["offset"], clips["size"] = [0, 1, 2], 1
    clips["label"] = [0, 1, -1]
    videos = np.zeros(1, manifest.VIDEO_ROW)
    videos["source_group"] = -1
    return Index(
        clips=clips,
        videos=videos,
        paths=["Abuse/a \udcff é.mp4"],
        classes=["Abuse"],
        splits=["Train"],
        recordings=[],
        decoders=["decord"],
    )


def small_manifest(**changes: object) -> Manifest:
    data = small_index().to_bytes()
    fields: dict[str, object] = {
        "split": "Train",
        "clip_shape": ClipShape(num_frames=16, height=112, width=112),
        "codec": "raw",
        "settings": {"sampling": "uniform"},
        "packages": {"numpy": "2"},
        "classes": (ClassCount(name="Abuse", label=1, videos=1, clips=3),),
        "videos_found": 3,
        "videos_ok": 1,
        "failures": (
            Failure(path="x.mp4", outcome="failed", reason="damaged", message="…"),
            Failure(path="x.txt", outcome="skipped", reason="not_a_video_name", message="…"),
        ),
        "shards": (Shard(name="shard-000000.tar", bytes=4, samples=3, sha256=hashlib.sha256(b"data").hexdigest()),),
        "index_bytes": len(data),
        "index_sha256": hashlib.sha256(data).hexdigest(),
    }
    return Manifest(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shard-000000.tar").write_bytes(b"data")
    (tmp_path / small_manifest().index_name).write_bytes(small_index().to_bytes())
    manifest.write_manifest(tmp_path, small_manifest())
    return tmp_path


def test_a_set_comes_back_as_it_was_written(folder: Path) -> None:
    shards = manifest.open_shards(folder)
    assert shards.manifest == small_manifest()
    assert shards.manifest.videos == {"found": 3, "ok": 1, "failed": 1, "skipped": 1}
    assert shards.index.paths == ["Abuse/a \udcff é.mp4"]
    assert [shards.index.class_name(0), shards.index.split(0), shards.index.recording(0)] == ["Abuse", "Train", None]
    np.testing.assert_array_equal(shards.index.clips, small_index().clips)
    index = small_index()
    assert index.to_bytes() == small_index().to_bytes()
    expected, blocks = io.BytesIO(), io.BytesIO()
    names = ("paths", "classes", "splits", "recordings", "decoders")
    tables = {name: "".join(f"{text}\0" for text in getattr(index, name)) for name in names}
    tables = {{"recordings": "source_groups"}.get(name, name): table for name, table in tables.items()}
    arrays = {name: np.frombuffer(table.encode("utf-8", "surrogateescape"), np.uint8) for name, table in tables.items()}
    np.savez(expected, clips=index.clips, videos=index.videos, **arrays)
    index.write(blocks, [index.clips[:1], index.clips[1:]], len(index))
    assert index.to_bytes() == blocks.getvalue() == expected.getvalue()


def test_breaks_are_named_only_in_sets_that_have_some(tmp_path: Path) -> None:
    about = small_manifest(breaks={"Abuse/a \udcff é.mp4": 2})
    assert Manifest.from_bytes(about.to_bytes(), where="here") == about
    assert about.digest != small_manifest().digest
    assert b'"breaks"' not in small_manifest().to_bytes()


def test_every_single_bit_flip_in_manifest_or_index_is_refused(folder: Path) -> None:
    for name in (layout.MANIFEST_NAME, layout.INDEX_NAME):
        good = (folder / name).read_bytes()
        for position in range(0, 8 * len(good), 37):
            bad = bytearray(good)
            bad[position // 8] ^= 1 << position % 8
            (folder / name).write_bytes(bad)
            with pytest.raises(FormatError):
                manifest.open_shards(folder)
        (folder / name).write_bytes(good)
    manifest.open_shards(folder)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            (b'"format_version": 1', b'"format_version": 9'),
            "format version 9, but this vidshard reads only versions 1 and 2",
        ),
        ((b'"codec": "raw"', b'"codec": "av1"'), "codec 'av1', but this vidshard reads only raw, zstd, jpeg"),
        ((b'"format": "vidshard"', b'"format": "other"'), "format 'other', expected 'vidshard'"),
        ((b'"clips": 3', b'"clips": 4'), "was changed or damaged"),
    ],
)
def test_what_this_version_does_not_know_is_refused_by_name(
    folder: Path, change: tuple[bytes, bytes], text: str
) -> None:
    path = folder / layout.MANIFEST_NAME
    assert change[0] in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(*change, 1))
    with pytest.raises(FormatError, match=text):
        manifest.open_shards(folder)


@pytest.mark.parametrize(
    "change",
    [(b'"clips": 3', b'"clips": NaN'), (b'"clips": 3', b'"clips": 1e999'), (b'"num_frames": 16', b'"num_frames": 0')],
)
def test_numbers_that_cannot_be_are_refused(folder: Path, change: tuple[bytes, bytes]) -> None:
    data = (folder / layout.MANIFEST_NAME).read_bytes()
    assert change[0] in data
    fields = json.loads(data.replace(*change, 1))
    fields.pop("digest")
    changed = json.dumps(fields, indent=1, sort_keys=True) + "\n"
    fields["digest"] = hashlib.sha256(changed.encode()).hexdigest()  # by somebody who knows the format
    data = (json.dumps(fields, indent=1, sort_keys=True) + "\n").encode()
    with pytest.raises(FormatError, match=r"manifest\.json"):
        Manifest.from_bytes(data, where="manifest.json")


def signed(**changes: Any) -> bytes:
    """Return a manifest with `changes` and the right digest, as somebody who knows the format could make it."""
    fields = {**json.loads(small_manifest().to_bytes()), **changes}
    fields.pop("digest")
    text = json.dumps(fields, indent=1, sort_keys=True) + "\n"
    fields["digest"] = hashlib.sha256(text.encode()).hexdigest()
    return (json.dumps(fields, indent=1, sort_keys=True) + "\n").encode()


def shard(**changes: Any) -> list[dict[str, Any]]:
    return [{**json.loads(small_manifest().to_bytes())["shards"][0], **changes}]


@pytest.mark.parametrize(
    "changes",
    [
        {"shards": shard(name="../../.bashrc")},
        {"shards": shard(name="/etc/passwd")},
        {"shards": shard(name="shard-000001.tar")},
        {"shards": shard(name=["shard-000000.tar"])},
        {"shards": shard(bytes=-1)},
        {"shards": shard(bytes=1.5)},
        {"shards": shard(samples=True)},
        {"shards": shard(samples=4)},  # than the clips of the set
        {"shards": shard(sha256="../x")},
        {"index": {"name": "../index.npz", "bytes": 1, "sha256": "0" * 64}},
        {"failures": [{"path": "../a.mp4", "outcome": "failed", "reason": "damaged", "message": ""}] * 2},
        {"failures": [{"path": "/a.mp4", "outcome": "failed", "reason": "damaged", "message": ""}] * 2},
        {"failures": [{"path": "a.mp4", "outcome": "lost", "reason": "damaged", "message": ""}] * 2},
        {"videos": {"found": 4, "ok": 1, "failed": 1, "skipped": 1}},
        {"classes": [{"class": "Abuse", "label": 2, "videos": 1, "clips": 3}]},
        {"classes": [{"class": 7, "label": 1, "videos": 1, "clips": 3}]},
        {"settings": []},
        {"packages": {"numpy": 2}},
        {"generation": 2},
        {"clips": 4},
        {"surplus": 1},
        {"breaks": {"../a.mp4": 1}},
        {"clip_shape": {"num_frames": 16, "height": 112, "width": 1.5}},
    ],
)
def test_a_signed_manifest_with_a_value_that_cannot_be_right_is_refused(changes: dict[str, Any]) -> None:
    Manifest.from_bytes(signed(), where="manifest.json")
    with pytest.raises(FormatError, match=r"^manifest\.json "):
        Manifest.from_bytes(signed(**changes), where="manifest.json")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("shard", 1),
        ("offset", 2**64 - 1),
        ("offset", 4),
        ("size", 0),
        ("video", 1),
        ("label", 2),
        ("frame_gap_seconds", np.nan),
        ("frame_gap_seconds", -1),
    ],
)
def test_an_index_with_a_clip_that_cannot_be_right_is_refused(column: str, value: float) -> None:
    index = small_index()
    index.clips[column][1] = value
    with pytest.raises(FormatError, match=r"^row 1 of index\.npz is"):
        Index.from_bytes(index.to_bytes(), where="index.npz", about=small_manifest())


@pytest.mark.parametrize("path", ["../a.mp4", "/a.mp4", "Abuse/../../a.mp4"])
def test_an_index_whose_paths_lead_out_of_the_source_is_refused(path: str) -> None:
    index = dataclasses.replace(small_index(), paths=[path])
    with pytest.raises(FormatError, match="expected a path inside the source"):
        Index.from_bytes(index.to_bytes(), where="index.npz", about=small_manifest())


def test_an_index_that_unpacks_to_more_than_it_is_is_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("clips.npy", bytes(10_000_000))
    with pytest.raises(FormatError, match="is compressed, which vidshard never does"):
        Index.from_bytes(buffer.getvalue(), where="index.npz", about=small_manifest())


def test_an_index_with_an_unknown_flag_is_refused() -> None:
    index = small_index()
    index.clips["flags"] = [0, 1, 1 << len(layout.FLAGS)]
    with pytest.raises(FormatError, match=r"clip flags 0x9 contain an unknown bit, .*estimated_times"):
        Index.from_bytes(index.to_bytes(), where="index.npz", about=small_manifest())


def test_the_log_of_a_folder_without_a_name_has_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "set").mkdir()
    monkeypatch.chdir(tmp_path / "set")
    assert manifest.log_folder(Path(".")) == tmp_path / "set.log"
    assert manifest.log_folder(Path("..") / "set" / "..") == tmp_path.with_name(tmp_path.name + ".log")
    with pytest.raises(UserError, match="has no name"):
        manifest.log_folder(Path(tmp_path.anchor))


def test_missing_and_unfinished_folders_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no shard folder .*build it first with `vidshard build SOURCE --out"):
        manifest.open_shards(tmp_path / "none")
    with pytest.raises(UserError, match=r"has no manifest.json; is it a shard folder\?"):
        manifest.open_shards(tmp_path)
    (tmp_path / "shard-000000.tar").write_bytes(b"data")
    with pytest.raises(UserError, match="its build did not finish: run the same build command again"):
        manifest.open_shards(tmp_path)


def test_a_folder_near_the_shards_names_them(tmp_path: Path) -> None:
    for name in ("shards/Train", "shards/Test"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "manifest.json").write_text("{}")
        if name == "shards/Train":
            (tmp_path / name / "shard-000000.tar").touch()
    (tmp_path / "shards" / "Train.log").mkdir()
    train = re.escape(str(tmp_path / "shards" / "Train"))
    for folder in (tmp_path, tmp_path / "shards"):
        with pytest.raises(UserError, match=rf"contains no shards, but {train} does: did you mean it\?"):
            manifest.open_shards(folder)
    (tmp_path / "shards" / "Test" / "shard-000000.tar").touch()
    with pytest.raises(UserError, match=rf"contains no shards, but .*Test, {train} do: did you mean one of them\?"):
        manifest.open_shards(tmp_path / "shards")


def test_videos_instead_of_shards_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Train" / "Abuse").mkdir(parents=True)
    video = tmp_path / "Train" / "Abuse" / "a.AVI"
    video.touch()
    for folder in (tmp_path, tmp_path / "Train", tmp_path / "Train" / "Abuse"):
        with pytest.raises(
            UserError, match=rf"contains videos, not shards; build shards first: vidshard build {folder}"
        ):
            manifest.open_shards(folder)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards" / "Train").mkdir(parents=True)
    for name in ("manifest.json", "shard-000000.tar"):
        (tmp_path / "shards" / "Train" / name).touch()
    with pytest.raises(UserError, match=r"Train contains no shards, but shards.Train does: did you mean it\?"):
        manifest.open_shards(tmp_path / "Train")
    with pytest.raises(UserError, match=r"a\.AVI is a video, not a shard folder; build shards first"):
        manifest.open_shards(video)


def test_a_missing_or_cut_shard_is_named(folder: Path) -> None:
    (folder / "shard-000000.tar").write_bytes(b"dat")
    with pytest.raises(FormatError, match=r"shard-000000.tar has 3 bytes, expected 4 bytes"):
        manifest.open_shards(folder)
    (folder / "shard-000000.tar").unlink()
    with pytest.raises(FormatError, match=r"shard-000000.tar is missing"):
        manifest.open_shards(folder)


def test_a_million_rows_take_less_than_100_mb() -> None:
    num_rows, num_videos = 1_000_000, 100_000
    index = Index(
        clips=np.zeros(num_rows, manifest.CLIP_ROW),
        videos=np.zeros(num_videos, manifest.VIDEO_ROW),
        paths=[f"Anomaly-Videos-Part-1/Abuse/Abuse{i:07d}_x264.mp4" for i in range(num_videos)],
        classes=["Abuse"],
        splits=["Train"],
        recordings=[],
        decoders=["decord"],
    )
    assert len(index.to_bytes()) < 100_000_000
