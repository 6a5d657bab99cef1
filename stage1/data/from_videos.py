"""Temporary shards from a user's videos; the only module of `stage1` that opens videos.

It imports `vidshard.building` inside functions, so that `stage1` loads no decoder unless videos are passed.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import glob
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vidshard.shards.layout import FAILURES_NAME, UNKNOWN_LABEL, ClipShape
from vidshard.shards.manifest import Failure, log_folder
from vidshard.storage.urls import Location, Url, location, redact_credentials
from vidshard.util.errors import UserError
from vidshard.util.location import is_url
from vidshard.util.text import path_bytes

if TYPE_CHECKING:
    from vidshard.building.run import BuildConfig, SetReport
    from vidshard.sources.folders import Source, Video
    from vidshard.video.cutting import DrawFrame
    from vidshard.video.sampling import SamplingConfig

LIVE_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "srt", "udp", "tcp", "mms")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TemporaryShards:
    """Clips of the user's videos. The folder is deleted when the block of `temporary_shards` ends."""

    folder: Path  # a finished shard folder
    root: Location  # the folder or URL to which the videos' paths are relative
    failures: tuple[Failure, ...]  # videos without clips


@contextlib.contextmanager
def temporary_shards(
    paths: Sequence[str], *, shape: ClipShape, sampling: SamplingConfig, settings: dict[str, Any], workers: int | None
) -> Iterator[TemporaryShards]:
    """Build shards of the videos in `paths` in a temporary folder, which lasts as long as the block.

    Clips have the given `shape` and are cut by `sampling`; `settings`, from a manifest, say how frames are made
    square and which decoder and codec to use. Raises UserError if a path matches no video, or if no video can be
    decoded.
    """
    from vidshard.building import run

    source = find_videos(paths)
    config = run.BuildConfig(
        source=source.root,
        sampling=sampling,
        frame_size=shape.height,
        resize=settings.get("resize", "squash"),
        codec=settings.get("codec", "raw"),
        workers=workers,
        decoder=settings.get("decoder", "auto"),
    )
    with tempfile.TemporaryDirectory(prefix="stage1-videos-", ignore_cleanup_errors=True) as folder:
        report = _build(source, Path(folder) / "shards", config)
        failures = tuple(failure for failure in report.manifest.failures if failure.outcome == "failed")
        yield TemporaryShards(folder=report.folder, root=source.root, failures=failures)


def _build(source: Source, out: Path, config: BuildConfig) -> SetReport:
    """Build the shards. If no video has a clip, raise UserError with the reasons, as their file is only temporary."""
    from vidshard.building import run

    reasons = log_folder(out) / FAILURES_NAME
    try:
        return run.build_set(source, out, config)
    except UserError as error:
        if not reasons.is_file():
            raise
        with open(reasons, newline="", encoding="utf-8", errors="surrogateescape") as file:
            failed = [f"{row['path']}: {row['message']}" for row in csv.DictReader(file) if row["outcome"] == "failed"]
        more = f"; and {len(failed) - 3:,} more" if len(failed) > 3 else ""
        raise UserError(f"no video could be decoded: {'; '.join(failed[:3])}{more}; pass playable videos") from error


