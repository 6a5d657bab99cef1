"""Discovery of videos in a folder, with their classes and splits.

A video is recognised by its name, or by the beginning of its content if the name is inconclusive. Nothing is dropped
silently: every other file is listed in `skipped`.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import dataclasses
import io
import itertools
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from vidshard.shards.layout import CRIME_LABEL, MANIFEST_NAME, NORMAL_LABEL, SHARD_PATTERN, UNKNOWN_LABEL
from vidshard.shards.manifest import Failure
from vidshard.storage.urls import Location
from vidshard.util.errors import UserError
from vidshard.util.lists import CRIME_CLASSES, NORMAL_CLASSES, SHOWN_SUFFIXES, read_text, sounds_normal
from vidshard.util.lists import VIDEO_SUFFIXES as VIDEO_SUFFIXES
from vidshard.util.text import aligned, counted, first_of, path_bytes
from vidshard.video import containers
from vidshard.video.containers import VideoError

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")

# Files with these suffixes are not videos (audio included) and are not opened to check.
OTHER_SUFFIXES = frozenset(
    """
    .txt .md .rst .log .csv .tsv .json .jsonl .xml .yaml .yml .toml .ini .cfg .html .htm .css .js .py .ipynb .sh .bat .c
    .h .cpp .java .nfo .rtf .pdf .doc .docx .xls .xlsx .ppt .pptx .url .lnk .lock .md5 .sha1 .sha256 .torrent
    .jpg .jpeg .png .bmp .webp .tif .tiff .gif .svg .ico .psd .heic .heif .avif .cr3 .thm .db .sqlite
    .srt .vtt .ass .ssa .sub .idx .lrc .mp3 .m4a .m4b .aac .wav .flac .ogg .oga .opus .mka .wma .amr .aiff
    .npy .npz .mat .h5 .hdf5 .pkl .pt .pth .ckpt .onnx .safetensors .parquet .arrow
    .zip .tar .tgz .gz .bz2 .xz .zst .7z .rar .iso .exe .dll .so .o .a .pyc
    """.split()  # noqa: SIM905
)
_TEXT_TOO = (".ts", ".mts")  # also suffixes of TypeScript
HEAD_BYTES = 4096

_MAX_LOOKED_AT = 1000  # entries of a folder that are examined to guess what it is

_SPLIT_NAMES = {
    "train": "Train", "training": "Train",
    "test": "Test", "testing": "Test",
    "val": "Validation", "valid": "Validation", "validation": "Validation",
}  # fmt: skip

SPLITS = ("Train", "Validation", "Test")

# Reasons for skipping an entry that may be, or contain, a video. (A folder named like a video is
# `not_a_regular_file`, but is read.)
MAY_HIDE_VIDEOS = (
    "broken_link", "link_outside_source", "link_to_folder", "unreadable", "unreadable_folder", "unusable_name",
)  # fmt: skip

# Optional, in SOURCE or next to its split folders: [{"file": "Train/Abuse/a.mp4", "source": "recording 7"}, …].
RECORDINGS_NAME = "sources.json"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Video:
    """One source video."""

    path: str  # relative to SOURCE, with forward slashes
    class_name: str | None  # name of the parent folder; None directly in SOURCE
    label: int  # 0 normal, 1 crime, -1 unknown
    recording: str | None = None  # the recording it was cut from, if known
    events: tuple[tuple[int, int], ...] = ()  # first and last frame of each annotated event
    num_bytes: int | None = None  # file size from a listing; None: ask the file system
    version: str | None = None  # version in an object store, which changes when the object is replaced


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Videos of one split (or of a folder that is not a split), sorted by the bytes of their paths."""

    root: Location  # absolute
    split: str | None  # Train, Validation, Test or None
    videos: tuple[Video, ...]
    skipped: tuple[Failure, ...]
    notes: tuple[str, ...] = ()  # remarks for the user


