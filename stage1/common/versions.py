"""Provenance of a checkpoint: package versions and the commit of the source tree."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

from vidshard import __version__

PACKAGES = ("torch", "torchvision", "numpy", "webdataset")


@functools.cache
def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect the weights, as name → version.

    Packages that are not installed are omitted.
    """
    versions = {"vidshard": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@functools.cache
def git_commit(package: Path = Path(__file__).parents[1]) -> str:
    """Return the commit of the source tree that contains `package`, with "-dirty" appended if files were changed.

    Return "" if the package is installed outside its source tree, or without git. A repository that merely contains
    the virtual environment does not count.
    """
    root = package.parent
    if not (root / ".git").exists() or not (root / "pyproject.toml").is_file():
        return ""
    try:
        shown = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return shown.stdout.strip()
