"""Kill builds at random moments, and check that what remains is consistent.

    python tools/crash_test_build.py            # 50 moments, some minutes
    python tools/crash_test_build.py --moments 5 --seed 7

Each build runs in a process group of its own, which gets SIGKILL at a moment drawn uniformly between the first and the
last write of a shard. Then every shard under its final name must hold the bytes of an uninterrupted build, no process
of the group may live, and the same command must finish the set, byte for byte. The last line is JSON. Needs POSIX and
PyAV.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np

OPTIONS = ["--sampling", "dense", "--clip-len", "8", "--stride", "4", "--frame-size", "64", "--shard-mb", "1"]
NUM_VIDEOS, NUM_FRAMES = 12, 150  # 12 × 36 clips of 96 KiB: 44 shards


def make_videos(root: Path) -> None:
    for number in range(NUM_VIDEOS):
        path = root / ("NormalVideos" if number % 2 else "Abuse") / f"v{number:02}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        ramp = np.add.outer(np.arange(48), np.arange(64))
        with av.open(str(path), "w", format="mp4") as output:
            stream = output.add_stream("libx264", rate=25, options={"g": "12", "preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for i in range(NUM_FRAMES):
                picture = np.stack([ramp * 2 + 7 * i, ramp + 31 * number, ramp[::-1] + 3 * i], axis=-1).astype(np.uint8)
                output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            output.mux(stream.encode(None))


def start_build(source: Path, out: Path, workers: int) -> subprocess.Popen[bytes]:
    run_it = "from vidshard.cli.main import main; main()"
    command = [sys.executable, "-c", run_it, "build", str(source), "--out", str(out), "--workers", str(workers)]
    return subprocess.Popen(
        [*command, *OPTIONS], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def wait_for_first_shard(process: subprocess.Popen[bytes], out: Path) -> bool:
    """Return True if the first shard began before the build ended."""
    while process.poll() is None:
        if any(out.glob("shard-*")):
            return True
        time.sleep(0.001)
    return False


def time_of_writes(source: Path, out: Path, workers: int) -> float:
    """Seconds from the first to the last shard of an uninterrupted build."""
    process = start_build(source, out, workers)
    wait_for_first_shard(process, out)
    first = last = time.monotonic()
    known = 0
    while process.poll() is None:
        count = sum(1 for _ in out.glob("shard-*.tar"))
        if count != known:
            known, last = count, time.monotonic()
        time.sleep(0.002)
    assert process.returncode == 0, f"the build ended with {process.returncode}"
    return last - first


def kill_at(source: Path, out: Path, workers: int, seconds: float) -> bool:
    """Kill a build `seconds` after its first shard began; whether it was still at work."""
    process = start_build(source, out, workers)
    wait_for_first_shard(process, out)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    cut = process.poll() is None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 5
    while living(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not living(process.pid), f"processes {living(process.pid)} outlived the kill of their group"
    return cut


def living(group: int) -> list[int]:
    """Return the processes of a group that are not zombies (Linux)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(stat.parent.name))
    return found


def run(moments: int, seed: int, workers: int, folder: Path) -> dict[str, object]:
    """All moments; raises AssertionError at the first thing that is not as promised."""
    generator = random.Random(seed)
    source, whole = folder / "source", folder / "whole"
    make_videos(source)
    seconds = time_of_writes(source, whole, workers)
    expected = digests(whole)
    cut = shards_left = 0
    for number in range(moments):
        out = folder / f"out{number}"
        was_cut = kill_at(source, out, workers, generator.uniform(0, seconds))
        cut += was_cut
        left = {name: digest for name, digest in digests_of_files(out).items() if name.endswith((".tar", ".json"))}
        wrong = {name for name, digest in left.items() if expected.get(name) != digest}
        assert not wrong, f"moment {number}: {sorted(wrong)} under their final names are not what they should be"
        shards_left += len(left)
        again = start_build(source, out, workers)
        assert again.wait(120) == 0, f"moment {number}: the same command ended with {again.returncode}"
        assert digests(out) == expected, f"moment {number}: the finished set differs"
        assert not living(again.pid), f"moment {number}: processes are left"
        shutil.rmtree(out)
        shutil.rmtree(out.with_name(out.name + ".log"))
    return {
        "moments": moments,
        "killed_at_work": cut,
        "shards": sum(name.endswith(".tar") for name in expected),
        "mean_shards_left": round(shards_left / moments, 1),
        "seconds_of_writes": round(seconds, 2),
        "byte_identical": True,
    }


def digests_of_files(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir()) if path.is_file()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="crash-test-") as folder:
        print(json.dumps(run(options.moments, options.seed, options.workers, Path(folder))))


if __name__ == "__main__":
    main()
