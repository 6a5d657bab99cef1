"""Review labels: the CSV in which a reviewer of the report marked clips as true (a crime) or false (none)."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stage1.data.config import ReviewLabelUse
from stage1.data.epoch_plan import Rows
from stage1.data.reader import ClipReader
from vidshard.shards import layout
from vidshard.util.errors import UserError

LABEL_OF_ANSWER = {"true": layout.CRIME_LABEL, "false": layout.NORMAL_LABEL}
MAX_SECONDS_APART = 0.01  # largest difference between a clip's times in the file and in the shards


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReviewLabel:
    """A reviewer's label of one clip."""

    label: int  # 1: marked true, 0: marked false
    # Times of the clip's first and last frame. They tell apart clips that have the same key in different shard sets.
    start_seconds: float
    end_seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReviewedClips:
    """Labels of the clips of a shard set after review, one for each row of its index."""

    labels: Rows
    kept: npt.NDArray[np.bool_]
    num_found: int  # review labels whose clip is in the set
    num_missing: int
    num_contradicting: int  # review labels that differ from the clip's label

    def note(self, path: Path, use: ReviewLabelUse) -> str:
        """Describe the effect of the review labels of `path` in one line."""
        done = "left out" if use == "exclusions" else "relabelled"
        text = (
            f"{self.num_contradicting} of {self.num_found} marked clips contradict their label and are {done}: {path}"
        )
        return text + (f"; {self.num_missing} marked clips are not in these shards" if self.num_missing else "")


def read_review_labels(path: Path) -> dict[str, ReviewLabel]:
    """Read the review labels of a CSV that a report exported, by clip key.

    Raises UserError if `path` cannot be read, or has a row that cannot be parsed.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"`marks` {path} cannot be read ({error}); expected the CSV that a report exports") from error
    review_labels: dict[str, ReviewLabel] = {}
    for line, row in enumerate(rows, start=2):
        try:
            key = row["key"]
            review_label = ReviewLabel(
                label=LABEL_OF_ANSWER[row["mark"].strip().lower()],
                start_seconds=float(row["start_seconds"]),
                end_seconds=float(row["end_seconds"]),
            )
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"`marks` {path}, line {line}: expected key, mark (true or false), start_seconds and end_seconds, as a "
                f"report exports them ({error!r})"
            ) from error
        if key in review_labels and review_labels[key] != review_label:
            raise UserError(f"`marks` {path}, line {line}: {key} has two contradictory marks; remove one of the rows")
        review_labels[key] = review_label
    if not review_labels:
        raise UserError(f"`marks` {path} marks no clip; export the CSV again after marking clips in the report")
    return review_labels


def apply_review_labels(
    reader: ClipReader, review_labels: Mapping[str, ReviewLabel], *, use: ReviewLabelUse, path: Path
) -> ReviewedClips:
    """Replace the labels of reviewed clips, or exclude the clips whose review label contradicts their label.

    `use` is "labels" to replace and "exclusions" to exclude; `path` is named in messages. Raises UserError if no
    reviewed clip is in the set, or if a clip with the same key covers a different stretch of its video.
    """
    labels, kept = reader.labels.copy(), np.ones(len(reader), np.bool_)
    found = contradicting = 0
    for row in range(len(reader)):
        review_label = review_labels.get(reader.index.key(row))
        if review_label is None:
            continue
        seconds = reader.read_record(row).timestamps_seconds
        apart = abs(seconds[0] - review_label.start_seconds), abs(seconds[-1] - review_label.end_seconds)
        if max(apart) > MAX_SECONDS_APART:
            raise UserError(
                f"`marks` {path}: {reader.index.key(row)} was marked from {review_label.start_seconds:g} to "
                f"{review_label.end_seconds:g} s, but in {reader.shard_set.where} it runs from {seconds[0]:g} to "
                f"{seconds[-1]:g} s; review a report on shards that were built with the same sampling"
            )
        found += 1
        if review_label.label != labels[row]:
            contradicting += 1
            if use == "labels":
                labels[row] = review_label.label
            else:
                kept[row] = False
    if not found:
        raise UserError(
            f"`marks` {path}: none of the {len(review_labels)} marked clips is in {reader.shard_set.where}; "
            "review a report on these shards"
        )
    return ReviewedClips(
        labels=labels,
        kept=kept,
        num_found=found,
        num_missing=len(review_labels) - found,
        num_contradicting=contradicting,
    )
