"""Which events truly are in the videos of a shard set: annotations matched to its videos."""

from __future__ import annotations

import dataclasses
from pathlib import Path, PurePosixPath

from stage1.data.reader import ClipReader
from stage1.metrics.annotations import VideoGroundTruth, make_annotations, read_annotations
from vidshard.util.errors import UserError


def read_truth(path: Path, reader: ClipReader) -> dict[str, VideoGroundTruth]:
    """Path of the video below SOURCE → what is true of it, for the videos that the file speaks of.

    `path`: temporal annotations in UCF-Crime's form, matched by file stem. Raises UserError when the file cannot be
    read, tells of none of the videos, or a name means two of them. The number of frames is that of the shards.
    """
    paths = reader.index.paths
    video_of_stem: dict[str, int] = {}
    for video, source in enumerate(paths):
        other = video_of_stem.setdefault(PurePosixPath(source).stem, video)
        if other != video:
            raise UserError(
                f"--annotations {path}: {PurePosixPath(source).stem} may be {paths[other]} or {source}; build the two "
                "into shard sets of their own"
            )
    listed = [
        dataclasses.replace(video, num_frames=None) for video in read_annotations(path) if video.stem in video_of_stem
    ]
    if not listed:
        raise UserError(f"--annotations {path} names none of the {len(paths):,} videos; is it the file for these?")
    lengths = {stem: int(reader.index.videos["num_frames"][video]) for stem, video in video_of_stem.items()}
    found = make_annotations(listed, num_frames=lengths)
    return {paths[video_of_stem[truth.stem]]: truth for truth in found.videos}
