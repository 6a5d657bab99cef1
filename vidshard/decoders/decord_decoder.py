"""decord: the first choice. Resizes inside, refuses damaged files loudly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vidshard.decoders.base import Frame, check_frame_indices
from vidshard.packets import DAMAGED, UNSUPPORTED, PacketTable, VideoError, openable_name

_BATCH = 32  # frames in memory at once


class DecordDecoder:
    """decord with one thread. A reader is opened, used and closed here: a live one costs 32 MiB and its threads."""

    name = "decord"

    def frames(
        self, path: Path, table: PacketTable, frame_indices: Sequence[int], *, height: int, width: int
    ) -> Iterator[Frame]:
        check_frame_indices(table, frame_indices)
        decord = _load_decord()
        with openable_name(path) as name:
            try:
                reader = decord.VideoReader(name, ctx=decord.cpu(0), num_threads=1, width=width, height=height)
                expected = table.num_frames + table.discarded
                if len(reader) != expected:
                    raise VideoError(DAMAGED, f"decord counts {len(reader):,} frames, its packets {expected:,}")
                for start in range(0, len(frame_indices), _BATCH):
                    batch = reader.get_batch(list(frame_indices[start : start + _BATCH])).asnumpy()
                    yield from batch
            except decord.DECORDError as error:
                raise VideoError(DAMAGED, f"decord: {error}") from error


def _load_decord() -> Any:
    try:
        import decord
    except (ImportError, OSError) as error:
        raise VideoError(UNSUPPORTED, f"decord cannot be imported: {error}") from error
    return decord
