"""Ranks that agree, and a rank that fails: nobody is left waiting."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fake_shards import random_clips, write_shards
from stage1.distributed import device_of_rank
from vidshard.errors import UserError

NUM_CLIPS = 37
ON_A_RANK = """
import os, sys
import torch
from pathlib import Path
from stage1 import distributed
from stage1.dataloader import ClipLoader, ClipReader
from vidshard.errors import UserError

case, folders = sys.argv[1], [Path(folder) for folder in sys.argv[2:]]
rank = int(os.environ["RANK"])
try:
    with distributed.joined_ranks(torch.device("cpu")):
        last = rank == distributed.world_size() - 1
        reader = ClipReader(folders[1] if last and len(folders) > 1 else folders[0])
        loader = ClipLoader(
            reader, batch_size=2, shuffle=True, seed=int(last and case == "seed"), rank=rank,
            world_size=distributed.world_size(),
        )
        distributed.check_agreement(loader.agreement())
        if last and case == "read":
            reader.read_clips = lambda rows, out: open("/no/such/disk")
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(reader.clip_shape.num_bytes, 1))
        seen = torch.zeros(len(reader))
        for batch in loader:
            model(batch.clips.flatten(1).float()).sum().backward()
            seen[batch.indices[batch.indices >= 0]] += 1
        assert (distributed.sum_over_ranks(seen) == 1).all()
        print("steps", len(loader))
except UserError as error:
    sys.exit(f"error: {error}")
"""


def run(tmp_path: Path, world_size: int, case: str, *folders: Path) -> list[tuple[int, str]]:
    """Exit code and output of every rank."""
    script = tmp_path / "rank.py"
    script.write_text(ON_A_RANK)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), case, *map(str, folders)],
            env={**os.environ, **shared, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in ranks]
    return [(process.returncode, output) for process, output in zip(ranks, outputs, strict=True)]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    clips = random_clips(NUM_CLIPS, shape=(2, 4, 4))
    return write_shards(tmp_path / "shards", clips, [0] * NUM_CLIPS, clips_per_shard=6)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
def test_a_real_ddp_loop_ends_and_sees_every_clip_once(tmp_path: Path, shards: Path, world_size: int) -> None:
    steps = {2: 10, 4: 5}[world_size]
    results = run(tmp_path, world_size, "sound", shards)
    assert [code for code, _ in results] == [0] * world_size, results
    assert all(f"steps {steps}" in output for _, output in results)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("missing", "shard-000003.tar is missing"),
        ("data", "differ in data set"),
        ("seed", "differ in seed: rank 0 has 0, rank 1 has 0, rank 2 has 1"),
        ("read", "No such file or directory"),
    ],
)
def test_a_rank_that_fails_ends_all_with_its_reason(tmp_path: Path, shards: Path, case: str, text: str) -> None:
    folders = [shards]
    if case in ("missing", "data"):
        clips = random_clips(NUM_CLIPS, shape=(2, 4, 4), seed=int(case == "data"))
        folders.append(write_shards(tmp_path / "other", clips, [0] * NUM_CLIPS, clips_per_shard=6))
    if case == "missing":
        (folders[1] / "shard-000003.tar").unlink()
    start = time.monotonic()
    results = run(tmp_path, 3, case, *folders)
    assert time.monotonic() - start < 60  # 20 s after the failure; starting three processes takes the rest
    for code, output in results:
        assert code != 0
        assert text in output, output


def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert device_of_rank(torch.device("cuda")) == torch.device("cuda")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert device_of_rank(torch.device("cpu")) == torch.device("cpu")
    assert device_of_rank(torch.device("cuda", 0)) == torch.device("cuda", 0)
    assert used == []
    assert device_of_rank(torch.device("cuda")) == torch.device("cuda", 1)
    assert used == [torch.device("cuda", 1)]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="process 2 of this machine has no GPU, there are 2; start no more"):
        device_of_rank(torch.device("cuda"))
