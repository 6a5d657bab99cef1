"""The rooms and the doors between them: which module may import which."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Every module and the modules of this project that it may import. A new module must be entered here and in
# docs/ARCHITECTURE.md; an import that is not here is a wall broken through.
ALLOWED: dict[str, set[str]] = {
    "vidshard": {"vidshard.builder", "vidshard.clips"},
    "vidshard.atomic": set(),
    "vidshard.build_config": {
        "vidshard.clip_codecs",
        "vidshard.clips",
        "vidshard.decoders",
        "vidshard.errors",
        "vidshard.manifest",
        "vidshard.remote_set",
        "vidshard.shard_format",
        "vidshard.sources",
        "vidshard.storage",
        "vidshard.work_folder",
    },
    "vidshard.build_log": {"vidshard.atomic", "vidshard.shard_format", "vidshard.storage"},
    "vidshard.array_task": {"vidshard.errors"},
    "vidshard.array_build": {
        "vidshard.array_task",
        "vidshard.atomic",
        "vidshard.build_config",
        "vidshard.build_log",
        "vidshard.builder",
        "vidshard.console",
        "vidshard.decode_task",
        "vidshard.errors",
        "vidshard.folder_lock",
        "vidshard.kept_set",
        "vidshard.ledger",
        "vidshard.manifest",
        "vidshard.planner",
        "vidshard.shard_format",
        "vidshard.shard_writer",
        "vidshard.sources",
        "vidshard.storage",
        "vidshard.work_folder",
    },
    "vidshard.builder": {
        "vidshard.build_config",
        "vidshard.build_log",
        "vidshard.clips",
        "vidshard.console",
        "vidshard.decode_task",
        "vidshard.decoders",
        "vidshard.errors",
        "vidshard.folder_lock",
        "vidshard.kept_set",
        "vidshard.ledger",
        "vidshard.manifest",
        "vidshard.planner",
        "vidshard.ray_executor",
        "vidshard.remote_output",
        "vidshard.remote_sources",
        "vidshard.shard_format",
        "vidshard.shard_joiner",
        "vidshard.source_lists",
        "vidshard.sources",
        "vidshard.storage",
        "vidshard.supervisor",
        "vidshard.work_folder",
        "vidshard.worker_errors",
    },
    "vidshard.cli": {
        "vidshard.array_build",
        "vidshard.array_task",
        "vidshard.builder",
        "vidshard.clips",
        "vidshard.console",
        "vidshard.inspect_shards",
        "vidshard.preview",
        "vidshard.split",
        "vidshard.storage",
        "vidshard.summary",
        "vidshard.verify",
    },
    "vidshard.clip_codecs": {"vidshard.clips", "vidshard.errors"},
    "vidshard.clips": {"vidshard.errors"},
    "vidshard.console": {"vidshard.errors"},
    "vidshard.containers": set(),
    "vidshard.damage": {"vidshard.containers"},
    "vidshard.decode_task": {
        "vidshard.clips",
        "vidshard.damage",
        "vidshard.decoders",
        "vidshard.fetched_video",
        "vidshard.packets",
        "vidshard.planner",
        "vidshard.sequence",
        "vidshard.shard_format",
        "vidshard.shard_writer",
        "vidshard.sources",
        "vidshard.storage",
    },
    "vidshard.decoders": {
        "vidshard.decoders.base",
        "vidshard.decoders.decord_decoder",
        "vidshard.decoders.opencv_decoder",
        "vidshard.decoders.pyav_decoder",
        "vidshard.errors",
    },
    "vidshard.decoders.base": {"vidshard.packets"},
    "vidshard.decoders.decord_decoder": {
        "vidshard.clips",
        "vidshard.decoders.base",
        "vidshard.errors",
        "vidshard.packets",
    },
    "vidshard.decoders.opencv_decoder": {"vidshard.clips", "vidshard.decoders.base", "vidshard.packets"},
    "vidshard.decoders.pyav_decoder": {"vidshard.containers", "vidshard.decoders.base", "vidshard.packets"},
    "vidshard.errors": set(),
    "vidshard.fetched_video": {"vidshard.packets", "vidshard.storage"},
    "vidshard.folder_lock": {"vidshard.errors"},
    "vidshard.inspect_shards": {
        "vidshard.manifest",
        "vidshard.remote_set",
        "vidshard.shard_format",
        "vidshard.storage",
    },
    "vidshard.kept_set": {
        "vidshard.decode_task",
        "vidshard.manifest",
        "vidshard.planner",
        "vidshard.shard_format",
        "vidshard.shard_writer",
        "vidshard.sources",
        "vidshard.work_folder",
    },
    "vidshard.ledger": {
        "vidshard.atomic",
        "vidshard.build_config",
        "vidshard.decode_task",
        "vidshard.errors",
        "vidshard.manifest",
        "vidshard.planner",
        "vidshard.shard_format",
        "vidshard.sources",
        "vidshard.work_folder",
    },
    "vidshard.manifest": {"vidshard.atomic", "vidshard.errors", "vidshard.shard_format", "vidshard.video_lists"},
    "vidshard.packets": {"vidshard.atomic", "vidshard.containers", "vidshard.damage", "vidshard.sequence"},
    "vidshard.planner": {"vidshard.shard_format"},
    "vidshard.preview": {
        "vidshard.atomic",
        "vidshard.clips",
        "vidshard.console",
        "vidshard.errors",
        "vidshard.inspect_shards",
        "vidshard.manifest",
        "vidshard.shard_format",
    },
    "vidshard.ray_executor": {"vidshard.errors", "vidshard.supervisor"},
    "vidshard.remote_output": {
        "vidshard.atomic",
        "vidshard.console",
        "vidshard.errors",
        "vidshard.manifest",
        "vidshard.remote_set",
        "vidshard.shard_format",
        "vidshard.storage",
    },
    "vidshard.remote_sources": {
        "vidshard.errors",
        "vidshard.manifest",
        "vidshard.shard_format",
        "vidshard.sources",
        "vidshard.storage",
        "vidshard.video_lists",
    },
    "vidshard.remote_set": {
        "vidshard.errors",
        "vidshard.manifest",
        "vidshard.shard_cache",
        "vidshard.shard_format",
        "vidshard.storage",
        "vidshard.video_lists",
    },
    "vidshard.sequence": {"vidshard.containers", "vidshard.damage"},
    "vidshard.shard_cache": {"vidshard.errors", "vidshard.storage"},
    "vidshard.shard_format": {"vidshard.clip_codecs", "vidshard.errors"},
    "vidshard.shard_joiner": {
        "vidshard.decode_task",
        "vidshard.kept_set",
        "vidshard.manifest",
        "vidshard.planner",
        "vidshard.shard_writer",
        "vidshard.work_folder",
    },
    "vidshard.shard_writer": {"vidshard.atomic", "vidshard.manifest", "vidshard.shard_format"},
    "vidshard.source_lists": {
        "vidshard.errors",
        "vidshard.manifest",
        "vidshard.shard_format",
        "vidshard.sources",
        "vidshard.video_lists",
    },
    "vidshard.sources": {
        "vidshard.containers",
        "vidshard.errors",
        "vidshard.manifest",
        "vidshard.shard_format",
        "vidshard.storage",
        "vidshard.video_lists",
    },
    "vidshard.split": {
        "vidshard.atomic",
        "vidshard.clips",
        "vidshard.errors",
        "vidshard.manifest",
        "vidshard.shard_format",
        "vidshard.source_lists",
        "vidshard.sources",
        "vidshard.video_lists",
    },
    "vidshard.storage": {"vidshard.errors"},
    "vidshard.summary": {
        "vidshard.array_build",
        "vidshard.builder",
        "vidshard.manifest",
        "vidshard.shard_format",
    },
    "vidshard.supervisor": {"vidshard.errors"},
    "vidshard.verify": {
        "vidshard.atomic",
        "vidshard.console",
        "vidshard.errors",
        "vidshard.manifest",
        "vidshard.remote_set",
        "vidshard.shard_format",
        "vidshard.storage",
    },
    "vidshard.video_lists": {"vidshard.errors"},
    "vidshard.work_folder": {
        "vidshard.atomic",
        "vidshard.errors",
        "vidshard.manifest",
        "vidshard.shard_format",
        "vidshard.shard_writer",
    },
    "vidshard.worker_errors": {
        "vidshard.decoders",
        "vidshard.errors",
        "vidshard.fetched_video",
        "vidshard.packets",
    },
    "stage1": {"stage1.attention_data"},
    "stage1.annotations": {"vidshard.errors", "vidshard.video_lists"},
    "stage1.backbones": {"stage1.transforms", "vidshard.errors"},
    "stage1.attention_data": {"stage1.detections", "vidshard.atomic", "vidshard.errors", "vidshard.shard_format"},
    "stage1.bag_task": {
        "stage1.clip_random",
        "stage1.clip_task",
        "stage1.dataloader",
        "stage1.motion_statistics",
        "stage1.sample_plan",
        "stage1.train_config",
        "stage1.train_data",
        "vidshard.errors",
    },
    "stage1.calibration": {"stage1.metrics", "vidshard.errors"},
    "stage1.checkpoint": {
        "stage1.calibration",
        "stage1.files",
        "stage1.model",
        "stage1.transforms",
        "vidshard.atomic",
        "vidshard.errors",
        "vidshard.shard_format",
    },
    "stage1.clip_random": set(),
    "stage1.clip_task": {
        "stage1.backbones",
        "vidshard.errors",
        "stage1.clip_random",
        "stage1.dataloader",
        "stage1.distributed",
        "stage1.model",
        "stage1.motion_statistics",
        "stage1.optim",
        "stage1.sample_plan",
        "stage1.selection",
        "stage1.train_config",
        "stage1.train_data",
        "stage1.train_log",
        "stage1.transforms",
    },
    "stage1.crossval": {
        "stage1.shortcut_baselines",
        "stage1.checkpoint",
        "stage1.dataloader",
        "stage1.device",
        "stage1.files",
        "stage1.infer",
        "stage1.metrics",
        "stage1.sample_plan",
        "stage1.scoring",
        "stage1.train",
        "stage1.train_config",
        "stage1.train_data",
        "vidshard.atomic",
        "vidshard.errors",
        "vidshard.shard_cache",
        "vidshard.storage",
    },
    "stage1.cli": {
        "stage1.distributed",
        "stage1.backbones",
        "stage1.model",
        "stage1.crossval",
        "stage1.preview_augment",
        "stage1.evaluate",
        "stage1.evaluate_scores",
        "stage1.explain",
        "stage1.events",
        "stage1.export",
        "stage1.extract",
        "stage1.features",
        "stage1.files",
        "stage1.film_strip",
        "stage1.infer",
        "stage1.memory",
        "stage1.report",
        "stage1.train",
        "stage1.train_config",
        "vidshard.console",
        "vidshard.storage",
    },
    "stage1.dataloader": {"stage1.reader", "stage1.sample_plan", "stage1.selection", "vidshard.errors"},
    "stage1.detections": {"stage1.events", "vidshard.atomic", "vidshard.errors", "vidshard.shard_format"},
    "stage1.device": {"vidshard.errors"},
    "stage1.distributed": {"vidshard.errors"},
    "stage1.evaluate": {
        "stage1.train_data",
        "stage1.annotations",
        "stage1.calibration",
        "stage1.checkpoint",
        "stage1.dataloader",
        "stage1.detections",
        "stage1.device",
        "stage1.evaluation_plots",
        "stage1.events",
        "stage1.files",
        "stage1.frame_metrics",
        "stage1.metrics",
        "stage1.relative_scores",
        "stage1.scoring",
        "stage1.shortcut_baselines",
        "stage1.truth",
        "vidshard.atomic",
        "vidshard.console",
        "vidshard.errors",
        "vidshard.storage",
    },
    "stage1.evaluate_scores": {
        "stage1.annotations",
        "stage1.evaluation_plots",
        "stage1.files",
        "stage1.frame_metrics",
        "stage1.metrics",
        "stage1.score_files",
        "vidshard.atomic",
        "vidshard.errors",
    },
    "stage1.evaluation_plots": {"vidshard.atomic"},
    "stage1.events": {"vidshard.errors"},
    "stage1.export": {
        "stage1.checkpoint",
        "stage1.reader",
        "vidshard.atomic",
        "vidshard.errors",
        "vidshard.manifest",
        "vidshard.shard_format",
        "vidshard.storage",
    },
    "stage1.extract": {
        "stage1.attention_data",
        "stage1.detections",
        "stage1.files",
        "stage1.videos",
        "vidshard.atomic",
        "vidshard.clip_codecs",
        "vidshard.console",
        "vidshard.errors",
        "vidshard.manifest",
        "vidshard.shard_format",
        "vidshard.video_lists",
    },
    "stage1.features": {
        "stage1.annotations",
        "stage1.backbones",
        "stage1.checkpoint",
        "stage1.dataloader",
        "stage1.device",
        "stage1.files",
        "stage1.sample_plan",
        "stage1.scoring",
        "stage1.transforms",
        "stage1.truth",
        "vidshard.atomic",
        "vidshard.console",
        "vidshard.errors",
        "vidshard.manifest",
        "vidshard.shard_format",
        "vidshard.storage",
    },
    "stage1.explain": {
        "stage1.annotations",
        "stage1.calibration",
        "stage1.checkpoint",
        "stage1.dataloader",
        "stage1.device",
        "stage1.evaluation_plots",
        "stage1.files",
        "stage1.metrics",
        "stage1.model",
        "stage1.scoring",
        "stage1.truth",
        "vidshard.atomic",
        "vidshard.console",
        "vidshard.errors",
        "vidshard.shard_format",
        "vidshard.storage",
    },
    "stage1.files": {"vidshard.errors"},
    "stage1.film_strip": {
        "stage1.attention_data",
        "stage1.detections",
        "vidshard.atomic",
        "vidshard.errors",
        "vidshard.shard_format",
    },
    "stage1.frame_metrics": {"stage1.annotations", "stage1.metrics"},
    "stage1.infer": {
        "stage1.attention_data",
        "stage1.calibration",
        "stage1.checkpoint",
        "stage1.dataloader",
        "stage1.detections",
        "stage1.device",
        "stage1.distributed",
        "stage1.events",
        "stage1.files",
        "stage1.metrics",
        "stage1.relative_scores",
        "stage1.sample_plan",
        "stage1.score_journal",
        "stage1.scoring",
        "stage1.truth",
        "stage1.videos",
        "vidshard.atomic",
        "vidshard.console",
        "vidshard.errors",
        "vidshard.manifest",
        "vidshard.shard_cache",
        "vidshard.shard_format",
        "vidshard.storage",
    },
    "stage1.marks": {"stage1.reader", "stage1.sample_plan", "vidshard.errors", "vidshard.shard_format"},
    "stage1.memory": set(),
    "stage1.metrics": set(),
    "stage1.model": {"stage1.backbones", "stage1.clip_random", "stage1.motion_statistics"},
    "stage1.motion_statistics": set(),
    "stage1.optim": set(),
    "stage1.plots": {"vidshard.atomic"},
    "stage1.preview_augment": {
        "stage1.files",
        "stage1.plots",
        "stage1.reader",
        "stage1.transforms",
        "vidshard.errors",
        "vidshard.storage",
    },
    "stage1.reader": {
        "stage1.sample_plan",
        "vidshard.errors",
        "vidshard.remote_set",
        "vidshard.shard_cache",
        "vidshard.shard_format",
        "vidshard.storage",
    },
    "stage1.relative_scores": {"stage1.metrics", "vidshard.errors"},
    "stage1.report": {
        "stage1.attention_data",
        "stage1.checkpoint",
        "stage1.detections",
        "stage1.film_strip",
        "stage1.metrics",
        "stage1.reader",
        "stage1.relative_scores",
        "vidshard.atomic",
        "vidshard.console",
        "vidshard.errors",
        "vidshard.shard_format",
        "vidshard.storage",
    },
    "stage1.sample_plan": set(),
    "stage1.score_files": {"stage1.metrics", "vidshard.errors", "vidshard.video_lists"},
    "stage1.score_journal": {"vidshard.atomic", "vidshard.errors"},
    "stage1.scoring": {
        "stage1.calibration",
        "stage1.checkpoint",
        "stage1.dataloader",
        "stage1.device",
        "stage1.model",
        "stage1.reader",
        "stage1.sample_plan",
        "stage1.score_journal",
        "vidshard.console",
        "vidshard.errors",
        "vidshard.shard_format",
    },
    "stage1.selection": {"stage1.reader", "stage1.sample_plan", "vidshard.errors", "vidshard.shard_format"},
    "stage1.stop_signal": set(),
    "stage1.shortcut_baselines": {"stage1.metrics", "stage1.reader", "vidshard.shard_format"},
    "stage1.train": {
        "stage1.bag_task",
        "stage1.checkpoint",
        "stage1.clip_task",
        "stage1.dataloader",
        "stage1.device",
        "stage1.distributed",
        "stage1.files",
        "stage1.metrics",
        "stage1.optim",
        "stage1.stop_signal",
        "stage1.train_config",
        "stage1.train_data",
        "stage1.train_log",
        "stage1.versions",
        "vidshard.atomic",
        "vidshard.errors",
    },
    "stage1.train_config": {
        "stage1.files",
        "stage1.marks",
        "stage1.model",
        "stage1.transforms",
        "vidshard.errors",
        "vidshard.storage",
    },
    "stage1.train_data": {
        "stage1.marks",
        "stage1.reader",
        "stage1.sample_plan",
        "stage1.train_config",
        "vidshard.errors",
        "vidshard.remote_set",
        "vidshard.shard_cache",
    },
    "stage1.train_log": {
        "stage1.distributed",
        "stage1.files",
        "stage1.plots",
        "vidshard.atomic",
        "vidshard.console",
        "vidshard.errors",
    },
    "stage1.transforms": {"stage1.clip_random"},
    "stage1.versions": set(),
    "stage1.truth": {"stage1.annotations", "stage1.reader", "vidshard.errors"},
    "stage1.videos": {
        "vidshard.builder",
        "vidshard.clips",
        "vidshard.decoders",
        "vidshard.errors",
        "vidshard.manifest",
        "vidshard.packets",
        "vidshard.shard_format",
        "vidshard.sources",
    },
}

# Libraries that one room alone may import (a name stands for itself and what is below it).
ONLY_IN = {
    "decord": {"vidshard.decoders.decord_decoder"},
    "av": {
        "vidshard.containers",
        "vidshard.damage",
        "vidshard.decoders.pyav_decoder",
        "vidshard.packets",
        "vidshard.sequence",
    },
    "cv2": {"vidshard.decoders.opencv_decoder", "vidshard.clips"},
    "matplotlib": {"stage1.evaluation_plots", "stage1.plots", "stage1.film_strip"},
    "webdataset": {"stage1.dataloader"},
    "sklearn": {"stage1.crossval", "stage1.metrics", "stage1.motion_statistics", "stage1.shortcut_baselines"},
    "tqdm": {"vidshard.console"},
    "onnxruntime": {"stage1.export"},
    "jinja2": {"stage1.report", "vidshard.preview"},
    "fsspec": {"vidshard.storage"},
    "ray": {"vidshard.ray_executor"},
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


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_module_imports_only_what_the_table_allows(name: str) -> None:
    known = modules()
    used = {imported for imported in imports_of(known[name]) if imported in known}
    used -= {"vidshard", "stage1", name}  # the packages themselves hold names only: versions and the public API
    assert name in ALLOWED, f"{name} is not in the table of allowed imports"
    assert used <= ALLOWED[name], f"{name} may not import {sorted(used - ALLOWED[name])}"


def test_the_table_names_no_module_that_is_gone() -> None:
    assert set(ALLOWED) == set(modules())


def test_imports_run_in_no_circle() -> None:
    known = modules()
    graph = {name: imports_of(path) & known.keys() - {"vidshard", "stage1", name} for name, path in known.items()}
    while graph:
        leaves = {name for name, used in graph.items() if not used & graph.keys()}
        assert leaves, f"a circle of imports runs through {sorted(graph)}"
        graph = {name: used for name, used in graph.items() if name not in leaves}


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_a_library_stays_in_its_room(library: str) -> None:
    users = {name for name, path in modules().items() for used in imports_of(path) if used.partition(".")[0] == library}
    assert users <= ONLY_IN[library]
    assert users, f"nothing imports {library}"


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules, sep='\\n')"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    return set(shown.stdout.split())


def test_importing_vidshard_loads_no_torch_and_no_decoder() -> None:
    loaded = loaded_by("import vidshard, vidshard.cli, vidshard.builder, vidshard.manifest")
    assert not loaded & {"torch", "decord", "cv2", "av", "matplotlib"}


def test_training_and_inference_load_no_decoder() -> None:
    loaded = loaded_by("import stage1.cli, stage1.train, stage1.infer")
    assert not loaded & {"decord", "cv2", "av", "vidshard.builder"}


def test_every_module_is_named_in_the_architecture() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    missing = [path.name for path in modules().values() if path.name not in text and path.name != "__init__.py"]
    assert not missing
    names = {path.name for folder in ("vidshard", "stage1", "tests", "tools") for path in (ROOT / folder).rglob("*.py")}
    gone = {Path(name).name for name in re.findall(r"[\w/]+\.py\b", text)} - names
    assert not gone, "docs/ARCHITECTURE.md names modules that do not exist"
    assert len(text.splitlines()) <= 100, "docs/ARCHITECTURE.md must fit one page"
