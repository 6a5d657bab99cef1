"""Writer of shard sets: clips in; shards, index and manifest out."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vidshard.shards import card, codecs, layout, manifest, writer
from vidshard.shards.layout import Clip, ClipShape, SampleRecord
from vidshard.shards.manifest import ClassCount, Index, Manifest, Shard
from vidshard.util import atomic
from vidshard.util.errors import UserError
from vidshard.util.hashing import file_sha256
from vidshard.util.text import path_bytes

DEFAULT_SHARD_MB = 256
_NO_FAILURES = "path,outcome,reason,message\n"  # failures.csv of a set without any


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class VideoEntry:
    """Row of the index's video table: a video that has clips in the set."""

    path: str  # relative to the source folder
    class_name: str | None
    label: int  # 0 normal, 1 crime, -1 unknown
    split: str | None
    recording: str | None  # recording that the video was cut from
    decoder: str
    num_frames: int
    width: int
    height: int
    fps: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexFile:
    """An index on disk."""

    bytes: int
    sha256: str
    clips_of_video: npt.NDArray[np.int64]


def write_index(path: Path, blocks: Iterable[writer.Rows], num_clips: int, videos: Sequence[VideoEntry]) -> IndexFile:
    """Write the index of a set; only one block of its rows is in memory.

    Args:
        path: Of the index file.
        blocks: One row of `CLIP_ROW` per clip, in shard order; the column `video` is a position in `videos`.
        num_clips: Number of rows in all blocks.
        videos: One entry per video.
    """
    clips_of_video = np.zeros(len(videos), np.int64)

    def counted() -> Iterator[writer.Rows]:
        for block in blocks:
            np.add.at(clips_of_video, block["video"], 1)
            yield block

    with atomic.atomic_open(path) as file:
        _video_tables(videos).write(file, counted(), num_clips)
    # Zip headers are written after what follows them: no digest in passing.
    return IndexFile(bytes=path.stat().st_size, sha256=file_sha256(path), clips_of_video=clips_of_video)


def _video_tables(videos: Sequence[VideoEntry]) -> Index:
    """Return an index of these videos, without clips."""
    classes = _table(video.class_name for video in videos)
    splits = _table(video.split for video in videos)
    recordings = _table(video.recording for video in videos)
    decoders = _table(video.decoder for video in videos)
    places = [{name: row for row, name in enumerate(names)} for names in (classes, splits, recordings, decoders)]
    table = np.zeros(len(videos), manifest.VIDEO_ROW)
    for row, video in enumerate(videos):
        names = (video.class_name, video.split, video.recording, video.decoder)
        columns = [-1 if name is None else of[name] for of, name in zip(places, names, strict=True)]
        table[row] = (*columns, video.num_frames, video.width, video.height, video.fps)
    return Index(
        clips=np.zeros(0, manifest.CLIP_ROW),
        videos=table,
        paths=[video.path for video in videos],
        classes=classes,
        splits=splits,
        recordings=recordings,
        decoders=decoders,
    )


def make_manifest(index: IndexFile, videos: Sequence[VideoEntry], shards: Iterable[Shard], **fields: Any) -> Manifest:
    """Return the manifest of a set of these shards and this index.

    `fields`: the fields of `Manifest` that do not follow from the others.
    """
    return Manifest(
        classes=_count_classes(index.clips_of_video, videos),
        videos_ok=len(videos),
        shards=tuple(shards),
        index_bytes=index.bytes,
        index_sha256=index.sha256,
        **fields,
    )


def _count_classes(clips_of_video: npt.NDArray[np.int64], videos: Sequence[VideoEntry]) -> tuple[ClassCount, ...]:
    kinds = [(video.class_name, video.label) for video in videos]
    num_videos = Counter(kinds)
    num_clips: Counter[tuple[str | None, int]] = Counter()
    for kind, count in zip(kinds, clips_of_video.tolist(), strict=True):
        num_clips[kind] += count
    in_order = sorted(num_videos, key=lambda kind: (path_bytes(kind[0] or ""), kind[1]))
    return tuple(
        ClassCount(name=name, label=label, videos=num_videos[name, label], clips=num_clips[name, label])
        for name, label in in_order
    )


def _table(names: Iterable[str | None]) -> list[str]:
    return sorted({name for name in names if name is not None}, key=path_bytes)


