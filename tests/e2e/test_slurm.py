"""The scripts of tools/slurm on a real SLURM: the whole chain, a killed task, and requeued training."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tiny_videos import make_broken_video, make_tiny_videos

SLURM = Path(__file__).resolve().parents[2] / "tools" / "slurm"
LACKING = [name for name in ("munged", "slurmctld", "slurmd") if shutil.which(name, path="/usr/sbin:/usr/bin") is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(LACKING), reason=f"no {', '.join(LACKING)} here: install slurm-wlm and munge"),
    pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="SLURM's daemons need root"),
]
BUILD_OPTIONS = "--sampling dense --clip-len 8 --frame-size 64 --shard-mb 1"  # 10 clips a shard
SETTINGS = """
VIDEOS={folder}/videos SHARDS={folder}/shards RUN={folder}/run OUTPUT={folder}/output LOGS={folder}/logs
enter() {{ export PATH={programs}:$PATH OMP_NUM_THREADS=1; }}
CONTAINER=({folder}/container.sh --exec)
SBATCH_OPTIONS=() FAILED_VIDEOS=go-on
BUILD_TASKS=4 BUILD_AT_ONCE=2 FINALIZE_MEMORY=100M FINALIZE_TIME=10
BUILD_CPUS=1 BUILD_MEMORY=100M BUILD_TIME=10 BUILD_OPTIONS=({build_options})
LAUNCHER={launcher}
TRAIN_NODES=2 TRAIN_PROCESSES=1 TRAIN_CPUS=1 TRAIN_MEMORY=100M TRAIN_TIME=10 TRAIN_GPUS=()
TRAIN_OPTIONS=(--epochs 6 --batch-size 4 --device cpu)
TRAIN_SHARDS=$SHARDS/Train VAL_SHARDS=
INFER_NODES=2 INFER_PROCESSES=1 INFER_CPUS=1 INFER_MEMORY=100M INFER_TIME=10 INFER_GPUS=()
INFER_OPTIONS=(--device cpu) INFER_SHARDS=$SHARDS/Test
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos, and the result of a plain build of them."""
    folder = tmp_path_factory.mktemp("slurm")
    for split, count in (("Train", 10), ("Test", 3)):
        names = {f"{c}/{split}{c}{n}.mp4": 40 + n for c in ("Abuse", "NormalVideos") for n in range(count)}
        make_tiny_videos(folder / "videos" / split, names)
    make_broken_video(folder / "videos" / "Train" / "NormalVideos" / "broken.mp4")
    container = folder / "container.sh"  # in place of a container: notes what it runs, and runs it
    container.write_text(f'#!/bin/bash\nshift\necho "$1 $2" >> {folder}/contained.txt\nexec "$@"\n')
    container.chmod(0o755)
    plain = [*vidshard(), "build", f"{folder}/videos", "--out", f"{folder}/plain", *BUILD_OPTIONS.split()]
    assert subprocess.run(plain, check=False).returncode == 2
    return folder


def vidshard() -> list[str]:
    return [sys.executable, "-c", "from vidshard.cli.main import main; main()"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Start SLURM with two nodes; yield the environment variables that point to it."""
    state = tmp_path_factory.mktemp("cluster")
    command = [sys.executable, str(SLURM / "local_cluster.py")]
    try:
        started = subprocess.run([*command, "start", str(state)], capture_output=True, text=True, check=False)
        assert started.returncode == 0, started.stderr
        yield {**os.environ, "SLURM_CONF": started.stdout.strip().removeprefix("export SLURM_CONF=")}
    finally:
        subprocess.run([*command, "stop", str(state)], check=True)
        assert not list(state.glob("*.pid"))


def submit(cluster: dict[str, str], folder: Path, *arguments: str, **changes: str) -> dict[str, str]:
    """Submit the chain. Returns the name of each job → its number. `changes`: of the settings."""
    launcher = changes.pop("LAUNCHER", "srun")
    settings = SETTINGS.format(
        folder=folder, programs=Path(sys.executable).parent, build_options=BUILD_OPTIONS, launcher=launcher
    )
    path = folder / "settings.sh"
    path.write_text(settings + "".join(f"{name}={value}\n" for name, value in changes.items()))
    done = subprocess.run(
        [str(SLURM / "submit.sh"), str(path), *arguments], env=cluster, capture_output=True, text=True, check=True
    )
    return dict(line.split() for line in done.stdout.splitlines())


def states(cluster: dict[str, str], job: str) -> list[str]:
    """Return the states of a job, or of all tasks of an array."""
    shown = subprocess.run(["scontrol", "show", "job", job], env=cluster, capture_output=True, text=True, check=True)
    return re.findall(r"JobState=(\w+)", shown.stdout)


