"""`stage1 calibrate`."""

from __future__ import annotations

from stage1.cli.options import given
from stage1.evaluation.config import CalibrateConfig
from vidshard.util import console
from vidshard.util.options import config_command

EXAMPLE = "stage1 calibrate --normal-shards shards/OurCameras --false-alarms-per-hour 2"


@config_command(CalibrateConfig, example=EXAMPLE)
def calibrate(config: CalibrateConfig) -> None:
    """Choose a threshold on normal footage of your own cameras.

    Stores in --checkpoint the lowest threshold that keeps to the false-alarm rate, and prints the false alarms of
    each camera.
    """
    from stage1.evaluation import calibrate as calibrating

    console.echo(calibrating.calibrate(config).text)
    console.show_next("stage1", "infer", *given(checkpoint=config.checkpoint))
