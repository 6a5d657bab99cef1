"""Reproducible, atomic writing of shards (``shard-000000.tar``).

Each chunk is decoded into a fragment file by any free worker; the fragments of a shard are joined in the order of the
plan. So the bytes of a shard do not depend on which worker decoded a chunk, or when.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vidshard.shards import layout
from vidshard.shards.layout import Clip, SampleRecord
from vidshard.shards.manifest import CLIP_ROW
from vidshard.util import atomic

_COPY_BYTES = 1 << 20

Rows = npt.NDArray[np.void]  # CLIP_ROW


class FragmentWriter:
    """Writer of the samples of one chunk to a fragment file, which is valid only once the block ends without an error.

    `rows` are the index rows of the samples; `offset` counts from the start of the fragment; `shard` and `video` are 0.
    """

    def __init__(self, path: Path, *, codec: str = "raw", label_member: bool = False) -> None:
        self._codec, self._label_member = codec, label_member
        self._file = open(path, "wb")  # noqa: SIM115
        self._size = 0
        self._rows: list[tuple[float, ...]] = []

    def __enter__(self) -> FragmentWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._size

    def append(self, record: SampleRecord, clip: Clip) -> None:
        """Write one sample. `clip`: uint8 (T, H, W, 3). Raises OSError (disk full)."""
        pieces, size, crc32 = layout.encode_pieces(record, clip, codec=self._codec, label_member=self._label_member)
        self._file.writelines(pieces)
        place = (0, self._size + layout.TAR_BLOCK, size, crc32, 0)
        flags = layout.flags_to_bits(record.flags)
        self._rows.append((*place, record.clip_index, record.label, flags, record.frame_gap_seconds))
        self._size += sum(map(len, pieces))

    @property
    def rows(self) -> Rows:
        return np.array(self._rows, CLIP_ROW)


class Cancelled(Exception):  # noqa: N818
    """Cancellation of `join_fragments` by its caller."""


def join_fragments(
    path: Path, fragments: Sequence[Path], *, cancelled: Callable[[], bool] = lambda: False
) -> tuple[int, str]:
    """Join fragment files into the shard `path` atomically; return its size in bytes and its SHA-256.

    Without fragments the shard is empty. Raises OSError (disk full), or Cancelled when `cancelled()` becomes true.
    """
    digest = hashlib.sha256()
    size = 0
    with atomic.atomic_open(path) as shard:
        for fragment in fragments:
            with open(fragment, "rb") as file:
                while block := file.read(_COPY_BYTES):
                    if cancelled():
                        raise Cancelled
                    shard.write(block)
                    digest.update(block)
                    size += len(block)
        end = layout.end_of_shard()
        shard.write(end)
        digest.update(end)
    return size + len(end), digest.hexdigest()