def wait(until: Callable[[], bool], *, seconds: float = 240, logs: Path | None = None) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        if time.monotonic() > deadline:
            told = {path.name: path.read_text()[-2000:] for path in sorted(logs.glob("*"))} if logs else {}
            pytest.fail(f"not within {seconds} s; {json.dumps(told, indent=1)}")
        time.sleep(0.1)


def wait_for_end(cluster: dict[str, str], jobs: dict[str, str], logs: Path) -> dict[str, list[str]]:
    running = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED"}
    wait(lambda: not any(running & set(states(cluster, job)) for job in jobs.values()), logs=logs)
    return {name: states(cluster, job) for name, job in jobs.items()}


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and ".log/" not in str(path)]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def weights(run: Path) -> dict[str, torch.Tensor]:
    saved: dict[str, torch.Tensor] = torch.load(run / "last.pt", weights_only=True)["model_state_dict"]
    return saved


def test_more_tasks_than_the_cluster_allows_are_refused_with_what_to_set(cluster: dict[str, str], folder: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        submit(cluster, folder, BUILD_TASKS="100000")
    assert "BUILD_TASKS is 100000, but this cluster's MaxArraySize allows 1001" in refused.value.stderr
    queue = subprocess.run(["squeue", "-h"], env=cluster, capture_output=True, text=True, check=True)
    assert queue.stdout == ""


def test_a_killed_task_is_submitted_again_and_the_chain_goes_through(cluster: dict[str, str], folder: Path) -> None:
    logs = folder / "logs"
    jobs = submit(cluster, folder)
    lock = folder / "shards" / "Train" / ".work" / "tasks" / "task-00002.lock"
    wait(lambda: lock.exists() and lock.read_text().endswith("}"), logs=logs)
    os.kill(json.loads(lock.read_text())["pid"], signal.SIGKILL)
    ended = wait_for_end(cluster, jobs, logs)
    assert sorted(ended["build"]) == ["COMPLETED"] * 3 + ["FAILED"]
    assert (ended["finalize"], ended["train"], ended["infer"]) == (["FAILED"], ["CANCELLED"], ["CANCELLED"])
    told = (logs / f"finalize-{jobs['finalize']}.out").read_text()
    assert "shards are missing; submit these tasks again: --array=2 " in told
    assert not list(folder.glob("shards/*/manifest.json"))

    jobs = submit(cluster, folder, "--array=2")
    ended = wait_for_end(cluster, jobs, logs)
    assert ended == {name: ["COMPLETED"] for name in ("build", "finalize", "train", "infer")}
    assert "going on without them" in (logs / f"finalize-{jobs['finalize']}.out").read_text()
    assert digests(folder / "shards") == digests(folder / "plain")
    assert len((folder / "output" / "predictions.csv").read_text().splitlines()) > 30
    contained = {*(folder / "contained.txt").read_text().splitlines()}
    assert contained == {"vidshard build", "vidshard finalize", "stage1 train", "stage1 infer"}


def test_a_training_that_is_queued_again_ends_with_the_same_weights(cluster: dict[str, str], folder: Path) -> None:
    logs = folder / "logs"
    again = folder / "again"
    jobs = submit(cluster, folder, "--from=train", LAUNCHER="torchrun", RUN=str(again), OUTPUT=f"{folder}/output2")
    train = jobs["train"]
    log = logs / f"train-{train}.out"
    wait(lambda: log.exists() and "Epoch 2 |" in log.read_text(), logs=logs)
    subprocess.run(["scancel", "--batch", "--signal=USR1", train], env=cluster, check=True)
    wait(lambda: "requeued" in log.read_text() and states(cluster, train) == ["PENDING"], logs=logs)
    # Not in two minutes, but not in this second: until it is over, SLURM refuses the job ("credential revoked").
    subprocess.run(["scontrol", "update", f"JobId={train}", "StartTime=now+3"], env=cluster, check=True)
    ended = wait_for_end(cluster, jobs, logs)
    assert ended == {"train": ["COMPLETED"], "infer": ["COMPLETED"]}, log.read_text()[-3000:]
    assert "stopped by SIGTERM after" in log.read_text()
    assert "Resumed" in log.read_text()
    assert "torchrun --nnodes=2" in (folder / "contained.txt").read_text()
    before, after = weights(folder / "run"), weights(again)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert digests(folder / "output")["predictions.csv"] == digests(folder / "output2")["predictions.csv"]
