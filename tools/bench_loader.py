#!/usr/bin/env python3
"""Speed of loading clips into batches: our loader, others, and the limit, alternating in one run on one core.

    python tools/bench_loader.py [--quick] [--videos FOLDER_OF_CLASSES] [--num-clips 2000] [--alternations 7]

The same clips (16×112×112, by default noise; `--videos` builds real ones) for all, one process tied to one core, page
cache warm, checksums already verified (our first epoch, which verifies them, is stated too), no GPU. Clips per second
of processor time (all threads) at batch 4 and 32, the median of the alternations. The limit is the faster of plain
`pread` and mmap + copy of the same bytes into a reused batch.

Every loop lets go of a batch before it asks for the next one, so that whoever can use its memory again may do so, as
the limit does; "ours_held" is our loader in a plain ``for`` loop, which holds the last batch meanwhile. All read in the
calling thread, but "ours_read_ahead", which has the thread that is on by default and pays off where there is a core
for it.

The notebook's way decodes in the loader (OpenCV, whole video, 16 frames resized): videos of two seconds (those of
`--videos`, else generated ones of 640×360 and 1280×720, as the clips of the Surveillance Camera Fight Dataset mostly
are) and of four minutes (320×240 as those of UCF-Crime, generated).

Loaders that are not installed are named and left out. They live best in an environment of their own:

    python -m venv bench && bench/bin/pip install -e '.[bench]' && bench/bin/python tools/bench_loader.py

Last line: JSON {"ratio_to": {...}, "fraction_of_limit": x}, at batch 32.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from fake_shards import write_shards  # noqa: E402
from stage1.data.loader import ClipLoader, ClipReader  # noqa: E402

CLIP_SHAPE = (16, 112, 112)
BATCH_SIZES = (4, 32)
CLIPS_PER_SHARD = 250
Pass = Callable[[int], Iterator[int]]  # batch size → the sizes of the batches of one epoch


def main() -> None:
    options = parse_options()
    torch.set_num_threads(1)
    with contextlib.suppress(AttributeError, OSError):  # not on every system
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory(dir=options.work) as temporary:
        work = Path(temporary)
        folder = make_shards(work, options)
        print(f"first epoch, page cache warm, checksums verified: {first_epoch(folder):,.0f} clips/s", flush=True)
        print(f"memory after each of 5 epochs, MB: {memory_over_epochs(folder)}", flush=True)
        contenders = make_contenders(folder, work)
        results = {size: compare(contenders, size, options) for size in BATCH_SIZES}
        notebook = {
            "notebook_short": notebook_way("notebook_short", short_videos(work, options), 10),
            "notebook_long": notebook_way(
                "notebook_long", [make_video(work / "long.mp4", (5 if options.quick else 240) * 30, (320, 240))], 2
            ),
        }
    report(results[32], notebook)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, help="folder of class folders with MP4s; default: noise")
    parser.add_argument("--num-clips", type=int, default=2000)
    parser.add_argument("--alternations", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="few: to see that it runs, not for figures")
    parser.add_argument("--work", type=Path, help="where temporary files go")
    options = parser.parse_args()
    if options.quick:
        options.num_clips = 300
    return options


# ---- the data


def make_shards(work: Path, options: argparse.Namespace) -> Path:
    if options.videos:
        command = [sys.executable, "-c", "from vidshard.cli.main import main; main()", "build", str(options.videos)]
        settings = ["--sampling", "dense", "--out", str(work / "shards"), "--yes"]
        subprocess.run([*command, *settings], check=True)
        return work / "shards"
    # Noise of a few hundred different clips: none of the loaders looks at the pixels.
    different = np.random.default_rng(0).integers(0, 256, (min(options.num_clips, 250), *CLIP_SHAPE, 3), np.uint8)
    clips = Repeated(different, options.num_clips)
    labels = [i % 2 for i in range(options.num_clips)]
    return write_shards(work / "shards", clips, labels, clips_per_shard=CLIPS_PER_SHARD)  # type: ignore[arg-type]


class Repeated:
    """Looks like an array of many clips, and holds few: the same ones again and again."""

    def __init__(self, clips: np.ndarray, count: int) -> None:
        self.clips, self.shape = clips, (count, *clips.shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, i: int) -> np.ndarray:
        return self.clips[i % len(self.clips)]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))


# ---- the contenders


def make_contenders(folder: Path, work: Path) -> dict[str, Pass]:
    contenders = {
        "ours": ours(folder, num_threads=0),
        "ours_held": ours(folder, num_threads=0, held=True),
        "ours_read_ahead": ours(folder, num_threads=1),
        "limit_pread": limit_pread(folder),
        "limit_mmap": limit_mmap(folder),
        "webdataset": webdataset_usual(folder),
        "webdataset_raw": webdataset_raw(folder),
    }
    for name, make in (("litdata", litdata), ("streaming", streaming), ("ffcv", ffcv)):
        if importlib.util.find_spec(name) is None:
            print(f"{name} is not installed: left out")
            continue
        try:
            contenders[name] = make(folder, work / name)
        except Exception as error:  # other people's packages break in many ways; the rest is still worth knowing
            print(f"{name} does not run here: {error!r}")
    return contenders


def sizes(batches: Iterable[Any], size_of: Callable[[Any], int]) -> Iterator[int]:
    """Yield the sizes of `batches` without holding one while the next is made."""
    iterator = iter(batches)
    while (batch := next(iterator, None)) is not None:
        size = size_of(batch)
        del batch
        yield size


def ours(folder: Path, *, num_threads: int, held: bool = False) -> Pass:
    reader = ClipReader(folder)
    loaders = {size: ClipLoader(reader, batch_size=size, shuffle=True, num_threads=num_threads) for size in BATCH_SIZES}

    def run(batch_size: int) -> Iterator[int]:
        if not held:
            yield from sizes(loaders[batch_size], lambda batch: len(batch.labels))
            return
        for batch in loaders[batch_size]:
            yield len(batch.labels)

    return run


def _places(folder: Path, batch_size: int) -> Iterator[list[tuple[int, int]]]:
    """(shard, offset of the pixels) of every clip in a shuffled order, batch by batch."""
    clips = ClipReader(folder).index.clips
    order = np.random.default_rng(0).permutation(len(clips))
    shards, offsets = clips["shard"][order].tolist(), (clips["offset"][order] + 128).tolist()
    for first in range(0, len(order), batch_size):
        yield list(zip(shards[first : first + batch_size], offsets[first : first + batch_size], strict=True))


def limit_pread(folder: Path) -> Pass:
    files = [os.open(path, os.O_RDONLY) for path in sorted(folder.glob("*.tar"))]
    batches = {size: np.empty((size, *CLIP_SHAPE, 3), np.uint8) for size in BATCH_SIZES}
    plans = {size: list(_places(folder, size)) for size in BATCH_SIZES}

    def run(batch_size: int) -> Iterator[int]:
        views = [clip.data.cast("B") for clip in batches[batch_size]]
        for places in plans[batch_size]:
            for view, (shard, offset) in zip(views, places, strict=False):
                os.preadv(files[shard], [view], offset)
            yield len(places)

    return run


def limit_mmap(folder: Path) -> Pass:
    maps = []
    for path in sorted(folder.glob("*.tar")):
        with open(path, "rb") as file:
            maps.append(np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8))
    batches = {size: np.empty((size, int(np.prod(CLIP_SHAPE)) * 3), np.uint8) for size in BATCH_SIZES}
    plans = {size: list(_places(folder, size)) for size in BATCH_SIZES}

    def run(batch_size: int) -> Iterator[int]:
        batch = batches[batch_size]
        for places in plans[batch_size]:
            for clip, (shard, offset) in zip(batch, places, strict=False):
                clip[:] = maps[shard][offset : offset + len(clip)]
            yield len(places)

    return run


def webdataset_usual(folder: Path) -> Pass:
    import webdataset as wds

    urls = [str(path) for path in sorted(folder.glob("*.tar"))]

    def run(batch_size: int) -> Iterator[int]:
        dataset = wds.WebDataset(urls, shardshuffle=False).decode().to_tuple("npy", "json").batched(batch_size)
        yield from sizes(dataset, lambda batch: len(batch[0]))

    return run


def webdataset_raw(folder: Path) -> Pass:
    import webdataset as wds

    urls = [str(path) for path in sorted(folder.glob("*.tar"))]

    def clip(data: bytes) -> np.ndarray:
        return np.frombuffer(data, np.uint8, offset=128).reshape(*CLIP_SHAPE, 3)

    def run(batch_size: int) -> Iterator[int]:
        dataset = wds.WebDataset(urls, shardshuffle=False).to_tuple("npy").map_tuple(clip).batched(batch_size)
        yield from sizes(dataset, lambda batch: len(batch[0]))

    return run


def litdata(folder: Path, work: Path) -> Pass:
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    reader = ClipReader(folder)
    work.mkdir()
    writer = BinaryWriter(str(work), chunk_bytes="64MB")
    for row in range(len(reader)):
        writer[row] = {"clip": torch.from_numpy(reader[row]), "label": int(reader.labels[row])}
    writer.done()
    writer.merge()

    def run(batch_size: int) -> Iterator[int]:
        dataset = StreamingDataset(str(work), shuffle=True)
        loader = StreamingDataLoader(dataset, batch_size=batch_size, num_workers=0)
        yield from sizes(loader, lambda batch: len(batch["label"]))

    return run


def streaming(folder: Path, work: Path) -> Pass:
    from streaming import MDSWriter, StreamingDataset

    reader = ClipReader(folder)
    shape = ",".join(str(size) for size in (*CLIP_SHAPE, 3))
    with MDSWriter(out=str(work), columns={"clip": f"ndarray:uint8:{shape}", "label": "int"}) as writer:
        for row in range(len(reader)):
            writer.write({"clip": reader[row], "label": int(reader.labels[row])})

    def run(batch_size: int) -> Iterator[int]:
        dataset = StreamingDataset(local=str(work), shuffle=True, batch_size=batch_size)
        loader = torch.utils.data.DataLoader(dataset, batch_size=batch_size, num_workers=0)
        yield from sizes(loader, lambda batch: len(batch["label"]))

    return run


def ffcv(folder: Path, work: Path) -> Pass:
    """Written after ffcv's documentation; where this was developed it did not install, so it never ran."""
    from ffcv.fields import IntField, NDArrayField
    from ffcv.fields.decoders import IntDecoder, NDArrayDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor
    from ffcv.writer import DatasetWriter

    reader = ClipReader(folder)
    rows = [(reader[row], int(reader.labels[row])) for row in range(len(reader))]
    path = str(work.with_suffix(".beton"))
    fields = {"clip": NDArrayField(np.dtype("uint8"), (*CLIP_SHAPE, 3)), "label": IntField()}
    DatasetWriter(path, fields, num_workers=1).from_indexed_dataset(rows)
    pipelines = {"clip": [NDArrayDecoder(), ToTensor()], "label": [IntDecoder(), ToTensor()]}

    def run(batch_size: int) -> Iterator[int]:
        loader = Loader(path, batch_size=batch_size, num_workers=1, order=OrderOption.RANDOM, pipelines=pipelines)
        yield from sizes(loader, lambda batch: len(batch[1]))

    return run


