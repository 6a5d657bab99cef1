"""Dataset card: its types fit every record, also of fields that come late, and a changed card is never overwritten."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from fake_shards import random_clips, write_shards
from vidshard.shards import card, layout
from vidshard.shards.manifest import read_manifest

# Loads the folder of its argument with Hugging Face's datasets, both ways, and prints what it got of the last clip.
LOAD = """
import json, sys
from datasets import load_dataset
for streaming in (True, False):
    rows = list(load_dataset(sys.argv[1], split="train", streaming=streaming))
    print(json.dumps([len(rows), rows[-1]["json"], [r["json"]["label"] for r in rows]]))
"""


@pytest.fixture
def late(tmp_path: Path) -> Path:
    """Write a set in which the recording is unknown but for the last clips."""
    labels = [0] * 20 + [1] * 20
    recordings = [None] * 35 + ["late"] * 5
    return write_shards(tmp_path / "set", random_clips(40), labels, source_groups=recordings, clips_per_shard=10)


def test_the_card_names_the_type_of_every_field_of_a_record(late: Path) -> None:
    text = (late / layout.CARD_NAME).read_text()
    with tarfile.open(late / layout.shard_name(0)) as archive:
        record = archive.extractfile(next(member for member in archive if member.name.endswith(".json")))
        assert record is not None
        names = json.load(record)
    for name in names:
        assert f"    - name: {name}\n" in text
    assert "shape: [4, 16, 16, 3]" in text
    assert "| NormalVideos | 0 | 20 | 20 |" in text
    assert read_manifest(late).digest in text


def test_a_card_that_someone_changed_is_kept(late: Path) -> None:
    about, path = read_manifest(late), late / layout.CARD_NAME
    path.write_text("mine")
    card.write_card(late, about)
    assert path.read_text() == "mine"
    path.unlink()
    card.write_card(late, about)
    assert path.read_text() == card.dataset_card(about)


def test_names_stay_text_in_one_cell(late: Path) -> None:
    manifest = read_manifest(late)
    name = "a\\|b\r\nc <img> [x](y) `z`"
    row = dataclasses.replace(manifest.classes[0], name=name)
    text = card.dataset_card(dataclasses.replace(manifest, classes=(row,), split=name))
    escaped = r"a\\\|b  c \<img> \[x](y) \`z\`"
    assert f"| {escaped} | {row.label} | 20 | 20 |\n" in text
    assert f"Split: {escaped}. Videos" in text


@pytest.mark.slow
def test_datasets_loads_the_set_streaming_and_not(late: Path, tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="needs the package datasets: pip install 'vidshard[readers]'")
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(late)],
        env={**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    for line in done.stdout.splitlines()[-2:]:
        count, last, labels = json.loads(line)
        assert (count, last["source_group"], last["flags"], last["split"]) == (40, "late", [], None)
        assert labels == [0] * 20 + [1] * 20
