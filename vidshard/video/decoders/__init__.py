"""Decoding libraries by name. Each is imported only by its own module, and only when it decodes."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from vidshard.util.errors import UserError

if TYPE_CHECKING:
    from vidshard.video.decoders.base import Decoder


@dataclass(frozen=True, kw_only=True)
class Library:
    """A decoding library, with the class that decodes with it."""

    title: str  # for messages
    module: str  # in this folder
    decoder: str  # class in the module
    distributions: tuple[str, ...]  # packages that may provide it
    trace: str  # pattern of lines of tracebacks that name it


AUTO = "auto"
# In the order in which `auto` tries them: OpenCV for what decord does not support, then PyAV for the rest.
LIBRARIES = {
    "decord": Library(
        title="decord",
        module="decord_decoder",
        decoder="DecordDecoder",
        distributions=("decord", "decord2"),  # of 2021, and its maintained fork, whose pixels differ
        trace=r"\bdecord2?[./\\]|decord_decoder\.py|import decord",
    ),
    "opencv": Library(
        title="OpenCV",
        module="opencv_decoder",
        decoder="OpenCVDecoder",
        distributions=(  # which one is installed makes no difference here
            "opencv-python",
            "opencv-python-headless",
            "opencv-contrib-python",
            "opencv-contrib-python-headless",
        ),
        trace=r"\bcv2\b|opencv_decoder\.py",
    ),
    "pyav": Library(
        title="PyAV",
        module="pyav_decoder",
        decoder="PyAVDecoder",
        distributions=("av",),
        trace=r"\bav[./\\]|pyav_decoder\.py|import av\b",
    ),
}
DECORDS = LIBRARIES["decord"].distributions


def decoders_for(choice: str) -> list[Decoder]:
    """Return the decoders to try, in order: one by name, or for `auto` all of them.

    `decord` means decord or decord2, whichever is installed. Raises UserError if both are, or for an unknown name.

    >>> [type(decoder).__name__ for decoder in decoders_for("auto")]
    ['DecordDecoder', 'OpenCVDecoder', 'PyAVDecoder']
    """
    if choice != AUTO and choice not in LIBRARIES:
        raise UserError(f"unknown decoder {choice!r}; choose one of {', '.join((AUTO, *LIBRARIES))}")
    return [make_decoder(name) for name in LIBRARIES if choice in (AUTO, name)]


def make_decoder(name: str) -> Decoder:
    library = LIBRARIES[name]
    decoder: Decoder = getattr(importlib.import_module(f"{__name__}.{library.module}"), library.decoder)()
    return decoder


def others_than(choice: str) -> list[str]:
    """Return the names of the decoders that `choice` does not use.

    >>> others_than("pyav")
    ['decord', 'opencv']
    """
    return [name for name in LIBRARIES if choice not in (AUTO, name)]


@functools.cache
def installed_version(distributions: tuple[str, ...]) -> str | None:
    """Return the version of the first of `distributions` that is installed, or None."""
    for distribution in distributions:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None


def decoder_versions() -> dict[str, str]:
    """Return the installed version of each decoding library without importing any; `absent` if not installed.

    The first key is `decord2` if that is installed, else `decord`.
    """
    decords = [name for name in DECORDS if installed_version((name,))] or ["decord"]
    distributions: dict[str, tuple[str, ...]] = {name: (name,) for name in decords}
    distributions |= {name: library.distributions for name, library in LIBRARIES.items() if name != "decord"}
    return {name: installed_version(names) or "absent" for name, names in distributions.items()}


def missing_note(choice: str) -> str:
    """Return a note about a missing decoder of `choice`; "" if there is nothing to report."""
    if choice == AUTO and installed_version(DECORDS) is None:
        return "decord is not installed: OpenCV decodes every video, and its pixels differ from decord's"
    return ""
