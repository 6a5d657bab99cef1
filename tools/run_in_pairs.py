"""Run every writing command twice at once into one folder: one wins and the other says who holds it, or both are right.

    python tools/run_in_pairs.py [--pairs 10] [--command train …]

Two processes, forked after the imports, start the same command at the same moment. At least one must end well; the
other one, too, or with exit code 1 and one line that begins with "error:". What they leave must have the bytes of a
single run, apart from logs and times.

Last line: JSON {"pairs": N, "one won": N, "both right": N, "wrong": N}. Exit code 1 unless the last one is 0.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

import inject_faults as commands


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10, help="of each command")
    parser.add_argument("--command", action="append", choices=commands.COMMANDS, help="default: all")
    options = parser.parse_args()
    counts: Counter[str] = Counter(dict.fromkeys(("pairs", "one won", "both right", "wrong"), 0))
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        commands.make_inputs(Path("sound"), names := options.command or [*commands.COMMANDS])
        for name in names:
            expected = commands.undisturbed(name)
            for number in range(options.pairs):
                commands.copy_inputs(name)
                counts["pairs"] += 1
                counts[run_pair(name, number, expected)] += 1
    print(json.dumps(counts))
    return int(bool(counts["wrong"]))


def run_pair(name: str, number: int, expected: dict[str, str]) -> str:
    results: list[tuple[int, str]] = []

    def run() -> None:
        _, code, output = commands.in_child(name, contextlib.nullcontext)
        results.append((code, output))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (first, told), (second, also_told) = sorted(results)
    lines = [line for line in also_told.splitlines() if line.startswith("error: ")]
    if first != 0 or (second != 0 and (second != 1 or len(lines) != 1)):
        print(f"{name} {number}: exit codes {first} and {second}: {told[-300:]} {also_told[-300:]}", flush=True)
        return "wrong"
    found = commands.digests(Path("work"))
    if found != expected:
        different = sorted(path for path in found.keys() | expected.keys() if found.get(path) != expected.get(path))
        print(f"{name} {number}: different: {', '.join(different)}", flush=True)
        return "wrong"
    return "both right" if second == 0 else "one won"


if __name__ == "__main__":
    sys.exit(main())
