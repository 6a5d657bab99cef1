"""Checkpoints rebuild the model, run no code, and are either complete or absent."""

from __future__ import annotations

import dataclasses
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from checkpoints import CONFIG, make
from stage1.common.files import LAST_NAME, PREVIOUS_NAME
from stage1.model.checkpoint import Checkpoint, load_checkpoint, load_last, save_checkpoint, save_last
from stage1.model.network import Stage1Model
from vidshard.util.errors import UserError


def test_the_model_comes_back(tmp_path: Path) -> None:
    model = Stage1Model(CONFIG).eval()
    torch.nn.init.normal_(model.classifier.weight)
    save_checkpoint(tmp_path / "a.pt", make(model))
    loaded = load_checkpoint(tmp_path / "a.pt")
    clips = torch.randn(2, 3, 4, 16, 16)
    for expected, got in zip(model(clips), loaded.build_model()(clips), strict=True):
        assert torch.equal(expected, got)
    assert not loaded.build_model().training
    transform = loaded.build_transform()
    assert transform.config.mean == (0.1, 0.2, 0.3)
    assert not transform.config.augment
    assert (loaded.epoch, loaded.threshold, loaded.warnings, loaded.shape.thwc) == (3, 0.5, ["mind"], (4, 16, 16, 3))


def test_plain_torch_reads_it(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", make())
    fields = torch.load(tmp_path / "a.pt", weights_only=True)
    assert {"epoch", "model_state_dict", "optimizer_state_dict", "scheduler_state_dict"} <= set(fields)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 torn", b"\x80\x02}q\x00."])
def test_other_files_are_not_checkpoints(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.pt is not a stage1 checkpoint"):
        load_checkpoint(tmp_path / "x.pt")


def test_other_torch_files_are_not_checkpoints(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="though torch can read it; expected a file such as binary_stage1"):
        load_checkpoint(tmp_path / "x.pt")


def test_a_missing_one_is_an_error_with_advice(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stage1 train"):
        load_checkpoint(tmp_path / "none.pt")


def test_code_in_a_file_does_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "trapped"),)

    torch.save({"format": "stage1 checkpoint", "trap": Trap()}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="not a stage1 checkpoint"):
        load_checkpoint(tmp_path / "x.pt")
    assert not (tmp_path / "trapped").exists()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Later(Checkpoint):
    """Of a version to come."""

    later: int = 1


def test_unknown_versions_and_fields_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", make())
    fields = torch.load(tmp_path / "a.pt", weights_only=True)
    torch.save({**fields, "format_version": 99}, tmp_path / "new.pt")
    with pytest.raises(UserError, match="format version 99, but this stage1 reads only version 2"):
        load_checkpoint(tmp_path / "new.pt")
    save_checkpoint(tmp_path / "more.pt", Later(**dataclasses.asdict(make())))
    with pytest.raises(UserError, match="unknown field"):
        load_checkpoint(tmp_path / "more.pt")


def test_a_failed_save_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, make())
    before = path.read_bytes()

    def full_disk(_fields: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, make())
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.pt"]


# --- damage -------------------------------------------------------------------------------------------------------


def test_no_flipped_bit_goes_unseen(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, make())
    data = path.read_bytes()
    generator = random.Random(0)
    places = [generator.randrange(8 * len(data)) for _ in range(250)] + list(
        range(8 * len(data) - 8 * 50, 8 * len(data), 8)
    )
    assert len(places) == 300
    for place in places:
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.pt is (damaged|no stage1 checkpoint, or is damaged)"):
            load_checkpoint(path)
    path.write_bytes(data)
    assert load_checkpoint(path).epoch == 3


@pytest.mark.parametrize("cut", [1, 60, 200, 10_000])
def test_a_cut_file_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, make())
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(UserError, match="is damaged"):
        load_checkpoint(path)


def test_the_last_two_are_kept_and_the_previous_one_steps_in(tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        save_last(tmp_path, dataclasses.replace(make(), epoch=epoch))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [LAST_NAME, PREVIOUS_NAME]
    saved, warning = load_last(tmp_path)
    assert (saved.epoch, warning) == (3, None)
    (tmp_path / LAST_NAME).write_bytes(b"")
    saved, warning = load_last(tmp_path)
    assert saved.epoch == 2
    assert warning is not None
    assert "is not a stage1 checkpoint, or is damaged" in warning
    (tmp_path / LAST_NAME).unlink()
    saved, warning = load_last(tmp_path)
    assert saved.epoch == 2
    assert warning is not None
    assert "there is no" in warning
    (tmp_path / PREVIOUS_NAME).write_bytes(b"")
    with pytest.raises(UserError, match=r"no checkpoint .*last\.pt"):
        load_last(tmp_path)


SAVE_FOR_EVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from checkpoints import make
from stage1.model.checkpoint import load_last, save_last
import dataclasses, itertools
folder = Path(sys.argv[1])
start = load_last(folder)[0].epoch + 1 if any(folder.iterdir()) else 0
for epoch in itertools.count(start):
    save_last(folder, dataclasses.replace(make(), epoch=epoch))
    print(epoch, flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_kill_while_saving_leaves_a_checkpoint(tmp_path: Path) -> None:
    """Twice; tools/crash_test_checkpoint.py does it a hundred times."""
    folder = tmp_path / "run"
    folder.mkdir()
    generator = random.Random(0)
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOR_EVER, str(folder), str(Path(__file__).parents[2] / "helpers")],
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        last = int(process.stdout.readline())
        time.sleep(generator.uniform(0, 0.2))
        process.kill()
        rest, _ = process.communicate()
        printed = [last, *map(int, rest.split())]
        assert load_last(folder)[0].epoch >= printed[-1]  # nothing that was said to be saved is lost
