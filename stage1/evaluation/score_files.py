"""Reader of score files of any model, from a folder or a table, with one score per frame, snippet or clip.

A folder contains one file per video, named after it (`Abuse028_x264.npy`, or `.txt` or `.csv` with one number per
line). A table is a CSV with one row per score and the columns `video` (or `source`) and `score` (or `confidence`). If
clips do not follow one another without gaps, it also has `first_frame` and `last_frame` (or `start_seconds` and
`end_seconds`, as in the predictions.csv of `stage1 infer`).
"""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from stage1.metrics.clips import Array
from vidshard.util.errors import UserError
from vidshard.util.lists import read_text

_FRAME_COLUMNS = (("first_frame", "last_frame"), ("start_seconds", "end_seconds"))
_SUFFIXES = (".npy", ".txt", ".csv")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForeignScores:
    """Scores of one video in temporal order, [N]."""

    scores: Array
    frames: npt.NDArray[np.int64] | None = None  # (N, 2): first and last frame of each clip; None: consecutive scores


def read_scores(path: Path, *, fps: float) -> dict[str, ForeignScores]:
    """Read the scores of videos, by file stem. `fps` converts seconds to frames.

    Raises UserError, with file and row, if a file cannot be read or there is none.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
        if not files:
            raise UserError(
                f"`scores` {path} contains no score file, expected NAME.npy, NAME.txt or NAME.csv, one per video"
            )
        found: dict[str, ForeignScores] = {}
        for file in files:
            if file.stem in found:
                raise UserError(f"`scores` {path} contains two files for {file.stem}, expected one per video")
            found[file.stem] = ForeignScores(scores=_read_array(file))
        return found
    if not path.exists():
        raise UserError(f"`scores` {path} does not exist, expected a folder of NAME.npy or a CSV")
    return _read_table(path, fps)


def _read_array(path: Path) -> Array:
    try:
        if path.suffix.lower() == ".npy":
            values = np.asarray(np.load(path, allow_pickle=False), np.float64)
        else:
            values = np.array([float(word) for word in read_text(path).replace(",", " ").split()])
    except (OSError, ValueError, TypeError, MemoryError, EOFError) as error:
        raise UserError(f"{path} contains no numbers ({error}); expected one score per snippet") from error
    values = np.squeeze(values)
    values = values[None] if values.ndim == 0 else values
    if values.ndim != 1 or not len(values):
        raise UserError(
            f"{path} has the shape {values.shape}, expected one score per snippet, (N,); average over crops first"
        )
    if not np.isfinite(values).all():
        raise UserError(f"{path} contains scores that are not finite numbers; replace them")
    return values


def _read_table(path: Path, fps: float) -> dict[str, ForeignScores]:
    reader = csv.DictReader(io.StringIO(read_text(path)))
    columns = reader.fieldnames or []
    video = next((name for name in ("video", "source") if name in columns), None)
    score = next((name for name in ("score", "confidence") if name in columns), None)
    if video is None or score is None:
        raise UserError(
            f"{path} has the columns {', '.join(columns) or 'none'}; expected video (or source) and score (or "
            "confidence), one row per score"
        )
    frame_columns = next((pair for pair in _FRAME_COLUMNS if set(pair) <= set(columns)), None)
    rows: dict[str, list[tuple[int, int, float]]] = {}
    for number, row in enumerate(reader, start=2):
        if row[score] == "":
            continue  # a clip that could not be read has no score
        try:
            value, (first, last) = float(row[score]), _frames(row, frame_columns, fps)
            if not np.isfinite(value) or not 0 <= first <= last < 1 << 31:
                raise ValueError("expected a finite score and 0 ≤ first_frame ≤ last_frame")
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"line {number} of {path} cannot be read: {error}") from error
        stem = PurePosixPath(row[video].replace("\\", "/")).name
        rows.setdefault(stem.rpartition(".")[0] or stem, []).append((first, last, value))
    if not rows:
        raise UserError(f"{path} contains no scores, expected at least one row with a score")
    found = {}
    for stem, entries in rows.items():
        if frame_columns:
            entries.sort(key=lambda entry: entry[:2])
        frames = np.array([entry[:2] for entry in entries], np.int64) if frame_columns else None
        found[stem] = ForeignScores(scores=np.array([entry[2] for entry in entries]), frames=frames)
    return found


def _frames(row: dict[str, str], columns: tuple[str, str] | None, fps: float) -> tuple[int, int]:
    """Return the first and last frame of a clip; (0, 0) if the table does not state them."""
    if columns is None:
        return 0, 0
    if columns == _FRAME_COLUMNS[0]:
        return int(row[columns[0]]), int(row[columns[1]])
    return round(float(row[columns[0]]) * fps), round(float(row[columns[1]]) * fps)
