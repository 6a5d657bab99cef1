"""Annotations matched to the videos of a shard set."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stage1.metrics.ground_truth import read_ground_truth
from vidshard.util.errors import UserError


def reader(*paths: str, num_frames: int = 50) -> Any:
    videos = np.zeros(len(paths), [("num_frames", "u4")])
    videos["num_frames"] = num_frames
    return SimpleNamespace(index=SimpleNamespace(paths=paths, videos=videos))


def annotations(folder: Path, *lines: str) -> Path:
    path = folder / "events.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_events_end_where_the_video_in_the_shards_does(tmp_path: Path) -> None:
    path = annotations(tmp_path, "a.mp4 Abuse 10 70 -1 -1", "other.mp4 Abuse 1 2 -1 -1", "n.mp4 Normal -1 -1 -1 -1")
    known = read_ground_truth(path, reader("Abuse/a.mp4", "Normal/n.mp4", "Abuse/unnamed.mp4"))
    assert {row: (video.events, video.num_frames) for row, video in known.items()} == {
        0: (((10, 49),), 50),
        1: ((), 50),
    }


def test_a_name_that_means_two_videos_is_refused(tmp_path: Path) -> None:
    path = annotations(tmp_path, "a.mp4 Abuse 10 40 -1 -1")
    with pytest.raises(UserError, match=r"a is ambiguous: Abuse/a\.mp4 or Arson/a\.mp4"):
        read_ground_truth(path, reader("Abuse/a.mp4", "Arson/a.mp4"))


def test_a_file_about_other_videos_is_refused(tmp_path: Path) -> None:
    path = annotations(tmp_path, "b.mp4 Abuse 10 40 -1 -1")
    with pytest.raises(UserError, match="lists none of the 1 videos"):
        read_ground_truth(path, reader("Abuse/a.mp4"))
    assert read_ground_truth(None, reader("Abuse/a.mp4")) == {}
