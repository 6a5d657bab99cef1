"""`stage1 review export` and `stage1 review import`."""

from __future__ import annotations

from pathlib import Path

import click

from stage1.cli.options import folder_words
from stage1.inference.config import DEFAULT_INFERENCE
from stage1.review.config import ReviewExportConfig, ReviewImportConfig
from stage1.training.config import TrainConfig
from vidshard.util import console
from vidshard.util.options import config_command
from vidshard.util.text import counted


@click.group()
def review() -> None:
    """Exchange detections and review labels with other tools.

    Formats: tasks of Label Studio with timeline labels, temporal detections of FiftyOne, ActivityNet's JSON, and
    UCF-Crime's temporal annotations.
    """


@config_command(
    ReviewExportConfig, example="stage1 review export stage1_output --format label-studio --marks marks.csv"
)
def export(config: ReviewExportConfig) -> None:
    """Write detections or review labels of a run for another tool.

    DIR is the output folder of `stage1 infer`, by default stage1_output.
    """
    from stage1.review.exchange import ExchangeResult, export_segments

    result: ExchangeResult = export_segments(config)
    for note in result.notes:
        console.echo(f"note: {note}", err=True)
    what = "detection" if config.marks is None else "review label"
    click.echo(f"✓ {counted(result.num_segments, what)} saved to: {result.path}")
    if config.marks is None:
        console.show_next("stage1", "report", *folder_words(config.folder))
    else:
        run = [] if config.folder == DEFAULT_INFERENCE else ["--run", config.folder]
        console.show_next("stage1", "review", "import", result.path, "--format", config.format, *run)


@config_command(ReviewImportConfig, example="stage1 review import project-1.json --format label-studio --out marks.csv")
def import_labels(config: ReviewImportConfig) -> None:
    """Read review labels from another tool's file.

    Writes a CSV like that of a report. Labels: Crime, Normal, Unsure; any other class counts as crime.
    """
    from stage1.review.exchange import import_segments

    result = import_segments(config)
    for note in result.notes:
        console.echo(f"note: {note}", err=True)
    click.echo(f"✓ {counted(result.num_segments, 'review label')} saved to: {result.path}")
    if result.shards is None:
        console.show_next("stage1", "report", *folder_words(config.run))
        return
    train = [place for place in TrainConfig().shards if (Path(str(place)) / "manifest.json").is_file()]
    sets = dict.fromkeys([*map(str, train), result.shards])
    words = [word for place in sets for word in ("--shards", place)]
    console.show_next("stage1", "train", *words, "--marks", result.path)


review.add_command(export, "export")
review.add_command(import_labels, "import")
