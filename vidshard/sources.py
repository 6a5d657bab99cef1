"""Which videos there are, of which class and split: a folder layout → a sorted list of `Video`.

Nothing here opens a video. Whatever is found and not used is said: every file beside the videos is in `skipped`.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from vidshard.errors import UserError
from vidshard.manifest import Failure
from vidshard.shard_format import CRIME_LABEL, NORMAL_LABEL, UNKNOWN_LABEL
from vidshard.storage import Location
from vidshard.video_lists import VIDEO_SUFFIXES as VIDEO_SUFFIXES
from vidshard.video_lists import read_text

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")

# The classes of UCF-Crime: NormalVideos, its official names, and the 13 crimes.
NORMAL_CLASSES = (
    "NormalVideos",
    "Training_Normal_Videos_Anomaly",
    "Testing_Normal_Videos_Anomaly",
    "Normal_Videos_event",
)
CRIME_CLASSES = (
    "Abuse", "Arrest", "Arson", "Assault", "Burglary", "Explosion", "Fighting", "RoadAccidents", "Robbery", "Shooting",
    "Shoplifting", "Stealing", "Vandalism",
)  # fmt: skip

_SPLIT_NAMES = {
    "train": "Train", "training": "Train",
    "test": "Test", "testing": "Test",
    "val": "Validation", "valid": "Validation", "validation": "Validation",
}  # fmt: skip

SPLITS = ("Train", "Validation", "Test")

# Why something is skipped behind which there may be videos; of the other reasons, none hides one. (A folder with the
# name of a video is `not_a_regular_file`, but is read.)
MAY_HIDE_VIDEOS = (
    "broken_link", "link_outside_source", "link_to_folder", "unreadable", "unreadable_folder", "unusable_name",
)  # fmt: skip

# Optional, in SOURCE or beside its split folders: [{"file": "Train/Abuse/a.mp4", "source": "recording 7"}, …].
GROUPS_NAME = "sources.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Video:
    """One source MP4."""

    path: str  # relative to SOURCE, with forward slashes
    class_name: str | None  # the folder that directly holds it; None directly in SOURCE
    label: int  # 0 normal, 1 crime, -1 unknown
    source_group: str | None = None  # the recording it was cut from, if known
    events: tuple[tuple[int, int], ...] = ()  # first and last frame of each, if annotations tell
    num_bytes: int | None = None  # of its file, where a listing told; None: ask the file system
    version: str | None = None  # what an object store calls this content; another one when it was replaced


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """The videos of one split (or of a folder that is none), sorted by the bytes of their paths."""

    root: Location  # absolute
    split: str | None  # Train, Validation, Test or None
    videos: tuple[Video, ...]
    skipped: tuple[Failure, ...]


def find_sources(
    source: Path, *, normal: str | None = None, leave_out: Iterable[Path] = (), follow_links: bool = False
) -> list[Source]:
    """The videos in `source`: one `Source`, or one per split when it holds Train/, Test/ or Validation/.

    `normal` names the class that is normal, if it is not told by its name; every other class is then a crime.
    `leave_out`: folders that are not looked into and not mentioned, such as those of the output.
    `follow_links`: links that lead out of `source` are read too, each place once.
    Raises UserError when there is no such folder or nothing to use in it.
    """
    root = Path(os.path.abspath(source))
    if not os.path.lexists(root):
        raise UserError(f"no folder or file {source}; expected SOURCE/<Class>/*.mp4, a folder of MP4s, or one MP4")
    if not root.is_dir():
        return [_single_file(root, source)]
    not_ours = {os.path.realpath(folder) for folder in leave_out}
    try:
        splits = _split_folders(root, not_ours, follow_links)
    except OSError as error:
        raise UserError(f"{source} cannot be read: {error.strerror}; check its permissions") from error
    if splits:
        return [_find_source(folder, split, normal, not_ours, follow_links) for split, folder in sorted(splits.items())]
    return [_find_source(root, split_name(root.name), normal, not_ours, follow_links)]


def class_label(class_name: str | None, *, normal: str | None = None) -> int:
    """0 for a normal class, 1 for a crime, -1 for no class. `normal` overrules the names: it is normal, no other is.

    >>> class_label("Testing_Normal_Videos_Anomaly"), class_label("Abuse"), class_label(None)
    (0, 1, -1)
    >>> class_label("Quiet", normal="Quiet"), class_label("Abnormal", normal="Quiet")
    (0, 1)
    """
    if class_name is None:
        return UNKNOWN_LABEL
    is_normal = class_name == normal if normal is not None else "normal" in class_name.lower()
    return NORMAL_LABEL if is_normal else CRIME_LABEL


def split_name(folder_name: str) -> str | None:
    """The split that a folder of this name holds.

    >>> split_name("validation"), split_name("Training"), split_name("Abuse")
    ('Validation', 'Train', None)
    """
    return _SPLIT_NAMES.get(folder_name.lower())


def label_table(source: Source) -> str:
    """The table class → label → number of videos, for people."""
    counts = Counter((video.class_name, video.label) for video in source.videos)
    meanings = {NORMAL_LABEL: "0 normal", CRIME_LABEL: "1 crime", UNKNOWN_LABEL: "-1 unknown"}
    rows = [
        ("(no class folder)" if name is None else name, meanings[label], f"{count:,}")
        for (name, label), count in sorted(counts.items(), key=lambda row: (row[0][1], path_bytes(row[0][0] or "")))
    ]
    rows = [("class", "label", "videos"), *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows)


def check_labels(source: Source, *, normal: str | None, yes: bool) -> None:
    """Raises UserError, with the table, when the labels may be wrong and the user has not confirmed them.

    That is: no normal class, no crime class, or a class name that is not one of UCF-Crime's.
    """
    classes = {video.class_name: video.label for video in source.videos if video.class_name is not None}
    if normal is not None and normal not in classes:
        names = ", ".join(sorted(classes, key=path_bytes)) or "none"
        raise UserError(f"--normal {normal} names no class folder of {source.root}; the classes are: {names}")
    if not classes or yes or normal is not None:
        return
    doubts = []
    unknown = sorted(set(classes) - {*NORMAL_CLASSES, *CRIME_CLASSES}, key=path_bytes)
    if unknown:
        doubts.append(f"not a class name of UCF-Crime: {', '.join(unknown)}")
    if NORMAL_LABEL not in classes.values():
        doubts.append("no class is normal")
    if CRIME_LABEL not in classes.values():
        doubts.append("no class is a crime")
    if doubts:
        raise UserError(
            f"check the labels of {source.root}: {'; '.join(doubts)}\n\n{label_table(source)}\n\n"
            "If this is right, go on with --yes; to make one class normal and every other a crime, with --normal CLASS"
        )


def _single_file(path: Path, given: Path) -> Source:
    if not path.is_file():
        raise UserError(f"{given} is neither a folder nor a regular file; expected an MP4 or a folder of them")
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        raise UserError(f"{given} is no video name; expected one that ends in {', '.join(VIDEO_SUFFIXES)}")
    video = Video(path=path.name, class_name=None, label=UNKNOWN_LABEL)
    return Source(root=path.parent, split=None, videos=(video,), skipped=())


def _split_folders(root: Path, leave_out: Collection[str], follow_links: bool) -> dict[str, Path]:
    """Split → folder, if `root` holds split folders; {} if not. Raises UserError on videos that no split holds."""
    with os.scandir(root) as entries:
        found = sorted(entries, key=lambda entry: path_bytes(entry.name))
    splits: dict[str, Path] = {}
    for entry in found:
        split = split_name(entry.name)
        if split is None or not entry.is_dir() or os.path.realpath(entry.path) in leave_out:
            continue
        real = os.path.realpath(entry.path)
        if entry.is_symlink() and not follow_links and not _is_below(real, os.path.realpath(root)):
            raise UserError(
                f"{entry.path} is a link that leads out of {root}; read it with --follow-links, or give {real} itself"
            )
        if split in splits:
            raise UserError(
                f"{root} holds {splits[split].name}/ and {entry.name}/, which are the same split; "
                "build them one by one, or merge them"
            )
        splits[split] = Path(entry.path)
    if not splits:
        return {}
    used = {folder.name for folder in splits.values()}
    beside = _Walk(root, leave_out={*leave_out, *(os.path.join(os.path.realpath(root), name) for name in used)})
    if beside.videos:
        shown = ", ".join(beside.videos[:3]) + (", …" if len(beside.videos) > 3 else "")
        raise UserError(
            f"{root} holds {', '.join(f'{name}/' for name in sorted(used))} and {len(beside.videos):,} videos beside "
            f"them ({shown}); move those into a split, or build each folder by itself"
        )
    return splits


def _find_source(
    root: Path, split: str | None, normal: str | None, leave_out: Collection[str], follow_links: bool
) -> Source:
    walk = _Walk(root, leave_out, follow_links)
    groups = _read_groups(root, split)
    return make_source(root, split, walk.videos, walk.skipped, groups=groups, normal=normal)


def make_source(
    root: Location,
    split: str | None,
    paths: Iterable[str],
    skipped: Collection[Failure],
    *,
    groups: Mapping[str, str],
    normal: str | None,
) -> Source:
    """The source of the videos at `paths`, in any order. Raises UserError when there is none."""
    videos = []
    for path in sorted(paths, key=path_bytes):
        class_name = path.rpartition("/")[0].rpartition("/")[2] or None
        label = class_label(class_name, normal=normal)
        videos.append(Video(path=path, class_name=class_name, label=label, source_group=groups.get(path)))
    if not videos:
        raise UserError(_nothing_found(root, skipped))
    in_order = sorted(skipped, key=lambda failure: path_bytes(failure.path))
    return Source(root=root, split=split, videos=tuple(videos), skipped=tuple(in_order))


def _nothing_found(root: Location, skipped: Collection[Failure]) -> str:
    pictures = [f.path for f in skipped if f.path.lower().endswith(PICTURE_SUFFIXES)]
    if pictures:
        return (
            f"{root} holds {len(pictures):,} pictures (such as {pictures[0]}) and no video: folders of frames cannot "
            f"be built, because they do not say when a frame was shown; give the videos ({', '.join(VIDEO_SUFFIXES)})"
        )
    reasons = Counter(failure.reason for failure in skipped)
    found = f"; skipped: {', '.join(f'{n:,} {reason}' for reason, n in sorted(reasons.items()))}" if reasons else ""
    return (
        f"no video in {root}: expected SOURCE/<Class>/*.mp4 or *.mp4 (also {', '.join(VIDEO_SUFFIXES[1:])}, "
        f"upper or lower case){found}"
    )


class _Walk:
    """All that lies below `root`: `videos` (relative paths) and `skipped`, in no particular order.

    `leave_out`: folders, absolute and without links on the way. `follow_links`: those out of `root` too.
    """

    def __init__(self, root: Path, leave_out: Collection[str], follow_links: bool = False) -> None:
        self.root = root
        self.real_root = os.path.realpath(root)
        self.leave_out = leave_out
        self.follow_links = follow_links
        self.real_folders = [self.real_root]  # all below these is read
        self.videos: list[str] = []
        self.skipped: list[Failure] = []
        folders = [""]
        while folders:  # a list, not recursion: a tree may be deeper than the stack
            folders += self._scan(folders.pop())

    def _scan(self, folder: str) -> list[str]:
        """Sort the entries of one folder; returns its sub-folders."""
        folders = []
        try:
            real_folder = os.path.realpath(os.path.join(self.root, folder))
            with os.scandir(real_folder) as entries:
                for entry in sorted(entries, key=lambda entry: path_bytes(entry.name)):  # always the same of two links
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if os.path.join(real_folder, entry.name) not in self.leave_out:
                        folders += self._sort_or_skip(entry, path)
        except OSError as error:
            self._skip(folder or ".", "unreadable_folder", f"it cannot be listed: {error.strerror}")
        return folders

    def _sort_or_skip(self, entry: os.DirEntry[str], path: str) -> list[str]:
        try:
            return self._sort(entry, path)
        except OSError as error:  # of this entry alone: what lies beside it is read
            return self._skip(path, "unreadable", f"it cannot be looked at: {error.strerror}")

    def _sort(self, entry: os.DirEntry[str], path: str) -> list[str]:
        if entry.name.startswith("."):
            return self._skip(path, "hidden_file", "its name begins with a dot")
        if not _is_utf8_or_bytes(path):
            return self._skip(path, "unusable_name", "its name is no valid Unicode; rename it")
        if entry.is_symlink():
            real = os.path.realpath(entry.path)
            if not os.path.exists(real):
                return self._skip(path, "broken_link", "it is a link to nothing")
            if not _is_below(real, self.real_root) and not self.follow_links:
                message = "it is a link that leads out of SOURCE; --follow-links reads it"
                return self._skip(path, "link_outside_source", message)
            if os.path.isdir(real):
                if any(_is_below(real, folder) or _is_below(folder, real) for folder in self.real_folders):
                    return self._skip(path, "link_to_folder", "it is a link to a folder that is read anyway")
                self.real_folders.append(real)
                return [path]
        elif entry.is_dir(follow_symlinks=False):
            if os.path.splitext(entry.name)[1].lower() in VIDEO_SUFFIXES:
                self._skip(path, "not_a_regular_file", "it is a folder, although its name is that of a video")
            return [path]
        if path == GROUPS_NAME:
            return []
        if os.path.splitext(entry.name)[1].lower() not in VIDEO_SUFFIXES:
            return self._skip(path, "not_a_video_name", f"its name ends in none of {', '.join(VIDEO_SUFFIXES)}")
        if not stat.S_ISREG(entry.stat().st_mode):
            return self._skip(path, "not_a_regular_file", "it is a pipe, socket or device, not a file")
        self.videos.append(path)
        return []

    def _skip(self, path: str, reason: str, message: str) -> list[str]:
        self.skipped.append(Failure(path=path, outcome="skipped", reason=reason, message=message))
        return []


def _read_groups(root: Path, split: str | None) -> dict[str, str]:
    """Path relative to `root` → source group, from `sources.json` in it, or beside it when it is a split folder."""
    places = [(root, "")] + ([(root.parent, f"{root.name}/")] if split is not None else [])
    for folder, prefix in places:
        path = folder / GROUPS_NAME
        if not path.is_file():
            continue
        groups = read_source_groups(path)
        return {name.removeprefix(prefix): group for name, group in groups.items() if name.startswith(prefix)}
    return {}


def read_source_groups(path: Path) -> dict[str, str]:
    """File → source, of a JSON list of {"file": …, "source": …} or a CSV with the columns file and source."""
    return parse_source_groups(read_text(path), where=str(path))


def parse_source_groups(text: str, *, where: str) -> dict[str, str]:
    """The same of a text that was read from `where`."""
    try:
        rows = json.loads(text) if text.lstrip()[:1] in ("[", "{") else list(csv.DictReader(io.StringIO(text)))
        return {str(row["file"]): str(row["source"]) for row in rows}
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(
            f'{where} is not a list of {{"file": …, "source": …}}, or a CSV with these columns, which names the '
            f"recording each video was cut from ({error!r}); correct it, or rename it if it is about something else"
        ) from error


def path_bytes(path: str) -> bytes:
    """What paths are sorted by: the same order on every system."""
    return path.encode("utf-8", "surrogateescape")


def _is_utf8_or_bytes(name: str) -> bool:
    try:
        path_bytes(name)
    except UnicodeEncodeError:  # half a surrogate pair, which Windows allows in a name
        return False
    return True


def _is_below(path: str, folder: str) -> bool:
    return os.path.commonpath((path, folder)) == folder if path[:1] == folder[:1] else False
