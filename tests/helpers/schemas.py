"""Validation of files against their JSON Schemas in docs/schemas."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import jsonschema

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schemas"


def check(value: Any, name: str) -> None:
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_bytes())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(value)


def check_json(path: Path, name: str) -> None:
    check(json.loads(path.read_bytes()), name)


def check_lines(path: Path, name: str) -> None:
    """Return every line of a JSON Lines file, which has at least one."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines
    for line in lines:
        check(json.loads(line), name)


def check_rows(path: Path, name: str) -> None:
    """Return every row of a CSV, which has at least one, as an object of strings."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows
    for row in rows:
        check(row, name)
