"""Picture of the strongest detections, with frames as film strips and attention as bars below them."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stage1.common.files import holds
from stage1.data.reader import ClipReader
from stage1.inference.attention_data import load_attention_data
from stage1.inference.outputs import Detection, OutputFiles, read_anomalies, read_predictions
from stage1.review.attention_note import attention_note
from stage1.review.config import MAX_DETECTIONS, VisualizeConfig
from vidshard.shards import layout
from vidshard.storage import urls
from vidshard.util import atomic
from vidshard.util.errors import FormatError, UserError, fault_in

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_FRAMES = 16  # more than fit side by side at a readable size
MIN_EXCESS = 0.01  # of a marked frame's weight over an equal share; rounding alone exceeds it by less

# Okabe and Ito's orange and blue are distinguishable with every kind of colour blindness, and in grey.
TOP_COLOUR = "#D55E00"
BAR_COLOUR = "#8FB4CE"
TEXT_COLOUR = "#222222"
QUIET_COLOUR = "#6B6B6B"
LINE_COLOUR = "#A8A8A8"

# Lengths in pixels at 100 % zoom.
_DPI = 100
_WIDTH = 1600
_MARGIN = 40
_HEAD = 92
_CAPTION = 36
_BARS = 64
_TIMES = 24
_ROW_GAP = 30
_FRAME_GAP = 4
_MAX_FRAME_HEIGHT = 190
_NOTE_LINE = 22
_NOTE_LETTERS = 190  # of a line
# Fallbacks, if installed, for letters that the first font lacks, such as names in other scripts.
_FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Microsoft YaHei", "PingFang SC", "Malgun Gothic", "Yu Gothic", "Arial")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilmStrip:
    """One row of the picture. `shown` holds the positions in the clip of the drawn frames, ascending."""

    detection: Detection
    frames: npt.NDArray[np.uint8]  # (len(shown), H, W, 3) RGB
    shown: tuple[int, ...]
    is_miss: bool = False  # its attention is not among the outputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisualizeResult:
    """Result: the picture, the number of clips in it, and how far attention can be trusted."""

    path: Path
    num_shown: int
    note: str


@holds(lambda config: config.folder)
def visualize(config: VisualizeConfig) -> VisualizeResult:
    """Draw detections of a run as film strips: by default the strongest, among them a false alarm and a miss.

    If there are no detections, the picture says so.
    Raises UserError if the folder has no finished run, and FormatError if its files come from different runs.
    """
    files = OutputFiles(folder=config.folder)
    files.check_finished()
    detections = read_anomalies(files.anomalies)
    data = load_attention_data(config.folder)
    if [detection.key for detection in detections] != data.keys:
        raise FormatError(
            f"{files.anomalies} and the attention data of {config.folder} come from different runs; run `stage1 infer` "
            "again"
        )
    miss = strongest_miss(files) if detections else None
    rows = chosen(detections, config.num - (miss is not None and config.num > 1), sort=config.sort)
    strips = []
    for row in rows:
        shown = shown_positions(detections[row].attention_weights)
        strips.append(
            FilmStrip(detection=detections[row], frames=data.clips[row][list(shown)].numpy().copy(), shown=shown)
        )
    if miss is not None and len(strips) < config.num:
        strips.append(miss)
    picture = config.out or files.picture
    note = attention_note(files)
    atomic.write_bytes(picture, draw(strips, num_detections=len(detections), note=note))
    return VisualizeResult(path=picture, num_shown=len(strips), note=note)


def chosen(detections: Sequence[Detection], count: int, *, sort: str = "strongest") -> list[int]:
    """Return the positions of the detections to show; a false alarm is among them if there is one."""
    if sort == "time":
        return list(range(len(detections)))[:count]
    if sort == "weakest":
        return sorted(range(len(detections)), key=lambda i: (detections[i].confidence, i))[:count]
    rows = strongest(detections, count)
    alarms = [i for i in range(len(detections)) if detections[i].label == layout.NORMAL_LABEL]
    if alarms and count > 1 and not set(rows) & set(alarms):
        rows = [*rows[: count - 1], max(alarms, key=lambda i: (detections[i].confidence, -i))]
    return rows


def strongest_miss(files: OutputFiles) -> FilmStrip | None:
    """Return the missed crime of highest confidence, without attention; None if there is none, or no shards."""
    try:
        clips = read_predictions(files.predictions)
        missed = [row for row, clip in enumerate(clips) if clip.outcome == "miss" and clip.confidence is not None]
        run = json.loads(files.run.read_bytes())["shards"]
        reader = ClipReader(urls.location(run["path"])) if missed and run["path"] else None
        if reader is None or reader.digest != run["digest"] or len(reader) != len(clips):
            return None
        row = max(missed, key=lambda row: (clips[row].confidence or 0.0, -row))
        record, frames = reader.read_record(row), reader[row]
    except (UserError, OSError, ValueError, KeyError, TypeError) as error:
        if fault_in(error):
            raise
        return None
    num_frames = len(record.timestamps_seconds)
    shown = shown_positions([0.0] * num_frames)
    miss = Detection.of_record(
        record,
        video_path=record.path,
        confidence=clips[row].confidence or 0.0,
        attention_weights=(1 / num_frames,) * num_frames,
        fps=record.fps,
    )
    return FilmStrip(detection=miss, frames=frames[list(shown)], shown=shown, is_miss=True)


def strongest(detections: Sequence[Detection], count: int = MAX_DETECTIONS) -> list[int]:
    """Return the positions of the detections to show: the best of each video, then the second best, and so on.

    Six scenes show more than six overlapping clips of one scene.
    """
    by_confidence = sorted(range(len(detections)), key=lambda i: (-detections[i].confidence, i))
    seen: dict[str, int] = {}
    turn = {}  # how many stronger ones the same video has
    for i in by_confidence:
        turn[i] = seen.get(detections[i].source, 0)
        seen[detections[i].source] = turn[i] + 1
    chosen = sorted(by_confidence, key=lambda i: turn[i])[:count]
    return sorted(chosen, key=lambda i: (-detections[i].confidence, i))


def attended(detection: Detection) -> list[int]:
    """Return the positions of the frames to mark: those with the highest weights, if these exceed an equal share."""
    weights = detection.attention_weights
    least = (1 + MIN_EXCESS) / len(weights)
    return [i for i in detection.top_attention_indices if weights[i] > least]


def shown_positions(weights: Sequence[float], count: int = MAX_FRAMES) -> tuple[int, ...]:
    """Choose the frames to draw: all, or the frame of highest weight of each of `count` equal spans of a long clip.

    >>> shown_positions([0.1, 0.2, 0.3, 0.4], count=2)
    (1, 3)
    """
    num_frames = len(weights)
    if num_frames <= count:
        return tuple(range(num_frames))
    edges = [num_frames * i // count for i in range(count + 1)]
    return tuple(max(range(first, end), key=lambda i: (weights[i], -i)) for first, end in itertools.pairwise(edges))


def time_texts(seconds: Sequence[float]) -> list[str]:
    """Format times as seconds up to a minute, then as minutes and hours, with the digits that distinguish them.

    >>> time_texts([0.0, 0.12, 0.24]), time_texts([58.0, 60.0, 62.0]), time_texts([0, 3725.0])
    (['0.0 s', '0.1 s', '0.2 s'], ['0:58', '1:00', '1:02'], ['0:00:00', '1:02:05'])
    """
    gap = (seconds[-1] - seconds[0]) / max(1, len(seconds) - 1)
    decimals = 0 if gap >= 1 else 1 if gap >= 0.1 else 2
    if seconds[-1] < 60:
        return [f"{second:.{decimals}f} s" for second in seconds]
    texts = []
    for second in seconds:
        minutes, rest = divmod(round(second * 10**decimals), 60 * 10**decimals)
        hours, minutes_left = divmod(minutes, 60)
        clock = f"{hours}:{minutes_left:02d}" if seconds[-1] >= 3600 else f"{minutes}"
        texts.append(f"{clock}:{rest / 10**decimals:0{3 + decimals if decimals else 2}.{decimals}f}")
    return texts


def draw(strips: Sequence[FilmStrip], *, num_detections: int, note: str = "") -> bytes:
    """Draw the picture as PNG, with a note at its foot.

    Its bytes depend only on the arguments, matplotlib and its fonts.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import get_font_names

    installed = set(get_font_names())
    fonts = [name for name in _FONTS if name in installed]
    with matplotlib.rc_context({"font.family": fonts or ["sans-serif"], "text.color": TEXT_COLOUR}):
        heights = [_CAPTION + _frame_size(strip)[1] + 2 + _BARS + _TIMES for strip in strips] or [_CAPTION]
        foot = textwrap.wrap(note, _NOTE_LETTERS, break_long_words=False)
        total = _HEAD + sum(heights) + _ROW_GAP * len(heights) + _NOTE_LINE * len(foot) + (_ROW_GAP if foot else 0)
        figure = Figure(figsize=(_WIDTH / _DPI, total / _DPI), dpi=_DPI, facecolor="white")
        FigureCanvasAgg(figure)
        _draw_head(figure, strips, num_detections)
        top = _HEAD
        for strip, height in zip(strips, heights, strict=False):
            _draw_strip(figure, strip, top)
            top += height + _ROW_GAP
        for i, line in enumerate(foot):
            y = total - _ROW_GAP - _NOTE_LINE * (len(foot) - i) + _NOTE_LINE // 2
            _text(figure, _MARGIN, y, line, size=14, color=QUIET_COLOUR)
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # of a name, which then shows boxes
            figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def _draw_head(figure: Figure, strips: Sequence[FilmStrip], num_detections: int) -> None:
    num_shown = sum(not strip.is_miss for strip in strips)
    if not strips:
        title, legend = "No clip was detected as crime", "Every clip scored below the threshold: see predictions.csv"
    else:
        which = f"{num_shown} of {num_detections}" if num_shown < num_detections else f"all {num_shown}"
        title = f"Clips detected as crime: {which}" if num_detections > 1 else "The clip detected as crime"
        legend = (
            "Bars: attention, how the network weighs the frames; those of a clip sum to 100 %. Dashed: equal shares."
        )
        if num_shown < len(strips):
            title += ", and a missed crime"
        num_frames = len(strips[0].detection.attention_weights)
        if num_frames > len(strips[0].shown):
            legend += f" Shown: {len(strips[0].shown)} of {num_frames} frames."
    _text(figure, _MARGIN, 30, title, size=22, weight="bold")
    _text(figure, _MARGIN, 64, legend, size=14, color=QUIET_COLOUR)
    if strips:
        marked = "■ highest weights, above an equal share"
        _text(figure, _WIDTH - _MARGIN, 64, marked, size=14, color=TOP_COLOUR, align="right")


