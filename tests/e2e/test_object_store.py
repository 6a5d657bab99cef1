"""The whole workflow with a real S3 server: build to it, verify, train and score from it with four processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_shards import moving_clips, write_shards
from object_store import CREDENTIALS, ObjectStore, running_store, use_store
from vidshard.building import upload
from vidshard.storage.urls import Url

COMMANDS = {
    "stage1": "from stage1.cli.main import main; main()",
    "vidshard": "from vidshard.cli.main import main; main()",
}


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with running_store() as store:
        yield store


def run(store: ObjectStore, folder: Path, *words: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    program = folder / f"run_{words[0]}.py"
    program.write_text(COMMANDS[words[0]])
    start = [sys.executable, str(program)]
    if processes > 1:
        start = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={processes}",
            start[1],
        ]
    environment = {**os.environ, **store.environment, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
    done = subprocess.run([*start, *words[1:]], env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode in (0, 2), done.stdout + done.stderr
    shown = done.stdout + done.stderr
    assert not [secret for secret in CREDENTIALS.values() if secret in shown]
    return done


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_four_processes_train_and_score_from_a_store(
    server: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_store(server, monkeypatch)
    urls = {}
    for seed, split in enumerate(("Train", "Validation")):  # equal names of shards, other clips
        clips, labels = moving_clips(48, seed=seed)
        in_order = [*range(1, 48, 2), *range(0, 48, 2)]  # of the names of their classes
        ordered = [labels[i] for i in in_order]
        local = write_shards(tmp_path / "local" / split, clips[in_order], ordered, split=split, prefix=f"{split}-")
        (local / "failures.csv").write_text("path,outcome,reason,message\n")
        urls[split] = f"s3://bucket/e2e/{split}"
        upload.upload_set(local, Url(urls[split]))
    verified = run(server, tmp_path, "vidshard", "verify", urls["Train"], "--deep")
    assert "checksums and every sample are correct" in verified.stdout
    server.gets.clear()
    server.faults = {"Train/shard-000003.tar": ["503", "503"], "Validation/shard-000001.tar": ["cut"]}
    options = ("--epochs", "2", "--batch-size", "2", "--device", "cpu", "--cache-dir", str(tmp_path / "cache"))
    run(
        *(server, tmp_path, "stage1", "train", "--shards", urls["Train"], "--val-shards", urls["Validation"]),
        *("--out", "run", *options),
        processes=4,
    )
    expected = Counter({f"e2e/{split}/shard-{n:06d}.tar": 1 for split in urls for n in range(6)})
    expected["e2e/Train/shard-000003.tar"] += 2  # answered 503 twice
    expected["e2e/Validation/shard-000001.tar"] += 1  # cut once
    assert server.shard_gets() == expected
    server.gets.clear()
    checkpoint = next((tmp_path / "run").glob("binary_stage1*.pt"))
    score = ("infer", "--checkpoint", str(checkpoint), "--device", "cpu", "--cache-dir", str(tmp_path / "fresh"))
    run(server, tmp_path, "stage1", *score, "--shards", urls["Validation"], "--out", "scored", processes=4)
    assert server.shard_gets() == {f"e2e/Validation/shard-{n:06d}.tar": 1 for n in range(6)}
    run(server, tmp_path, "stage1", *score, "--shards", "local/Validation", "--out", "scored-local")
    scored = [(tmp_path / out / "predictions.csv").read_bytes() for out in ("scored", "scored-local")]
    assert scored[0] == scored[1]