def skip_videos(source: Source, videos: Iterable[Video], reason: str, message: str) -> tuple[Failure, ...]:
    """Return the skipped entries of a source together with these `videos`, sorted."""
    more = [Failure(path=video.path, outcome="skipped", reason=reason, message=message) for video in videos]
    return _in_order([*source.skipped, *more])


def _in_order(failures: Iterable[Failure]) -> tuple[Failure, ...]:
    return tuple(sorted(failures, key=lambda failure: path_bytes(failure.path)))


def find_sources(
    source: Path, *, normal: str | None = None, leave_out: Iterable[Path] = (), follow_links: bool = False
) -> list[Source]:
    """Find the videos in `source`: one `Source`, or one per split if it contains Train/, Test/ or Validation/.

    `normal` names the normal class, if its name does not show it; every other class is then a crime.
    `leave_out`: folders that are ignored and not reported, such as those of the output.
    `follow_links`: also read links that lead out of `source`, each target once.
    Raises UserError if there is no such folder or no usable video in it.
    """
    root = Path(os.path.abspath(source))
    if not os.path.lexists(root):
        raise UserError(f"no folder or file {source}; expected SOURCE/<Class>/*.mp4, a folder of videos, or one video")
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
    """Return 0 for a normal class, 1 for a crime, -1 for no class. If `normal` is given, only that class is normal.

    >>> class_label("Testing_Normal_Videos_Anomaly"), class_label("Abnormal"), class_label(None)
    (0, 1, -1)
    >>> class_label("Quiet", normal="Quiet"), class_label("Abnormal", normal="Quiet")
    (0, 1)
    """
    if class_name is None:
        return UNKNOWN_LABEL
    is_normal = class_name == normal if normal is not None else sounds_normal(class_name)
    return NORMAL_LABEL if is_normal else CRIME_LABEL


def split_name(folder_name: str) -> str | None:
    """Return the split that a folder of this name contains, or None.

    >>> split_name("validation"), split_name("Training"), split_name("Abuse")
    ('Validation', 'Train', None)
    """
    return _SPLIT_NAMES.get(folder_name.lower())


def label_table(source: Source) -> str:
    """Format the table class → label → number of videos."""
    counts = Counter((video.class_name, video.label) for video in source.videos)
    meanings = {NORMAL_LABEL: "0 normal", CRIME_LABEL: "1 crime", UNKNOWN_LABEL: "-1 unknown"}
    rows = [
        ("(no class folder)" if name is None else name, meanings[label], f"{count:,}")
        for (name, label), count in sorted(counts.items(), key=lambda row: (row[0][1], path_bytes(row[0][0] or "")))
    ]
    return "\n".join(aligned([("class", "label", "videos"), *rows], right=[2]))


def is_known_class(name: str) -> bool:
    """Return True if `name` is a class of UCF-Crime, ignoring case, `-`, `_` and spaces.

    >>> is_known_class("training_normal_videos_part_1"), is_known_class("Road Accidents"), is_known_class("Abuses")
    (True, True, False)
    """
    return _plain_name(name) in _KNOWN_CLASSES


def _plain_name(name: str) -> str:
    return re.sub(r"[-_ ]", "", name.lower())


_KNOWN_CLASSES = frozenset(_plain_name(name) for name in (*NORMAL_CLASSES, *CRIME_CLASSES))


def check_no_class_folder(given: Location, sources: Sequence[Source]) -> None:
    """Raise UserError if `given` seems to be the folder of a single class, whose videos would have no label.

    That is the case if it contains videos itself and is either inside a split folder or next to another class folder,
    and one of the two has a class name of UCF-Crime.
    """
    place = Path(os.path.abspath(given)) if isinstance(given, Path) else given
    if len(sources) != 1 or sources[0].root != place or sources[0].split is not None:
        return
    if all(video.class_name is not None for video in sources[0].videos):
        return
    parent = place.parent
    if split_name(parent.name) is not None or (isinstance(parent, Path) and _has_neighbour_class(parent, place.name)):
        raise UserError(
            f"{given} seems to be the folder of one class, whose videos would have no label: did you mean {parent}? "
            "To build it without labels, pass `yes`"
        )


