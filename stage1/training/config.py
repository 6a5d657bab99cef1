"""Options of a training run, as a dataclass and as a TOML file that reproduces the run. Imports no torch."""

from __future__ import annotations

import dataclasses
import math
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import click
import tomli_w

from stage1.common import files
from stage1.common.options import STORAGE, annotations_option, cache_dir_option, cache_gb_option, device_option
from stage1.data.config import ReviewLabelUse, TransformConfig
from stage1.model.config import MAX_MEMBERS, ModelConfig
from vidshard.storage.urls import Location, Url
from vidshard.util import options as config_options
from vidshard.util.errors import UserError
from vidshard.util.files import read_bytes
from vidshard.util.options import check_options, option

MAX_SEED = 2**32 - 1  # the limit of NumPy's legacy generators, which scikit-learn uses
TRAIN_PRECISIONS = ("fp32", "bf16", "fp16")
LOGGERS = ("tensorboard", "csv", "wandb", "mlflow")
_DATA, _UNTRIMMED, _OPTIMISATION = "Data", "Untrimmed videos", "Optimisation"
_REGULARISATION, _SPEED, _OUTPUT = "Regularisation", "Speed", "Checkpoints and logs"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Options of a training run."""

    shards: tuple[Location, ...] = option(
        (Path("shards/Train"),),
        help="Shards to train on: a path or a URL; repeat for several sets.",
    )
    extra_normal: tuple[Location, ...] = option(
        (),
        help="Shards of normal footage of other cameras, against false alarms there; repeat for several sets.",
        group=_DATA,
    )
    val_shards: Location | None = option(None, help="Shards to validate on after each epoch.")
    out: Path = option(files.DEFAULT_RUN, help="Output folder.")
    epochs: int = option(20, help="Passes over the training clips.", at_least=1)
    batch_size: int = option(8, help="Clips per batch, in each process.", at_least=1)
    accumulate: int = option(1, help="Gradient accumulation steps.", group=_OPTIMISATION, at_least=1)
    lr: float = option(1e-3, help="Peak learning rate.", above=0, below=math.inf)
    weight_decay: float = option(0.05, help="Weight decay.", group=_OPTIMISATION, at_least=0)
    warmup_fraction: float = option(
        0.1, help="Share of all steps spent on warm-up.", group=_OPTIMISATION, at_least=0, below=1
    )
    grad_clip: float = option(1.0, help="Maximum gradient norm; 0 disables clipping.", group=_OPTIMISATION, at_least=0)
    label_smoothing: float = option(0.0, help="Label smoothing.", group=_REGULARISATION, at_least=0, below=1)
    mixup: float = option(
        0.0,
        help="Mix pairs of clips in proportions drawn from Beta(α, α), e.g. α = 0.2; 0 disables mixing. Adds a "
        "forward pass per step.",
        group=_REGULARISATION,
        at_least=0,
    )
    splices: float = option(
        0.5,
        help="Share of the clips that training splices with normal clips of the same recording, which teaches "
        "attention the frames of a crime; 0 disables splicing.",
        group=_REGULARISATION,
        at_least=0,
        at_most=1,
    )
    trimmed_seconds: float = option(
        4.0,
        help="Crime videos shorter than this are taken to show the crime in all frames; only these are spliced.",
        group=_REGULARISATION,
        at_least=0,
    )
    ema: float = option(
        0.0,
        help="Per-step decay of a running average of the weights, e.g. 0.99; 0 disables averaging.",
        group=_REGULARISATION,
        at_least=0,
        below=1,
    )
    patience: int = option(
        0,
        help="Stop after N epochs without a lower validation loss, and keep the best epoch; 0 disables early "
        "stopping, and keeps the last epoch.",
        group=_REGULARISATION,
        at_least=0,
        metavar="N",
    )
    val_fraction: float = option(
        0.1,
        help="Share of the videos to hold out for validation if --val-shards is not given; 0 disables validation.",
        group=_DATA,
        at_least=0,
        below=1,
    )
    seed: int = option(0, help="Random seed.", at_least=0, at_most=MAX_SEED)
    ensemble: int = option(
        1,
        help="Networks to train, from as many successive seeds, whose scores and attention are averaged.",
        group=_REGULARISATION,
        at_least=1,
        at_most=MAX_MEMBERS,
    )
    device: str = device_option()
    precision: str = option(
        "fp32",
        help="Precision of convolutions and matrix products in training; weights and validation stay fp32.",
        group=_SPEED,
        choices=TRAIN_PRECISIONS,
    )
    compile: bool = option(False, help="Train with torch.compile.", group=_SPEED)
    channels_last: bool = option(False, help="Keep weights and clips in channels-last memory format.", group=_SPEED)
    workers: int = option(1, help="Number of threads that read shards.", group=_SPEED, at_least=1)
    clips_per_video_per_epoch: int = option(
        1,
        help="Number of clips per video, a different selection in each epoch, so that long videos do not dominate; 0 "
        "uses all clips.",
        group=_DATA,
        at_least=0,
    )
    annotations: Path | None = annotations_option(_UNTRIMMED)
    bags: str = option(
        "",
        help="Multiple-instance learning on untrimmed videos: the loss uses the top-scoring clips of a video, or "
        "attention over all its clips. Each process takes --accumulate videos per step.",
        group=_UNTRIMMED,
        metavar="[topk|attention]",
    )
    bag_clips: int = option(
        0,
        help="Number of clips per bag, a different selection in each epoch; 0 uses all clips.",
        group=_UNTRIMMED,
        at_least=0,
    )
    balanced: bool = option(
        False, help="Draw as many crime as normal clips in an epoch, instead of weighting the loss.", group=_DATA
    )
    block_shards: int = option(
        0,
        help="For network disks: shuffle within windows of N shards, read in sequence; 0 shuffles all clips.",
        group=STORAGE,
        at_least=0,
        metavar="N",
    )
    checksums: str = option(
        "first",
        help="When to verify the checksums of the clips.",
        group=STORAGE,
        choices=("first", "always", "never"),
    )
    max_bad_clips: int = option(
        0, help="Tolerate up to N damaged clips by replacing them.", group=STORAGE, at_least=0, metavar="N"
    )
    marks: tuple[Path, ...] = option(
        (), help="Review labels: the CSV exported from a report; repeat for several reviewers.", group=_DATA
    )
    marks_as: ReviewLabelUse = option(
        "labels",
        help="How to use the review labels. labels: replace the labels of the clips; exclusions: leave out the "
        "clips that they contradict.",
        group=_DATA,
        choices=typing.get_args(ReviewLabelUse),
    )
    cache_dir: Path | None = cache_dir_option()
    cache_gb: float | None = cache_gb_option()
    checkpoint_minutes: float = option(
        10.0,
        help="Minutes between checkpoints within an epoch; 0 saves only at the end of the epoch.",
        group=_OUTPUT,
        at_least=0,
    )
    logger: str | None = option(
        None, help="Also log metrics and curves to this tracker, in --out.", group=_OUTPUT, choices=LOGGERS
    )
    tensorboard: bool = option(False, help="The same as --logger tensorboard.", group=_OUTPUT, hidden=True)
    resume: bool | Literal["auto"] = option(
        False,
        help="Resume the run in --out, even mid-epoch; auto: start a new run if there is none to resume.",
        is_flag=False,
        flag_value="always",
        type=click.Choice(["always", "auto"]),
        metavar="[auto]",
        callback=lambda _context, _option, value: {None: False, "always": True}.get(value, value),
    )
    weights: str = ""  # file that a backbone of torchvision starts from
    weights_sha256: str = ""  # of that file; a different file is refused
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    transform: TransformConfig = dataclasses.field(default_factory=lambda: TransformConfig(augment=True))

    def __post_init__(self) -> None:
        if self.marks is None:  # as in earlier versions
            object.__setattr__(self, "marks", ())
        if self.tensorboard and self.logger is None:
            object.__setattr__(self, "logger", "tensorboard")
        check_options(self)
        if not self.shards:
            raise UserError("shards is empty, expected at least one shard set")
        if self.bags not in ("", "topk", "attention"):
            raise UserError(f"bags is {self.bags!r}, expected topk or attention")
        if self.bags and self.extra_normal:
            raise UserError("`extra_normal` and `bags` cannot be combined: add the normal videos as `shards`")
        if self.bags and self.annotations is not None:
            raise UserError("`annotations` and `bags` cannot be combined: a bag has one label, for its whole video")
        if self.bag_clips and not self.bags:
            raise UserError(f"bag_clips is {self.bag_clips}, but bags is not set; set it to topk or attention")
        if self.resume not in (False, True, "auto"):
            raise UserError(f"resume is {self.resume!r}, expected True, False or 'auto'")

    def to_dict(self) -> dict[str, Any]:
        """Return the config as a checkpoint stores it, with paths as strings."""
        return {name: _plain(value) for name, value in dataclasses.asdict(self).items()}


def _plain(value: Any) -> Any:
    """Return paths as strings, a tuple of one as itself, and an empty one as None."""
    if isinstance(value, tuple):
        plain = [_plain(one) for one in value]
        return plain if len(plain) > 1 else plain[0] if plain else None
    return str(value) if isinstance(value, Path | Url) else value


# Named sets of options, including those of model and transform; options that the user passes override them.
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "notebook": {
        **{"epochs": 5, "batch_size": 4, "lr": 1e-4, "grad_clip": 1.0},
        **{"label_smoothing": 0.0, "mixup": 0.0, "ema": 0.0, "splices": 0.0},
        "model": {
            **{"inputs": "rgb", "statistics_share": 0.0, "motion_prior": 0.0},
            **{"attention_motion": False, "classifier_motion": False},
        },
    },
}
# A resumed run may differ in these; all others affect the weights. The product of batch_size, accumulate and the number
# of ranks, the global batch, must stay the same.
FREE_ON_RESUME = (
    *("shards", "extra_normal", "val_shards", "out", "epochs", "device", "compile", "channels_last", "workers"),
    *("resume", "batch_size", "accumulate", "checksums", "max_bad_clips", "checkpoint_minutes", "patience"),
    *("logger", "tensorboard", "cache_dir", "cache_gb"),
)


def changed_options(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe each option of `now`, nested or not, that had a different value before.

    >>> changed_options({"bags": "", "model": {"a": 1, "b": 2}}, {"bags": "topk", "model": {"a": 3, "b": 2}})
    ['`bags` (not given), got topk', '`set` model.a=1, got 3']
    """
    changes = []
    for name, value in now.items():
        old = before.get(name)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            changes += [
                f"`set` {name}.{part}={_shown(old.get(part))}, got {_shown(new)}"
                for part, new in value.items()
                if new != old.get(part)
            ]
        elif old != value:
            changes.append(f"`{name}` {_shown(old)}, got {_shown(value)}")
    return changes


