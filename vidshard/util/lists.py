"""Parsers of video lists and annotation files: names, classes, frame counts, events.

The formats are those of UCF-Crime (`Anomaly_Test.txt`, the temporal annotations, the lists with frame counts), whose
lines end in spaces. `sources.lists` matches the names to the videos of a source.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from vidshard.util import files
from vidshard.util.errors import UserError

# File name suffixes of videos, in either case. A file's content decides whether it really is a video, so suffixes of
# unsupported formats are included: such a file fails with a reason instead of being ignored silently.
VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".wmv", ".asf", ".flv",
    ".f4v", ".3gp", ".3g2", ".ogv", ".vob", ".dav", ".divx", ".mxf", ".rm", ".rmvb", ".h264", ".264", ".h265", ".265",
    ".hevc", ".m2v",
)  # fmt: skip
SHOWN_SUFFIXES = ".mp4, .mov, .avi, .mkv, .ts, .mpg, .wmv, .flv and others"  # for messages

# The classes of UCF-Crime: NormalVideos, the folders of normal videos in its zips and lists, and the 13 crimes.
NORMAL_CLASSES = (
    "NormalVideos",
    "Training_Normal_Videos_Anomaly",
    "Testing_Normal_Videos_Anomaly",
    "Normal_Videos_event",
    "z_Normal_Videos_event",
    "Training-Normal-Videos-Part-1",
    "Training-Normal-Videos-Part-2",
    "Training-Normal-Videos",
    "Testing_Normal_Videos",
    "Normal_Videos_for_Event_Recognition",
    "Normal_Videos",
)
CRIME_CLASSES = (
    "Abuse", "Arrest", "Arson", "Assault", "Burglary", "Explosion", "Fighting", "RoadAccidents", "Robbery", "Shooting",
    "Shoplifting", "Stealing", "Vandalism",
)  # fmt: skip

# A name, its suffix, and what the official lists append: frame counts, a class, the frames of events.
_LISTED = re.compile(rf"(?P<name>.+?)({'|'.join(map(re.escape, VIDEO_SUFFIXES))})(\s.*)?", re.IGNORECASE)
_INTEGER = re.compile(r"-?\d+")
_EXAMPLE = "Abuse028_x264.mp4 Abuse 165 240 -1 -1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListedVideo:
    """One line of a list."""

    name: str  # whole path or its last parts, without suffix
    class_name: str | None = None
    num_frames: int | None = None
    events: tuple[tuple[int, int], ...] | None = None  # first and last frame of each, as written; None: unknown

    @property
    def stem(self) -> str:
        """The file name without folder, which identifies a video in every list: the folders differ between lists."""
        return PurePosixPath(self.name).name


def sounds_normal(class_name: str) -> bool:
    """Return True if the name of a class contains "normal", but not only as a part of "abnormal".

    >>> sounds_normal("NormalVideos"), sounds_normal("Abnormal"), sounds_normal("Robbery")
    (True, False, False)
    """
    return "normal" in class_name.lower().replace("abnormal", "")


def read_text(path: Path) -> str:
    """Return the text of a file supplied by the user. Raises UserError if it cannot be read."""
    try:
        return files.read_bytes(path).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}; save it as UTF-8") from error


def read_lines(path: Path) -> list[str]:
    """Return the non-empty lines of a file. Raises UserError if it cannot be read."""
    return [line for line in read_text(path).splitlines() if line.strip()]


def read_list(path: Path) -> dict[str, str]:
    """Return file stem → name (without suffix) of each video in a list; text after the name is ignored.

    Raises UserError if the file cannot be read or names no video.
    """
    found = [name for line in read_lines(path) if (name := listed_name(line))]
    if not found:
        raise UserError(f"{path} lists no video; expected a list with one Class/Name.mp4 per line")
    return {PurePosixPath(name).name: name for name in found}


def read_videos(path: Path) -> list[ListedVideo]:
    """Parse every line of a list or annotation file, in order. Raises UserError on a bad line or a repeated name."""
    found: dict[str, ListedVideo] = {}
    for number, video in enumerate(parse_lines(path), start=1):
        if video.stem in found:
            raise UserError(f"line {number} of {path} names {video.stem} twice; expected one line per video")
        found[video.stem] = video
    if not found:
        raise UserError(f"{path} lists no video; expected one per line, such as: {_EXAMPLE}")
    return list(found.values())


def parse_lines(path: Path, *, need_events: bool = False) -> Iterator[ListedVideo]:
    """Parse the lines of a list or, with `need_events`, of an annotation file. Raises UserError on a bad line."""
    for number, line in enumerate(read_lines(path), start=1):
        try:
            video = parse_line(line)
            if need_events and video.events is None:
                raise ValueError("expected pairs of frames")
        except ValueError as error:
            raise UserError(
                f"line {number} of {path} is not an annotation ({error}): {line.strip()}; expected a name, then any "
                f"known frame count, class and events, such as: {_EXAMPLE}"
            ) from error
        yield video


def parse_line(line: str) -> ListedVideo:
    """Parse `name [frames] [class] [start1 end1 start2 end2]`, with -1 for no event. Raises ValueError.

    >>> parse_line("Arson/Arson022_x264.mp4 8640 Arson 3500 4000 -1 -1")
    ListedVideo(name='Arson/Arson022_x264', class_name='Arson', num_frames=8640, events=((3500, 4000),))
    >>> parse_line("Testing_Normal_Videos_Anomaly/Normal_Videos_872_x264.mp4 530 Normal -1 -1 -1 -1").events
    ()
    >>> parse_line("Robbery/Robbery003_x264.mp4 984").num_frames, parse_line("Abuse/Abuse001_x264.mp4 ").events
    (984, None)
    """
    name = listed_name(line)
    words = line.replace("\\", "/").strip().removeprefix(name).split()
    if words and words[0].startswith("."):
        words = words[1:]  # the suffix of the name
    num_frames, class_name = None, None
    if words and _INTEGER.fullmatch(words[0]) and (len(words) % 2 or not _INTEGER.fullmatch(words[1])):
        num_frames, words = int(words[0]), words[1:]
        if num_frames < 1:
            raise ValueError(f"{num_frames} frames, expected at least 1")
    if words and not _INTEGER.fullmatch(words[0]):
        class_name, words = words[0], words[1:]
    return ListedVideo(
        name=name, class_name=class_name, num_frames=num_frames, events=_events(words) if words else None
    )


def listed_name(line: str) -> str:
    """Return the video named by a line of a list, without its suffix; "" if it names none.

    >>> listed_name("Abuse/Abuse001_x264.mp4 "), listed_name("Abuse028_x264.mp4  Abuse  165  240  -1  -1  ")
    ('Abuse/Abuse001_x264', 'Abuse028_x264')
    >>> listed_name("Robbery/Robbery003_x264.mp4 984"), listed_name("Abuse001_x264")
    ('Robbery/Robbery003_x264', 'Abuse001_x264')
    """
    line = line.strip().replace("\\", "/")
    match = _LISTED.fullmatch(line)
    return match["name"] if match else line.partition(" ")[0].partition("\t")[0]


def _events(words: list[str]) -> tuple[tuple[int, int], ...]:
    if len(words) % 2 or not all(_INTEGER.fullmatch(word) for word in words):
        raise ValueError("expected pairs of frames")
    frames = [int(word) for word in words]
    events = [(a, b) for a, b in zip(frames[::2], frames[1::2], strict=True) if a >= 0]
    if any(b < a for a, b in events):
        raise ValueError("an event ends before it begins")
    return tuple(events)
