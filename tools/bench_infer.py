"""Does `stage1 infer` cost more than its model, and does its memory grow with the clips?

    python tools/bench_infer.py [--clips 600] [--many 100000] [--alternations 3] [--skip memory]

Speed: the model alone on batches in memory (the faster of: one batch at a time on all threads, a batch a thread)
÷ inference over clips of 16×112×112 with the default model, from opening the shards to the last output, in turns, in
one process.
Memory: the resident memory of a process that scores an index which repeats 500 clips of 4×16×16, with a tiny model,
after 1,000 clips and at its highest afterwards.
One minute: `stage1 infer --videos` as a command on a generated file of 320×240 at 25 frames/s, cut densely: seconds
from start to end of the process, median of the turns.
The last line is JSON: {"fraction_of_model": x, "rss_growth_mb": x, "minute_seconds": x}.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))

from fake_shards import random_clips, write_shards
from stage1.common.memory import keep_freed_memory
from stage1.data.transforms import TransformConfig
from stage1.inference.run import InferConfig, infer
from stage1.model import checkpoint as checkpoints
from stage1.model.checkpoint import Checkpoint
from stage1.model.network import ModelConfig, Stage1Model
from synthetic_videos import VideoConfig, encode, plan_dataset, render_video
from vidshard.shards import manifest

BATCH = 8
SHAPE = (16, 112, 112)
NUM_DISTINCT = 500
WARM = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=600, help="of the speed measurement")
    parser.add_argument("--many", type=int, default=100_000, help="of the memory measurement")
    parser.add_argument("--alternations", type=int, default=3)
    parser.add_argument("--skip", choices=["speed", "memory", "minute"], action="append", default=[])
    parser.add_argument("--memory-child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    keep_freed_memory()  # as the command does: for the model alone too
    if options.memory_child:
        measure_own_memory(options.memory_child)
        return
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="bench-infer-") as name:
        folder = Path(name)
        if "speed" not in options.skip:
            result["fraction_of_model"] = speed(folder, options.clips, options.alternations)
        if "memory" not in options.skip:
            result["rss_growth_mb"] = memory(folder, options.many)
        if "minute" not in options.skip:
            result["minute_seconds"] = minute(folder, options.alternations)
    print(json.dumps(result))


def save_model(
    path: Path, config: ModelConfig, shape: tuple[int, int, int], sampling: dict[str, Any] | None = None
) -> None:
    """Save an untrained model as a checkpoint."""
    torch.manual_seed(0)
    model = Stage1Model(config)
    with torch.no_grad():
        model.classifier.weight.normal_(std=0.5)
    checkpoints.save_checkpoint(
        path,
        Checkpoint(
            epoch=0,
            model_state_dict=model.state_dict(),
            optimizer_state_dict={},
            scheduler_state_dict={},
            model_config=dataclasses.asdict(config),
            transform_config=dataclasses.asdict(TransformConfig()),
            clip_shape=dict(zip(("num_frames", "height", "width"), shape, strict=True)),
            sampling={"clip_len": shape[0], **(sampling or {"mode": "uniform", "clips_per_video": 1})},
            frame_gap_seconds=0.1,
        ),
    )


def repeat_index(folder: Path, num_clips: int) -> None:
    """Make the index of a shard folder name its clips again and again, each time as clips of other videos."""
    shards = manifest.open_shards(folder)
    index = shards.index
    times = -(-num_clips // len(index))
    clips = np.tile(index.clips, times)[:num_clips]
    data = dataclasses.replace(index, clips=clips).to_bytes()
    changed = dataclasses.replace(shards.manifest, index_bytes=len(data), index_sha256=hashlib.sha256(data).hexdigest())
    (folder / changed.index_name).write_bytes(data)
    manifest.write_manifest(folder, changed)


# --- speed --------------------------------------------------------------------------------------------------------


def speed(folder: Path, num_clips: int, alternations: int) -> float:
    """Clips/s of inference ÷ clips/s of the model alone, median of the turns."""
    shards = write_shards(folder / "shards", random_clips(min(num_clips, NUM_DISTINCT), shape=SHAPE), [0, 1] * 250)
    repeat_index(shards, num_clips)
    save_model(folder / "model.pt", ModelConfig(), SHAPE)
    config = InferConfig(shards=shards, checkpoint=folder / "model.pt", out=folder / "out", threshold=1.0)
    checkpoint = checkpoints.load_checkpoint(folder / "model.pt")
    model, transform = checkpoint.build_model(), checkpoint.build_transform()
    batches = [torch.from_numpy(random_clips(BATCH, shape=SHAPE, seed=seed)) for seed in range(4)]
    num_batches = -(-num_clips // BATCH)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def forward(i: int) -> None:
        with torch.inference_mode():
            model(transform(batches[i % 4]))

    def one_at_a_time() -> float:
        """Clips a second, over a tenth of the batches: on a shared machine this way can be ten times as slow."""
        torch.set_num_threads(cores)
        count = max(1, num_batches // 10)
        start = time.perf_counter()
        for i in range(count):
            forward(i)
        return count * BATCH / (time.perf_counter() - start)

    def a_batch_a_thread() -> float:
        torch.set_num_threads(1)
        start = time.perf_counter()
        with ThreadPoolExecutor(cores) as threads:
            list(threads.map(forward, range(num_batches)))
        return num_batches * BATCH / (time.perf_counter() - start)

    def inference() -> float:
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            infer(config)
        return num_clips / (time.perf_counter() - start)

    for i in range(4):
        forward(i)
    fractions = []
    for turn in range(alternations):
        alone = {"all threads on a batch": one_at_a_time(), "a batch a thread": a_batch_a_thread()}
        ours = inference()
        fractions.append(ours / max(alone.values()))
        told = ", ".join(f"{name} {rate:.1f}" for name, rate in alone.items())
        print(f"turn {turn + 1}: clips/s of the model alone: {told}; of stage1 infer {ours:.1f}", flush=True)
    return round(statistics.median(fractions), 4)


# --- one minute of video ------------------------------------------------------------------------------------------


def minute(folder: Path, alternations: int) -> float:
    """Seconds that the command takes for a file of one minute, cut into windows of 16 frames as a dense build does."""
    video = VideoConfig(width=320, height=240, fps=25, num_frames=(1500, 1500))
    plan = dataclasses.replace(plan_dataset({"Train": 2}, seed=0, config=video)[1], path="minute.mp4")
    (folder / plan.path).write_bytes(encode(render_video(plan, video), plan, video))
    save_model(folder / "minute.pt", ModelConfig(), SHAPE, sampling={"mode": "dense", "stride": 16})
    program = shutil.which("stage1", path=str(Path(sys.executable).parent)) or "stage1"
    command = [
        program,
        "infer",
        "--videos",
        plan.path,
        "--checkpoint",
        "minute.pt",
        "--out",
        "minute",
        "--threshold",
        "1",
    ]
    times = []
    for turn in range(alternations):
        start = time.perf_counter()
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
        clips = json.loads((folder / "minute" / "run.json").read_bytes())["clips"]["scored"]
        print(f"turn {turn + 1}: one minute of video, {clips} clips, in {times[-1]:.1f} s", flush=True)
    return round(statistics.median(times), 2)


# --- memory -------------------------------------------------------------------------------------------------------


def memory(folder: Path, num_clips: int) -> float:
    """Measure how much the resident memory of a process grows after its first 1,000 clips, in MB (10⁶ bytes)."""
    place = folder / "many"
    write_shards(place / "shards", random_clips(NUM_DISTINCT), [0, 1] * (NUM_DISTINCT // 2))
    repeat_index(place / "shards", num_clips)
    save_model(place / "model.pt", ModelConfig(channels=(8,), temporal_stages=()), (4, 16, 16))
    command = [sys.executable, __file__, "--memory-child", str(place)]
    print(f"memory over {num_clips:,} clips:", flush=True)
    shown = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    print(shown.rsplit("\n", 2)[0])
    return float(shown.splitlines()[-1])


def measure_own_memory(place: Path) -> None:
    """Score, and print how much memory was added after the first clips, reading, scoring and writing included."""
    config = InferConfig(
        shards=place / "shards",
        checkpoint=place / "model.pt",
        out=place / "out",
        threshold=0.5,
        attention_format="shards",  # the one for any size; the file of tensors is mapped into memory as a whole
    )
    sizes: list[tuple[int, int]] = []  # clips scored, bytes resident
    done = threading.Event()
    scored = place / "out" / ".unfinished"

    def clips_scored() -> int:
        record = 4 + 12 + 4 + 8 * (4 + 4 * 4 + 32)
        with contextlib.suppress(OSError):
            return sum(path.stat().st_size for path in scored.glob("*.scores")) // record * 8
        return 0

    def watch() -> None:
        while not done.wait(0.02):
            sizes.append((max(clips_scored(), sizes[-1][0] if sizes else 0), resident_bytes()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    with contextlib.redirect_stdout(io.StringIO()):
        infer(config)
    done.set()
    watcher.join()
    first = next(i for i, (clips, _) in enumerate(sizes) if clips >= WARM)
    warm = max(size for _, size in sizes[: first + 1])
    highest = max(size for _, size in sizes[first:])
    total = json.loads((place / "out" / "run.json").read_bytes())["clips"]
    scoring = max(size for clips, size in sizes[first:] if clips < sizes[-1][0])
    print(
        f"after {sizes[first][0]:,} clips {warm / 1e6:.0f} MB, highest while scoring {scoring / 1e6:.0f} MB, while "
        f"writing {highest / 1e6:.0f} MB"
    )
    print(f"{total['scored']:,} clips scored, {total['detected']:,} detected, written as attention shards")
    print(round((highest - warm) / 1e6, 1))


def resident_bytes() -> int:
    """Linux: /proc. Elsewhere this measurement is not possible."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("no /proc/self/status with VmRSS: the memory is measured on Linux only")


if __name__ == "__main__":
    main()
