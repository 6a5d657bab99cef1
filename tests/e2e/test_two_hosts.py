"""Two hosts, each a network namespace: inference and training on both, and one of them cut off."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from fake_shards import write_shards

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
COMMAND_SECONDS = 120.0
STAGE1 = [sys.executable, "-c", "from stage1.cli.main import main; main()"]
ADDRESSES = ("10.213.57.1", "10.213.57.2")
PORT = 29471


def ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True)


class Hosts:
    """Two network namespaces, joined by a cable."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def start(self, host: int, *command: str, log: Path) -> subprocess.Popen[bytes]:
        # As a cluster's name service would: which network interface leads to the others.
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": f"v-{self.names[host]}", "OMP_NUM_THREADS": "1"}
        with open(log, "wb") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.names[host], *command],
                env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def torchrun(self, host: int, *command: str, log: Path) -> subprocess.Popen[bytes]:
        """Start the agent of one host, which starts one process of `command`."""
        return self.start(
            host, sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1",
            "--rdzv-backend=c10d", f"--rdzv-endpoint={ADDRESSES[0]}:{PORT}", "--rdzv-id=run",
            f"--rdzv-conf=is_host={1 - host},read_timeout=5", f"--local-addr={ADDRESSES[host]}", "--no-python",
            *command, log=log,
        )  # fmt: skip

    def cut(self) -> None:
        """Drop every packet in both directions silently: each goes to a hardware address that does not exist."""
        for name, other in zip(self.names, reversed(ADDRESSES), strict=True):
            ip(
                "-n",
                name,
                "neigh",
                "replace",
                other,
                "lladdr",
                "02:00:00:00:00:99",
                "dev",
                f"v-{name}",
                "nud",
                "permanent",
            )


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if shutil.which("ip") is None:
        pytest.skip("no `ip` here: install iproute2")
    names = [f"vs{os.getpid()}{letter}" for letter in "ab"]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", f"v-{names[0]}", "netns", names[0], "type", "veth",
               "peer", "name", f"v-{names[1]}", "netns", names[1])  # fmt: skip
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", f"v-{name}")
            for device in ("lo", f"v-{name}"):
                ip("-n", name, "link", "set", device, "up")
        yield Hosts(names)
    finally:
        for name in names:
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", name)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = np.random.default_rng(0)
    labels = [0, 1] * 20
    clips = generator.integers(0, 256, (40, 8, 32, 32, 3), dtype=np.uint8)
    clips[1::2, :, 8:24, 8:24] //= 2
    return write_shards(tmp_path_factory.mktemp("shards") / "Train", clips, labels)


def train(shards: Path, out: Path, *, epochs: int, batch_size: int) -> list[str]:
    return [
        *STAGE1, "train", "--shards", str(shards), "--out", str(out), "--val-fraction", "0", "--device", "cpu",
        "--epochs", str(epochs), "--batch-size", str(batch_size), "--lr", "1e-3",
    ]  # fmt: skip


def infer(shards: Path, run: Path, out: Path) -> list[str]:
    checkpoint = str(run / "binary_stage1_with_attention.pt")
    return [*STAGE1, "infer", "--shards", str(shards), "--checkpoint", checkpoint, "--out", str(out), "--device", "cpu"]


def alone(command: list[str]) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr


def on_both(hosts: Hosts, command: list[str], logs: Path) -> None:
    paths = [logs / f"host{host}.log" for host in range(2)]
    agents = [hosts.torchrun(host, *command, log=paths[host]) for host in range(2)]
    try:
        codes = [agent.wait(COMMAND_SECONDS) for agent in agents]
    finally:
        end(agents)
    assert codes == [0, 0], "\n".join(path.read_text() for path in paths)


def end(agents: Sequence[subprocess.Popen[bytes]]) -> None:
    for agent in agents:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(agent.pid, signal.SIGKILL)
        agent.wait()


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_two_hosts_train_and_infer_as_one_process(hosts: Hosts, shards: Path, tmp_path: Path) -> None:
    alone(train(shards, tmp_path / "one", epochs=2, batch_size=8))
    on_both(hosts, train(shards, tmp_path / "two", epochs=2, batch_size=4), tmp_path)
    one, two = (torch.load(tmp_path / run / "last.pt", weights_only=True)["model_state_dict"] for run in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-4, rtol=0, msg=lambda text, name=name: f"{name}: {text}")

    alone(infer(shards, tmp_path / "one", tmp_path / "of-one"))
    on_both(hosts, infer(shards, tmp_path / "one", tmp_path / "of-two"), tmp_path)
    assert content(tmp_path / "of-one") == content(tmp_path / "of-two")


def test_when_a_host_is_cut_off_both_end_with_a_word_within_a_minute(
    hosts: Hosts, shards: Path, tmp_path: Path
) -> None:
    paths = [tmp_path / f"host{host}.log" for host in range(2)]
    command = train(shards, tmp_path / "run", epochs=10_000, batch_size=4)
    agents = [hosts.torchrun(host, *command, log=paths[host]) for host in range(2)]
    try:
        deadline = time.monotonic() + COMMAND_SECONDS
        while "Epoch 2 |" not in paths[0].read_text():
            assert time.monotonic() < deadline, paths[0].read_text()
            time.sleep(0.1)
        hosts.cut()
        start = time.monotonic()
        codes = [agent.wait(60 - (time.monotonic() - start)) for agent in agents]
    finally:
        end(agents)
    assert all(codes), codes
    assert "error: rank 1 stopped: no heartbeat for 30 s; is its host cut off" in paths[0].read_text()
    assert "error: rank 1 has not heard from rank 0, which coordinates the run, for 30 s" in paths[1].read_text()
