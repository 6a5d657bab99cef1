"""Layers: imports between folders run one way, and each third-party library has one home."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The folders of each package from the top down: a folder imports only from those below it.
LAYERS = {
    "vidshard": (
        "cli", "inspection", "building", "planning", "sources", "execution", "video", "shards", "storage", "util",
    ),
    "stage1": ("cli", "evaluation", "review", "training", "inference", "model", "metrics", "data", "common"),
}  # fmt: skip
# What `stage1` uses of `vidshard`: the shard format and what it builds on. Videos are reached through the modules named
# in REACHES_VIDEOS alone, inside functions.
SHARED = {"shards", "storage", "util"}
REACHES_VIDEOS = {"stage1.data.from_videos"}
MAX_ENTRIES = 14  # of a folder, `cli` excepted

# Third-party library → the only modules that import it.
ONLY_IN = {
    "decord": {"vidshard.video.decoders.decord_decoder"},
    "av": {
        "vidshard.video.containers",
        "vidshard.video.cutting",
        "vidshard.video.damage",
        "vidshard.video.decoders.pyav_decoder",
        "vidshard.video.packets",
        "vidshard.video.sequence",
    },
    "cv2": {"vidshard.video.decoders.opencv_decoder", "vidshard.util.opencv"},
    "matplotlib": {"stage1.evaluation.plots", "stage1.common.plots", "stage1.review.film_strip"},
    "webdataset": {"stage1.data.loader"},
    "sklearn": {
        "stage1.evaluation.crossval",
        "stage1.metrics.clips",
        "stage1.model.motion_features",
        "stage1.evaluation.baselines",
    },
    "jsonschema": {"stage1.common.schema"},
    "tqdm": {"vidshard.util.console"},
    "onnxruntime": {"stage1.model.onnx"},
    "jinja2": {"vidshard.util.pages"},
    "fsspec": {"vidshard.storage.urls"},
    "ray": {"vidshard.execution.ray"},
    "wandb": {"stage1.training.trackers"},
    "mlflow": {"stage1.training.trackers"},
}


def modules() -> dict[str, Path]:
    found = {}
    for package in ("vidshard", "stage1"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function; `from a import b` gives a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def folder_of(name: str) -> tuple[str, str]:
    """(package, folder) of a module; the folder is "" for one directly in the package."""
    parts = name.split(".")
    return parts[0], parts[1] if len(parts) > 2 or (ROOT / parts[0] / parts[-1]).is_dir() else ""


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_between_folders_run_downward(name: str) -> None:
    known = modules()
    package, folder = folder_of(name)
    for used in imports_of(known[name]) & known.keys() - {"vidshard", "stage1"}:
        used_package, used_folder = folder_of(used)
        if package != used_package:
            assert package == "stage1", f"{name} imports {used}: vidshard must not know stage1"
            assert used_folder in SHARED or name in REACHES_VIDEOS, f"{name} may not import {used}"
        elif folder and folder != used_folder:
            assert used_folder, f"{name} imports {used}, which lies above every folder"
            layers = LAYERS[package]
            assert layers.index(folder) < layers.index(used_folder), f"{name} imports {used}, which lies above it"


@pytest.mark.parametrize("package", LAYERS)
def test_folders_are_those_of_the_layers_and_not_crowded(package: str) -> None:
    folders = [path for path in (ROOT / package).rglob("*") if path.is_dir() and path.name != "__pycache__"]
    assert {path.name for path in folders if path.parent == ROOT / package} == set(LAYERS[package])
    for folder in [ROOT / package, *folders]:
        entries = [path.name for path in folder.iterdir() if path.name not in ("__pycache__", "__init__.py")]
        assert folder.name == "cli" or len(entries) <= MAX_ENTRIES, f"{folder}: {sorted(entries)}"


def test_imports_run_in_no_circle() -> None:
    known = modules()
    graph = {name: imports_of(path) & known.keys() - {"vidshard", "stage1", name} for name, path in known.items()}
    while graph:
        leaves = {name for name, used in graph.items() if not used & graph.keys()}
        assert leaves, f"circular imports: {sorted(graph)}"
        graph = {name: used for name, used in graph.items() if name not in leaves}


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_each_library_has_one_home(library: str) -> None:
    users = {name for name, path in modules().items() for used in imports_of(path) if used.partition(".")[0] == library}
    assert users <= ONLY_IN[library]
    assert users, f"nothing imports {library}"


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules, sep='\\n')"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    return set(shown.stdout.split())


def test_importing_vidshard_loads_no_torch_and_no_decoder() -> None:
    loaded = loaded_by("import vidshard, vidshard.cli.main, vidshard.building.run, vidshard.shards.manifest")
    assert not loaded & {"torch", "decord", "cv2", "av", "matplotlib"}


def test_training_and_inference_load_no_decoder() -> None:
    loaded = loaded_by("import stage1.cli.main, stage1.training.loop, stage1.inference.run")
    assert not loaded & {"decord", "cv2", "av", "vidshard.building.run"}


def test_the_architecture_names_no_file_that_is_gone() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    gone = [
        name
        for name in re.findall(r"(?:vidshard|stage1|tests|tools|docs)/[\w/]+\.\w+", text)
        if not (ROOT / name).exists()
    ]
    assert not gone
