"""Configuration dataclasses from keyword options; paths and URLs may be text."""

from __future__ import annotations

import difflib
import os
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from vidshard.storage.urls import Url, location
from vidshard.util.errors import UserError

Config = TypeVar("Config")


def check_names(given: Iterable[str], known: Iterable[str], *, function: str) -> None:
    """Raise UserError, naming the nearest option, if a name is not known.

    >>> check_names(["epoch"], ["epochs", "lr"], function="train")
    Traceback (most recent call last):
    vidshard.util.errors.UserError: train has no option 'epoch'; did you mean 'epochs'?
    """
    known = list(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(sorted(known))}"
            raise UserError(f"{function} has no option {name!r}; {hint}" if known else f"{function} takes no options")


def make_config(kind: type[Config], options: Mapping[str, Any], *, function: str) -> Config:
    """Return ``kind(**options)``, with text turned into paths or URLs where a field holds them.

    Raises UserError if an option is unknown or `kind` refuses a value.
    """
    hints = typing.get_type_hints(kind)
    check_names(options, hints, function=function)
    return kind(**{name: _convert(value, hints[name]) for name, value in options.items()})


def _convert(value: Any, hint: Any) -> Any:
    kinds = typing.get_args(hint) or (hint,)
    if typing.get_origin(hint) is tuple:
        values = value if isinstance(value, list | tuple) else [value]
        return tuple(_convert(one, kinds[0]) for one in values)
    if isinstance(value, str | os.PathLike) and Url in kinds:
        return location(value if isinstance(value, str) else Path(value))
    if isinstance(value, str | os.PathLike) and Path in kinds:
        return Path(value)
    return value
