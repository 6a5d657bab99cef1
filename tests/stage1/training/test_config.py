"""Options of a run as TOML: they reproduce the run, and impossible values are refused."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from stage1.cli.main import main
from stage1.data.transforms import TransformConfig
from stage1.model.network import ModelConfig
from stage1.training import loop as train_module
from stage1.training.config import TrainConfig, make_config, merge, parse_setting, read_toml, to_toml
from vidshard.storage.urls import Url
from vidshard.util.errors import UserError


def test_a_config_survives_its_toml(tmp_path: Path) -> None:
    config = TrainConfig(
        shards=Url("s3://bucket/Train"),
        val_shards=Path("shards/Validation"),
        lr=1e-4,
        ema=0.99,
        precision="bf16",
        balanced=True,
        model=ModelConfig(channels=(8, 16), temporal_stages=()),
        transform=TransformConfig(augment=True, mean=(0.1, 0.2, 0.3)),
    )
    path = tmp_path / "run.toml"
    path.write_text(to_toml(config))
    assert make_config(read_toml(path)) == config
    path.write_text(to_toml(dataclasses.replace(config, val_shards=None, resume="auto")))
    assert make_config(read_toml(path)) == dataclasses.replace(config, val_shards=None)


def test_every_option_is_in_the_toml() -> None:
    written = to_toml(
        TrainConfig(
            shards=(Path("s"),),
            extra_normal=(Path("n"),),
            val_shards=Path("v"),
            annotations=Path("a"),
            cache_dir=Path("c"),
            cache_gb=1.0,
            marks=(Path("m"),),
            logger="csv",
        )
    )
    names = {field.name for kind in (TrainConfig, ModelConfig, TransformConfig) for field in dataclasses.fields(kind)}
    not_set = {
        field.name
        for kind in (ModelConfig, TransformConfig)
        for field in dataclasses.fields(kind)
        if field.default is None
    }
    assert names - not_set - set(re.findall(r"^\[?(\w+)", written, re.MULTILINE)) == {"resume"}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"epoch": 3}, r"train has no option 'epoch'; did you mean 'epochs'\?"),
        ({"model": {"droput": 0.1}}, r"train has no option 'model\.droput'; did you mean 'model\.dropout'\?"),
        ({"dropout": 0.1}, r"train has no option 'dropout'; did you mean 'model\.dropout'\?"),
        ({"zzz": 1}, r"train has no option 'zzz'$"),
        ({"epochs": "3"}, "epochs is '3', expected a whole number"),
        ({"epochs": True}, "epochs is True, expected a whole number"),
        ({"lr": "fast"}, "lr is 'fast', expected a number"),
        ({"compile": 1}, "compile is 1, expected true or false"),
        ({"out": 1}, "out is 1, expected a path"),
        ({"model": 3}, "model is 3, expected a table"),
        ({"model": {"channels": 8}}, r"model\.channels is 8, expected a list"),
        ({"model": {"channels": [10]}}, "multiples of groups"),
        ({"precision": "fp8"}, "precision is 'fp8', expected one of fp32, bf16, fp16"),
        ({"ema": 1.0}, "ema is 1, expected at least 0 and below 1"),
        ({"accumulate": 0}, "accumulate is 0, expected at least 1"),
        ({"lr": math.inf}, "lr is inf, expected more than 0"),
        ({"model": {"motion_prior": math.nan}}, r"model\.motion_prior is nan, expected a number"),
        ({"seed": 2**32}, "seed is 4294967296, expected 0 to 4,294,967,295"),
        ({"bag_clips": 4}, "bag_clips is 4, but bags is not set"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        make_config(options)


def test_settings() -> None:
    assert parse_setting("model.channels=[8, 16]") == {"model": {"channels": [8, 16]}}
    for wrong in ("lr", "lr=", "a b=3"):
        if wrong == "lr=":
            assert parse_setting(wrong) == {"lr": ""}
            continue
        with pytest.raises(UserError, match="expected NAME=VALUE"):
            parse_setting(wrong)
    assert merge({"model": {"a": 1}}, {}, {"model": {"b": 2}, "lr": 1}) == {"model": {"a": 1, "b": 2}, "lr": 1}


def test_files_that_are_not_toml(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file .*none: `config`"):
        read_toml(tmp_path / "none")
    (tmp_path / "bad").write_text("a = ")
    with pytest.raises(UserError, match="bad cannot be read as TOML"):
        read_toml(tmp_path / "bad")


def test_options_win_over_settings_over_the_file_over_the_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs: list[TrainConfig] = []
    monkeypatch.setattr(train_module, "train", configs.append)
    path = tmp_path / "some.toml"
    path.write_text("epochs = 7\nlr = 0.5\nseed = 4\n[model]\ndropout = 0.25\n")
    command = ["train", "--preset", "notebook", "--config", str(path), "--set", "lr=0.25", "--set", "epochs=8"]
    result = CliRunner().invoke(main, [*command, "--epochs", "9"])
    assert result.exit_code == 0, result.output
    (config,) = configs
    assert (config.epochs, config.lr, config.seed, config.batch_size) == (9, 0.25, 4, 4)
    pure = {
        "inputs": "rgb",
        "statistics_share": 0.0,
        "attention_motion": False,
        "classifier_motion": False,
    }  # the preset
    assert config.model == ModelConfig(dropout=0.25, **pure)  # type: ignore[arg-type]
    assert config.shards == (Path("shards/Train"),)


def test_a_flag_of_the_network_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[TrainConfig] = []
    monkeypatch.setattr(train_module, "train", configs.append)
    large, other = tmp_path / "large.toml", tmp_path / "other.toml"
    for path, flags in ((large, ["--model-size", "large"]), (other, ["--backbone", "mc3_18"])):
        assert CliRunner().invoke(main, ["train", *flags]).exit_code == 0
        path.write_text("\ufeff" + to_toml(configs.pop()), encoding="utf-8")  # with the mark that Windows may write

    def made(*arguments: str) -> TrainConfig:
        result = CliRunner().invoke(main, ["train", *arguments])
        assert result.exit_code == 0, result.output
        return configs.pop()

    plain = made()
    assert made("--config", str(large)).model.channels == (48, 96, 160)
    assert made("--config", str(large), "--model-size", "base") == plain
    assert made("--config", str(other)).model.backbone == "mc3_18"
    assert made("--config", str(other), "--backbone", "stage1") == plain


@pytest.mark.parametrize(
    ("arguments", "resume"),
    [([], False), (["--resume"], True), (["--resume", "auto"], "auto"), (["--resume=auto"], "auto")],
)
def test_resume_with_and_without_auto(arguments: list[str], resume: object, monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[TrainConfig] = []
    monkeypatch.setattr(train_module, "train", configs.append)
    result = CliRunner().invoke(main, ["train", *arguments, "--epochs", "2"])
    assert result.exit_code == 0, result.output
    assert (configs[0].resume, configs[0].epochs) == (resume, 2)
