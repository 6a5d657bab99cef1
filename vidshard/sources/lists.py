"""Lists supplied with videos: members of a split, recordings, annotations.

The names in such lists are rarely the local paths, so they are matched from their end: `Train/Abuse/a.mp4` in a list
means `/data/ucf/Abuse/a.mp4`, as long as the match is unique.
"""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

from vidshard.shards.layout import NORMAL_LABEL, UNKNOWN_LABEL
from vidshard.sources.folders import Source, read_recordings, skip_videos
from vidshard.util.errors import UserError
from vidshard.util.lists import listed_name, parse_lines, read_lines
from vidshard.util.text import counted, first_of

_MAX_NAMES = 5
Events = tuple[tuple[int, int], ...]  # first and last frame of each


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matched:
    """Sources after a list was applied to them, and a note for the user ("" if none)."""

    sources: list[Source]
    note: str


def common_suffix(a: str, b: str) -> int:
    """Return the number of equal path components, counted from the end.

    >>> common_suffix("Train/Abuse/a.mp4", "/data/Abuse/a.mp4"), common_suffix("b/a", "c")
    (2, 0)
    """
    count = 0
    for x, y in zip(reversed(PurePosixPath(a).parts), reversed(PurePosixPath(b).parts), strict=False):
        if x != y:
            break
        count += 1
    return count


def apply_split_list(sources: Sequence[Source], path: Path) -> Matched:
    """Keep the videos named in the list, matched by file stem; skip the others as `not_in_list`.

    Raises UserError if the list cannot be read, matches no video, or a name is ambiguous.
    """
    names = sorted({name for line in read_lines(path) if (name := listed_name(line))})
    taken, missing = set(), []
    for name, matches in match_names(sources, names, what=f"`split_list` {path}").items():
        taken |= set(matches)
        missing += [] if matches else [name]
    total = sum(len(source.videos) for source in sources)
    if not taken:
        raise UserError(
            f"`split_list` {path} lists none of the {total:,} videos (it has: "
            f"{', '.join(names[:3]) or 'nothing'}); expected one video per line, as in Anomaly_Train.txt of UCF-Crime"
        )
    kept = []
    for number, source in enumerate(sources):
        listed = [video for row, video in enumerate(source.videos) if (number, row) in taken]
        others = [video for row, video in enumerate(source.videos) if (number, row) not in taken]
        skipped = skip_videos(source, others, "not_in_list", f"not in the list {path.name}")
        kept.append(dataclasses.replace(source, videos=tuple(listed), skipped=skipped))
    note = f"{path.name}: {len(taken):,} of {total:,} videos are in the list"
    note += _unmatched_note(path, missing, names)
    return Matched(sources=[source for source in kept if source.videos], note=note)


def apply_recordings(sources: Sequence[Source], path: Path) -> Matched:
    """Assign recordings to videos by a JSON list of {"file", "source"} or a CSV with these columns.

    Raises UserError if the file cannot be read, a row is ambiguous, or a video has several recordings.
    """
    recordings = read_recordings(path)
    what = f"`source_groups` {path}"
    recording_of: dict[tuple[int, int], tuple[int, str, str]] = {}  # video → components in common, row, recording
    names = {os.path.splitext(name.replace("\\", "/"))[0]: name for name in recordings}
    for stem, matches in match_names(sources, sorted(names), what=what).items():
        recording = recordings[names[stem]]
        for number, row in matches:
            score = common_suffix(stem, _full_path(sources[number], row))
            before = recording_of.get((number, row))
            if before is not None and before[0] == score and before[2] != recording:
                raise UserError(
                    f"{what} assigns two recordings to {sources[number].videos[row].path}: {before[2]} ({before[1]}) "
                    f"and {recording} ({names[stem]}); write a longer path in the file, or remove one row"
                )
            if before is None or score > before[0]:
                recording_of[number, row] = (score, names[stem], recording)
    grouped = [
        dataclasses.replace(
            source,
            videos=tuple(
                dataclasses.replace(video, recording=recording_of.get((number, row), (0, "", None))[2])
                for row, video in enumerate(source.videos)
            ),
        )
        for number, source in enumerate(sources)
    ]
    unknown = [video.path for source in grouped for video in source.videos if video.recording is None]
    num_recordings = len({recording for *_, recording in recording_of.values()})
    note = f"{path.name}: {counted(len(recording_of), 'video')} of {counted(num_recordings, 'recording')}"
    if unknown:
        note += (
            f"\nWARNING: {path.name} has no row for {counted(len(unknown), 'video')}: {first_of(unknown, _MAX_NAMES)}"
        )
    return Matched(sources=grouped, note=note)


