#!/usr/bin/env python3
"""Calculated cost of a data set: the tables of docs/SCALING.md, from the measured constants below.

    python tools/scaling.py                    # the tables
    python tools/scaling.py --measure VIDEO    # measure again, on this machine: what reading its packets costs

Each constant says which command measured it. Constants of the format are taken from the code. All scale linearly but
where it is said, and none is from a GPU.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

from vidshard.planning import shard_plan
from vidshard.shards.layout import ClipShape
from vidshard.shards.manifest import CLIP_ROW, VIDEO_ROW
from vidshard.video import packets

SHAPE = ClipShape(num_frames=16, height=112, width=112)
FPS = 30
SECONDS_OF_VIDEO = 128 * 3600 / 1900  # the mean of UCF-Crime: 128 hours in 1,900 videos
KEYFRAME_DISTANCE = 250  # frames, x264's default

# All on 2026-11-30, on machine A of docs/BENCHMARKS.md while other processes kept its two cores busy: processor time.
# tools/bench_build.py --quick --only dense: 320×240 at 1.4 Mb/s, every frame to 112×112
FRAMES_PER_CPU_SECOND = {"pyav": 1329, "decord": 863, "opencv": 817}
# tools/scaling.py --measure, median of three: packets of such a video; and the bytes of its packet table
PACKETS_PER_CPU_SECOND = 71_000
PACKET_TABLE_BYTES_PER_FRAME = 16
# tools/bench_index.py, for a million clips in 9,010 shards
OPEN_SECONDS_PER_MILLION, PLAN_SECONDS_PER_MILLION = 0.16, 0.10
MEMORY_BYTES_PER_CLIP = 69  # of each process that reads
# tools/bench_finalize.py --grow: 66.6 million clips of 600,000 videos; without --grow, in 600,000 shards
FINALIZE_SECONDS_PER_MILLION = 0.86
FINALIZE_BYTES_PER_VIDEO, FINALIZE_BYTES_PER_SHARD = 1500, 600
# planner.sample_bytes: exact for raw, upper estimates for the others
CLIP_BYTES = {codec: shard_plan.sample_bytes(SHAPE, codec=codec) for codec in ("raw", "zstd", "jpeg")}
SHARD_MB = 64
VIDEO_NAME_BYTES = 40
# Assumed, not measured: a status call for one file on a network disk; what a GPU gets through of the default model
# (2.4 GFLOP a clip forward, three times that to train).
STAT_SECONDS = 0.0005
GPU_TERAFLOPS_REACHED = 30
TRAIN_GFLOP_PER_CLIP = 7.2


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling of clips: `clips` of a mean video, `frames` that must be decoded for them."""

    name: str
    clips: float
    frames: float


def samplings() -> list[Sampling]:
    length = SECONDS_OF_VIDEO * FPS
    to_keyframe = KEYFRAME_DISTANCE / 2  # decoded before the frame that is wanted
    return [
        Sampling(name="uniform, 1 clip per video", clips=1, frames=min(length, 16 * to_keyframe)),
        Sampling(name="uniform, 32 clips per video", clips=32, frames=length),
        Sampling(name="dense, every frame once", clips=length / 16, frames=length),
    ]


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def size(num_bytes: float) -> str:
    """Format a number of bytes for people.

    >>> size(1_100_000_000), size(34_000_000)
    ('1.1 GB', '34 MB')
    """
    for unit, scale in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= scale:
            value = num_bytes / scale
            return f"{value:,.0f} {unit}" if value >= 20 else f"{value:,.1f} {unit}"
    return f"{num_bytes / 1e3:,.1f} kB"


def number(value: float) -> str:
    """Format a number for people, with no false precision.

    >>> number(0.123), number(5.4), number(863_000)
    ('0.12', '5.4', '863,000')
    """
    if value < 1:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 10 else f"{float(f'{value:.3g}'):,.0f}"


