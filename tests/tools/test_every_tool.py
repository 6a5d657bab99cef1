"""Every script in tools/ runs, with as little work as its options allow."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import synthetic_videos

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools"
CHECKPOINT = ROOT / "tests" / "fixtures" / "0.1" / "training" / "binary_stage1_with_attention.pt"

# Script → arguments, in a folder with generated videos.
ARGUMENTS = {
    "change_while_reading.py": "--times 1",
    "bad_inputs.py": "--help",  # its inputs come from a generator elsewhere; test_bad_inputs.py runs the rest
    "bad_remuxes.py": "--help",  # test_bad_remuxes.py runs it
    "bench_against.py": "--help",  # needs an older checkout
    "bench_build.py": "--quick --only sparse --decoders pyav",
    "bench_cold_reads.py": "--help",  # needs root, and shards larger than a gigabyte of memory
    "bench_end_to_end.py": "--num-short 2 --num-long 2 --long-seconds 4 --alternations 1 --notebook-workers 0",
    "bench_export.py": "--help",  # an export takes a minute, and test_onnx.py does it
    "bench_finalize.py": "--videos 300 --shards 300",
    "bench_index.py": "--clips 20000 --repeat 1",
    "bench_infer.py": "--clips 8 --alternations 1 --skip memory --skip minute",
    "bench_loader.py": "--quick --alternations 1",
    "bench_model.py": "--rounds 0",
    "bench_object_store.py": "--clips 16 --turns 1 --epochs 1",
    "bench_train_options.py": "--help",  # torch.compile takes minutes
    "check_cuda.py": "--dry-run",
    "check_environment.py": "--help",  # installs packages from the network
    "check_readers.py": "--only webdataset",
    "compare_decoders.py": "videos/Test --workers 1",
    "compare_field.py": "--help",  # test_compare_field.py runs it
    "compare_sampling.py": "--help",  # five cross-validations take minutes
    "compare_stock_webdataset.py": "",
    "count_code.py": f"{TOOLS}",
    "crash_test_build.py": "--help",  # tests/vidshard/building/test_faults.py runs it
    "crash_test_checkpoint.py": "--kills 1 --flips 2",
    "fuzz_inputs.py": "--mutants 12",  # of each kind
    "hour_of_video.py": f"--minutes 2 --events 1 --checkpoint {CHECKPOINT}",
    "inject_faults.py": "--up-to 2 --drawn 0 --command resumed-infer --command extract",
    "nested_crossval.py": "--help",  # test_nested_crossval.py runs it
    "one_camera_out.py": "--help",  # test_one_camera_out.py runs it
    "run_in_pairs.py": "--pairs 1 --command report",
    "scaling.py": "",
    "synthetic_videos.py": "more --videos Train=2 --workers 1",
    "untrimmed_bags.py": "--help",  # six trainings take minutes
    "untrimmed_events.py": f"--checkpoint {CHECKPOINT} --validation videos/Validation --test videos/Test --out events",
}
NOT_RUN_HERE = {
    "demo.py": "CI runs it as `make demo`: it has no shorter way",
    "notebook_way.py": "no command; the benchmarks import it",
    "shortcut_baselines.py": "trains on full frames; tests/e2e/test_demo_data.py runs it",
    "train_stage2.py": "needs the output of stage 1; tests/e2e/test_stage2.py runs it",
}


def test_every_tool_is_listed() -> None:
    assert {path.name for path in TOOLS.glob("*.py")} == ARGUMENTS.keys() | NOT_RUN_HERE.keys()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tools")
    counts = {"Train": 8, "Validation": 8, "Test": 8}
    synthetic_videos.make_dataset(folder / "videos", num_videos=counts, workers=1)
    for split in counts:
        shutil.copy(folder / "videos" / "temporal_annotations.txt", folder / "videos" / split)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_a_tool_runs(name: str, folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    shown = subprocess.run(
        [sys.executable, TOOLS / name, *ARGUMENTS[name].split()],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stdout[-2000:] + shown.stderr[-2000:]
    assert shown.stdout
