"""Thresholds from normal footage: they keep to the rate, are stored, and come with a report on each camera."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from fake_shards import random_clips, write_shards
from inference_runs import write_checkpoint
from stage1.cli.main import main
from stage1.evaluation import calibrate as calibrating
from stage1.evaluation.calibrate import CalibrateConfig, calibrate
from stage1.evaluation.run import labelled_clips
from stage1.model.checkpoint import load_checkpoint
from vidshard.util.errors import UserError

CLIPS = 36  # of four videos of 12.5 hours, two of each camera


@pytest.fixture
def footage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CalibrateConfig:
    """Write normal footage in which camera B scores higher than A: .01 to .18 and .51 to .68."""
    folder = write_shards(
        tmp_path / "s",
        random_clips(CLIPS),
        [0] * CLIPS,
        clips_per_video=9,
        source_groups=["A"] * 18 + ["B"] * 18,
        frame_gap_seconds=1250,
    )
    scores = np.concatenate([np.arange(1, 19), np.arange(51, 69)]) / 100
    monkeypatch.setattr(
        calibrating.evaluation, "score_clips", lambda reader, *_: labelled_clips(reader, lambda rows: scores[rows])
    )
    return CalibrateConfig(
        checkpoint=write_checkpoint(tmp_path / "model.pt"),
        normal_shards=folder,
        num_resamples=50,
        false_alarms_per_hour=0.1,
    )


def test_the_threshold_keeps_to_the_rate_and_is_stored(footage: CalibrateConfig) -> None:
    before = load_checkpoint(footage.checkpoint)
    fields = calibrate(footage).fields
    alarms = fields["cameras"]["all"]["false_alarms"]
    assert alarms["alarms"] / alarms["hours"] <= 0.1
    after = load_checkpoint(footage.checkpoint)
    assert after.threshold == fields["threshold"]
    assert after.threshold_target == "false-alarms-per-hour=0.1"
    assert after.train_videos == before.train_videos
    assert {name: found["clips"] for name, found in fields["cameras"].items()} == {
        "group A": 18,
        "group B": 18,
        "all": 36,
    }
    assert fields["cameras"]["group A"]["called_crime"] == 0
    assert fields["cameras"]["group A"]["false_alarms"]["videos"] == 2
    assert (
        sum(fields["cameras"][name]["called_crime"] for name in ("group A", "group B"))
        == (fields["cameras"]["all"]["called_crime"])
    )


def test_a_lower_rate_needs_a_higher_threshold(footage: CalibrateConfig) -> None:
    strict = calibrate(footage).fields["threshold"]
    assert calibrate(dataclasses.replace(footage, false_alarms_per_hour=5.0)).fields["threshold"] < strict


def test_each_camera_has_the_threshold_that_it_needs_alone(footage: CalibrateConfig) -> None:
    fields = calibrate(dataclasses.replace(footage, false_alarms_per_hour=0.2)).fields
    own = {name: found["own_threshold"] for name, found in fields["cameras"].items()}
    assert own["group A"] < 0.2 < 0.5 < own["group B"]
    assert own["all"] == fields["threshold"]
    alone = calibrate(footage)  # 25 hours of each camera support 0.12 per hour
    assert [found["own_threshold"] for found in alone.fields["cameras"].values()][:2] == [None, None]
    assert "too little footage" in alone.text


def test_crimes_and_too_little_footage_are_refused(footage: CalibrateConfig, tmp_path: Path) -> None:
    crimes = write_shards(tmp_path / "crimes", random_clips(2), [0, 1])
    with pytest.raises(UserError, match=r"1 clips of .* are labelled crime, expected normal footage only"):
        calibrate(dataclasses.replace(footage, normal_shards=crimes))
    with pytest.raises(UserError, match="cannot be supported by"):
        calibrate(dataclasses.replace(footage, false_alarms_per_hour=0.001))


def test_the_command_prints_every_camera(footage: CalibrateConfig) -> None:
    line = ["calibrate", "--checkpoint", footage.checkpoint, "--normal-shards", footage.normal_shards]
    result = CliRunner().invoke(main, [str(word) for word in [*line, "--false-alarms-per-hour", 0.1]])
    assert result.exit_code == 0, result.output
    assert "group B" in result.output
    assert "new footage will give more" in result.output
    assert "Next: stage1 infer" in result.output
