from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stage1.inference.score_log import ScoredBatch, ScoreLog, score_row
from vidshard.util.errors import UserError

PLAN = {"shards": "s", "batch size": 2}


def score_log(folder: Path, **plan: object) -> ScoreLog:
    return ScoreLog(folder, plan={**PLAN, **plan}, num_batches=3, num_frames=4)


def batch(number: int) -> ScoredBatch:
    rows = np.zeros(2, score_row(4))
    rows["confidence"] = number, 0.5
    return ScoredBatch(rows=rows, reasons={1: "damaged: ü"} if number == 2 else {})


def write(folder: Path, numbers: list[int]) -> None:
    started = score_log(folder)
    started.start(resume=True)
    for number in numbers:
        started.append(number, batch(number))
    started.close()


def test_batches_of_several_processes_come_back(tmp_path: Path) -> None:
    write(tmp_path / "j", [2, 0])
    write(tmp_path / "j", [1, 0])
    read = score_log(tmp_path / "j")
    read.load()
    assert not len(read.missing)
    assert [float(read.read(number).rows["confidence"][0]) for number in range(3)] == [0, 1, 2]
    assert (read.read(2).reasons, read.read(1).reasons) == ({1: "damaged: ü"}, {})
    read.remove()
    assert not (tmp_path / "j").exists()


def test_a_kill_at_any_byte_leaves_whole_batches(tmp_path: Path) -> None:
    write(tmp_path / "j", [0, 1])
    (path,) = (tmp_path / "j").glob("*.scores")
    data = path.read_bytes()
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        read = score_log(tmp_path / "j")
        read.load()
        assert read.missing.tolist() == ([0, 1, 2] if cut < len(data) // 2 else [1, 2])
        read.close()
    path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    read = score_log(tmp_path / "j")
    read.load()
    assert 0 in read.missing.tolist()


def test_another_plan_is_refused_and_a_new_start_forgets(tmp_path: Path) -> None:
    write(tmp_path / "j", [0])
    with pytest.raises(
        UserError, match="has batch size 2, this one 4; resume with the same batch size, or start again"
    ):
        score_log(tmp_path / "j", **{"batch size": 4}).start(resume=True)
    again = score_log(tmp_path / "j", **{"batch size": 4})
    again.start(resume=False)
    again.load()
    assert again.missing.tolist() == [0, 1, 2]
