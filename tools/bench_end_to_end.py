#!/usr/bin/env python3
"""Decode once, or in every epoch: `vidshard build` + `stage1 train` against the notebook's way.

    python tools/bench_end_to_end.py [--videos TRAIN_FOLDER] [--num-short 48] [--num-long 8] [--long-seconds 240]
        [--alternations 5]

Both ways train the same model for five epochs, batch 4, on the same videos, in turns in one run, each as its own
process from a cold start (imports included). The notebook's way: a Dataset that reads the whole video with OpenCV,
keeps all frames, takes 16, resizes and normalises them, under a DataLoader; with `--notebook-workers` processes (by
default one a core, which is kinder to it than none). Short videos are generated (two seconds, 320×240), or taken from
TRAIN_FOLDER/<Class>/; the long ones are four minutes by default, made by putting the short ones one after another at
320×240, 30 frames/s.

Prints medians, and as its last line JSON: {"ratio_short": ours ÷ notebook's time, "ratio_long": …, "rss_mb": the peak
memory of all our processes together}.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

NUM_EPOCHS, BATCH_SIZE, LEARNING_RATE = 5, 4, 1e-4
NUM_FRAMES, FRAME_SIZE = 16, 112
OUR_TRAINING = ("--preset", "notebook", "--val-fraction", "0")
LONG_FPS, LONG_SIZE = 30, (320, 240)


def main() -> None:
    options = parse_options()
    if options.run_notebook:
        train_the_notebooks_way(options.run_notebook, options.notebook_workers)
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        short = short_videos(root / "short", options.videos, options.num_short)
        long = long_videos(root / "long", short, options.num_long, options.long_seconds)
        results = {
            "short": compare("short", short, root, options),
            "long": compare("long", long, root, options),
        }
    summary = {f"ratio_{name}": round(result["ratio"], 3) for name, result in results.items()}
    print(json.dumps({**summary, "rss_mb": round(max(result["rss_mb"] for result in results.values()))}))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, help="folder of class folders with MP4s; default: generated")
    parser.add_argument("--num-short", type=int, default=48)
    parser.add_argument("--num-long", type=int, default=8)
    parser.add_argument("--long-seconds", type=int, default=240)
    parser.add_argument("--alternations", type=int, default=5)
    parser.add_argument("--notebook-workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--run-notebook", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


# ---- the comparison


def compare(name: str, videos: Path, root: Path, options: argparse.Namespace) -> dict[str, float]:
    """Time both ways in turns on one folder of videos."""
    count = len(list(videos.glob("*/*")))
    print(f"{name}: {count} videos, {NUM_EPOCHS} epochs, {options.alternations} alternations", flush=True)
    times: dict[str, list[float]] = {"ours": [], "notebook": []}
    peaks: dict[str, float] = {"ours": 0, "notebook": 0}
    for turn in range(options.alternations):
        work = root / f"{name}-{turn}"
        ways = {
            "ours": [
                [*command("vidshard"), "build", str(videos), "--out", str(work / "shards"), "--yes"],
                [*command("stage1"), "train", *OUR_TRAINING, f"--shards={work}/shards", f"--out={work}/checkpoints"],
            ],
            "notebook": [
                [sys.executable, __file__, f"--run-notebook={videos}", f"--notebook-workers={options.notebook_workers}"]
            ],
        }
        for way, commands in ways.items():
            start = time.perf_counter()
            peaks[way] = max([peaks[way], *(run_and_measure(line) for line in commands)])
            times[way].append(time.perf_counter() - start)
        print(f"  {turn + 1}: ours {times['ours'][-1]:.1f} s, notebook {times['notebook'][-1]:.1f} s", flush=True)
    ratio = statistics.median(ours / theirs for ours, theirs in zip(times["ours"], times["notebook"], strict=True))
    for way in times:
        print(f"  {way}: median {statistics.median(times[way]):.1f} s, peak memory {peaks[way]:.0f} MB")
    print(f"  ratio {ratio:.3f}", flush=True)
    return {"ratio": ratio, "rss_mb": peaks["ours"]}


def command(name: str) -> list[str]:
    return [sys.executable, "-m", name]


def run_and_measure(line: list[str]) -> float:
    """Run a command; the peak memory of its process and all children together, in MB (0 where /proc is missing)."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(line, stdout=output, stderr=subprocess.STDOUT)
        peak, ended = [0.0], threading.Event()

        def watch() -> None:
            while not ended.wait(0.1):
                peak[0] = max(peak[0], tree_memory_mb(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        code = process.wait()
        ended.set()
        watcher.join()
        if code != 0:
            output.seek(0)
            raise SystemExit(f"{' '.join(line)} ended with {code}:\n{output.read().decode(errors='replace')}")
    return peak[0]


def tree_memory_mb(root: int) -> float:
    """Proportional set size of a process and its descendants: shared pages are counted once."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has just ended
    family = {root}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    total = 0
    for pid in family:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


# ---- the notebook's way


def train_the_notebooks_way(videos: Path, num_workers: int) -> None:
    """Train as the notebook does: decode in the loader, in every epoch. Model, optimizer and clipping are ours."""
    import numpy as np
    import torch

    import notebook_way
    from stage1.model.network import ModelConfig, Stage1Model

    mean, std = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)

    class Videos(torch.utils.data.Dataset[Any]):
        def __init__(self) -> None:
            self.paths = sorted(videos.glob("*/*"))

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, item: int) -> tuple[torch.Tensor, int]:
            path = self.paths[item]
            clip = notebook_way.read_clip(path, num_frames=NUM_FRAMES, frame_size=FRAME_SIZE)
            clip = (clip.astype(np.float32) / 255 - mean) / std
            return torch.from_numpy(clip).permute(3, 0, 1, 2), int("normal" not in path.parent.name.lower())

    torch.manual_seed(0)
    model = Stage1Model(ModelConfig())
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    loader = torch.utils.data.DataLoader(Videos(), batch_size=BATCH_SIZE, shuffle=True, num_workers=num_workers)
    for _ in range(NUM_EPOCHS):
        for clips_BCTHW, labels_B in loader:
            logits_BK, _ = model(clips_BCTHW)
            loss = torch.nn.functional.cross_entropy(logits_BK, labels_B)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()


# ---- the videos


def short_videos(out: Path, source: Path | None, count: int) -> Path:
    """`count` videos of both classes: real ones, evenly spread, or generated ones of two seconds."""
    if source is None:
        from synthetic_videos import VideoConfig, make_dataset

        config = VideoConfig(width=320, height=240, fps=30, num_frames=(60, 60))
        make_dataset(out, num_videos={"Train": count}, config=config)
        return out / "Train"
    found = sorted(path for path in source.glob("*/*") if path.suffix.lower() in {".mp4", ".m4v", ".mov"})
    if not found:
        raise SystemExit(f"no MP4 in the class folders of {source}")
    for i in range(min(count, len(found))):
        path = found[i * len(found) // min(count, len(found))]
        copy = out / path.parent.name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return out


def long_videos(out: Path, short: Path, count: int, seconds: int) -> Path:
    """`count` videos of `seconds`, both classes in turn, each made of the short videos of its class in a loop."""
    classes = sorted(folder for folder in short.iterdir() if folder.is_dir())
    for i in range(count):
        folder = classes[i % len(classes)]
        clips = sorted(folder.iterdir())
        path = out / folder.name / f"long{i:03d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        encode(path, looped_frames(clips[i % len(clips) :] + clips[: i % len(clips)], seconds * LONG_FPS))
    return out


def looped_frames(clips: list[Path], left: int) -> Iterator[Any]:
    """Yield `left` frames."""
    import av

    while True:
        for clip in clips:
            with av.open(str(clip)) as container:
                for frame in container.decode(video=0):
                    yield frame.reformat(*LONG_SIZE, format="yuv420p")
                    left -= 1
                    if left == 0:
                        return


def encode(path: Path, frames: Iterator[Any]) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=LONG_FPS, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height = LONG_SIZE
        stream.pix_fmt = "yuv420p"
        for number, frame in enumerate(frames):
            frame.pts, frame.time_base = number, Fraction(1, LONG_FPS)
            frame.pict_type = 0
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


if __name__ == "__main__":
    main()
