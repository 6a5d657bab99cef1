"""`stage1 extract`."""

from __future__ import annotations

from stage1.cli.options import folder_words
from stage1.inference.config import ExtractConfig
from vidshard.util import console
from vidshard.util.options import config_command


@config_command(ExtractConfig, example="stage1 extract stage1_output --out stage2_frames")
def extract(config: ExtractConfig) -> int:
    """Write the frames of highest attention, for stage 2.

    DIR is the output folder of `stage1 infer`, by default stage1_output. Writes the frames of each detection as
    pictures and as shards.

    Exit codes: 0 success; 2 finished, but some detections could not be written; 1 error.
    """
    from stage1.inference.extract import extract

    report = extract(config)
    for line in report.problems:
        console.echo(line, err=True)
    console.echo(report.summary)
    if (shards := config.out / "shards").is_dir():
        console.show_next("vidshard", "preview", shards)
    else:
        console.show_next("stage1", "report", *folder_words(config.folder))
    return report.exit_code
