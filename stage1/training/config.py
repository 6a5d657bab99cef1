"""Options of a training run, as a dataclass and as a TOML file that reproduces the run."""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import tomli_w

from stage1.common import files
from stage1.data.review_labels import MarkUse
from stage1.data.transforms import TransformConfig
from stage1.model.network import ModelConfig
from vidshard.storage.urls import Location, Url, location
from vidshard.util.errors import UserError

MAX_SEED = 2**32 - 1  # of NumPy's older generators, which scikit-learn draws by
PRECISIONS = ("fp32", "bf16", "fp16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All options of a run."""

    shards: Location
    val_shards: Location | None = None
    out: Path = files.DEFAULT_RUN
    epochs: int = 5
    batch_size: int = 8  # of each rank
    accumulate: int = 1  # batches of each rank that make one step
    lr: float = 1e-3  # the highest of the schedule
    weight_decay: float = 0.05
    warmup_fraction: float = 0.1  # of all steps
    grad_clip: float = 1.0  # largest norm of the gradient; 0 is no limit
    label_smoothing: float = 0.0
    mixup: float = 0.0  # alpha of the Beta distribution that shares of pairs are drawn from; 0: none
    ema: float = 0.0  # decay a step of the averaged weights, which then are the model; 0: none
    patience: int = 0  # stop after so many epochs without a better one; 0: never
    val_fraction: float = 0.1  # of the videos, held out where there are no val_shards; 0: no validation
    seed: int = 0
    device: str = "auto"
    precision: str = "fp32"  # of the convolutions; weights stay fp32
    compile: bool = False  # torch.compile
    channels_last: bool = False  # memory order of weights and clips
    workers: int = 1  # threads that read shards
    clips_per_video_per_epoch: int = 1  # others each epoch, so that long videos do not fill every epoch; 0: all
    bags: str = ""  # learn from videos as bags of clips: topk or attention; "": from single clips
    bag_clips: int = 0  # of each bag, one of each equal stretch of the video, others each epoch; 0: all
    balanced: bool = False  # as many crime as normal clips in an epoch, in place of a weighted loss
    block_shards: int = 0  # shuffle within windows of so many shards, read in sequence; 0: among all clips
    checksums: str = "first"  # when to verify those of the clips
    max_bad_clips: int = 0  # damaged clips that are replaced rather than an error
    marks: Path | None = None  # what a reviewer said of clips in a report
    marks_as: MarkUse = "labels"  # or exclusions: leave out the clips whose mark contradicts their label
    cache_dir: Path | None = None  # where shards of a URL are kept; None: the default of CacheConfig
    cache_gb: float | None = None  # how much of them
    checkpoint_minutes: float = 10.0  # between checkpoints within an epoch; 0: only at the end of each
    tensorboard: bool = False  # write event files too
    resume: bool | Literal["auto"] = False  # auto: where there is something to resume
    weights: str = ""  # file that a backbone of torchvision starts from
    weights_sha256: str = ""  # of that file; another one is refused
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    transform: TransformConfig = dataclasses.field(default_factory=lambda: TransformConfig(augment=True))

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "workers"):
            if getattr(self, name) < 1:
                raise UserError(f"{option_name(name)} is {getattr(self, name)}, expected at least 1")
        if not 0 < self.lr < math.inf:
            raise UserError(f"--lr is {self.lr}, expected above 0")
        if not 0 <= self.seed <= MAX_SEED:
            raise UserError(f"--seed is {self.seed}, expected 0 to {MAX_SEED}")
        for name in (
            *("weight_decay", "grad_clip", "mixup", "patience", "checkpoint_minutes", "bag_clips"),
            *("clips_per_video_per_epoch", "block_shards", "max_bad_clips"),
        ):
            if not getattr(self, name) >= 0:
                raise UserError(f"{option_name(name)} is {getattr(self, name)}, expected 0 or more")
        for name in ("val_fraction", "warmup_fraction", "label_smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{option_name(name)} is {getattr(self, name)}, expected 0 or more and below 1")
        if self.marks_as not in typing.get_args(MarkUse):
            raise UserError(f"--marks-as is {self.marks_as!r}, expected {' or '.join(typing.get_args(MarkUse))}")
        if self.bags not in ("", "topk", "attention"):
            raise UserError(f"--bags is {self.bags!r}, expected topk or attention")
        if self.bag_clips and not self.bags:
            raise UserError(
                f"--bag-clips is {self.bag_clips} without --bags, which says that there are bags, and which"
            )
        if self.precision not in PRECISIONS:
            raise UserError(f"--precision is {self.precision!r}, expected {', '.join(PRECISIONS)}")
        if self.resume not in (False, True, "auto"):
            raise UserError(f"--resume is {self.resume!r}, expected nothing behind it, or auto")

    def to_dict(self) -> dict[str, Any]:
        """As a checkpoint keeps it: paths as strings."""
        fields = dataclasses.asdict(self)
        return {name: str(value) if isinstance(value, Path | Url) else value for name, value in fields.items()}


