"""The `vidshard` command: options → config → one call, no logic."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from vidshard import __version__
from vidshard.storage.urls import Location, location
from vidshard.util.console import EXIT_ERROR, EXIT_OK, EXIT_PARTLY_FAILED, LOCAL_PATH, ExitCodeGroup

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
MORE_OPTIONS = (
    "frame_step",
    "fps",
    "annotations",
    "resize",
    "codec",
    "normal",
    "decoder",
    "follow_links",
    "full_check",
    "allow_damaged",
    "dry_run",
    "split_list",
    "source_groups",
    "staging",
    "executor",
    "retry_failed",
    "extend",
    "max_failures",
    "limit",
    "seed",
    "shard_mb",
    "timeout_seconds",
    "memory_mb",
    "task_index",
    "task_count",
)


class TwoPartCommand(click.Command):
    """A command whose help shows the options that matter first, and the rest under a heading of their own."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        options = [parameter for parameter in self.get_params(ctx) if isinstance(parameter, click.Option)]
        records = {option.name: record for option in options if (record := option.get_help_record(ctx)) is not None}
        for heading, wanted in (("Options", False), ("More options", True)):
            with formatter.section(heading):
                more = (*MORE_OPTIONS, "help")
                formatter.write_dl([record for name, record in records.items() if (name in more) is wanted])


@click.group(cls=ExitCodeGroup, context_settings=CONTEXT)
@click.version_option(__version__)
def main() -> None:
    """Decode surveillance videos once, into WebDataset shards of fixed-size clips."""


