"""`stage1 calibrate`."""

from __future__ import annotations

from typing import Any

from stage1.cli.options import given
from stage1.evaluation.config import CalibrateConfig
from vidshard.util import console
from vidshard.util.options import command, config_options, from_options

EXAMPLE = "stage1 calibrate --normal-shards shards/OurCameras --false-alarms-per-hour 2"


@command(example=EXAMPLE)
@config_options(CalibrateConfig)
def calibrate(**options: Any) -> None:
    """Choose a threshold on normal footage of your own cameras.

    Stores in --checkpoint the lowest threshold that keeps to the false-alarm rate, and prints the false alarms of
    each camera.
    """
    config = from_options(CalibrateConfig, options)
    from stage1.common import distributed
    from stage1.evaluation import calibrate as calibrating

    distributed.expect_one_process("calibrate")
    console.echo(calibrating.calibrate(config).text)
    console.show_next("stage1", "infer", *given(checkpoint=config.checkpoint))