def _has_neighbour_class(parent: Path, name: str) -> bool:
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        for entry in itertools.islice(entries, _MAX_LOOKED_AT):
            named = is_known_class(entry.name) or is_known_class(name)
            if named and entry.name != name and entry.is_dir() and _holds_video(entry.path):
                return True
    return False


def _holds_video(folder: str) -> bool:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return any(e.name.lower().endswith(VIDEO_SUFFIXES) for e in itertools.islice(entries, _MAX_LOOKED_AT))
    return False


def check_labels(source: Source, *, normal: str | None, yes: bool) -> None:
    """Raise UserError, with the table of labels, if they may be wrong and the user has not confirmed them.

    That is the case without a normal class, without a crime class, or with a class name unknown in UCF-Crime.
    """
    classes = {video.class_name: video.label for video in source.videos if video.class_name is not None}
    if normal is not None and normal not in classes:
        names = ", ".join(sorted(classes, key=path_bytes)) or "none"
        raise UserError(f"`normal` {normal} is not a class folder of {source.root}; the classes are: {names}")
    if not classes or yes or normal is not None:
        return
    doubts = []
    unknown = sorted((name for name in classes if not is_known_class(name)), key=path_bytes)
    if unknown:
        doubts.append(f"not a class name of UCF-Crime: {', '.join(unknown)}")
    if NORMAL_LABEL not in classes.values():
        doubts.append("no class is normal")
    if CRIME_LABEL not in classes.values():
        doubts.append("no class is a crime")
    if doubts:
        raise UserError(
            f"check the labels of {source.root}: {'; '.join(doubts)}\n\n{label_table(source)}\n\n"
            "Pass `normal` CLASS to make one class normal and all others crimes, or `yes` to accept this table"
        )


def why_no_video(name: str, read_head: Callable[[], bytes]) -> tuple[str, str] | None:
    """Return reason and message for skipping a file; None if it counts as a video.

    `read_head` returns the first bytes of the file; it is called only if the name is inconclusive, and may raise.

    >>> why_no_video("a.MP4", bytes), why_no_video("recorder/0001", lambda: b"FLV\\1\\5")
    (None, None)
    >>> why_no_video("app.ts", lambda: b"export default 1")[0], why_no_video("notes.txt", bytes)[0]
    ('not_a_video', 'not_a_video_name')
    """
    suffix = os.path.splitext(name)[1].lower()
    if suffix in _TEXT_TOO and _is_text(read_head()):
        return "not_a_video", "it is a text file with a video suffix; nothing to do"
    if suffix in VIDEO_SUFFIXES or (suffix not in OTHER_SUFFIXES and _begins_like_video(read_head())):
        return None
    return "not_a_video_name", "its name is not that of a video; if it is one, rename it so that it ends in .mp4"


def _begins_like_video(head: bytes) -> bool:
    try:
        containers.container_format(head)
    except VideoError:
        return False
    return True