@main.command(cls=TwoPartCommand)
@click.argument("source", type=location, metavar="SOURCE")
@click.option(
    "--out",
    type=location,
    metavar="PLACE",
    help="Output folder, or s3:// or gs:// URL.  [default: shards/<name of SOURCE>]",
)
@click.option("--workers", type=int, help="Worker processes.  [default: one a core]")
@click.option(
    "--executor",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="ray: workers on the cluster of RAY_ADDRESS, else on one that is started here.",
)
@click.option(
    "--sampling",
    type=click.Choice(["uniform", "dense", "annotated"]),
    default="uniform",
    show_default=True,
    help="uniform: frames spread over the whole video; dense: consecutive windows; annotated: these, out of events.",
)
@click.option("--clips-per-video", type=int, default=1, show_default=True, help="uniform: equal spans, one clip each.")
@click.option("--stride", type=int, help="dense: frames from window to window.  [default: no overlap, no gap]")
@click.option("--clip-len", type=int, default=16, show_default=True, help="Frames of a clip.")
@click.option("--frame-size", type=int, default=112, show_default=True, help="Height and width of a frame, pixels.")
@click.option("--yes", is_flag=True, help="The table class → label is right, however odd.")
@click.option("--frame-step", type=int, default=1, show_default=True, help="dense: take every n-th frame.")
@click.option("--fps", type=float, help="dense, annotated: frames lie 1/fps seconds apart, at any frame rate.")
@click.option(
    "--annotations", type=LOCAL_PATH, metavar="FILE", help="annotated: lines of name, class, first and last frame."
)
@click.option(
    "--resize",
    type=click.Choice(["squash", "crop", "letterbox"]),
    default="squash",
    show_default=True,
    help="How a frame becomes square.",
)
@click.option(
    "--codec",
    type=click.Choice(["raw", "zstd", "jpeg"]),
    default="raw",
    show_default=True,
    help="How pixels are stored: as they are, at half the size (slower to read), at a fifth (with loss).",
)
@click.option("--normal", metavar="CLASS", help="This class is normal, every other one a crime.")
@click.option(
    "--decoder",
    type=click.Choice(["auto", "decord", "opencv", "pyav"]),
    default="auto",
    show_default=True,
    help="auto: decord, and OpenCV for what decord does not support.",
)
@click.option("--follow-links", is_flag=True, help="Read links that lead out of SOURCE too.")
@click.option("--full-check", is_flag=True, help="Decode every frame of a video before, not only those of its clips.")
@click.option("--allow-damaged", is_flag=True, help="--full-check, but keep what is damaged and flag its clips.")
@click.option("--dry-run", is_flag=True, help="Tell videos, hours, clips, bytes and time; write nothing.")
@click.option(
    "--split-list", type=LOCAL_PATH, metavar="FILE", help="Build only the videos in it, such as Anomaly_Train.txt."
)
@click.option(
    "--source-groups",
    type=LOCAL_PATH,
    metavar="FILE",
    help="Which recording each video is from: CSV or JSON list of file, source.",
)
@click.option(
    "--staging",
    type=LOCAL_PATH,
    help="With --out URL: the local folder where it is built.  [default: shards.staging/<name of URL>]",
)
@click.option("--retry-failed", is_flag=True, help="Try the videos again that failed, and only those.")
@click.option("--extend", is_flag=True, help="Add the videos that are new in SOURCE to a finished set.")
@click.option("--max-failures", type=int, metavar="N", help="Stop when more than N videos failed.  [default: go on]")
@click.option("--limit", type=int, metavar="N", help="Build N videos only, drawn by --seed, classes taken in turn.")
@click.option("--seed", type=int, default=0, show_default=True, help="What --limit draws by.")
@click.option("--shard-mb", type=int, default=64, show_default=True, help="MiB of pixels in a full shard.")
@click.option(
    "--timeout-seconds",
    type=float,
    default=60.0,
    show_default=True,
    help="Time limit of a video, granted again for each minute of it.",
)
@click.option("--task-index", type=int, metavar="I", help="Build part I of N, from 0.  [default: as the engine says]")
@click.option("--task-count", type=int, metavar="N", help="Into how many parts the build is cut; 1 builds all here.")
@click.option("--memory-mb", type=int, default=4096, show_default=True, help="MiB of memory of one worker (Linux).")
def build(
    source: Location,
    sampling: Any,
    clip_len: int,
    clips_per_video: int,
    stride: int | None,
    frame_step: int,
    fps: float | None,
    dry_run: bool,
    task_index: int | None,
    task_count: int | None,
    **options: Any,
) -> int:
    """Decode the videos of SOURCE into shards.

    SOURCE holds <Class>/*.mp4; or Train/, Validation/, Test/ with that in each; or plain MP4s, which have no label.
    It may be a single MP4. It may be a URL: s3://, gs://, https://.
    The same command again finishes a build that was interrupted.

    Many tasks may build one set at once: in a SLURM array, an indexed Job of Kubernetes, under torchrun, or with
    --task-index and --task-count. Each makes its part of the shards; `vidshard finalize` makes them one set.

    Exit codes: 0 all well, 2 done but videos failed or may hide in what was skipped (failures.csv), 1 anything else.
    A task of an array ends with 0 when videos failed; then `finalize` ends with 2.
    """
    from vidshard.building import array, run
    from vidshard.building.run import BuildConfig
    from vidshard.building.summary import build_summary, dry_run_summary, part_summary
    from vidshard.execution import array_task
    from vidshard.video.sampling import SamplingConfig

    cut = SamplingConfig(
        mode=sampling, clip_len=clip_len, clips_per_video=clips_per_video, stride=stride, frame_step=frame_step, fps=fps
    )
    config = BuildConfig(source=source, sampling=cut, **options)
    if dry_run:
        click.echo(dry_run_summary(run.dry_run(config, tell=click.echo)))
        return EXIT_OK
    task = array_task.find_task(task_index, task_count, os.environ)
    if task is not None:
        click.echo(part_summary(array.build_part(config, task, tell=click.echo)))
        return EXIT_OK
    report = run.build(config, tell=click.echo)
    click.echo(build_summary(report))
    return EXIT_OK if report.is_complete else EXIT_PARTLY_FAILED


@main.command()
@click.argument("folder", metavar="DIR", type=LOCAL_PATH)
def finalize(folder: Path) -> int:
    """Make one set of the shards that the tasks of an array built in DIR, and check that all is there.

    DIR is the --out of the build, or a folder of several such. Names the tasks to run again where something is missing.

    Exit codes: 0 all well, 2 done but videos failed or may hide in what was skipped (failures.csv), 1 anything else.
    """
    from vidshard.building import array
    from vidshard.building.summary import build_summary

    report = array.finalize(folder, tell=click.echo)
    click.echo(build_summary(report))
    return EXIT_OK if report.is_complete else EXIT_PARTLY_FAILED


