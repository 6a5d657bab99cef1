"""Names of version 0.1: the two modules of its README still import, with a warning; no other old path remains."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The modules of 0.1. All lay directly in the packages, which have folders now.
OLD_MODULES = {
    "vidshard": """
        array_build array_task atomic build_config build_log builder clip_codecs clips console damage decode_task
        decoders errors fetched_video folder_lock inspect_shards kept_set ledger manifest packets planner preview
        ray_executor remote_output remote_set remote_sources shard_cache shard_format shard_joiner shard_writer
        source_lists sources split storage summary supervisor verify video_lists work_folder
    """,
    "stage1": """
        annotations attention_data backbones bag_task calibration checkpoint clip_random clip_task crossval dataloader
        detections device distributed evaluate evaluate_scores evaluation_plots events explain export extract features
        files film_strip frame_metrics infer marks memory metrics model motion_statistics optim plots preview_augment
        reader relative_scores report sample_plan score_files score_journal scoring selection shortcut_baselines
        stop_signal train train_config train_data train_log transforms truth versions videos
    """,
}
# Folders and functions of today that have the name of an old module, and their like in sentences and shell commands.
STILL_THERE = {
    "vidshard.sources",
    "vidshard.storage",
    "vidshard.split",
    "vidshard.verify",
    "stage1.metrics",
    "stage1.model",
    "stage1.evaluate",
    "stage1.infer",
    "stage1.train",
}
EXEMPT = {"CHANGELOG.md", "stage1/dataloader.py", "stage1/reader.py", "tests/test_old_names.py"}


# These measure older checkouts, too.
ON_PURPOSE = {
    ("tools/bench_against.py", "from stage1.dataloader import ClipLoader"),
    ("tools/bench_against.py", "from stage1.reader import ClipReader"),
    ("tools/bench_build.py", "from vidshard import decoders"),
}


def old_paths() -> set[str]:
    return {f"{package}.{name}" for package, names in OLD_MODULES.items() for name in names.split()} - STILL_THERE


def text_files() -> list[Path]:
    """Return all files of the checkout that people write: code, docs, tools, workflows, tests."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    names = [name for name in listed.stdout.split("\0") if name and name not in EXEMPT]
    kinds = {".py", ".md", ".ipynb", ".toml", ".yml", ".yaml", ".sh", ".sbatch", ".json", ".html", ".js", ".css", ""}
    return [ROOT / name for name in names if Path(name).suffix in kinds and not name.startswith("tests/fixtures/")]


def test_no_old_import_path_remains() -> None:
    paths = sorted(old_paths())
    dotted = "|".join(path.replace(".", "[./]") for path in paths)
    named = "|".join(path.partition(".")[2] for path in paths)
    old = re.compile(
        rf"(?<![\w./-])(?:{dotted})(?:\.py\b|(?![\w/-]))|from (?:vidshard|stage1) import \(?[\w\s,]*?\b(?:{named})\b"
    )
    assert old.search("import vidshard.builder")
    assert old.search("from stage1 import film_strip, marks")
    assert old.search("see stage1/marks.py")
    found = {
        (path.relative_to(ROOT).as_posix(), line.strip())
        for path in text_files()
        for line in path.read_text(encoding="utf-8").splitlines()
        if old.search(line)
    }
    assert not found - ON_PURPOSE


@pytest.mark.parametrize("path", ["vidshard.kept_set", "vidshard.builder", "stage1.marks"])
def test_old_modules_are_gone(path: str) -> None:
    assert path in old_paths()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(path)


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("stage1.dataloader", "stage1.data.loader", "ClipLoader"),
        ("stage1.reader", "stage1.data.reader", "ClipReader"),
    ],
)
def test_the_imports_of_the_readme_of_0_1_warn_once_and_give_the_same_objects(old: str, new: str, name: str) -> None:
    code = (
        "import warnings\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        f"    from {old} import {name} as first\n"
        f"    from {old} import {name} as second\n"
        f"import {new}, stage1\n"
        f"assert first is second is {new}.{name} is stage1.{name}\n"
        "(warning,) = [one for one in caught if 'is now' in str(one.message)]\n"
        "print(warning.category.__name__, warning.filename, warning.message)\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.strip() == (
        f"FutureWarning <string> {old} is now {new}; the old name will be removed in the next version"
    )


def test_the_packages_under_test_are_those_of_the_checkout() -> None:
    import stage1
    import vidshard

    for package in (vidshard, stage1):
        assert Path(package.__file__ or "").resolve() == ROOT / package.__name__ / "__init__.py"
    # A folder of tests that can be imported as a package would shadow the package on some paths.
    assert not [str(path) for path in (ROOT / "tests").rglob("__init__.py")]
    on_path = [Path(folder) for folder in sys.path if folder and Path(folder).is_relative_to(ROOT)]
    assert not [
        str(folder / name)
        for folder in on_path
        for name in ("vidshard", "stage1")
        if folder != ROOT and ((folder / name).exists() or (folder / f"{name}.py").exists())
    ]
