"""Failed tasks: one clean line about the video, or the end of a build with incompatible libraries."""

from __future__ import annotations

import csv
import importlib
import os
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from builds import SameProcess, digests
from tiny_videos import make_tiny_videos
from vidshard.building import failures, worker
from vidshard.building import run as builder
from vidshard.building.worker import ProbeJob
from vidshard.cli.main import main
from vidshard.execution.base import ExecutorConfig, Task, TaskResult, make_executor
from vidshard.planning.video_metadata import VideoFailure, VideoMetadata
from vidshard.shards import manifest
from vidshard.video import decoders

VIDEOS = {"Abuse/a.mp4": 12, "Abuse/b.mp4": 12, "NormalVideos/n.mp4": 8}


class CatchAll(SameProcess):
    """As `Supervisor` in this process: every exception of a task is handed over with its traceback."""

    def run(self, function: Callable[[Any], Any], tasks: Iterable[Task]) -> Iterator[TaskResult]:
        for task in tasks:
            try:
                yield TaskResult(task=task, value=function(task.argument))
            except Exception as error:
                yield TaskResult(task=task, error=error, error_trace=traceback.format_exc())


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("vidshard.execution.local.Supervisor", CatchAll)
    return make_tiny_videos(tmp_path / "source", VIDEOS)


def build(source: Path, out: Path, *more: str) -> Result:
    options = ["--workers", "1", "--frame-size", "16", "--clip-len", "4"]
    return CliRunner().invoke(main, ["build", str(source), "--out", str(out), *options, *more])


def spoil_probe(monkeypatch: pytest.MonkeyPatch, name: str, spoilt: Callable[[Path], Any]) -> None:
    probe = worker.probe_video

    def probe_video(job: ProbeJob) -> VideoMetadata | VideoFailure:
        path = Path(str(job.video_path))
        if path.name != name:
            return probe(job)
        value: VideoFailure = spoilt(path)
        return value

    monkeypatch.setattr(worker, "probe_video", probe_video)


def test_messages_are_clean_and_say_what_to_do(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reject(path: Path) -> VideoFailure:
        text = f"\x1b[31mcannot read {path} or /abs/path/file.mp4\x1b[0m\r\nin '/my dir/reader.cc'"
        return VideoFailure(reason="damaged", message=text)

    spoil_probe(monkeypatch, "b.mp4", reject)
    out = tmp_path / "out"
    assert build(source, out).exit_code == 2
    with open(out / "failures.csv", encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    expected = f"cannot read b.mp4 or b.mp4 in reader.cc; {failures.ADVICE['damaged']}"
    assert row == {"path": "Abuse/b.mp4", "outcome": "failed", "reason": "damaged", "message": expected}
    assert manifest.read_manifest(out).failures[0].message == expected
    assert build(source, out, "--retry-failed").exit_code == 2
    assert manifest.read_manifest(out).failures[0].message == expected  # the advice is there once


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("C:\\Users\\me\\x.cc:12: failed at 30000/1001", "x.cc:12: failed at 30000/1001"),
        ("/proc/self/fd/7: no and/or yes", "a.mp4: no and/or yes"),
        ("\x1b]0;title\x07it ends\tearly.", "it ends early"),
        ("see https://host/page", "see https://host/page"),
    ],
)
def test_paths_and_escape_sequences_are_removed_from_messages(text: str, expected: str) -> None:
    advice = failures.ADVICE["no_frames"]
    assert failures.failure_message("no_frames", text, path="Abuse/a.mp4") == f"{expected}; {advice}"
    with_command = f"{text} (run `git lfs pull`)"
    assert advice not in failures.failure_message("no_frames", with_command, path="Abuse/a.mp4")


av: Any = importlib.import_module("av")


def of_another_version(path: Path) -> None:
    av.open(str(path), no_such_option=True)


def of_none_such(path: Path) -> None:
    from av.stream import NoSuchName  # type: ignore[attr-defined]  # noqa: F401


def of_a_renamed_function(path: Path) -> None:
    av.no_such_function()


@pytest.mark.parametrize(
    ("call", "kind"),
    [(of_another_version, "TypeError"), (of_none_such, "ImportError"), (of_a_renamed_function, "AttributeError")],
)
def test_a_library_that_does_not_fit_stops_the_build(
    call: Callable[[Path], None], kind: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_probe(monkeypatch, "b.mp4", call)
    versions = decoders.decoder_versions()
    out = tmp_path / "out"
    result = build(source, out)
    assert result.exit_code == 1
    assert f"error: PyAV {versions['pyav']} does not work with this vidshard: {kind}: " in result.stderr
    assert "at Abuse/b.mp4; install a compatible version: pip install 'av" in result.stderr
    assert not (out / "failures.csv").exists()
    monkeypatch.undo()
    monkeypatch.setattr("vidshard.execution.local.Supervisor", CatchAll)
    assert build(source, out).exit_code == 0  # nothing is left of it
    assert manifest.read_manifest(out).videos["ok"] == 3


@pytest.mark.parametrize("error", [AttributeError("'NoneType' object has no attribute 'width'"), KeyError("x")])
def test_an_error_that_a_video_may_cause_is_that_of_the_video(
    error: Exception, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise error

    spoil_probe(monkeypatch, "b.mp4", fail)
    assert build(source, tmp_path / "out").exit_code == 2
    (failure,) = manifest.read_manifest(tmp_path / "out").failures
    assert (failure.path, failure.reason) == ("Abuse/b.mp4", "unexpected_error")


def test_settings_of_libraries_do_not_reach_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_tiny_videos(tmp_path / "source", VIDEOS)
    assert build(source, tmp_path / "plain", "--decoder", "opencv").exit_code == 0
    names = ["OPENCV_FFMPEG_CAPTURE_OPTIONS", "AV_LOG_FORCE_COLOR", "DECORD_EOF_RETRY_MAX", "OPENCV_LOG_LEVEL"]
    for name in names:
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv(names[0], "f;nonsense|skip_frame;nokey")  # OpenCV opens nothing with that
    assert build(source, tmp_path / "set", "--decoder", "opencv").exit_code == 0
    assert digests(tmp_path / "set") == digests(tmp_path / "plain")

    monkeypatch.setenv("HARMLESS", "1")
    config = ExecutorConfig(workers=1, unset_prefixes=builder.LIBRARY_VARIABLES)
    with make_executor("local", config) as executor:
        tasks = [Task(argument=name, timeout_seconds=30) for name in [*names, "HARMLESS"]]
        values = {result.task.argument: result.value for result in executor.run(os.getenv, tasks)}
    assert values == {**dict.fromkeys(names), "HARMLESS": "1"}
