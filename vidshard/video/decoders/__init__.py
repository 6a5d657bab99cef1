"""The decoding libraries, by name. Each is imported by its own file only, and only when it decodes."""

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

# The distributions that may hold OpenCV: which of them is installed makes no difference here.
_OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")


def decoders_for(choice: str) -> list[Decoder]:
    """The decoders to ask, in this order: `auto` (decord, OpenCV for what decord does not read, PyAV for the rest) or
    one by name.

    `decord` is whichever of decord and decord2 is installed. Raises UserError when both are, or for another name.

    >>> [type(decoder).__name__ for decoder in decoders_for("auto")]
    ['DecordDecoder', 'OpenCVDecoder', 'PyAVDecoder']
    """
    if choice != AUTO and choice not in DECODERS:
        raise UserError(f"no decoder {choice!r}; choose one of {', '.join((AUTO, *DECODERS))}")
    return [DECODERS[name]() for name in _asked(choice)]


def _asked(choice: str) -> tuple[str, ...]:
    return AUTO_ORDER if choice == AUTO else (choice,)


def others_than(choice: str) -> list[str]:
    """The names of the decoders that `choice` does not ask.

    >>> others_than("pyav")
    ['decord', 'opencv']
    """
    return [name for name in DECODERS if name not in _asked(choice)]


def decoder_versions() -> dict[str, str]:
    """The installed version of each decoding library, by the name in records, without importing any; else `absent`.

    The first is `decord2` where that is installed, else `decord`.
    """
    names = [name for name in DECORDS if installed_version((name,))] or [DecordDecoder.name]
    libraries = {**{name: (name,) for name in names}, OpenCVDecoder.name: _OPENCV, PyAVDecoder.name: ("av",)}
    return {name: installed_version(distributions) or "absent" for name, distributions in libraries.items()}


def asks_decord(choice: str) -> bool:
    """Whether `choice` may decode by decord or decord2."""
    return DecordDecoder.name in _asked(choice)


def missing_note(choice: str) -> str:
    """What to tell about a decoder of `choice` that is not installed; "" if there is nothing to tell."""
    if choice == AUTO and installed_version(decord_decoder.DISTRIBUTIONS) is None:
        return "decord is not installed: OpenCV decodes every video, and its pixels are not those of decord"
    return ""
