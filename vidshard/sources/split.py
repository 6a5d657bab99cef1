"""Train, validation and test lists without leaks: clips of one recording stay in one split.

The lists have UCF-Crime's form, one `Class/Name.mp4` per line, and are made from a folder of videos or a shard folder.
Videos are assigned by recording if it is known, otherwise one by one; every class is spread evenly; the same input
and seed give the same lists. Exact copies count as one recording. Possible leaks are reported as warnings.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vidshard.shards import layout, manifest
from vidshard.shards.manifest import ShardSet
from vidshard.sources.config import SplitConfig as SplitConfig
from vidshard.sources.folders import SPLITS as SPLITS
from vidshard.sources.folders import Source, Video, find_sources
from vidshard.sources.lists import apply_recordings
from vidshard.util import atomic
from vidshard.util.errors import FormatError, UserError
from vidshard.util.hashing import file_sha256
from vidshard.util.lists import read_list
from vidshard.util.text import aligned, counted, path_bytes
from vidshard.video.sampling import frame_indices, resize_frame

_MAX_WARNINGS = 20  # warnings of one kind; further ones are only counted

# The signature of a video: 8 frames of its first clip, 16 × 16, grey. A copy that was scaled to a quarter, brightened,
# converted to another frame rate and compressed hard correlates to 0.99 in its mean picture and to 0.57–0.97 in its
# motion (22 copies of short surveillance clips). Other videos of the same camera reach the same in the picture, but
# only 0.28 in the motion (11,325 pairs).
_SIGNATURE_FRAMES, _SIGNATURE_SIDE = 8, 16
_SAME_LOOK, _SAME_MOTION = 0.97, 0.45
_STILL, _SAME_STILL_LOOK = 0.5, 0.995  # with less motion (grey levels), the picture alone decides, more strictly
_BLOCK = 1024  # videos compared at once

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class SplitVideo:
    """A video to be assigned to a split."""

    path: str  # as written to the list
    class_name: str | None
    recording: str | None
    content: str | None  # equal for videos with equal content; None if unique or unknown


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    """The written lists, and remarks for the user."""

    out: Path
    lists: dict[str, tuple[str, ...]]  # split → paths, sorted
    class_counts: dict[str, dict[str, int]]  # class → split → videos
    num_groups: int
    notes: tuple[str, ...]  # remarks about the search for videos
    warnings: tuple[str, ...]


def split(config: SplitConfig) -> SplitReport:
    """Write Train.txt, Validation.txt and Test.txt to `config.out`.

    Raises UserError if there is no video, two videos have the same name, or the recordings are ambiguous.
    """
    shards = manifest.open_shards(config.source) if (config.source / layout.MANIFEST_NAME).exists() else None
    videos, notes, warnings = _find_videos(config, shards)
    groups = make_groups(videos)
    classes = [Counter(videos[member].class_name or "" for member in members) for members in groups]
    split_of_group = assign_groups(classes, config.fractions, seed=config.seed)
    split_of = {member: SPLITS[s] for members, s in zip(groups, split_of_group, strict=True) for member in members}
    warnings += _leak_warnings(videos, split_of, shards)
    warnings += _thin_class_warnings(videos, split_of, groups, config.fractions)
    lists = {
        name: tuple(video.path for number, video in enumerate(videos) if split_of[number] == name) for name in SPLITS
    }
    for name, paths in lists.items():
        atomic.write_text(list_path(config.out, name), "".join(f"{path}\n" for path in paths))
    return SplitReport(
        out=config.out,
        lists=lists,
        class_counts=_class_counts(videos, split_of),
        num_groups=len(groups),
        notes=tuple(notes),
        warnings=tuple(warnings),
    )


def list_path(out: Path, split_name: str) -> Path:
    return out / f"{split_name}.txt"


def split_text(report: SplitReport) -> str:
    """Format the table class × split."""
    names = ["class", *SPLITS]
    rows = [[name or "(no class)", *(f"{found[s]:,}" for s in SPLITS)] for name, found in report.class_counts.items()]
    rows.append(["all", *(f"{len(report.lists[s]):,}" for s in SPLITS)])
    table = aligned([names, *rows], right=range(1, len(names)))
    written = ", ".join(list_path(report.out, name).name for name in SPLITS)
    return "\n".join(
        [*report.notes, *table, "", f"✓ {written} in {report.out}; {counted(report.num_groups, 'recording')} assigned"]
    )


# ---- the videos


def _find_videos(config: SplitConfig, shards: ShardSet | None) -> tuple[list[SplitVideo], list[str], list[str]]:
    """Find all videos, notes and warnings; the videos of a shard folder are in the order of its index.

    For a folder of splits: the videos of all splits, which are assigned again.
    """
    sources = [_source_of_shards(shards)] if shards is not None else find_sources(config.source)
    notes = [note for source in sources for note in source.notes if not note.startswith("WARNING: ")]
    warnings = [note.removeprefix("WARNING: ") for source in sources for note in source.notes if note not in notes]
    if config.source_groups is not None:
        matched = apply_recordings(sources, config.source_groups)
        sources, list_warnings = matched.sources, matched.note.split("WARNING: ")[1:]
        warnings += list_warnings
    found = [(Path(str(source.root)) / video.path, video) for source in sources for video in source.videos]
    if shards is not None:
        contents: Sequence[str | None] = _clip_checksums(shards)
    else:
        found.sort(key=lambda pair: path_bytes(pair[1].path))
        contents = content_hashes([path for path, _ in found])
        warnings.append("checked for exact duplicates only; split a shard folder to find re-encoded copies, too")
    repeated = [path for path, count in Counter(video.path for _, video in found).items() if count > 1]
    if repeated:
        raise UserError(
            f"{config.source} contains {repeated[0]} in two splits, which a list cannot distinguish; rename one of them"
        )
    videos = [
        SplitVideo(path=v.path, class_name=v.class_name, recording=v.recording, content=content)
        for (_, v), content in zip(found, contents, strict=True)
    ]
    return videos, notes, warnings


def _source_of_shards(shards: ShardSet) -> Source:
    index = shards.index
    label_of = {row.name: row.label for row in shards.manifest.classes}
    videos = tuple(
        Video(
            path=path,
            class_name=index.class_name(number),
            label=label_of[index.class_name(number)],
            recording=index.recording(number),
        )
        for number, path in enumerate(index.paths)
    )
    return Source(root=shards.folder.absolute(), split=shards.manifest.split, videos=videos, skipped=())


def _clip_checksums(shards: ShardSet) -> list[str]:
    """Return strings that are equal for videos whose clips are all equal, without reading pixels."""
    crcs: dict[int, list[int]] = defaultdict(list)
    clips = shards.index.clips
    for video, crc in zip(clips["video"].tolist(), clips["crc32"].tolist(), strict=True):
        crcs[video].append(crc)
    return [repr(crcs[number]) for number in range(len(shards.index.videos))]


def content_hashes(paths: Sequence[Path]) -> list[str | None]:
    """Return the SHA-256 of each file whose size equals that of another; None for the rest, which have no copy."""
    sizes = [path.stat().st_size for path in paths]
    shared = {size for size, count in Counter(sizes).items() if count > 1}
    return [file_sha256(path) if size in shared else None for path, size in zip(paths, sizes, strict=True)]


# ---- groups


def make_groups(videos: Sequence[SplitVideo]) -> list[list[int]]:
    """Return the numbers of the videos that must stay together: of one recording, or copies of each other."""
    parent = list(range(len(videos)))

    def root(number: int) -> int:
        while parent[number] != number:
            number = parent[number]
        return number

    for attribute in ("recording", "content"):
        first: dict[str, int] = {}
        for number, video in enumerate(videos):
            value = getattr(video, attribute)
            if value is not None:
                a, b = root(first.setdefault(value, number)), root(number)
                parent[max(a, b)] = min(a, b)
    groups: dict[int, list[int]] = defaultdict(list)
    for number in range(len(videos)):
        groups[root(number)].append(number)
    return list(groups.values())


# ---- assignment


def assign_groups(groups: Sequence[Mapping[str, int]], fractions: Sequence[float], *, seed: int) -> list[int]:
    """Assign each group to a split; `groups` give the number of videos per class.

    Greedy: the largest groups first, in random order if equal; each goes to the split that lacks the most of its
    classes and, if several do, to the least filled. Groups are never divided.

    >>> groups = [{"Abuse": 4, "Normal": 2}, {"Abuse": 1}, {"Abuse": 1}, {"Normal": 2}, {"Normal": 1}, {"Normal": 1}]
    >>> assign_groups(groups, (0.7, 0.0, 0.3), seed=0)
    [0, 2, 2, 0, 2, 2]
    """
    totals: Counter[str] = Counter()
    for group in groups:
        totals.update(group)
    lacking = [{name: fraction * count for name, count in totals.items()} for fraction in fractions]
    targets = [max(sum(of_class.values()), 1e-9) for of_class in lacking]
    order = list(range(len(groups)))
    random.Random(seed).shuffle(order)
    order.sort(key=lambda number: -sum(groups[number].values()))
    split_of = [0] * len(groups)
    for number in order:
        group = groups[number]

        def need(split: int, group: Mapping[str, int] = group) -> tuple[float, float]:
            wanted = sum(count * lacking[split][name] for name, count in group.items())
            return round(wanted, 6), round(sum(lacking[split].values()) / targets[split], 6)

        best = max((s for s in range(len(fractions)) if fractions[s] > 0), key=need)
        split_of[number] = best
        for name, count in group.items():
            lacking[best][name] -= count
    return split_of


def _class_counts(videos: Sequence[SplitVideo], split_of: Mapping[int, str]) -> dict[str, dict[str, int]]:
    found = Counter((video.class_name or "", split_of[number]) for number, video in enumerate(videos))
    return {name: {s: found[name, s] for s in SPLITS} for name in sorted({name for name, _ in found})}


# ---- warnings


def _thin_class_warnings(
    videos: Sequence[SplitVideo],
    split_of: Mapping[int, str],
    groups: Sequence[Sequence[int]],
    fractions: Sequence[float],
) -> Iterator[str]:
    if all(video.recording is None for video in videos):
        yield (
            "no recordings are known: videos cut from one recording may end up in different splits; name them with "
            "`source_groups`"
        )
    elif alone := sum(video.recording is None for video in videos):
        yield f"{alone:,} of {len(videos):,} videos have no known recording; each counts as its own"
    num_groups = Counter(name for group in groups for name in {videos[member].class_name or "" for member in group})
    for name, found in _class_counts(videos, split_of).items():
        for split_name, fraction in zip(SPLITS, fractions, strict=True):
            if fraction > 0 and not found[split_name]:
                count = sum(found.values())
                yield (
                    f"class {name or '(no class)'} has no video in {split_name}: its {count:,} videos come from only "
                    f"{counted(num_groups[name], 'recording')}"
                )


def _leak_warnings(videos: Sequence[SplitVideo], split_of: Mapping[int, str], shards: ShardSet | None) -> Iterator[str]:
    copies: dict[str, list[int]] = defaultdict(list)
    for number, video in enumerate(videos):
        if video.content is not None:
            copies[video.content].append(number)
    duplicates = []
    for numbers in copies.values():
        if len(numbers) > 1:
            names = " and ".join(videos[number].path for number in numbers)
            classes = {videos[number].class_name for number in numbers}
            contradiction = ", although their classes differ" if len(classes) > 1 else ""
            duplicates.append(f"{names} are the same video; all are in {split_of[numbers[0]]}{contradiction}")
    yield from _capped(duplicates)
    if shards is None:
        return
    signatures, unreadable = _signatures(shards)
    yield from _capped([f"{videos[number].path} was not compared: {error}" for number, error in unreadable.items()])
    yield from _capped(
        [
            f"{videos[a].path} ({split_of[a]}) and {videos[b].path} ({split_of[b]}) look like one video, encoded "
            "twice; assign both to one recording with `source_groups`"
            for a, b in similar_pairs(signatures)
            if split_of[a] != split_of[b]
        ]
    )


def _capped(lines: Sequence[str]) -> list[str]:
    more = len(lines) - _MAX_WARNINGS
    return [*lines[:_MAX_WARNINGS], *([f"… and {more:,} more of this kind"] if more > 0 else [])]


def _signatures(shards: ShardSet) -> tuple[Floats, dict[int, str]]:
    """Return small grey frames of the first clip of each video, float32 [V, K, S, S] (zeros on error), and errors."""
    index = shards.index
    signatures = np.zeros((len(index.videos), _SIGNATURE_FRAMES, _SIGNATURE_SIDE, _SIGNATURE_SIDE), np.float32)
    unreadable = {}
    first_rows = np.unique(index.clips["video"], return_index=True)[1]
    for row in np.sort(first_rows).tolist():
        number = int(index.clips["video"][row])
        try:
            signatures[number] = signature(shards.read_clip(row)[0])
        except (FormatError, OSError) as error:
            unreadable[number] = str(error)
    return signatures, unreadable


def signature(clip: npt.NDArray[np.uint8]) -> Floats:
    """Return small grey frames spread over a clip (uint8 T H W C): float32 [K, S, S]."""
    chosen = frame_indices(len(clip), num_frames=_SIGNATURE_FRAMES)
    small = [resize_frame(clip[index], _SIGNATURE_SIDE, _SIGNATURE_SIDE) for index in chosen]
    grey: Floats = np.stack(small).astype(np.float32).mean(axis=-1)
    return grey


def similar_pairs(signatures: Floats) -> list[tuple[int, int]]:
    """Return pairs of videos with similar picture and motion; `signatures`: the result of `_signatures`.

    Two correlations must be high: of the mean pictures, and of the frames minus their mean. The second distinguishes a
    copy from another video of the same camera; where nothing moves, the first must be higher.
    """
    if not len(signatures):
        return []
    mean = signatures.mean(axis=1)
    motion = (signatures - mean[:, None]).reshape(len(signatures), -1)
    still = motion.std(axis=1) < _STILL
    look, motion = (
        _normalised((mean - mean.mean(axis=(1, 2), keepdims=True)).reshape(len(mean), -1)),
        _normalised(motion),
    )
    pairs = []
    for start in range(0, len(look), _BLOCK):
        block = slice(start, start + _BLOCK)
        looks, motions = look[block] @ look.T, motion[block] @ motion.T
        both_still = still[block, None] & still[None]
        same = np.where(both_still, looks >= _SAME_STILL_LOOK, (looks >= _SAME_LOOK) & (motions >= _SAME_MOTION))
        pairs += [(a + start, b) for a, b in np.argwhere(same).tolist() if a + start < b]
    return pairs


def _normalised(rows: Floats) -> Floats:
    """Scale rows to length 1; rows of zeros stay zero."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Floats = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 1e-6)
    return unit


# ---- overlap of existing lists


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Videos that two lists share."""

    first: Path
    second: Path
    num_first: int
    num_second: int
    names: tuple[str, ...]  # as written in the first list

    def to_text(self) -> str:
        lists = f"{self.first} ({counted(self.num_first, 'video')}) and {self.second} ({self.num_second:,})"
        return "\n".join([f"{lists} share {len(self.names):,}:", *(f"  {name}" for name in self.names)])


def check_lists(paths: Sequence[Path], *, written: Sequence[Path] = ()) -> list[Overlap]:
    """Find every pair of lists that share videos, by file stem, since folders differ between lists.

    The lists in `written` are compared with those in `paths`, not with each other.
    Raises UserError if a file is not a list.
    """
    lists = {path: read_list(path) for path in paths}
    lists |= {path: read_list(path) if path.stat().st_size else {} for path in written}  # empty: its fraction is 0
    overlaps = []
    for first, second in itertools.combinations(lists, 2):
        shared = tuple(name for stem, name in lists[first].items() if stem in lists[second])
        if shared and not (first in written and second in written):
            sizes = {"num_first": len(lists[first]), "num_second": len(lists[second])}
            overlaps.append(Overlap(first=first, second=second, names=shared, **sizes))
    return overlaps