class ShardSetWriter:
    """Write a shard set clip by clip, from clips that `vidshard build` did not cut. Use it as a context manager.

    The manifest is written last, when the block ends without an error. If the block raises, the shards are removed.
    If the process is killed, the folder has no manifest, so nothing mistakes it for a finished set.

    Args:
        folder: Output folder. Must be empty or not exist yet.
        clip_len: Frames per clip (T).
        size: Height and width of a clip in pixels: (H, W), or one number for both.
        split: "Train", "Validation", "Test" or None.
        codec: "raw", "zstd" (lossless, about half the size) or "jpeg" (lossy, about a fifth of the size).
        settings: How the clips were cut, such as ``{"mode": "dense", "clip_len": 16}``. Stored in the manifest.
        packages: Name → version of the packages that produced the clips. Stored in the manifest.
        shard_mb: Size in MiB at which a shard is closed and the next one begins.
        label_member: Add a member ``<key>.cls`` with the label to each sample (format version 2).

    Raises:
        UserError: The folder is not empty, or `codec` is unknown or needs a package that is not installed.
        ValueError: `clip_len` or `size` is below 1.

    >>> import tempfile, numpy as np
    >>> folder = tempfile.mkdtemp()
    >>> with ShardSetWriter(folder, clip_len=2, size=8) as writer:
    ...     writer.add(np.zeros((2, 8, 8, 3), np.uint8), video="Fighting/a.mp4", label=1, class_name="Fighting")
    'Fighting__a-000000'
    >>> manifest.open_shards(Path(folder)).manifest.num_clips
    1
    """

    def __init__(  # noqa: PLR0913  # public
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
        label_member: bool = False,
    ) -> None:
        height, width = (size, size) if isinstance(size, int) else size
        self.folder = Path(folder)
        self.clip_shape = ClipShape(num_frames=clip_len, height=height, width=width)
        if codec not in layout.READABLE_CODECS:
            raise UserError(f"codec is {codec!r}, expected one of {', '.join(layout.READABLE_CODECS)}")
        codecs.check_codec(codec)
        if self.folder.is_dir() and any(self.folder.iterdir()):
            raise UserError(f"{self.folder} is not empty; choose another folder, or delete this one")
        self.split, self.codec = split, codec
        self._settings = dict(settings) if settings is not None else {"clip_len": clip_len}
        self._label_member = label_member
        if label_member:
            self._settings["label_member"] = True
        self._packages = dict(packages or {"numpy": np.__version__})
        self._shard_bytes = shard_mb * 2**20
        self._videos: dict[str, VideoEntry] = {}
        self._row_of_video: dict[str, int] = {}
        self._last: SampleRecord | None = None
        self._keys: set[str] = set()
        self._shards: list[Shard] = []
        self._rows: list[writer.Rows] = []
        self._video_rows: list[int] = []  # of the clips of the open shard
        self._fragment: writer.FragmentWriter | None = None

    def __enter__(self) -> ShardSetWriter:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is None:
            self._finish()
        else:
            self._abandon()

    def add(  # noqa: PLR0913  # public, and a clip has that many properties
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

        Add videos in the order of ``sorted(paths)``, and the clips of a video one after another.

        Args:
            clip: uint8 (T, H, W, 3), RGB.
            video: Path of the video below a common folder, with forward slashes, such as "Fighting/a.mp4".
            label: 0 normal, 1 crime, -1 unknown.
            class_name: Class of the video, such as "Fighting".
            recording: Recording that the video was cut from. Splits keep videos of one recording together.
            clip_index: Number of the clip within its video, from 0. Default: the previous clip's plus 1.
            frame_indices: T indices within the video, from 0, never decreasing. Default: consecutive clips without
            gaps. timestamps_seconds: T seconds since the start of the video, never decreasing. Default:
            ``frame_indices / fps``. fps: Mean frame rate of the video, frames per second.
            num_frames: Length of the whole video in frames; pass it if a video has several clips. Default: up to the
                last frame of its first clip.
            flags: Any of "repeated", "damaged", "estimated_times".

        `label`, `class_name`, `recording`, `fps` and `num_frames` describe the video: the same for all its clips.

        Raises:
            ValueError: A wrong shape, type, length, order or label, or values that contradict earlier clips of the
            video. OSError: The disk is full.
        """
        before = self._last if self._last is not None and self._last.path == video else None
        if clip_index is None:
            clip_index = before.clip_index + 1 if before else 0
        if label not in (layout.NORMAL_LABEL, layout.CRIME_LABEL, layout.UNKNOWN_LABEL):
            raise ValueError(f"label of {video!r} is {label!r}, expected 0 (normal), 1 (crime) or -1 (unknown)")
        if not fps > 0:
            raise ValueError(f"fps of {video!r} is {fps!r}, expected more than 0")
        if unknown := set(flags) - set(layout.FLAGS):
            raise ValueError(
                f"flags of {video!r} contain {', '.join(sorted(unknown))}, expected {', '.join(layout.FLAGS)}"
            )
        length = self.clip_shape.num_frames
        if frame_indices is None:
            frame_indices = range(clip_index * length, (clip_index + 1) * length)
        indices = tuple(map(int, frame_indices))
        seconds = tuple(index / fps for index in indices)
        if timestamps_seconds is not None:
            seconds = tuple(map(float, timestamps_seconds))
        if num_frames is None:
            num_frames = before.num_frames if before else max(indices, default=-1) + 1
        self._check_frames(f"clip {clip_index} of {video!r}", indices, seconds, num_frames)
        record = SampleRecord(
            path=video,
            class_name=class_name,
            label=int(label),
            split=self.split,
            clip_index=int(clip_index),
            frame_indices=indices,
            timestamps_seconds=seconds,
            frame_gap_seconds=round(layout.frame_gap_seconds(seconds), 6),
            fps=float(fps),
            num_frames=int(num_frames),
            decoder="unknown",
            repeated_frames=sum(a == b for a, b in itertools.pairwise(indices)),
            flags=flags,
            recording=recording,
        )
        self._check_order(record)
        return self.append(record, clip)

    def _check_frames(self, clip: str, indices: Sequence[int], seconds: Sequence[float], num_frames: int) -> None:
        length = self.clip_shape.num_frames
        if len(indices) != length or len(seconds) != length:
            raise ValueError(f"{len(indices)} frame indices and {len(seconds)} timestamps, expected {length} of each")
        if min(indices) < 0 or list(indices) != sorted(indices) or list(seconds) != sorted(seconds):
            raise ValueError(
                f"frame indices {indices} and timestamps {seconds} of {clip}: expected ascending values of 0 or more"
            )
        if indices[-1] >= num_frames:
            raise ValueError(
                f"{clip} has frame {indices[-1]}, expected below num_frames, {num_frames}: "
                "pass num_frames, the length of the whole video, with every clip"
            )

    def _check_order(self, record: SampleRecord) -> None:
        """Raise ValueError unless `record` may follow the last one: what `vidshard.verify` expects of a set."""
        last = self._last
        if last is None:
            return
        if record.key in self._keys:
            raise ValueError(f"clip {record.key!r} was already added")
        if (path_bytes(record.path), record.clip_index) < (path_bytes(last.path), last.clip_index):
            raise ValueError(
                f"clip {record.clip_index} of {record.path!r} was added after clip {last.clip_index} of {last.path!r}; "
                "add videos in the order of sorted(paths), and the clips of a video one after another"
            )
        if record.path == last.path:
            for name in ("label", "class_name", "recording", "fps", "num_frames"):
                got, expected = getattr(record, name), getattr(last, name)
                if got != expected:
                    raise ValueError(
                        f"{name} of {record.path!r} is {got!r}, expected {expected!r} as in its earlier clips"
                    )

    def append(self, record: SampleRecord, clip: Clip) -> str:
        """Write one clip with a complete record (docs/SHARD_FORMAT.md) and return its key.

        The caller must keep the order of `add`, and the properties of a video the same in all its records. Raises
        ValueError if the clip has the wrong shape or type or its key was written before; OSError if the disk is full.
        """
        if clip.shape != self.clip_shape.thwc or clip.dtype != np.uint8:
            raise ValueError(
                f"clip {record.key!r} is {clip.dtype} {clip.shape}, expected uint8 {self.clip_shape.thwc}; "
                "the axes are T, H, W, RGB"
            )
        if record.key in self._keys:
            raise ValueError(f"clip {record.key!r} was already added")
        if self._fragment is None:
            self._fragment = writer.FragmentWriter(
                self._fragment_path, codec=self.codec, label_member=self._label_member
            )
        self._fragment.append(record, clip)
        self._keys.add(record.key)
        self._last = record
        self._video_rows.append(self._video_row(record))
        if self._fragment.size >= self._shard_bytes:
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
                recording=record.recording,
                decoder=record.decoder,
                num_frames=record.num_frames,
                width=self.clip_shape.width,
                height=self.clip_shape.height,
                fps=record.fps,
            )
        return self._row_of_video[record.path]

    @property
    def _fragment_path(self) -> Path:
        return self.folder / f".{layout.shard_name(len(self._shards))}.part"

    def _end_shard(self) -> None:
        rows = np.zeros(0, manifest.CLIP_ROW)
        fragments: list[Path] = []
        if self._fragment is not None:
            self._fragment.close()
            rows, fragments = self._fragment.rows, [self._fragment_path]
            rows["shard"], rows["video"] = len(self._shards), self._video_rows
        name = layout.shard_name(len(self._shards))
        size, sha256 = writer.join_fragments(self.folder / name, fragments)
        for fragment in fragments:
            fragment.unlink()
        self._shards.append(Shard(name=name, bytes=size, samples=len(rows), sha256=sha256))
        self._rows.append(rows)
        self._fragment, self._video_rows = None, []

    def _finish(self) -> None:
        if self._fragment is not None or not self._shards:
            self._end_shard()
        videos = list(self._videos.values())
        index_path = self.folder / layout.index_name(1)
        index = write_index(index_path, self._rows, sum(map(len, self._rows)), videos)
        splits = {video.split for video in videos}
        about = make_manifest(
            index,
            videos,
            self._shards,
            split=splits.pop() if len(splits) == 1 else self.split,
            clip_shape=self.clip_shape,
            codec=self.codec,
            settings=self._settings,
            packages=self._packages,
            videos_found=len(videos),
            failures=(),
        )
        atomic.write_text(self.folder / layout.FAILURES_NAME, _NO_FAILURES)
        card.write_card(self.folder, about)
        manifest.write_manifest(self.folder, about)

    def _abandon(self) -> None:
        if self._fragment is not None:
            self._fragment.close()
            self._fragment_path.unlink(missing_ok=True)
        for shard in self._shards:
            (self.folder / shard.name).unlink(missing_ok=True)