# ---- the notebook's way


def notebook_way(name: str, videos: list[Path], count: int) -> float:
    """Clips/s of the loop that reads the whole video in the loader and keeps 16 frames."""
    import cv2

    from notebook_way import read_clip

    cv2.setNumThreads(1)
    start = time.process_time()
    for i in range(count):
        clip = read_clip(videos[i % len(videos)], num_frames=CLIP_SHAPE[0], frame_size=CLIP_SHAPE[1])
        assert clip.shape == (*CLIP_SHAPE, 3)
    speed = count / (time.process_time() - start)
    print(f"{name}: {speed:.2f} clips/s", flush=True)
    return speed


def short_videos(work: Path, options: argparse.Namespace) -> list[Path]:
    """Ten of the videos of the user, else generated ones of two seconds in two sizes."""
    if options.videos:
        found = sorted(options.videos.rglob("*.mp4"))
        return found[:: max(1, len(found) // 10)][:10]
    return [make_video(work / f"short-{size[0]}.mp4", 60, size) for size in ((640, 360), (1280, 720))]


def make_video(path: Path, num_frames: int, size: tuple[int, int]) -> Path:
    """Write an H.264 video of a moving pattern at 30 frames/s; `size` is (width, height)."""
    import av

    width, height = size
    pattern = np.random.default_rng(0).integers(0, 256, (-(-height // 20), -(-width // 20) + 4, 3), np.uint8)
    pattern = pattern.repeat(20, 0).repeat(20, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast", "g": "250"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(num_frames):
            image = np.ascontiguousarray(pattern[:height, i % 80 : i % 80 + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


# ---- measuring


def compare(contenders: dict[str, Pass], batch_size: int, options: argparse.Namespace) -> dict[str, float]:
    """Median clips/s of each contender, all of them in turns."""
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(1 + options.alternations):
        for name, run in contenders.items():
            start = time.process_time()
            num_clips = sum(run(batch_size))
            if turn:  # the first warms caches and buffers, and verifies checksums
                speeds[name].append(num_clips / (time.process_time() - start))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    for name, values in speeds.items():
        spread = f"{min(values):,.0f} to {max(values):,.0f}"
        print(f"batch {batch_size}: {name} {medians[name]:,.0f} clips/s ({spread})", flush=True)
    return medians


def first_epoch(folder: Path) -> float:
    loader = ClipLoader(ClipReader(folder), batch_size=32, shuffle=True)
    start = time.perf_counter()
    num_clips = sum(len(batch.labels) for batch in loader)
    return num_clips / (time.perf_counter() - start)


def memory_over_epochs(folder: Path) -> dict[str, list[int]]:
    """Resident memory in MB after each of five epochs: what is the process's own, and pages of files, which the system
    may drop and which are in the page cache anyway. Empty where the system does not tell (Linux does)."""
    loader = ClipLoader(ClipReader(folder), batch_size=32, shuffle=True)
    found: dict[str, list[int]] = {"own": [], "of files": []}
    for _ in range(5):
        for _batch in loader:
            pass
        with contextlib.suppress(OSError):
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            for name, field in (("own", "RssAnon"), ("of files", "RssFile")):
                found[name].append(round(int(status[field].split()[0]) / 1e3))
    return found


def report(medians: dict[str, float], notebook: dict[str, float]) -> None:
    ours_speed = medians["ours"]
    limit = max(medians["limit_pread"], medians["limit_mmap"])
    ratios = {
        name: round(ours_speed / speed, 2)
        for name, speed in {**medians, **notebook}.items()
        if not name.startswith(("limit", "ours"))
    }
    print(json.dumps({"ratio_to": ratios, "fraction_of_limit": round(ours_speed / limit, 3)}))


if __name__ == "__main__":
    main()
