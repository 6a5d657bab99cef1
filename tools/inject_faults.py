"""Let the n-th write, fsync, rename or open of a command fail or kill it, and see that it can be repeated.

    python tools/inject_faults.py [--up-to 30] [--drawn 20] [--seed 0] [--command train …] [--fault errors|kills]

Each command runs in a process forked after the imports, in which one call of the operating system fails with ENOSPC,
EIO, EMFILE or ESTALE, or is replaced by SIGKILL to the process and its children. Kills also come where files are
removed. Videos are decoded in that process, too, so that its faults reach fragments. After an error, the command must
have ended with exit code 1 and one line that begins with "error:" and says what to do, or have ended well (where it can
do without that file). No file that was there before may have been lost. If the command did not end well, the same
command must do so without a fault. Then there must be the same files with the same bytes as if nothing had ever
disturbed it, apart from logs and times. Commands named …-again begin in a folder that has an earlier result.

Last line: JSON {"runs": N, "faults": N, "bad_errors": N, "lost": N, "not_repeated": N, "different": N}. Exit code 1
unless the last four are 0.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import errno
import functools
import hashlib
import importlib
import io
import itertools
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "helpers"))
os.environ["OMP_NUM_THREADS"] = "1"  # threads of OpenMP do not survive a fork: a forked command would wait for them

import torch  # noqa: E402
from click.testing import CliRunner  # noqa: E402

from builds import SameProcess  # noqa: E402
from fake_shards import moving_clips, write_shards  # noqa: E402
from inference_runs import LABELS, some_clips, write_checkpoint  # noqa: E402
from stage1.cli.main import main as stage1  # noqa: E402
from tiny_videos import make_broken_video, make_tiny_videos  # noqa: E402
from vidshard.cli.main import main as vidshard  # noqa: E402
from vidshard.execution import local  # noqa: E402

ERRORS = (errno.ENOSPC, errno.EIO, errno.EMFILE, errno.ESTALE)
KINDS = ("write", "fsync", "rename", "open")
REMOVE = "remove"  # or make a folder; only for kills, as a full disk does not hinder it
CALLS = {"fsync": ("fsync",), "rename": ("replace", "rename"), REMOVE: ("unlink", "remove", "rmdir", "mkdir")}
CPU = ("--device", "cpu")
# Logs, and the state of builds, which names times and processes.
# `stage1 train` without --resume moves an interrupted training aside, too.
TIMED = re.compile(r"\.log(/|$)|/\.work/.*\.lock$|/previous\.pt$|trained/earlier-2/")
TIMES = re.compile(rb'"(seconds|created|started|finished|[a-z_]*_seconds_taken|data_wait|[a-z]*_per_second)": ?[^,}]*')
WRONG = ("bad_errors", "lost", "not_repeated", "different")
KILL = 0  # in place of an error number
SMALL = ("--clip-len", "4", "--frame-size", "16", "--workers", "1")
COMMANDS: dict[str, tuple[str, ...]] = {
    "build": ("vidshard", "build", "videos", "--out", "built", *SMALL),
    "task": ("vidshard", "build", "videos", "--out", "tasks", "--task-index", "1", "--task-count", "2", *SMALL),
    "finalize": ("vidshard", "finalize", "tasks"),
    "extend": ("vidshard", "build", "more", "--out", "first", "--extend", *SMALL),
    "retry-failed": ("vidshard", "build", "mended", "--out", "failed", "--retry-failed", *SMALL),
    "train": ("stage1", "train", "--shards", "train", "--val-fraction", "0", "--epochs", "1", "--out", "trained",
              "--resume=auto", *CPU),
    "infer": ("stage1", "infer", "--shards", "shards", "--checkpoint", "model.pt", "--out", "inferred", *CPU),
    "resumed-infer": ("stage1", "infer", "--shards", "shards", "--checkpoint", "model.pt", "--out", "inferred",
                      "--batch-size", "2", "--resume", *CPU),
    "evaluate": ("stage1", "evaluate", "--shards", "shards", "--checkpoint", "model.pt", "--out", "evaluated", *CPU),
    "report": ("stage1", "report", "run"),
    "extract": ("stage1", "extract", "run", "--out", "frames"),
    "export": ("stage1", "export", "--checkpoint", "model.pt", "--out", "model.onnx"),
}  # fmt: skip
OUTS = {"train": "trained", "infer": "inferred", "evaluate": "evaluated", "export": "model.onnx"}
AGAIN = "-again"  # in a folder that has an earlier result
COMMANDS |= {name + AGAIN: tuple(word for word in COMMANDS[name] if word != "--resume=auto") for name in OUTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--up-to", type=int, default=30, help="every n up to this one")
    parser.add_argument("--drawn", type=int, default=20, help="larger ones, up to 300, drawn by --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command", action="append", choices=COMMANDS, help="default: all")
    parser.add_argument("--fault", choices=("errors", "kills"), help="default: both")
    options = parser.parse_args()
    drawn = random.Random(options.seed).sample(range(options.up_to + 1, 301), options.drawn)
    counts: Counter[str] = Counter(dict.fromkeys(("runs", "faults", *WRONG), 0))
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        make_inputs(Path("sound"), names := options.command or [*COMMANDS])
        for name in names:
            expected = undisturbed(name)
            for kind, kills in [*itertools.product(KINDS, (False, True)), (REMOVE, True)]:
                if options.fault == ("errors" if kills else "kills"):
                    continue
                for number in (*range(1, options.up_to + 1), *sorted(drawn)):
                    code = KILL if kills else ERRORS[number % len(ERRORS)]
                    if not try_fault(name, kind, number, code, counts, expected):
                        break  # the command makes fewer calls
    print(json.dumps(counts))
    sys.exit(any(counts[name] for name in WRONG))


def make_inputs(folder: Path, names: Sequence[str]) -> None:
    """Write what the commands `names` read."""
    local.Supervisor = SameProcess  # type: ignore[misc,assignment]
    clips, labels = moving_clips(8)
    write_shards(folder / "train", clips, labels)
    write_shards(folder / "shards", some_clips(), LABELS, split="Train")
    write_checkpoint(folder / "model.pt", train_videos=["Train/none.mp4"])
    write_checkpoint(folder / "other.pt", train_videos=["Train/none.mp4"], threshold=0.9)
    frames = {"Fighting/a.mp4": 8, "NormalVideos/b.mp4": 8}
    make_tiny_videos(folder / "videos", frames)
    make_tiny_videos(folder / "more", {**frames, "Fighting/c.mp4": 8})
    make_tiny_videos(folder / "mended", frames)
    make_broken_video(folder / "mended" / "NormalVideos" / "b.mp4")
    with contextlib.chdir(folder):
        run = CliRunner().invoke
        run(stage1, [*COMMANDS["infer"][1:-4], "--out", "run", *CPU])
        for index in "01":
            run(vidshard, ["build", "videos", "--out", "tasks", "--task-index", index, "--task-count", "2", *SMALL])
        run(vidshard, ["build", "videos", "--out", "first", *SMALL])
        run(vidshard, ["build", "mended", "--out", "failed", *SMALL])
        make_tiny_videos(Path("mended"), {"NormalVideos/b.mp4": 8})
        Path("earlier").mkdir()
        for name, out in [(name, out) for name, out in OUTS.items() if name + AGAIN in names]:
            changed = ["--seed", "1"] if name == "train" else ["--checkpoint", "other.pt"]  # the last one counts
            run(stage1, [*COMMANDS[name][1:], *changed])
            shutil.move(out, Path("earlier") / out)


def undisturbed(name: str) -> dict[str, str]:
    """Return the files that a command leaves when nothing disturbs it; import what it imports, for later forks."""
    copy_inputs(name)
    in_child(name, note_imports)
    for module in Path("modules").read_text().splitlines():
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    return digests(Path("work"))


@contextlib.contextmanager
def note_imports() -> Iterator[None]:
    yield
    Path("../modules").write_text("\n".join(sys.modules))


def copy_inputs(name: str) -> None:
    shutil.rmtree("work", ignore_errors=True)
    shutil.copytree("sound", "work")
    if name == "task":  # it is what `finalize` begins with
        for path in ("work/tasks", "work/tasks.log"):
            shutil.rmtree(path, ignore_errors=True)
    earlier = Path("work", "earlier")
    if name.endswith(AGAIN):
        out = OUTS[name.removesuffix(AGAIN)]
        shutil.move(earlier / out, Path("work") / out)
    shutil.rmtree(earlier)


def digests(folder: Path) -> dict[str, str]:
    """Return path → digest of what a file says, without logs, times and earlier results."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not TIMED.search(name):
            found[name] = hashlib.sha256(without_times(path)).hexdigest()
    return found


