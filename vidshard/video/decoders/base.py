"""Interface of the decoders, and checks that they share."""

from __future__ import annotations

import abc
import itertools
from collections.abc import Generator, Sequence
from pathlib import Path

from vidshard.video.packets import PacketTable
from vidshard.video.sampling import Frame as Frame

Size = tuple[int, int]  # height and width in pixels


class Decoder(abc.ABC):
    """Common interface of the decoding libraries. `tests/contract` tests every decoder against it."""

    name: str  # of the library, as stored in sample records

    def frames(
        self,
        path: Path,
        table: PacketTable,
        frame_indices: Sequence[int],
        *,
        height: int,
        width: int,
        in_sequence: bool = False,
    ) -> Generator[Frame, None, None]:
        """Yield the frames of `frame_indices` (sorted, unique, presentation order), uint8 (height, width, 3) RGB.

        Frames are resized without aliasing, with edit list and rotation applied; only a bounded number is in memory at
        once. `in_sequence`: decode from the start without seeking, for videos where a seek may have missed. Raises
        VideoError: `unsupported_by_decoder` if another decoder may be tried, any other reason if not.
        """
        check_frame_indices(table, frame_indices)
        return self._frames(path, table, frame_indices, (height, width), in_sequence)

    @abc.abstractmethod
    def _frames(
        self, path: Path, table: PacketTable, frame_indices: Sequence[int], size: Size, in_sequence: bool
    ) -> Generator[Frame, None, None]:
        """Yield these frames, whose indices are right, at a size in pixels."""


def check_frame_indices(table: PacketTable, frame_indices: Sequence[int]) -> None:
    """Raise ValueError unless `frame_indices` are sorted, unique and within the video."""
    if any(b <= a for a, b in itertools.pairwise(frame_indices)):
        raise ValueError(f"frame indices must be ascending, got {list(frame_indices)}")
    if frame_indices and not 0 <= frame_indices[0] <= frame_indices[-1] < table.num_frames:
        raise ValueError(
            f"frame indices {frame_indices[0]}–{frame_indices[-1]} are outside of the video: it has frames "
            f"0–{table.num_frames - 1}"
        )
