"""Packaging: the requirements suit every machine; wheel and sdist are complete and work outside the checkout."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tiny_videos import make_tiny_videos

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "tools" / "constraints"


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [Requirement(text) for text in project["dependencies"]]


def constraints(name: str) -> list[Requirement]:
    lines = (CONSTRAINTS / name).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_the_builder_needs_what_stage1_does_not() -> None:
    """The user's eight packages are dependencies; the builder's list has the rest of them, with a headless OpenCV."""
    names = {one.name for one in requirements()}
    assert names >= {"torch", "torchvision", "webdataset", "numpy", "opencv-python", "click", "matplotlib"}
    for_stage1 = {"jsonschema", "matplotlib", "scikit-learn", "scipy", "tomli-w", "torch", "torchvision", "webdataset"}
    expected = {str(one).replace("opencv-python", "opencv-python-headless") for one in requirements()}
    expected -= {str(one) for one in requirements() if one.name in for_stage1}
    assert {str(one) for one in constraints("builder.txt")} == expected


def test_the_lowest_versions_are_the_lower_bounds() -> None:
    every = [*requirements(), *constraints("builder.txt")]
    bounds = {one.name: {Version(s.version) for s in one.specifier if s.operator == ">="} for one in every}
    pins = {
        one.name: {Version(s.version) for s in one.specifier if s.operator == "=="} for one in constraints("lowest.txt")
    }
    assert pins == bounds
    assert all(len(pinned) == 1 for pinned in pins.values())


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_the_newest_versions_pin_every_requirement(python: str) -> None:
    environment = {"python_version": python, "sys_platform": "linux", "platform_machine": "x86_64"}
    pins = {one.name: one.specifier for one in constraints("newest.txt") if applies(one, environment)}
    for one in requirements():
        if applies(one, environment):
            (pin,) = pins[one.name]
            assert pin.operator == "=="
            assert pin.version in one.specifier


@pytest.mark.parametrize(
    ("system", "machine", "python", "expected"),
    [
        ("linux", "x86_64", "3.11", {"decord2"}),
        ("linux", "aarch64", "3.14", {"decord2"}),
        ("darwin", "arm64", "3.12", {"decord2"}),
        ("darwin", "x86_64", "3.13", {"decord2"}),
        ("win32", "AMD64", "3.14", {"decord2"}),
        ("linux", "x86_64", "3.15", {"decord"}),
        ("win32", "AMD64", "3.15", {"decord"}),
        ("linux", "aarch64", "3.15", set()),
        ("darwin", "arm64", "3.15", set()),
        ("win32", "ARM64", "3.12", set()),
        ("linux", "riscv64", "3.12", set()),
    ],
)
def test_decord_where_there_are_wheels_and_never_two(
    system: str, machine: str, python: str, expected: set[str]
) -> None:
    """Versions available in November 2026."""
    environment = {"sys_platform": system, "platform_machine": machine, "python_version": python}
    asked = {one.name for one in requirements() if applies(one, environment)}
    assert asked & {"decord", "decord2"} == expected


def applies(requirement: Requirement, environment: dict[str, str]) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(environment)


# ----- wheel and sdist ------------------------------------------------------------------------------------------------


def run(*command: object, folder: Path, path: Path | None = None) -> str:
    """Run Python with these arguments in `folder`, with `path` alone on PYTHONPATH, and return what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    shown = subprocess.run(
        [sys.executable, *map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr
    return shown.stdout


def build_wheel(source: Path, out: Path) -> Path:
    run("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", out, source, folder=source)
    (wheel,) = out.glob("*.whl")
    return wheel


def contents(wheel: Path) -> dict[str, bytes]:
    """Return path → bytes of the packages in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy what is in git, so that nothing is built inside the checkout."""
    pytest.importorskip("setuptools", minversion="77")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    folder = tmp_path_factory.mktemp("checkout")
    for name in filter(None, listed.stdout.split("\0")):
        if name.startswith(("vidshard/", "stage1/")) or "/" not in name:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(checkout, tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_both_packages(checkout: Path, wheel: Path) -> None:
    inside = contents(wheel)
    files = {
        path.relative_to(checkout).as_posix()
        for package in ("vidshard", "stage1")
        for path in (checkout / package).rglob("*")
        if path.is_file()
    }
    assert inside.keys() == files
    assert {"vidshard/py.typed", "stage1/py.typed", "stage1/review/templates/report.html"} <= inside.keys()


@pytest.mark.slow
def test_the_sdist_makes_the_same_wheel(checkout: Path, wheel: Path, tmp_path: Path) -> None:
    hook = f"from setuptools import build_meta; print(build_meta.build_sdist({str(tmp_path)!r}))"
    archive = tmp_path / run("-c", hook, folder=checkout).splitlines()[-1]
    with tarfile.open(archive) as sdist:
        sdist.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    assert contents(build_wheel(source, tmp_path / "again")) == contents(wheel)


@pytest.mark.slow
def test_an_installed_wheel_goes_the_whole_way(wheel: Path, tmp_path: Path) -> None:
    target, work = tmp_path / "site", tmp_path / "work"
    run("-m", "pip", "install", "--no-deps", "--quiet", "--target", target, wheel, folder=tmp_path)
    make_tiny_videos(
        work / "Train",
        {f"{name}/{name}{i}.mp4": 24 for name in ("Fighting", "NormalVideos") for i in range(2)},
    )

    def command(line: str) -> str:
        return run("-m", *line.split(), folder=work, path=target)

    for package in ("vidshard", "stage1"):
        shown = run("-c", f"import {package}; print({package}.__file__)", folder=work, path=target)
        assert Path(shown.strip()).is_relative_to(target)
        assert command(f"{package} --version").strip().endswith(version_of(wheel))
    command("vidshard build Train --clip-len 4 --frame-size 16")
    command("vidshard verify shards/Train --deep")
    command("vidshard preview shards/Train")
    small = "--model-size small --batch-size 2 --val-fraction 0"
    assert "✓ Model checkpoint saved to" in command(f"stage1 train --epochs 1 {small}")
    assert "✓ Stage 1 Complete!" in command("stage1 infer --shards shards/Train --threshold 0")
    command("stage1 report")
    index = work / "shards" / "Train" / "index.npz"
    assert index.stat().st_size > 0
    with open(work / "stage1_output" / "predictions.csv", encoding="utf-8", newline="") as file:
        assert sorted(row["source"] for row in csv.DictReader(file)) == [
            "Fighting/Fighting0.mp4", "Fighting/Fighting1.mp4",
            "NormalVideos/NormalVideos0.mp4", "NormalVideos/NormalVideos1.mp4",
        ]  # fmt: skip
    assert len(json.loads((work / "stage1_output" / "anomalies.json").read_text())) == 4
    for page in (work / "stage1_output" / "report.html", next((work / "shards").rglob("*.html"))):
        assert "Fighting0" in page.read_text(encoding="utf-8")


def version_of(wheel: Path) -> str:
    return wheel.name.split("-")[1]
