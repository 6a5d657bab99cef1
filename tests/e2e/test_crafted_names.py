"""Names that lead elsewhere, in shard sets and runs made by others: no command reads or writes outside its folders."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from click.testing import CliRunner

from inference_runs import place as place
from stage1.cli.main import main as stage1
from vidshard.cli.main import main as vidshard
from vidshard.shards.layout import MANIFEST_NAME
from vidshard.shards.manifest import open_shards

STARTS = (
    *("../", "../../", "a/../../", "./../", "Fighting/../../../", "{outside}/", "/{outside}/", "file://{outside}/"),
    *("~/", "$HOME/", "..\\", "..\\..\\", "C:\\", "%2e%2e/", "..%2f", "\x00../", "a\n../", " ../", ".../../../"),
    *("../\u202e", "\u2024\u2024/", "../outside/../outside/", "//", "memory://", "NormalVideos/..//../../"),
)
ENDS = ("target", "outside/target", ".bashrc", "target.mp4", "shard-000000.tar", "a b", "x" * 300, "target\n")
NAMES = [start + end for start, end in itertools.product(STARTS, ENDS)]
CPU = ("--device", "cpu")
OF_SETS = {
    "verify": (vidshard, "verify", "memory://set"),
    "inspect": (vidshard, "inspect", "set"),
    "preview": (vidshard, "preview", "set", "--out", "out/page.html"),
    "split": (vidshard, "split", "set", "--out", "out"),
    "extend": (vidshard, "build", "videos", "--out", "set", "--extend"),
    "infer": (stage1, "infer", "--shards", "set", "--out", "out", *CPU),
    "train": (stage1, "train", "--shards", "set", "--val-fraction", "0", "--epochs", "1", "--out", "out", *CPU),
}
OF_RUNS = {"report": (stage1, "report", "run"), "extract": (stage1, "extract", "run", "--out", "out", "--for-looking")}

_opened: list[str] | None = None  # while a command runs


def note_opened(event: str, args: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open" and isinstance(args[0], str | bytes):
        _opened.append(os.path.realpath(os.fsdecode(args[0])))


sys.addaudithook(note_opened)


@contextlib.contextmanager
def nothing_touched(*folders: Path) -> Iterator[None]:
    """Check that the block neither opens nor changes anything below `folders`."""
    global _opened

    def state() -> list[tuple[str, int, int]]:
        paths = [path for folder in folders for path in (folder, *folder.rglob("*"))]
        return sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths)

    before, _opened = state(), []
    try:
        yield
        opened = [path for path in _opened if any(Path(path).is_relative_to(folder) for folder in folders)]
    finally:
        _opened = None
    assert not opened
    assert state() == before


@pytest.fixture
def outside(place: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Enter a folder next to two that nothing may touch, which hold the files that the names lead to."""
    folders = (place / "outside", place / "home")
    for folder, end in itertools.product(folders, ENDS[:-2]):
        (folder / end).parent.mkdir(parents=True, exist_ok=True)
        (folder / end).write_text("secret")
    monkeypatch.setenv("HOME", str(folders[1]))
    (place / "inside").mkdir()
    for name in ("shards", "videos", "checkpoints"):
        shutil.move(place / name, place / "inside" / name)
    monkeypatch.chdir(place / "inside")
    (place / "target").touch()
    return folders


def craft_set(folder: Path, name: str, *, into_index: bool) -> None:
    """Replace the name of a shard, or the path of a video, and sign the set again, as its author could."""
    fields = json.loads((folder / MANIFEST_NAME).read_bytes())
    if into_index:
        index = open_shards(folder).index
        data = dataclasses.replace(index, paths=[name, *index.paths[1:]]).to_bytes()
        (folder / fields["index"]["name"]).write_bytes(data)
        fields["index"].update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    else:
        fields["shards"][0]["name"] = name
    del fields["digest"]
    text = json.dumps(fields, indent=1, sort_keys=True) + "\n"
    fields["digest"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / MANIFEST_NAME).write_text(json.dumps(fields, indent=1, sort_keys=True) + "\n")


def check(command: tuple[Any, ...], outside: tuple[Path, Path], name: str) -> None:
    group, *arguments = command
    parent = Path("..").resolve()
    names = sorted(path.name for path in parent.iterdir())
    with nothing_touched(*outside):
        done = CliRunner().invoke(group, arguments)
    assert isinstance(done.exception, SystemExit | None), (name, done.exception)
    assert sorted(path.name for path in parent.iterdir()) == names, name
    assert "secret" not in done.output


@pytest.mark.slow
@pytest.mark.parametrize("command", OF_SETS)
def test_no_name_in_a_set_leads_outside(command: str, outside: tuple[Path, Path]) -> None:
    memory = fsspec.filesystem("memory")
    for number, name in enumerate(NAMES):
        shutil.copytree("shards/Test", "set")
        craft_set(Path("set"), name.format(outside=outside[0]), into_index=bool(number % 2))
        if command == "verify":
            memory.put("set", "/set", recursive=True)
        check(OF_SETS[command], outside, name)
        for folder in ("set", "set.log", "out", "out.log"):
            shutil.rmtree(folder, ignore_errors=True)
        memory.store.clear()


@pytest.mark.slow
@pytest.mark.parametrize("command", OF_RUNS)
def test_no_name_in_a_run_leads_outside(command: str, outside: tuple[Path, Path]) -> None:
    assert CliRunner().invoke(stage1, ["infer", "--out", "sound", *CPU]).exit_code == 0
    for number, name in enumerate(NAMES):
        shutil.copytree("sound", "run")
        craft_run(Path("run"), name.format(outside=outside[0]), field=("keys", "classes", "sources")[number % 3])
        check(OF_RUNS[command], outside, name)
        shutil.rmtree("run")
        shutil.rmtree("out", ignore_errors=True)


def craft_run(folder: Path, name: str, *, field: str) -> None:
    """Replace the key, class or source of the first detection, wherever the run names it."""
    path = folder / "attention_data" / "stage1_attention_data.pt"
    data = torch.load(path, weights_only=True)
    data[field][0] = name
    torch.save(data, path)
    detections = json.loads((folder / "anomalies.json").read_bytes())
    old, detections[0][{"keys": "key", "classes": "class", "sources": "source"}[field]] = detections[0], name
    (folder / "anomalies.json").write_text(json.dumps(detections))
    if field != "classes" and "\n" not in name:
        table = folder / "predictions.csv"
        table.write_text(table.read_text().replace(old[field[:-1]], name))
