"""`stage1 clips`."""

from __future__ import annotations

from stage1.cli.options import folder_words
from stage1.review.config import ClipsConfig
from vidshard.util import console
from vidshard.util.options import config_command


@config_command(ClipsConfig, example="stage1 clips stage1_output --burn-in")
def clips(config: ClipsConfig) -> int:
    """Cut each event out of its video.

    DIR is the output folder of `stage1 infer`, by default stage1_output. Writes DIR/clips/*.mp4, which the report
    links. Each begins at the last keyframe before the event, because the video is not re-encoded.

    Exit codes: 0 success; 2 finished, but some events could not be cut; 1 error.
    """
    from stage1.review.event_clips import write_clips

    result = write_clips(config)
    for failure in result.failures:
        console.echo(f"not cut: {failure}", err=True)
    console.echo(result.summary)
    console.show_next("stage1", "report", *folder_words(config.folder))
    return result.exit_code
