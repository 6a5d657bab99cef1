"""Two commands that would write to one folder: the second one names the first, and dead ones hold no lock."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from inference_runs import place as place
from inference_runs import stage1
from stage1.cli.main import main
from stage1.common.files import DEFAULT_CHECKPOINT, LOCK_NAME
from vidshard.util.lock import hold_lock

TRAIN = ["train", "--shards", "shards/Test", "--val-fraction", "0", "--device", "cpu", "--epochs", "1"]
CPU = ["--device", "cpu"]
MODEL = str(DEFAULT_CHECKPOINT)
INFER = ["infer", *CPU]
COMMANDS = {
    "train": ([*TRAIN, "--out", "run"], "run"),
    "infer": (INFER, "stage1_output"),
    "evaluate": (["evaluate", *CPU], "evaluation"),
    "report": (["report"], "stage1_output"),
    "visualize": (["visualize"], "stage1_output"),
    "extract": (["extract", "--out", "frames"], "frames"),
    "features": (["features", "--shards", "shards/Test", "--out", "features", "--checkpoint", MODEL, *CPU], "features"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_second_learns_who_holds_the_folder(place: Path, name: str) -> None:
    arguments, folder = COMMANDS[name]
    (place / folder).mkdir()
    with hold_lock(place / folder / LOCK_NAME, what="it"):
        done = stage1(*arguments)
    assert done.exit_code == 1, done.output
    who = f"process {os.getpid()} on {socket.gethostname()}"
    assert f"error: --out {folder} is being written by {who}; wait for it" in done.stderr
    assert not list((place / folder).iterdir())


def test_the_lock_of_a_killed_process_is_taken_over_and_removed(place: Path) -> None:
    (place / "stage1_output").mkdir()
    dead = {"pid": 2**22 + 1, "host": socket.gethostname(), "started": "1", "job": "", "restart": 0}
    (place / "stage1_output" / LOCK_NAME).write_text(json.dumps(dead))
    assert stage1(*INFER).exit_code == 0
    assert not (place / "stage1_output" / LOCK_NAME).exists()


def test_a_command_that_fails_leaves_no_folder(place: Path) -> None:
    assert stage1(*INFER, "--out", "a/b", "--shards", "nothing").exit_code == 1
    assert not (place / "a").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["features", "--shards", "shards/Test", "--out", "features", "--checkpoint", MODEL],
        ["extract"],
        ["report"],
        ["visualize"],
        ["export"],
        ["preview-augment"],
    ],
)
def test_commands_of_one_process_refuse_torchrun(place: Path, arguments: list[str]) -> None:
    before = sorted(place.rglob("*"))
    done = CliRunner().invoke(main, arguments, env={"WORLD_SIZE": "2", "RANK": "0"})
    assert done.exit_code == 1
    assert f"error: stage1 {arguments[0]} runs as one process, but WORLD_SIZE is 2" in done.stderr
    assert sorted(place.rglob("*")) == before
