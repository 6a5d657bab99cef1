"""Review labels: CSVs in which reviewers of a report marked clips as true (a crime), false (none) or unsure."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stage1.data.config import ReviewLabelUse
from stage1.data.epoch_plan import Rows
from stage1.data.reader import ClipReader
from vidshard.shards import layout
from vidshard.util import files
from vidshard.util.errors import UserError
from vidshard.util.text import first_of

UNSURE = "unsure"
LABEL_OF_ANSWER = {"true": layout.CRIME_LABEL, "false": layout.NORMAL_LABEL, UNSURE: layout.UNKNOWN_LABEL}
MAX_SECONDS_APART = 0.01  # largest difference between a clip's times in the file and in the shards
CSV_COLUMNS = (
    *("shards", "key", "mark", "source", "clip_index", "start_seconds", "end_seconds"),
    *("confidence", "class", "label", "note"),
)
_NUM_LISTED = 5  # contradictions that are named


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReviewLabel:
    """A reviewer's label of one clip."""

    label: int  # 1: marked true, 0: marked false, -1: unsure
    # Times of the clip's first and last frame. They tell apart clips that have the same key in different shard sets.
    start_seconds: float
    end_seconds: float
    path: Path  # the file that holds it
    note: str = dataclasses.field(default="", compare=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReviewLabels:
    """Labels of all reviewers, by the digest of the shard set ("" in older files) and the key of the clip."""

    of_clip: dict[tuple[str, str], ReviewLabel]
    contradictions: tuple[str, ...]  # keys that reviewers marked differently: no label
    paths: tuple[Path, ...]

    @property
    def where(self) -> str:
        return ", ".join(map(str, self.paths))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReviewedClips:
    """Labels of the clips of shard sets after review, one for each row."""

    labels: Rows
    kept: npt.NDArray[np.bool_]
    num_found: int  # review labels whose clip is in the sets
    num_missing: int
    num_contradicting: int  # review labels that differ from the clip's label
    num_added: int  # clips that had no label before
    num_unlabelled: int  # clips that still have none, and are left out
    seconds: npt.NDArray[np.float64]  # how long a reviewed clip lasts; NaN for the others

    def note(self, review: ReviewLabels, use: ReviewLabelUse) -> str:
        """Describe the effect of the review labels in one line."""
        done = "left out" if use == "exclusions" else "relabelled"
        text = f"{self.num_contradicting} of {self.num_found} marked clips contradict their label and are {done}"
        if self.num_added:
            text += f", {self.num_added} had none"
        text += f": {review.where}"
        if self.num_unlabelled:
            text += f"; {self.num_unlabelled} clips without a label are left out"
        if self.num_missing:
            text += f"; {self.num_missing} marked clips are not in these shards"
        if review.contradictions:
            text += (
                f"; {len(review.contradictions)} clips were marked differently by several reviewers, and these marks "
                f"are ignored: {first_of(review.contradictions, _NUM_LISTED)}"
            )
        return text


def read_review_labels(paths: Sequence[Path]) -> ReviewLabels:
    """Read and merge the review labels of CSVs that reports exported. Clips marked unsure have no label.

    Raises UserError if a file cannot be read, has a row that cannot be parsed, or contains contradictory marks of a
    clip.
    """
    merged: dict[tuple[str, str], ReviewLabel] = {}
    contradictions: dict[tuple[str, str], None] = {}
    for path in paths:
        for clip, label in read_answers(path).items():
            before = merged.setdefault(clip, label)
            if before.label != label.label:
                contradictions[clip] = None
    for clip in contradictions:
        del merged[clip]
    sure = {clip: label for clip, label in merged.items() if label.label != LABEL_OF_ANSWER[UNSURE]}
    if not sure:
        raise UserError(
            f"`marks` {', '.join(map(str, paths))} contains no marks; export the CSV again after marking clips in the "
            "report"
        )
    return ReviewLabels(of_clip=sure, contradictions=tuple(key for _, key in contradictions), paths=tuple(paths))


def read_answers(path: Path) -> dict[tuple[str, str], ReviewLabel]:
    """Read all answers of a CSV, unsure ones included, by the digest of the shard set and the key of the clip.

    Raises UserError if it cannot be read, or contradicts itself.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(files.read_bytes(path).decode("utf-8-sig"), newline="")))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"`marks` {path} cannot be read ({error}); expected the CSV that a report exports") from error
    labels: dict[tuple[str, str], ReviewLabel] = {}
    for line, row in enumerate(rows, start=2):
        try:
            clip = (row.get("shards") or "", row["key"])
            label = ReviewLabel(
                label=LABEL_OF_ANSWER[row["mark"].strip().lower()],
                start_seconds=float(row["start_seconds"]),
                end_seconds=float(row["end_seconds"]),
                path=path,
                note=row.get("note") or "",
            )
            if not 0 <= label.start_seconds <= label.end_seconds < math.inf:
                raise ValueError(f"from {label.start_seconds} to {label.end_seconds} s")
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"`marks` {path}, line {line}: expected key, mark (true, false or unsure), start_seconds and "
                f"end_seconds, as a report exports them ({error!r})"
            ) from error
        if labels.setdefault(clip, label) != label:
            raise UserError(
                f"`marks` {path}, line {line}: {clip[1]} has two contradictory marks; remove one of the rows"
            )
    return labels


def apply_review_labels(readers: Sequence[ClipReader], review: ReviewLabels, *, use: ReviewLabelUse) -> ReviewedClips:
    """Replace the labels of reviewed clips, or exclude the clips whose review label contradicts their label.

    The rows are those of the sets, one after the other. A label goes to the set that it names or, if that is not among
    them (it was extended, say), to the clip with its key. `use` is "labels" to replace and "exclusions" to exclude;
    clips without any label are excluded, too. Raises UserError if no reviewed clip is in the sets, or if a clip with
    the same key covers a different stretch of its video.
    """
    named = {reader.digest for reader in readers}
    elsewhere = {key: label for (digest, key), label in review.of_clip.items() if digest not in named}
    labels = np.concatenate([reader.labels for reader in readers])
    kept, seconds = np.ones(len(labels), np.bool_), np.full(len(labels), np.nan)
    found = contradicting = added = first = 0
    for reader in readers:
        for number in range(len(reader)):
            key, row = reader.index.key(number), first + number
            label = review.of_clip.get((reader.digest, key)) or elsewhere.get(key)
            if label is None:
                continue
            _check_times(reader, number, label)
            found += 1
            seconds[row] = label.end_seconds - label.start_seconds
            if labels[row] == layout.UNKNOWN_LABEL:
                added += 1
                labels[row] = label.label
            elif label.label != labels[row]:
                contradicting += 1
                if use == "labels":
                    labels[row] = label.label
                else:
                    kept[row] = False
        first += len(reader)
    if not found:
        raise UserError(
            f"`marks` {review.where}: none of the {len(review.of_clip)} marked clips is in "
            f"{', '.join(str(reader.shard_set.where) for reader in readers)}; review a report on these shards, or add "
            "the reviewed ones as another `shards`"
        )
    unlabelled = labels == layout.UNKNOWN_LABEL
    return ReviewedClips(
        labels=labels,
        kept=kept & ~unlabelled,
        num_found=found,
        num_missing=max(0, len(review.of_clip) - found),
        num_contradicting=contradicting,
        num_added=added,
        num_unlabelled=int(unlabelled.sum()),
        seconds=seconds,
    )


def _check_times(reader: ClipReader, row: int, label: ReviewLabel) -> None:
    """Raise UserError if the clip covers a different stretch of its video than the one that was labelled."""
    seconds = reader.read_record(row).timestamps_seconds
    apart = abs(seconds[0] - label.start_seconds), abs(seconds[-1] - label.end_seconds)
    if max(apart) > MAX_SECONDS_APART:
        raise UserError(
            f"`marks` {label.path}: {reader.index.key(row)} was marked from {label.start_seconds:g} to "
            f"{label.end_seconds:g} s, but in {reader.shard_set.where} it runs from {seconds[0]:g} to "
            f"{seconds[-1]:g} s; review a report on shards that were built with the same sampling"
        )
