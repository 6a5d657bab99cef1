#!/usr/bin/env python3
"""Does `vidshard build` work in another environment? Builds and verifies a few generated videos there.

    python tools/check_environment.py [--python PATH | --newest-python] [--constraint FILE]

Makes a virtual environment in a temporary folder, installs this checkout with what the builder needs (no torch:
tools/constraints/builder.txt), the newest of everything or what FILE pins, prints its size, and runs there: the
contract tests of the decoders, and for each decoder `vidshard build` and `vidshard verify --deep`. Exit code 1 when any
of it fails.

`--newest-python` takes the newest Python from 3.11 to 3.14 on PATH or of pyenv.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOR_TESTS = ("pytest", "pytest-timeout")
PYTHONS = ("3.14", "3.13", "3.12", "3.11")
DECODERS = ("auto", "decord", "opencv", "pyav")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--python", default=sys.executable, help="interpreter (default: this one)")
    choice.add_argument("--newest-python", action="store_true")
    parser.add_argument("--constraint", type=Path, help="a file of pinned versions (default: the newest of everything)")
    options = parser.parse_args()
    python = newest_python() if options.newest_python else options.python
    with tempfile.TemporaryDirectory(prefix="check-environment-") as temporary:
        folder = Path(temporary)
        try:
            check(install(folder / "venv", python, options.constraint), folder)
        except subprocess.CalledProcessError as error:
            print(f"FAILED with exit code {error.returncode}: {error.cmd}")
            return 1
    print("The builder works in this environment.")
    return 0


def newest_python() -> str:
    """Return the newest interpreter that can make virtual environments."""
    for python in _candidates():
        works = subprocess.run([python, "-c", "import ensurepip, venv"], capture_output=True).returncode == 0
        if works:  # the shims of pyenv do not, for versions that are not chosen
            return python
    return sys.executable


def _candidates() -> Iterator[str]:
    for version in PYTHONS:
        if found := shutil.which(f"python{version}"):
            yield found
        yield from map(str, sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"), reverse=True))


def install(venv: Path, python: str, constraint: Path | None) -> str:
    """Create a virtual environment with the builder and return its interpreter."""
    run(python, "-m", "venv", venv)
    own = str(venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    pip = [own, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    limits = ["--constraint", constraint] if constraint else []
    empty = megabytes(venv)
    run(*pip, *limits, "--requirement", ROOT / "tools" / "constraints" / "builder.txt")
    run(*pip, "--no-deps", ROOT)
    print(f"The builder and what it needs: {megabytes(venv) - empty:.0f} MB", flush=True)
    run(*pip, *limits, *FOR_TESTS)
    return own


def megabytes(folder: Path) -> float:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def check(python: str, folder: Path) -> None:
    """Raise CalledProcessError if a decoder breaks its contract, or a set cannot be built or is not sound."""
    print(subprocess.run([python, "--version"], check=True, capture_output=True, text=True).stdout.strip(), flush=True)
    run(python, "-m", "pip", "list", "--disable-pip-version-check")
    run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", ROOT / "tests/contract/test_decoders.py", cwd=ROOT)
    run(python, ROOT / "tools/synthetic_videos.py", folder / "videos", "--videos", "Train=8", cwd=folder)
    vidshard = Path(python).with_name("vidshard")
    for decoder in DECODERS:
        out = folder / decoder
        run(
            vidshard, "build", folder / "videos/Train", "--out", out, "--decoder", decoder, "--workers", "1", cwd=folder
        )
        run(vidshard, "verify", out, "--deep", cwd=folder)


def run(*line: object, cwd: Path | None = None) -> None:
    print(f"$ {' '.join(map(str, line))}", flush=True)
    subprocess.run([str(part) for part in line], check=True, cwd=cwd, stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
