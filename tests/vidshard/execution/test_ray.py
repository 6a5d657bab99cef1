"""Builds on a Ray cluster: the same bytes as a local build, even if workers are lost."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from builds import OPTIONS, digests, run
from tiny_videos import make_broken_video, make_tiny_videos
from vidshard.util.lock import process_start

ray = pytest.importorskip("ray", reason="ray is not installed: pip install '.[ray]'")
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the tests look for processes in /proc")

WORKERS = ("ray::_Slot", "ray::probe_video", "ray::run_job")  # names of an actor: of itself, or of its task
HEALTH = {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "2"}
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # of a cluster of several processes
COMMAND = [sys.executable, "-c", "from vidshard.cli.main import main; main()", "build"]


def descendants(pid: int) -> dict[int, tuple[str | None, str]]:
    """All processes below `pid`: pid → when it started, and its name."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    below, found = {pid}, {}
    while more := {child for child, parent in parents.items() if parent in below and child not in below}:
        below |= more
        found |= {child: (process_start(child), names.get(child, "")) for child in more}
    # A process that has just been forked, and has not run its own program yet, has the name of its parent.
    return {
        child: (started, name if name != names.get(parents[child]) else "") for child, (started, name) in found.items()
    }


def wait_for(condition: Callable[[], object], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return bool(condition())


def environment(tmp_path: Path) -> dict[str, str]:
    return {**{k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}, "HOME": str(tmp_path)}


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_a_killed_worker_changes_nothing_and_no_process_remains(tmp_path: Path) -> None:
    videos = {f"{name}/{i:02d}.mp4": 40 for name in ("Abuse", "NormalVideos") for i in range(20)}
    source = make_tiny_videos(tmp_path / "source", videos)
    make_broken_video(source / "Abuse" / "broken.mp4")
    assert run(source, tmp_path / "expected").exit_code == 2
    arguments = [str(source), "--out", str(tmp_path / "out"), *OPTIONS, "--executor", "ray", "--workers", "2"]
    seen: dict[int, str | None] = {}  # every process below the build: when it started
    workers: set[int] = set()
    with subprocess.Popen(
        [*COMMAND, *arguments], env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as build:
        parts = tmp_path / "out" / ".work" / "parts"

        def busy_workers() -> list[int]:
            now = descendants(build.pid)
            seen.update({pid: started for pid, (started, _) in now.items()})
            slots = [pid for pid, (_, name) in now.items() if name.startswith(WORKERS)]
            workers.update(slots)
            return slots if len(slots) == 2 and parts.is_dir() and any(parts.iterdir()) else []

        assert wait_for(busy_workers, 120), build.communicate()
        os.kill(busy_workers()[0], signal.SIGKILL)
        while build.poll() is None:
            busy_workers()
            time.sleep(0.1)
        output, errors = build.communicate()
    assert build.returncode == 2, output + errors
    assert "a Ray worker was lost" in errors
    assert "1 failed" in output
    assert digests(tmp_path / "out") == digests(tmp_path / "expected")
    assert len(workers) == 3, "the lost one was replaced"

    def left() -> list[int]:
        return [pid for pid, started in seen.items() if started is not None and process_start(pid) == started]

    assert wait_for(lambda: not left(), 15), left()


def test_without_ray_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    source = make_tiny_videos(tmp_path / "source", {"Abuse/a.mp4": 8, "NormalVideos/n.mp4": 8})
    result = run(source, tmp_path / "out", "--executor", "ray")
    assert result.exit_code == 1
    assert "pip install 'vidshard[ray]'" in result.stderr


@pytest.fixture
def ray_nodes() -> Iterator[Callable[..., int]]:
    """Start the processes of a Ray cluster: `ray_nodes("--head", …)` returns the process ID."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> int:
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats"]
        options = ["--object-store-memory", str(100 << 20), *arguments]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        started.append(subprocess.Popen([*command, *options], env={**os.environ, **TOKEN, **HEALTH}, **silent))
        return started[-1].pid

    yield start
    for process in reversed(started):
        below = descendants(process.pid)
        process.kill()
        process.wait()
        for pid, (since, _) in below.items():
            if since is not None and process_start(pid) == since:
                os.kill(pid, signal.SIGKILL)


def accepts(address: str) -> bool:
    """Return True if a server listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    with socket.socket() as client:
        return client.connect_ex((host, int(port))) == 0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_a_node_is_lost_in_mid_decode_and_one_joins_late(tmp_path: Path, ray_nodes: Callable[..., int]) -> None:
    source = make_tiny_videos(
        tmp_path / "source", {f"{c}/{i}.mp4": 40 for c in ("Abuse", "NormalVideos") for i in range(8)}
    )
    assert run(source, tmp_path / "expected").exit_code == 0
    port = free_port()
    address = f"{ray.util.get_node_ip_address()}:{port}"
    ray_nodes("--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false")
    assert wait_for(lambda: accepts(address), 60)
    node = [f"--address={address}", "--num-cpus=1", "--memory", str(2 << 30)]
    first = ray_nodes(*node, "--node-name=first")

    def workers(node: int) -> list[int]:
        """Return the processes of the actors of a node, and of their children, once a task is there."""
        now = descendants(node)
        return [pid for pid, (_, name) in now.items() if name.startswith(WORKERS)]

    with subprocess.Popen(
        [*COMMAND, str(source), "--out", str(tmp_path / "out"), *OPTIONS, "--executor", "ray"],
        env={**environment(tmp_path), **TOKEN, "RAY_ADDRESS": address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as build:
        parts = tmp_path / "out" / ".work" / "parts"
        assert wait_for(lambda: (parts.is_dir() and any(parts.iterdir())) or build.poll() is not None, 120)
        assert build.poll() is None, build.communicate()
        stopped = [pid for pid, (_, name) in descendants(first).items() if "ray::" in name or "spawn" in name]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)  # in mid-decode, until its node is lost
        done = len(list(parts.iterdir()))
        second = ray_nodes(*node, "--node-name=second")
        assert wait_for(lambda: workers(second), 60), "the node that joined late got no worker"
        assert wait_for(lambda: len(list(parts.iterdir())) > done, 60), "it decoded nothing"
        (raylet,) = [pid for pid, (_, name) in descendants(first).items() if "raylet/raylet" in name.split(" ")[0]]
        os.kill(raylet, signal.SIGKILL)
        for pid in stopped:
            os.kill(pid, signal.SIGKILL)
        output, errors = build.communicate(timeout=150)
    assert build.returncode == 0, output + errors
    (line,) = [line for line in errors.splitlines() if " was lost" in line]
    assert "node first was lost, with 1 worker" in line
    assert digests(tmp_path / "out") == digests(tmp_path / "expected")
