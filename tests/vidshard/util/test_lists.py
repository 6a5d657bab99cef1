"""Lines of lists and annotations, in every form that official files use."""

from __future__ import annotations

from pathlib import Path

import pytest

from vidshard.util.errors import UserError
from vidshard.util.lists import ListedVideo, parse_line, read_videos


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Abuse/Abuse001_x264.mp4 ", ListedVideo(name="Abuse/Abuse001_x264")),
        (
            "Abuse028_x264.mp4  Abuse  165  240  -1  -1  ",
            ListedVideo(name="Abuse028_x264", class_name="Abuse", events=((165, 240),)),
        ),
        ("n/N 1.mp4 530 Normal -1 -1 -1 -1", ListedVideo(name="n/N 1", class_name="Normal", num_frames=530, events=())),
        ("a.mp4 100 3 9", ListedVideo(name="a", num_frames=100, events=((3, 9),))),
        ("a.mp4 3 9", ListedVideo(name="a", events=((3, 9),))),
        ("a.mp4 984", ListedVideo(name="a", num_frames=984)),
        ("a.mp4 984 Abuse", ListedVideo(name="a", num_frames=984, class_name="Abuse")),
        ("x\\a Abuse 3 9 20 30", ListedVideo(name="x/a", class_name="Abuse", events=((3, 9), (20, 30)))),
    ],
)
def test_every_form_of_a_line(line: str, expected: ListedVideo) -> None:
    assert parse_line(line) == expected


@pytest.mark.parametrize("line", ["a.mp4 Abuse 3", "a.mp4 Abuse 9 3", "a.mp4 Abuse 3 x", "a.mp4 0 Abuse 1 2"])
def test_lines_that_are_not_annotations_are_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "annotations.txt"
    path.write_text(f"b.mp4 Abuse 1 2\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"line 2 of .*annotations.txt is not an annotation"):
        read_videos(path)


def test_a_video_named_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "annotations.txt"
    path.write_text("x/a.mp4 Abuse 1 2\ny/a.mp4 Normal -1 -1\n", encoding="utf-8")
    with pytest.raises(UserError, match="names a twice"):
        read_videos(path)
