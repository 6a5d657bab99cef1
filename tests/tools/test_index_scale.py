"""A set of a million clips: finalized, opened and planned in bounded time and memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import bench_finalize
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


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")
def test_finalize_holds_no_rows(tmp_path: Path) -> None:
    bench_finalize.write_state(tmp_path / "Train", 100, 4_500)
    command = [sys.executable, bench_finalize.__file__, "--folder", str(tmp_path / "Train")]
    measured = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert measured["clips"] == 499_500
    assert measured["peak_mb"] < 15  # their rows alone take 17
