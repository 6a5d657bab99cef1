"""Options of a build. Imports neither NumPy nor a decoder, because --help needs them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vidshard.execution.base import EXECUTORS
from vidshard.storage.urls import Location
from vidshard.util.errors import UserError
from vidshard.util.options import check_options, option
from vidshard.video import decoders
from vidshard.video.config import RESIZES, SamplingConfig

if TYPE_CHECKING:
    from vidshard.shards.layout import ClipShape

CODECS = ("raw", "zstd", "jpeg")

_DATASET, _FRAMES, _CHECKS = "Labels and lists", "Frames and pixels", "Damaged videos"
_CHANGES, _RUNNING = "Repairing and extending", "Running"


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """Options of a build.

    `source`: SOURCE/<Class>/*.mp4, a folder of splits with that in each, a folder of MP4s, or one MP4; or a URL.
    """

    source: Location = option(argument=True, metavar="SOURCE")
    out: Location | None = option(
        None,
        help="Output folder, or s3:// or gs:// URL.",
        default_text="shards/<name of SOURCE>",
    )
    workers: int | None = option(None, help="Number of worker processes.", default_text="one per core", above=0)
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    frame_size: int = option(112, help="Height and width of the stored frames, in pixels.", above=0)
    yes: bool = option(False, help="Accept the class → label table without asking.")
    normal: str | None = option(
        None, help="Treat this class as normal and all others as crime.", group=_DATASET, metavar="CLASS"
    )
    split_list: Path | None = option(
        None,
        help="Build only the videos listed in this file, such as Anomaly_Train.txt.",
        group=_DATASET,
        metavar="FILE",
    )
    source_groups: Path | None = option(
        None,
        help="CSV or JSON that maps each video to its recording (fields: file, source).",
        group=_DATASET,
        metavar="FILE",
    )
    annotations: Path | None = option(
        None,
        help="Event list for annotated sampling; each line gives a name, a class, and the first and last frames.",
        group=_DATASET,
        metavar="FILE",
    )
    limit: int | None = option(
        None, help="Build only N videos, drawn at random, evenly across classes.", group=_DATASET, above=0, metavar="N"
    )
    seed: int = option(0, help="Random seed for --limit.", group=_DATASET)
    follow_links: bool = option(False, help="Also follow symbolic links that leave SOURCE.", group=_DATASET)
    resize: str = option("squash", help="How to make frames square.", group=_FRAMES, choices=RESIZES)
    codec: str = option(
        "raw",
        help="Pixel storage. raw: exact, no compression; zstd: half the size, slower to read; jpeg: a fifth of the "
        "size, lossy.",
        group=_FRAMES,
        choices=CODECS,
    )
    decoder: str = option(
        "auto",
        help="Decoding library. auto: try decord, then OpenCV, then PyAV.",
        group=_FRAMES,
        choices=(decoders.AUTO, *decoders.LIBRARIES),
    )
    label_member: bool = option(
        False, help="Add the label of each clip as a member of its own, .cls (format version 2).", group=_FRAMES
    )
    shard_mb: int = option(64, help="Amount of pixel data in a full shard, in MiB.", group=_FRAMES, above=0)
    full_check: bool = option(False, help="Decode every frame of each video, and reject damaged videos.", group=_CHECKS)
    allow_damaged: bool = option(
        False, help="Like --full-check, but keep damaged videos and flag their clips.", group=_CHECKS
    )
    max_failures: int | None = option(
        None,
        help="Stop after more than N failed videos.",
        default_text="no limit",
        group=_CHECKS,
        at_least=0,
        metavar="N",
    )
    retry_failed: bool = option(False, help="Retry only the videos that failed.", group=_CHANGES)
    extend: bool = option(False, help="Add new videos in SOURCE to a finished set.", group=_CHANGES)
    staging: Path | None = option(
        None,
        help="Local folder to build in before uploading, if --out is a URL.",
        default_text="shards.staging/<name of URL>",
        group=_RUNNING,
    )
    executor: str = option(
        "local",
        help="ray: run on the Ray cluster at RAY_ADDRESS or, if that is not set, on one started on this machine.",
        group=_RUNNING,
        choices=EXECUTORS,
    )
    timeout_seconds: float = option(
        60.0, help="Time limit per video, plus the same again per minute of footage.", group=_RUNNING, above=0
    )
    memory_mb: int = option(4096, help="Memory limit per worker, in MiB (Linux).", group=_RUNNING, above=0)

    def __post_init__(self) -> None:
        check_options(self)
        if self.extend and (self.retry_failed or self.limit is not None):
            raise UserError("extend cannot be combined with retry_failed or limit; run them one after the other")
        if self.annotations is not None and self.sampling.mode != "annotated":
            raise UserError(f"annotations need annotated sampling, got {self.sampling.mode}")
        from vidshard.shards import codecs, layout

        codecs.check_codec(self.codec)
        width = self.sampling.clip_len * self.frame_size
        if self.codec == "jpeg" and width > codecs.JPEG_MAX_SIDE:
            raise UserError(
                f"the frames of a clip side by side are {width:,} pixels wide, but a JPEG can have at most "
                f"{codecs.JPEG_MAX_SIDE:,}; choose codec zstd, a smaller frame_size or a smaller clip_len"
            )
        if self.codec != "raw" and self.shape.num_bytes > layout.MAX_PACKED_CLIP_BYTES:
            raise UserError(
                f"a clip of {self.shape} has {self.shape.num_bytes >> 20:,} MiB, but a compressed one can have at most "
                f"{layout.MAX_PACKED_CLIP_BYTES >> 20}; choose codec raw, a smaller frame_size or a smaller clip_len"
            )
        decoders.decoders_for(self.decoder)

    @property
    def shape(self) -> ClipShape:
        from vidshard.shards.layout import ClipShape

        return ClipShape(num_frames=self.sampling.clip_len, height=self.frame_size, width=self.frame_size)
