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
