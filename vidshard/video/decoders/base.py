"""What every decoder is, and how it says no."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vidshard.video.packets import PacketTable, VideoError

__all__ = ["Decoder", "Frame", "VideoError", "check_frame_indices", "installed_version"]

Frame = npt.NDArray[np.uint8]


class Decoder(Protocol):
    """A decoding library behind one face. `tests/contract` holds every decoder to it."""

    name: str  # of the library, as records keep it

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

        They come resized without aliasing, with edit list and rotation applied; a bounded number is in memory at once.
        `in_sequence`: decode from the start without seeking, as is done where a seek is suspected to have missed.
        Raises VideoError: `unsupported_by_decoder` when another decoder may be asked, any other reason when not.
        """


def check_frame_indices(table: PacketTable, frame_indices: Sequence[int]) -> None:
    """Raises ValueError unless `frame_indices` are sorted, unique and frames of the video."""
    if any(b <= a for a, b in itertools.pairwise(frame_indices)):
        raise ValueError(f"frame indices must rise, got {list(frame_indices)}")
    if frame_indices and not 0 <= frame_indices[0] <= frame_indices[-1] < table.num_frames:
        raise ValueError(
            f"frame indices {frame_indices[0]}–{frame_indices[-1]} are outside of the video: it has frames "
            f"0–{table.num_frames - 1}"
        )


@functools.cache
def installed_version(distributions: tuple[str, ...]) -> str | None:
    """The version of the first of these distributions that is installed; None if none is."""
    for distribution in distributions:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None