def _draw_strip(figure: Figure, strip: FilmStrip, top: int) -> None:
    """Draw caption, frames, bars and times of a detection; bars share the frames' horizontal axis."""
    detection, (frame_width, frame_height) = strip.detection, _frame_size(strip)
    num_shown = len(strip.shown)
    width = num_shown * frame_width + (num_shown - 1) * _FRAME_GAP
    lefts = [i * (frame_width + _FRAME_GAP) for i in range(num_shown)]
    highlighted = [position in attended(detection) for position in strip.shown]

    _text(figure, _MARGIN, top + 12, _name(detection), size=17, weight="bold")
    _text(figure, _WIDTH - _MARGIN, top + 12, _facts(strip), size=17, align="right")

    frames = _pixel_axes(figure, _MARGIN, top + _CAPTION, width, frame_height)
    for left, frame, is_top in zip(lefts, strip.frames, highlighted, strict=True):
        frames.imshow(frame, extent=(left, left + frame_width, frame_height, 0), interpolation="bilinear", zorder=1)
        if is_top:
            _box(frames, left + 2, 2, frame_width - 4, frame_height - 4, fill=False, linewidth=2.9, zorder=2)
    frames.set(xlim=(0, width), ylim=(frame_height, 0), aspect="auto")

    times = time_texts(detection.seconds)
    for left, position in zip(lefts, strip.shown, strict=True):
        x, y = _MARGIN + left + frame_width / 2, top + _CAPTION + frame_height + 2 + _BARS + 12
        _text(figure, x, y, times[position], size=12, color=QUIET_COLOUR, align="center")
    if strip.is_miss:
        y = top + _CAPTION + frame_height + 2 + _BARS // 2
        _text(figure, _MARGIN, y, "Missed: attention is written for detections only", size=13, color=QUIET_COLOUR)
        return
    bars = _pixel_axes(figure, _MARGIN, top + _CAPTION + frame_height + 2, width, _BARS)
    weights = np.asarray(detection.attention_weights)
    equal_share = 1 / len(weights)
    scale = (_BARS - 20) / max(weights.max(), 2 * equal_share)  # bars of no preference stay low
    for left, position, is_top in zip(lefts, strip.shown, highlighted, strict=True):
        height = max(2.0, float(weights[position]) * scale)
        colour = TOP_COLOUR if is_top else BAR_COLOUR
        _box(bars, left + frame_width * 0.15, 0, frame_width * 0.7, height, color=colour, linewidth=0)
        if is_top:
            bars.text(
                left + frame_width / 2,
                height + 4,
                f"{100 * weights[position]:.0f} %",
                fontsize=_points(13),
                ha="center",
                va="bottom",
                weight="bold",
                color=TOP_COLOUR,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},  # the dashed line stays off the digits
            )
    bars.axhline(0, color=LINE_COLOUR, linewidth=0.8, zorder=0)
    bars.axhline(equal_share * scale, color=LINE_COLOUR, linewidth=0.8, linestyle=(0, (4, 4)), zorder=0)
    bars.set(xlim=(0, width), ylim=(0, _BARS))


