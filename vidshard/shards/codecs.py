"""How the pixels of a clip become the bytes that are stored, for the codecs that compress. Libraries load on first use.

zstd keeps every bit; jpeg is about five times smaller than that and loses some. The bytes depend on the clip and on the
version of the library, which is among the packages of a manifest.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

import numpy as np
import numpy.typing as npt

from vidshard.util.opencv import load_cv2
from vidshard.util.errors import FormatError, UserError

ZSTD_LEVEL = 1  # higher ones take many times as long for a few percent
JPEG_QUALITY = 95
JPEG_MAX_SIDE = 65500  # of libjpeg

Strip = npt.NDArray[np.uint8]


def zstd_compress(data: bytes) -> bytes:
    """One zstd frame, with the size of the content in its header."""
    name, zstd = _load_zstd()
    if name == "zstandard":
        return bytes(zstd.ZstdCompressor(level=ZSTD_LEVEL).compress(data))
    return bytes(zstd.compress(data, level=ZSTD_LEVEL))


def zstd_decompress(data: bytes | memoryview, size: int, *, where: str) -> bytes:
    """The `size` bytes behind a zstd frame. Raises FormatError, naming `where`, when it holds anything else."""
    name, zstd = _load_zstd()
    try:
        if name == "zstandard":
            # The frame says how large its content is: look before memory is taken for it.
            if zstd.frame_content_size(bytes(data[:32])) != size:
                raise FormatError(f"{where} does not hold {size:,} bytes")
            content = bytes(zstd.ZstdDecompressor().decompress(data, max_output_size=size))
        else:
            content = bytes(zstd.ZstdDecompressor().decompress(bytes(data), max_length=size + 1))
    except FormatError:
        raise
    except Exception as error:  # each library has an error of its own
        raise FormatError(f"{where} is no zstd frame: {error}") from error
    if len(content) != size:
        raise FormatError(f"{where} does not hold {size:,} bytes")
    return content


def jpeg_encode(strip_HWC: Strip) -> bytes:
    """A picture (uint8 RGB) as JPEG, quality 95, 4:2:0."""
    cv2 = load_cv2()
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    done, encoded = cv2.imencode(".jpg", cv2.cvtColor(strip_HWC, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise ValueError(f"OpenCV cannot encode a picture of shape {strip_HWC.shape}")
    return bytes(encoded.tobytes())


def jpeg_decode(data: bytes | memoryview, *, where: str) -> Strip:
    """The picture in a JPEG, uint8 RGB. Raises FormatError, naming `where`, when there is none."""
    cv2 = load_cv2()
    if bytes(data[:3]) != b"\xff\xd8\xff":
        raise FormatError(f"{where} is no JPEG")
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if picture is None:
        raise FormatError(f"{where} is a JPEG that cannot be decoded")
    strip: Strip = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    return strip


def check_codec(codec: str) -> None:
    """Raises UserError that says what to install when the library of a codec is not there."""
    if codec == "zstd":
        _load_zstd()
    elif codec == "jpeg":
        load_cv2()


def codec_packages(codec: str) -> dict[str, str]:
    """The versions that decide the bytes of a codec, beyond those of the decoders (which OpenCV is among)."""
    if codec != "zstd":
        return {}
    name, zstd = _load_zstd()
    return {name: importlib.metadata.version(name) if name == "zstandard" else str(zstd.zstd_version)}


def _load_zstd() -> tuple[str, Any]:
    """The name of the module that is there, and the module; the package first, as every Python can have it."""
    for name in ("zstandard", "compression.zstd"):  # the second: Python 3.14 and later
        try:
            return name, importlib.import_module(name)
        except ImportError:
            continue
    raise UserError("the codec zstd needs a package that is not installed: pip install 'vidshard[zstd]'")