def without_times(path: Path) -> bytes:
    if path.suffix == ".pt" and "trained" in path.parts:
        fields = torch.load(path, weights_only=True)
        data = json.dumps(fields, default=lambda tensor: hashlib.sha256(tensor.numpy()).hexdigest()).encode()
    else:
        data = path.read_bytes()
    return re.sub(TIMES, b"", data) if path.suffix in (".json", ".jsonl", ".csv", ".pt") else data


def try_fault(name: str, kind: str, number: int, code: int, counts: Counter[str], expected: dict[str, str]) -> bool:
    """Run a command with one fault, and again without; return False if the fault never came."""
    copy_inputs(name)
    before = digests(Path("work"))
    what = f"{name}: {errno.errorcode.get(code, 'SIGKILL')} at {kind} {number}"
    counts["runs"] += 1
    came, exit_code, output = in_child(name, functools.partial(fail, kind, number, code))
    if not came:
        return False
    counts["faults"] += 1
    for wrong, detail in find_wrong(name, code, exit_code, output, before, expected):
        counts[wrong] += 1
        print(f"{what}: {wrong}: {detail}", flush=True)
    return True


def find_wrong(
    name: str, code: int, exit_code: int, output: str, before: dict[str, str], expected: dict[str, str]
) -> Iterator[tuple[str, str]]:
    """Yield what is wrong after a command with a fault, and after its repetition: one of WRONG, and details."""
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    if code != KILL and exit_code not in (0, 2) and (exit_code != 1 or len(lines) != 1 or ";" not in lines[0]):
        yield "bad_errors", f"exit code {exit_code}: {output[-400:]}"
    now = digests(Path("work"))
    kept = set(now.values())
    if lost := [path for path in before if before[path] not in kept and now.get(path) != expected.get(path)]:
        yield "lost", ", ".join(lost)
    if exit_code != 0:
        _, exit_code, output = in_child(name, contextlib.nullcontext)
    if exit_code != 0:
        yield "not_repeated", f"exit code {exit_code}: {output[-400:]}"
    elif (now := digests(Path("work"))) != expected:
        yield "different", ", ".join(sorted(p for p in now.keys() | expected.keys() if now.get(p) != expected.get(p)))


