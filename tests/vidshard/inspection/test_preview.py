"""The preview: one page, everything in it, nothing outside of it."""

from __future__ import annotations

import base64
import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from fake_shards import random_clips, write_shards
from timing import processor_seconds
from vidshard.cli.main import main
from vidshard.inspection.preview import PreviewConfig, draw_clips, write_preview
from vidshard.shards import manifest
from vidshard.shards.manifest import Failure
from vidshard.util.errors import UserError

NUM_CLIPS = 12


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Clips that are one grey each: 10, 20, …; a failure with a name that is an attack."""
    clips = np.zeros((NUM_CLIPS, 4, 16, 16, 3), np.uint8) + 10 * np.arange(1, NUM_CLIPS + 1, dtype=np.uint8).reshape(
        -1, 1, 1, 1, 1
    )
    folder = write_shards(tmp_path / "Train", clips, sorted([0, 1] * 6, reverse=True), split="Train")
    bad = Failure(path="Abuse/<script>alert(1)</script>.mp4", outcome="failed", reason="damaged", message="a & b")
    odd = Failure(path="Abuse/\udcff.mp4", outcome="skipped", reason="not_a_video_name", message="x")
    about = dataclasses.replace(manifest.read_manifest(folder), videos_found=NUM_CLIPS + 2, failures=(bad, odd))
    (folder / "manifest.json").write_bytes(about.to_bytes())
    return folder


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_shows_the_middle_frames_and_needs_nothing_else(shards: Path, tmp_path: Path) -> None:
    path = write_preview(PreviewConfig(folder=shards))
    assert path == tmp_path / "Train.log" / "preview.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    links = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert len(links) == NUM_CLIPS
    greys = []
    for link in links:
        prefix, _, data = str(link).partition(",")
        assert prefix == "data:image/jpeg;base64"
        image = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
        greys.append(round(float(image.mean()) / 10))
    assert sorted(greys) == list(range(1, NUM_CLIPS + 1))
    assert not re.search(r"https?:|url\(|@import", text)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}


def test_names_are_escaped(shards: Path) -> None:
    text = write_preview(PreviewConfig(folder=shards)).read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)" in text
    assert "a &amp; b" in text
    assert r"\udcff.mp4" in text


def test_the_same_set_gives_the_same_page(shards: Path, tmp_path: Path) -> None:
    pages = [
        write_preview(PreviewConfig(folder=shards, out=tmp_path / f"{n}.html", clips_per_class=2, seed=seed))
        for n, seed in enumerate((0, 0, 1))
    ]
    assert pages[0].read_bytes() == pages[1].read_bytes()
    assert pages[0].read_bytes() != pages[2].read_bytes()


def test_a_sheet_takes_many_videos_rather_than_many_clips_of_one(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set", random_clips(20), [1] * 20, clips_per_video=5)
    opened = manifest.open_shards(folder)
    for seed in range(5):
        (rows,) = draw_clips(opened, 4, seed=seed).values()
        assert sorted(opened.index.clips["video"][rows].tolist()) == [0, 1, 2, 3]


def test_a_clip_that_cannot_be_read_is_shown_as_such(shards: Path) -> None:
    opened = manifest.open_shards(shards)
    path = opened.shard_path(0)
    data = bytearray(path.read_bytes())
    data[int(opened.index.clips["offset"][3])] ^= 0xFF
    path.write_bytes(data)
    text = write_preview(PreviewConfig(folder=shards)).read_text(encoding="utf-8")
    assert text.count("data:image/jpeg") == NUM_CLIPS - 1
    assert f"{opened.index.key(3)}&#39; is not a uint8 clip" in text


def test_it_is_not_written_into_the_set(shards: Path) -> None:
    with pytest.raises(UserError, match="must contain nothing else"):
        PreviewConfig(folder=shards, out=shards / "preview.html")


def test_1000_clips_in_under_10_seconds(tmp_path: Path) -> None:
    clips = random_clips(1000, shape=(2, 112, 112))
    folder = write_shards(tmp_path / "set", clips, [i % 2 for i in range(1000)], clips_per_shard=200)
    config = PreviewConfig(folder=folder, clips_per_class=500)
    assert processor_seconds(lambda: write_preview(config), tries=2) < 10


def test_the_command(shards: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["preview", str(shards), "--out", str(tmp_path / "page.html")])
    assert result.exit_code == 0, result.output
    assert "page.html" in result.stdout
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
