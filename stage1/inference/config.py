"""Options of inference, of features and of frames for stage 2. Does not import torch, because --help needs them."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from stage1.common import options as common
from stage1.common.options import CheckedConfig
from vidshard.storage.urls import Location
from vidshard.util.errors import UserError
from vidshard.util.options import option

SCORING_PRECISIONS = ("fp32", "bf16")
ATTENTION_FORMATS = ("pt", "shards")
FRAME_SOURCES = ("clip", "video")
DEFAULT_INFERENCE = Path("stage1_output")
_SCORING, _EVENTS, _OUTPUT, _VIDEOS = "Scoring", "Events", "Output for stage 2", "Source videos"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EventConfig(CheckedConfig):
    """Options for converting per-second scores into events."""

    low_ratio: float = option(
        0.8,
        name="event_low_ratio",
        help="An event continues while its score is at least this share of the threshold.",
        group=_EVENTS,
        at_least=0,
        at_most=1,
    )
    top_share: float = option(
        0.015,
        name="event_top_share",
        help="The threshold of a video rises, to 0.9 at most, until only this share of its seconds, or 6 of them, "
        "reach it, so that its events stand out; 1 leaves it as it is.",
        group=_EVENTS,
        at_least=0,
        at_most=1,
    )
    smooth_seconds: float = option(
        5.0,
        name="event_smooth_seconds",
        help="Window of the centred moving average of the scores; 1 or less disables it.",
        group=_EVENTS,
        at_least=0,
        below=math.inf,
    )
    min_seconds: float = option(
        4.0,
        name="event_min_seconds",
        help="Minimum length of an event; shorter events are dropped, unless the whole video is shorter.",
        group=_EVENTS,
        at_least=0,
        below=math.inf,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferConfig(CheckedConfig):
    """Options of a run of inference, on the clips of `shards` or on MP4s."""

    shards: Location = common.shards_option("shards/Test", "Shards to score.")
    videos: tuple[str, ...] = option(
        (), help="MP4s to score instead of shards: files, folders, globs or URLs.", metavar="PATH…"
    )
    stride: int | None = option(
        None,
        help="Frames from the start of one window of a video to the next, with --videos.",
        default_text="half a clip",
        group=_VIDEOS,
        at_least=1,
    )
    checkpoint: Path = common.checkpoint_option()
    out: Path = option(DEFAULT_INFERENCE, help="Output folder.")
    threshold: float | None = option(
        None,
        help="Minimum P(crime) of a detection.",
        default_text="the checkpoint's",
        at_least=0,
        at_most=1,
    )
    relative: bool = common.relative_option(_SCORING)
    batch_size: int = common.batch_size_option()
    device: str = common.device_option()
    precision: str = option("fp32", help="Numeric precision.", group=_SCORING, choices=SCORING_PRECISIONS)
    threads: int | None = option(
        None,
        help="Number of CPU threads that score batches in parallel; does not change the scores.",
        default_text="all cores",
        group=_SCORING,
        at_least=1,
    )
    resume: bool = option(False, help="Resume an interrupted run in --out.")
    attention_format: str = option(
        "pt",
        help="pt: one file of tensors, for at most 8 GiB of clips; shards: WebDataset shards of any size.",
        group=_OUTPUT,
        choices=ATTENTION_FORMATS,
    )
    annotations: Path | None = common.annotations_option()
    events: EventConfig = dataclasses.field(default_factory=EventConfig)
    video_root: Path | None = option(None, help="Folder of the source videos, if they were moved.", group=_VIDEOS)
    allow_sampling_mismatch: bool = option(
        False, help="Score clips that were sampled differently from the training clips.", group=_SCORING
    )
    workers: int | None = option(None, help="Number of decoding processes, with --videos.", group=_VIDEOS, at_least=1)
    cache_dir: Path | None = common.cache_dir_option()
    cache_gb: float | None = common.cache_gb_option()


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeaturesConfig(CheckedConfig):
    """Options of feature extraction, by a checkpoint or by a backbone."""

    shards: Location = option(help="Shards to compute features for.")
    out: Path = option(help="Output folder.")
    checkpoint: Path | None = option(None, help="Use the classifier inputs of this checkpoint as features.")
    backbone: str | None = option(
        None,
        help="Backbone that computes the features: r3d_18, mc3_18, r2plus1d_18, or a torch.export file.",
        metavar="NAME|FILE",
    )
    weights: str = option("KINETICS400_V1", help="Weights of a named backbone: a torchvision name or a file.")
    annotations: Path | None = common.annotations_option()
    batch_size: int = common.batch_size_option()
    device: str = common.device_option()

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.checkpoint is None) == (self.backbone is None):
            raise UserError("expected either checkpoint or backbone, such as --checkpoint FILE")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractConfig(CheckedConfig):
    """Options of the extraction of frames from the detections in `folder`, the output of `stage1 infer`."""

    folder: Path = option(DEFAULT_INFERENCE, argument=True, metavar="[DIR]")
    out: Path = option(Path("stage2_frames"), help="Output folder.")
    top_k: int = option(5, help="Number of most-attended frames to write per detection.", at_least=1)
    frames_from: str = option(
        "clip",
        help="Where to take frames from. video: the source videos, which must still exist, at full resolution.",
        choices=FRAME_SOURCES,
    )
    frame_size: int | None = option(
        None,
        help="Height and width of the frames in the shards, in pixels.",
        default_text="that of the clips",
        at_least=1,
    )
    stage2_lists: tuple[Path, ...] = option(
        (), name="stage2_list", help="Training list of stage 2, checked against --test-list."
    )
    test_list: Path | None = option(None, help="List of the videos that stage 1 is tested on.")
    for_looking: bool = option(
        False, help="Also accept data that must not be trained on, for inspection only; no shards are written."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stage2_lists and self.test_list is None:
            raise UserError("stage2_list needs test_list, which lists the videos that must not be in it")