# Named sets of options, model and transform included: what the command fills in where the user gives none.
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "notebook": {
        **{"epochs": 5, "batch_size": 4, "lr": 1e-4, "grad_clip": 1.0},
        **{"label_smoothing": 0.0, "mixup": 0.0, "ema": 0.0},
    },
}
# A resumed run may differ in these; all others decide the weights. Of batch_size and accumulate, times the number of
# ranks, the product must stay: the global batch.
FREE_ON_RESUME = (
    *("shards", "val_shards", "out", "epochs", "device", "compile", "channels_last", "workers", "resume"),
    *("batch_size", "accumulate", "checksums", "max_bad_clips", "checkpoint_minutes", "patience", "tensorboard"),
    *("cache_dir", "cache_gb"),
)


def option_name(name: str) -> str:
    """Return the command-line option of a field.

    >>> option_name("batch_size")
    '--batch-size'
    """
    return "--" + name.replace("_", "-")


def changed_options(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Of each option of `now`, nested or not, that was another one before, a few words for the user.

    >>> changed_options({"bags": "", "model": {"a": 1, "b": 2}}, {"bags": "topk", "model": {"a": 3, "b": 2}})
    ['--bags (not given), got topk', '--set model.a=1, got 3']
    """
    told = []
    for name, value in now.items():
        old = before.get(name)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            told += [
                f"--set {name}.{part}={_shown(old.get(part))}, got {_shown(new)}"
                for part, new in value.items()
                if new != old.get(part)
            ]
        elif old != value:
            told.append(f"{option_name(name)} {_shown(old)}, got {_shown(value)}")
    return told


def _shown(value: Any) -> str:
    return "(not given)" if value is None or value == "" else str(value)


# --- as TOML ------------------------------------------------------------------------------------------------------


def to_toml(config: TrainConfig) -> str:
    """All options as TOML, from which `read_toml` and `make_config` make the same config again.

    An option that is not set (no --val-shards) is left out, and so is --resume: what a run is, not how it was called.
    """
    fields = {name: value for name, value in config.to_dict().items() if value is not None and name != "resume"}
    return (
        "# `stage1 train --config FILE --out FOLDER` repeats this run; options given beside it win.\n"
        + tomli_w.dumps(fields)
    )


def read_toml(path: Path) -> dict[str, Any]:
    """Read options from a TOML file, for `make_config`. Raises UserError if it does not exist or is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # as Windows may write it
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(
            f"no file {path}: --config names a TOML file, such as the {files.CONFIG_NAME} of a run"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from error


def parse_setting(text: str) -> dict[str, Any]:
    """One option as `--set` takes it. Raises UserError.

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
    raise UserError(f"--set is {text!r}, expected NAME=VALUE, such as model.dropout=0.3")


def merge(*options: Mapping[str, Any]) -> dict[str, Any]:
    """Nested options, later ones before earlier ones.

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
    """Build a config from nested options and defaults. Raises UserError on unknown names and wrong types."""
    config: TrainConfig = _build(TrainConfig, TrainConfig(shards=Path("shards/Train")), options, where="")
    return config


def _build(kind: type[Any], defaults: Any, options: Mapping[str, Any], *, where: str) -> Any:
    hints = typing.get_type_hints(kind)
    given: dict[str, Any] = {}
    for name, value in options.items():
        full_name = f"{where}{name}"
        if name not in hints:
            near = difflib.get_close_matches(name, _all_names(), n=1)
            hint = f"; did you mean {_all_names()[near[0]]}?" if near else ""
            raise UserError(f"there is no option {full_name!r} of a training run{hint}")
        if dataclasses.is_dataclass(hints[name]) and isinstance(value, Mapping):
            given[name] = _build(hints[name], getattr(defaults, name), value, where=f"{full_name}.")
        else:
            given[name] = _convert(value, hints[name], full_name)
    try:
        return dataclasses.replace(defaults, **given)
    except ValueError as error:  # of a part that knows nothing of the command line
        raise UserError(str(error)) from error


def _all_names() -> dict[str, str]:
    """Every option by its last name → its full name."""
    names: dict[str, str] = {}
    for part, hint in typing.get_type_hints(TrainConfig).items():
        if dataclasses.is_dataclass(hint):
            names |= {field.name: f"{part}.{field.name}" for field in dataclasses.fields(hint)}
    return names | {field.name: field.name for field in dataclasses.fields(TrainConfig)}


def _convert(value: Any, hint: Any, name: str) -> Any:
    """`value`, as TOML or the command line gives it, as the type of its field."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hints = [part for part in typing.get_args(hint) if part is not type(None)]
        if value is None and len(hints) < len(typing.get_args(hint)):
            return None
        if Url in hints and isinstance(value, str | Path | Url):
            return location(value)
        hint = hints[0] if len(hints) == 1 else Any  # others are checked by the dataclass itself
    if hint is Any or typing.get_origin(hint) is Literal:  # checked by the dataclass itself
        return value
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        (item_hint, *_) = typing.get_args(hint)
        return tuple(_convert(item, item_hint, name) for item in value)
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value):
        return float(value)
    if (
        hint is not float
        and isinstance(hint, type)
        and isinstance(value, hint)
        and not (hint is int and isinstance(value, bool))
    ):
        return value
    expected = {float: "a number", int: "a whole number", bool: "true or false", str: "a text", Path: "a path"}
    raise UserError(
        f"{name} is {value!r}, expected {expected.get(hint, 'a table' if dataclasses.is_dataclass(hint) else 'a list')}"
    )
