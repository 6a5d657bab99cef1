"""Ground truth of frames, from annotations and frame counts, under a stated convention.

UCF-Crime does not say whether its frames count from 0 or from 1, and public code reads its lines in three ways, the
`EVENT_CONVENTIONS`. The choice changes the frame AUC by less than 0.0001, which can still change the fourth digit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vidshard.util import lists as video_lists
from vidshard.util.errors import UserError
from vidshard.util.lists import ListedVideo
from vidshard.util.text import counted, first_of

EVENT_CONVENTIONS = {
    "inclusive": "frames count from 0, and an event includes its last frame",
    "half-open": "frames count from 0, and an event excludes its last frame",
    "one-based": "frames count from 1, and an event includes its last frame",
}
DEFAULT_CONVENTION = "inclusive"


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoGroundTruth:
    """Events of a video: first and last frame (inclusive, from 0, within the video) of each."""

    stem: str  # file name without folder and suffix
    class_name: str | None
    num_frames: int
    events: tuple[tuple[int, int], ...]

    @property
    def is_crime(self) -> bool:
        return bool(self.events)

    def frame_labels(self) -> npt.NDArray[np.uint8]:
        """Return 1 for the frames of an event and 0 for others: uint8 [num_frames].

        >>> VideoGroundTruth(stem="a", class_name="Abuse", num_frames=5, events=((1, 2),)).frame_labels().tolist()
        [0, 1, 1, 0, 0]
        """
        labels = np.zeros(self.num_frames, np.uint8)
        for first, last in self.events:
            labels[first : last + 1] = 1
        return labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Annotations:
    """Ground truth of a test set, with notes on irregularities in its files."""

    videos: tuple[VideoGroundTruth, ...]
    convention: str
    overruns: int  # events that end after the last frame of their video, according to the file; they are cut there
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of videos, frames and events, as in evaluation.json."""
        return {
            "videos": len(self.videos),
            "crime_videos": sum(video.is_crime for video in self.videos),
            "videos_with_two_events": sum(len(video.events) > 1 for video in self.videos),
            "frames": sum(video.num_frames for video in self.videos),
            "event_frames": sum(int(video.frame_labels().sum()) for video in self.videos),
            "overruns_cut": self.overruns,
        }

    def describe(self) -> str:
        """Summarise the annotations in one line."""
        counts = {name: f"{count:,}" for name, count in self.counts.items()}
        return (
            f"{counts['videos']} videos, {counts['crime_videos']} with a crime ({counts['videos_with_two_events']} of "
            f"them with two events or more), {counts['frames']} frames, {counts['event_frames']} event frames; "
            f"{counted(self.overruns, 'event')} cut at the last frame. "
            f"Events: {EVENT_CONVENTIONS[self.convention]}."
        )


def read_annotations(path: Path, frame_counts: Path | None = None) -> list[ListedVideo]:
    """Read an annotation file, and take frame counts that it lacks from the file `frame_counts`.

    Raises UserError if a file is malformed, or if the frame counts of the two files differ.
    """
    videos = video_lists.read_videos(path)
    if all(video.events is None for video in videos):
        raise UserError(f"{path} contains no events, expected lines such as: Abuse028_x264.mp4 Abuse 165 240 -1 -1")
    if frame_counts is None:
        return videos
    counts = {video.stem: video.num_frames for video in video_lists.read_videos(frame_counts)}
    merged = []
    for video in videos:
        count = counts.get(video.stem)
        if None not in (count, video.num_frames) and count != video.num_frames:
            raise UserError(
                f"{video.name} has {video.num_frames} frames in {path} but {count} in {frame_counts}; correct one of "
                "the files"
            )
        merged.append(dataclasses.replace(video, num_frames=count or video.num_frames))
    return merged


def make_annotations(
    listed: Sequence[ListedVideo],
    *,
    num_frames: Mapping[str, int] | None = None,
    convention: str = DEFAULT_CONVENTION,
) -> Annotations:
    """Return the ground truth of the videos whose length is known, from their line or from `num_frames` (by stem).

    Crime videos without an event in the file are excluded and noted, because the position of the crime is unknown.
    Raises UserError if no video is left, or if a normal video has an event.
    """
    videos, overruns, notes = [], 0, []
    lengths = dict(num_frames or {})
    no_length = [video.stem for video in listed if (video.num_frames or lengths.get(video.stem)) is None]
    no_event = []
    for video in listed:
        length = video.num_frames or lengths.get(video.stem)
        is_normal = video.class_name is not None and video_lists.sounds_normal(video.class_name)
        if is_normal and video.events:
            raise UserError(
                f"{video.name} is of class {video.class_name} but has an event; correct the annotation file"
            )
        if length is None:
            continue
        if video.class_name is not None and not is_normal and not video.events:
            no_event.append(video.stem)
            continue
        events = tuple(_cut(event, length, convention) for event in video.events or ())
        overruns += sum(last > length for _, last in video.events or ())
        videos.append(
            VideoGroundTruth(
                stem=video.stem,
                class_name=video.class_name,
                num_frames=length,
                events=tuple(event for event in events if event is not None),
            )
        )
    if no_length:
        notes.append(
            f"{len(no_length):,} videos are excluded, as their number of frames is unknown: {first_of(no_length, 3)}"
        )
    if no_event:
        notes.append(
            f"{len(no_event):,} crime videos are excluded, as they have no annotated event: {first_of(no_event, 3)}"
        )
    if not videos:
        raise UserError(
            "the number of frames is not known for any annotated video; pass a list of frame counts as "
            "`frame_counts`, such as UCF-Crime's test_frame_counts.txt (`Arson/Arson022_x264.mp4 8640 …`)"
        )
    return Annotations(videos=tuple(videos), convention=convention, overruns=overruns, notes=tuple(notes))


def refuse_overlap(annotations: Sequence[ListedVideo], lists: Sequence[Path]) -> None:
    """Raise UserError if a list of training videos, of any stage, names a video of the test set."""
    tested = {video.stem for video in annotations}
    for path in lists:
        shared = [name for stem, name in video_lists.read_list(path).items() if stem in tested]
        if shared:
            raise UserError(
                f"{path} lists {len(shared):,} of the {len(tested):,} test videos ({first_of(shared, 3)}): a model "
                "must not be tested on its training videos; remove them from the list and train again"
            )


def _cut(event: tuple[int, int], num_frames: int, convention: str) -> tuple[int, int] | None:
    """Return the first and last frame of an event, from 0, cut to the video; None if no frame is left."""
    first, last = event
    if convention == "one-based":
        first, last = first - 1, last - 1
    elif convention == "half-open":
        last -= 1
    first, last = max(first, 0), min(last, num_frames - 1)
    return (first, last) if first <= last else None
