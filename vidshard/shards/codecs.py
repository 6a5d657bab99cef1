"""Compression of clips: zstd and JPEG. Libraries load on first use.

zstd is lossless; JPEG is lossy and about five times smaller. The compressed bytes depend on the clip and on the
version of the library, which the manifest records among its packages.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

import numpy as np
import numpy.typing as npt

from vidshard.util.errors import FormatError, UserError
from vidshard.util.opencv import load_cv2

ZSTD_LEVEL = 1  # higher levels take many times as long and save a few percent
JPEG_QUALITY = 95
JPEG_MAX_SIDE = 65500  # pixels; the limit of libjpeg
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers; the size follows

Strip = npt.NDArray[np.uint8]


def zstd_compress(data: bytes) -> bytes:
    """Compress to one zstd frame, with the size of the content in its header."""
    name, zstd = _load_zstd()
    if name == "zstandard":
        return bytes(zstd.ZstdCompressor(level=ZSTD_LEVEL).compress(data))
    return bytes(zstd.compress(data, level=ZSTD_LEVEL))


def zstd_decompress(data: bytes | memoryview, size: int, *, where: str) -> bytes:
    """Decompress a zstd frame to exactly `size` bytes. Raises FormatError, naming `where`, if this fails."""
    name, zstd = _load_zstd()
    try:
        if name == "zstandard":
            # The header holds the content size: check it before allocating memory.
            if zstd.frame_content_size(bytes(data[:32])) != size:
                raise FormatError(f"{where} does not decompress to {size:,} bytes")
            content = bytes(zstd.ZstdDecompressor().decompress(data, max_output_size=size))
        else:
            content = bytes(zstd.ZstdDecompressor().decompress(bytes(data), max_length=size + 1))
    except FormatError:
        raise
    except Exception as error:  # each library has its own error type
        raise FormatError(f"{where} is not a zstd frame: {error}") from error
    if len(content) != size:
        raise FormatError(f"{where} does not decompress to {size:,} bytes")
    return content


def jpeg_encode(strip_HWC: Strip) -> bytes:
    """Encode a picture (uint8 RGB, H W C) as JPEG, quality 95, 4:2:0."""
    cv2 = load_cv2()
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    done, encoded = cv2.imencode(".jpg", cv2.cvtColor(strip_HWC, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise ValueError(f"OpenCV cannot encode a picture of shape {strip_HWC.shape}")
    return bytes(encoded.tobytes())


def jpeg_decode(data: bytes | memoryview, *, height: int, width: int, where: str) -> Strip:
    """Decode a JPEG of this size to uint8 RGB (H W C). Raises FormatError, naming `where`, if that is impossible."""
    cv2 = load_cv2()
    got = _jpeg_size(bytes(data))
    if got != (height, width):  # checked first, as a picture of another size may take gigabytes to decode
        what = "is not a JPEG" if got is None else f"is a picture of {got[0]}×{got[1]} pixels"
        raise FormatError(f"{where} {what}, expected a JPEG of {height}×{width}")
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if picture is None or picture.shape != (height, width, 3):
        raise FormatError(f"{where} is a JPEG that cannot be decoded")
    strip: Strip = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    return strip


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return height and width that the header of a JPEG states; None if there is no such header.

    >>> _jpeg_size(jpeg_encode(np.zeros((4, 9, 3), np.uint8)))
    (4, 9)
    """
    place = 2 if data.startswith(b"\xff\xd8") else len(data)
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4])
        if marker in _START_OF_FRAME:
            return int.from_bytes(data[place + 5 : place + 7]), int.from_bytes(data[place + 7 : place + 9])
        place += 2 + length
    return None


def check_codec(codec: str) -> None:
    """Raise UserError with install instructions if the library of `codec` is missing."""
    if codec == "zstd":
        _load_zstd()
    elif codec == "jpeg":
        load_cv2()


def codec_packages(codec: str) -> dict[str, str]:
    """Return the package versions that determine the bytes of `codec`, except those of the decoders (such as
    OpenCV)."""
    if codec != "zstd":
        return {}
    name, zstd = _load_zstd()
    return {name: importlib.metadata.version(name) if name == "zstandard" else str(zstd.zstd_version)}


def _load_zstd() -> tuple[str, Any]:
    """Return the zstd module and its name; the package comes first because every Python version can install it."""
    for name in ("zstandard", "compression.zstd"):  # the second: Python 3.14 and later
        try:
            return name, importlib.import_module(name)
        except ImportError:
            continue
    raise UserError("the codec zstd needs a package that is not installed: pip install 'vidshard[zstd]'")
