"""What a reviewer said of detections in the report: a CSV of clips marked true (a crime) or false (none)."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stage1.data.config import MarkUse
from stage1.data.epoch_plan import Rows
from stage1.data.reader import ClipReader
from vidshard.shards import layout
from vidshard.util.errors import UserError

LABEL_OF_MARK = {"true": layout.CRIME_LABEL, "false": layout.NORMAL_LABEL}
MAX_SECONDS_APART = 0.01  # of a clip's first or last frame in the file and in the shards


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mark:
    """One row of the file."""

    label: int  # 1 marked true, 0 marked false
    start_seconds: float  # of the clip's first and last frame: a clip of the same key in other shards may be another
    end_seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class MarkedClips:
    """What marks make of the clips of a shard set: one entry for each row of its index."""

    labels: Rows
    kept: npt.NDArray[np.bool_]
    num_found: int  # marks whose clip is in the set
    num_missing: int
    num_contradicting: int  # marks that say other than the label did

    def note(self, path: Path, use: MarkUse) -> str:
        done = "left out" if use == "exclusions" else "relabelled"
        text = (
            f"{self.num_contradicting} of {self.num_found} marked clips contradict their label and are {done}: {path}"
        )
        return text + (f"; {self.num_missing} marked clips are not in these shards" if self.num_missing else "")


def read_marks(path: Path) -> dict[str, Mark]:
    """Key → mark. Raises UserError where `path` is no such file or has a row that cannot be read."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"--marks {path} cannot be read ({error}); expected the CSV that a report exports") from error
    marks: dict[str, Mark] = {}
    for line, row in enumerate(rows, start=2):
        try:
            key = row["key"]
            mark = Mark(
                label=LABEL_OF_MARK[row["mark"].strip().lower()],
                start_seconds=float(row["start_seconds"]),
                end_seconds=float(row["end_seconds"]),
            )
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"--marks {path}, line {line}: expected key, mark (true or false), start_seconds and end_seconds, as a "
                f"report exports them ({error!r})"
            ) from error
        if key in marks and marks[key] != mark:
            raise UserError(f"--marks {path}, line {line}: {key} is marked twice, and not alike; remove one")
        marks[key] = mark
    if not marks:
        raise UserError(f"--marks {path} marks no clip")
    return marks


def apply_marks(reader: ClipReader, marks: Mapping[str, Mark], *, use: MarkUse, path: Path) -> MarkedClips:
    """Labels as marked; or, as exclusions, the labels as they are without the clips whose mark contradicts them.

    Raises UserError where no marked clip is in the set, or one of this key is another stretch of its video.
    """
    labels, kept = reader.labels.copy(), np.ones(len(reader), np.bool_)
    found = contradicting = 0
    for row in range(len(reader)):
        mark = marks.get(reader.index.key(row))
        if mark is None:
            continue
        seconds = reader.read_record(row).timestamps_seconds
        if max(abs(seconds[0] - mark.start_seconds), abs(seconds[-1] - mark.end_seconds)) > MAX_SECONDS_APART:
            raise UserError(
                f"--marks {path}: {reader.index.key(row)} was marked from {mark.start_seconds:g} to "
                f"{mark.end_seconds:g} s, but in {reader.shard_set.where} it lies from {seconds[0]:g} to "
                f"{seconds[-1]:g} s; mark clips of shards that were built with the same sampling"
            )
        found += 1
        if mark.label != labels[row]:
            contradicting += 1
            if use == "labels":
                labels[row] = mark.label
            else:
                kept[row] = False
    if not found:
        raise UserError(
            f"--marks {path}: none of the {len(marks)} marked clips is in {reader.shard_set.where}; mark a report on "
            "these shards"
        )
    return MarkedClips(
        labels=labels,
        kept=kept,
        num_found=found,
        num_missing=len(marks) - found,
        num_contradicting=contradicting,
    )
