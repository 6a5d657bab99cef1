from __future__ import annotations

import os
from pathlib import Path

import pytest

from stage1.common.earlier_results import set_aside, write_file

NAMES = ("run.json", "data/a.pt")


def write_result(folder: Path, text: str) -> None:
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def texts(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_killed_move_is_finished_by_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_result(tmp_path, "first")
    replace = os.replace
    moves = 0

    def killed(source: Path, target: Path) -> None:
        nonlocal moves
        moves += 1
        if moves == 2:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("stage1.common.earlier_results.os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            set_aside(tmp_path, NAMES)
    assert set_aside(tmp_path, NAMES) == tmp_path / "earlier-1"
    assert texts(tmp_path) == {f"earlier-1/{name}": "first" for name in NAMES}
    assert set_aside(tmp_path, NAMES) is None


def test_a_result_without_its_last_file_is_not_moved(tmp_path: Path) -> None:
    write_result(tmp_path, "x")
    (tmp_path / "run.json").unlink()
    assert set_aside(tmp_path, NAMES) is None
    assert texts(tmp_path) == {"data/a.pt": "x"}


def test_a_page_keeps_its_folder_and_the_last_three_stay(tmp_path: Path) -> None:
    for number in range(6):
        for _ in range(2):  # the same page is no second one
            write_file(tmp_path / "report.html", str(number).encode())
    assert texts(tmp_path) == {"report.html": "5", "report-3.html": "2", "report-4.html": "3", "report-5.html": "4"}
