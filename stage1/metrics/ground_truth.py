"""Ground-truth events of a shard set: annotations matched to its videos."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from stage1.data.reader import ClipReader
from stage1.metrics.annotations import VideoGroundTruth, make_annotations, read_annotations
from vidshard.util.errors import UserError


class NothingListedError(UserError):
    """An annotation file that names no video of a shard set."""


def read_ground_truths(path: Path, readers: Sequence[ClipReader]) -> list[dict[int, VideoGroundTruth]]:
    """Read the ground truth of several sets, of which not all must have annotated videos.

    Raises UserError as `read_ground_truth` does, and if no set has one.
    """
    found, errors = [], []
    for reader in readers:
        try:
            found.append(read_ground_truth(path, reader))
        except NothingListedError as error:
            found.append({})
            errors.append(error)
    if len(errors) == len(readers):
        raise errors[0]
    return found


def read_ground_truth(path: Path | None, reader: ClipReader) -> dict[int, VideoGroundTruth]:
    """Read the ground truth of the annotated videos of a set, by their row in the index; {} without a path.

    `path` is a file of temporal annotations in UCF-Crime's format, matched by file stem. Frame counts are those of the
    shards. Raises UserError if the file cannot be read, if it names no video of the set, or if a name is ambiguous.
    """
    if path is None:
        return {}
    paths = reader.index.paths
    video_of_stem: dict[str, int] = {}
    for video, source in enumerate(paths):
        other = video_of_stem.setdefault(PurePosixPath(source).stem, video)
        if other != video:
            raise UserError(
                f"`annotations` {path}: {PurePosixPath(source).stem} is ambiguous: {paths[other]} or {source}; build "
                "them into separate shard sets"
            )
    listed = [
        dataclasses.replace(video, num_frames=None) for video in read_annotations(path) if video.stem in video_of_stem
    ]
    if not listed:
        raise NothingListedError(
            f"`annotations` {path} lists none of the {len(paths):,} videos of the shards; expected the annotations of "
            "these videos, with their file names"
        )
    lengths = {stem: int(reader.index.videos["num_frames"][video]) for stem, video in video_of_stem.items()}
    found = make_annotations(listed, num_frames=lengths)
    return {video_of_stem[video.stem]: video for video in found.videos}
