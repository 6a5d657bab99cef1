"""A set of a million clips: opened and planned in less than a second, in less than 100 MB."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import bench_index


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")
def test_a_million_clips_are_opened_and_planned(tmp_path: Path) -> None:
    folder = bench_index.write_synthetic_set(tmp_path / "Train", 1_000_000)
    command = [sys.executable, bench_index.__file__, "--folder", str(folder)]
    measured = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert measured["peak_mb"] < 100
    # Processor time, because wall time depends on what else runs on this machine.
    assert measured["open_cpu_seconds"] < 1
    assert measured["plan_cpu_seconds"] < 1
