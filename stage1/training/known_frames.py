"""Frames of the training clips that are known to show the crime, which attention can be taught."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from stage1.data.epoch_plan import Rows
from stage1.data.reader import ClipReader
from stage1.metrics.annotations import VideoGroundTruth
from vidshard.shards.layout import CRIME_LABEL, NORMAL_LABEL
from vidshard.util.errors import FormatError

MIN_SHARE = 1 / 4  # of a clip's frames in an event, from which on the clip is a crime; composites have as many
UNKNOWN = -1
FrameLabels = npt.NDArray[np.int8]  # (N, T), for every row of the index: 1 crime, 0 none, -1 unknown


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnnotatedClips:
    """Frames and labels of clips according to annotations. Arrays have one entry per clip."""

    frames: FrameLabels
    labels: Rows
    kept: npt.NDArray[np.bool_]  # False if too few frames show the crime to call the clip either
    num_changed: int  # crime clips that became normal

    @property
    def note(self) -> str:
        """Describe the effect of the annotations in one line."""
        known = (self.frames >= 0).all(1)
        return (
            f"annotations label the frames of {known.sum():,} clips of crimes: {self.num_changed:,} show no event and "
            f"are normal; {(~self.kept).sum():,} with less than {MIN_SHARE:.0%} of their frames in one are left out"
        )


def frames_of_trimmed(readers: Sequence[ClipReader], labels: Rows, *, trimmed_seconds: float) -> FrameLabels:
    """Label frames by the lengths of videos: those shorter than `trimmed_seconds` show the crime in all frames.

    So do the clips of sets with annotated sampling, which are cut from events. Normal clips have no frame of a crime.
    """
    trimmed = [
        (reader.video_seconds()[reader.videos] < trimmed_seconds) | (reader.settings.get("mode") == "annotated")
        for reader in readers
    ]
    of_clip = np.select([labels == NORMAL_LABEL, np.concatenate(trimmed) & (labels == CRIME_LABEL)], [0, 1], UNKNOWN)
    return np.repeat(of_clip.astype(np.int8)[:, None], readers[0].clip_shape.num_frames, axis=1)


def annotated_frames(
    readers: Sequence[ClipReader],
    truths: Sequence[Mapping[int, VideoGroundTruth]],
    labels: Rows,
    *,
    skip_damaged: bool,
) -> AnnotatedClips:
    """Label the clips of crimes and their frames by annotations: `truths` holds the events of each set by video number.

    A clip of which at least MIN_SHARE of the frames lie in an event is a crime, and one without such a frame is normal.
    Those between are left out, and so are damaged clips with `skip_damaged`; otherwise they raise FormatError.
    """
    frames = np.full((len(labels), readers[0].clip_shape.num_frames), UNKNOWN, np.int8)
    found, kept = labels.copy(), np.ones(len(labels), np.bool_)
    first = 0
    for reader, truth in zip(readers, truths, strict=True):
        events = {video: one.frame_labels() for video, one in truth.items() if one.is_crime}
        for own in np.flatnonzero(np.isin(reader.videos, list(events))).tolist():
            row = first + own
            try:
                indices = list(reader.read_record(own).frame_indices)
            except FormatError:
                if not skip_damaged:
                    raise
                kept[row] = False
                continue
            frames[row] = events[int(reader.videos[own])][indices]
            share = float(frames[row].mean())
            found[row] = CRIME_LABEL if share >= MIN_SHARE else NORMAL_LABEL
            kept[row] = share == 0 or share >= MIN_SHARE
        first += len(reader)
    num_changed = int(((labels == CRIME_LABEL) & (found == NORMAL_LABEL) & kept).sum())
    return AnnotatedClips(frames=frames, labels=found, kept=kept, num_changed=num_changed)
