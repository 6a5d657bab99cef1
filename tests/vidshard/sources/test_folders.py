"""Folder layouts → videos with class, label and split."""

from __future__ import annotations

import errno
import os
import random
import stat
from pathlib import Path

import pytest

from vidshard.sources.folders import (
    VIDEO_SUFFIXES,
    Source,
    check_labels,
    check_no_class_folder,
    find_sources,
    label_table,
)
from vidshard.util.errors import UserError

MP4_HEAD = b"\0\0\0\x1cftypisom"


def make(root: Path, *paths: str | bytes) -> Path:
    for path in paths:
        file = root / os.fsdecode(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    return root


def found(root: Path, normal: str | None = None) -> Source:
    (source,) = find_sources(root, normal=normal)
    return source


def skipped(source: Source) -> dict[str, str]:
    assert {failure.outcome for failure in source.skipped} <= {"skipped"}
    return {failure.path: failure.reason for failure in source.skipped}


def test_class_is_the_folder_that_holds_the_file_at_any_depth(tmp_path: Path) -> None:
    make(tmp_path, "Part-1/Abuse/a.mp4", "NormalVideos/n.MP4", "Arson/deep/er/Arson/x.mov", "Arson/y.M4V")
    source = found(tmp_path)
    assert [(v.path, v.class_name, v.label) for v in source.videos] == [
        ("Arson/deep/er/Arson/x.mov", "Arson", 1),
        ("Arson/y.M4V", "Arson", 1),
        ("NormalVideos/n.MP4", "NormalVideos", 0),
        ("Part-1/Abuse/a.mp4", "Abuse", 1),
    ]
    assert source.root == tmp_path
    assert source.split is None
    check_labels(source, normal=None, yes=False)


@pytest.mark.parametrize("name", ["normal", "NORMAL_2", "Testing_Normal_Videos_Anomaly", "my normal ones"])
def test_names_that_contain_normal_are_normal(name: str, tmp_path: Path) -> None:
    assert found(make(tmp_path, f"{name}/a.mp4")).videos[0].label == 0


def test_files_directly_in_the_source_have_no_label(tmp_path: Path) -> None:
    source = found(make(tmp_path, "a.mp4", "b.mp4"))
    assert {(v.class_name, v.label) for v in source.videos} == {(None, -1)}
    check_labels(source, normal=None, yes=False)
    mixed = found(make(tmp_path, "Abuse/c.mp4", "NormalVideos/d.mp4"))
    check_labels(mixed, normal=None, yes=False)
    assert label_table(mixed).splitlines() == [
        "class              label       videos",
        "(no class folder)  -1 unknown       2",
        "NormalVideos       0 normal         1",
        "Abuse              1 crime          1",
    ]


def test_a_single_file_is_a_source(tmp_path: Path) -> None:
    make(tmp_path, "Train/Abuse/a.mp4", "notes.txt")
    source = found(tmp_path / "Train/Abuse/a.mp4")
    assert (source.root, source.split) == (tmp_path / "Train/Abuse", None)
    assert [(v.path, v.class_name, v.label) for v in source.videos] == [("a.mp4", None, -1)]
    with pytest.raises(UserError, match=r"notes\.txt is not a video name; expected a name that ends in \.mp4"):
        find_sources(tmp_path / "notes.txt")


def test_splits_are_built_each_by_itself(tmp_path: Path) -> None:
    make(tmp_path, "Train/Abuse/a.mp4", "TESTING/NormalVideos/b.mp4", "val/c.mp4", "README.md")
    sources = find_sources(tmp_path)
    assert [(s.split, s.root.name, s.videos[0].path) for s in sources] == [
        ("Test", "TESTING", "NormalVideos/b.mp4"),
        ("Train", "Train", "Abuse/a.mp4"),
        ("Validation", "val", "c.mp4"),
    ]
    assert found(tmp_path / "val").split == "Validation"


def test_videos_outside_the_splits_are_not_lost(tmp_path: Path) -> None:
    make(tmp_path, "Train/Abuse/a.mp4", "Extra/Abuse/b.mp4")
    with pytest.raises(UserError, match=r"Train/ and 1 video outside them \(Extra/Abuse/b\.mp4\)"):
        find_sources(tmp_path)


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Train/ and training/, which are the same split"):
        find_sources(make(tmp_path, "Train/a.mp4", "training/b.mp4"))


def test_source_groups_come_from_sources_json(tmp_path: Path) -> None:
    make(tmp_path, "Train/Abuse/a.mp4", "Train/Abuse/b.mp4")
    (tmp_path / "sources.json").write_text('[{"file": "Train/Abuse/a.mp4", "source": "recording 1"}]')
    source = found(tmp_path / "Train")
    assert [v.recording for v in source.videos] == ["recording 1", None]
    assert source.notes == (f"{tmp_path / 'sources.json'} was read: 1 of 2 videos are cut from 1 recording",)
    (tmp_path / "sources.json").write_text('[{"file": "Train/Arson/x.mp4", "source": "recording 1"}]')
    (note,) = found(tmp_path / "Train").notes
    assert note.endswith("sources.json lists none of the videos; expected paths such as Abuse/a.mp4")
    (tmp_path / "sources.json").write_bytes('{"größe": 1}'.encode("utf-16"))
    assert "sources.json" in found(tmp_path / "Train").notes[0]
    (tmp_path / "sources.json").write_text('{"a": 1}')
    source = found(tmp_path / "Train")
    assert [v.recording for v in source.videos] == [None, None]
    (note,) = source.notes
    assert note.startswith("WARNING: videos are not grouped by recording: ")
    assert "sources.json is not a list" in note


@pytest.mark.parametrize(
    ("paths", "doubt"),
    [
        (["Abuse/a.mp4"], "no class is normal"),
        (["NormalVideos/a.mp4"], "no class is a crime"),
        (["fight/a.mp4", "noFight/b.mp4"], "not a class name of UCF-Crime: fight, noFight; no class is normal"),
        (["NormalVideos/a.mp4", "Abuses/b.mp4"], "not a class name of UCF-Crime: Abuses"),
    ],
)
def test_doubtful_labels_stop_with_the_table(paths: list[str], doubt: str, tmp_path: Path) -> None:
    source = found(make(tmp_path, *paths))
    with pytest.raises(UserError) as caught:
        check_labels(source, normal=None, yes=False)
    text = str(caught.value)
    assert doubt in text
    assert label_table(source) in text
    assert "`yes`" in text
    assert "`normal`" in text
    check_labels(source, normal=None, yes=True)


def test_normal_names_the_only_normal_class(tmp_path: Path) -> None:
    root = make(tmp_path, "Abnormal/a.mp4", "Quiet/b.mp4")
    source = found(root, normal="Quiet")
    assert {v.class_name: v.label for v in source.videos} == {"Abnormal": 1, "Quiet": 0}
    check_labels(source, normal="Quiet", yes=False)
    with pytest.raises(UserError, match=r"`normal` quiet is not a class folder of .*; the classes are: Abnormal"):
        check_labels(source, normal="quiet", yes=True)


def test_everything_unused_is_reported(tmp_path: Path) -> None:
    make(tmp_path, "Abuse/a.mp4", "Abuse/notes.txt", "Abuse/._a.mp4", ".git/x.mp4", "Abuse/unknown", "Abuse/.mp4")
    (tmp_path / "Abuse/.b.mp4").write_bytes(MP4_HEAD)
    source = found(tmp_path)
    assert skipped(source) == {
        ".git": "hidden_file",
        "Abuse/._a.mp4": "hidden_file",
        "Abuse/.mp4": "hidden_file",
        "Abuse/notes.txt": "not_a_video_name",
        "Abuse/unknown": "not_a_video_name",
    }
    assert [video.path for video in source.videos] == ["Abuse/.b.mp4", "Abuse/a.mp4"]


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_every_video_name_is_taken(suffix: str, tmp_path: Path) -> None:
    make(tmp_path, f"Abuse/a{suffix}", f"Abuse/b{suffix.upper()}")
    (tmp_path / "Abuse" / f"a{suffix}").write_bytes(b"\0")
    assert len(found(tmp_path).videos) == (1 if suffix in (".ts", ".mts") else 2)  # the other one is text


def test_content_decides_where_the_name_does_not(tmp_path: Path) -> None:
    make(tmp_path, "Abuse/a.mp4")
    files = {
        "export": MP4_HEAD,  # a recorder that gives no suffix
        "cam.0001": b"\x1a\x45\xdf\xa3 matroska",
        "sound.m4a": MP4_HEAD,
        "app.ts": "const größe = 1".encode(),
        "cut.ts": b"\0\1 begins within a packet",
        "stream.TS": (b"\x47" + bytes(187)) * 6,
        "raw.bin": b"\0\1\2",
    }
    for name, data in files.items():
        (tmp_path / "Abuse" / name).write_bytes(data)
    source = found(tmp_path)
    assert [v.path.removeprefix("Abuse/") for v in source.videos] == [
        "a.mp4", "cam.0001", "cut.ts", "export", "stream.TS",
    ]  # fmt: skip
    assert skipped(source) == {
        "Abuse/app.ts": "not_a_video",
        "Abuse/raw.bin": "not_a_video_name",
        "Abuse/sound.m4a": "not_a_video_name",
    }
    by_content = "recognised as videos by their content, not by their names: 2 (Abuse/cam.0001, Abuse/export)"
    assert source.notes == (by_content,)
    assert found(tmp_path / "Abuse" / "export").videos[0].path == "export"


def test_the_folders_of_the_official_zips_are_known(tmp_path: Path) -> None:
    make(
        tmp_path,
        "Anomaly-Videos-Part-1/Abuse/Abuse001_x264.mp4",
        "Anomaly-Videos-Part-3/RoadAccidents/RoadAccidents001_x264.mp4",
        "Training-Normal-Videos-Part-1/Normal_Videos001_x264.mp4",
        "Training-Normal-Videos-Part-2/Normal_Videos601_x264.mp4",
        "Testing_Normal_Videos/Testing_Normal_Videos_Anomaly/Normal_Videos_003_x264.mp4",
        "Normal_Videos_for_Event_Recognition/Normal_Videos_015_x264.mp4",
        "z_Normal_Videos_event/Normal_Videos_010_x264.mp4",
    )
    source = found(tmp_path)
    check_labels(source, normal=None, yes=False)
    assert {v.class_name for v in source.videos if v.label == 1} == {"Abuse", "RoadAccidents"}


@pytest.mark.parametrize(
    "paths",
    [["Train/Fighting/a.mp4"], ["data/Fall/a.mp4", "data/NormalVideos/b.mp4"], ["x/Arson/a.avi", "x/quiet/b.mkv"]],
)
def test_a_class_folder_suggests_its_parent(paths: list[str], tmp_path: Path) -> None:
    make(tmp_path, *paths)
    folder = (tmp_path / paths[0]).parent
    with pytest.raises(UserError) as caught:
        check_no_class_folder(folder, find_sources(folder))
    assert f"did you mean {folder.parent}?" in str(caught.value)
    assert "`yes`" in str(caught.value)
    for other in (folder.parent, tmp_path / paths[0]):
        check_no_class_folder(other, find_sources(other))


def test_folders_of_cameras_are_not_class_folders(tmp_path: Path) -> None:
    make(tmp_path, "cam1/a.mp4", "cam2/a.mp4", "Train/a.mp4")
    for name in ("cam1", "Train"):
        check_no_class_folder(tmp_path / name, find_sources(tmp_path / name))


def test_links_stay_inside_and_do_not_loop(tmp_path: Path) -> None:
    outside = make(tmp_path / "outside", "secret.mp4")
    root = make(tmp_path / "source", "Abuse/a.mp4")
    try:
        (root / "Abuse/inside.mp4").symlink_to("a.mp4")
    except OSError as error:
        pytest.skip(f"no links here: {error.strerror}")
    (root / "Abuse/out.mp4").symlink_to(outside / "secret.mp4")
    (root / "Abuse/gone.mp4").symlink_to("nothing.mp4")
    (root / "Abuse/self.mp4").symlink_to("self.mp4")
    (root / "Abuse/loop").symlink_to(root, target_is_directory=True)
    (root / "Arson").symlink_to(outside, target_is_directory=True)
    source = found(root)
    assert [v.path for v in source.videos] == ["Abuse/a.mp4", "Abuse/inside.mp4"]
    assert skipped(source) == {
        "Abuse/gone.mp4": "broken_link",
        "Abuse/loop": "link_to_folder",
        "Abuse/out.mp4": "link_outside_source",
        "Abuse/self.mp4": "broken_link",
        "Arson": "link_outside_source",
    }
    (tmp_path / "shortcut").symlink_to(root, target_is_directory=True)
    assert [v.path for v in found(tmp_path / "shortcut").videos] == ["Abuse/a.mp4", "Abuse/inside.mp4"]


def test_links_out_of_the_source_by_option(tmp_path: Path) -> None:
    outside = make(tmp_path / "outside", "Arson/fire.mp4", "Arson/notes.txt", "single.mp4")
    root = make(tmp_path / "source", "Abuse/a.mp4")
    try:
        (root / "Arson").symlink_to(outside / "Arson", target_is_directory=True)
    except OSError as error:
        pytest.skip(f"no links here: {error.strerror}")
    (root / "Abuse/out.mp4").symlink_to(outside / "single.mp4")
    (root / "Arson/back").symlink_to(root, target_is_directory=True)
    (root / "Arson/up").symlink_to(tmp_path, target_is_directory=True)
    (root / "Arson/self").symlink_to(outside / "Arson", target_is_directory=True)
    (root / "Again").symlink_to(outside / "Arson", target_is_directory=True)  # the first in order is read
    (source,) = find_sources(root, follow_links=True)
    assert [v.path for v in source.videos] == ["Abuse/a.mp4", "Abuse/out.mp4", "Again/fire.mp4"]
    reasons = {"Again/back": "link_to_folder", "Again/self": "link_to_folder", "Again/up": "link_to_folder"}
    assert skipped(source) == {**reasons, "Again/notes.txt": "not_a_video_name", "Arson": "link_to_folder"}


def test_a_split_that_is_a_link_out_of_the_source(tmp_path: Path) -> None:
    outside = make(tmp_path / "disk", "Abuse/a.mp4")
    root = make(tmp_path / "source", "Test/Abuse/b.mp4")
    try:
        (root / "Train").symlink_to(outside, target_is_directory=True)
    except OSError as error:
        pytest.skip(f"no links here: {error.strerror}")
    with pytest.raises(UserError, match=r"Train is a link that leads out of .*`follow_links`"):
        find_sources(root)
    sources = find_sources(root, follow_links=True)
    assert [(s.split, [v.path for v in s.videos]) for s in sources] == [
        ("Test", ["Abuse/b.mp4"]),
        ("Train", ["Abuse/a.mp4"]),
    ]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
def test_a_pipe_is_not_a_video(tmp_path: Path) -> None:
    make(tmp_path, "Abuse/a.mp4")
    for name in ("pipe.mp4", "pipe.ts", "pipe", ".pipe.mp4"):  # none is opened: that would wait for ever
        os.mkfifo(tmp_path / "Abuse" / name)
    assert skipped(found(tmp_path)) == {
        "Abuse/.pipe.mp4": "hidden_file",
        "Abuse/pipe": "not_a_video_name",
        "Abuse/pipe.mp4": "not_a_regular_file",
        "Abuse/pipe.ts": "not_a_regular_file",
    }


@pytest.mark.parametrize(
    "name", ["a b.mp4", "a.b.c.mp4", 'it\'s "x".mp4', "防犯 ünï.mp4", "-x.mp4", "a\nb.mp4", "%s{}.mp4", b"\xff\xfe.mp4"]
)
def test_any_name_is_taken_as_it_is(name: str | bytes, tmp_path: Path) -> None:
    try:
        make(tmp_path, b"Abuse/" + os.fsencode(name))
    except OSError as error:
        pytest.skip(f"this file system has no such name: {error.strerror}")
    assert [v.path for v in found(tmp_path).videos] == ["Abuse/" + os.fsdecode(name)]


def test_order_does_not_depend_on_the_folder(tmp_path: Path) -> None:
    names = [f"Abuse/{i}.mp4" for i in range(20)] + ["Abuse-2/x.mp4", "Ärger/x.mp4", "abuse/x.mp4"]
    one = found(make(tmp_path / "one", *names))
    random.Random(0).shuffle(names)
    two = found(make(tmp_path / "two", *names))
    assert one.videos == two.videos
    assert [v.path.encode() for v in one.videos] == sorted(v.path.encode() for v in one.videos)


@pytest.mark.parametrize(
    ("paths", "text"),
    [
        (["Abuse/x/0001.jpg", "Abuse/x/0002.PNG"], "contains 2 pictures .* folders of frames cannot be built"),
        (["Abuse/readme.txt"], r"no video in .*: expected SOURCE/<Class>/\*\.mp4 .*; skipped: 1 not_a_video_name"),
        ([], "no video in "),
    ],
)
def test_the_error_for_a_source_without_videos_lists_the_suffixes(paths: list[str], text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=text):
        find_sources(make(tmp_path, *paths))


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder or file .*Trian; expected SOURCE/<Class>"):
        find_sources(tmp_path / "Trian")


def test_an_entry_that_cannot_be_looked_at_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "Abuse/a.mp4", "Abuse/b.mp4", "Abuse/c.mp4")
    is_regular = stat.S_ISREG
    calls = []

    def fail_once(mode: int) -> bool:
        calls.append(mode)
        if len(calls) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return is_regular(mode)

    monkeypatch.setattr("vidshard.sources.folders.stat.S_ISREG", fail_once)
    source = found(tmp_path)
    assert len(source.videos) == 2
    assert list(skipped(source).values()) == ["unreadable"]
