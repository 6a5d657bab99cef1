"""Options of the report. Does not import torch, because --help needs them."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from stage1.common.options import CheckedConfig
from stage1.inference.config import DEFAULT_INFERENCE
from vidshard.storage.urls import Location
from vidshard.util.errors import UserError
from vidshard.util.options import option

MAX_DETECTIONS = 6
SORTS = ("strongest", "weakest", "time")
EXCHANGE_FORMATS = ("label-studio", "fiftyone", "activitynet", "ucf-crime")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisualizeConfig(CheckedConfig):
    """Options of the picture of a run of inference."""

    folder: Path = option(DEFAULT_INFERENCE, argument=True, metavar="[DIR]")
    num: int = option(MAX_DETECTIONS, help="Number of clips to draw.", at_least=1)
    sort: str = option(
        "strongest",
        help="Which detections to draw. strongest: of different videos, and a false alarm and a miss, if any.",
        choices=SORTS,
    )
    out: Path | None = option(None, help="Picture to write.", default_text="DIR/attention_visualization.png")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipsConfig(CheckedConfig):
    """Options of the event clips of a run of inference."""

    folder: Path = option(DEFAULT_INFERENCE, argument=True, metavar="[DIR]")
    seconds: float = option(2.0, help="Seconds to include before and after each event.", at_least=0, below=math.inf)
    burn_in: bool = option(False, help="Draw score and time into the frames, which re-encodes them.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig(CheckedConfig):
    """Options of the report of a run of inference."""

    folder: Path = option(DEFAULT_INFERENCE, argument=True, metavar="[DIR]")
    out: Path | None = option(None, help="HTML page to write.", default_text="DIR/report.html")
    evaluation: Path | None = option(None, help="Output folder of `stage1 evaluate` on the same shards.")
    shards: Location | None = option(
        None,
        help="The scored shards, if they were moved, or are at a URL.",
        default_text="the folder that the run names",
    )
    start_times: Path | None = option(
        None, help="CSV of when recordings began: the columns video, start (ISO 8601) and, if wanted, camera."
    )
    max_items: int = option(1000, help="Maximum number of detections and misses to show, strongest first.", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out is not None and self.out.is_dir():
            raise UserError(f"out {self.out} is a folder, expected the name of a page, such as {self.path}")

    @property
    def path(self) -> Path:
        from stage1.inference.outputs import OutputFiles

        files = OutputFiles(folder=self.folder)
        return files.report if self.out is None or self.out.is_dir() else self.out


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReviewExportConfig(CheckedConfig):
    """Options of an export of detections or review labels."""

    folder: Path = option(DEFAULT_INFERENCE, argument=True, metavar="[DIR]")
    format: str = option(help="Format of the file.", choices=EXCHANGE_FORMATS)
    marks: Path | None = option(None, help="Review labels to export instead of the detections.", metavar="CSV")
    out: Path | None = option(None, help="File to write.", default_text="DIR/FORMAT.json or .txt")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReviewImportConfig(CheckedConfig):
    """Options of an import of review labels."""

    file: Path = option(argument=True, metavar="FILE")
    format: str = option(help="Format of the file.", choices=EXCHANGE_FORMATS)
    run: Path = option(DEFAULT_INFERENCE, help="Output folder of `stage1 infer` with the labelled clips.")
    out: Path = option(Path("marks.csv"), help="Review labels to write, for `stage1 train --marks`.")
