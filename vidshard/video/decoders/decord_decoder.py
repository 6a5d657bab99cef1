"""Decoder with decord, the default. Resizes while decoding and reports damaged files."""

from __future__ import annotations

import contextlib
import ctypes
import re
import sys
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from vidshard.util.errors import UserError
from vidshard.video.decoders import DECORDS, installed_version
from vidshard.video.decoders.base import Decoder, Frame, Size
from vidshard.video.packets import DAMAGED, UNSUPPORTED, PacketTable, VideoError, openable_name
from vidshard.video.sampling import resize_frame

_BATCH = 32  # frames in memory at once
_CONTAINERS = ("mov", "matroska")  # of an MPEG transport stream it silently drops all before the second keyframe
_CANNOT_SCALE = "from_size == to_size"  # its error for some small widths (16, 24, 48, 72, …)
_NO_DECODER = "cannot find video stream"  # its error when its FFmpeg lacks the decoder


class DecordDecoder(Decoder):
    """decord with one thread. A reader is closed as soon as it is done, since it costs 32 MiB and its threads."""

    name = "decord"  # the choice; an instance's name distinguishes decord from decord2

    def __init__(self) -> None:
        """Find the installed distribution. Raises UserError if both decord and decord2 are installed."""
        self.name = installed_distribution() or type(self).name

    def _frames(
        self, path: Path, table: PacketTable, frame_indices: Sequence[int], size: Size, in_sequence: bool
    ) -> Generator[Frame, None, None]:
        if table.container not in _CONTAINERS:
            raise VideoError(UNSUPPORTED, f"decord is not used for {table.container} files")
        if table.num_video_streams > 1:
            raise VideoError(
                UNSUPPORTED, f"decord cannot be told which of its {table.num_video_streams} video streams to read"
            )
        if table.counted or table.mirrored or table.rotation % 90:
            raise VideoError(UNSUPPORTED, "decord does not show videos of this kind as players do")
        decord = _load_decord()
        with openable_name(path) as name:
            # A seek of decord misses if the edit list hides frames (it counts them), if frames after a keyframe are
            # shown before it (it drops them), or if a flagged keyframe is not one: then all is decoded from the start.
            can_seek = not (in_sequence or table.discarded or table.open_gops or not table.clean_keyframes)
            try:
                yield from _in_some_size(decord, name, table, can_seek, frame_indices, size)
            except decord.DECORDError as error:
                text = str(error)
                if _NO_DECODER in text:
                    raise VideoError(UNSUPPORTED, f"decord has no decoder for {table.codec}") from error
                if _CANNOT_SCALE in text:
                    raise VideoError(
                        UNSUPPORTED, f"decord cannot scale to {table.width} or {size[1]} pixels"
                    ) from error
                raise VideoError(DAMAGED, f"decord: {_first_line(text)}") from error


def _in_some_size(
    decord: Any, name: str, table: PacketTable, can_seek: bool, frame_indices: Sequence[int], size: Size
) -> Iterator[Frame]:
    """Yield the frames; decord downscales as far as that is accurate, and area resizing does the rest.

    decord scales fast, but its result is sharper than area averaging: in the worst case 28 dB from it. At twice the
    requested size, with the rest by area, that is 39 dB, for 15 % more time; at full size it is exact, for 4 times the
    time. Some widths are not supported at all.
    """
    height, width = size
    twice = {"height": min(2 * height, table.height), "width": min(2 * width, table.width)}
    sizes: list[dict[str, int]] = [twice, {}, {"height": height, "width": width}]
    for scaled in sizes:
        found = 0
        try:
            reader = _open(decord, name, table, **scaled)
            seeks = can_seek and reader.get_key_indices() == table.keyframes.tolist()
            for frame in (_read_with_seeks if seeks else _read_through)(reader, frame_indices):
                yield resize_frame(frame, height, width)
                found += 1
            return
        except decord.DECORDError as error:
            if found or scaled is sizes[-1] or _CANNOT_SCALE not in str(error):
                raise


def _open(decord: Any, name: str, table: PacketTable, *, height: int = -1, width: int = -1) -> Any:
    """Open a reader of frames of this size in pixels; -1 keeps that of the video."""
    reader = decord.VideoReader(name, ctx=decord.cpu(0), num_threads=1, width=width, height=height)
    expected = table.num_frames + table.discarded
    if len(reader) != expected:
        raise VideoError(DAMAGED, f"decord counts {len(reader):,} frames, but there are {expected:,} packets")
    return reader


def _read_with_seeks(reader: Any, frame_indices: Sequence[int]) -> Iterator[Frame]:
    for start in range(0, len(frame_indices), _BATCH):
        yield from reader.get_batch(list(frame_indices[start : start + _BATCH])).asnumpy()


def _read_through(reader: Any, frame_indices: Sequence[int]) -> Iterator[Frame]:
    position = 0
    for index in frame_indices:
        while position < index:  # not skip_frames, which seeks too
            reader.next()
            position += 1
        yield reader.next().asnumpy()
        position += 1


def installed_distribution() -> str | None:
    """Return which of decord and decord2 is installed; None if neither is.

    Raises UserError if both are: they overwrite each other's files, so either may be the one that decodes.
    """
    found = [name for name in DECORDS if installed_version((name,))]
    if len(found) > 1:
        raise UserError(
            f"{' and '.join(found)} are both installed in the same folder; "
            f"run `pip uninstall {' '.join(found)}`, then `pip install {found[-1]}`"
        )
    return found[0] if found else None


def _load_decord() -> Any:
    try:
        with _private_symbols(), _no_cuda_libraries():
            import decord
        decord.logging.set_level(decord.logging.INFO)  # the level of messages about concealed damage
    except Exception as error:  # a missing dependency raises many types of errors
        name = installed_distribution()
        if name is None:
            raise VideoError(UNSUPPORTED, "decord is not installed") from error
        wanted = f"{name}=={installed_version((name,))}"
        raise UserError(
            f"{name} is installed but cannot be imported ({_first_line(str(error))}); "
            f"run `pip install --force-reinstall --no-deps {wanted}`, or choose `decoder` opencv"
        ) from error
    return decord


@contextlib.contextmanager
def _private_symbols() -> Iterator[None]:
    """Load libraries without exporting their symbols to others.

    decord loads its FFmpeg with RTLD_GLOBAL. If OpenCV, loaded later, brings the same major version of FFmpeg, the
    linker would bind it to decord's copy, and OpenCV's result would depend on what was decoded before.
    """
    everywhere = ctypes.RTLD_GLOBAL
    ctypes.RTLD_GLOBAL = ctypes.RTLD_LOCAL  # type: ignore[misc]
    try:
        yield
    finally:
        ctypes.RTLD_GLOBAL = everywhere  # type: ignore[misc]


@contextlib.contextmanager
def _no_cuda_libraries() -> Iterator[None]:
    """Hide torch's CUDA libraries: decord2 would load all of them, 0.5 s and 650 MiB in every worker."""
    hidden = sys.modules.setdefault("nvidia", None)  # type: ignore[arg-type]
    try:
        yield
    finally:
        if hidden is None:
            del sys.modules["nvidia"]


def _first_line(text: str) -> str:
    """Return decord's message without time, source file and stack trace, which differ from run to run.

    >>> _first_line("[09:13:23] /a/b.cc:151: Check failed: x >= 0 (-1 vs. 0) Error\\nStack trace: …")
    'Check failed: x >= 0 (-1 vs. 0) Error'
    """
    return re.sub(r"^\[[\d:]+\] \S+: ", "", text.strip().partition("\n")[0])
