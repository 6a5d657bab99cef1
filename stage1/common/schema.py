"""Reader of JSON files that checks them against the published schemas (docs/schemas), with part of JSON Schema."""

from __future__ import annotations

import functools
import json
import math
import re
import reprlib
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from vidshard.util import files
from vidshard.util.errors import FormatError

_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "integer": (int,),
    "number": (int, float),
}


def read_json(path: Path, name: str, *, again: str) -> Any:
    """Return the content of a JSON file of the schema `name`. Raises FormatError if that fails, and adds `again` as
    advice."""
    try:
        value = json.loads(files.read_bytes(path), parse_constant=_refuse_constant)
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror}; {again}") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON: {error}; {again}") from error
    schema = _schema(name)
    if (fault := next(faults(value, schema, schema), None)) is not None:
        raise FormatError(f"{path}{fault}; {again}")
    return value


def faults(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any]) -> Iterator[str]:
    """Yield the faults of a value, each with its place in the file.

    >>> schema = {"type": "object", "properties": {"label": {"enum": [0, 1]}}, "required": ["label"]}
    >>> list(faults({"label": 2}, schema, schema)), list(faults({}, schema, schema))
    ([': label: is 2'], [': lacks label'])
    """
    if "$ref" in schema:
        yield from faults(
            value, functools.reduce(lambda part, key: part[key], schema["$ref"][2:].split("/"), root), root
        )
    types = schema.get("type", [])
    if types and not any(_is_of(value, name) for name in ([types] if isinstance(types, str) else types)):
        yield f": is {reprlib.repr(value)}, expected {types}"
        return
    for name in ("anyOf", "oneOf"):
        found = [next(faults(value, choice, root), None) for choice in schema.get(name, [])]
        if found and None not in found:
            yield str(found[0])
    if not _is_allowed(value, schema):
        yield f": is {reprlib.repr(value)}"
    if isinstance(value, list):
        yield from _list_faults(value, schema, root)
    elif isinstance(value, dict):
        yield from _object_faults(value, schema, root)


def _is_of(value: Any, name: str) -> bool:
    return isinstance(value, _TYPES[name]) and not (isinstance(value, bool) and name in ("integer", "number"))


def _is_allowed(value: Any, schema: Mapping[str, Any]) -> bool:
    """Check a value itself, but not its parts."""
    choices = [schema["const"]] if "const" in schema else schema.get("enum", [value])
    if not any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in choices):
        return False
    if isinstance(value, str):
        return len(value) >= schema.get("minLength", 0) and re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, high = schema.get("minimum", value), schema.get("maximum", value)
        return bool(low <= value <= high and abs(value) < 1e18 and value > schema.get("exclusiveMinimum", -math.inf))
    return True


def _list_faults(value: list[Any], schema: Mapping[str, Any], root: Mapping[str, Any]) -> Iterator[str]:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        yield f": has {len(value)} entries"
    for i, part in enumerate(value):
        for fault in faults(part, schema.get("items", {}), root):
            yield f": {i}{fault}"


def _object_faults(value: dict[str, Any], schema: Mapping[str, Any], root: Mapping[str, Any]) -> Iterator[str]:
    if (missing := next((name for name in schema.get("required", []) if name not in value), None)) is not None:
        yield f": lacks {missing}"
    others = schema.get("additionalProperties", {})
    for name, part in value.items():
        of_part = schema.get("properties", {}).get(name, others)
        for fault in [": is unknown"] if of_part is False else faults(part, of_part or {}, root):
            yield f": {name}{fault}"


@functools.cache
def _schema(name: str) -> dict[str, Any]:
    text = resources.files("stage1.common").joinpath("schemas", f"{name}.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")
