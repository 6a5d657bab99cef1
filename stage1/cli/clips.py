"""`stage1 clips`."""

from __future__ import annotations

from typing import Any

from stage1.inference.config import DEFAULT_INFERENCE
from stage1.review.config import ClipsConfig
from vidshard.util import console
from vidshard.util.options import command, config_options, from_options


@command(example="stage1 clips stage1_output --burn-in")
@config_options(ClipsConfig)
def clips(**options: Any) -> int:
    """Cut each event out of its video.

    DIR is the output folder of `stage1 infer`, by default stage1_output. Writes DIR/clips/*.mp4, which the report
    links. Each begins at the last keyframe before the event, because the video is not re-encoded.

    Exit codes: 0 success; 2 finished, but some events could not be cut; 1 error.
    """
    config = from_options(ClipsConfig, options)
    from stage1.common import distributed
    from stage1.review.event_clips import write_clips

    distributed.expect_one_process("clips")
    result = write_clips(config)
    for failure in result.failures:
        console.echo(f"not cut: {failure}", err=True)
    console.echo(result.summary)
    console.show_next("stage1", "report", *([] if config.folder == DEFAULT_INFERENCE else [config.folder]))
    return result.exit_code
