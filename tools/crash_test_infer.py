"""Kill `stage1 infer` at random moments and continue with --resume: the outputs must equal those of an uninterrupted
run.

    python tools/crash_test_infer.py [--moments 20] [--seed 0]

The last line is JSON: {"moments": n, "killed": n, "identical": n}.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))

from bench_infer import save_model
from fake_shards import random_clips, write_shards
from stage1.model.network import ModelConfig

SHAPE = (4, 32, 32)
NUM_CLIPS = 4000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="crash-test-infer-") as name:
        folder = Path(name)
        write_shards(
            folder / "shards", random_clips(NUM_CLIPS, shape=SHAPE), [0, 1] * (NUM_CLIPS // 2), clips_per_video=50
        )
        save_model(folder / "model.pt", ModelConfig(channels=(8, 16), temporal_stages=(1,)), SHAPE)
        start = time.monotonic()
        run(folder, "alone").wait()
        seconds = time.monotonic() - start
        expected = outputs(folder / "alone")
        print(f"a run left alone takes {seconds:.1f} s and writes {len(expected)} files", flush=True)
        killed = identical = 0
        for moment in range(options.moments):
            out = f"out{moment}"
            process = run(folder, out)
            time.sleep(rng.uniform(0.3, 1.0) * seconds)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                killed += 1
            process.wait()
            code = run(folder, out, "--resume").wait()
            same = code == 0 and outputs(folder / out) == expected
            identical += same
            print(f"moment {moment + 1}: {'identical' if same else 'DIFFERENT'}", flush=True)
            shutil.rmtree(folder / out)
    print(json.dumps({"moments": options.moments, "killed": killed, "identical": identical}))
    sys.exit(0 if identical == options.moments else 1)


def run(folder: Path, out: str, *more: str) -> subprocess.Popen[bytes]:
    program = "import sys; from stage1.cli.main import main; sys.argv[0] = 'stage1'; main()"
    arguments = ["infer", "--shards", "shards", "--checkpoint", "model.pt", "--out", out, "--threshold", "0.5", *more]
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def outputs(folder: Path) -> dict[str, str]:
    """Name → SHA-256 of all files below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


if __name__ == "__main__":
    main()