def apply_annotations(sources: Sequence[Source], path: Path) -> Matched:
    """Assign events to videos by a temporal annotation file of UCF-Crime (`name class start1 end1 start2 end2`).

    A crime video without an event in the file is skipped as `no_annotation`, since the position of the crime is
    unknown. Raises UserError if the file cannot be read, contradicts a label, or a name is ambiguous.
    """
    events_of = {video.name: video.events or () for video in parse_lines(path, need_events=True)}
    events: dict[tuple[int, int], Events] = {}
    missing = []
    for name, matches in match_names(sources, sorted(events_of), what=f"`annotations` {path}").items():
        events |= dict.fromkeys(matches, events_of[name])
        missing += [] if matches else [name]
    annotated = []
    for number, source in enumerate(sources):
        videos, left_out = [], []
        for row, video in enumerate(source.videos):
            of_video = events.get((number, row))
            if video.label == NORMAL_LABEL and of_video:
                raise UserError(
                    f"{path} says that {video.path} contains a crime, but its class {video.class_name} is normal; "
                    "correct the file, move the video, or name the normal class with `normal` CLASS"
                )
            if of_video or video.label == NORMAL_LABEL or (video.label == UNKNOWN_LABEL and of_video is not None):
                videos.append(dataclasses.replace(video, events=of_video or ()))
            else:
                left_out.append(video)
        skipped = skip_videos(source, left_out, "no_annotation", f"{path.name} has no event for it")
        annotated.append(dataclasses.replace(source, videos=tuple(videos), skipped=skipped))
    with_events = [video for source in annotated for video in source.videos if video.events]
    if not with_events:
        raise UserError(
            f"`annotations` {path} has no event for any of the {sum(len(source.videos) for source in sources):,} "
            "videos; is it the right file?"
        )
    num_left_out = sum(len(a.videos) - len(b.videos) for a, b in zip(sources, annotated, strict=True))
    num_events = sum(len(video.events) for video in with_events)
    note = f"{path.name}: {counted(num_events, 'event')} in {counted(len(with_events), 'video')}"
    if num_left_out:
        note += f"\nWARNING: {num_left_out:,} crime videos are skipped: {path.name} has no event for them"
    note += _unmatched_note(path, missing, events_of)
    return Matched(sources=[source for source in annotated if source.videos], note=note)


def match_names(sources: Sequence[Source], names: Sequence[str], *, what: str) -> dict[str, list[tuple[int, int]]]:
    """Match names (paths or their ends, without suffix) to videos: name → (source, row), at most one per source.

    Of several videos with the same stem, the one whose path shares most components with the name is chosen. Raises
    UserError, naming `what`, if that is still ambiguous.
    """
    of_stem: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for number, source in enumerate(sources):
        for row, video in enumerate(source.videos):
            of_stem[PurePosixPath(video.path).stem].append((number, row))
    found: dict[str, list[tuple[int, int]]] = {}
    for name in names:
        candidates = of_stem.get(PurePosixPath(name).name, [])
        scores = [common_suffix(name, _full_path(sources[number], row)) for number, row in candidates]
        best = [place for place, score in zip(candidates, scores, strict=True) if score == max(scores)]
        if len(best) > 1:
            paths = [str(sources[number].root / sources[number].videos[row].path) for number, row in best]
            raise UserError(
                f"{what}: {name} is ambiguous: {' or '.join(paths[:2])}; write a longer path, or build the folders "
                "separately"
            )
        found[name] = best
    return found


def _full_path(source: Source, row: int) -> str:
    """Return the path of a video without its suffix, with forward slashes."""
    return os.path.splitext(f"{source.root.as_posix()}/{source.videos[row].path}")[0]


def _unmatched_note(path: Path, missing: Sequence[str], names: Collection[str]) -> str:
    if not missing:
        return ""
    shown = first_of(missing, _MAX_NAMES)
    return f"\nWARNING: {len(missing):,} of {len(names):,} entries of {path.name} match no video: {shown}"
