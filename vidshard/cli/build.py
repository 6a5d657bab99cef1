"""`vidshard build`."""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import Any

from vidshard.cli.next_step import next_step
from vidshard.planning.config import BuildConfig
from vidshard.util import console
from vidshard.util.console import EXIT_OK, EXIT_PARTLY_FAILED
from vidshard.util.options import command, config_options, from_options, option

EXAMPLE = """\
vidshard build videos/Train --dry-run
vidshard build videos/Train --sampling dense --out shards/Train"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of the command that are not those of the set."""

    dry_run: bool = option(False, help="Estimate clips, disk space and time; write nothing.")
    task_index: int | None = option(
        None,
        help="Build as task I of N, counted from 0.",
        default_text="from SLURM, Kubernetes or torchrun",
        group="Job arrays",
        metavar="I",
    )
    task_count: int | None = option(
        None, help="Number of tasks; with 1, this process builds everything.", group="Job arrays", metavar="N"
    )


@command(example=EXAMPLE)
@config_options(BuildConfig)
@config_options(RunOptions)
def build(dry_run: bool, task_index: int | None, task_count: int | None, **options: Any) -> int:
    """Decode the videos of SOURCE into shards.

    SOURCE is a folder of <Class>/*.mp4; a folder with Train/, Validation/ and Test/ in that form; a folder of plain
    MP4s, which have no labels; a single MP4; or an s3://, gs:// or https:// URL. Run the same command again to finish
    an interrupted build.

    Several tasks can build one set: in a SLURM array, an indexed Kubernetes Job, under torchrun, or with --task-index
    and --task-count. Each builds a part of the shards; `vidshard finalize` then joins them into one set.

    Exit codes: 0 success; 2 finished, but some videos failed or may have been skipped (see failures.csv); 1 error.
    Array tasks exit with 0 even if videos fail; `finalize` then exits with 2.
    """
    config = from_options(BuildConfig, options)
    from vidshard.building import array, run
    from vidshard.building.summary import array_task_summary, build_summary, dry_run_summary
    from vidshard.execution import array_task

    if dry_run:
        console.echo(dry_run_summary(run.dry_run(config)))
        console.show_next("vidshard", *(word for word in sys.argv[1:] if word != "--dry-run"))
        return EXIT_OK
    task = array_task.find_task(task_index, task_count, os.environ)
    if task is not None:
        tasks = array.build_task(config, task)
        console.echo(array_task_summary(tasks))
        console.show_next("vidshard", "finalize", tasks[0].folder)
        return EXIT_OK
    report = run.build(config)
    console.echo(build_summary(report))
    console.show_next(*next_step("build", report.sets[-1].where))
    return EXIT_OK if report.is_complete else EXIT_PARTLY_FAILED
