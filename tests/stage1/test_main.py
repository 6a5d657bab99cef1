"""The process of the `stage1` command: what it prints and its exit code arrive, although it ends early."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import atexit, sys
from stage1 import __main__ as process

def command():
    print("result " * 10_000)
    print("problem", file=sys.stderr)
    {end}

process.main = command
atexit.register(print, "first hook")
process.atexit.register = lambda call, register=atexit.register: (register(call), register(print, "last hook"))
process.run()
"""


@pytest.mark.parametrize(("end", "code"), [("sys.exit(2)", 2), ("sys.exit(0)", 0), ("raise ValueError('bug')", 1)])
def test_output_and_exit_code_arrive_through_a_pipe(end: str, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(end=end)], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stdout.startswith("result " * 10_000 + "\nlast hook\n")
    assert "problem\n" in done.stderr
    # A hook from before the start shows whether Python freed everything: only after a bug.
    assert ("first hook" in done.stdout, "ValueError: bug" in done.stderr) == (
        (True, True) if code == 1 else (False, False)
    )


def test_a_full_disk_behind_standard_output_is_no_success() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "stage1", "--version"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode != 0
    assert b"No space left on device" in done.stderr
