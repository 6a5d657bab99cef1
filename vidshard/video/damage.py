"""Damage detection from the messages of FFmpeg.

A decoder hides most damage: it conceals what it cannot read and returns the frame without an error. But it logs a
message. All three decoding libraries contain their own FFmpeg: PyAV returns its messages with their levels; decord and
OpenCV write theirs to standard error or standard output.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import sys
import tempfile
from collections.abc import Collection, Iterator
from typing import IO

from vidshard.video.containers import DAMAGED, VideoError

_MAX_BYTES = 1 << 16  # limit of the messages examined and re-emitted
_MAX_LOGS = 1000  # of PyAV, where none is examined
# `[h264 @ 0x55d0] error while decoding MB 0 4`, or from OpenCV `[OPENCV:FFMPEG:16] error while …`
_LINE = re.compile(r"\[(?:OPENCV:FFMPEG:(?P<level>\d+)|(?P<component>[\w,]+) @ [^\]]*)\] (?:\[[^\]]*\] )?(?P<text>.+)")
_ERROR_LEVEL = 16  # FFmpeg's number; lower is worse
_PAINTED_OVER = "concealing"  # logged at a lower level; often the only sign of a flipped bit
_RECOVERED = "corrupted and recovered from nearest frames"  # decord returned one frame in place of another
# Logged for intact videos by the older FFmpeg in decord, which does not report the level.
_REMARKS = re.compile(r"reinit context|packed b-frames|reorder buffer|skipping nal unit", re.IGNORECASE)
_METADATA = re.compile(
    r"\bSEI\b|\bRPU\b|DOVI|buffering period", re.IGNORECASE
)  # about data that accompanies a picture; the pixels are intact
# Demuxers whose errors are trusted. The MP4 demuxer complains about intact files too, and the packets and decoders show
# whatever it finds; the transport stream demuxer continues after any fault.
_RELIABLE_READERS = ("matroska", "avi", "flv", "asf", "ogg", "dhav")


class Messages:
    """Messages logged since `capture_native_output` or `ffmpeg_messages` began."""

    def __init__(self, logs: list[tuple[int, str, str]], file: IO[bytes] | None = None) -> None:
        self._logs = logs  # from PyAV: level, component, text
        self._file = file
        self._text = ""

    @property
    def text(self) -> str:
        """The first messages on standard error and output, at most 64 KiB."""
        if self._file is not None:
            _flush()
        if self._file is not None and os.fstat(self._file.fileno()).st_size > len(self._text):
            self._file.seek(0)
            self._text = self._file.read(_MAX_BYTES).decode("utf-8", "replace")
        return self._text

    def end(self) -> None:
        """Keep the text and release the file."""
        lines = [f"[{component}] {text.strip()}\n" for _, component, text in self._logs]
        self._text, self._file = (self.text + "".join(lines))[:_MAX_BYTES], None

    def first_error(self, codec: str) -> str | None:
        """Return the first message of the decoder of `codec` (FFmpeg's name) that reports a damaged picture, if any.

        Messages about sound, subtitles or scaling do not count.
        """
        for level, component, text in self._logs:
            if component in _decoders(codec) and _is_error(level, text):
                return text.strip()
        return first_damage(self.text, codec)

    def refuse_damage(self, codec: str) -> None:
        """Raise VideoError `damaged` with the first message that reports a damaged picture."""
        error_text = self.first_error(codec)
        if error_text is not None:
            raise VideoError(DAMAGED, f"FFmpeg says: {error_text}")

    def reader_error(self, readers: Collection[str] = _RELIABLE_READERS) -> str | None:
        """Return the first message of a trusted demuxer that reports damage, if any."""
        for level, component, text in self._logs:
            if component.partition(",")[0] in readers and level <= _ERROR_LEVEL:
                return text.strip()
        return None

    def limit(self) -> None:
        """Keep only the first messages of PyAV: a damaged video logs many for each frame."""
        del self._logs[_MAX_LOGS:]

    def forget(self) -> None:
        """Discard the messages of PyAV so far."""
        self._logs.clear()


def first_damage(text: str, codec: str) -> str | None:
    """Return the first line of decord's or OpenCV's output that reports a damaged picture; None if there is none.

    >>> output = "[aac @ 0x1] Input buffer exhausted\\n[h264 @ 0x2] error while decoding MB 0 4, bytestream 25865\\n"
    >>> first_damage(output, "h264")
    'error while decoding MB 0 4, bytestream 25865'
    >>> first_damage("[mov,mp4,m4a,3gp,3g2,mj2 @ 0x3] stream 0, timescale not set", "h264")
    """
    for line in text.splitlines():
        if _RECOVERED in line:
            return _RECOVERED
        match = _LINE.search(line)
        if match is None:
            continue
        message = match["text"].strip()
        if match["level"]:
            is_damage = _is_error(int(match["level"]), message)
        else:
            is_damage = (
                match["component"] in _decoders(codec)
                and not _METADATA.search(message)
                and not _REMARKS.search(message)
            )
        if is_damage:
            return message
    return None


def _decoders(codec: str) -> tuple[str, ...]:
    return (codec, "libdav1d") if codec == "av1" else (codec,)


def _is_error(level: int, message: str) -> bool:
    return (level <= _ERROR_LEVEL and not _METADATA.search(message)) or message.startswith(_PAINTED_OVER)


@contextlib.contextmanager
def ffmpeg_messages(file: IO[bytes] | None = None) -> Iterator[Messages]:
    """Capture the messages of PyAV's FFmpeg in this thread; `file` receives those of other libraries."""
    import av.logging

    with av.logging.Capture() as logs:
        skips = av.logging.get_skip_repeated()
        level = av.logging.get_level()
        av.logging.set_skip_repeated(False)  # otherwise FFmpeg drops the same message for the next video
        av.logging.set_level(av.logging.INFO)  # the level of messages about concealed damage
        try:
            yield Messages(logs, file)
        finally:
            av.logging.set_level(level)
            av.logging.set_skip_repeated(skips)


@contextlib.contextmanager
def capture_native_output() -> Iterator[Messages]:
    """Capture PyAV's messages, and stdout and stderr at file-descriptor level; re-emit the first 64 KiB on exit.

    For worker processes: it redirects the standard output and error of the whole process.
    """
    with tempfile.TemporaryFile() as file, ffmpeg_messages(file) as messages:
        _flush()
        real = []
        for descriptor in (1, 2):
            with contextlib.suppress(OSError):  # the process may lack one of them
                real.append((os.dup(descriptor), descriptor))
                os.dup2(file.fileno(), descriptor)
        try:
            yield messages
        finally:
            messages.end()
            for kept, descriptor in real:
                os.dup2(kept, descriptor)
                os.close(kept)
            with contextlib.suppress(OSError):
                os.write(2, messages.text.encode("utf-8", "replace"))


def _flush() -> None:
    """Flush the buffers of Python and of the C library for standard output and error."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    with contextlib.suppress(Exception):  # Windows has several C libraries in one process
        _c_library().fflush(None)


@functools.cache
def _c_library() -> ctypes.CDLL:
    return ctypes.CDLL(None)
