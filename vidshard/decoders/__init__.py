"""The decoding libraries, by name. Each is imported by its own file only, and only when it decodes."""

from __future__ import annotations

from collections.abc import Callable

from vidshard.decoders import decord_decoder
from vidshard.decoders.base import Decoder, Frame, VideoError, installed_version
from vidshard.decoders.decord_decoder import DecordDecoder
from vidshard.decoders.opencv_decoder import OpenCVDecoder
from vidshard.decoders.pyav_decoder import PyAVDecoder
from vidshard.errors import UserError

__all__ = [
    "AUTO",
    "DECODERS",
    "Decoder",
    "Frame",
    "VideoError",
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

# The distributions that may hold each library; the first installed one counts.
_DISTRIBUTIONS = {
    "decord": decord_decoder.DISTRIBUTIONS,
    "opencv": (
        "opencv-python",
        "opencv-python-headless",
        "opencv-contrib-python",
        "opencv-contrib-python-headless",
    ),
    "pyav": ("av",),
}


def decoders_for(choice: str) -> list[Decoder]:
    """The decoders to ask, in this order: `auto` (decord, OpenCV for what decord does not read, PyAV for the rest) or
    one by name.

    >>> [decoder.name for decoder in decoders_for("auto")]
    ['decord', 'opencv', 'pyav']
    """
    if choice != AUTO and choice not in DECODERS:
        raise UserError(f"no decoder {choice!r}; choose one of {', '.join((AUTO, *DECODERS))}")
    return [DECODERS[name]() for name in (AUTO_ORDER if choice == AUTO else (choice,))]


def others_than(choice: str) -> list[str]:
    """The names of the decoders that `choice` does not ask.

    >>> others_than("pyav")
    ['decord', 'opencv']
    """
    asked = {decoder.name for decoder in decoders_for(choice)}
    return [name for name in DECODERS if name not in asked]


def decoder_versions() -> dict[str, str]:
    """The installed version of each decoding library, by decoder name, without importing any; else `absent`.

    OpenCV and OpenCV headless are the same decoder: which of the two is installed makes no difference here.
    """
    return {name: installed_version(distributions) or "absent" for name, distributions in _DISTRIBUTIONS.items()}


def missing_note(choice: str) -> str:
    """What to tell about a decoder of `choice` that is not installed; "" if there is nothing to tell."""
    if choice == AUTO and installed_version(decord_decoder.DISTRIBUTIONS) is None:
        return "decord is not installed: OpenCV decodes every video, and its pixels are not those of decord"
    return ""
