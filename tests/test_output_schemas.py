"""Every file of a run against its JSON Schema in docs/schemas."""

from __future__ import annotations

import csv
import json
import tarfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from test_infer import damage, place, stage1  # noqa: F401  # `place` is a fixture

SCHEMAS = Path(__file__).resolve().parent.parent / "docs" / "schemas"


def check(value: Any, name: str) -> None:
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_bytes())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(value)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def check_outputs(folder: Path) -> None:
    """All that a run wrote to `folder`."""
    for name in ("anomalies", "events", "run"):
        check(json.loads((folder / f"{name}.json").read_bytes()), name)
    for name in ("predictions", "videos"):
        found = rows(folder / f"{name}.csv")
        assert found
        for row in found:
            check(row, name)
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


def test_a_schema_finds_what_is_wrong(place: Path) -> None:  # noqa: F811
    stage1("infer")
    path = place / "stage1_output" / "anomalies.json"
    entries = json.loads(path.read_bytes())
    entries[0]["confidence"] = 1.5
    with pytest.raises(jsonschema.ValidationError):
        check(entries, "anomalies")
    with pytest.raises(jsonschema.ValidationError):
        check([{**entries[0], "confidence": 0.5, "more": 1}], "anomalies")


def test_every_schema_is_used() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{path.name.removesuffix(".schema.json")}"' in text for path in SCHEMAS.glob("*.json"))
