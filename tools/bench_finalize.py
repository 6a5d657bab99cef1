#!/usr/bin/env python3
"""Time and memory of `vidshard finalize` on a large simulated build: `bench_finalize.py [--videos N] [--shards N]`.

The state is what array tasks leave behind: the plan, and a record of every shard with the rows of its clips. Shards are
empty files of the right size that take no disk, and SOURCE is absent. Sets of this size would get larger shards;
`--shards` lifts that limit, since the number of shards decides the memory. Measured in a fresh process, over the memory
after the imports. The last line is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np

from bench_index import memory_from_here, memory_mb, write_hole
from vidshard.building import array
from vidshard.planning import shard_plan
from vidshard.planning.build_state import BuildState, ShardRecord, write_probes
from vidshard.planning.settings import clip_shape
from vidshard.planning.video_metadata import VideoMetadata
from vidshard.shards import layout, manifest
from vidshard.sources.folders import Source, Video
from vidshard.util import atomic

CLIPS_PER_SHARD = 111  # 64 MiB of pixels
CLASSES = ("Abuse", "NormalVideos")
SETTINGS = {"mode": "dense", "clip_len": 16, "frame_size": 112, "codec": "raw", "shard_mb": 64}


def write_state(out: Path, num_videos: int, num_shards: int) -> None:
    """Write the state of a build whose tasks have all ended."""
    state = BuildState(out, task=0)
    state.tasks_path.mkdir(parents=True)
    num_clips = num_shards * CLIPS_PER_SHARD
    counts = np.full(num_videos, num_clips // num_videos) + (np.arange(num_videos) < num_clips % num_videos)
    names = [CLASSES[n * 2 // num_videos] for n in range(num_videos)]
    paths = [f"{name}/{name}{n:07d}_x264.mp4" for n, name in enumerate(names)]
    videos = tuple(
        Video(path=path, class_name=name, label=CLASSES.index(name) ^ 1, recording=None)
        for path, name in zip(paths, names, strict=True)
    )
    fingerprint = {
        "settings": SETTINGS,
        "packages": {},
        "num_videos": num_videos,
        "change": None,
        "videos": [[path, 40_000_000, 1, None, 1_700_000_000_000_000_000 + n] for n, path in enumerate(paths)],
    }
    atomic.write_json(state.fingerprint_path, fingerprint)
    source = Source(root=out.parent / "source", split="Train", videos=videos, skipped=())
    atomic.write_json(state.source_path, array.source_to_json(source))
    atomic.write_json(state.array_path, {"count": 64, "first": 0, "step": 1})
    write_probes(
        state.probes_path,
        [VideoMetadata(num_frames=7200, fps=30.0, width=320, height=240, num_clips=int(count)) for count in counts],
    )
    video_of_clip = np.repeat(np.arange(num_videos), counts)
    clip_of_video = np.arange(num_clips) - np.repeat(np.cumsum(counts) - counts, counts)
    with mock.patch.object(os, "fsync"):  # the state need not survive a crash of this machine
        write_shards(state, video_of_clip, clip_of_video)


def write_shards(state: BuildState, video_of_clip: np.ndarray, clip_of_video: np.ndarray) -> None:
    """Write the record of every shard, and a file of its size."""
    shape = clip_shape(SETTINGS)
    sample_bytes = shard_plan.sample_bytes(shape)
    size = shard_plan.grown(CLIPS_PER_SHARD, len(video_of_clip))
    crc32 = np.random.default_rng(0).integers(0, 2**32, size, dtype=np.uint32)
    for shard, start in enumerate(range(0, len(video_of_clip), size)):
        video = video_of_clip[start : start + size]
        rows = np.zeros(len(video), manifest.CLIP_ROW)
        rows["shard"], rows["video"], rows["clip"] = shard, video, clip_of_video[start : start + size]
        rows["offset"] = np.arange(len(video)) * sample_bytes + layout.TAR_BLOCK
        rows["size"], rows["crc32"] = len(layout.npy_header(shape)) + shape.num_bytes, crc32[: len(video)]
        rows["label"], rows["frame_gap_seconds"] = 1, 1 / 30
        record = ShardRecord(
            bytes=len(video) * sample_bytes + len(layout.end_of_shard()),
            sha256=hashlib.sha256(str(shard).encode()).hexdigest(),
            num_clips=len(rows),
            decoders=dict.fromkeys(np.unique(video).tolist(), "pyav"),
            failures={},
        )
        state.write_record(shard, record, rows)
        write_hole(state.shard_path(shard), record.bytes)


def measure(out: Path) -> dict[str, float]:
    """Finalize, in this process, which should have done nothing before."""
    before = memory_from_here()
    start, cpu = time.perf_counter(), time.process_time()
    (report,) = array.finalize(out).sets
    return {
        "clips": report.manifest.num_clips,
        "shards": len(report.manifest.shards),
        "index_mb": round(report.manifest.index_bytes / 1e6, 1),
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "peak_mb": round(memory_mb("VmHWM") - before, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=600_000)
    parser.add_argument("--shards", type=int, default=600_000, help="Shards of 111 clips.")
    parser.add_argument("--grow", action="store_true", help="Let the shard size grow, as a build does.")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # finalize this one: what the child does
    options = parser.parse_args()
    if not options.grow:
        shard_plan.MAX_SHARDS = options.shards
    if options.folder is not None:
        print(json.dumps(measure(options.folder)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "Train"
        write_state(out, options.videos, options.shards)
        print(f"{options.videos:,} videos, {options.shards * CLIPS_PER_SHARD:,} clips", flush=True)
        command = [sys.executable, __file__, "--folder", str(out), "--shards", str(options.shards)]
        command += ["--grow"] if options.grow else []
        result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        print(json.dumps({"videos": options.videos, **json.loads(result.stdout.splitlines()[-1])}))


if __name__ == "__main__":
    main()
