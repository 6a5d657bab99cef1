"""Options of evaluation, cross-validation and explanation. Does not import torch, because --help needs them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from stage1.common import options as common
from stage1.common.options import CheckedConfig
from stage1.training.config import MAX_SEED, TrainConfig
from vidshard.storage.urls import Location
from vidshard.util.errors import UserError
from vidshard.util.options import option

_BASELINES, _CALIBRATION = "Baselines", "Calibration"
_UNTRIMMED, _FOREIGN = "Untrimmed videos", "Scores of other models"
_NUM_RESAMPLES = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(CheckedConfig):
    """Options of the evaluation of a checkpoint."""

    checkpoint: Path = common.checkpoint_option()
    shards: Location = common.shards_option("shards/Test", "Shards to evaluate on.")
    val_shards: Location | None = option(None, help="Shards for calibration and for choosing the threshold.")
    train_shards: Location | None = option(None, help="Shards for fitting the shortcut baselines.", group=_BASELINES)
    annotations: Path | None = common.annotations_option()
    target: str | None = option(
        None,
        help="Criterion for choosing the threshold on --val-shards: f1, accuracy, recall=R, fpr=R or "
        "false-alarms-per-hour=R. The threshold is stored in the checkpoint.",
    )
    prior: float | None = option(
        None,
        help="Expected share of crime clips in deployment.",
        default_text="that of --val-shards",
        group=_CALIBRATION,
        above=0,
        below=1,
    )
    relative: bool = common.relative_option(_UNTRIMMED)
    trained_on: tuple[Path, ...] = option(
        (),
        help="List of the videos that any stage was trained on; none of them may be in --annotations.",
        group=_FOREIGN,
        metavar="FILE",
    )
    out: Path = option(Path("evaluation"), help="Output folder.")
    batch_size: int = common.batch_size_option()
    device: str = common.device_option()
    num_resamples: int = _NUM_RESAMPLES
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.target is not None or self.prior is not None) and self.val_shards is None:
            name = "target" if self.target is not None else "prior"
            raise UserError(f"`{name}` needs `val_shards`, because the evaluated clips must not influence the results")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrateConfig(CheckedConfig):
    """Options of the choice of a threshold on normal footage."""

    checkpoint: Path = common.checkpoint_option()
    normal_shards: Location = option(
        Path("shards/Normal"),
        help="Shards of normal footage only, some hours of each camera.",
    )
    false_alarms_per_hour: float = option(1.0, help="Highest rate of false alarms on this footage.", above=0)
    batch_size: int = common.batch_size_option()
    device: str = common.device_option()
    num_resamples: int = _NUM_RESAMPLES


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoresConfig(CheckedConfig):
    """Options of the evaluation of any model's scores against annotations."""

    annotations: Path = option(help="Ground-truth events.")
    frame_counts: Path | None = option(
        None,
        help="File with lines `NAME.mp4 FRAMES`, for videos whose length is not in --annotations.",
        group=_FOREIGN,
        metavar="FILE",
    )
    scores: Path | None = option(
        None,
        help="Evaluate these scores instead of a checkpoint: a folder of NAME.npy, or a CSV (video, score).",
        metavar="PATH",
    )
    trained_on: tuple[Path, ...] = option((), help="Lists of the videos that any stage was trained on.", group=_FOREIGN)
    snippet_frames: int = option(16, help="Frames per score in --scores.", group=_FOREIGN, at_least=1)
    fps: float = option(
        30.0, help="Frame rate of the videos, if --scores gives times in seconds.", group=_FOREIGN, above=0
    )
    threshold: float = 0.5  # for the share of false alarms
    out: Path = option(Path("evaluation"), help="Output folder.")
    num_resamples: int = 200
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossvalConfig(CheckedConfig):
    """Options of a cross-validation."""

    shards: tuple[Location, ...] = option(
        (Path("shards/Train"), Path("shards/Validation")),
        help="Shards to train on and to hold out; repeat for several sets.",
    )
    training: TrainConfig  # shards, val_shards and out are ignored; seed is the first seed
    test_shards: Location | None = option(None, help="Also score these shards, with models trained on all of --shards.")
    out: Path = option(Path("crossval"), help="Output folder.")
    folds: int = option(5, help="Number of folds; a recording is never split.", at_least=2)
    seeds: int = option(3, help="Repetitions, each with different folds and initial weights.", at_least=1)
    random_split: bool = option(
        True,
        help="Also report a random split by clip, to show how much leakage inflates the result.",
        group=_BASELINES,
    )
    shortcuts: bool = option(
        True, help="Also report baselines that use only file metadata, single frames and the like.", group=_BASELINES
    )
    save_attention: bool = option(False, help="Write out-of-fold predictions and attention, for stage 2.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.shards:
            raise UserError("shards is empty, expected at least one shard set")
        if self.training.seed + self.seeds - 1 > MAX_SEED:
            raise UserError(
                f"seed is {self.training.seed}, expected at most {MAX_SEED} with all repetitions ({self.seeds})"
            )
        for name in ("annotations", "extra_normal"):
            if getattr(self.training, name):
                raise UserError(f"`{name}` is set, but stage1 crossval uses the clips and labels of `shards`; omit it")
        if self.training.marks:
            marks = ", ".join(map(str, self.training.marks))
            raise UserError(f"marks are {marks}, but stage1 crossval uses the labels of the shards; omit marks")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExplainConfig(CheckedConfig):
    """Options of an explanation."""

    checkpoint: Path = common.checkpoint_option()
    shards: Location = common.shards_option("shards/Test", "Shards to explain.")
    annotations: Path | None = common.annotations_option()
    out: Path = option(Path("explanation"), help="Output folder.")
    max_clips: int = option(40, help="Maximum number of detected crime clips to explain.", at_least=1)
    random_sets: int = option(4, help="Number of random control sets per deletion step.", at_least=1)
    max_event_share: float = 0.4  # of the frames of a clip, for the attention mass; at least 0.1
    batch_size: int = common.batch_size_option()
    device: str = common.device_option()
    num_resamples: int = _NUM_RESAMPLES
    seed: int = 0
