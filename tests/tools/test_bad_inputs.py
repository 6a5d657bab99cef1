"""Hostile and damaged videos through a whole build: nothing is lost, nothing is silently wrong, nothing hangs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import bad_inputs

DATA = os.environ.get("VIDSHARD_TEST_DATA")
# The generator of bad inputs is not part of this repository.
MAKER = Path(DATA or "", "tools", "make_bad_inputs.py")
SOURCE = Path(DATA or "", "data", "surv-fight", "Train", "Fighting")

# Sound videos that are refused all the same; the causes are in docs/DECODERS.md.
REFUSED_THOUGH_SOUND = {
    "auto": {"cover_art_first"},
    "pyav": {"cover_art_first"},
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not MAKER.is_file() or not SOURCE.is_dir(), reason="VIDSHARD_TEST_DATA has no generator of bad inputs"
    ),
    pytest.mark.skipif(
        not shutil.which("ffmpeg") or not shutil.which("ffprobe"), reason="making bad inputs needs ffmpeg and ffprobe"
    ),
]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    command = [sys.executable, str(MAKER), str(SOURCE), str(folder), "7", "--n", "3", "--no-big"]
    subprocess.run(command, check=True, capture_output=True, timeout=240)
    return folder


@pytest.mark.parametrize("decoder", REFUSED_THOUGH_SOUND)
def test_every_input_ends_as_it_should(decoder: str, tree: Path) -> None:
    verdicts, times = bad_inputs.judge(tree, decoder=decoder)
    assert len(verdicts) > 150
    bad = [v for v in verdicts if v.is_bad and not (v.expect == "decode" and v.cls in REFUSED_THOUGH_SOUND[decoder])]
    assert not bad, bad_inputs.table(verdicts)
    assert max(time.over_seconds for time in times) <= bad_inputs.GRACE_SECONDS
