"""Training runs: reproducible, resumable, and clear about their limits."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from fake_shards import moving_clips, random_clips, write_shards
from pictures import count_pixels, panel, read_picture
from schemas import check_lines
from stage1.cli.main import main
from stage1.common import plots
from stage1.common.device import IdleClock, cuda_memory_errors
from stage1.common.files import (
    BEST_NAME,
    CONFIG_NAME,
    CURVES_NAME,
    LAST_NAME,
    METRICS_NAME,
    PREVIOUS_NAME,
    TENSORBOARD_NAME,
)
from stage1.data.loader import ClipReader
from stage1.model.checkpoint import load_checkpoint, load_last
from stage1.model.network import ModelConfig, Stage1Model
from stage1.training import loop as train_module
from stage1.training.clip_objective import ClipObjective
from stage1.training.data import hold_out, validation_warnings
from stage1.training.loop import RunStopped, TrainConfig, is_best, train
from vidshard.util import console
from vidshard.util.errors import UserError

TINY = ModelConfig(channels=(8, 16), temporal_stages=(1,), attention_units=8, dropout=0.2)


@pytest.fixture(autouse=True)
def shown_logs() -> None:
    """Show log messages on standard output, as the command does."""
    console.show_logs()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Clips this small are slower on more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    clips, labels = moving_clips(24, shape=(4, 16, 16))
    return write_shards(tmp_path / "Train", clips, labels, split="Train")


@pytest.fixture
def val_shards(tmp_path: Path) -> Path:
    clips, labels = moving_clips(8, shape=(4, 16, 16), seed=1)
    return write_shards(tmp_path / "Validation", clips, labels, split="Validation", prefix="val-")


def config(shards: Path, out: Path, **options: Any) -> TrainConfig:
    return TrainConfig(**{"shards": shards, "out": out, "epochs": 3, "lr": 3e-3, "model": TINY, **options})


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path).model_state_dict


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_learns_and_leaves_its_files(
    tmp_path: Path, shards: Path, val_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = train(config(shards, tmp_path / "out", val_shards=val_shards, epochs=6))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"✓ Model checkpoint saved to: {path}"
    assert [line for line in lines if line.startswith("Device: CPU")]
    assert sorted(entry.name for entry in path.parent.iterdir()) == sorted(
        [BEST_NAME, LAST_NAME, PREVIOUS_NAME, METRICS_NAME, CURVES_NAME, CONFIG_NAME]
    )
    rows = [json.loads(line) for line in (path.parent / METRICS_NAME).read_text().splitlines()]
    check_lines(path.parent / METRICS_NAME, "metrics")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert max(row["val_auc"] for row in rows) > 0.9
    picture = read_picture(path.parent / CURVES_NAME)
    loss, accuracy = (panel(picture, 0, number, (1, 2)) for number in range(2))
    for colour in (plots.TRAIN_COLOUR, plots.VALIDATION_COLOUR):
        assert min(count_pixels(loss, colour), count_pixels(accuracy, colour)) > 100
    assert count_pixels(accuracy, plots.AUC_COLOUR) > 100 > count_pixels(loss, plots.AUC_COLOUR)

    best = load_checkpoint(path)
    assert best.epoch == [row["epoch"] for row in rows if row["best"]][-1]
    assert best.frame_gap_seconds == pytest.approx(0.1)
    assert best.sampling["mode"] == "uniform"
    assert best.warnings == []
    assert best.data_digests["train"] == ClipReader(shards).manifest.digest
    assert (len(best.train_videos), best.train_videos[0]) == (24, "Train/Fighting/video-001.mp4")
    assert load_checkpoint(path.parent / LAST_NAME).epoch == 6


def test_the_epoch_line(tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(config(shards, tmp_path / "out", epochs=1, val_fraction=0.3))
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Epoch"))
    assert re.fullmatch(
        r"Epoch 1 \| Loss: \d+\.\d{4} \| Accuracy: \d+\.\d{2}% \| LR: \d+\.\d{6}"
        r" \| Val Accuracy: \d+\.\d{2}% \| Val AUC: \d\.\d{3} \(network alone: \d+\.\d{2}%, \d\.\d{3}\)",
        line,
    )


def test_the_same_seed_gives_the_same_weights(tmp_path: Path, shards: Path) -> None:
    first = weights(train(config(shards, tmp_path / "a")))
    assert_same(first, weights(train(config(shards, tmp_path / "b", workers=3))))
    other = weights(train(config(shards, tmp_path / "c", seed=1)))
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_a_resumed_run_ends_as_if_never_stopped(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(config(shards, tmp_path / "whole"))
    finish_epoch = train_module.finish_epoch

    def stop_after_two(run: Any, entry: dict[str, Any]) -> None:
        finish_epoch(run, entry)
        if entry["epoch"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(train_module, "finish_epoch", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        train(config(shards, tmp_path / "cut"))
    monkeypatch.undo()
    resumed = train(config(shards, tmp_path / "cut", resume=True))
    for name in (BEST_NAME, LAST_NAME):
        assert_same(weights(whole.with_name(name)), weights(resumed.with_name(name)))
    one, two = load_checkpoint(whole.with_name(LAST_NAME)), load_checkpoint(resumed.with_name(LAST_NAME))
    assert str(one.optimizer_state_dict) == str(two.optimizer_state_dict)
    assert [row["loss"] for row in one.run_state["history"]] == [row["loss"] for row in two.run_state["history"]]


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_run_killed_between_its_two_checkpoints_resumes(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    whole = train(config(shards, tmp_path / "whole", epochs=2, val_fraction=0))

    def kill_in_between(run: Any, last: Any) -> None:
        if last.epoch == epoch:
            raise KeyboardInterrupt

    monkeypatch.setattr(train_module, "write_derived_files", kill_in_between)
    with pytest.raises(KeyboardInterrupt):
        train(config(shards, tmp_path / "cut", epochs=2, val_fraction=0))
    monkeypatch.undo()
    resumed = train(config(shards, tmp_path / "cut", epochs=2, val_fraction=0, resume=True))
    assert_same(weights(whole), weights(resumed))
    assert len((tmp_path / "cut" / METRICS_NAME).read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("num_saved", "error", "text"),
    [
        (0, KeyboardInterrupt(), "interrupted; run the same command again to continue"),
        (1, KeyboardInterrupt(), "interrupted; run the same command with --resume to continue"),
        (
            0,
            OSError(28, "No space left on device"),
            "error: No space left on device; free some space and run the same command again",
        ),
        (
            1,
            OSError(28, "No space left on device"),
            "error: No space left on device; free some space and run the same command with --resume to continue",
        ),
    ],
)
def test_a_stopped_run_explains_how_to_continue(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, num_saved: int, error: BaseException, text: str
) -> None:
    def stop(run: Any, entry: dict[str, Any]) -> None:
        for name in (LAST_NAME, BEST_NAME)[:num_saved]:
            (run.config.out / name).touch()
        raise error

    monkeypatch.setattr(train_module, "finish_epoch", stop)
    monkeypatch.setattr(train_module, "train_epoch", lambda *_: {})
    result = run_command("--shards", str(shards), "--out", str(tmp_path / "out"), "--val-fraction", "0")
    assert (result.exit_code, result.stderr.strip().splitlines()[-1]) == (1, text)


def test_resume_with_another_global_batch_is_refused(tmp_path: Path, shards: Path) -> None:
    train(config(shards, tmp_path / "out", epochs=1, val_fraction=0))
    with pytest.raises(
        UserError, match=r"with 8 clips per step, got 16 \(`batch_size` 8 × `accumulate` 2 × 1 processes"
    ):
        train(config(shards, tmp_path / "out", val_fraction=0, resume=True, accumulate=2))


def test_parts_fitted_at_the_start_are_not_fitted_again(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(config(shards, tmp_path / "out", epochs=1, val_fraction=0))
    line = weights(first)["motion_classifier.weight"]
    assert line.abs().max() > 0.01
    monkeypatch.setattr("stage1.training.clip_objective.motion_features", lambda _: pytest.fail("fitted again"))
    resumed = train(config(shards, tmp_path / "out", epochs=2, val_fraction=0, resume=True))
    assert torch.equal(weights(resumed)["motion_classifier.weight"], line)


def test_where_motion_features_meet_one_class_the_network_decides_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stage1.training.clip_objective.MAX_FITTED", 1)
    write_shards(tmp_path / "Train", random_clips(6, shape=(4, 16, 16)), [0, 1, 1, 0, 1, 0])
    path = train(config(tmp_path / "Train", tmp_path / "out", epochs=1, val_fraction=0))
    assert "WARNING: motion features are not used: the 1 clips for" in capsys.readouterr().err
    assert not weights(path)["motion_classifier.weight"].any()


def test_resume_refuses_other_options_and_other_data(tmp_path: Path, shards: Path, val_shards: Path) -> None:
    train(config(shards, tmp_path / "out", epochs=1, val_fraction=0))
    with pytest.raises(UserError, match=r"trained with `lr` 0\.003, got 0\.01; resume with the same options"):
        train(config(shards, tmp_path / "out", val_fraction=0, resume=True, lr=0.01))
    with pytest.raises(UserError, match="the train shards differ from those"):
        train(config(val_shards, tmp_path / "out", val_fraction=0, resume=True))
    with pytest.raises(UserError, match=r"nothing to resume: no .*last\.pt"):
        train(config(shards, tmp_path / "new", resume=True))


def test_a_second_run_moves_the_first_one_aside(
    tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    seeds = range(5)
    for seed in seeds:
        train(config(shards, out, epochs=1, seed=seed))
    assert load_checkpoint(out / BEST_NAME).train_config["seed"] == 4
    kept = {path.name: path for path in out.glob("earlier-*")}
    assert sorted(kept) == ["earlier-2", "earlier-3", "earlier-4"]
    for number, folder in enumerate(sorted(kept), start=1):
        assert load_checkpoint(kept[folder] / BEST_NAME).train_config["seed"] == number
        assert {BEST_NAME, LAST_NAME, CONFIG_NAME, METRICS_NAME} <= {path.name for path in kept[folder].iterdir()}
    told = capsys.readouterr().out
    assert f"The earlier result in {out} was moved to {out / 'earlier-4'}" in told
    assert f"{out / 'earlier-1'} was removed: the last 3 earlier results are kept" in told
    train(config(shards, out, epochs=2, seed=4, resume=True))  # resumes
    assert sorted(path.name for path in out.glob("earlier-*")) == sorted(kept)


def test_a_run_that_cannot_start_leaves_the_first_one_in_its_place(tmp_path: Path, shards: Path) -> None:
    train(config(shards, tmp_path / "out", epochs=1))
    with pytest.raises(UserError, match="no shard folder"):
        train(config(tmp_path / "none", tmp_path / "out"))
    assert load_checkpoint(tmp_path / "out" / BEST_NAME).epoch == 1


def test_training_opens_only_the_shards_that_were_named(tmp_path: Path, shards: Path, val_shards: Path) -> None:
    """No other files are opened or even listed, by a new run or by a resumed one."""
    write_shards(tmp_path / "Test", random_clips(4), [0, 1, 0, 1], split="Test")
    (tmp_path / "out").mkdir()
    touched: set[Path] = set()

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str | bytes):
            touched.add(Path(os.fsdecode(arguments[0])).absolute())

    watching = True
    sys.addaudithook(watch)
    train(config(shards, tmp_path / "out", val_shards=val_shards, epochs=1))
    train(config(shards, tmp_path / "out", val_shards=val_shards, epochs=2, resume=True))
    watching = False
    inside = {path.relative_to(tmp_path) for path in touched if path.is_relative_to(tmp_path)}
    assert {path.parts[0] for path in inside if path.parts} == {"Train", "Validation", "out"}
    assert Path() not in inside  # the folder above was not listed
    assert {path.parts[0] for path in inside if path.suffix == ".tar"} == {"Train", "Validation"}
    assert not [path for path in touched if path.suffix == ".tar" and not path.is_relative_to(tmp_path)]


# --- stopped and resumed in mid-epoch -----------------------------------------------------------------------------


class StopAfter:
    """Replacement for a run's stop signal, which arrives after a number of steps."""

    def __init__(self, steps: int) -> None:
        self.steps, self.run = steps, None

    @property
    def received(self) -> str | None:
        return "SIGTERM" if self.run is not None and self.run.step >= self.steps - 1 else None


