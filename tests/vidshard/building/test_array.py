"""Tasks on one folder, in any order, killed and repeated: `finalize` produces the set of a plain build or explains
why not."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tiny_videos import damage_pictures, make_broken_video, make_tiny_video, make_tiny_videos
from vidshard import SamplingConfig
from vidshard.building import array, run
from vidshard.building.finish import CompleteBuild
from vidshard.building.run import BuildConfig
from vidshard.cli import main
from vidshard.execution.array_task import find_task
from vidshard.planning import build_state, settings
from vidshard.util import lock as folder_lock
from vidshard.util.errors import UserError

VIDEOS = {f"{name}/{name}{n}.mp4": count for name in ("Abuse", "NormalVideos") for n, count in enumerate((70, 33, 5))}
OPTIONS: dict[str, Any] = {
    "sampling": SamplingConfig(mode="dense", clip_len=8, stride=4),
    "frame_size": 64,
    "shard_mb": 1,  # 10 clips
    "workers": 1,
}
AS_TEXT = ["--sampling=dense", "--clip-len=8", "--stride=4", "--frame-size=64", "--shard-mb=1", "--workers=1"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_tiny_videos(tmp_path_factory.mktemp("source"), VIDEOS)
    make_broken_video(root / "NormalVideos" / "broken.mp4")
    make_tiny_video(root / "Abuse" / "damaged.mp4", 90)  # of 21 clips: in at least three shards
    damage_pictures(root / "Abuse" / "damaged.mp4")
    return root


@pytest.fixture(scope="module")
def plain(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "Train"
    run.build(BuildConfig(source=source, out=out, **OPTIONS))
    return out


@pytest.fixture(scope="module")
def parts(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output of three tasks, before `finalize`."""
    out = tmp_path_factory.mktemp("parts") / "Train"
    for index in (2, 0, 1):
        run_task(source, out, index)
    return out


def run_task(source: Path, out: Path, index: int, count: int = 3, **options: Any) -> array.ArrayTaskReport:
    task = find_task(index, count, {})
    assert task is not None
    config = BuildConfig(source=source, out=out, **{**OPTIONS, **options})
    (report,) = array.build_task(config, task)
    return report


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def copied(parts: Path, tmp_path: Path, without: Iterable[str] = ()) -> Path:
    out = shutil.copytree(parts, tmp_path / "Train")
    for name in without:
        (out / name).unlink()
    return out


def test_the_parts_become_the_set_of_a_plain_build(parts: Path, plain: Path, tmp_path: Path) -> None:
    out = copied(parts, tmp_path)
    report = array.finalize(out)
    assert not report.is_complete
    assert report.videos == {"found": 8, "ok": 6, "failed": 2, "skipped": 0}
    assert digests(out) == digests(plain)
    assert array.finalize(out).sets[0].already_finished


