"""Ranks that agree, one that fails, and an epoch that is exact on all of them: no rank waits forever."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fake_shards import random_clips, write_shards
from ranks import run_ranks, start_ranks
from stage1.cli.main import main
from stage1.common import distributed
from stage1.common.device import choose_device
from stage1.common.distributed import device_of_rank, expect_own_gpu, merge_rows
from stage1.data.loader import ClipLoader, ClipReader
from stage1.data.transforms import ClipTransform, TransformConfig
from stage1.model.network import ModelConfig, Stage1Model
from vidshard.util.errors import UserError

NUM_CLIPS, BATCH_SIZE = 37, 3
MAX_SECONDS_TO_STOP = 120  # ranks that wait for a dead one give up after half an hour
LABELS = [i % 2 for i in range(NUM_CLIPS)]


def shards(folder: Path, *, clips_per_shard: int = 6, seed: int = 0) -> Path:
    clips = random_clips(NUM_CLIPS, shape=(4, 8, 8), seed=seed)
    return write_shards(folder, clips, LABELS, clips_per_shard=clips_per_shard)


def a_loader(reader: ClipReader, **options: Any) -> ClipLoader:
    of_rank = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    return ClipLoader(reader, **{"batch_size": BATCH_SIZE, "shuffle": True, "seed": 5, **of_rank, **options})


# --- exact epochs


def train_on_all_ways(folders: list[Path], result: Path) -> None:
    """Run a DDP loop over every combination; rank 0 writes the counts of each clip and the steps of all ranks."""
    readers = {folder.name: ClipReader(folder) for folder in folders}
    num_bytes = next(iter(readers.values())).clip_shape.num_bytes
    model: torch.nn.Module = torch.nn.Linear(num_bytes, 1)
    if distributed.world_size() > 1:
        model = torch.nn.parallel.DistributedDataParallel(model)
    found = {}
    for name, reader in readers.items():
        for workers in (
            {"num_threads": 0},
            {"num_threads": 1},
            {"num_threads": 3},
            *({"num_processes": n} for n in (1, 3)),
        ):
            for drop_last in (False, True):
                loader = a_loader(reader, drop_last=drop_last, **workers)
                seen, steps = torch.zeros(len(reader), dtype=torch.int64), 0
                for batch in loader:
                    model(batch.clips.flatten(1).float()).sum().backward()
                    seen += torch.bincount(batch.indices[batch.indices >= 0], minlength=len(reader))
                    steps += 1
                distributed.sum_over_ranks(seen)
                told = distributed.gather((steps, len(loader)))
                found[f"{name} {workers} {drop_last=}"] = {"seen": seen.tolist(), "steps": told, "drop": drop_last}
    if distributed.rank() == 0:
        result.write_text(json.dumps(found))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_clip_comes_once_in_equal_steps_and_a_ddp_loop_ends(tmp_path: Path, world_size: int) -> None:
    folders = [shards(tmp_path / f"shards-of-{size}", clips_per_shard=size) for size in (37, 6)]
    assert [len(list(folder.glob("*.tar"))) for folder in folders] == [1, 7]
    run_ranks(tmp_path, world_size, train_on_all_ways, folders, tmp_path / "result.json")
    results = json.loads((tmp_path / "result.json").read_text())
    assert len(results) == 2 * 5 * 2
    global_batch = BATCH_SIZE * world_size
    for way, result in results.items():
        steps = NUM_CLIPS // global_batch if result["drop"] else -(-NUM_CLIPS // global_batch)
        assert result["steps"] == [[steps, steps]] * world_size, way
        if result["drop"]:
            assert max(result["seen"]) == 1, way
            assert sum(result["seen"]) == steps * global_batch, way
        else:
            assert result["seen"] == [1] * NUM_CLIPS, way


# --- stopped and resumed


def read_and_note(folder: Path, out: Path, options: dict[str, Any], state: dict[str, Any] | None, stop: int) -> None:
    """Write what each step of this rank got, and its state after `stop` steps; then wait to be killed."""
    loader = a_loader(ClipReader(folder), **options)
    if state is not None:
        loader.load_state_dict(state)
    with open(out / f"rank-{distributed.rank()}.jsonl", "w") as notes:
        for step, batch in enumerate(loader, start=1):
            for row, clip in zip(batch.indices.tolist(), batch.clips.numpy(), strict=True):
                if row >= 0:
                    note = [step, row, int(batch.labels[batch.indices == row]), hashlib.sha256(clip).hexdigest()]
                    notes.write(json.dumps(note) + "\n")
            if step == stop:
                notes.flush()
                workers = [child.pid for child in multiprocessing.active_children()]
                told = json.dumps({"state": loader.state_dict(), "workers": workers})
                (out / f"state-{distributed.rank()}.json").write_text(told)
                os.replace(out / f"state-{distributed.rank()}.json", out / f"stopped-{distributed.rank()}.json")
                time.sleep(600)


def notes_of(out: Path, world_size: int) -> list[list[list[Any]]]:
    """Return what all ranks got at each step: row, label and digest of the pixels, in order."""
    notes = [
        json.loads(line) for rank in range(world_size) for line in (out / f"rank-{rank}.jsonl").read_text().splitlines()
    ]
    return [[rest for step, *rest in notes if step == number] for number in range(1, max(n[0] for n in notes) + 1)]


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_killed_ranks_leave_nothing_behind_and_others_resume_with_the_same_batches(tmp_path: Path) -> None:
    folder = shards(tmp_path / "shards")
    outs = {name: tmp_path / name for name in ("whole", "killed", "resumed")}
    for out in outs.values():
        out.mkdir()
    shared_memory = Path("/dev/shm")
    before = sorted(folder.iterdir()), set(shared_memory.glob("torch*"))

    run_ranks(tmp_path / "logs", 2, read_and_note, folder, outs["whole"], {"batch_size": 4}, None, 0)
    whole = notes_of(outs["whole"], 2)

    options = {"batch_size": 2, "num_processes": 1}
    ranks = start_ranks(tmp_path / "logs", 4, read_and_note, folder, outs["killed"], options, None, 2)
    told = [outs["killed"] / f"stopped-{rank}.json" for rank in range(4)]
    while not all(path.exists() for path in told):
        assert all(process.is_alive() for process in ranks.processes)
        time.sleep(0.05)
    stopped = [json.loads(path.read_text()) for path in told]
    for process in ranks.processes:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
    assert [code for code, _ in ranks.join()] == [-signal.SIGKILL] * 4
    workers = [pid for rank in stopped for pid in rank["workers"]]
    assert len(workers) == 4
    until = time.monotonic() + 120  # a worker asks every few seconds whether its parent lives
    while any(map(_is_running, workers)):
        assert time.monotonic() < until, "worker processes outlive their rank"
        time.sleep(0.1)
    assert (sorted(folder.iterdir()), set(shared_memory.glob("torch*"))) == before

    states = [rank["state"] for rank in stopped]
    assert states == [states[0]] * 4
    assert len(json.dumps(states[0])) < 400
    run_ranks(tmp_path / "logs", 2, read_and_note, folder, outs["resumed"], {"batch_size": 4}, states[0], 0)
    assert len(whole) == 5
    assert notes_of(outs["killed"], 4) + notes_of(outs["resumed"], 2) == whole


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# --- evaluation


def evaluate(folder: Path, out: Path) -> None:
    """Score all clips, in padded batches of this rank's part; every rank writes the table of all."""
    torch.manual_seed(0)
    model = Stage1Model(ModelConfig(channels=(8, 16), temporal_stages=(1,))).eval()
    for parameter in model.parameters():  # its last layer begins as zeros, and all clips would score alike
        torch.nn.init.normal_(parameter, std=0.1)
    transform, reader = ClipTransform(TransformConfig()), ClipReader(folder)
    logits, rows = [], []
    loader = a_loader(reader, shuffle=False, pad=True, max_bad_clips=None)
    for batch in loader:
        assert len(batch.clips) == BATCH_SIZE
        with torch.inference_mode():
            logits.append(model(transform(batch.clips))[0])
        rows.append(batch.indices)
    table, scored = merge_rows(torch.cat(logits), torch.cat(rows), num_rows=len(reader))
    bad = {row: reason for part in distributed.gather(loader.bad_clips) for row, reason in part.items()}
    np.savez(out / f"{distributed.world_size()}-{distributed.rank()}.npz", table=table, scored=scored, bad=sorted(bad))


