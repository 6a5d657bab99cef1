"""Time loader, training and inference, alternating with another checkout of this repository.

    python tools/bench_against.py CHECKOUT [--quick] [--shards FOLDER] [--alternations 7]

CHECKOUT is an older version, such as a `git worktree`; both run in this environment, in turns, on one thread. Measured
are seconds of processor time: of an epoch of the loader, of the epochs of a training, and of an inference. Training and
inference run as commands; the start of training is left out by the difference between one epoch and several.
`tools/bench_build.py --other-checkout` does the same for decoding.

Last line: JSON {"speed_over_other": {"loader": x, "train": x, "infer": x}}; 1.0 means equally fast.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BATCH_SIZE = 8

# The old names of version 0.1 work in every version so far.
_LOADER = """
import sys, time, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from stage1.dataloader import ClipLoader
from stage1.reader import ClipReader
loader = ClipLoader(ClipReader(Path(sys.argv[1])), batch_size=int(sys.argv[2]), shuffle=True, seed=0)
for clips, labels, rows in loader:  # checks the checksums
    pass
begin = time.process_time()
for _ in range(int(sys.argv[3])):
    for clips, labels, rows in loader:
        pass
print((time.process_time() - begin) / int(sys.argv[3]))
"""
_COMMAND = """
try:
    from stage1.__main__ import run
except ImportError:
    from stage1.cli import main as run
run()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--quick", action="store_true", help="small and few: to see that it runs, not for figures")
    parser.add_argument("--shards", type=Path, help="a shard set (default: generated videos)")
    parser.add_argument("--alternations", type=int, help="turns of every measurement (default: 7)")
    options = parser.parse_args()
    turns = options.alternations or (1 if options.quick else 7)
    with tempfile.TemporaryDirectory(prefix="bench-against-") as scratch:
        shards = options.shards or make_shards(Path(scratch), videos=8 if options.quick else 48)
        ratios = compare(options.checkout.resolve(), shards.resolve(), Path(scratch), turns, quick=options.quick)
    print(json.dumps({"speed_over_other": ratios}))


def make_shards(folder: Path, *, videos: int) -> Path:
    """Build shards of generated videos, several clips each."""
    subprocess.run(
        [sys.executable, ROOT / "tools" / "synthetic_videos.py", folder / "videos", "--videos", f"Train={videos}"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    build = [sys.executable, "-m", "vidshard", "build", folder / "videos" / "Train", "--out", folder / "shards"]
    options = ["--sampling", "dense", "--stride", "8", "--quiet"]
    subprocess.run([*build, *options], check=True, env=environment(ROOT), stdout=subprocess.DEVNULL)
    return folder / "shards"


def compare(other: Path, shards: Path, scratch: Path, turns: int, *, quick: bool) -> dict[str, float]:
    """Return, for each kind of work, how many times as fast this checkout is as the other one."""
    checkpoint = scratch / "first" / "binary_stage1_with_attention.pt"
    stage1(other, "train", "--shards", shards, "--out", checkpoint.parent, "--epochs", 1, "--val-fraction", 0)
    epochs, passes = (2, 2) if quick else (4, 20)
    works: dict[str, Callable[[Path], float]] = {
        "loader": lambda checkout: loader_seconds(checkout, shards, passes),
        "train": lambda checkout: (
            train_seconds(checkout, shards, scratch, epochs) - train_seconds(checkout, shards, scratch, 1)
        ),
        "infer": lambda checkout: infer_seconds(checkout, shards, checkpoint, scratch),
    }
    ratios = {}
    for name, seconds_of in works.items():
        seconds: dict[Path, list[float]] = {ROOT: [], other: []}
        for _ in range(turns):
            for checkout, times in seconds.items():
                times.append(seconds_of(checkout))
        this, that = (statistics.median(times) for times in seconds.values())
        ratios[name] = round(that / this, 3)
        print(f"{name:<7} this {this:7.3f} s, other {that:7.3f} s: {ratios[name]:.3f} times as fast", flush=True)
    return ratios


def loader_seconds(checkout: Path, shards: Path, passes: int) -> float:
    line = [sys.executable, "-c", _LOADER, str(shards), str(BATCH_SIZE), str(passes)]
    done = subprocess.run(line, check=True, env=environment(checkout), capture_output=True, text=True)
    return float(done.stdout)


def train_seconds(checkout: Path, shards: Path, scratch: Path, epochs: int) -> float:
    with tempfile.TemporaryDirectory(dir=scratch) as out:
        options = ["--out", Path(out, "run"), "--epochs", epochs, "--val-fraction", 0, "--batch-size", BATCH_SIZE]
        return stage1(checkout, "train", "--shards", shards, *options, "--clips-per-video-per-epoch", 0)


def infer_seconds(checkout: Path, shards: Path, checkpoint: Path, scratch: Path) -> float:
    with tempfile.TemporaryDirectory(dir=scratch) as out:
        options = ["--checkpoint", checkpoint, "--out", Path(out, "run"), "--threshold", 0.999]
        return stage1(checkout, "infer", "--shards", shards, *options, "--batch-size", BATCH_SIZE)


def stage1(checkout: Path, *arguments: object) -> float:
    """Run a command of a checkout; return its seconds of processor time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    line = [sys.executable, "-c", _COMMAND, *map(str, arguments)]
    done = subprocess.run(line, env=environment(checkout), capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{checkout}: stage1 {' '.join(map(str, arguments))}: {done.stderr[-500:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def environment(checkout: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


if __name__ == "__main__":
    main()
