"""A disk that is full or fails while `stage1` writes a file: one line that names it, and no earlier file is lost."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest

from fake_shards import moving_clips, write_shards
from inference_runs import place as place
from inference_runs import stage1
from stage1.common.files import DEFAULT_CHECKPOINT
from vidshard.util import atomic

TRAIN = ["train", "--shards", "Validation", "--val-fraction", "0", "--device", "cpu", "--epochs", "1"]


class FailingFile(io.FileIO):
    """File on a disk that fails after the first few writes."""

    def __init__(self, path: Path, code: int) -> None:
        super().__init__(path, "wb")
        self._code, self._left = code, 3

    def write(self, data: Any) -> int:
        self._left -= 1
        if self._left < 0:
            raise OSError(self._code, os.strerror(self._code))
        return super().write(data)


def fail_writing(monkeypatch: pytest.MonkeyPatch, suffix: str, code: int) -> None:
    real = atomic.create
    monkeypatch.setattr(
        atomic, "create", lambda path: FailingFile(path, code) if path.name.endswith(suffix) else real(path)
    )


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([*TRAIN, "--out", "run"], "run/last.pt"),
        (["infer", "--device", "cpu"], "stage1_output/attention_data/stage1_attention_data.pt"),
        (
            ["evaluate", "--val-shards", "Validation", "--target", "f1", "--device", "cpu"],
            str(DEFAULT_CHECKPOINT),
        ),
    ],
)
@pytest.mark.parametrize(
    ("code", "what"),
    [
        (errno.ENOSPC, "No space left on device: {}; free some space and run the same command"),
        (errno.EIO, "Input/output error: {}; check the disk and run the same command"),
    ],
)
def test_a_disk_that_fails_is_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], name: str, code: int, what: str
) -> None:
    clips, labels = moving_clips(8, shape=(4, 16, 16))
    write_shards(place / "Validation", clips, labels, split="Validation")
    before = (place / DEFAULT_CHECKPOINT).read_bytes()
    with monkeypatch.context() as patched:
        fail_writing(patched, Path(name).name + ".partial", code)
        done = stage1(*arguments)
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith("error: " + what.format(name))
    assert (place / DEFAULT_CHECKPOINT).read_bytes() == before
    assert not list(place.rglob("*.partial"))
    assert stage1(*arguments).exit_code == 0