def build_table(hours: float) -> str:
    videos = hours * 3600 / SECONDS_OF_VIDEO
    rows = []
    for sampling in samplings():
        clips = sampling.clips * videos
        decoding = (number(sampling.frames * videos / rate / 3600) for rate in FRAMES_PER_CPU_SECOND.values())
        stored = (size(clips * num_bytes) for num_bytes in CLIP_BYTES.values())
        rows.append([sampling.name, number(clips), *decoding, *stored, number(num_shards(clips))])
    header = ["sampling", "clips", *(f"core-hours {name}" for name in FRAMES_PER_CPU_SECOND), *CLIP_BYTES, "shards"]
    return table(header, rows)


def num_shards(clips: float) -> float:
    return max(1, clips / shard_plan.grown(shard_plan.clips_per_shard(SHAPE, SHARD_MB), round(clips)))


def open_table(all_hours: list[float]) -> str:
    rows = []
    for hours in all_hours:
        videos = hours * 3600 / SECONDS_OF_VIDEO
        for sampling in samplings():
            clips = sampling.clips * videos
            memory = videos * FINALIZE_BYTES_PER_VIDEO + num_shards(clips) * FINALIZE_BYTES_PER_SHARD
            index = clips * CLIP_ROW.itemsize + videos * (VIDEO_ROW.itemsize + VIDEO_NAME_BYTES)
            rows.append(
                [
                    f"{hours:,.0f} h, {sampling.name}",
                    size(index),
                    size(clips * MEMORY_BYTES_PER_CLIP),
                    number(clips / 1e6 * OPEN_SECONDS_PER_MILLION) + " s",
                    number(clips / 1e6 * PLAN_SECONDS_PER_MILLION) + " s",
                    number(clips / 1e6 * FINALIZE_SECONDS_PER_MILLION) + " s",
                    size(memory),
                ]
            )
    header = ["set", "index.npz", "memory of a process", "opened in", "epoch planned in"]
    return table([*header, "finalized in", "memory of finalize"], rows)


def plan_table(all_hours: list[float]) -> str:
    rows = []
    for hours in all_hours:
        videos, frames = hours * 3600 / SECONDS_OF_VIDEO, hours * 3600 * FPS
        rows.append(
            [
                f"{hours:,.0f} h",
                number(videos),
                number(frames / PACKETS_PER_CPU_SECOND / 3600),
                size(frames * PACKET_TABLE_BYTES_PER_FRAME),
                number(videos * STAT_SECONDS / 60) + " min",
            ]
        )
    header = [
        "video",
        "files",
        "core-hours to read all packets",
        "packet tables while building",
        "every task: stat all files",
    ]
    return table(header, rows)


def network_table() -> str:
    clips = GPU_TERAFLOPS_REACHED * 1e12 / (TRAIN_GFLOP_PER_CLIP * 1e9)
    rows = [[codec, number(clips), size(clips * num_bytes) + "/s"] for codec, num_bytes in CLIP_BYTES.items()]
    return table(["codec", "clips/s of a GPU (assumed)", "to that GPU"], rows)


def measure(video: Path) -> None:
    start = time.process_time()
    read = packets.read_packet_table(video)
    seconds = time.process_time() - start
    num_bytes = read.timestamps_seconds.nbytes + (0 if read.pts is None else read.pts.nbytes) + read.keyframes.nbytes
    print(f"{read.num_frames / seconds:,.0f} packets a second of processor time, {read.num_frames:,} frames")
    print(f"{num_bytes / read.num_frames:.1f} bytes of packet table a frame")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", type=Path, metavar="VIDEO")
    options = parser.parse_args()
    if options.measure is not None:
        measure(options.measure)
        return
    all_hours = [128.0, 10_000.0, 1_000_000.0]
    for hours in all_hours:
        print(f"### {hours:,.0f} hours\n\n{build_table(hours)}\n")
    print(f"### Before decoding\n\n{plan_table(all_hours)}\n")
    print(f"### Opening a set\n\n{open_table(all_hours)}\n")
    print(f"### To a GPU\n\n{network_table()}")


if __name__ == "__main__":
    main()
