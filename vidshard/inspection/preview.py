"""Self-contained HTML page about a shard folder: contact sheets, histograms, failures.

Reads only the index, the records of clips with repeated frames, and the clips that it shows, so that it takes seconds
for any set. The same set and options give the same page.
"""

from __future__ import annotations

import base64
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vidshard.inspection.config import PREVIEW_NAME
from vidshard.inspection.config import PreviewConfig as PreviewConfig
from vidshard.inspection.contents import inspect_shards
from vidshard.shards import layout, manifest
from vidshard.shards.manifest import ShardSet
from vidshard.util import atomic, console, pages
from vidshard.util.errors import FormatError
from vidshard.util.opencv import load_cv2

_JPEG_QUALITY = 80
_NUM_BINS = 24
_MAX_BARS = 10  # in charts of counted values, such as resolutions
_MAX_RECORDS = 5000  # of clips with repeated frames; more are sampled
_MAX_FAILURES = 2000  # rows of the table; failures.csv has the rest


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """Middle frame of a clip. `image` is a data URI; None if the clip cannot be read, with the reason in `error`."""

    key: str
    caption: str
    title: str
    image: str | None
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar of a chart: its label, its count, and its height relative to the highest bar."""

    label: str
    count: int
    share: float


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Bar chart: vertical `bars` on an axis from `low` to `high`, or rows of counted values if `low` is empty."""

    title: str
    bars: tuple[Bar, ...]
    unit: str = ""
    low: str = ""
    high: str = ""
    note: str = ""


def write_preview(config: PreviewConfig) -> Path:
    """Write the page and return its path.

    Raises UserError if there is no finished shard folder, FormatError if its manifest or index is damaged; a clip that
    cannot be read is marked on the page.
    """
    shards = manifest.open_shards(config.folder)
    rows = draw_clips(shards, config.clips_per_class, seed=config.seed)
    page = pages.template("vidshard.inspection", PREVIEW_NAME).render(
        name=config.folder.resolve().name,
        about=inspect_shards(config.folder),
        sheets=[_sheet(shards, name, rows[name]) for name in sorted(rows, key=lambda name: name or "")],
        histograms=_histograms(shards, seed=config.seed),
        failures=shards.manifest.failures[:_MAX_FAILURES],
        num_failures=len(shards.manifest.failures),
    )
    atomic.write_bytes(config.path, page.encode("utf-8", "backslashreplace"))  # escape invalid names
    return config.path


# ---- contact sheets


