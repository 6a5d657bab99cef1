"""hf:// URLs, with a file system in memory in place of the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from fake_shards import random_clips, write_shards
from stage1.data.reader import ClipReader
from vidshard.storage.cache import CacheConfig
from vidshard.storage.urls import Url


def test_a_set_on_the_hub_is_read_like_a_local_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = write_shards(tmp_path / "set", random_clips(6), [0, 1] * 3)
    memory = fsspec.filesystem("memory")
    memory.put(str(local), "/datasets/me/clips", recursive=True)
    real = fsspec.filesystem
    asked = []

    def filesystem(scheme: str, **options: Any) -> Any:
        asked.append(scheme)
        return memory if scheme == "hf" else real(scheme, **options)

    monkeypatch.setattr(fsspec, "filesystem", filesystem)
    reader = ClipReader(Url("hf://datasets/me/clips"), cache=CacheConfig(folder=tmp_path / "cache"))
    assert np.array_equal(reader[3], ClipReader(local)[3])
    assert set(asked) == {"hf"}
    memory.rm("/datasets/me", recursive=True)
