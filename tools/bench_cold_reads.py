#!/usr/bin/env python3
"""Speed of a block-shuffled epoch from a disk with a cold cache, compared with sequential reads.

    python tools/bench_cold_reads.py [--num-clips 5000] [--memory-mb 1024] [--alternations 5] [--work FOLDER]

Writes a shard set (noise) larger than the memory that the reading processes may use: they run in a control group with
a limit (Linux, as root). Where none can be made, the run says so, and each pass only begins with nothing cached. Before
every pass the pages of the shards are dropped from the page cache, and it is checked that none is left. Passes take
turns, each in a process of its own:

- sequential: all shards front to back in blocks of 8 MiB, once through the page cache and once past it (O_DIRECT); the
  disk's sequential bandwidth is the median of the faster way;
- block shuffle: an epoch of `ClipLoader` (batch 32, windows of two shards, two threads, checksums verified): bytes of
  clips per second from asking for the first batch on, and how long that takes from opening the folder on. Importing
  torch is not counted.

Last line: JSON {"fraction_of_disk": x, "first_batch_seconds": x, "limited": true}.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

CLIP_SHAPE = (16, 112, 112)
BLOCK_BYTES = 8 << 20
WINDOW_SHARDS = 2
NUM_THREADS = 2  # one verifies 1 GB/s at most
SEQUENTIAL = ("sequential", "sequential_direct")
WAYS = (*SEQUENTIAL, "block_shuffle")


def main() -> None:
    options = parse_options()
    if options.one_pass:
        print(json.dumps(run_pass(options.one_pass, options.folder)))
        return
    with tempfile.TemporaryDirectory(dir=options.work) as temporary, memory_group(options.memory_mb) as group:
        folder = make_shards(Path(temporary) / "shards", options.num_clips)
        total = sum(path.stat().st_size for path in folder.glob("*.tar"))
        limit = f"{options.memory_mb} MB of memory" if group else "NO LIMIT of memory (no control group could be made)"
        print(f"{total / 1e6:,.0f} MB in {len(list(folder.glob('*.tar')))} shards, {limit}", flush=True)
        if group and total < options.memory_mb * 1e6 * 1.5:
            raise SystemExit("the set is not clearly larger than the memory: raise --num-clips")
        found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(options.alternations):
            for way in WAYS:
                drop_from_page_cache(folder)
                found[way].append(start_pass(way, folder, group))
    report(found, limited=bool(group))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-clips", type=int, default=5000)
    parser.add_argument("--memory-mb", type=int, default=1024)
    parser.add_argument("--alternations", type=int, default=5)
    parser.add_argument("--work", type=Path, help="where the shards go: a folder on the disk to be measured")
    parser.add_argument("--one-pass", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def make_shards(folder: Path, num_clips: int) -> Path:
    from bench_loader import Repeated
    from fake_shards import write_shards

    clips = np.random.default_rng(0).integers(0, 256, (250, *CLIP_SHAPE, 3), np.uint8)
    return write_shards(folder, Repeated(clips, num_clips), [i % 2 for i in range(num_clips)], clips_per_shard=100)


@contextlib.contextmanager
def memory_group(memory_mb: int) -> Iterator[Path | None]:
    """Create a control group limited to `memory_mb`; yield None where that is impossible."""
    name = f"bench-cold-reads-{os.getpid()}"
    for parent, limit in (("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")):
        group = Path(parent) / name
        try:
            group.mkdir()
            with open(group / limit, "r+") as file:  # there only where the folder became a control group
                file.write(str(memory_mb * 1_000_000))
        except OSError:
            with contextlib.suppress(OSError):
                group.rmdir()
            continue
        try:
            yield group
        finally:
            with contextlib.suppress(OSError):
                group.rmdir()
        return
    yield None


def drop_from_page_cache(folder: Path) -> None:
    """Drop the pages of all files of `folder`, and make sure of it."""
    for _ in range(20):  # pages that some processor is just busy with stay: ask again
        for path in sorted(folder.iterdir()):
            with open(path, "rb", buffering=0) as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        left = [path.name for path in sorted(folder.glob("*.tar")) if is_cached(path)]
        if not left:
            return
        time.sleep(0.2)
    raise SystemExit(f"parts of {', '.join(left)} stay in the page cache: nothing to measure")


def is_cached(path: Path) -> bool:
    """Return True if a page of a file is in the page cache. (A non-blocking read would start to fetch it.)"""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        content = np.frombuffer(mapped, np.uint8)
        pages = np.zeros(-(-len(content) // mmap.PAGESIZE), np.uint8)
        call = ctypes.CDLL(None, use_errno=True).mincore
        if call(
            ctypes.c_void_p(content.ctypes.data), ctypes.c_size_t(len(content)), ctypes.c_void_p(pages.ctypes.data)
        ):
            raise OSError(ctypes.get_errno(), "mincore")
        del content  # or the mapping could not be closed
    return bool((pages & 1).any())


def start_pass(way: str, folder: Path, group: Path | None) -> dict[str, float]:
    """One pass in a process of its own, in the control group."""
    command = [sys.executable, __file__, "--one-pass", way, "--folder", str(folder)]
    if group:  # the shell enters the group and becomes the process, so that all it ever uses counts
        command = ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh", *command]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    print(way, result, flush=True)
    return result


def run_pass(way: str, folder: Path) -> dict[str, float]:
    if way != "block_shuffle":
        return read_in_sequence(folder, direct=way == "sequential_direct")
    from stage1.data.loader import ClipLoader, ClipReader

    start = time.perf_counter()
    reader = ClipReader(folder)
    loader = ClipLoader(reader, batch_size=32, shuffle=True, block_shards=WINDOW_SHARDS, num_threads=NUM_THREADS)
    asked = time.perf_counter()
    first, num_bytes = 0.0, 0
    for batch in loader:
        first = first or time.perf_counter() - start
        num_bytes += batch.clips.nbytes
    return {
        "mb_per_second": round(num_bytes / 1e6 / (time.perf_counter() - asked)),
        "first_batch_seconds": round(first, 3),
    }


def read_in_sequence(folder: Path, *, direct: bool) -> dict[str, float]:
    block = mmap.mmap(-1, BLOCK_BYTES)  # aligned, as O_DIRECT wants it
    start, num_bytes = time.perf_counter(), 0
    for path in sorted(folder.glob("*.tar")):
        file = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
        if not direct:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while count := os.readv(file, [block]):
            num_bytes += count
        os.close(file)
    return {"mb_per_second": round(num_bytes / 1e6 / (time.perf_counter() - start))}


def report(found: dict[str, list[dict[str, float]]], *, limited: bool) -> None:
    speeds = {way: statistics.median(row["mb_per_second"] for row in rows) for way, rows in found.items()}
    print(", ".join(f"{way} {speed:,.0f} MB/s" for way, speed in speeds.items()))
    disk = max(speeds[way] for way in SEQUENTIAL)
    first = statistics.median(row["first_batch_seconds"] for row in found["block_shuffle"])
    fraction = round(speeds["block_shuffle"] / disk, 3)
    print(json.dumps({"fraction_of_disk": fraction, "first_batch_seconds": first, "limited": limited}))


if __name__ == "__main__":
    main()
