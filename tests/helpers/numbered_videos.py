"""Videos whose every frame carries its number as black and white blocks, so that a test can check which frame it got.

Made with PyAV at test time; each names the number of every frame that a viewer sees, in order.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.stream import Disposition

BITS, ROWS, COLUMNS = 8, 2, 4
FPS = 25


@dataclasses.dataclass(frozen=True, kw_only=True)
class NumberedVideo:
    path: Path
    numbers: tuple[int, ...]  # what the frames show, in presentation order
    seconds: tuple[float, ...]  # when, from the first


def draw_number(number: int, width: int, height: int) -> npt.NDArray[np.uint8]:
    """Draw the 8 bits of `number` as 2 rows of 4 blocks in a grey picture (height, width)."""
    bits = (number >> np.arange(BITS)) & 1
    rows = np.arange(height) * ROWS // height
    columns = np.arange(width) * COLUMNS // width
    return np.where(bits.reshape(ROWS, COLUMNS)[np.ix_(rows, columns)], 220, 30).astype(np.uint8)


def read_number(frame: npt.NDArray[np.uint8]) -> int:
    """Return the number that a frame (H, W, 3) shows, or -1 if a block is neither black nor white."""
    height, width = frame.shape[:2]
    number = 0
    for bit in range(BITS):
        row, column = divmod(bit, COLUMNS)
        y, x = (2 * row + 1) * height // (2 * ROWS), (2 * column + 1) * width // (2 * COLUMNS)
        mean = frame[y - 2 : y + 3, x - 2 : x + 3].mean()
        if 80 < mean < 170:
            return -1
        number |= int(mean > 125) << bit
    return number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoding:
    """Encoding options of `make_video`."""

    num_frames: int = 60
    size: tuple[int, int] = (320, 240)
    codec: str = "libx264"
    pixel_format: str = "yuv420p"
    options: dict[str, str] | None = None
    times: Sequence[int] | None = None  # of the frames, in 1/25 s
    shift: int = 0  # of all times; negative times are hidden by an edit list
    container: str = "mp4"
    container_options: dict[str, str] | None = None
    other_stream: Callable[[Any], list[Any]] | None = None
    sample_aspect: Fraction = Fraction(1)  # width of a pixel by its height
    colorspace: int = 2  # number of ITU-T H.273; 2: unspecified
    cut_after: int | None = None  # packets, as `ffmpeg -t SECONDS -c copy` leaves a video


def make_video(path: Path, **changes: Any) -> NumberedVideo:
    """Encode numbered frames into `path`, with these changes to `Encoding`."""
    how = Encoding(**changes)
    times = list(range(how.num_frames)) if how.times is None else list(how.times)
    ticks = 1 if how.container == "avi" else 512  # per 1/25 s, as FFmpeg has it
    with av.open(str(path), "w", format=how.container, options=how.container_options or {}) as output:
        stream = output.add_stream(how.codec, rate=FPS, options=how.options or {})
        stream.width, stream.height = how.size
        stream.pix_fmt = how.pixel_format
        stream.codec_context.time_base = Fraction(1, FPS * ticks)
        stream.codec_context.thread_count = 1
        stream.codec_context.sample_aspect_ratio = how.sample_aspect
        stream.codec_context.colorspace = how.colorspace
        others = how.other_stream(output) if how.other_stream is not None else []
        packets = []
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(draw_number(number, *how.size), format="gray")
            frame = frame.reformat(format=how.pixel_format)
            frame.pts, frame.time_base = time * ticks, Fraction(1, FPS * ticks)
            packets += stream.encode(frame)
        packets = (packets + stream.encode(None))[: how.cut_after]
        kept = {round(packet.pts * packet.time_base * FPS) for packet in packets}
        for packet in others + packets:
            if how.shift:
                base = packet.time_base
                packet.pts += int(how.shift * Fraction(1, FPS) / base)
                packet.dts += int(how.shift * Fraction(1, FPS) / base)
            output.mux(packet)
    shown = [number for number, time in enumerate(times) if time in kept and time + how.shift >= 0]
    return NumberedVideo(
        path=path,
        numbers=tuple(shown),
        seconds=tuple((times[number] - times[shown[0]]) / FPS for number in shown),
    )


def rotate(path: Path, clockwise: int) -> None:
    """Patch the display matrix of the first track of an MP4, so that players turn its picture `clockwise` degrees."""
    one = 1 << 16
    a, b = {90: (0, one), 180: (-one, 0), 270: (0, -one)}[clockwise]
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    width, height = 320 * one, 240 * one
    x, y = {90: (height, 0), 180: (width, height), 270: (0, width)}[clockwise]
    data[at : at + 36] = struct.pack(">9i", a, b, 0, -b, a, 0, x, y, 1 << 30)
    path.write_bytes(data)


def mirror(path: Path) -> None:
    """Patch the display matrix of the first track of an MP4, so that players show its picture mirrored."""
    one = 1 << 16
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", -one, 0, 0, 0, one, 0, 320 * one, 0, 1 << 30)
    path.write_bytes(data)


def _cover_picture(output: Any) -> list[Any]:
    """Add a cover picture, as video sites and phones embed it, and return its packets."""
    stream = output.add_stream("png", rate=1)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
    stream.disposition = Disposition.attached_pic
    frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 128, np.uint8), format="rgb24")
    frame.pts = 0
    return [*stream.encode(frame), *stream.encode(None)]


def _other_stream(output: Any) -> list[Any]:
    """Add a second video stream of 5 frames without a number, and return its packets."""
    stream = output.add_stream("mpeg4", rate=FPS)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    stream.codec_context.time_base = Fraction(1, FPS)
    packets = []
    for i in range(5):
        frame = av.VideoFrame.from_ndarray(np.full((48, 64), 128, np.uint8), format="gray").reformat(format="yuv420p")
        frame.pts, frame.time_base = i, Fraction(1, FPS)
        packets += stream.encode(frame)
    return packets + stream.encode(None)


_X264 = {"preset": "veryfast", "threads": "1"}
_RANDOM_TIMES = [int(t) for t in np.cumsum(np.random.default_rng(3).choice([1, 1, 1, 2, 3, 9], 60))]

# name → arguments of make_video
KINDS: dict[str, dict[str, Any]] = {
    "constant_rate": {"options": {**_X264, "g": "20", "bf": "2"}},
    "variable_rate": {"options": _X264, "times": _RANDOM_TIMES},
    "gap_of_40_seconds": {"options": _X264, "times": [*range(30), *range(1030, 1060)]},
    "no_b_frames": {"options": {**_X264, "bf": "0", "g": "12"}},
    "open_gop": {"options": {**_X264, "x264-params": "open-gop=1:keyint=20:bframes=5:b-pyramid=normal:scenecut=0"}},
    "long_gop": {"num_frames": 250, "options": {**_X264, "g": "9999", "sc_threshold": "0"}},
    "intra_only": {"options": {**_X264, "g": "1"}},
    "edit_list": {"options": {**_X264, "g": "20", "bf": "2"}, "shift": -13},
    "edit_list_over_a_keyframe": {"options": {**_X264, "g": "10", "bf": "2"}, "shift": -24},
    "starts_at_5_seconds": {"options": {**_X264, "g": "20"}, "shift": 125},
    "rotated_90": {"options": _X264},
    "rotated_180": {"options": _X264},
    "rotated_270": {"options": _X264},
    "odd_size": {"options": _X264, "size": (321, 241), "pixel_format": "yuv444p"},
    "narrow": {"options": _X264, "size": (16, 1024), "pixel_format": "yuv444p"},
    "smaller_than_the_clip": {"options": _X264, "size": (64, 48)},
    "ten_bit": {"options": _X264, "pixel_format": "yuv420p10le"},
    "interlaced": {"options": {**_X264, "flags": "+ilme+ildct", "x264-params": "interlaced=1:tff=1"}},
    "full_range": {"options": _X264, "pixel_format": "yuvj420p"},
    "one_frame": {"options": _X264, "num_frames": 1},
    "two_frames": {"options": _X264, "num_frames": 2},
    "fragmented": {
        "options": {**_X264, "g": "16"},
        "container_options": {"movflags": "frag_keyframe+empty_moov+default_base_moof"},
    },
    "matroska_named_mp4": {"options": _X264, "container": "matroska"},
    "mpegts_named_mp4": {"options": _X264, "container": "mpegts"},
    "avi_named_mp4": {"codec": "mpeg4", "container": "avi"},
    "quicktime": {"options": _X264, "container": "mov"},
    "mpeg4": {"codec": "mpeg4"},
    "hevc": {"codec": "libx265", "options": {"preset": "ultrafast", "x265-params": "log-level=none"}},
    "hevc_open_gop": {
        "codec": "libx265",
        "options": {
            "preset": "ultrafast",
            "x265-params": "log-level=none:keyint=20:min-keyint=20:open-gop=1:bframes=4",
        },
    },
    "mpeg4_b_frames": {"codec": "mpeg4", "options": {"bf": "2", "g": "12"}},
    "vp9": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "av1": {"codec": "libsvtav1", "options": {"preset": "8", "crf": "20", "svtav1-params": "lp=1"}},
    "two_video_streams": {"options": _X264, "other_stream": _other_stream},
    "cover_picture": {"options": _X264, "other_stream": _cover_picture},
    "cut_without_encoding": {"options": {**_X264, "bf": "3", "b-adapt": "0", "sc_threshold": "0"}, "cut_after": 39},
    "mirrored": {"options": _X264},
    "bt2020": {"options": _X264, "colorspace": 9},
    "avi_b_frames": {"options": {**_X264, "bf": "2"}, "container": "avi"},
}


def make_kind(kind: str, folder: Path) -> NumberedVideo:
    """Write the numbered video of this kind into `folder`."""
    suffix = ".mov" if kind == "quicktime" else ".mp4"
    video = make_video(folder / f"{kind}{suffix}", **KINDS[kind])
    if kind.startswith("rotated_"):
        rotate(video.path, int(kind.removeprefix("rotated_")))
    elif kind == "mirrored":
        mirror(video.path)
    return video


def upright(frame: npt.NDArray[np.uint8], kind: str) -> npt.NDArray[np.uint8]:
    """Undo what a player does to the picture, so that the number can be read."""
    if kind == "mirrored":
        return frame[:, ::-1]
    if not kind.startswith("rotated_"):
        return frame
    return np.rot90(frame, int(kind.removeprefix("rotated_")) // 90)


def _encode_pictures(path: Path, pictures: Sequence[npt.NDArray[np.uint8]], options: dict[str, str]) -> Path:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=FPS, options={**_X264, **options})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode(None))
    return path


def make_coloured(path: Path, rgb: tuple[int, int, int]) -> Path:
    """Three frames of one colour."""
    return _encode_pictures(path, [np.full((96, 128, 3), rgb, np.uint8)] * 3, {"crf": "10"})


def make_striped(path: Path) -> Path:
    """Three frames of 320×240 with black and white columns, each one pixel wide."""
    picture = np.zeros((240, 320, 3), np.uint8)
    picture[:, ::2] = 255
    return _encode_pictures(path, [picture] * 3, {"crf": "1"})
