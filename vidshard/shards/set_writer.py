"""The one writer of shard sets: clips in, shards, index and manifest out."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from vidshard.shards import layout, manifest, writer
from vidshard.shards.layout import Clip, ClipShape, SampleRecord
from vidshard.shards.manifest import ClassCount, Failure, Index, Manifest, Shard
from vidshard.util import atomic
from vidshard.util.errors import UserError

DEFAULT_SHARD_MB = 256
_NO_FAILURES = "path,outcome,reason,message\n"  # failures.csv of a set without any


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoEntry:
    """A video that became clips, as the index lists it."""

    path: str  # relative to SOURCE
    class_name: str | None
    label: int  # 0 normal, 1 crime, -1 unknown
    split: str | None
    source_group: str | None  # the recording that it was cut from
    decoder: str
    num_frames: int
    width: int
    height: int
    fps: float


def make_index(rows: npt.NDArray[np.void], videos: Sequence[VideoEntry]) -> Index:
    """Return the index of a set.

    Args:
        rows: one for each clip in shard order, of `CLIP_ROW`; its column `video` counts in `videos`.
        videos: one entry for each video.
    """
    classes = _table(video.class_name for video in videos)
    splits = _table(video.split for video in videos)
    groups = _table(video.source_group for video in videos)
    decoders = _table(video.decoder for video in videos)
    places = [{name: row for row, name in enumerate(names)} for names in (classes, splits, groups, decoders)]
    table = np.zeros(len(videos), manifest.VIDEO_ROW)
    for row, video in enumerate(videos):
        names = (video.class_name, video.split, video.source_group, video.decoder)
        columns = [-1 if name is None else of[name] for of, name in zip(places, names, strict=True)]
        table[row] = (*columns, video.num_frames, video.width, video.height, video.fps)
    return Index(
        clips=rows,
        videos=table,
        paths=[video.path for video in videos],
        classes=classes,
        splits=splits,
        source_groups=groups,
        decoders=decoders,
    )


def make_manifest(
    index_data: bytes,
    rows: npt.NDArray[np.void],
    videos: Sequence[VideoEntry],
    shards: Sequence[Shard],
    *,
    split: str | None,
    clip_shape: ClipShape,
    codec: str,
    settings: dict[str, Any],
    packages: dict[str, str],
    failures: tuple[Failure, ...] = (),
    num_found: int | None = None,
    **more: Any,
) -> Manifest:
    """Return the manifest of a set of these shards and this index.

    Args:
        index_data: the bytes of the index file.
        num_found: files found in SOURCE; by default one for each video and each failure.
        more: further fields of `Manifest`.
    """
    return Manifest(
        split=split,
        clip_shape=clip_shape,
        codec=codec,
        settings=settings,
        packages=packages,
        classes=_count_classes(rows, videos),
        videos_found=len(videos) + len(failures) if num_found is None else num_found,
        videos_ok=len(videos),
        failures=failures,
        shards=tuple(shards),
        index_bytes=len(index_data),
        index_sha256=hashlib.sha256(index_data).hexdigest(),
        **more,
    )


def _count_classes(rows: npt.NDArray[np.void], videos: Sequence[VideoEntry]) -> tuple[ClassCount, ...]:
    kinds = [(video.class_name, video.label) for video in videos]
    num_videos = Counter(kinds)
    num_clips: Counter[tuple[str | None, int]] = Counter()
    for kind, count in zip(kinds, np.bincount(rows["video"], minlength=len(videos)).tolist(), strict=True):
        num_clips[kind] += count
    in_order = sorted(num_videos, key=lambda kind: (_bytes(kind[0] or ""), kind[1]))
    return tuple(
        ClassCount(name=name, label=label, videos=num_videos[name, label], clips=num_clips[name, label])
        for name, label in in_order
    )


def _table(names: Iterable[str | None]) -> list[str]:
    return sorted({name for name in names if name is not None}, key=_bytes)


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


class ShardSetWriter:
    """Writes a shard set clip by clip, for clips that `vidshard build` did not cut. A context manager.

    The manifest is written last, when the block ends without an error. A folder without a manifest is not a shard set,
    so no crash leaves one that looks finished.

    Args:
        folder: where the set is written; must be empty or not exist.
        clip_len: frames in a clip (T).
        size: height and width of a clip in pixels, or one number for both.
        split: "Train", "Validation" or "Test", or None.
        codec: "raw", "zstd" (smaller, lossless) or "jpeg" (much smaller, lossy).
        settings: what decided the clips, such as ``{"mode": "dense", "clip_len": 16}``; kept in the manifest.
        packages: name → version of the packages that decided the clips; kept in the manifest.
        shard_mb: a new shard begins when the last one has reached this size.

    Raises:
        UserError: `folder` holds something, or an argument is out of range.
        OSError: the disk is full.

    >>> import tempfile, numpy as np
    >>> folder = tempfile.mkdtemp()
    >>> with ShardSetWriter(folder, clip_len=2, size=8) as writer:
    ...     key = writer.add(np.zeros((2, 8, 8, 3), np.uint8), video="Fighting/a.mp4", label=1, class_name="Fighting")
    >>> manifest.open_shards(Path(folder)).manifest.num_clips
    1
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        clip_len: int,
        size: int | tuple[int, int],
        split: str | None = None,
        codec: str = "raw",
        settings: Mapping[str, Any] | None = None,
        packages: Mapping[str, str] | None = None,
        shard_mb: float = DEFAULT_SHARD_MB,
    ) -> None:
        height, width = (size, size) if isinstance(size, int) else size
        self.folder = Path(folder)
        self.clip_shape = ClipShape(num_frames=clip_len, height=height, width=width)
        if codec not in layout.READABLE_CODECS:
            raise UserError(f"codec is {codec!r}, expected one of {', '.join(layout.READABLE_CODECS)}")
        if self.folder.is_dir() and any(self.folder.iterdir()):
            raise UserError(f"{self.folder} is not empty; name another folder, or remove this one")
        self.split, self.codec = split, codec
        self._settings = dict(settings) if settings is not None else {"clip_len": clip_len}
        self._packages = dict(packages or {"numpy": np.__version__})
        self._shard_bytes = shard_mb * 2**20
        self._videos: dict[str, VideoEntry] = {}
        self._row_of_video: dict[str, int] = {}
        self._next_clip: dict[str, int] = {}
        self._keys: set[str] = set()
        self._shards: list[Shard] = []
        self._rows: list[writer.Rows] = []
        self._video_rows: list[int] = []  # of the clips of the open shard
        self._part: writer.PartWriter | None = None

    def __enter__(self) -> ShardSetWriter:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        else:
            self._abandon()

    def add(
        self,
        clip: Clip,
        *,
        video: str,
        label: int,
        class_name: str | None = None,
        recording: str | None = None,
        clip_index: int | None = None,
        frame_indices: Sequence[int] | None = None,
        timestamps_seconds: Sequence[float] | None = None,
        fps: float = 25.0,
        num_frames: int | None = None,
        flags: tuple[str, ...] = (),
    ) -> str:
        """Write one clip and return its key.

        Args:
            clip: uint8 (T, H, W, 3), RGB.
            video: path or name of the video, relative to the folder of all videos, with forward slashes.
            label: 0 normal, 1 crime, -1 unknown; the same for all clips of a video.
            class_name: such as "Fighting".
            recording: what the video was cut from; videos of one recording belong on one side of a split.
            clip_index: number of the clip in its video; by default one more than that of the last.
            frame_indices: T frame indices within the video; by default those of consecutive clips.
            timestamps_seconds: T seconds from the start of the video; by default ``frame_indices / fps``.
            fps: mean frames a second of the video.
            num_frames: of the video; by default as many as `frame_indices` reach.
            flags: of `repeated`, `damaged`, `estimated_times`.

        Raises:
            ValueError: `clip` has another shape or type, the key was written before, or a list has the wrong length.
            OSError: the disk is full.
        """
        length = self.clip_shape.num_frames
        if clip_index is None:
            clip_index = self._next_clip.get(video, 0)
        indices = tuple(frame_indices or range(clip_index * length, (clip_index + 1) * length))
        seconds = tuple(timestamps_seconds or (index / fps for index in indices))
        if len(indices) != length or len(seconds) != length:
            raise ValueError(f"{len(indices)} frame indices and {len(seconds)} timestamps, expected {length} of each")
        gaps = np.diff(np.array(seconds))
        gaps = gaps[gaps > 0]
        return self.append(
            SampleRecord(
                path=video,
                class_name=class_name,
                label=label,
                split=self.split,
                clip_index=clip_index,
                frame_indices=indices,
                timestamps_seconds=seconds,
                frame_gap_seconds=round(float(np.median(gaps)), 6) if gaps.size else 0.0,
                fps=fps,
                num_frames=num_frames if num_frames is not None else max(indices) + 1,
                decoder="unknown",
                repeated_frames=sum(a == b for a, b in itertools.pairwise(indices)),
                flags=flags,
                source_group=recording,
            ),
            clip,
        )

    def append(self, record: SampleRecord, clip: Clip) -> str:
        """Write one clip with its record as `docs/SHARD_FORMAT.md` describes it, and return its key.

        Raises ValueError and OSError like `add`.
        """
        if clip.shape != self.clip_shape.thwc or clip.dtype != np.uint8:
            raise ValueError(
                f"clip {record.key!r} is {clip.dtype} {clip.shape}, expected uint8 {self.clip_shape.thwc}; "
                "the axes are T, H, W, RGB"
            )
        if record.key in self._keys:
            raise ValueError(f"clip {record.key!r} was written before")
        if self._part is None:
            self._part = writer.PartWriter(self._part_path, codec=self.codec)
        self._part.append(record, clip)
        self._keys.add(record.key)
        self._next_clip[record.path] = record.clip_index + 1
        self._video_rows.append(self._video_row(record))
        if self._part.size >= self._shard_bytes:
            self._end_shard()
        return record.key

    def _video_row(self, record: SampleRecord) -> int:
        if record.path not in self._row_of_video:
            self._row_of_video[record.path] = len(self._videos)
            self._videos[record.path] = VideoEntry(
                path=record.path,
                class_name=record.class_name,
                label=record.label,
                split=record.split,
                source_group=record.source_group,
                decoder=record.decoder,
                num_frames=record.num_frames,
                width=self.clip_shape.width,
                height=self.clip_shape.height,
                fps=record.fps,
            )
        return self._row_of_video[record.path]

    @property
    def _part_path(self) -> Path:
        return self.folder / f".{layout.shard_name(len(self._shards))}.part"

    def _end_shard(self) -> None:
        rows = np.zeros(0, manifest.CLIP_ROW)
        parts: list[Path] = []
        if self._part is not None:
            self._part.close()
            rows, parts = self._part.rows, [self._part_path]
            rows["shard"], rows["video"] = len(self._shards), self._video_rows
        name = layout.shard_name(len(self._shards))
        size, sha256 = writer.join_parts(self.folder / name, parts)
        for part in parts:
            part.unlink()
        self._shards.append(Shard(name=name, bytes=size, samples=len(rows), sha256=sha256))
        self._rows.append(rows)
        self._part, self._video_rows = None, []

    def _finish(self) -> None:
        if self._part is not None or not self._shards:
            self._end_shard()
        rows = np.concatenate(self._rows)
        videos = list(self._videos.values())
        index_data = make_index(rows, videos).to_bytes()
        splits = {video.split for video in videos}
        about = make_manifest(
            index_data,
            rows,
            videos,
            self._shards,
            split=splits.pop() if len(splits) == 1 else self.split,
            clip_shape=self.clip_shape,
            codec=self.codec,
            settings=self._settings,
            packages=self._packages,
        )
        atomic.write_text(self.folder / layout.FAILURES_NAME, _NO_FAILURES)
        manifest.write_index_and_manifest(self.folder, about, index_data)

    def _abandon(self) -> None:
        if self._part is not None:
            self._part.close()
            self._part_path.unlink(missing_ok=True)
