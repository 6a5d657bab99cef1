"""Append-only score log on disk, from which a killed run resumes; results take no memory.

Each batch is one record that ends with a checksum. A kill leaves complete records, and at most one torn record at the
end of a file. Every process writes to a new file, so that nothing is appended after a torn record.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import json
import os
import shutil
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from vidshard.util import atomic
from vidshard.util.errors import FormatError, UserError

PLAN_NAME = "plan.json"
_HEAD = struct.Struct("<4sIII")  # magic, number of the batch, bytes of the rows, bytes of the reasons
_MAGIC = b"S1b\x01"
_CACHED_BATCHES = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredBatch:
    """Scores of one batch without padding."""

    rows: npt.NDArray[np.void]  # one `score_row` per clip
    reasons: dict[int, str]  # position in the batch → why the clip could not be read


def score_row(num_frames: int) -> np.dtype[np.void]:
    """Return the record type of the scores of a clip of `num_frames` frames."""
    return np.dtype(
        [
            ("confidence", "<f4"),  # P(crime) or its log-odds; NaN if the clip could not be read
            ("attention", "<f4", (num_frames,)),
            ("first_frame", "<i8"),  # in the video; this and the fields below are 0 if the clip could not be read
            ("last_frame", "<i8"),
            ("start_seconds", "<f8"),
            ("last_seconds", "<f8"),
        ]
    )


class ScoreLog:
    """Scored batches of a run in `folder`. `plan` holds everything that determines their scores."""

    def __init__(self, folder: Path, *, plan: Mapping[str, Any], num_batches: int, num_frames: int) -> None:
        self.folder, self.plan = folder, dict(plan)
        self.num_batches, self._dtype = num_batches, score_row(num_frames)
        self._places = np.full(num_batches, -1, np.int64)  # offset of each batch's record; -1: not scored yet
        self._file_of_batch = np.zeros(num_batches, np.int32)
        self._files: list[IO[bytes]] = []
        self._out: IO[bytes] | None = None
        self._cached = functools.lru_cache(_CACHED_BATCHES)(self._read)

    # --- before scoring

    def start(self, *, resume: bool) -> None:
        """Prepare the folder: empty it, or keep the scores of an earlier run with `resume`. Only one rank calls this.

        Raises UserError if the earlier run has a different plan.
        """
        path = self.folder / PLAN_NAME
        if resume and path.is_file():
            self._check_plan(path)
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        atomic.write_json(path, self.plan)

    def _check_plan(self, path: Path) -> None:
        try:
            held = json.loads(path.read_bytes())
        except ValueError as error:
            raise UserError(f"{path} cannot be read ({error}); start again without `resume`") from error
        for name in self.plan:
            if held.get(name) != self.plan[name]:
                raise UserError(
                    f"the unfinished run in {self.folder.parent} has {name} {held.get(name)!r}, this one "
                    f"{self.plan[name]!r}; resume with the same {name}, or start again without `resume`"
                )

    def load(self) -> None:
        """Find out which batches are on disk."""
        self.close()
        for path in sorted(self.folder.glob("*.scores")):
            file = open(path, "rb")  # noqa: SIM115
            self._files.append(file)
            self._scan(file, len(self._files) - 1)

    def _scan(self, file: IO[bytes], number: int) -> None:
        while True:
            place = file.tell()
            record = _read_record(file)
            if record is None:
                return
            batch = record[0]
            if batch < self.num_batches and self._places[batch] < 0:
                self._places[batch], self._file_of_batch[batch] = place, number

    @property
    def missing(self) -> npt.NDArray[np.int64]:
        """Numbers of the batches that are not on disk, ascending."""
        return np.flatnonzero(self._places < 0)

    # --- scoring

    @property
    def has_scores(self) -> bool:
        """True if a run can be resumed from the folder."""
        return (self.folder / PLAN_NAME).is_file()

    def append(self, batch: int, scored: ScoredBatch) -> None:
        """Append the scores of a batch. Not thread-safe. Raises OSError on a full disk."""
        if self._out is None:
            self._out = _new_file(self.folder)
        rows = np.ascontiguousarray(scored.rows, self._dtype).tobytes()
        reasons = json.dumps(scored.reasons).encode("ascii") if scored.reasons else b""
        head = _HEAD.pack(_MAGIC, batch, len(rows), len(reasons))
        body = head + rows + reasons
        record = body + zlib.crc32(body).to_bytes(4, "little")
        if self._out.write(record) != len(record):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._out.name)

    # --- afterwards

    def read(self, batch: int) -> ScoredBatch:
        """Read a batch from disk; the last few are cached. Raises FormatError if its file has changed."""
        return self._cached(batch)

    def _read(self, batch: int) -> ScoredBatch:
        file = self._files[self._file_of_batch[batch]]
        file.seek(int(self._places[batch]))
        record = _read_record(file)
        if record is None or record[0] != batch:
            raise FormatError(f"{file.name} changed while it was being read; run again with `resume`")
        reasons = json.loads(record[2]) if record[2] else {}
        return ScoredBatch(
            rows=np.frombuffer(record[1], self._dtype),
            reasons={int(position): reason for position, reason in reasons.items()},
        )

    def close(self) -> None:
        """Close all files."""
        for file in self._files:
            file.close()
        self._files = []
        if self._out is not None:
            self._out.close()
            self._out = None

    def remove(self) -> None:
        """Delete the log, once the outputs are written."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _new_file(folder: Path) -> IO[bytes]:
    """Create a file that no other process writes to. It is unbuffered, so that written records survive a kill."""
    number = 0
    while True:
        with contextlib.suppress(FileExistsError):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            return os.fdopen(os.open(folder / f"{number:06d}.scores", flags), "wb", buffering=0)
        number += 1


def _read_record(file: IO[bytes]) -> tuple[int, bytes, bytes] | None:
    """Read the record at the file's position: batch number, rows, reasons. Return None at the end or if it is torn."""
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size or head[:4] != _MAGIC:
        return None
    _, batch, num_row_bytes, num_reason_bytes = _HEAD.unpack(head)
    body = file.read(num_row_bytes + num_reason_bytes)
    crc32 = file.read(4)
    if len(body) < num_row_bytes + num_reason_bytes or zlib.crc32(head + body).to_bytes(4, "little") != crc32:
        return None
    return batch, body[:num_row_bytes], body[num_row_bytes:]