def test_evaluation_gives_the_same_bytes_on_any_number_of_ranks(tmp_path: Path) -> None:
    folder = shards(tmp_path / "shards")
    offset = int(ClipReader(folder).index.clips["offset"][20])
    with open(folder / "shard-000003.tar", "r+b") as shard:
        shard.seek(offset + 200)
        shard.write(b"damage")
    for world_size in (1, 2, 3, 4):
        run_ranks(tmp_path / "logs", world_size, evaluate, folder, tmp_path)
    results = [path.read_bytes() for path in sorted(tmp_path.glob("*.npz"))]
    assert len(results) == 1 + 2 + 3 + 4
    assert len(set(results)) == 1
    with np.load(tmp_path / "4-3.npz") as arrays:
        assert arrays["scored"].tolist() == [row != 20 for row in range(NUM_CLIPS)]
        assert arrays["bad"].tolist() == [20]
        assert len(np.unique(arrays["table"], axis=0)) == NUM_CLIPS  # clips differ; that of the bad one is 0


def test_a_row_that_counts_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="row 1 has 2 results, expected one"):
        merge_rows(torch.zeros(3), torch.tensor([1, -1, 1]), num_rows=3)
    table, there = merge_rows(torch.tensor([-0.0, torch.nan]), torch.tensor([1, 0]), num_rows=3)
    assert table.numpy().tobytes() == np.float32([np.nan, -0.0, 0.0]).tobytes()
    assert there.tolist() == [True, True, False]


