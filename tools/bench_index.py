#!/usr/bin/env python3
"""Time and memory needed to open a large set and to plan an epoch of it: `bench_index.py [--clips N]`.

A synthetic set of N clips (a million: in 9,010 shards): its index and manifest are real, its shards are empty files of
the right size that take no disk. `ShardSetWriter` cannot write it: it would need 600 GB of clips. Measured in fresh
processes, several times, after the imports: opening (the index is read and checked, the size of every shard too), the
order of the first epoch and the first batch of one rank of eight, and the highest memory in between, over that of the
imports. The last line is JSON, of medians.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from vidshard.planning import shard_plan
from vidshard.shards import layout, manifest
from vidshard.shards.layout import ClipShape
from vidshard.shards.manifest import ClassCount, Index, Manifest, Shard

SHAPE = ClipShape(num_frames=16, height=112, width=112)
CLIPS_PER_VIDEO = 100


def write_synthetic_set(folder: Path, num_clips: int) -> Path:
    """Write a set of `num_clips` clips with empty shards: good for opening and planning only."""
    folder.mkdir(parents=True)
    in_shard = shard_plan.grown(shard_plan.clips_per_shard(SHAPE, 64), num_clips)
    sample_bytes = shard_plan.sample_bytes(SHAPE)
    rows = np.arange(num_clips)
    clips = np.zeros(num_clips, manifest.CLIP_ROW)
    clips["shard"], clips["offset"] = rows // in_shard, rows % in_shard * sample_bytes + layout.TAR_BLOCK
    clips["size"] = len(layout.npy_header(SHAPE)) + SHAPE.num_bytes
    clips["crc32"] = np.random.default_rng(0).integers(0, 2**32, num_clips, dtype=np.uint32)
    clips["video"], clips["clip"] = rows // CLIPS_PER_VIDEO, rows % CLIPS_PER_VIDEO
    num_videos = int(clips["video"][-1]) + 1
    videos = np.zeros(num_videos, manifest.VIDEO_ROW)
    videos["class"] = np.arange(num_videos) % 2
    videos["source_group"] = -1
    videos["num_frames"], videos["width"], videos["height"], videos["fps"] = 3600, 320, 240, 30.0
    clips["label"], clips["frame_gap_seconds"] = videos["class"][clips["video"]], 1 / 30
    names = ("NormalVideos", "Abuse")
    paths = [f"{names[n % 2]}/{names[n % 2]}{n:06d}_x264.mp4" for n in range(num_videos)]
    index = Index(
        clips=clips, videos=videos, paths=paths, classes=names, splits=("Train",), recordings=(), decoders=("pyav",)
    )
    data = index.to_bytes()
    counts = np.bincount(clips["shard"])
    shards = tuple(
        Shard(name=layout.shard_name(n), bytes=count * sample_bytes + 1024, samples=count, sha256="0" * 64)
        for n, count in enumerate(counts.tolist())
    )
    for shard in shards:
        write_hole(folder / shard.name, shard.bytes)
    labels = np.bincount(clips["label"], minlength=2).tolist()
    video_labels = np.bincount(videos["class"], minlength=2).tolist()
    about = Manifest(
        split="Train",
        clip_shape=SHAPE,
        codec="raw",
        settings={"mode": "dense", "clip_len": 16, "stride": 16, "frame_step": 1},
        packages={},
        classes=tuple(
            ClassCount(name=name, label=label, videos=video_labels[label], clips=labels[label])
            for label, name in enumerate(names)
        ),
        videos_found=num_videos,
        videos_ok=num_videos,
        failures=(),
        shards=shards,
        index_bytes=len(data),
        index_sha256=hashlib.sha256(data).hexdigest(),
    )
    (folder / about.index_name).write_bytes(data)
    manifest.write_manifest(folder, about)
    return folder


def measure(folder: Path) -> dict[str, float]:
    """Open the set and plan an epoch, in this process, which should have done nothing before."""
    import time

    from stage1.data.epoch_plan import rank_batch
    from stage1.data.loader import ClipLoader
    from stage1.data.reader import ClipReader

    before = memory_from_here()
    start, cpu = time.perf_counter(), time.process_time()
    reader = ClipReader(folder)
    opened, opened_cpu = time.perf_counter(), time.process_time()
    loader = ClipLoader(reader, batch_size=32, shuffle=True, rank=3, world_size=8)
    first = rank_batch(loader.order(), 0, batch_size=32, rank=3, world_size=8)
    planned, planned_cpu = time.perf_counter(), time.process_time()
    assert len(first) == 32
    return {
        "open_seconds": opened - start,
        "plan_seconds": planned - opened,
        "open_cpu_seconds": opened_cpu - cpu,
        "plan_cpu_seconds": planned_cpu - opened_cpu,
        "peak_mb": memory_mb("VmHWM") - before,
        "left_mb": memory_mb("VmRSS") - before,
    }


def write_hole(path: Path, num_bytes: int) -> None:
    """Write a file of this size that takes no disk."""
    with open(path, "wb") as file:
        file.truncate(num_bytes)


def memory_from_here() -> float:
    """Return the memory now; the highest memory counts from here."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory_mb("VmRSS")


def memory_mb(name: str) -> float:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # measure this one: what the children do
    options = parser.parse_args()
    if options.folder is not None:
        print(json.dumps(measure(options.folder)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_synthetic_set(Path(temporary) / "Train", options.clips)
        about = manifest.read_manifest(folder)
        print(f"{options.clips:,} clips in {len(about.shards):,} shards, index {about.index_bytes / 1e6:.1f} MB")
        runs = []
        for _ in range(options.repeat):
            command = [sys.executable, __file__, "--folder", str(folder)]
            runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
            print("  ".join(f"{name} {value:.3f}" for name, value in runs[-1].items()))
    medians = {name: round(statistics.median(run[name] for run in runs), 3) for name in runs[0]}
    print(json.dumps({"clips": options.clips, "index_mb": round(about.index_bytes / 1e6, 1), **medians}))


if __name__ == "__main__":
    main()