def _is_text(head: bytes) -> bool:
    """Return True if a non-empty file begins with UTF-8 text."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # a character may be cut at the end
    except UnicodeDecodeError:
        return False
    return bool(text) and not any(ord(character) < 32 and character not in "\t\n\r\f" for character in text)


def by_content_note(paths: Collection[str]) -> list[str]:
    """Return a note about files that were recognised as videos by their content alone, if any."""
    if not paths:
        return []
    some = sorted(paths, key=path_bytes)
    return [f"recognised as videos by their content, not by their names: {len(some):,} ({first_of(some, 3)})"]


def _single_file(path: Path, given: Path) -> Source:
    if not path.is_file():
        raise UserError(f"{given} is neither a folder nor a regular file; expected a video or a folder of them")
    if why_no_video(path.name, lambda: _read_head(path)) is not None:
        raise UserError(f"{given} is not a video name; expected a name that ends in {SHOWN_SUFFIXES}")
    video = Video(path=path.name, class_name=None, label=UNKNOWN_LABEL)
    return Source(root=path.parent, split=None, videos=(video,), skipped=())


def _read_head(path: Path | str) -> bytes:
    """Return the first bytes of a regular file; b"" for a pipe (which would block) or folder. Raises OSError."""
    if not os.path.isfile(path):
        return b""
    with open(path, "rb") as file:
        return file.read(HEAD_BYTES)


def _split_folders(root: Path, leave_out: Collection[str], follow_links: bool) -> dict[str, Path]:
    """Return split → folder if `root` contains split folders; otherwise {}. Raises UserError on videos outside the
    splits."""
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
                f"{entry.path} is a link that leads out of {root}; pass `follow_links`, or build {real} itself"
            )
        if split in splits:
            raise UserError(
                f"{root} contains {splits[split].name}/ and {entry.name}/, which are the same split; "
                "build them separately, or merge them"
            )
        splits[split] = Path(entry.path)
    if not splits:
        return {}
    used = {folder.name for folder in splits.values()}
    outside = _Walk(root, leave_out={*leave_out, *(os.path.join(os.path.realpath(root), name) for name in used)})
    if outside.videos:
        raise UserError(
            f"{root} contains {', '.join(f'{name}/' for name in sorted(used))} and "
            f"{counted(len(outside.videos), 'video')} outside them "
            f"({first_of(outside.videos, 3)}); move those into a split, or build each folder separately"
        )
    return splits


def _find_source(
    root: Path, split: str | None, normal: str | None, leave_out: Collection[str], follow_links: bool
) -> Source:
    walk = _Walk(root, leave_out, follow_links)
    recordings = _read_recordings(root, split)
    notes = by_content_note(walk.by_content)
    return make_source(root, split, walk.videos, walk.skipped, recordings=recordings, normal=normal, notes=notes)


def make_source(
    root: Location,
    split: str | None,
    paths: Iterable[str],
    skipped: Collection[Failure],
    *,
    recordings: Recordings,
    normal: str | None,
    notes: Sequence[str] = (),
) -> Source:
    """Create the source of the videos at `paths`, in any order. Raises UserError if there are none."""
    videos = []
    for path in sorted(paths, key=path_bytes):
        class_name = path.rpartition("/")[0].rpartition("/")[2] or None
        label = class_label(class_name, normal=normal)
        videos.append(Video(path=path, class_name=class_name, label=label, recording=recordings.of.get(path)))
    if not videos:
        raise UserError(_nothing_found(root, skipped))
    all_notes = (*notes, *recordings.notes(videos))
    return Source(root=root, split=split, videos=tuple(videos), skipped=_in_order(skipped), notes=all_notes)


def _nothing_found(root: Location, skipped: Collection[Failure]) -> str:
    others = [PurePosixPath(failure.path) for failure in skipped]
    shard_folders = {path.parent for path in others if SHARD_PATTERN.fullmatch(path.name)}
    sets = sorted(shard_folders & {path.parent for path in others if path.name == MANIFEST_NAME})
    if sets:
        places = ", ".join(str(root / str(place) if place.name else root) for place in sets[:3])
        return f"no video in {root}, but finished shards ({places}): pass the folder of the videos, or of one shard set"
    pictures = [f.path for f in skipped if f.path.lower().endswith(PICTURE_SUFFIXES)]
    if pictures:
        return (
            f"{root} contains {len(pictures):,} pictures (such as {pictures[0]}) and no video: folders of frames "
            f"cannot be built, because the frame times are unknown; pass the videos ({SHOWN_SUFFIXES})"
        )
    reasons = Counter(failure.reason for failure in skipped)
    found = f"; skipped: {', '.join(f'{n:,} {reason}' for reason, n in sorted(reasons.items()))}" if reasons else ""
    return f"no video in {root}: expected SOURCE/<Class>/*.mp4 or *.mp4 ({SHOWN_SUFFIXES}, upper or lower case){found}"


class _Walk:
    """Recursive listing of `root`: `videos` (relative paths) and `skipped`, in no particular order.

    `leave_out`: absolute folders without symbolic links. `follow_links`: also follow links out of `root`.
    """

    def __init__(self, root: Path, leave_out: Collection[str], follow_links: bool = False) -> None:
        self.root = root
        self.real_root = os.path.realpath(root)
        self.leave_out = leave_out
        self.follow_links = follow_links
        self.real_folders = [self.real_root]  # everything below these is read
        self.videos: list[str] = []
        self.by_content: list[str] = []  # the videos without a video name
        self.skipped: list[Failure] = []
        folders = [""]
        while folders:  # a list, not recursion: a tree may be deeper than the stack
            folders += self._scan(folders.pop())

    def _scan(self, folder: str) -> list[str]:
        """Classify the entries of one folder; return its subfolders."""
        folders = []
        try:
            real_folder = os.path.realpath(os.path.join(self.root, folder))
            with os.scandir(real_folder) as entries:
                for entry in sorted(entries, key=lambda entry: path_bytes(entry.name)):  # deterministic
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if os.path.join(real_folder, entry.name) not in self.leave_out:
                        folders += self._sort_or_skip(entry, path)
        except OSError as error:
            self._skip(folder or ".", "unreadable_folder", f"it cannot be listed: {error.strerror}")
        return folders

    def _sort_or_skip(self, entry: os.DirEntry[str], path: str) -> list[str]:
        try:
            if entry.name.startswith(".") and not is_hidden_video(entry.name, lambda: _read_head(entry.path)):
                return self._skip(path, *HIDDEN)
            if not _is_utf8_or_bytes(path):
                return self._skip(path, "unusable_name", "its name is not valid Unicode; rename it")
            return self._sort(entry, path)
        except OSError as error:  # affects this entry only: its siblings are read
            return self._skip(path, "unreadable", f"it cannot be examined: {error.strerror}")

    def _sort(self, entry: os.DirEntry[str], path: str) -> list[str]:
        if entry.is_symlink():
            real = os.path.realpath(entry.path)
            if (why := self._why_skip_link(real)) is not None:
                return self._skip(path, *why)
            if os.path.isdir(real):
                self.real_folders.append(real)
                return [path]
        elif entry.is_dir(follow_symlinks=False):
            if has_video_suffix(entry.name):
                self._skip(
                    path, "not_a_regular_file", "it is a folder, although its name is that of a video; it is read"
                )
            return [path]
        if path == RECORDINGS_NAME:
            return []
        why = why_no_video(entry.name, lambda: _read_head(entry.path))
        if why is None and not stat.S_ISREG(entry.stat().st_mode):
            why = "not_a_regular_file", "it is a pipe, socket or device, not a file; delete it"
        if why is not None:
            return self._skip(path, *why)
        self.by_content += [] if has_video_suffix(entry.name) else [path]
        self.videos.append(path)
        return []

    def _why_skip_link(self, real: str) -> tuple[str, str] | None:
        """Return reason and message for skipping a link to `real`; None if it is followed."""
        if not os.path.exists(real):
            return "broken_link", "it is a broken link; repair or delete it"
        if not _is_below(real, self.real_root) and not self.follow_links:
            return "link_outside_source", "it is a link that leads out of SOURCE; `follow_links` reads it"
        if os.path.isdir(real) and any(_is_below(real, at) or _is_below(at, real) for at in self.real_folders):
            return "link_to_folder", "it is a link to a folder that is read anyway"
        return None

    def _skip(self, path: str, reason: str, message: str) -> list[str]:
        self.skipped.append(Failure(path=path, outcome="skipped", reason=reason, message=message))
        return []


HIDDEN = "hidden_file", "its name begins with a dot; rename it if it is to be read"


def has_video_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def is_hidden_video(name: str, read_head: Callable[[], bytes]) -> bool:
    """Return True if a file whose name begins with a dot is a video by its suffix and its content.

    Other hidden files are not: macOS keeps `._clip.mp4` with metadata, rsync an unfinished `.clip.mp4.Xa81bc`.
    """
    return name.lower().endswith(VIDEO_SUFFIXES) and _begins_like_video(read_head())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recordings:
    """Content of a `sources.json`: the recording that each video was cut from."""

    where: str = ""  # the file; "" if there is none
    of: Mapping[str, str] = dataclasses.field(default_factory=dict)  # path relative to the source → recording
    fault: str = ""  # why the file was ignored

    @classmethod
    def from_text(cls, text: str, *, where: str, prefix: str) -> Recordings:
        """Parse the rows whose paths begin with `prefix`, which is removed. An invalid file gives only a `fault`."""
        try:
            recordings = parse_recordings(text, where=where)
        except UserError as error:
            return cls(where=where, fault=str(error))
        return cls(where=where, of={n.removeprefix(prefix): g for n, g in recordings.items() if n.startswith(prefix)})

    def notes(self, videos: Sequence[Video]) -> list[str]:
        """Return remarks for the user about the file."""
        if not self.where:
            return []
        known = [video.recording for video in videos if video.recording is not None]
        if known:
            return [
                f"{self.where} was read: {len(known):,} of {len(videos):,} videos are cut from "
                f"{counted(len(set(known)), 'recording')}"
            ]
        fault = self.fault or f"{self.where} lists none of the videos; expected paths such as {videos[0].path}"
        return [f"WARNING: videos are not grouped by recording: {fault}"]


def _read_recordings(root: Path, split: str | None) -> Recordings:
    """Read the `sources.json` in `root` or, if `root` is a split folder, next to it. Raises UserError."""
    places = [(root, "")] + ([(root.parent, f"{root.name}/")] if split is not None else [])
    for folder, prefix in places:
        path = folder / RECORDINGS_NAME
        if path.is_file():
            try:
                text = path.read_bytes().decode("utf-8-sig", "replace")
            except OSError as error:
                raise UserError(
                    f"{path} cannot be read: {error.strerror}; it groups the videos by recording"
                ) from error
            return Recordings.from_text(text, where=str(path), prefix=prefix)
    return Recordings()


def read_recordings(path: Path) -> dict[str, str]:
    """Read file → source from a JSON list of {"file": …, "source": …} or a CSV with the columns file and source."""
    return parse_recordings(read_text(path), where=str(path))


def parse_recordings(text: str, *, where: str) -> dict[str, str]:
    """Parse the text of such a list; `where` names it in errors."""
    try:
        rows = json.loads(text) if text.lstrip()[:1] in ("[", "{") else list(csv.DictReader(io.StringIO(text)))
        return {str(row["file"]): str(row["source"]) for row in rows}
    except (ValueError, KeyError, TypeError, RecursionError, csv.Error) as error:
        raise UserError(
            f'{where} is not a list of {{"file": …, "source": …}}, or a CSV with these columns, which names the '
            f"recording each video was cut from ({error!r}); correct it, or rename it if it has another purpose"
        ) from error


def _is_utf8_or_bytes(name: str) -> bool:
    try:
        path_bytes(name)
    except UnicodeEncodeError:  # half a surrogate pair, which Windows allows in a name
        return False
    return True


def _is_below(path: str, folder: str) -> bool:
    return os.path.commonpath((path, folder)) == folder if path[:1] == folder[:1] else False