def stopped_train(run_config: TrainConfig, steps: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """Train until the signal comes in step `steps`. Returns the output."""
    begin, stop = train_module.begin, StopAfter(steps)

    def begin_with_stop(run: Any) -> None:
        run.stop = stop
        stop.run = run
        begin(run)

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "begin", begin_with_stop)
        with pytest.raises(RunStopped) as stopped:
            train(run_config)
    return str(stopped.value)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_run_stopped_at_any_step_ends_as_if_never_stopped(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, ema: float
) -> None:
    options = {"epochs": 2, "batch_size": 5, "ema": ema, "mixup": 0.4, "val_fraction": 0.2}
    whole = train(config(shards, tmp_path / "whole", **options))
    expected = load_checkpoint(whole.with_name(LAST_NAME))
    assert expected.step == 8
    for step in (1, 3, 4, 6, 8):  # within an epoch, and its last step, after which only validation remains
        out = tmp_path / f"cut{step}"
        told = stopped_train(config(shards, out, **options), step, monkeypatch)
        assert told.startswith(
            f"stopped by SIGTERM after {step} {'step' if step == 1 else 'steps'}; run the same command with `resume`"
        )
        assert load_checkpoint(out / LAST_NAME).step == step
        train(config(shards, out, **options, resume="auto"))
        last = load_checkpoint(out / LAST_NAME)
        assert_same(expected.model_state_dict, last.model_state_dict)
        assert str(expected.optimizer_state_dict) == str(last.optimizer_state_dict)
        assert_same(weights(whole), weights(out / BEST_NAME))
        timed = ("seconds", "clips_per_second", "mb_per_second", "data_wait")
        one, two = (
            [{k: v for k, v in row.items() if k not in timed} for row in x.run_state["history"]]
            for x in (expected, last)
        )
        assert one == two


