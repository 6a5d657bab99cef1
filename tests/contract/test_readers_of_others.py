"""Readers of others give every clip of a set as it was written, also where types can not be inferred from the first."""

from __future__ import annotations

from pathlib import Path

import pytest

import check_readers

SHORT = ("webdataset",)  # the others load a framework, or start processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readers") / "set"
    check_readers.write_set(folder)
    return folder


def test_everything_that_is_rare_comes_late(folder: Path) -> None:
    records = [record for _, _, record in check_readers.written(folder)]
    assert len({record["class"] for record in records[:30]}) == 1
    for field, usual in (("source_group", None), ("flags", [])):
        assert [record[field] for record in records[:35]] == [usual] * 35
        assert records[-1][field] != usual
    assert {record["label"] for record in records} == {0, 1, -1}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SHORT else pytest.mark.slow) for name in check_readers.READERS]
)
def test_a_reader_gives_every_clip_and_record(name: str, folder: Path) -> None:
    result = check_readers.check_apart(name, folder)
    if "missing" in result:
        pytest.skip(f"{result['missing']}: pip install 'vidshard[readers]'")
    assert not result["faults"]
    assert result["clips"] == sum(count for _, _, count in check_readers.CLASSES)