# --- failing


def fail_on_the_last_rank(case: str, folder: Path, other: Path) -> None:
    last = distributed.rank() == distributed.world_size() - 1
    reader = ClipReader(other if last else folder)
    loader = a_loader(reader, seed=int(last and case == "seed"))
    distributed.check_agreement(loader.agreement())
    if last and case == "read":
        os.truncate(folder / "shard-000001.tar", 0)
    for batch in loader:
        distributed.sum_over_ranks(batch.clips.sum())


def test_a_rank_that_fails_ends_all_with_its_reason(tmp_path: Path) -> None:
    expected = {
        "missing": "shard-000003.tar is missing",
        "data": "differ in data set",
        "seed": "differ in seed: rank 0 has 0, rank 1 has 0, rank 2 has 1",
        "read": "shard-000001.tar does not match its checksum",
    }
    runs = {}
    for case in expected:  # all at once: most of the time they wait
        folder = shards(tmp_path / case / "shards")
        other = shards(tmp_path / case / "other", seed=int(case == "data")) if case in ("missing", "data") else folder
        if case == "missing":
            (other / "shard-000003.tar").unlink()
        runs[case] = start_ranks(tmp_path / case, 3, fail_on_the_last_rank, case, folder, other)
    for case, text in expected.items():
        for code, output in runs[case].join(MAX_SECONDS_TO_STOP):
            assert code == 1, output
            assert text in output, output
            assert len([line for line in output.splitlines() if line.startswith("error: ")]) == 1
    assert time.monotonic() - runs["missing"].started < MAX_SECONDS_TO_STOP


def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert device_of_rank(torch.device("cuda")) == torch.device("cuda")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert device_of_rank(torch.device("cpu")) == torch.device("cpu")
    assert used == []
    assert device_of_rank(torch.device("cuda")) == torch.device("cuda", 1)
    assert used == [torch.device("cuda", 1)]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(
        UserError, match="process 2 of this machine has no GPU: it has 2, numbered from 0; start at most"
    ):
        device_of_rank(torch.device("cuda"))


def test_a_process_that_sees_one_gpu_takes_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for local_rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        assert device_of_rank(torch.device("cuda")) == torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="process 0 of this machine has no GPU: it has 0"):
        device_of_rank(torch.device("cuda"))


def test_a_gpu_that_all_processes_would_share_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match="`device` is cuda:0, which the 2 processes of this machine would share"):
        device_of_rank(torch.device("cuda", 0))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # one process on each of four machines
    assert device_of_rank(torch.device("cuda", 1)) == torch.device("cuda", 1)


def test_two_ranks_with_one_gpu_are_refused() -> None:
    store = torch.distributed.HashStore()
    for rank, gpu in enumerate(("first", "second")):
        expect_own_gpu(store, gpu, rank)
    with pytest.raises(UserError, match=r"ranks 1 and 2 have the same GPU \(second\); start at most one process"):
        expect_own_gpu(store, "second", 2)


def test_fp32_means_fp32() -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    choose_device("cpu")
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("command", ["crossval", "evaluate", "explain"])
def test_what_does_not_share_its_work_is_refused_under_torchrun(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = CliRunner().invoke(main, [command])
    assert result.exit_code == 1
    assert f"error: stage1 {command} runs as one process, but WORLD_SIZE is 2" in result.stderr