def test_a_run_resumes_with_a_different_split_of_the_global_batch(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"epochs": 1, "val_fraction": 0}
    whole = load_checkpoint(train(config(shards, tmp_path / "whole", batch_size=8, **options)))
    stopped_train(config(shards, tmp_path / "cut", batch_size=8, **options), 2, monkeypatch)
    resumed = train(config(shards, tmp_path / "cut", batch_size=2, accumulate=4, resume=True, **options))
    for name, value in load_checkpoint(resumed).model_state_dict.items():
        assert torch.allclose(value, whole.model_state_dict[name], atol=1e-6), name


def test_resume_auto_starts_where_there_is_nothing_and_leaves_a_finished_run(
    tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train(config(shards, tmp_path / "out", epochs=1, resume="auto"))
    before = weights(first)
    assert "Resumed" not in capsys.readouterr().out
    train(config(shards, tmp_path / "out", epochs=1, resume="auto"))
    assert_same(before, weights(first))
    assert "Resumed after epoch 1 of 1" in capsys.readouterr().out


def test_a_finished_run_keeps_its_options_if_resumed_with_fewer_epochs(
    tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config(shards, tmp_path / "out", epochs=2))
    before = (tmp_path / "out" / CONFIG_NAME).read_text()
    train(config(shards, tmp_path / "out", epochs=1, resume=True))
    assert (tmp_path / "out" / CONFIG_NAME).read_text() == before
    assert "schedule is adjusted" not in capsys.readouterr().out


def test_outputs_that_are_not_finite_stop_a_run_that_can_still_be_resumed(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = ClipObjective.score

    def broken(self: ClipObjective, model: Any, batch: Any) -> Any:
        return score(self, model, batch) * float("nan")

    train(config(shards, tmp_path / "out", epochs=1, val_fraction=0.2))
    monkeypatch.setattr(ClipObjective, "score", broken)
    try:
        train(config(shards, tmp_path / "out", epochs=2, val_fraction=0.2, resume=True))
        message = ""
    except (UserError, ValueError) as error:
        message = str(error)
    assert message.startswith("the model's outputs on the validation clips are not finite numbers after step 6")
    assert load_checkpoint(tmp_path / "out" / LAST_NAME).epoch == 1
    monkeypatch.undo()
    train(config(shards, tmp_path / "out", epochs=2, val_fraction=0.2, resume=True))
    assert load_checkpoint(tmp_path / "out" / LAST_NAME).epoch == 2


def test_ctrl_c_saves_a_checkpoint_and_a_second_one_stops_at_once(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step, presses = train_module.train_step, 1

    def pressed(run: Any, batches: Any, epoch: int) -> bool:
        for _ in range(presses):
            signal.raise_signal(signal.SIGINT)
        return step(run, batches, epoch)

    monkeypatch.setattr(train_module, "train_step", pressed)
    try:
        train(config(shards, tmp_path / "out"))
        stopped = ""
    except (KeyboardInterrupt, RunStopped) as error:
        stopped = str(error)
    assert stopped.startswith("stopped by SIGINT after 1 step; run the same command with `resume`")
    assert load_checkpoint(tmp_path / "out" / LAST_NAME).step == 1
    assert "press Ctrl-C again to stop at once" in capsys.readouterr().err
    presses = 2
    with pytest.raises(KeyboardInterrupt):
        train(config(shards, tmp_path / "again"))


def test_a_damaged_last_checkpoint_gives_way_to_the_previous_one(
    tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(config(shards, tmp_path / "whole"))
    train(config(shards, tmp_path / "out"))
    last = tmp_path / "out" / LAST_NAME
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(data)
    train(config(shards, tmp_path / "out", resume=True))
    assert "WARNING" in (told := capsys.readouterr().err)
    assert (
        "last.pt is damaged: its SHA-256 differs from the one recorded in the file; resuming from previous.pt" in told
    )
    assert_same(weights(whole.with_name(LAST_NAME)), weights(last))
    assert load_checkpoint(last.with_name(PREVIOUS_NAME)).epoch == 2


def test_checkpoints_within_an_epoch(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    save_last = train_module.save_last

    def note(folder: Path, checkpoint: Any) -> None:
        steps.append(checkpoint.step)
        save_last(folder, checkpoint)

    monkeypatch.setattr(train_module, "save_last", note)
    options = {"epochs": 2, "batch_size": 8, "val_fraction": 0}
    train(config(shards, tmp_path / "each", checkpoint_minutes=1e-9, **options))
    assert steps == [1, 2, 3, 4, 5, 6]
    steps.clear()
    train(config(shards, tmp_path / "ends", checkpoint_minutes=0, **options))
    assert steps == [3, 6]


SLOW_RUN = """
import sys, time
from pathlib import Path
from stage1.cli import main as cli
from stage1.training import loop as train
step = train.train_step
def slow_step(run, batches, epoch):
    asked = step(run, batches, epoch)
    sys.stdout.write(f"STEP {run.step}\\n")  # in one piece, though output is not buffered: ranks share the pipe
    sys.stdout.flush()
    time.sleep(0.05)
    return asked
train.train_step = slow_step
cli.main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals of this kind")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_stops_the_command_with_a_checkpoint_and_exit_code_75(tmp_path: Path, shards: Path, name: str) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", SLOW_RUN, "train", "--shards", str(shards), "--out", str(out), "--epochs", "500"]
    command += ["--set", "model.channels=[8]", "--set", "model.temporal_stages=[]", "--resume", "auto"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while not process.stdout.readline().startswith("STEP 4"):
        assert process.poll() is None
    process.send_signal(getattr(signal, name))
    _, errors = process.communicate(timeout=200)  # 500 epochs would take longer
    assert process.returncode == 75
    assert f"stopped by {name} after" in errors.splitlines()[-1]
    assert load_checkpoint(out / LAST_NAME).step >= 4


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_run_killed_twice_at_random_steps_ends_with_the_same_weights(tmp_path: Path, shards: Path) -> None:
    """In mid-epoch, by SIGKILL, in processes of their own; a checkpoint is written after every step."""
    out = tmp_path / "out"
    options = ["--shards", str(shards), "--epochs", "6", "--batch-size", "5", "--val-fraction", "0.2", "--mixup", "0.4"]
    options += ["--set", "model.channels=[8]", "--set", "model.temporal_stages=[]", "--checkpoint-minutes", "1e-9"]
    assert run_command(*options, "--out", str(tmp_path / "whole")).exit_code == 0
    command = [sys.executable, "-c", SLOW_RUN, "train", *options, "--device", "cpu", "--out", str(out)]
    generator = random.Random()
    before = 0
    for kill_at in (generator.randint(2, 10), generator.randint(12, 22)):  # of 24 steps
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen([*command, "--resume", "auto"], stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        steps = [int(line.split()[1]) for line in iter(process.stdout.readline, f"STEP {kill_at}\n") if "STEP" in line]
        assert process.poll() is None
        process.kill()
        process.communicate()
        assert steps[:1] in (
            [before + 1],
            [before],
            [],
        )  # it went on where the last one was, give or take the last save
        before = load_last(out)[0].step
        assert kill_at - 1 <= before <= kill_at + 1
    assert run_command(*options, "--out", str(out), "--resume").exit_code == 0
    for name in (BEST_NAME, LAST_NAME):
        assert_same(weights(tmp_path / "whole" / name), weights(out / name))


# --- held-out videos ----------------------------------------------------------------------------------------------


def test_held_out_videos_keep_recordings_together_and_both_classes(tmp_path: Path) -> None:
    labels = [0] * 40 + [1] * 40
    groups = [f"recording-{i // 2 % 13}" for i in range(40)] + [f"recording-{13 + i // 4}" for i in range(40)]
    folder = write_shards(
        tmp_path / "s", random_clips(80), labels, source_groups=groups, clips_per_video=2, clips_per_shard=30
    )
    reader = ClipReader(folder)
    train_rows, held_rows = hold_out(reader, fraction=0.1, seed=0)
    assert sorted([*train_rows, *held_rows]) == list(range(80))
    assert {groups[row] for row in train_rows}.isdisjoint({groups[row] for row in held_rows})
    assert sorted({labels[row] for row in held_rows}) == [0, 1]
    assert 6 <= len(held_rows) <= 16
    assert np.array_equal(held_rows, hold_out(reader, fraction=0.1, seed=0)[1])
    assert len(hold_out(reader, fraction=0, seed=0)[1]) == 0


def test_a_class_of_one_recording_stays_in_training(tmp_path: Path) -> None:
    groups = ["one"] * 6 + [None] * 6
    folder = write_shards(tmp_path / "s", random_clips(12), [1] * 6 + [0] * 6, source_groups=groups)
    train_rows, held_rows = hold_out(ClipReader(folder), fraction=0.2, seed=0)
    assert len(held_rows) == 1
    assert set(range(6)) <= set(train_rows.tolist())


@pytest.mark.parametrize("seed", range(12))
def test_a_recording_of_two_classes_takes_no_class_out_of_training(tmp_path: Path, seed: int) -> None:
    folder = write_shards(tmp_path / "s", random_clips(4), [0, 0, 1, 1], source_groups=["a", "b", "b", "c"])
    train_rows, held_rows = hold_out(ClipReader(folder), fraction=0.1, seed=seed)
    assert {0, 1} == {[0, 0, 1, 1][row] for row in train_rows}
    assert len(held_rows) > 0


def test_it_logs_the_held_out_clips(tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(config(shards, tmp_path / "a", epochs=1))
    told = capsys.readouterr().out
    assert "2 of 24 videos (2 clips)" in told
    assert "training loss and accuracy are those of the network alone" in told
    train(config(shards, tmp_path / "b", epochs=1, val_fraction=0))
    told = capsys.readouterr().out
    assert "no validation (--val-fraction 0): the last epoch is kept" in told
    assert "network alone" not in told


# --- warnings -----------------------------------------------------------------------------------------------------


def test_a_test_set_as_validation_is_warned_of_in_the_checkpoint(
    tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips, labels = moving_clips(4, shape=(4, 16, 16), seed=2)
    test = write_shards(tmp_path / "Test", clips, labels, split="Test", prefix="test-")
    path = train(config(shards, tmp_path / "out", val_shards=test, epochs=1))
    assert "WARNING" in capsys.readouterr().err
    assert "is marked Test" in load_checkpoint(path).warnings[0]


def test_validation_on_training_videos_is_warned_of(tmp_path: Path, shards: Path) -> None:
    clips, labels = moving_clips(24, shape=(4, 16, 16))
    settings = {**ClipReader(shards).manifest.settings, "sources_sha256": "of another list of videos"}
    renamed = write_shards(tmp_path / "copy", clips[:3], labels[:3], prefix="renamed-", settings=settings)
    (warning,) = validation_warnings(ClipReader(shards), ClipReader(renamed))
    assert warning.startswith("3 of 3 videos of")
    other = write_shards(tmp_path / "other", random_clips(2), [0, 1], settings={"mode": "dense"})
    (warning,) = validation_warnings(ClipReader(shards), ClipReader(other))
    assert "2 of 2 videos" in warning


def test_one_recording_on_both_sides_is_warned_of(tmp_path: Path) -> None:
    first = write_shards(tmp_path / "a", random_clips(2), [0, 1], source_groups=["r1", "r2"])
    second = write_shards(tmp_path / "b", random_clips(2, seed=1), [0, 1], source_groups=["r2", "r3"], prefix="b-")
    (warning,) = validation_warnings(ClipReader(first), ClipReader(second))
    assert "1 recordings" in warning
    assert "'r2'" in warning


def test_frames_made_square_another_way_are_warned_of(tmp_path: Path) -> None:
    first = write_shards(tmp_path / "a", random_clips(2), [0, 1])
    settings = {"mode": "uniform", "clip_len": 4, "clips_per_video": 1, "resize": "crop"}
    second = write_shards(tmp_path / "b", random_clips(2, seed=1), [0, 1], prefix="b-", settings=settings)
    (warning,) = validation_warnings(ClipReader(first), ClipReader(second))
    assert "by `resize` crop in" in warning
    assert "by squash in training" in warning


def test_it_logs_how_many_clips_an_epoch_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips, labels = moving_clips(8, shape=(4, 16, 16))
    folder = write_shards(tmp_path / "s", clips, sorted(labels), clips_per_video=4)
    train(config(folder, tmp_path / "one", epochs=1, val_fraction=0))
    assert "An epoch uses 2 of 8 clips (--clips-per-video-per-epoch 1; 0 uses all)" in capsys.readouterr().out
    train(config(folder, tmp_path / "all", epochs=1, val_fraction=0, clips_per_video_per_epoch=0))
    assert "An epoch uses" not in capsys.readouterr().out


def test_frames_far_apart_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips, labels = moving_clips(8, shape=(4, 16, 16))
    train(config(write_shards(tmp_path / "s", clips, labels, frame_gap_seconds=4.0), tmp_path / "out", epochs=1))
    assert "are 4.0 s apart (median); above 0.5 s motion input is of little use" in capsys.readouterr().out


# --- bad use ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ([1, 1, 1, 1], "has 4 crime clips to train on and no normal one, expected both"),
        ([0, 1, -1, 1], "1 of 4 clips of .* have no label, expected normal or crime"),
    ],
)
def test_labels_that_cannot_be_learnt(tmp_path: Path, labels: list[int], text: str) -> None:
    folder = write_shards(tmp_path / "s", random_clips(4), labels)
    with pytest.raises(UserError, match=text):
        train(config(folder, tmp_path / "out", val_fraction=0))


def test_another_shape_is_refused(tmp_path: Path, shards: Path) -> None:
    other = write_shards(tmp_path / "o", random_clips(4, shape=(8, 16, 16)), [0, 1, 0, 1])
    with pytest.raises(UserError, match=r"has clips of 8×16×16, expected 4×16×16 .* `clip_len` and `frame_size`"):
        train(config(shards, tmp_path / "out", val_shards=other))


def test_cuda_asked_for_and_absent(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"`device` is cuda.*use `device` cpu"):
        train(config(shards, tmp_path / "out", device="cuda"))


def test_cuda_out_of_memory_names_the_batch_size_to_try() -> None:
    with pytest.raises(UserError, match="`batch_size` 8; try `batch_size` 4"), cuda_memory_errors(8):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, shards: Path) -> None:
    def broken(clips: torch.Tensor, _indices: torch.Tensor, _epoch: int) -> torch.Tensor:
        return clips.permute(0, 4, 1, 2, 3).float() * float("nan")

    with pytest.raises(UserError, match=r"the loss is nan .* at epoch 1, step 1 of the run, .*lower `lr`"):
        train(config(shards, tmp_path / "out"), transform=broken)
    assert not (tmp_path / "out" / BEST_NAME).exists()


def lay_out_bad_use(folder: Path) -> None:
    """Create the files below `folder` that the cases of bad use refer to."""
    write_shards(folder / "good", random_clips(4), [0, 1, 0, 1])
    write_shards(folder / "crimes", random_clips(4), [1, 1, 1, 1])
    write_shards(folder / "unknown", random_clips(4), [0, 1, -1, 1])
    write_shards(folder / "longer", random_clips(4, shape=(8, 16, 16)), [0, 1, 0, 1])
    write_shards(folder / "newer", random_clips(4), [0, 1, 0, 1])
    manifest = folder / "newer" / "manifest.json"
    fields = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**fields, "format_version": 99}))
    for name, data in (("run/last.pt", b"no checkpoint"), ("file", b"")):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "newer-run").mkdir()
    torch.save({"format": "stage1 checkpoint", "format_version": 99}, folder / "newer-run" / LAST_NAME)


def run_command(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["train", "--device", "cpu", *arguments])


BAD_USE = {
    "--shards none": "error: no shard folder none: build it first",
    "--shards good --val-shards none": "error: no shard folder none: build it first",
    "--shards good --out file": "error: --out file is a file, expected a folder; choose another --out",
    "--shards good --out file/a": "error: --out file/a is below the file",
    "--shards good --resume": "error: nothing to resume: no checkpoints/last.pt; start the run without --resume",
    "--shards good --out run --resume": "error: run/last.pt is not a stage1 checkpoint, or is damaged",
    "--shards good --out newer-run --resume": "of format version 99, but this stage1 reads only version 2",
    "--shards crimes": "error: crimes has 3 crime clips to train on and no normal one, expected both",
    "--shards unknown": "error: 1 of 4 clips of unknown have no label, expected normal or crime",
    "--shards good --val-shards longer": "error: longer has clips of 8×16×16, expected 4×16×16 as in good",
    "--shards newer": "version 99",
    "--shards good --device cuda": "error: --device is cuda, but this torch",
    "--shards good --device tpu": "error: device is 'tpu', expected auto, cpu, cuda or cuda:N",
    "--shards good --lr -1": "error: lr is -1, expected more than 0",
    "--shards good --no-such": "No such option",
}


@pytest.mark.parametrize("arguments", BAD_USE)
def test_bad_use_is_one_clear_line_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str
) -> None:
    lay_out_bad_use(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = run_command(*arguments.split())
    assert result.exit_code == 1
    *usage, last = result.stderr.replace(os.sep, "/").strip().splitlines()
    assert BAD_USE[arguments] in last
    assert not usage or usage[0].startswith("Usage")
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            "error: CUDA is out of memory with --batch-size 6; try --batch-size 3",
        ),
        (
            RuntimeError("CUDA error: out of memory\n"),
            "error: CUDA is out of memory with --batch-size 6; try --batch-size 3",
        ),
    ],
)
def test_cuda_out_of_memory_is_one_clear_line(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, text: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    for name in ("forward", "to"):
        monkeypatch.setattr(Stage1Model, name, refuse)
        result = run_command("--shards", str(shards), "--out", str(tmp_path / "out"), "--batch-size", "6")
        assert (result.exit_code, result.stderr.strip().splitlines()[-1]) == (1, text)
        monkeypatch.undo()


def test_an_error_unrelated_to_memory_is_unchanged() -> None:
    with pytest.raises(RuntimeError, match="shapes"), cuda_memory_errors(8):
        raise RuntimeError("shapes do not fit")


@pytest.mark.parametrize("option", ["--epochs", "--batch-size", "--workers"])
def test_wrong_numbers(option: str) -> None:
    result = CliRunner().invoke(main, ["train", option, "0"])
    assert (result.exit_code, result.output.strip()) == (
        1,
        f"error: {option[2:].replace('-', '_')} is 0, expected at least 1",
    )


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["train", "--shards", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert result.output.startswith(f"error: no shard folder {tmp_path / 'none'}: build it first")
    assert result.output.count("\n") == 1


# --- ways to train ------------------------------------------------------------------------------------------------


def losses(path: Path) -> list[float]:
    return [row["loss"] for row in load_checkpoint(path.with_name(LAST_NAME)).run_state["history"]]


def test_accumulated_batches_train_as_one_large_batch(tmp_path: Path, shards: Path) -> None:
    whole = train(config(shards, tmp_path / "whole", batch_size=6, val_fraction=0))
    parts = train(config(shards, tmp_path / "parts", batch_size=2, accumulate=3, val_fraction=0))
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)
    assert load_checkpoint(parts).step == load_checkpoint(whole).step == 12


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"precision": "fp16"}, {"channels_last": True}])
def test_other_precisions_and_memory_orders_train_alike(
    tmp_path: Path, shards: Path, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    plain = train(config(shards, tmp_path / "plain", val_fraction=0))
    other = train(config(shards, tmp_path / "other", val_fraction=0, **options))
    assert losses(other) == pytest.approx(losses(plain), rel=0.02)
    assert {value.dtype for value in weights(other).values()} == {torch.float32}
    resumed = train(config(shards, tmp_path / "other", val_fraction=0, epochs=4, resume=True, **options))
    assert len(losses(resumed)) == 4
    assert "Note: --epochs changed from 3 to 4; the learning-rate schedule is adjusted" in capsys.readouterr().out


def test_without_a_compiler_compile_is_refused_in_one_line(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def backend(*_: Any) -> Any:
        raise OSError("no g++")

    compile_model = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compile_model(model, backend=backend))
    result = run_command("--shards", str(shards), "--out", str(tmp_path / "out"), "--val-fraction", "0", "--compile")
    assert result.exit_code == 1
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("error: torch.compile failed: ")
    assert "no g++; on a CPU it needs a C++ compiler" in line


def test_the_compiled_model_is_trained(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the compiler that runs the graph as it is: the real one takes a minute."""
    plain = train(config(shards, tmp_path / "plain", val_fraction=0))
    compile_model = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compile_model(model, backend="eager"))
    compiled = train(config(shards, tmp_path / "compiled", val_fraction=0, compile=True))
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-4)
    assert weights(compiled).keys() == weights(plain).keys()


def test_a_gradient_that_overflows_in_fp16_leaves_the_step_out(tmp_path: Path, shards: Path) -> None:
    """The scale is halved until gradients fit; the limit of the norm is that of true gradients."""
    norms = []
    clip = torch.nn.utils.clip_grad_norm_

    def note(parameters: Any, limit: float) -> torch.Tensor:
        norm = clip(parameters, limit)
        norms.append(float(norm))
        return norm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", note)
        train(config(shards, tmp_path / "half", val_fraction=0, epochs=1, precision="fp16"))
        half = [norm for norm in norms if np.isfinite(norm)]
        norms.clear()
        train(config(shards, tmp_path / "full", val_fraction=0, epochs=1))
    assert half[0] == pytest.approx(norms[0], rel=0.05)  # unscaled before it is clipped


def test_a_step_left_out_in_fp16_moves_no_learning_rate(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    def huge(_device: str, **options: Any) -> Any:
        return scaler("cpu", **{**options, "init_scale": 2.0**40, "backoff_factor": 2.0**-30})

    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", huge)
    options = {"val_fraction": 0, "epochs": 1, "precision": "fp16"}
    path = train(config(shards, tmp_path / "half", **options))
    last = load_checkpoint(path.with_name(LAST_NAME))
    assert last.step == 3
    assert last.scheduler_state_dict["last_epoch"] == 2
    assert not [warning for warning in recwarn if "lr_scheduler" in str(warning.message)]


def test_the_waiting_figure_is_that_of_a_slow_disk(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = ClipReader.read_clips

    def slow(self: ClipReader, rows: Any, out: Any) -> None:
        time.sleep(0.2)
        read(self, rows, out)

    monkeypatch.setattr(ClipReader, "read_clips", slow)
    path = train(config(shards, tmp_path / "out", val_fraction=0, epochs=1))
    row = load_checkpoint(path).metrics
    assert 0.4 < row["data_wait"] * row["seconds"] < row["seconds"]


def test_results_of_a_step_are_read_while_a_cuda_device_does_the_next(tmp_path: Path, shards: Path) -> None:
    """Simulated: the steps are done on the CPU, and only the order in which they are looked at is that on CUDA."""
    expected = train(config(shards, tmp_path / "cpu", epochs=1, val_fraction=0))
    order: list[int] = []

    class Late:
        type = "cuda"

    def train_epoch(run: Any, epoch: int) -> Any:
        device, run.device = run.device, Late()
        try:
            return of_epoch(run, epoch)
        finally:
            run.device = device

    def step(run: Any, batches: Any, epoch: int) -> Any:
        late, run.device = run.device, torch.device("cpu")
        record = of_step(run, batches, epoch)
        order.append(record.step)
        run.device = late
        return record

    def note(run: Any, records: Any, *, keep: int) -> bool:
        order.append(-len(records) + keep)
        return noted(run, records, keep=keep)

    of_epoch, of_step, noted = train_module.train_epoch, train_module.train_step, train_module.note_steps
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "train_epoch", train_epoch)
        patch.setattr(train_module, "train_step", step)
        patch.setattr(train_module, "note_steps", note)
        patch.setattr(train_module, "IdleClock", lambda _device: IdleClock(torch.device("cpu")))
        path = train(config(shards, tmp_path / "late", epochs=1, val_fraction=0))
    assert order == [1, 0, 2, -1, 3, -2]
    assert_same(weights(expected), weights(path))
    assert losses(path) == losses(expected)


def test_it_stops_early_when_nothing_gets_better(
    tmp_path: Path, shards: Path, val_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses_of_network = iter([0.9, 0.5, 0.6, 0.5, 0.7, 0.4])
    monkeypatch.setattr(
        train_module,
        "validate",
        lambda _run: (
            {"val_loss": 1.0, "network_val_loss": next(losses_of_network), "val_auc": 0.5, "val_accuracy": 0.5}
            | {"network_val_auc": 0.5, "network_val_accuracy": 0.5}
        ),
    )
    path = train(config(shards, tmp_path / "out", val_shards=val_shards, epochs=6, patience=3))
    assert len(losses(path)) == 5
    assert load_checkpoint(path).epoch == 2
    train(config(shards, tmp_path / "out", val_shards=val_shards, epochs=6, patience=3, resume="auto"))
    assert len(losses(path)) == 5


def test_averaged_weights_are_the_model(tmp_path: Path, shards: Path) -> None:
    plain = load_checkpoint(train(config(shards, tmp_path / "plain", val_fraction=0)))
    averaged = load_checkpoint(train(config(shards, tmp_path / "ema", val_fraction=0, ema=0.9)))
    assert_same(averaged.run_state["trained_weights"], plain.model_state_dict)
    assert not torch.equal(averaged.model_state_dict["classifier.weight"], plain.model_state_dict["classifier.weight"])


def test_tensorboard_holds_steps_and_epochs(tmp_path: Path, shards: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    path = train(config(shards, tmp_path / "out", val_fraction=0.2, tensorboard=True, epochs=2))
    events = accumulator.EventAccumulator(str(path.parent / TENSORBOARD_NAME)).Reload()
    assert {"step/loss", "step/lr", "epoch/loss", "epoch/val_auc"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("step/loss")] == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_records_its_provenance(tmp_path: Path, shards: Path) -> None:
    saved = load_checkpoint(train(config(shards, tmp_path / "out", epochs=1)))
    assert {"vidshard", "python", "torch", "numpy", "webdataset"} <= saved.packages.keys()
    assert saved.train_config["lr"] == 3e-3
    root = Path(train_module.__file__).parents[2]
    if (root / ".git").exists():
        head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        assert saved.git_commit.removesuffix("-dirty") == head.stdout.strip()


# --- small things -------------------------------------------------------------------------------------------------


def test_the_last_epoch_is_kept_or_with_early_stopping_the_one_with_the_lowest_loss() -> None:
    history = [{"val_loss": 0.5, "network_val_loss": 0.3}, {"val_loss": 0.1, "network_val_loss": 0.4}]
    better, worse = {"val_loss": 0.6, "network_val_loss": 0.2}, {"val_loss": 0.05, "network_val_loss": 0.3}
    assert is_best(better, history, patience=2)
    assert not is_best(worse, history, patience=2)
    assert is_best(worse, history, patience=0)
    assert is_best({"val_loss": 0.4}, [{"val_loss": 0.5}], patience=2)  # of a model without motion features
    assert is_best({"loss": 1.0}, [{"loss": 0.5}], patience=2)


def test_one_class_in_validation_prints_na_and_writes_null(
    tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    normal = write_shards(tmp_path / "v", random_clips(3), [0, 0, 0], prefix="v-")
    path = train(config(shards, tmp_path / "out", val_shards=normal, epochs=1))
    assert "| Val AUC: n/a" in capsys.readouterr().out
    assert '"val_auc": null' in (path.parent / METRICS_NAME).read_text()


def test_a_transform_of_the_callers_own(tmp_path: Path, shards: Path) -> None:
    seen = []

    def own(clips: torch.Tensor, _indices: torch.Tensor, _epoch: int) -> torch.Tensor:
        seen.append((clips.dtype, tuple(clips.shape[1:])))
        return clips.permute(0, 4, 1, 2, 3).float() / 128 - 1

    train(config(shards, tmp_path / "out", epochs=1), transform=own)
    assert set(seen) == {(torch.uint8, (4, 16, 16, 3))}


def test_the_command_trains_and_the_preset_gives_way_to_options(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs: list[TrainConfig] = []
    monkeypatch.setattr(train_module, "train", configs.append)
    arguments = ["train", "--shards", str(shards), "--out", str(tmp_path / "out"), "--preset", "notebook"]
    for more in ([], ["--lr", "0.01"]):
        assert CliRunner().invoke(main, arguments + more).exit_code == 0
    assert [(c.epochs, c.batch_size, c.lr, c.grad_clip) for c in configs] == [(5, 4, 1e-4, 1.0), (5, 4, 0.01, 1.0)]


def test_the_help_shows_the_defaults_of_the_config() -> None:
    parameters = {parameter.name: parameter.default for parameter in main.commands["train"].params}
    unset = ("cache_dir", "cache_gb", "val_shards", "marks", "weights", "resume")
    of_other_fields = ("preset", "config_path", "settings", "model_size", "backbone")
    shown = {name for name in parameters if name not in (*unset, *of_other_fields)}
    defaults = TrainConfig(shards=Path("shards/Train"))
    assert {name: str(parameters[name]) for name in shown} == {name: str(getattr(defaults, name)) for name in shown}


TRAIN_ON_RANKS = """
import json, os, sys
from pathlib import Path
from stage1.cli.main import main
from stage1.training.log import RunLog
losses = []
RunLog.add_step = lambda self, step, *, loss, lr: losses.append(loss)
try:
    main(sys.argv[2:])
finally:
    if os.environ.get("RANK") == "0":
        Path(sys.argv[1]).write_text(json.dumps(losses))
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_one_two_and_four_ranks_have_the_same_loss_trace(tmp_path: Path) -> None:
    """A hundred steps with dropout and augmentation on, within 1e-4; the last global batch of an epoch is uneven."""
    clips, labels = moving_clips(13, shape=(4, 16, 16))
    shards = write_shards(tmp_path / "Train", clips, labels)
    val_clips, val_labels = moving_clips(7, shape=(4, 16, 16), seed=1)
    val_shards = write_shards(tmp_path / "Validation", val_clips, val_labels, prefix="val-")
    script = tmp_path / "run.py"
    script.write_text(TRAIN_ON_RANKS)
    options = ["--shards", str(shards), "--val-shards", str(val_shards), "--epochs", "50", "--checkpoint-minutes", "0"]
    options += [*("--set", "model.channels=[8,16]", "--set", "model.temporal_stages=[1]"), "--ema", "0.9"]
    traces, histories = [], []
    for world_size in (1, 2, 4):
        out, trace = tmp_path / f"out{world_size}", tmp_path / f"trace{world_size}.json"
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size)]
        arguments = [
            str(script),
            str(trace),
            "train",
            *options,
            "--out",
            str(out),
            "--batch-size",
            str(8 // world_size),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*launch, *arguments], check=True, timeout=200, env=environment, capture_output=True)
        for shown in (b"Motion features: 13/13 clips", b"Epoch 1/50: 2/2 steps"):  # by one rank
            assert done.stderr.count(shown) == 1
        traces.append(json.loads(trace.read_text()))
        histories.append(load_checkpoint(out / LAST_NAME).run_state["history"])
    assert [len(trace) for trace in traces] == [100, 100, 100]
    assert max(traces[0]) > 1.5 * min(traces[0])  # something was learnt
    for trace, history in zip(traces[1:], histories[1:], strict=True):
        assert trace == pytest.approx(traces[0], rel=1e-4)
        for name in ("loss", "accuracy", "val_loss", "val_accuracy", "val_auc"):
            assert [row[name] for row in history] == pytest.approx([row[name] for row in histories[0]], rel=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals of this kind")
def test_two_ranks_stop_at_the_same_step_and_one_resumes(tmp_path: Path, shards: Path) -> None:
    """SIGTERM to torchrun, in mid-epoch; then one process with twice the batch ends as if it had done all."""
    options = ["--shards", str(shards), "--epochs", "8", "--val-fraction", "0.2"]
    options += ["--set", "model.channels=[8]", "--set", "model.temporal_stages=[]"]
    script = tmp_path / "run.py"
    script.write_text(SLOW_RUN)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    command = [*launch, "train", *options, "--out", str(tmp_path / "cut"), "--batch-size", "3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    lines = []
    while "STEP 6" not in "".join(lines[-1:]):  # of either rank, which may write into one line
        lines.append(process.stdout.readline())
        assert process.poll() is None, lines
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert errors.count("stopped by SIGTERM after") == 2
    stopped = load_checkpoint(tmp_path / "cut" / LAST_NAME)
    assert 6 <= stopped.step < 8 * 4
    assert run_command(*options, "--out", str(tmp_path / "cut"), "--batch-size", "6", "--resume").exit_code == 0
    assert run_command(*options, "--out", str(tmp_path / "whole"), "--batch-size", "6").exit_code == 0
    assert losses(tmp_path / "cut" / LAST_NAME) == pytest.approx(losses(tmp_path / "whole" / LAST_NAME), rel=1e-4)