def test_a_part_lists_its_failures_and_is_not_a_set(source: Path, plain: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    out = tmp_path / "Train"
    for rank in range(2):
        engine = {"RANK": str(rank), "WORLD_SIZE": "2"}
        shown = runner.invoke(main.main, ["build", str(source), "--out", str(out), *AS_TEXT], env=engine)
        assert shown.exit_code == 0, shown.output
        assert f"RANK={rank} WORLD_SIZE=2: building only task {rank} (of 0 to 1)" in shown.output
        assert "failed: Abuse/damaged.mp4: damaged" in shown.output or rank
        assert not (out / "manifest.json").exists()
    shown = runner.invoke(main.main, ["finalize", str(out)])
    assert shown.exit_code == 2
    assert "videos: 8 found, 6 ok, 2 failed" in shown.output
    assert digests(out) == digests(plain)


def test_tasks_run_at_once_and_a_killed_one_is_repeated(source: Path, plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "Train"
    vidshard = [sys.executable, "-c", "from vidshard.cli.main import main; main()"]
    command = [*vidshard, "build", str(source), "--out", str(out), *AS_TEXT]

    def start(index: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*command, "--task-index", str(index), "--task-count", "3"], stdout=subprocess.DEVNULL)

    tasks = [start(index) for index in range(3)]
    while not (out / ".work" / "tasks" / "task-00001.lock").exists() and tasks[1].poll() is None:
        time.sleep(0.01)
    tasks[1].send_signal(signal.SIGKILL)
    assert [task.wait() for task in tasks] == [0, -signal.SIGKILL, 0]
    with pytest.raises(UserError, match=r"submit these tasks again: --array=1 \(elsewhere `task_index` 1 `task_count`"):
        array.finalize(out)
    assert start(1).wait() == 0
    array.finalize(out)
    assert digests(out) == digests(plain)


def test_a_gap_names_the_tasks_as_the_array_numbers_them(parts: Path, tmp_path: Path) -> None:
    out = copied(parts, tmp_path, without=["shard-000000.tar", ".work/shard-000006.json"])
    (out / ".work" / "tasks" / "array.json").write_text('{"count": 3, "first": 1, "step": 1}')
    with pytest.raises(UserError, match=r"2 of \d+ shards are missing; submit these tasks again: --array=1,3 "):
        array.finalize(out)
    assert not (out / "manifest.json").exists()


def test_of_tasks_that_never_read_the_packets_all_are_named(parts: Path, tmp_path: Path) -> None:
    out = copied(parts, tmp_path, without=[".work/probes.json"])
    with pytest.raises(UserError, match="again: --array=0-2 "):
        array.finalize(out)


def test_a_shard_made_for_other_videos_is_missing_and_made_again(
    source: Path, parts: Path, plain: Path, tmp_path: Path
) -> None:
    out = copied(parts, tmp_path)
    record = out / ".work" / "shard-000000.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "made_for": "another"}))
    with pytest.raises(UserError, match="again: --array=0 "):
        array.finalize(out)
    run_task(source, out, 0)
    array.finalize(out)
    assert digests(out) == digests(plain)


def test_other_settings_and_other_packages_are_refused(
    source: Path, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = copied(parts, tmp_path)
    with pytest.raises(UserError, match=r"unfinished build with different settings .*codec raw, now zstd"):
        run_task(source, out, 1, codec="zstd")
    monkeypatch.setattr(settings, "package_versions", lambda codec: {"numpy": "0"})
    with pytest.raises(UserError, match=r"unfinished build with different settings .*numpy .*, now 0"):
        run_task(source, out, 1)


def test_videos_that_changed_meanwhile_are_refused(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    videos = shutil.copytree(source, tmp_path / "videos")
    out = tmp_path / "Train"
    for index in range(2):
        run_task(videos, out, index, count=2)
    os.utime(videos / "Abuse" / "Abuse1.mp4", (1, 1))
    with pytest.raises(UserError, match=r"1 changed: Abuse/Abuse1.mp4"):
        array.finalize(out)
    shutil.move(videos, tmp_path / "gone")
    array.finalize(out)
    assert any("not checked whether its videos have changed" in line for line in caplog.messages)


def test_a_plain_build_resumes_after_tasks(source: Path, parts: Path, plain: Path, tmp_path: Path) -> None:
    out = copied(parts, tmp_path, without=[".work/shard-000004.json"])
    (report,) = run.build(BuildConfig(source=source, out=out, **OPTIONS)).sets
    assert 0 < report.decoded_clips < 20
    assert digests(out) == digests(plain)


def test_a_finished_set_and_more_tasks_than_shards_leave_nothing_to_do(
    source: Path, plain: Path, tmp_path: Path
) -> None:
    out = copied(plain, tmp_path)
    assert run_task(source, out, 1).already_finished
    small = make_tiny_videos(tmp_path / "small", {"Abuse/a.mp4": 16, "NormalVideos/n.mp4": 16})
    report = run_task(small, tmp_path / "Small", 2)
    assert (report.num_shards, len(report.shards), report.num_clips) == (1, 0, 0)


# --- locks --------------------------------------------------------------------------------------------------------


def test_a_plain_build_and_tasks_exclude_each_other(source: Path, parts: Path, tmp_path: Path) -> None:
    out = copied(parts, tmp_path)
    state = build_state.BuildState(out)
    with (
        folder_lock.hold_lock(state.task_lock_path(1), what="task 1"),
        pytest.raises(UserError, match=r"by array tasks that are still running: task-00001 \(process \d+ on "),
    ):
        run.build(BuildConfig(source=source, out=out, **OPTIONS))
    with (
        folder_lock.hold_lock(state.task_lock_path(1), what="task 1"),
        pytest.raises(UserError, match="array tasks that are still running: task-00001"),
    ):
        array.finalize(out)
    with (
        folder_lock.hold_lock(state.lock_path, what="all"),
        pytest.raises(UserError, match="is being built as a whole by"),
    ):
        run_task(source, out, 1)
    with (
        folder_lock.hold_lock(state.task_lock_path(1), what="task 1"),
        pytest.raises(UserError, match=r"task 1 of .* is being built by process"),
    ):
        run_task(source, out, 1)


def test_tasks_of_another_array_are_waited_for(source: Path, parts: Path, tmp_path: Path) -> None:
    out = copied(parts, tmp_path)
    state = build_state.BuildState(out)
    with (
        folder_lock.hold_lock(state.task_lock_path(2), what="task 2"),
        pytest.raises(UserError, match="by an array of 3 tasks, 1 of which are running; this task belongs to"),
    ):
        run_task(source, out, 0, count=2)


def lock_elsewhere(path: Path, **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"pid": 1, "host": "another", "started": "1", **more}))


@pytest.mark.slow
def test_a_task_elsewhere_that_shows_no_sign_of_life_is_dead(
    source: Path, parts: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = copied(parts, tmp_path, without=[".work/shard-000004.json", ".work/probes.json", ".work/probes/000001.json"])
    state = build_state.BuildState(out)
    monkeypatch.setattr(folder_lock, "WATCHED_STALE_SECONDS", 0.3)
    for path in (state.task_lock_path(1), state.start_lock_path, state.probe_batch_path(1).with_suffix(".lock")):
        lock_elsewhere(path)
    run_task(source, out, 1)
    lock_elsewhere(state.task_lock_path(2))
    array.finalize(out)
    assert digests(out) == digests(plain)


def test_a_task_elsewhere_that_refreshes_its_lock_is_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lock = tmp_path / "task-00001.lock"
    lock_elsewhere(lock)
    monkeypatch.setattr(folder_lock.time, "sleep", lambda _: os.utime(lock, (now := time.time() + 5, now)))
    with (
        caplog.at_level("INFO", logger="vidshard"),
        pytest.raises(UserError, match="is being built by process 1 on another"),
        folder_lock.hold_task(lock, tmp_path / "lock", what="task 1"),
    ):
        pass
    assert len([line for line in caplog.messages if line.startswith("waiting up to")]) == 1


def test_a_job_that_slurm_queued_again_takes_its_lock_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "lock"
    lock_elsewhere(lock, job="77", restart=0)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    with pytest.raises(UserError, match="is being built by"), folder_lock.hold_lock(lock, what="out"):
        pass
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with folder_lock.hold_lock(lock, what="out"):
        assert json.loads(lock.read_text())["restart"] == 1


def test_tasks_cannot_extend_a_set(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`extend` is not possible in array tasks"):
        run_task(source, tmp_path / "Train", 0, extend=True)


def test_finalize_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        array.finalize(tmp_path / "none")
    with pytest.raises(UserError, match="contains no build"):
        array.finalize(tmp_path)


# ----- killed ------------------------------------------------------------


def finalize_killed_at(out: Path, step: int) -> bool:
    """Run `finalize` in a process that dies at its n-th change of a folder, as if killed; return True if it ended."""
    pid = os.fork()
    if pid == 0:
        left = step

        def counted(real: Callable[..., None], *args: Any, **kwargs: Any) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os._exit(9)
            real(*args, **kwargs)

        for name in ("replace", "unlink", "rmdir"):
            setattr(os, name, functools.partial(counted, getattr(os, name)))
        array.finalize(out)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_finalize_killed_at_any_step_ends_with_the_same_command(parts: Path, plain: Path, tmp_path: Path) -> None:
    for step in range(1, 1000):
        out = copied(parts, tmp_path / str(step))
        ended = finalize_killed_at(out, step)
        result = CliRunner().invoke(main.main, ["finalize", str(out)])
        assert result.exit_code == 2, (step, result.output)  # a video failed, as in a plain build
        assert digests(out) == digests(plain), step  # nothing else is left, either
        if ended:
            break
    assert step > 20


@pytest.mark.parametrize("call", [1, 2])  # looking for gaps, and holding the lock
def test_a_finalize_that_another_one_overtakes_finds_the_finished_set(
    parts: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    out = copied(parts, tmp_path / "set")
    real, calls = array._check_complete, 0  # noqa: SLF001 (the moment at which the other one comes)

    def overtaken(state: build_state.BuildState) -> CompleteBuild:
        nonlocal calls
        calls += 1
        if calls == call:
            monkeypatch.setattr(array, "_check_complete", real)
            state.lock_path.unlink(missing_ok=True)
            array.finalize(out)
        return real(state)

    monkeypatch.setattr(array, "_check_complete", overtaken)
    report = array.finalize(out)
    assert report.sets[0].already_finished
    assert digests(out) == digests(plain)
