"""Container detection, integrity checks and opening of video files.

Nothing here decodes. The container is detected by content, never by file name, and FFmpeg is given the format.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vidshard.util.errors import MACHINE_FAULTS

# The only reason that allows another decoder. Damage must stay visible: of the damaged files that decord refuses,
# OpenCV reads more than half without an error, as short or empty videos.
UNSUPPORTED = "unsupported_by_decoder"
DAMAGED = "damaged"


_MAGIC_BYTES = 4096
_ISO_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"styp", b"moof", b"sidx", b"uuid")
_PICTURE_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"avif")


class VideoError(Exception):
    """A video that cannot be used. `reason` is a code for programs, `message` is for people (no absolute path)."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)  # both, so that the error can be pickled
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


def open_container(name: str, container_format: str, *, edit_list: bool = True) -> Any:
    """Open a file with PyAV as the given container. Without `edit_list`, all frames of an MP4 are shown.

    FFmpeg must not guess the format: a playlist or a script would make it open other files.
    """
    import av

    options = {"protocol_whitelist": "file"}
    if not edit_list:
        options["ignore_editlist"] = "1"
    if int(av.__version__.partition(".")[0]) >= 19:  # replaces invalid UTF-8 in metadata by itself
        return av.open(name, format=container_format, options=options)
    return av.open(name, format=container_format, options=options, metadata_errors="replace")


def read_head(path: Path) -> tuple[bytes, int]:
    """Return the first bytes of a regular file and its size in bytes. Raises VideoError."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # checked before opening: opening a FIFO blocks forever
            raise VideoError("not_a_regular_file", "it is a folder, pipe, socket or device, not a file")
        if status.st_size == 0:
            raise VideoError("empty_file", "it has 0 bytes")
        with open(path, "rb") as file:
            return file.read(_MAGIC_BYTES), status.st_size
    except OSError as error:
        raise_fault_of_machine(error)
        raise VideoError("unreadable", f"it cannot be opened: {plain_text(error)}") from error


def raise_fault_of_machine(error: Exception) -> None:
    """Raise OSError if `error` is a fault of the machine, such as too many open files: the video may be sound."""
    number = getattr(error, "errno", None)  # PyAV's errors have one, too
    if number in MACHINE_FAULTS:
        raise OSError(number, os.strerror(number)) from error


def check_boxes(path: Path, size: int) -> None:
    """Raise VideoError if the file ends inside an MP4 box that holds frames or their index."""
    position = 0
    with open(path, "rb") as file:
        while position + 8 <= size:
            file.seek(position)
            header = file.read(16)
            length, name = int.from_bytes(header[:4], "big"), header[4:8]
            if length == 1:
                length = int.from_bytes(header[8:], "big")
            if name not in _ISO_BOXES or length < 8:  # data after the video, or a box up to the end of the file
                return
            position += length
            if position > size and name in (b"moov", b"mdat", b"moof"):
                raise VideoError(
                    DAMAGED, f"the file ends early: {position - size:,} bytes of its {name.decode()} are missing"
                )


def riff_is_cut(path: Path, size: int) -> bool:
    """Return True if the RIFF chunks of an AVI are longer than the file."""
    position = 0
    with open(path, "rb") as file:
        while position + 8 <= size:
            file.seek(position)
            header = file.read(8)
            if header[:4] != b"RIFF":
                return False
            position += 8 + int.from_bytes(header[4:], "little")
            position += position % 2
    return position > size + 1


def container_format(head: bytes) -> str:
    """Return FFmpeg's name of the video container that begins with `head`. Raises VideoError `not_a_video`.

    >>> container_format(bytes.fromhex("0000001c") + b"ftypisom")
    'mov'
    """
    if head[4:8] == b"ftyp" and head[8:12] in _PICTURE_BRANDS:
        raise VideoError("not_a_video", "it is a picture (HEIF or AVIF), despite its name")
    if head[4:8] in _ISO_BOXES:
        return "mov"
    for magic, name in (
        (b"\x1a\x45\xdf\xa3", "matroska"),
        (b"FLV\x01", "flv"),
        (b"\x30\x26\xb2\x75", "asf"),
        (b"OggS", "ogg"),
        (b"\x00\x00\x01\xba", "mpeg"),
        (b"IMKH", "mpeg"),  # Hikvision: its own header before a program stream
        (b"DAHUA", "dhav"),
        (b"DHAV", "dhav"),
    ):
        if head.startswith(magic):
            return name
    stream = _raw_stream(head)
    if stream is not None:
        return stream
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    for step in (188, 192):  # MPEG transport stream, plain and with 4-byte time stamps; may begin mid-packet
        if any(head[first : first + 8 * step : step] == b"\x47" * 8 for first in range(step)):
            return "mpegts"
    raise VideoError("not_a_video", f"its content is not that of a video file ({_describe(head)})")


def _raw_stream(head: bytes) -> str | None:
    """Return `h264` or `hevc` if `head` begins a raw stream: with a delimiter, parameter set or SEI message.

    >>> _raw_stream(bytes.fromhex("00000001 6764"))
    'h264'
    >>> _raw_stream(bytes.fromhex("000001 4001"))
    'hevc'
    >>> _raw_stream(bytes.fromhex("000001 b3"))
    """
    start = next((start for start in (b"\0\0\0\1", b"\0\0\1") if head.startswith(start)), None)
    if start is None:
        return None
    first = head[len(start) : len(start) + 2]
    if first[:1] in (b"\x67", b"\x47", b"\x27", b"\x09", b"\x06"):
        return "h264"
    return "hevc" if first in (b"\x40\1", b"\x42\1", b"\x46\1") else None


def _describe(head: bytes) -> str:
    """Guess the type of a file that is not a video, for the error message.

    >>> _describe(b"<!DOCTYPE html>")
    'text'
    """
    for magic, name in (
        (b"\xff\xd8\xff", "a JPEG picture"),
        (b"\x89PNG", "a PNG picture"),
        (b"GIF8", "a GIF picture"),
        (b"PK\x03\x04", "a ZIP archive"),
        (b"Rar!", "a RAR archive"),
        (b"\x1f\x8b", "a gzip archive"),
        (b"version https://git-lfs", "a Git LFS pointer: run `git lfs pull`"),
    ):
        if head.startswith(magic):
            return name
    if not any(head):
        return "only zeros"
    return "text" if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head[:256]) else "unknown bytes"


def plain_text(error: Exception) -> str:
    """Return the text of an error without the file path."""
    return getattr(error, "strerror", None) or type(error).__name__


@contextlib.contextmanager
def openable_name(path: Path) -> Iterator[str]:
    """Yield a name that every decoding library can open: absolute (FFmpeg takes `a:b.mp4` for a protocol) and UTF-8.

    OpenCV crashes on a name that is not UTF-8, and decord refuses it; on Linux the file is opened here and passed by
    the name of its descriptor.
    """
    name = os.path.abspath(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        if not os.path.isdir("/proc/self/fd"):
            raise VideoError(
                UNSUPPORTED, "the file name is not valid UTF-8, which this system cannot open; rename it"
            ) from None
        descriptor = os.open(path, os.O_RDONLY)
        try:
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        yield name
