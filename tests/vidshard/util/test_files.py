from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from fake_shards import random_clips, write_shards
from vidshard.cli.main import main
from vidshard.util import files


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
@pytest.mark.parametrize("name", ["index.npz", "failures.csv", "shard-000009.tar"])
@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_a_pipe_in_place_of_a_file_stops_no_command(tmp_path: Path, name: str, command: str) -> None:
    folder = write_shards(tmp_path / "shards", random_clips(2), [0, 1])
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    done = CliRunner().invoke(main, [command, str(folder)])
    if command == "verify" or name == "index.npz":
        assert done.exit_code == 1
        assert name in done.output
    shutil.rmtree(folder)


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="not a regular file"):
        files.read_bytes(tmp_path)
