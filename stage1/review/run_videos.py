"""Videos of a run, found by the names that others give them, and when their recording began."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from vidshard.util import lists
from vidshard.util.errors import UserError

_MAX_YEAR = 9000  # of a start; the end of a video must not lie after 9999, the last year of datetime


@dataclasses.dataclass(frozen=True, kw_only=True)
class Video:
    """Video of a run."""

    source: str
    path: str  # to open
    fps: float
    num_frames: int
    duration_seconds: float
    split: str | None

    def frame(self, seconds: float) -> int:
        """Return the number of the frame at a time, from 0."""
        return round(seconds * self._rate)

    def seconds(self, frame: float) -> float:
        """Return the time of a frame, from 0."""
        return frame / self._rate

    @property
    def _rate(self) -> float:
        return self.fps if self.fps > 0 else 1.0


class Videos(dict[str, Video]):
    """Videos of a run by source, which are also found by the names that other tools give them."""

    def __init__(self, videos: Iterable[Video]) -> None:
        super().__init__((video.source, video) for video in videos)
        self._by_name: dict[str, list[Video]] = defaultdict(list)
        self.unknown: dict[str, None] = {}  # names that no video has
        for video in self.values():
            name = without_suffix(video.source)
            for key in {name, PurePosixPath(name).name}:
                self._by_name[key].append(video)

    @classmethod
    def of(cls, events: Mapping[str, Any]) -> Videos:
        """Return the videos of the content of events.json."""
        names = [field.name for field in dataclasses.fields(Video) if field.name != "path"]
        return cls(
            Video(**{name: entry[name] for name in names}, path=entry["video_path"]) for entry in events["videos"]
        )

    def found(self, of_names: Iterable[tuple[str, Any]]) -> Iterator[tuple[Video, Any]]:
        """Yield what belongs to names, with the videos of these names; names that no video has are left out."""
        for name, value in of_names:
            if (video := self.find(name)) is not None:
                yield video, value

    def find(self, name: str) -> Video | None:
        """Return the video with this source or, if only one has it, this source or file name without suffix.

        The name as given comes before the name without its suffix, as `a.avi` may be the file `a.avi.mp4`.
        """
        if name in self:
            return self[name]
        full, stem = name.replace("\\", "/"), without_suffix(name)
        keys = (full, stem, PurePosixPath(full).name, PurePosixPath(stem).name)
        found = next((self._by_name[key] for key in keys if key in self._by_name), [])
        if len(found) == 1:
            return found[0]
        self.unknown[name] = None
        return None


def without_suffix(name: str) -> str:
    """Return the name of a video without the suffix, if it has one, and with forward slashes.

    >>> without_suffix("cam 1/a.MP4"), without_suffix("cam 1/a v1.2")
    ('cam 1/a', 'cam 1/a v1.2')
    """
    name = name.replace("\\", "/")
    stem, _, suffix = name.rpartition(".")
    return stem if f".{suffix.lower()}" in lists.VIDEO_SUFFIXES else name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorded:
    """Time at which the recording of a video began, and by which camera ("" if unknown)."""

    start: datetime.datetime
    camera: str = ""

    def clock(self, seconds: float) -> str:
        """Return the date and time at a second of the video.

        >>> Recorded(start=datetime.datetime(2026, 1, 31, 23, 59, 58)).clock(3.7)
        '2026-02-01 00:00:01'
        """
        return (self.start + datetime.timedelta(seconds=seconds)).isoformat(sep=" ", timespec="seconds")

    def timestamp(self, seconds: float) -> float:
        """Return a number that orders times of several videos; times without a zone are taken as UTC."""
        start = self.start if self.start.tzinfo is not None else self.start.replace(tzinfo=datetime.UTC)
        return start.timestamp() + seconds


def read_start_times(path: Path, videos: Videos) -> dict[str, Recorded]:
    """Read a CSV with the columns video, start (ISO 8601) and, if wanted, camera; return the videos by source.

    Raises UserError if it cannot be read, or names no video of the run.
    """
    found = {}
    for line, row in enumerate(csv.DictReader(io.StringIO(lists.read_text(path))), start=2):
        try:
            name, start = row["video"].strip(), datetime.datetime.fromisoformat(row["start"].strip())
        except (KeyError, ValueError, AttributeError) as error:
            raise UserError(
                f"`start_times` {path}, line {line}: expected the columns video and start, such as "
                f"cam1/a.mp4,2026-01-31T14:00:00 ({error!r:.200})"
            ) from error
        if start.year > _MAX_YEAR:
            raise UserError(
                f"`start_times` {path}, line {line}: expected a year up to {_MAX_YEAR}, not {start.year}; correct it"
            )
        video = videos.find(name)
        if video is not None:
            found[video.source] = Recorded(start=start, camera=(row.get("camera") or "").strip())
    if not found:
        raise UserError(f"`start_times` {path} names no video of this run, such as {next(iter(videos), 'a.mp4')!r}")
    return found