@main.command()
@click.argument("folder", metavar="DIR", type=location)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def inspect(folder: Location, as_json: bool) -> None:
    """Show what is in the shard folder DIR, a path or a URL: classes, videos, clips, failures."""
    from vidshard.inspection.contents import inspect_shards, to_text

    about = inspect_shards(folder)
    click.echo(json.dumps(about, indent=2) if as_json else to_text(about))


@main.command()
@click.argument("folder", metavar="DIR", type=location)
@click.option("--deep", is_flag=True, help="Read and decode every sample, and compare it with the index.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def verify(folder: Location, deep: bool, as_json: bool) -> int:
    """Check the shard folder DIR, a path or a URL: sizes, counts, checksums. Names every fault.

    Exit codes: 0 no fault, 1 anything else.
    """
    from vidshard.inspection.verify import to_text, verify

    report = verify(folder, deep=deep)
    click.echo(json.dumps(report.to_json(), indent=2) if as_json else to_text(report))
    return EXIT_ERROR if report.faults else EXIT_OK


@main.command()
@click.argument("folder", metavar="DIR", type=LOCAL_PATH)
@click.option("--out", type=LOCAL_PATH, help="The page.  [default: preview.html in DIR.log/]")
@click.option("--clips-per-class", type=int, default=24, show_default=True, help="Thumbnails of a class.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which clips are drawn.")
def preview(**options: Any) -> None:
    """Show the shard folder DIR as one HTML page: a contact sheet per class, histograms, failures."""
    from vidshard.inspection.preview import PreviewConfig, write_preview

    click.echo(f"✓ {write_preview(PreviewConfig(**options))}")


@main.command()
@click.argument("sources", metavar="SOURCE|DIR", nargs=-1, required=True, type=LOCAL_PATH)
@click.option("--out", type=LOCAL_PATH, help="Folder for Train.txt, Validation.txt and Test.txt.")
@click.option("--fractions", default="0.7,0.1,0.2", show_default=True, help="Shares of Train, Validation, Test.")
@click.option(
    "--source-groups",
    type=LOCAL_PATH,
    metavar="FILE",
    help="Which recording each video is from: CSV or JSON list of file, source.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="How groups of equal size are drawn.")
@click.option("--check", is_flag=True, help="Compare lists: split --check A.txt B.txt …")
def split(
    sources: tuple[Path, ...], out: Path | None, fractions: str, check: bool, source_groups: Path | None, seed: int
) -> int:
    """Write lists for training, validation and testing that do not leak.

    From a folder of videos or a shard folder: videos of one recording stay together, and every class is spread alike.
    With --check, name the videos that two lists share; with --out too, the first argument is split, the rest are lists.

    Exit codes: 0 done, with the warnings shown; 1 lists share videos, and anything else.
    """
    from vidshard.sources import split as splitting

    given = sources if out is None else sources[1:]
    if (given and not check) or (check and len(given) < (2 if out is None else 1)):
        raise click.UsageError("give SOURCE and --out DIR, or --check and two or more lists")
    written = []
    if out is not None:
        report = splitting.split(
            splitting.SplitConfig(
                source=sources[0],
                out=out,
                fractions=splitting.parse_fractions(fractions),
                source_groups=source_groups,
                seed=seed,
            )
        )
        click.echo(splitting.to_text(report))
        for warning in report.warnings:
            click.echo(f"warning: {warning}", err=True)
        written = [splitting.list_path(out, name) for name in splitting.SPLITS]
    overlaps = splitting.check_lists(given, written=written) if check else []
    for overlap in overlaps:
        click.echo(overlap.to_text())
    if check and not overlaps:
        click.echo(f"✓ {len(given):,} lists share no video")
    return EXIT_ERROR if overlaps else EXIT_OK
