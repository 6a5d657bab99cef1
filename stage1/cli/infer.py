"""`stage1 infer`."""

from __future__ import annotations

from typing import Any

import click

from stage1.cli.options import folder_words
from stage1.inference.config import InferConfig
from vidshard.util import console
from vidshard.util.console import EXIT_OK
from vidshard.util.options import command, config_options, from_options, given_options

EXAMPLE = """\
stage1 infer --shards shards/Test
stage1 infer --videos camera1.mp4 camera2.mp4"""


@command(example=EXAMPLE)
@config_options(InferConfig)
@click.argument("more_videos", nargs=-1, metavar="")
def infer(more_videos: tuple[str, ...], videos: tuple[str, ...], **options: Any) -> int:
    """Score every clip, and write detections and attention.

    Exit codes: 0 success; 2 finished, but some clips or videos could not be read; 1 error.
    """
    if more_videos and not videos:
        raise click.UsageError(f"unexpected argument {more_videos[0]!r}; name MP4s with --videos PATH…")
    if videos and "shards" in given_options():
        raise click.UsageError("--shards and --videos cannot be combined: pass one of them")
    if videos and options["video_root"] is not None:
        raise click.UsageError("--video-root and --videos cannot be combined: --videos says where they are")
    if not videos and options["workers"] is not None:
        raise click.UsageError("--workers needs --videos: shards are already decoded")
    config = from_options(InferConfig, {**options, "videos": videos + more_videos})
    from stage1.inference.run import infer

    report = infer(config)
    if report is None:  # rank 0 reports
        return EXIT_OK
    if report.problems:
        console.echo(report.problems, err=True)
    console.echo(report.summary)
    if report.crossval is not None:
        console.show_next("stage1", "crossval", *report.crossval.words, "--save-attention", note=report.crossval.note)
    else:
        console.show_next("stage1", "report", *folder_words(config.out))
    return report.exit_code