def _frame_size(strip: FilmStrip) -> tuple[float, int]:
    """Return width and height in pixels of a drawn frame, as large as fits, with its aspect ratio."""
    height, width = strip.frames.shape[1:3]
    num_shown = len(strip.shown)
    fitting = (_WIDTH - 2 * _MARGIN - (num_shown - 1) * _FRAME_GAP) / num_shown
    drawn = min(fitting, _MAX_FRAME_HEIGHT * width / height)
    return drawn, max(1, round(drawn * height / width))


def _name(detection: Detection) -> str:
    """Return the name of the video, shortened in the middle if it is long."""
    name = detection.source.encode("utf-8", "replace").decode()
    return name if len(name) <= 70 else f"{name[:30]}…{name[-39:]}"


def _facts(strip: FilmStrip) -> str:
    """Format class, time and confidence of a clip in one line."""
    detection = strip.detection
    times = time_texts(detection.seconds)
    note = " (missed)" if strip.is_miss else " (false alarm)" if detection.label == layout.NORMAL_LABEL else ""
    class_name = [f"{detection.class_name}{note}"] if detection.class_name else []
    return "   ·   ".join([*class_name, f"{times[0]} – {times[-1]}", f"confidence {100 * detection.confidence:.1f} %"])


def _height(figure: Figure) -> int:
    return round(figure.get_figheight() * _DPI)


def _pixel_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add undecorated axes at these pixels, counted from the top left corner of the figure."""
    total = _height(figure)
    axes = figure.add_axes((left / _WIDTH, 1 - (top + height) / total, width / _WIDTH, height / total))
    axes.set_axis_off()
    return axes


def _box(axes: Axes, left: float, bottom: float, width: float, height: float, **style: Any) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((left, bottom), width, height, **{"color": TOP_COLOUR, **style}))


def _text(figure: Figure, x: float, y: float, text: str, *, size: int, align: str = "left", **style: Any) -> None:
    """Draw text centred at these pixels, without interpreting dollar signs as formulas."""
    at = x / _WIDTH, 1 - y / _height(figure)
    figure.text(*at, text, fontsize=_points(size), ha=align, va="center", parse_math=False, **style)


def _points(pixels: int) -> float:
    return pixels * 72 / _DPI