def in_child(name: str, faults: Callable[[], Any]) -> tuple[bool, int, str]:
    """Run a command in a fork; return whether the fault came, the exit code, and the output."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setpgrp()
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
            if code == KILL:
                os.killpg(0, signal.SIGKILL)
            raise OSError(code, os.strerror(code))

    def counted(real: Callable[..., Any], *args: Any, **options: Any) -> Any:
        count()
        return real(*args, **options)

    builtins.open = io.open = counted_open(kind, count)  # os.fdopen and pathlib call io.open
    for function in CALLS.get(kind, ("open",) if kind == "open" else ()):
        setattr(os, function, functools.partial(counted, getattr(os, function)))
    yield came


def counted_open(kind: str, count: Callable[[], None]) -> Any:
    """Return an `open` that calls `count` before it opens a file, or before its files write."""

    class CountedFile(io.FileIO):
        def write(self, data: Any) -> int:
            count()
            return super().write(data)

    def opened(
        file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, *more: Any, **options: Any
    ) -> Any:
        if kind == "open" and not isinstance(file, int):
            count()
        if kind != "write" or not set(mode) & set("wax+"):
            return real_open(file, mode, buffering, encoding, *more, **options)
        raw = CountedFile(file, re.sub("[bt]", "", mode))
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, *more, **options)

    real_open = io.open
    return opened


if __name__ == "__main__":
    main()