def sampling_config(
    settings: dict[str, Any], *, shape: ClipShape, gap_seconds: float, stride: int | None
) -> SamplingConfig:
    """Return the sampling of videos of any length for a model trained on clips with the `settings` of a manifest.

    A video gets windows whose frames are `gap_seconds` apart, the median of the training clips, one window every
    `stride` of these frames (None: half a clip). A video that is not longer than a window yields one clip, with frames
    spread over it if the training clips were cut that way. If the gap is 0, that is, unknown, videos are sampled by
    `settings` alone. Raises UserError if `vidshard build` cannot cut clips of `shape`.
    """
    from vidshard.video.sampling import SamplingConfig

    if shape.height != shape.width or settings.get("clip_len") != shape.num_frames:
        raise UserError(
            f"the checkpoint takes clips of {shape}, which `vidshard build` cannot cut from videos (it needs square "
            f"frames, {settings.get('clip_len')} of them); build the shards another way and pass them as `shards`"
        )
    names = {field.name for field in dataclasses.fields(SamplingConfig)}
    trained = SamplingConfig(**{name: value for name, value in settings.items() if name in names})
    if gap_seconds <= 0:
        if stride is not None:
            raise UserError(
                "`stride` needs the time between the frames of training clips, which the checkpoint does not record; "
                "omit it"
            )
        return trained
    return SamplingConfig(
        mode="dense",
        clip_len=shape.num_frames,
        stride=stride or max(1, shape.num_frames // 2),
        fps=trained.fps or min(1 / gap_seconds, 1000),
        whole_if_short=trained.mode == "uniform",
    )


def find_videos(paths: Sequence[str]) -> Source:
    """Find the videos in these files, folders, globs and URLs, and return them as one `Source` without labels.

    Folder names are not taken as classes: a folder may be named after a camera. Raises UserError if a path matches no
    video, or if it is a live stream or a camera.
    """
    from vidshard.sources.folders import Video, find_sources

    for path in paths:
        _check_not_live(path)
    places = [location(path) for path in paths]
    urls = [place for place in places if isinstance(place, Url)]
    if urls:
        if len(urls) < len(places):
            raise UserError("`videos` mixes paths and URLs, expected one kind; pass them in two commands")
        return _find_remote_videos(urls)
    videos: set[str] = set()
    skipped: dict[str, Failure] = {}
    for path in map(str, places):
        for match in _matches(path):
            for source in find_sources(Path(match)):
                videos |= {os.path.join(str(source.root), video.path) for video in source.videos}
                skipped |= {os.path.join(str(source.root), failure.path): failure for failure in source.skipped}
    try:
        root = os.path.commonpath([os.path.dirname(video) for video in videos])
    except ValueError:
        raise UserError(
            "the videos are on different drives, expected a single one; pass those of one drive at a time"
        ) from None

    def relative(path: str) -> str:
        return os.path.relpath(path, root).replace(os.sep, "/")

    names = map(relative, videos)
    return _source_of(
        Path(root),
        {name: Video(path=name, class_name=None, label=UNKNOWN_LABEL) for name in names},
        [dataclasses.replace(failure, path=relative(path)) for path, failure in sorted(skipped.items())],
    )


def _source_of(root: Location, videos: Mapping[str, Video], skipped: Iterable[Failure]) -> Source:
    from vidshard.sources.folders import Source

    in_order = tuple(videos[name] for name in sorted(videos, key=path_bytes))
    return Source(root=root, split=None, videos=in_order, skipped=tuple(skipped))


def _check_not_live(path: str) -> None:
    """Raise UserError if `path` is a stream or a camera, which have no end."""
    scheme = path.partition("://")[0].lower() if is_url(path) else ""
    is_camera = not os.path.isfile(path) and re.fullmatch(r"\d+|/dev/video\d+", path)
    if scheme in LIVE_SCHEMES or is_camera:
        raise UserError(
            f"`videos` {redact_credentials(path)} is a live {'camera' if is_camera else 'stream'}, expected files; "
            "record it first, for example with `ffmpeg -i URL -t 3600 -c copy camera.mp4`, and pass the file"
        )


def _find_remote_videos(urls: Sequence[Url]) -> Source:
    """Find the videos at or below these URLs."""
    from vidshard.sources.urls import find_remote_sources

    sources = [source for url in urls for source in find_remote_sources(url)]
    roots = list(dict.fromkeys(source.root for source in sources if isinstance(source.root, Url)))
    root = roots[0]
    while not all(f"{one.as_posix()}/".startswith(f"{root.as_posix()}/") for one in roots):
        if root.parent == root or "?" in "".join(one.full for one in roots):
            raise UserError(
                f"the videos are at {len(roots)} locations, such as {roots[0]} and {roots[1]}, expected one; pass "
                "those of one location at a time"
            )
        root = root.parent
    videos: dict[str, Video] = {}
    skipped: dict[str, Failure] = {}
    for source in sources:
        below = f"{source.root.as_posix()}/".removeprefix(f"{root.as_posix()}/")
        for video in source.videos:
            name = below + video.path
            videos[name] = dataclasses.replace(video, path=name, class_name=None, label=UNKNOWN_LABEL)
        skipped |= {below + one.path: dataclasses.replace(one, path=below + one.path) for one in source.skipped}
    return _source_of(root, videos, [skipped[name] for name in sorted(skipped)])


def _matches(path: str) -> list[str]:
    """Return `path` if it exists, or the videos that it matches as a glob, which not every shell expands.

    Raises UserError if neither exists.
    """
    from vidshard.sources.folders import VIDEO_SUFFIXES

    if os.path.lexists(path):
        return [path]
    matches = [
        match
        for match in sorted(glob.glob(path, recursive=True))
        if os.path.isfile(match) and match.lower().endswith(VIDEO_SUFFIXES)
    ]
    if not matches:
        raise UserError(
            f"`videos` {path}: no such file or folder, and no video matches it as a pattern; check the path"
        )
    return matches


def read_frames(path: Path, frame_indices: Sequence[int], *, decoder: str = "auto") -> list[npt.NDArray[np.uint8]]:
    """Decode frames of a video at their stored size: uint8 (H, W, 3), RGB.

    `frame_indices` count in presentation order and must increase. Raises UserError if the video, or one of the frames,
    cannot be decoded.
    """
    from vidshard.video.decoders import decoders_for
    from vidshard.video.packets import VideoError, read_packet_table

    reason = ""
    try:
        table = read_packet_table(path)
        for one in decoders_for(decoder):
            try:
                frames = one.frames(path, table, frame_indices, height=table.height, width=table.width)
                with contextlib.closing(frames):
                    return [np.ascontiguousarray(frame) for frame in frames]
            except VideoError as error:
                reason = error.message
                if error.reason != "unsupported_by_decoder":
                    break
    except (VideoError, ValueError, OSError) as error:
        reason = str(error)
    raise UserError(f"frames of {path} cannot be decoded: {reason}")


class VideoCutter:
    """Cuts stretches of one video into MP4s; reads its packets once. Raises UserError if they cannot be read."""

    def __init__(self, path: Path) -> None:
        from vidshard.video.packets import VideoError, read_packet_table

        self.path = path
        try:
            self.table = read_packet_table(path)
        except (VideoError, OSError) as error:
            raise UserError(f"{path} cannot be cut: {error}") from error

    def cut(self, target: Path, start_seconds: float, end_seconds: float, *, draw: DrawFrame | None = None) -> float:
        """Write the stretch to the MP4 `target`, unchanged from the last keyframe before it, and return where it
        begins.

        With `draw`, frames are decoded, drawn on and encoded, from exactly `start_seconds` on. Raises UserError.
        """
        from vidshard.video import cutting
        from vidshard.video.packets import VideoError

        seconds = {"start_seconds": start_seconds, "end_seconds": end_seconds}
        try:
            if draw is None:
                return cutting.cut(self.path, self.table, target, **seconds)
            return cutting.encode(self.path, self.table, target, draw=draw, **seconds)
        except (VideoError, OSError) as error:
            hint = "" if draw else "; `burn_in` re-encodes it"
            raise UserError(f"{self.path} cannot be cut: {error}{hint}") from error


def resized(frame: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Resize a frame, uint8 (H, W, 3), in the same way as `vidshard build`."""
    from vidshard.video.sampling import resize_frame

    return resize_frame(frame, height, width)
