"""Interface of the decoders, and checks that they share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from vidshard.video.packets import PacketTable
from vidshard.video.sampling import Frame as Frame


class Decoder(Protocol):
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
    ) -> Iterator[Frame]:
        """Yield the frames of `frame_indices` (sorted, unique, presentation order), uint8 (height, width, 3) RGB.

        Frames are resized without aliasing, with edit list and rotation applied; only a bounded number is in memory at
        once. `in_sequence`: decode from the start without seeking, for videos where a seek may have missed. Raises
        VideoError: `unsupported_by_decoder` if another decoder may be tried, any other reason if not.
        """


def check_frame_indices(table: PacketTable, frame_indices: Sequence[int]) -> None:
    """Raise ValueError unless `frame_indices` are sorted, unique and within the video."""
    if any(b <= a for a, b in itertools.pairwise(frame_indices)):
        raise ValueError(f"frame indices must be ascending, got {list(frame_indices)}")
    if frame_indices and not 0 <= frame_indices[0] <= frame_indices[-1] < table.num_frames:
        raise ValueError(
            f"frame indices {frame_indices[0]}–{frame_indices[-1]} are outside of the video: it has frames "
            f"0–{table.num_frames - 1}"
        )