def draw_clips(shards: ShardSet, clips_per_class: int, *, seed: int) -> dict[str | None, list[int]]:
    """Draw clips per class: class → ascending rows of the index, one clip per video in turn, so that long videos do
    not dominate."""
    index = shards.index
    of_class: dict[str | None, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row, video in enumerate(index.clips["video"].tolist()):
        of_class[index.class_name(video)][video].append(row)
    drawn = {}
    for name, of_video in of_class.items():
        generator = random.Random(f"{seed} {name}")
        videos = list(of_video.values())
        generator.shuffle(videos)
        videos = [generator.sample(rows, min(len(rows), clips_per_class)) for rows in videos[:clips_per_class]]
        turns = (rows[turn] for turn in range(clips_per_class) for rows in videos if turn < len(rows))
        drawn[name] = sorted(row for row, _ in zip(turns, range(clips_per_class), strict=False))
    return drawn


def _sheet(shards: ShardSet, name: str | None, rows: Sequence[int]) -> dict[str, Any]:
    (count,) = (row for row in shards.manifest.classes if row.name == name)
    thumbnails = [_thumbnail(shards, row) for row in rows]
    return {"name": name, "label": count.label, "count": count, "thumbnails": thumbnails}


def _thumbnail(shards: ShardSet, row: int) -> Thumbnail:
    key, path = shards.index.key(row), shards.index.paths[shards.index.clips["video"][row]]
    try:
        clip, record = shards.read_clip(row)
    except (FormatError, OSError) as error:
        return Thumbnail(key=key, caption=path, title=key, image=None, error=str(error))
    middle = len(clip) // 2
    seconds = record.timestamps_seconds[middle]
    flags = f" · {', '.join(record.flags)}" if record.flags else ""
    about = (
        f"{path}\nframe {record.frame_indices[middle]:,} of {record.num_frames:,}, {console.time_text(seconds)}{flags}"
    )
    caption = f"{Path(path).stem} · {console.time_text(seconds)}"
    return Thumbnail(key=key, caption=caption, title=f"{key}\n{about}", image=_data_uri(clip[middle]))


def _data_uri(frame: npt.NDArray[np.uint8]) -> str:
    cv2 = load_cv2()
    done, data = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    assert done, f"OpenCV cannot encode a JPEG of shape {frame.shape}"
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")


# ---- histograms


def _histograms(shards: ShardSet, *, seed: int) -> Iterator[Histogram]:
    videos, rows = shards.index.videos, shards.index.clips
    sizes = Counter(f"{w}×{h}" for w, h in zip(videos["width"].tolist(), videos["height"].tolist(), strict=True))
    yield histogram("Length of the videos", "s", shards.index.seconds)
    yield histogram("Frame rate of the videos", "frames/s", shards.index.fps)
    yield counts("Resolution of the videos", "videos", sizes)
    yield histogram("Time from frame to frame in a clip", "s", rows["frame_gap_seconds"].astype(np.float64))
    yield _repeats(shards, seed)
    decoders = (shards.index.decoder(row) or "unknown" for row in range(len(videos)))
    yield counts("Decoder", "videos", Counter(decoders))


def _repeats(shards: ShardSet, seed: int) -> Histogram:
    """Count the repeated frames per clip, from the records of the flagged clips."""
    rows = np.flatnonzero(shards.index.clips["flags"] & layout.flags_to_bits(("repeated",))).tolist()
    read = sorted(random.Random(seed).sample(rows, min(len(rows), _MAX_RECORDS)))
    found: Counter[str] = Counter({"none": len(shards.index) - len(rows)})
    for row in read:
        try:
            with shards.open_shard(int(shards.index.clips["shard"][row])) as file:
                record = shards.read_record(row, file)
            found[str(record.repeated_frames)] += 1
        except (FormatError, OSError):
            found["unreadable"] += 1
    note = f"{len(read):,} of {len(rows):,} clips with repeats were examined" if len(read) < len(rows) else ""
    return counts("Frames of a clip that repeat the one before", "clips", found, note=note)


def histogram(title: str, unit: str, values: npt.NDArray[np.float64]) -> Histogram:
    """Make a histogram with equal bins, from 0 if the values begin near it; the top 1 % may share the last bin.

    >>> chart = histogram("Length", "s", np.array([1.0, 2.0, 2.0, 24.0]))
    >>> chart.low, chart.high, [bar.count for bar in chart.bars if bar.count]
    ('0', '24 s', [1, 2, 1])
    """
    if not len(values):
        return Histogram(title=title, bars=())
    low, top, highest = float(values.min()), float(np.quantile(values, 0.99)), float(values.max())
    high = highest if highest <= 1.5 * top else top
    low = 0.0 if low < high / 2 else low
    if high <= low:
        high, low = low + 0.5 * max(abs(low), 1.0), low - 0.5 * max(abs(low), 1.0)
    edges = np.linspace(low, high, _NUM_BINS + 1)
    numbers, _ = np.histogram(np.clip(values, low, high), edges)
    bars = tuple(
        Bar(label=f"{left:.4g} to {right:.4g} {unit}", count=int(count), share=float(count / numbers.max()))
        for left, right, count in zip(edges[:-1], edges[1:], numbers, strict=True)
    )
    beyond = f" (the last bar includes all values up to {highest:.4g})" if high < highest else ""
    note = f"median {np.median(values):.4g} {unit} · highest bar {numbers.max():,}"
    ends = {"low": f"{low:.4g}", "high": f"{high:.4g} {unit}{beyond}"}
    return Histogram(title=title, bars=bars, note=note, **ends)


def counts(title: str, unit: str, found: Mapping[str, int], *, note: str = "") -> Histogram:
    """Make a chart of counts, most frequent first; rare values are summed.

    >>> [(bar.label, bar.count) for bar in counts("Decoder", "videos", {"opencv": 1, "decord": 9}).bars]
    [('decord', 9), ('opencv', 1)]
    """
    ranked = sorted(((name, count) for name, count in found.items() if count), key=lambda row: (-row[1], row[0]))
    rest = ranked[_MAX_BARS:]
    shown = [*ranked[:_MAX_BARS], *([(f"{len(rest)} others", sum(count for _, count in rest))] if rest else [])]
    highest = max((count for _, count in shown), default=1)
    bars = tuple(Bar(label=name, count=count, share=count / highest) for name, count in shown)
    return Histogram(title=title, unit=unit, bars=bars, note=note)
