"""Start-up and help of every command: nothing heavy is loaded, few options are shown first, all with --help-all."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

import stage1.cli.main
import vidshard.cli.main
from stage1.evaluation.config import CrossvalConfig, EvaluateConfig, ExplainConfig, ScoresConfig
from stage1.inference.config import EventConfig, ExtractConfig, FeaturesConfig, InferConfig
from stage1.review.config import ClipsConfig, ReportConfig, ReviewExportConfig, ReviewImportConfig, VisualizeConfig
from stage1.training.config import TrainConfig
from vidshard.inspection.config import PreviewConfig
from vidshard.planning.config import BuildConfig
from vidshard.sources.config import SplitConfig
from vidshard.util.options import option_names
from vidshard.video.config import SamplingConfig

GROUPS = {"vidshard": vidshard.cli.main.main, "stage1": stage1.cli.main.main}
COMMANDS = [
    *((program, name) for program, group in GROUPS.items() for name in group.commands if name != "review"),
    *(("stage1", "review export"), ("stage1", "review import")),
]
CONFIGS = {
    ("vidshard", "split"): (SplitConfig,),
    ("vidshard", "build"): (BuildConfig, SamplingConfig),
    ("vidshard", "preview"): (PreviewConfig,),
    ("stage1", "train"): (TrainConfig,),
    ("stage1", "infer"): (InferConfig, EventConfig),
    ("stage1", "visualize"): (VisualizeConfig,),
    ("stage1", "clips"): (ClipsConfig,),
    ("stage1", "report"): (ReportConfig,),
    ("stage1", "review export"): (ReviewExportConfig,),
    ("stage1", "review import"): (ReviewImportConfig,),
    ("stage1", "evaluate"): (EvaluateConfig, ScoresConfig),
    ("stage1", "crossval"): (CrossvalConfig,),
    ("stage1", "explain"): (ExplainConfig,),
    ("stage1", "extract"): (ExtractConfig,),
    ("stage1", "features"): (FeaturesConfig,),
}
HIDDEN = {(TrainConfig, "tensorboard")}  # aliases of earlier versions
# Fields that no command sets: constants of a method, and what a command finds out by itself.
NO_OPTION = {
    SplitConfig: {"source"},
    BuildConfig: {"sampling"},
    SamplingConfig: {"whole_if_short"},
    InferConfig: {"events"},
    TrainConfig: {"model", "transform", "weights", "weights_sha256"},
    EvaluateConfig: {"num_resamples", "seed"},
    ScoresConfig: {"num_resamples", "seed", "threshold"},
    CrossvalConfig: {"training"},
    ExplainConfig: {"num_resamples", "seed", "max_event_share"},
}


def shown(program: str, name: str, flag: str) -> str:
    result = CliRunner().invoke(GROUPS[program], [*name.split(), flag])
    assert result.exit_code == 0, result.output
    return result.stdout


def options_in(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines() if line.startswith(("  --", "  -h"))]


@pytest.mark.parametrize("arguments", [
    ("vidshard", "--help"), ("vidshard", "--version"), ("vidshard", "build", "--help-all"),
    ("vidshard", "build", "Train", "--workers", "0"), ("vidshard", "build", "Train", "--sampling", "odd"),
    ("stage1", "--help"), ("stage1", "--version"), ("stage1", "train", "--help-all"), ("stage1", "trian"),
    ("stage1", "infer", "--threshold", "50"), ("stage1", "infer", "--no-such-option"),
    ("stage1", "train", "--epochs", "0"), ("stage1", "train", "--set", "model.dropuot=0"),
    ("stage1", "evaluate", "--prior", "2"), ("stage1", "crossval", "--folds", "1"),
    ("stage1", "extract", "--top-k", "0"),
])  # fmt: skip
def test_help_and_wrong_arguments_load_nothing_heavy(arguments: tuple[str, ...]) -> None:
    code = (
        f"import sys; from {arguments[0]}.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: print('exit', end.code, *sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code, *arguments[1:]], capture_output=True, text=True, check=True)
    _, exit_code, *loaded = run.stdout.splitlines()[-1].split()
    assert exit_code == ("0" if {"--help", "--help-all", "--version"} & set(arguments) else "1"), run.stderr
    assert not set(loaded) & {"torch", "numpy", "cv2", "av", "decord", "sklearn", "matplotlib"}


@pytest.mark.parametrize(("program", "name"), COMMANDS)
def test_help_shows_at_most_twelve_options_and_ends_with_an_example(program: str, name: str) -> None:
    text = shown(program, name, "--help")
    assert 0 < len(options_in(text)) <= 12
    example = text.partition("Example:\n")[2]
    assert example.startswith(f"  {program} {name}")


@pytest.mark.parametrize(("program", "name"), COMMANDS)
def test_examples_name_options_that_exist(program: str, name: str) -> None:
    known = options_in(shown(program, name, "--help-all"))
    example = shown(program, name, "--help").partition("Example:\n")[2]
    assert {word for word in example.split() if word.startswith("--")} <= set(known)


@pytest.mark.parametrize("command", CONFIGS)
def test_every_option_of_a_config_is_in_help_all(command: tuple[str, str]) -> None:
    made: click.Command = GROUPS[command[0]]
    for name in command[1].split():
        assert isinstance(made, click.Group)
        found = made.get_command(click.Context(made), name)
        assert found is not None
        made = found
    text = shown(*command, "--help-all")
    parameters = {parameter.name: parameter for parameter in made.params}
    for config in CONFIGS[command]:
        for name in option_names(config):
            parameter = parameters[name]
            if (config, name) in HIDDEN:
                assert parameter.opts[0] not in options_in(text)
                continue
            assert isinstance(parameter, click.Argument) or parameter.opts[0] in options_in(text)
        # A new field is an option, or is listed in NO_OPTION.
        fields = {field.name for field in dataclasses.fields(config) if "option" not in field.metadata}
        assert fields == NO_OPTION.get(config, set())


@pytest.mark.parametrize("program", GROUPS)
def test_commands_are_listed_in_the_order_of_the_work_and_their_help_is_not_cut(program: str) -> None:
    result = CliRunner().invoke(GROUPS[program], ["--help"])
    rows = [line.split(maxsplit=1) for line in result.stdout.partition("Commands:\n")[2].splitlines()]
    assert [name for name, _ in rows] == list(GROUPS[program].commands) != sorted(GROUPS[program].commands)
    assert all(text.endswith(".") and not text.endswith("...") for _, text in rows)


def test_each_command_has_a_module_of_its_name() -> None:
    for program, name in COMMANDS:
        module = name.split()[0].replace("-", "_")
        assert isinstance(getattr(importlib.import_module(f"{program}.cli.{module}"), module), click.Command)


def test_near_names_are_suggested() -> None:
    assert "Did you mean 'train'?" in CliRunner().invoke(GROUPS["stage1"], ["trian"]).stderr
