"""Every file of a run against its JSON Schema in docs/schemas."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from inference_runs import damage, place, stage1  # noqa: F401  # `place` is a fixture
from schemas import SCHEMAS, check, check_json, check_rows

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
# Each file that stage1 writes, and its schemas; of a CSV and of JSON lines: of a row.
SCHEMA_OF = {
    "anomalies.json": ["anomalies"],
    "crossval.json": ["crossval"],
    "evaluation.json": ["evaluation", "evaluation_scores"],
    "events.json": ["events"],
    "explanation.json": ["explanation"],
    "features.json": ["features"],
    "frames.csv": ["frames"],
    "manifest.json": ["attention_manifest"],  # of attention_data/shards; that of other shards: docs/SHARD_FORMAT.md
    "marks.csv": ["marks"],
    "metrics.csv": ["metrics_csv"],
    "metrics.jsonl": ["metrics"],
    "plan.json": ["features_plan"],
    "predictions.csv": ["predictions"],
    "run.json": ["run", "crossval_run"],
    "stage1_attention_data.pt": ["attention_data"],  # each field described by its type and shape
    "videos.csv": ["videos"],
}
IN_SHARDS = ["attention_sample"]
OF_RUN = ["anomalies", "events", "predictions", "run", "videos"]  # checked in a loop below
OF_VIDSHARD = {"failures.csv", "sources.json"}  # docs/SHARD_FORMAT.md, README.md
OF_TOOLS = {"label_studio.json", "fiftyone.json", "labels.json", "activitynet.json"}  # theirs, checked in test_exchange


def check_outputs(folder: Path) -> None:
    """All files that a run wrote to `folder`."""
    for name in ("anomalies", "events", "run"):
        check_json(folder / f"{name}.json", name)
    for name in ("predictions", "videos"):
        check_rows(folder / f"{name}.csv", name)
    file = folder / "attention_data" / "stage1_attention_data.pt"
    if file.is_file():
        fields = torch.load(file, weights_only=True)
        check({name: described(value) for name, value in fields.items()}, "attention_data")
    else:
        shards = folder / "attention_data" / "shards"
        manifest = json.loads((shards / "manifest.json").read_bytes())
        check(manifest, "attention_manifest")
        for shard in manifest["shards"]:
            with tarfile.open(shards / shard["name"]) as tar:
                for member in tar:
                    if member.name.endswith(".json"):
                        check(json.loads(tar.extractfile(member).read()), "attention_sample")  # type: ignore[union-attr]


def described(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
    return value


@pytest.mark.parametrize("attention_format", ["pt", "shards"])
def test_every_output_is_as_its_schema_says(place: Path, attention_format: str) -> None:  # noqa: F811
    assert stage1("infer", "--attention-format", attention_format).exit_code == 0
    check_outputs(place / "stage1_output")
    damage(place, 2)
    assert stage1("infer", "--attention-format", attention_format, "--threshold", "0").exit_code == 2
    check_outputs(place / "stage1_output")
    stage1("infer", "--attention-format", attention_format, "--threshold", "1")
    check_outputs(place / "stage1_output")


def test_a_schema_finds_errors(place: Path) -> None:  # noqa: F811
    stage1("infer")
    path = place / "stage1_output" / "anomalies.json"
    entries = json.loads(path.read_bytes())
    entries[0]["confidence"] = 1.5
    with pytest.raises(jsonschema.ValidationError):
        check(entries, "anomalies")
    with pytest.raises(jsonschema.ValidationError):
        check([{**entries[0], "confidence": 0.5, "more": 1}], "anomalies")


def test_every_file_that_is_written_has_a_schema() -> None:
    names = r"([a-z_0-9]+\.(?:jsonl?|csv))"
    written = {name for path in (ROOT / "stage1").rglob("*.py") for name in re.findall(f'"{names}"', path.read_text())}
    documents = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("OUTPUTS", "TRAINING", "EVALUATION"))]
    told = {name for path in documents for name in re.findall(f"`(?:[a-z_]+/)*{names}`", path.read_text())}
    assert len(written) > 10
    assert (written | told) - OF_VIDSHARD - OF_TOOLS == SCHEMA_OF.keys() - {"stage1_attention_data.pt"}


def test_every_schema_is_one_of_a_file_and_checks_a_real_one() -> None:
    schemas = {path.name.removesuffix(".schema.json") for path in SCHEMAS.glob("*.json")}
    assert schemas == {*sum(SCHEMA_OF.values(), IN_SHARDS)}
    tests = "".join(path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py"))
    assert {name for name in schemas if not re.search(rf'check\w*\([^\n]*"{name}"', tests)} <= set(OF_RUN)
