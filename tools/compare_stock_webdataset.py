#!/usr/bin/env python3
"""Guarantees of our loader, compared with stock webdataset on the same shards: a record, not a test.

    python tools/compare_stock_webdataset.py

Every case of (shards, ranks, workers): is each clip seen once an epoch, and do all ranks take the same number of steps?
Ranks are simulated one after another, as both loaders are told which one they are. Stock means what its documentation
shows: ``split_by_node``, ``split_by_worker``, ``.shuffle()``, ``.decode()``, ``.batched()`` under a `WebLoader`. Last
line: JSON with the number of cases that hold.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import webdataset as wds

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))

from fake_shards import random_clips, write_shards
from stage1.data.loader import ClipLoader, ClipReader

NUM_CLIPS, BATCH_SIZE = 37, 4
SHARDS = {"1 shard of 37 clips": 37, "7 uneven shards": 6}


def main() -> None:
    warnings.filterwarnings("ignore")
    held = Counter[str]()
    cases = 0
    with tempfile.TemporaryDirectory() as temporary:
        for name, clips_per_shard in SHARDS.items():
            folder = Path(temporary) / str(clips_per_shard)
            clips = random_clips(NUM_CLIPS, shape=(2, 4, 4))
            write_shards(folder, clips, [0] * NUM_CLIPS, clips_per_shard=clips_per_shard)
            for world_size in (1, 2, 3, 4):
                for workers in (0, 1, 3):
                    cases += 1
                    for loader, read in (("ours", read_ours), ("stock", read_stock)):
                        ranks = [read(folder, rank, world_size, workers) for rank in range(world_size)]
                        verdict = judge(ranks)
                        held[loader] += verdict == "exact"
                        print(f"{name}, {world_size} ranks, {workers} workers, {loader}: {verdict}", flush=True)
    print(json.dumps({"cases": cases, "exact": {"ours": held["ours"], "stock": held["stock"]}}))


def judge(ranks: list[list[list[str]]]) -> str:
    """Describe what is wrong with the batches (lists of keys) that the ranks got."""
    steps = [len(batches) for batches in ranks]
    seen = Counter(key for batches in ranks for batch in batches for key in batch)
    faults = []
    if len(set(steps)) > 1:
        faults.append(f"steps {steps}: DDP would hang")
    if len(seen) < NUM_CLIPS:
        faults.append(f"{NUM_CLIPS - len(seen)} clips never seen")
    if max(seen.values(), default=1) > 1:
        faults.append("clips seen twice")
    if len(set(steps)) == 1 and steps[0] != -(-NUM_CLIPS // (BATCH_SIZE * len(ranks))):
        faults.append(f"{steps[0]} steps, expected {-(-NUM_CLIPS // (BATCH_SIZE * len(ranks)))}")
    return "; ".join(faults) or "exact"


def read_ours(folder: Path, rank: int, world_size: int, workers: int) -> list[list[str]]:
    reader = ClipReader(folder)
    options = {"rank": rank, "world_size": world_size, "num_processes": workers}
    loader = ClipLoader(reader, batch_size=BATCH_SIZE, shuffle=True, **options)
    return [[reader.index.key(row) for row in batch.indices.tolist() if row >= 0] for batch in loader]


def read_stock(folder: Path, rank: int, world_size: int, workers: int) -> list[list[str]]:
    def split_by_rank(urls):  # webdataset's own split_by_node asks torch.distributed, which is not up here
        yield from list(urls)[rank::world_size]

    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    dataset = wds.WebDataset(urls, shardshuffle=len(urls), nodesplitter=split_by_rank, empty_check=False)
    dataset = dataset.shuffle(100).decode().to_tuple("__key__", "npy").batched(BATCH_SIZE)
    batches = []
    with contextlib.suppress(StopIteration):
        for keys, _ in wds.WebLoader(dataset, batch_size=None, num_workers=workers):
            batches.append(list(keys))
    return batches


if __name__ == "__main__":
    main()
