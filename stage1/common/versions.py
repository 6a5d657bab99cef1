"""What made a checkpoint: versions of packages, and the commit of the source tree."""

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
    """Name → version, of what decides the weights; packages that are not installed are left out."""
    versions = {"vidshard": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@functools.cache
def git_commit(package: Path = Path(__file__).parents[1]) -> str:
    """The commit of the source tree that `package` lies in, with "-dirty" where files were changed.

    Empty where it is installed elsewhere than in its tree, or there is no git: the repository that a virtual
    environment happens to lie in says nothing about it.
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
