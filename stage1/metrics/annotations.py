"""What is true of each frame: annotations and frame counts → event frames, under a convention that is stated.

Nobody wrote down whether UCF-Crime counts its frames from 0 or 1, and public code reads the same lines in three ways:
`EVENT_CONVENTIONS`. They move the frame AUC by less than .0001, which still makes other fourth digits.
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

EVENT_CONVENTIONS = {
    "inclusive": "frames from 0, the last one of an event belongs to it",
    "half-open": "frames from 0, the last one of an event does not belong to it",
    "one-based": "frames from 1, the last one of an event belongs to it",
}
DEFAULT_CONVENTION = "inclusive"


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoGroundTruth:
    """Where the events of a video are. Frames count from 0, first and last included, all within the video."""

    stem: str  # file name without folder and suffix
    class_name: str | None
    num_frames: int
    events: tuple[tuple[int, int], ...]

    @property
    def is_crime(self) -> bool:
        return bool(self.events)

    def frame_labels(self) -> npt.NDArray[np.uint8]:
        """1 for the frames of an event, else 0: uint8 [num_frames].

        >>> VideoGroundTruth(stem="a", class_name="Abuse", num_frames=5, events=((1, 2),)).frame_labels().tolist()
        [0, 1, 1, 0, 0]
        """
        labels = np.zeros(self.num_frames, np.uint8)
        for first, last in self.events:
            labels[first : last + 1] = 1
        return labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Annotations:
    """The truth about a test set, and what was odd in its files."""

    videos: tuple[VideoGroundTruth, ...]
    convention: str
    overruns: int  # events whose last frame, as written, is larger than the number of frames: cut at the end
    notes: tuple[str, ...] = ()

    @property
    def num_frames(self) -> int:
        return sum(video.num_frames for video in self.videos)

    @property
    def num_event_frames(self) -> int:
        return sum(int(video.frame_labels().sum()) for video in self.videos)

    @property
    def num_crimes(self) -> int:
        return sum(video.is_crime for video in self.videos)

    @property
    def num_with_two_events(self) -> int:
        return sum(len(video.events) > 1 for video in self.videos)

    def describe(self) -> str:
        """One line for people."""
        return (
            f"{len(self.videos):,} videos, {self.num_crimes:,} with a crime ({self.num_with_two_events} of them with "
            f"two events or more), {self.num_frames:,} frames, {self.num_event_frames:,} of an event; "
            f"{self.overruns} events run past the last frame and are cut there. "
            f"Events: {EVENT_CONVENTIONS[self.convention]}."
        )


def read_annotations(path: Path, frame_counts: Path | None = None) -> list[ListedVideo]:
    """The lines of an annotation file, with the frame counts of a second one where the first has none.

    Raises UserError where a file is malformed, or the counts of both contradict each other.
    """
    videos = video_lists.read_videos(path)
    if all(video.events is None for video in videos):
        raise UserError(f"{path} tells no events, expected lines such as: Abuse028_x264.mp4 Abuse 165 240 -1 -1")
    if frame_counts is None:
        return videos
    counts = {video.stem: video.num_frames for video in video_lists.read_videos(frame_counts)}
    merged = []
    for video in videos:
        count = counts.get(video.stem)
        if None not in (count, video.num_frames) and count != video.num_frames:
            raise UserError(
                f"{path} gives {video.name} {video.num_frames} frames, {frame_counts} {count}: correct one of them"
            )
        merged.append(dataclasses.replace(video, num_frames=count or video.num_frames))
    return merged


def make_annotations(
    listed: Sequence[ListedVideo],
    *,
    num_frames: Mapping[str, int] | None = None,
    convention: str = DEFAULT_CONVENTION,
) -> Annotations:
    """The truth about the videos whose length is known: from their line, else from `num_frames` (stem → count).

    A crime without an event in the file is left out: where in it the crime is, nobody knows. Raises UserError where no
    video is left, or a normal video has an event.
    """
    videos, overruns, notes = [], 0, []
    lengths = dict(num_frames or {})
    no_length = [video.stem for video in listed if (video.num_frames or lengths.get(video.stem)) is None]
    no_event = []
    for video in listed:
        length = video.num_frames or lengths.get(video.stem)
        is_normal = video.class_name is not None and "normal" in video.class_name.lower()
        if is_normal and video.events:
            raise UserError(
                f"{video.name} is of class {video.class_name} and has an event: correct the annotation file"
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
            f"{len(no_length):,} videos are left out, whose number of frames is not known: {_shown(no_length)}"
        )
    if no_event:
        notes.append(f"{len(no_event):,} videos of a crime are left out, of which no event is told: {_shown(no_event)}")
    if not videos:
        raise UserError(
            "of no annotated video the number of frames is known: name a list with it by --frame-counts, such as "
            "UCF-Crime's test_frame_counts.txt (`Arson/Arson022_x264.mp4 8640 …`)"
        )
    return Annotations(videos=tuple(videos), convention=convention, overruns=overruns, notes=tuple(notes))


def refuse_overlap(annotations: Sequence[ListedVideo], lists: Sequence[Path]) -> None:
    """Raise UserError where a list of training videos, of any stage, names a video of the test set."""
    tested = {video.stem for video in annotations}
    for path in lists:
        shared = [name for stem, name in video_lists.read_list(path).items() if stem in tested]
        if shared:
            raise UserError(
                f"{path} names {len(shared):,} of the {len(tested):,} videos that are tested on ({_shown(shared)}): "
                "what was trained on them cannot be judged on them; take them out of the list, and train again"
            )


def _cut(event: tuple[int, int], num_frames: int, convention: str) -> tuple[int, int] | None:
    """First and last frame of an event, from 0, within the video; None where nothing is left of it."""
    first, last = event
    if convention == "one-based":
        first, last = first - 1, last - 1
    elif convention == "half-open":
        last -= 1
    first, last = max(first, 0), min(last, num_frames - 1)
    return (first, last) if first <= last else None


def _shown(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")
