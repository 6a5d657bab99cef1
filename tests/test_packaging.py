"""What pyproject.toml asks for: the right decord on every machine, and lower bounds that are tried."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "tools" / "constraints"


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [Requirement(text) for text in project["dependencies"]]


def constraints(name: str) -> list[Requirement]:
    lines = (CONSTRAINTS / name).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_the_lowest_versions_are_the_lower_bounds() -> None:
    bounds = {one.name: {Version(s.version) for s in one.specifier if s.operator == ">="} for one in requirements()}
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
    """As the package index had them in November 2026."""
    environment = {"sys_platform": system, "platform_machine": machine, "python_version": python}
    asked = {one.name for one in requirements() if applies(one, environment)}
    assert asked & {"decord", "decord2"} == expected


def applies(requirement: Requirement, environment: dict[str, str]) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(environment)
