"""tools/slurm/submit.sh with a stand-in for sbatch."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SUBMIT = Path(__file__).resolve().parents[2] / "tools" / "slurm" / "submit.sh"


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_a_path_with_a_comma_reaches_every_job(tmp_path: Path) -> None:
    folder = tmp_path / "a,b c"
    (folder / "bin").mkdir(parents=True)
    sbatch = folder / "bin" / "sbatch"
    sbatch.write_text('#!/bin/sh\nprintf "%s\\n" "$SETTINGS" "$@" "" >> "$TOLD"\necho 7\n')
    sbatch.chmod(0o755)
    settings = SUBMIT.parent.joinpath("settings.sh").read_text()
    (folder / "settings.sh").write_text(settings + f"\nLOGS='{folder}/logs'\n")
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "TOLD": str(tmp_path / "told")}
    done = subprocess.run(
        [SUBMIT, folder / "settings.sh", "--from=finalize"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    jobs = (tmp_path / "told").read_text().split("\n\n")[:-1]
    assert len(jobs) == 3
    for job in jobs:
        passed, *words = job.splitlines()
        assert passed == str(folder / "settings.sh")
        assert "--export=ALL" in words  # a comma would end a variable that is named there
