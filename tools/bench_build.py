#!/usr/bin/env python3
"""Decoding speed of `vidshard build`, compared with the minimum and with other tools.

    python tools/bench_build.py [--videos FOLDER] [--only dense sparse …] [--quick] [--video2dataset PYTHON]
    python tools/bench_build.py [--other-python PATH] [--other-checkout FOLDER]   # another environment to compare
    with this one

All is measured side by side in one run, in turns, and medians of five are taken; it takes about six minutes. Videos:
short ones of two seconds and long ones of four minutes at about 0.2 and 1.4 Mb/s, all 320×240 at 30 frames/s with
keyframes 250 frames apart, generated; with FOLDER (class folders of MP4s) the short ones are real, and the long ones
are made of them. The small measurements count seconds of CPU, of all threads of all processes; whole builds count the
wall, so let nothing else run.

  floor      decoding alone: `ffmpeg -threads 1 -i X -f null -`, less what ffmpeg takes to start; PyAV without ffmpeg
  notebook   what people write: OpenCV, read all frames, keep all, resize 16
  dense      every frame, resized to 112×112, by each of our decoders: as a fraction of the floor. Of long videos one
             minute, which they repeat: what opening costs then weighs more than it does in four
  sparse     16 frames of a video, its packets read first: how many times as fast as the notebook's loop
  build      the whole command, every frame of videos of a minute at 1.4 Mb/s: against decoding alone (the same frames
             by the same decoder in a loop); with two workers against one; the memory of its processes
  memory     the whole command, every frame of one video of 30 minutes: the memory of its processes
  others     video2dataset on the short videos, if PYTHON (default: this one) can import it. As published its resizing
             fails for every shard and the run exits 0: the attribute `encode_formats` is not there. It is added here.

With another interpreter, another checkout of this repository, or both, only dense and sparse are measured, there and
here in turns, each turn in a process of its own: how many times as fast as there it is here, as a ratio of medians.

The last line is JSON, without what --only left out. `dense_fraction_of_floor` is that of the long video at 1.4 Mb/s,
`sparse_ratio_to_notebook` the lower of the two long videos; the table above it has them all.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

import notebook_way

NUM_FRAMES, FRAME_SIZE = 16, 112
SIZE, FPS, KEYFRAME_DISTANCE = (320, 240), 30, 250
RATES = {"long 0.2 Mb/s": 200_000, "long 1.4 Mb/s": 1_400_000}
EASY, HARD = RATES
DECODERS = ("decord", "opencv", "pyav")
BEST = "pyav"
SECTIONS = ("dense", "sparse", "build", "memory", "others")


def main() -> None:
    options = parse_options()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        sets, minutes = make_videos(root / "videos", options)
        warm_up(sets["short"][0], options.decoders)
        if options.other_python or options.other_checkout:
            print(json.dumps(compare_environments(sets, minutes, options)))
            return
        figures: dict[str, Any] = {}
        peaks: dict[str, float] = {"parent": 0, "worker": 0}
        if "dense" in options.only:
            dense = measure_dense({"short": sets["short"], **minutes}, Floor(options.ffmpeg), options)
            figures["dense_fraction_of_floor"] = {name: round(dense[HARD][name], 3) for name in options.decoders}
        if "sparse" in options.only:
            sparse = measure_sparse(sets, options)
            lower = {name: min(sparse[label][name] for label in RATES) for name in options.decoders}
            figures["sparse_ratio_to_notebook"] = {name: round(lower[name], 2) for name in options.decoders}
        if "build" in options.only:
            figures |= measure_builds(root / "builds", minutes[HARD][0], peaks, options)
        if "memory" in options.only:
            measure_memory(root / "memory", minutes[EASY][0], peaks, options)
        if "others" in options.only:
            measure_others(root / "others", sets["short"], options)
        if peaks["parent"]:
            figures["rss_mb"] = {name: round(peak) for name, peak in peaks.items()}
    print(json.dumps(figures))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, help="folder of class folders with MP4s; default: generated")
    parser.add_argument("--only", nargs="+", default=SECTIONS, choices=SECTIONS, help="measure these (default: all)")
    parser.add_argument("--quick", action="store_true", help="small and few: to see that it runs, not for figures")
    parser.add_argument("--alternations", type=int, help="turns of every measurement (default: 5)")
    parser.add_argument("--build-videos", type=int, help="of a minute, for whole builds (default: 8)")
    parser.add_argument("--decoders", nargs="+", default=DECODERS, choices=DECODERS)
    parser.add_argument("--ffmpeg", default=shutil.which("ffmpeg"), help="binary for the floor (default: on PATH)")
    parser.add_argument("--video2dataset", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--other-python", metavar="PATH", help="interpreter of another environment to compare with")
    parser.add_argument("--other-checkout", type=Path, metavar="FOLDER", help="another checkout of this repository")
    options = parser.parse_args()
    options.alternations = options.alternations or (1 if options.quick else 5)
    options.num_short = 4 if options.quick else 24
    options.long_seconds = 20 if options.quick else 240
    options.num_build_videos = options.build_videos or (2 if options.quick else 8)
    options.very_long_minutes = 2 if options.quick else 30
    return options


# ---- dense and sparse


def measure_dense(
    sets: dict[str, list[Path]], floor: Floor, options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Set → decoder → frames per CPU second as a fraction of the floor's."""
    print(
        f"\ndense: every frame to {FRAME_SIZE}×{FRAME_SIZE}, frames per CPU second; floor by {floor.name}", flush=True
    )
    fractions: dict[str, dict[str, float]] = {}
    for label, videos in sets.items():
        tables = read_tables(videos)
        num_frames = sum(table.num_frames for table in tables)
        ways: dict[str, Callable[[], float]] = {"floor": lambda videos=videos: floor.seconds(videos)}
        for name in options.decoders:
            ways[name] = lambda videos=videos, tables=tables, name=name: cpu_seconds(
                lambda: decode_dense(videos, tables, name)
            )
        seconds = alternate(ways, options.alternations)
        fractions[label] = {name: ratio(seconds["floor"], seconds[name]) for name in ways}
        for name in ways:
            rate = num_frames / statistics.median(seconds[name])
            print(f"  {label:<14} {name:<14} {rate:>9,.0f}  {fractions[label][name]:>6.1%} of the floor", flush=True)
    return fractions


