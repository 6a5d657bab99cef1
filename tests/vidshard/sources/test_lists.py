"""Split lists, recordings and annotations supplied by a user."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from vidshard.sources.folders import find_sources
from vidshard.sources.lists import apply_annotations, apply_recordings, apply_split_list
from vidshard.util.errors import UserError

OFFICIAL = Path(os.environ.get("VIDSHARD_TEST_DATA", ""), "data", "ucf-crime")


def make(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# ----- split lists ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        ["Abuse/Abuse001_x264.mp4", "Training_Normal_Videos_Anomaly/N 1.mp4"],
        ["Abuse/Abuse001_x264.mp4 ", "N 1.MP4 984", ""],
        ["Abuse001_x264.mp4  Abuse  165  240  -1  -1  ", "N 1.mp4  Normal  -1  -1  -1  -1  "],
        ["x\\Abuse\\Abuse001_x264.mp4", "N 1.avi"],
    ],
)
def test_every_layout_selects_by_stem(lines: list[str], tmp_path: Path) -> None:
    root = make(tmp_path / "s", "Abuse/Abuse001_x264.mp4", "Abuse/Abuse002_x264.mp4", "NormalVideos/N 1.mp4")
    matched = apply_split_list(find_sources(root), write(tmp_path / "list.txt", *lines))
    (source,) = matched.sources
    assert [video.path for video in source.videos] == ["Abuse/Abuse001_x264.mp4", "NormalVideos/N 1.mp4"]
    assert [(f.path, f.outcome, f.reason) for f in source.skipped] == [
        ("Abuse/Abuse002_x264.mp4", "skipped", "not_in_list")
    ]
    assert matched.note == "list.txt: 2 of 3 videos are in the list"


def test_entries_without_a_file_are_reported(tmp_path: Path) -> None:
    root = make(tmp_path / "s", "Abuse/a.mp4")
    told = apply_split_list(find_sources(root), write(tmp_path / "list.txt", "Abuse/a.mp4", "Abuse/b.mp4")).note
    assert "WARNING: 1 of 2 entries of list.txt match no video: Abuse/b" in told


def test_a_list_of_other_videos_is_refused(tmp_path: Path) -> None:
    root = make(tmp_path / "s", "Abuse/a.mp4")
    with pytest.raises(UserError, match=r"lists none of the 1 videos \(it has: zebra\)"):
        apply_split_list(find_sources(root), write(tmp_path / "list.txt", "zebra"))
    with pytest.raises(UserError, match=r"list\.txt cannot be read: No such file"):
        apply_split_list(find_sources(root), tmp_path / "no" / "list.txt")


def test_of_videos_with_one_stem_the_longer_path_decides_or_none(tmp_path: Path) -> None:
    root = make(tmp_path / "s", "Abuse/a.mp4", "Arson/a.mp4")
    (source,) = apply_split_list(find_sources(root), write(tmp_path / "list.txt", "Train/Arson/a.mp4")).sources
    assert [video.path for video in source.videos] == ["Arson/a.mp4"]
    with pytest.raises(UserError, match=r"a is ambiguous: .*Abuse/a\.mp4 or .*Arson/a\.mp4; write a longer path"):
        apply_split_list(find_sources(root), write(tmp_path / "list.txt", "a.mp4"))


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="VIDSHARD_TEST_DATA names no folder with data/ucf-crime in it")
def test_the_official_lists(tmp_path: Path) -> None:
    lists = OFFICIAL
    names = [n for kind in ("Train", "Test") for n in (lists / f"Anomaly_{kind}.txt").read_text().splitlines()]
    root = make(tmp_path / "s", *names)
    for name, count in {
        "Anomaly_Train.txt": 1610, "Anomaly_Test.txt": 290, "action_recognition_train_001.txt": 532,
        "Temporal_Anomaly_Annotation_for_Testing_Videos.txt": 290, "test_frame_counts.txt": 290,
    }.items():  # fmt: skip
        assert f"{name}: {count:,} of 1,900 videos" in apply_split_list(find_sources(root), lists / name).note
    for name in ("Temporal_Anomaly_Annotation_for_Testing_Videos.txt", "test_frame_counts.txt"):
        matched = apply_annotations(find_sources(root), lists / name)
        assert "156 events in 140 videos" in matched.note
        assert "WARNING: 810 crime videos are skipped" in matched.note


# ----- recordings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_recordings_by_the_longest_suffix(kind: str, tmp_path: Path) -> None:
    root = make(tmp_path / "s", "Train/Abuse/a.mp4", "Train/Arson/a.mp4", "Test/Abuse/b.mp4", "Test/Abuse/c.mp4")
    rows = [("Train/Abuse/a.mp4", "one"), ("Arson/a.mp4", "two"), ("b.mp4", "one"), ("gone.mp4", "three")]
    path = tmp_path / f"groups.{kind}"
    if kind == "json":
        path.write_text(json.dumps([{"file": file, "source": source} for file, source in rows]))
    else:
        write(path, "file,source", *(",".join(row) for row in rows))
    matched = apply_recordings(find_sources(root), path)
    groups = {v.path: v.recording for source in matched.sources for v in source.videos}
    assert groups == {"Abuse/a.mp4": "one", "Arson/a.mp4": "two", "Abuse/b.mp4": "one", "Abuse/c.mp4": None}
    assert "3 videos of 2 recordings" in matched.note
    assert "has no row for 1 video: Abuse/c.mp4" in matched.note


def test_recordings_that_are_not_clear_are_refused(tmp_path: Path) -> None:
    root = make(tmp_path / "s", "Abuse/a.mp4", "Arson/a.mp4")
    with pytest.raises(UserError, match=r"a is ambiguous: .*Abuse/a\.mp4 or .*Arson/a\.mp4"):
        apply_recordings(find_sources(root), write(tmp_path / "g.csv", "file,source", "a.mp4,one"))
    with pytest.raises(UserError, match=r"assigns two recordings to Abuse/a\.mp4: .*one.* and .*two"):
        apply_recordings(
            find_sources(root), write(tmp_path / "g.csv", "file,source", "x/Abuse/a.mp4,one", "y/Abuse/a.mp4,two")
        )
    with pytest.raises(UserError, match="KeyError"):
        apply_recordings(find_sources(root), write(tmp_path / "g.csv", "name,group", "a.mp4,one"))


# ----- annotations ----------------------------------------------------------------------------------------------------


def test_events_of_annotated_videos(tmp_path: Path) -> None:
    root = make(tmp_path / "s", "Abuse/a.mp4", "Abuse/b.mp4", "Abuse/c.mp4", "NormalVideos/n.mp4", "NormalVideos/m.mp4")
    lines = [
        "a.mp4  Abuse  10  20  40  55  ",
        "b.mp4 Abuse -1 -1 -1 -1",
        "n.mp4 Normal -1 -1 -1 -1",
        "x.mp4 Abuse 1 2 -1 -1",
    ]
    matched = apply_annotations(find_sources(root), write(tmp_path / "t.txt", *lines))
    (source,) = matched.sources
    assert {video.path: video.events for video in source.videos} == {
        "Abuse/a.mp4": ((10, 20), (40, 55)), "NormalVideos/m.mp4": (), "NormalVideos/n.mp4": (),
    }  # fmt: skip
    assert [(f.path, f.reason) for f in source.skipped] == [
        ("Abuse/b.mp4", "no_annotation"),
        ("Abuse/c.mp4", "no_annotation"),
    ]
    assert matched.note.splitlines() == [
        "t.txt: 2 events in 1 video",
        "WARNING: 2 crime videos are skipped: t.txt has no event for them",
        "WARNING: 1 of 4 entries of t.txt match no video: x",
    ]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("a.mp4 Abuse 20 10", "an event ends before it begins"),
        ("a.mp4 Abuse 20", "expected pairs of frames"),
        ("a.mp4", "line 1 of .*expected pairs of frames"),
        ("n.mp4 Abuse 1 2", "contains a crime, but its class NormalVideos is normal"),
        ("z.mp4 Abuse 1 2", "has no event for any of the 2 videos"),
    ],
)
def test_annotations_that_make_no_sense(line: str, text: str, tmp_path: Path) -> None:
    root = make(tmp_path / "s", "Abuse/a.mp4", "NormalVideos/n.mp4")
    with pytest.raises(UserError, match=text):
        apply_annotations(find_sources(root), write(tmp_path / "t.txt", line))
