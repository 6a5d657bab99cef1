"""Named pipes in place of files: they might never end, so no command waits for one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from inference_runs import place as place
from stage1.cli.main import main as stage1
from tiny_videos import make_tiny_videos
from vidshard.cli.main import main as vidshard

COMMANDS = {
    "marks": (stage1, "train --shards shards/Test --marks pipe"),
    "config": (stage1, "train --config pipe"),
    "annotations": (stage1, "train --shards shards/Test --annotations pipe"),
    "videos": (stage1, "infer --videos pipe"),
    "checkpoint": (stage1, "infer --shards shards/Test --checkpoint pipe"),
    "source groups": (vidshard, "build source --source-groups pipe --out built"),
    "events": (vidshard, "build source --sampling annotated --annotations pipe --out built"),
    "a video": (vidshard, "build pipes --out built --yes"),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_pipe_in_place_of_a_file_is_refused_at_once(name: str, place: Path) -> None:
    make_tiny_videos(place / "source", {"Fighting/a.mp4": 8, "NormalVideos/b.mp4": 8})
    os.mkfifo(place / "pipe")
    (place / "pipes" / "Fighting").mkdir(parents=True)
    os.mkfifo(place / "pipes" / "Fighting" / "a.mp4")
    command, line = COMMANDS[name]
    result = CliRunner().invoke(command, line.split())
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert not (place / "built").exists()
