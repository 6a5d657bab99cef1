"""`stage1 review export` and `stage1 review import`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stage1.inference.config import DEFAULT_INFERENCE
from stage1.review.config import ReviewExportConfig, ReviewImportConfig
from stage1.training.config import TrainConfig
from vidshard.util import console
from vidshard.util.options import command, config_options, from_options
from vidshard.util.text import counted


@click.group()
def review() -> None:
    """Exchange detections and review labels with other tools.

    Formats: tasks of Label Studio with timeline labels, temporal detections of FiftyOne, ActivityNet's JSON, and
    UCF-Crime's temporal annotations.
    """


@command(example="stage1 review export stage1_output --format label-studio --marks marks.csv")
@config_options(ReviewExportConfig)
def export(**options: Any) -> None:
    """Write detections or review labels of a run for another tool.

    DIR is the output folder of `stage1 infer`, by default stage1_output.
    """
    config = from_options(ReviewExportConfig, options)
    from stage1.review.exchange import ExchangeResult, export_segments

    result: ExchangeResult = export_segments(config)
    for note in result.notes:
        console.echo(f"note: {note}", err=True)
    what = "detection" if config.marks is None else "review label"
    click.echo(f"✓ {counted(result.num_segments, what)} saved to: {result.path}")
    if config.marks is None:
        console.show_next("stage1", "report", *_folder(config.folder))
    else:
        run = [] if config.folder == DEFAULT_INFERENCE else ["--run", config.folder]
        console.show_next("stage1", "review", "import", result.path, "--format", config.format, *run)


@command(example="stage1 review import project-1.json --format label-studio --out marks.csv")
@config_options(ReviewImportConfig)
def import_labels(**options: Any) -> None:
    """Read review labels from another tool's file.

    Writes a CSV like that of a report. Labels: Crime, Normal, Unsure; any other class counts as crime.
    """
    config = from_options(ReviewImportConfig, options)
    from stage1.review.exchange import import_segments

    result = import_segments(config)
    for note in result.notes:
        console.echo(f"note: {note}", err=True)
    click.echo(f"✓ {counted(result.num_segments, 'review label')} saved to: {result.path}")
    if result.shards is None:
        console.show_next("stage1", "report", *_folder(config.run))
        return
    train = [place for place in TrainConfig().shards if (Path(str(place)) / "manifest.json").is_file()]
    sets = dict.fromkeys([*map(str, train), result.shards])
    words = [word for place in sets for word in ("--shards", place)]
    console.show_next("stage1", "train", *words, "--marks", result.path)


def _folder(folder: Path) -> list[Path]:
    return [] if folder == DEFAULT_INFERENCE else [folder]


review.add_command(export, "export")
review.add_command(import_labels, "import")
