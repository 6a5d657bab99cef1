"""What FFmpeg says while a video is read and decoded, and which of it means damage.

A decoder hides most damage: it paints over what it cannot read and gives the frame out as if all were well. But it says
so on standard error (OpenCV: on standard output). All three decoding libraries hold an FFmpeg of their own.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from typing import IO

from vidshard.packets import DAMAGED, VideoError

_MAX_BYTES = 1 << 16  # of messages that are looked at, and that are handed on: one is enough
# `[h264 @ 0x55d0] error while decoding MB 0 4`, or from OpenCV `[OPENCV:FFMPEG:16] error while …`
_LINE = re.compile(r"\[(?:OPENCV:FFMPEG:(?P<level>\d+)|(?P<who>[\w,]+) @ [^\]]*)\] (?:\[[^\]]*\] )?(?P<what>.+)")
_ERROR_LEVEL = 16  # FFmpeg's number; lower is worse

# Said of a sound video by the decoder itself; whatever else it says is damage.
_HARMLESS = re.compile(
    r"reinit context|deprecated pixel format|packed b-frames|reorder buffer|libdav1d|hardware accelerated"
    r"|failed to get pixel format|get current frame error|unknown sei|overlong headers",
    re.IGNORECASE,
)
# Said by what reads the container. It comments on much that is merely odd, so here only these are damage.
_DEMUXERS = ("mov", "matroska", "avi", "mpegts", "mpeg", "flv", "asf", "ogg")
_BROKEN_CONTAINER = re.compile(
    r"corrupt|too large|wrong sample count|invalid|overread|truncated|partial file|timescale not set|error reading"
    r"|premature end|unexpected end|read error|exceeds|no index|sample_count",
    re.IGNORECASE,
)


class Messages:
    """What this process wrote to its standard error and output since `listening` began."""

    def __init__(self, file: IO[bytes] | None) -> None:
        self._file = file
        self._text = ""

    @property
    def text(self) -> str:
        """The first messages, at most 64 KiB."""
        if self._file is not None:
            _flush()
        if self._file is not None and os.fstat(self._file.fileno()).st_size > len(self._text):
            self._file.seek(0)
            self._text = self._file.read(_MAX_BYTES).decode("utf-8", "replace")
        return self._text

    def end(self) -> None:
        """Keep the text, let go of the file."""
        self._text, self._file = self.text, None

    def refuse_damage(self, codec: str) -> None:
        """Raises VideoError `damaged` with the first message that means it. `codec`: that of the packet table."""
        said = first_damage(self.text, codec)
        if said is not None:
            raise VideoError(DAMAGED, f"FFmpeg says: {said}")


def first_damage(text: str, codec: str) -> str | None:
    """The first message that means that the video is damaged; None if there is none.

    Messages about sound, subtitles, or the scaling of pictures do not count.

    >>> said = "[aac @ 0x1] Input buffer exhausted\\n[h264 @ 0x2] error while decoding MB 0 4, bytestream 25865\\n"
    >>> first_damage(said, "h264")
    'error while decoding MB 0 4, bytestream 25865'
    >>> first_damage("[mov,mp4,m4a,3gp,3g2,mj2 @ 0x3] st: 0 edit list: 1 Missing key frame", "h264")
    """
    decoders = {codec, {"av1": "libdav1d"}.get(codec, codec)}
    for line in text.splitlines():
        match = _LINE.search(line)
        if match is None:
            continue
        what = match["what"].strip()
        if match["level"]:
            by_decoder = int(match["level"]) <= _ERROR_LEVEL or what.startswith("concealing")
            by_demuxer = False
        else:
            by_decoder = match["who"] in decoders
            by_demuxer = match["who"].partition(",")[0] in _DEMUXERS
        if (by_decoder and not _HARMLESS.search(what)) or (by_demuxer and _BROKEN_CONTAINER.search(what)):
            return what
    return None


@contextlib.contextmanager
def listening() -> Iterator[Messages]:
    """Keep what is written to standard error and output, by C libraries too; hand its beginning on at the end.

    For worker processes: it turns the standard error and output of the whole process.
    """
    import av.logging

    with tempfile.TemporaryFile() as file:
        messages = Messages(file)
        _flush()
        real = []
        for descriptor in (1, 2):
            with contextlib.suppress(OSError):  # a process without one: nothing to hear there
                real.append((os.dup(descriptor), descriptor))
                os.dup2(file.fileno(), descriptor)
        # INFO, because "concealing … errors" is one: often the only trace of a flipped bit.
        av.logging.restore_default_callback()
        av.logging.set_libav_level(av.logging.INFO)
        try:
            yield messages
        finally:
            av.logging.set_level(None)
            messages.end()
            for kept, descriptor in real:
                os.dup2(kept, descriptor)
                os.close(kept)
            with contextlib.suppress(OSError):
                os.write(2, messages.text.encode("utf-8", "replace"))


def _flush() -> None:
    """Write out what Python and the C library hold back of standard error and output."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    with contextlib.suppress(Exception):  # Windows has several C libraries in one process
        _c_library().fflush(None)


@functools.cache
def _c_library() -> ctypes.CDLL:
    return ctypes.CDLL(None)
