"""failures.csv: every name survives a round trip."""

from __future__ import annotations

import csv
import io

import pytest

from vidshard.building.finish import failures_csv
from vidshard.shards.manifest import Failure


@pytest.mark.parametrize("name", ["a\rb.mp4", "a\nb.mp4", "a\r\nb.mp4", 'a,"b".mp4', " a .mp4", "é.mp4"])
def test_any_name_comes_back(name: str) -> None:
    failure = Failure(path=name, outcome="failed", reason="damaged", message="FFmpeg says: no")
    rows = list(csv.reader(io.StringIO(failures_csv([failure]), newline=""), strict=True))
    assert rows[1:] == [[name, "failed", "damaged", "FFmpeg says: no"]]
