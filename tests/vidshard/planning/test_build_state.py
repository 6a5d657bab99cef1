"""The state of an unfinished build."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from vidshard.planning.build_state import BuildState


def test_a_file_of_the_state_is_not_missing_because_the_machine_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = BuildState(tmp_path)
    assert state.read_record(0) is None

    def refuse(self: Path) -> bytes:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(OSError, match="Stale file handle"):
        state.read_record(0)


def test_packet_tables_are_a_thousand_to_a_folder(tmp_path: Path) -> None:
    state = BuildState(tmp_path)
    state.path.mkdir()
    state.start({"videos": [[f"{number}.mp4"] for number in range(2001)]})
    assert [folder.name for folder in sorted((state.path / "packets").iterdir())] == ["0000", "0001", "0002"]
    assert state.table_path(1999) == state.path / "packets" / "0001" / "001999.npz"
    # An unfinished build of an earlier version has them all in one folder.
    earlier = state.path / "packets" / "001999.npz"
    earlier.touch()
    assert state.table_path(1999) == earlier