def measure_sparse(sets: dict[str, list[Path]], options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Set → decoder → how many times as fast as the notebook's loop."""
    print(f"\nsparse: one clip of {NUM_FRAMES} frames, CPU milliseconds a video", flush=True)
    ratios: dict[str, dict[str, float]] = {}
    for label, videos in sets.items():
        ways = {"notebook": lambda videos=videos: cpu_seconds(lambda: [read_as_the_notebook(v) for v in videos])}
        for name in options.decoders:
            ways[name] = lambda videos=videos, name=name: cpu_seconds(lambda: [decode_sparse(v, name) for v in videos])
        seconds = alternate(ways, options.alternations)
        ratios[label] = {name: ratio(seconds["notebook"], seconds[name]) for name in ways}
        for name in ways:
            milliseconds = 1000 * statistics.median(seconds[name]) / len(videos)
            print(f"  {label:<14} {name:<14} {milliseconds:>9,.1f}  {ratios[label][name]:>6.2f} ×", flush=True)
    return ratios


def warm_up(video: Path, decoders: Sequence[str]) -> None:
    """Load every library once, before anything is timed."""
    decode_with_pyav([video])
    read_as_the_notebook(video)
    for name in decoders:
        decode_sparse(video, name)


class Floor:
    """Decoding and nothing else, by the ffmpeg binary if there is one."""

    def __init__(self, ffmpeg: str | None) -> None:
        self.ffmpeg = ffmpeg
        self.name = "ffmpeg" if ffmpeg else "PyAV (no ffmpeg on PATH)"

    def seconds(self, videos: Sequence[Path]) -> float:
        if self.ffmpeg is None:
            return cpu_seconds(lambda: decode_with_pyav(videos))
        start = statistics.median(self._run("-version") for _ in range(3))
        runs = [self._run("-threads", "1", "-i", str(video), "-map", "0:v:0", "-f", "null", "-") for video in videos]
        return sum(runs) - len(runs) * start

    def _run(self, *arguments: str) -> float:
        line = [str(self.ffmpeg), "-nostdin", "-hide_banner", "-loglevel", "error", *arguments]
        return cpu_seconds(lambda: subprocess.run(line, check=True, stdout=subprocess.DEVNULL))


def decode_with_pyav(videos: Sequence[Path]) -> None:
    import av

    for video in videos:
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for _ in container.decode(stream):
                pass


def read_tables(videos: Sequence[Path]) -> list[Any]:
    from vidshard.video.packets import read_packet_table

    return [read_packet_table(video) for video in videos]


def decode_dense(videos: Sequence[Path], tables: Sequence[Any], decoder_name: str) -> None:
    from vidshard.video.decoders import decoders_for

    (decoder,) = decoders_for(decoder_name)
    for video, table in zip(videos, tables, strict=True):
        frames = decoder.frames(video, table, range(table.num_frames), height=FRAME_SIZE, width=FRAME_SIZE)
        count = sum(1 for _ in frames)
        assert count == table.num_frames, f"{decoder_name} gave {count} of {table.num_frames} frames of {video}"


def decode_sparse(video: Path, decoder_name: str) -> Any:
    """Decode a video as a build with the default sampling does: packets, then the frames of one clip."""
    from vidshard.video.decoders import decoders_for
    from vidshard.video.sampling import frame_indices

    (table,) = read_tables([video])
    wanted = frame_indices(table.num_frames, num_frames=NUM_FRAMES)
    (decoder,) = decoders_for(decoder_name)
    frames = decoder.frames(video, table, sorted(set(wanted)), height=FRAME_SIZE, width=FRAME_SIZE)
    return np.stack(list(frames))


def read_as_the_notebook(video: Path) -> Any:
    return notebook_way.read_clip(video, num_frames=NUM_FRAMES, frame_size=FRAME_SIZE)


# ---- another environment

# Runs in either environment, with the functions of its own checkout. Short work is repeated until it can be timed.
_MEASURE_ONE = """
import sys
from pathlib import Path
root, section, decoder, *names = sys.argv[1:]
sys.path[:0] = [root, str(Path(root, "tools"))]
import bench_build as bench
videos = [Path(name) for name in names]
tables = bench.read_tables(videos)
bench.decode_sparse(videos[0], decoder)
def work():
    if section == "dense":
        bench.decode_dense(videos, tables, decoder)
    else:
        for video in videos:
            bench.decode_sparse(video, decoder)
total = turns = 0
while total < 1:
    total += bench.cpu_seconds(work)
    turns += 1
print(f"\\n{total / turns}")
"""
# An older checkout has its modules in other places.
_VERSIONS = """
import sys
sys.path.insert(0, sys.argv[1])
try:
    from vidshard.video import decoders
except ImportError:
    from vidshard import decoders
print(decoders.decoder_versions())
"""


def compare_environments(
    sets: dict[str, list[Path]], minutes: dict[str, list[Path]], options: argparse.Namespace
) -> dict[str, Any]:
    """Section → set → decoder → how many times as fast as the other environment this one is, in seconds of CPU."""
    here = Path(__file__).resolve().parent.parent
    environments = {
        "this": (sys.executable, here),
        "other": (options.other_python or sys.executable, (options.other_checkout or here).resolve()),
    }
    for name, (python, checkout) in environments.items():
        print(f"{name}: {checkout} by {python}: {printed_last(python, _VERSIONS, checkout)}", flush=True)
    videos = {"dense": {"short": sets["short"], **minutes}, "sparse": sets}
    ratios: dict[str, Any] = {}
    for section in (section for section in videos if section in options.only):
        print(f"\n{section}: CPU seconds, median of {options.alternations}; other ÷ this", flush=True)
        for label, paths in videos[section].items():
            for decoder in options.decoders:
                ways = {
                    name: lambda one=one, paths=paths, section=section, decoder=decoder: float(
                        printed_last(one[0], _MEASURE_ONE, one[1], section, decoder, *paths)
                    )
                    for name, one in environments.items()
                }
                seconds = alternate(ways, options.alternations)
                this, other = (statistics.median(seconds[name]) for name in environments)
                ratios.setdefault(section, {}).setdefault(label, {})[decoder] = round(other / this, 3)
                print(f"  {label:<14} {decoder:<7} {this:>8.3f} {other:>8.3f}  {other / this:>6.3f} ×", flush=True)
    return {"speed_over_other": ratios}


def printed_last(python: str, code: str, *arguments: object) -> str:
    """Run this code in another process and return the last line that it prints."""
    line = [python, "-c", code, *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{python} with {arguments[0]}: {last_line(done.stderr)}")
    return last_line(done.stdout)


# ---- whole builds


def measure_builds(root: Path, video: Path, peaks: dict[str, float], options: argparse.Namespace) -> dict[str, float]:
    """Whole builds of every frame, against a loop that decodes the same; two workers against one; memory."""
    source = root / "source"
    copies = copy_videos(source, [video] * options.num_build_videos)
    print(f"\nbuild: {len(copies)} videos at 1.4 Mb/s, every frame, by {BEST}; seconds of wall", flush=True)
    ways: dict[str, Callable[[], float]] = {
        "decoding alone": lambda: decode_in_a_process(copies, BEST),
        "build, 1 worker": lambda: build(source, root / "out", BEST, 1, peaks),
        "build, 2 workers": lambda: build(source, root / "out", BEST, 2, peaks),
    }
    seconds = alternate(ways, options.alternations)
    for name in ways:
        print(f"  {name:<17} {statistics.median(seconds[name]):>7.1f}", flush=True)
    return {
        "build_over_decode": round(ratio(seconds["decoding alone"], seconds["build, 1 worker"]), 3),
        "workers_2_over_1": round(ratio(seconds["build, 1 worker"], seconds["build, 2 workers"]), 3),
    }


def measure_memory(root: Path, minute: Path, peaks: dict[str, float], options: argparse.Namespace) -> None:
    """Build one very long video and update `peaks`."""
    path = root / "source" / "Abuse" / "Abuse001_x264.mp4"
    repeat_packets(minute, path, options.very_long_minutes * 60 / min(60, options.long_seconds))
    of_long: dict[str, float] = {"parent": 0, "worker": 0}
    seconds = build(root / "source", root / "out", BEST, 1, of_long)
    shown = ", ".join(f"{peak:.0f} MB the {name}" for name, peak in of_long.items())
    print(
        f"\nmemory: one video of {options.very_long_minutes} minutes, every frame: {seconds:.1f} s, {shown}", flush=True
    )
    for name, peak in of_long.items():
        peaks[name] = max(peaks[name], peak)


def copy_videos(source: Path, videos: Sequence[Path]) -> list[Path]:
    copies = [source / "Abuse" / f"Abuse{number:03d}_x264.mp4" for number in range(len(videos))]
    for video, copy in zip(videos, copies, strict=True):
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(video, copy)
    return copies


def build(source: Path, out: Path, decoder: str, workers: int, peaks: dict[str, float]) -> float:
    """Wall seconds of the whole command; what it wrote is deleted."""
    seconds = run_and_watch(build_command(source, out, decoder, workers), peaks)
    shutil.rmtree(out)
    shutil.rmtree(f"{out}.log")
    return seconds


def build_command(source: Path, out: Path, decoder: str, workers: int) -> list[str]:
    run = [sys.executable, "-c", "from vidshard.cli.main import main; main()", "build", str(source), "--out", str(out)]
    return [*run, "--decoder", decoder, "--workers", str(workers), "--yes", "--sampling", "dense"]


def decode_in_a_process(videos: Sequence[Path], decoder: str) -> float:
    """Wall seconds of a loop over all frames, with the same start of a Python and the same reading of packets."""
    code = (
        "import sys; from pathlib import Path; from bench_build import decode_dense, read_tables; "
        "videos = [Path(name) for name in sys.argv[2:]]; decode_dense(videos, read_tables(videos), sys.argv[1])"
    )
    start = time.perf_counter()
    run([sys.executable, "-c", code, decoder, *map(str, videos)], cwd=Path(__file__).parent)
    return time.perf_counter() - start


def run_and_watch(line: Sequence[str], peaks: dict[str, float]) -> float:
    """Wall seconds of a command; raises `peaks` to the memory of its process and of the largest below it, in MB."""
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(line, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            peaks["parent"] = max(peaks["parent"], peak_memory_mb(process.pid))
            peaks["worker"] = max([peaks["worker"], *(peak_memory_mb(pid) for pid in descendants(process.pid))])
            time.sleep(0.05)
        seconds = time.perf_counter() - start
        if process.returncode != 0:
            output.seek(0)
            raise SystemExit(f"{' '.join(line)} ended with {process.returncode}:\n{output.read().decode()}")
    return seconds


def descendants(root: int) -> set[int]:
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    family = {root}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return family - {root}


def peak_memory_mb(pid: int) -> float:
    """Return the peak resident memory of a process (0 where /proc is missing)."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0


# ---- others


def measure_others(root: Path, videos: Sequence[Path], options: argparse.Namespace) -> None:
    """Time the short videos from files to files, ours and video2dataset, in wall seconds."""
    source = root / "source"
    copy_videos(source, videos)
    peaks: dict[str, float] = {"parent": 0, "worker": 0}
    print(f"\nothers: {len(videos)} short videos, every frame, 1 worker; seconds of wall, start included", flush=True)
    ways: dict[str, Callable[[], float]] = {
        f"ours by {name}": lambda name=name: build(source, root / "out", name, 1, peaks) for name in (BEST, "decord")
    }
    check = subprocess.run([options.video2dataset, "-c", "import video2dataset"], capture_output=True, text=True)
    if check.returncode == 0:
        ways["video2dataset"] = lambda: run_video2dataset(root / "v2d", source, options.video2dataset)
    else:
        print(f"  video2dataset is left out: {options.video2dataset} cannot import it ({last_line(check.stderr)})")
    try:
        seconds = alternate(ways, options.alternations)
    except subprocess.CalledProcessError as error:
        print(f"  video2dataset failed: {last_line(error.stderr)}")
        return
    for name in ways:
        rate = len(videos) / statistics.median(seconds[name])
        against = f"  {ratio(seconds['video2dataset'], seconds[name]):>5.2f} ×" if "video2dataset" in seconds else ""
        print(f"  {name:<17} {statistics.median(seconds[name]):>7.1f}  {rate:>6.2f} videos/s{against}", flush=True)


_VIDEO2DATASET = """
import sys
from video2dataset import video2dataset
from video2dataset.subsamplers import ResolutionSubsampler

ResolutionSubsampler.encode_formats = {"video": "mp4"}  # here: its workers import this file anew

if __name__ == "__main__":
    resize = {"ResolutionSubsampler": {"args": {"height": 112, "width": 112, "resize_mode": "scale"}}}
    video2dataset(
        url_list=sys.argv[1], output_folder=sys.argv[2], output_format="webdataset", input_format="csv", url_col="url",
        encode_formats={"video": "mp4"},
        config={
            "subsampling": resize,
            "reading": {
                "yt_args": {"download_size": 360, "download_audio_rate": 44100}, "timeout": 60, "sampler": None
            },
            "storage": {"number_sample_per_shard": 1000, "oom_shard_count": 5, "captions_are_subtitles": False},
            "distribution": {
                "processes_count": 1, "thread_count": 1, "subjob_size": 1000, "distributor": "multiprocessing"
            },
        },
    )
"""


def run_video2dataset(out: Path, source: Path, python: str) -> float:
    """Wall seconds of resizing all videos; raises CalledProcessError when not every video became a sample."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    videos = sorted(source.rglob("*.mp4"))
    with open(out / "videos.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["url"], *([str(video)] for video in videos)])
    (out / "run.py").write_text(_VIDEO2DATASET, encoding="utf-8")
    start = time.perf_counter()
    run([python, str(out / "run.py"), str(out / "videos.csv"), str(out / "dataset")], cwd=out)
    seconds = time.perf_counter() - start
    import tarfile

    count = 0
    for shard in sorted((out / "dataset").glob("*.tar")):
        with tarfile.open(shard) as tar:
            count += sum(name.endswith(".mp4") for name in tar.getnames())
    if count != len(videos):
        message = f"it wrote {count} of {len(videos)} samples and exited 0"
        raise subprocess.CalledProcessError(0, "video2dataset", stderr=message)
    return seconds


# ---- measuring


def alternate(ways: dict[str, Callable[[], float]], times: int) -> dict[str, list[float]]:
    """Run all ways in turns, so that a busy moment of the machine meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(times):
        for name, way in ways.items():
            seconds[name].append(way())
    return seconds


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Return the median of the ratios of all rounds."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU time of a call, in all its threads and in the processes it started and waited for."""
    before = _cpu_seconds_so_far()
    call()
    return _cpu_seconds_so_far() - before


def _cpu_seconds_so_far() -> float:
    try:
        import resource
    except ImportError:  # Windows: hundredths of a second, and nothing of children
        return sum(os.times()[:4])
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def run(line: Sequence[str], cwd: Path) -> None:
    done = subprocess.run(line, cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0:
        raise subprocess.CalledProcessError(done.returncode, line[0], stderr=done.stderr)


def last_line(text: str | None) -> str:
    return ([*(text or "").strip().splitlines()] or ["no message"])[-1]


# ---- the videos


def make_videos(out: Path, options: argparse.Namespace) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Set → its videos: several short ones, one long one of each rate. And of each long one the minute it repeats."""
    short = short_videos(out / "short", options.videos, options.num_short)
    sets, minutes = {"short": short}, {}
    for label, rate in RATES.items():
        minute, path = out / f"{rate}-minute.mp4", out / f"{rate}.mp4"
        seconds = min(60, options.long_seconds)
        encode(minute, looped_frames(short, seconds * FPS), rate)
        repeat_packets(minute, path, options.long_seconds / seconds)
        sets[label], minutes[label] = [path], [minute]
        real_rate = path.stat().st_size * 8 / options.long_seconds
        print(f"{label}: {options.long_seconds} s, {SIZE[0]}×{SIZE[1]}, {real_rate / 1e6:.2f} Mb/s", flush=True)
    print(f"short: {len(short)} videos, {'generated' if options.videos is None else options.videos}", flush=True)
    return sets, minutes


def short_videos(out: Path, source: Path | None, count: int) -> list[Path]:
    if source is None:
        from synthetic_videos import VideoConfig, make_dataset

        length = 2 * FPS
        config = VideoConfig(width=SIZE[0], height=SIZE[1], fps=FPS, num_frames=(length, length))
        make_dataset(out, num_videos={"Train": count}, config=config)
        return sorted(out.rglob("*.mp4"))
    found = sorted(path for path in source.rglob("*") if path.suffix.lower() in {".mp4", ".m4v", ".mov"})
    if not found:
        raise SystemExit(f"no MP4 below {source}")
    count = min(count, len(found))
    return [found[i * len(found) // count] for i in range(count)]


def looped_frames(clips: Sequence[Path], count: int) -> Iterator[Any]:
    import av

    while True:
        for clip in clips:
            with av.open(str(clip)) as container:
                for frame in container.decode(video=0):
                    yield frame.reformat(*SIZE, format="yuv420p")
                    count -= 1
                    if count == 0:
                        return


def encode(path: Path, frames: Iterator[Any], bits_per_second: int) -> None:
    """H.264 as surveillance recorders write it: a keyframe every 250 frames, B-frames between."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    limits = {"maxrate": str(2 * bits_per_second), "bufsize": str(4 * bits_per_second)}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.options = {"preset": "veryfast", "g": str(KEYFRAME_DISTANCE), "sc_threshold": "0", **limits}
        stream.bit_rate = bits_per_second
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for number, frame in enumerate(frames):
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            frame.pict_type = 0
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def repeat_packets(source: Path, path: Path, times: float) -> None:
    """Repeat the packets of a short video to write a longer one, without encoding."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(source)) as container, av.open(str(path), "w") as longer:
        stream = container.streams.video[0]
        copy = longer.add_stream_from_template(stream)
        packets = [packet for packet in container.demux(stream) if packet.size]
        content = [(bytes(p), p.pts, p.dts, p.is_keyframe, p.duration) for p in packets]
        length = max(pts + (duration or 0) for _, pts, _, _, duration in content)
        for number in range(round(times * len(content))):
            turn, place = divmod(number, len(content))
            data, pts, dts, is_keyframe, duration = content[place]
            packet = av.Packet(data)
            packet.pts, packet.dts, packet.duration = pts + turn * length, dts + turn * length, duration
            packet.is_keyframe, packet.time_base, packet.stream = is_keyframe, stream.time_base, copy
            longer.mux(packet)


if __name__ == "__main__":
    main()