def _shown(value: Any) -> str:
    return "(not given)" if value is None or value == "" else str(value)


# --- as TOML ------------------------------------------------------------------------------------------------------


def to_toml(config: TrainConfig) -> str:
    """Return all options as TOML, from which `read_toml` and `make_config` build the same config again.

    Options without a value are omitted, and so is `resume`, which does not describe the run.
    """
    fields = {name: value for name, value in config.to_dict().items() if value is not None and name != "resume"}
    return (
        "# `stage1 train --config FILE --out FOLDER` repeats this run; options given in addition override it.\n"
        + tomli_w.dumps(fields)
    )


def read_toml(path: Path) -> dict[str, Any]:
    """Read options from a TOML file, for `make_config`. Raises UserError if it does not exist or is not TOML."""
    try:
        return tomllib.loads(read_bytes(path).decode("utf-8-sig"))  # as Windows may write it
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(
            f"no file {path}: `config` names a TOML file, such as the {files.CONFIG_NAME} of a run"
        ) from None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as TOML: {error}; pass the run.toml of a run") from error


def parse_setting(text: str) -> dict[str, Any]:
    """Parse an option in the form of `--set`. Raises UserError.

    >>> parse_setting("model.dropout=0.3"), parse_setting("device=cpu")
    ({'model': {'dropout': 0.3}}, {'device': 'cpu'})
    """
    name, equals, value = text.partition("=")
    for line in (f"{name} = {value}", f"{name} = '{value}'"):  # a string needs no quotes
        try:
            if equals:
                return tomllib.loads(line)
        except tomllib.TOMLDecodeError:
            continue
    raise UserError(f"`set` is {text!r}, expected NAME=VALUE, such as model.dropout=0.3")


def merge(*options: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested options; later ones override earlier ones.

    >>> merge({"lr": 1, "model": {"a": 1, "b": 1}}, {"model": {"b": 2}})
    {'lr': 1, 'model': {'a': 1, 'b': 2}}
    """
    merged: dict[str, Any] = {}
    for given in options:
        for name, value in given.items():
            before = merged.get(name)
            nested = isinstance(before, Mapping) and isinstance(value, Mapping)
            merged[name] = merge(before or {}, value) if nested else value
    return merged


def make_config(options: Mapping[str, Any]) -> TrainConfig:
    """Make a config from nested options. Raises UserError on unknown names and invalid values."""
    return config_options.make_config(TrainConfig, options, function="train")
