"""Decoding libraries by name. Each is imported only by its own module, and only when it decodes."""

from __future__ import annotations

from collections.abc import Callable

from vidshard.util.errors import UserError
from vidshard.video.decoders import decord_decoder
from vidshard.video.decoders.base import Decoder, Frame, VideoError, installed_version
from vidshard.video.decoders.decord_decoder import DecordDecoder
from vidshard.video.decoders.opencv_decoder import OpenCVDecoder
from vidshard.video.decoders.pyav_decoder import PyAVDecoder

__all__ = [
    "AUTO",
    "DECODERS",
    "DECORDS",
    "Decoder",
    "Frame",
    "VideoError",
    "asks_decord",
    "decoder_versions",
    "decoders_for",
    "missing_note",
    "others_than",
]

DECODERS: dict[str, Callable[[], Decoder]] = {
    DecordDecoder.name: DecordDecoder,
    OpenCVDecoder.name: OpenCVDecoder,
    PyAVDecoder.name: PyAVDecoder,
}
AUTO = "auto"
AUTO_ORDER = ("decord", "opencv", "pyav")

DECORDS = decord_decoder.DISTRIBUTIONS

# The distributions that may provide OpenCV; which one is installed makes no difference here.
_OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")


def decoders_for(choice: str) -> list[Decoder]:
    """Return the decoders to try, in order: one by name, or for `auto` decord, then OpenCV for what decord does not
    support, then PyAV for the rest.

    `decord` means decord or decord2, whichever is installed. Raises UserError if both are, or for an unknown name.

    >>> [type(decoder).__name__ for decoder in decoders_for("auto")]
    ['DecordDecoder', 'OpenCVDecoder', 'PyAVDecoder']
    """
    if choice != AUTO and choice not in DECODERS:
        raise UserError(f"unknown decoder {choice!r}; choose one of {', '.join((AUTO, *DECODERS))}")
    return [DECODERS[name]() for name in _asked(choice)]


def _asked(choice: str) -> tuple[str, ...]:
    return AUTO_ORDER if choice == AUTO else (choice,)


def others_than(choice: str) -> list[str]:
    """Return the names of the decoders that `choice` does not use.

    >>> others_than("pyav")
    ['decord', 'opencv']
    """
    return [name for name in DECODERS if name not in _asked(choice)]


def decoder_versions() -> dict[str, str]:
    """Return the installed version of each decoding library without importing any; `absent` if not installed.

    The first key is `decord2` if that is installed, else `decord`.
    """
    names = [name for name in DECORDS if installed_version((name,))] or [DecordDecoder.name]
    libraries = {**{name: (name,) for name in names}, OpenCVDecoder.name: _OPENCV, PyAVDecoder.name: ("av",)}
    return {name: installed_version(distributions) or "absent" for name, distributions in libraries.items()}


def asks_decord(choice: str) -> bool:
    """Return True if `choice` may decode with decord or decord2."""
    return DecordDecoder.name in _asked(choice)


def missing_note(choice: str) -> str:
    """Return a note about a missing decoder of `choice`; "" if there is nothing to report."""
    if choice == AUTO and installed_version(decord_decoder.DISTRIBUTIONS) is None:
        return "decord is not installed: OpenCV decodes every video, and its pixels differ from decord's"
    return ""
