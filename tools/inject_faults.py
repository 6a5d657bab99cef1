"""Let the n-th write, fsync, rename or open of a command fail, and see that it ends with one line and can be repeated.

    python tools/inject_faults.py [--up-to 30] [--drawn 20] [--seed 0] [--command train …]

Each command runs in a process forked after the imports, in which one call of the operating system fails: with ENOSPC,
EIO, EMFILE or ESTALE. It must end with exit code 1 and one line that begins with "error:" and says what to do, or end
well (where it can do without that file); the same command must then end well without a fault.

Last line: JSON {"runs": N, "faults": N, "tracebacks": N, "not_repeated": N}. Exit code 1 unless the last two are 0.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import errno
import functools
import io
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from click.testing import CliRunner  # noqa: E402

from fake_shards import moving_clips, write_shards  # noqa: E402
from inference_runs import LABELS, some_clips, write_checkpoint  # noqa: E402
from stage1.cli.main import main as stage1  # noqa: E402
from tiny_videos import make_tiny_videos  # noqa: E402
from vidshard.cli.main import main as vidshard  # noqa: E402
from vidshard.util import atomic  # noqa: E402

ERRORS = (errno.ENOSPC, errno.EIO, errno.EMFILE, errno.ESTALE)
KINDS = ("write", "fsync", "rename", "open")
CPU = ("--device", "cpu")
COMMANDS: dict[str, tuple[str, ...]] = {
    "build": ("vidshard", "build", "videos", "--out", "built", "--clip-len", "4", "--frame-size", "16",
              "--workers", "1"),
    "train": ("stage1", "train", "--shards", "train", "--val-fraction", "0", "--epochs", "1", "--out", "trained",
              "--resume=auto", *CPU),
    "infer": ("stage1", "infer", "--shards", "shards", "--checkpoint", "model.pt", "--out", "inferred", *CPU),
    "evaluate": ("stage1", "evaluate", "--shards", "shards", "--checkpoint", "model.pt", "--out", "evaluated", *CPU),
    "report": ("stage1", "report", "run"),
    "extract": ("stage1", "extract", "run", "--out", "frames"),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--up-to", type=int, default=30, help="every n up to this one")
    parser.add_argument("--drawn", type=int, default=20, help="larger ones, up to 300, drawn by --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command", action="append", choices=COMMANDS, help="default: all")
    options = parser.parse_args()
    drawn = random.Random(options.seed).sample(range(options.up_to + 1, 301), options.drawn)
    counts: Counter[str] = Counter(dict.fromkeys(("runs", "faults", "tracebacks", "not_repeated"), 0))
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        make_inputs(Path("sound"))
        for name in options.command or COMMANDS:
            for kind in KINDS:
                for number in (*range(1, options.up_to + 1), *sorted(drawn)):
                    code = ERRORS[number % len(ERRORS)]
                    if not try_fault(name, kind, number, code, counts):
                        break  # the command makes fewer calls
    print(json.dumps(counts))
    sys.exit(bool(counts["tracebacks"] or counts["not_repeated"]))


def make_inputs(folder: Path) -> None:
    clips, labels = moving_clips(8)
    write_shards(folder / "train", clips, labels)
    write_shards(folder / "shards", some_clips(), LABELS, split="Train")
    write_checkpoint(folder / "model.pt", train_videos=["Train/none.mp4"])
    make_tiny_videos(folder / "videos", {"Fighting/a.mp4": 8, "NormalVideos/b.mp4": 8})
    with contextlib.chdir(folder):
        CliRunner().invoke(stage1, [*COMMANDS["infer"][1:-4], "--out", "run", *CPU])


def try_fault(name: str, kind: str, number: int, code: int, counts: Counter[str]) -> bool:
    """Run a command with one fault, and again without; return False if the fault never came."""
    shutil.rmtree("work", ignore_errors=True)
    shutil.copytree("sound", "work")
    what = f"{name}: {errno.errorcode[code]} at {kind} {number}"
    counts["runs"] += 1
    came, exit_code, output = in_child(name, functools.partial(fail, kind, number, code))
    if not came:
        return False
    counts["faults"] += 1
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    if exit_code not in (0, 2) and (exit_code != 1 or len(lines) != 1 or ";" not in lines[0]):
        counts["tracebacks"] += 1
        print(f"{what}: exit code {exit_code}: {output[-400:]}", flush=True)
    _, exit_code, output = in_child(name, contextlib.nullcontext)
    if exit_code != 0:
        counts["not_repeated"] += 1
        print(f"{what}: not repeated, exit code {exit_code}: {output[-400:]}", flush=True)
    return True


def in_child(name: str, faults: Callable[[], Any]) -> tuple[bool, int, str]:
    """Run a command in a fork; return whether the fault came, the exit code, and the output."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.chdir("work")
        package, *arguments = COMMANDS[name]
        with faults() as came:
            done = CliRunner().invoke({"stage1": stage1, "vidshard": vidshard}[package], arguments)
        bug = done.exception if not isinstance(done.exception, SystemExit | None) else ""
        os.write(write, json.dumps([bool(came), done.exit_code, (done.output + repr(bug or ""))[-4000:]]).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    came, code, output = json.loads(text or '[true, -9, "died"]')
    return came, code, output


@contextlib.contextmanager
def fail(kind: str, number: int, code: int) -> Iterator[list[str]]:
    """Let call `number` of a kind fail while the block runs; the list that is yielded is filled when it does."""
    came: list[str] = []
    left = number

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            came.append(kind)
            raise OSError(code, os.strerror(code))

    def counted(real: Callable[..., Any], *args: Any, **options: Any) -> Any:
        count()
        return real(*args, **options)

    class CountedFile(io.FileIO):
        def write(self, data: Any) -> int:
            count()
            return super().write(data)

    if kind == "write":
        atomic.create = lambda path: CountedFile(path, "wb")  # type: ignore[assignment]
    elif kind == "open":
        builtins.open = functools.partial(counted, open)
        os.open = functools.partial(counted, os.open)  # type: ignore[assignment]
    else:
        function = {"fsync": "fsync", "rename": "replace"}[kind]
        setattr(os, function, functools.partial(counted, getattr(os, function)))
    yield came


if __name__ == "__main__":
    main()
