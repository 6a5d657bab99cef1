"""Reader of JSON files that checks them against the published schemas (docs/schemas)."""

from __future__ import annotations

import functools
import json
import reprlib
from importlib import resources
from pathlib import Path
from typing import Any

from vidshard.util import files
from vidshard.util.errors import FormatError

MAX_NUMBER = 1e18  # no number of a run is larger; larger ones would overflow when they are used


def read_json(path: Path, name: str, *, again: str) -> Any:
    """Return the content of a JSON file of the schema `name`. Raises FormatError if that fails, and adds `again` as
    advice."""
    from jsonschema.exceptions import best_match

    try:
        value = json.loads(files.read_bytes(path), parse_constant=_refuse_constant)
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror}; {again}") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON: {error}; {again}") from error
    if (fault := best_match(_validator(name).iter_errors(value))) is not None:
        place = "".join(f": {part}" for part in fault.absolute_path)
        raise FormatError(f"{path}{place}: {_sentence(fault)}; {again}")
    return value


def _sentence(fault: Any) -> str:
    """Say what a `jsonschema.ValidationError` found, in few words even if a whole file is at fault."""
    rule, expected = fault.validator, fault.validator_value
    if rule == "required":
        return f"lacks {next(name for name in expected if name not in fault.instance)}"
    if rule == "additionalProperties":
        known = fault.schema.get("properties", {})
        return f"{next(name for name in fault.instance if name not in known)} is unknown"
    return f"is {reprlib.repr(fault.instance)}, expected {rule} {reprlib.repr(expected)}"


@functools.cache
def _validator(name: str) -> Any:
    from jsonschema import Draft202012Validator, validators

    text = resources.files("stage1.common").joinpath("schemas", f"{name}.schema.json").read_text(encoding="utf-8")
    kinds = Draft202012Validator.TYPE_CHECKER.redefine_many(
        {
            "integer": lambda _, value: _is_number(value) and isinstance(value, int),  # not 1.0, as JSON Schema has it
            "number": lambda _, value: _is_number(value),
        }
    )
    return validators.extend(Draft202012Validator, type_checker=kinds)(json.loads(text))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_NUMBER


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")
