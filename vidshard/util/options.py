"""Options, declared once on frozen dataclasses; command lines are made from them.

A field made by `option` carries its help text, its range and its place in the help. `check_options` tests the values of
a new config, `config_options` turns them into click options, and `from_options` makes a config from their values;
`make_config` makes one from keywords or a TOML file.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import logging
import math
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from vidshard.util import console
from vidshard.util.console import LOCAL_PATH, ExitCodeGroup
from vidshard.util.errors import UserError
from vidshard.util.location import Url, location

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_METADATA = "option"
_SHOW_ALL = f"{__name__}.show_all"  # set in the context by --help-all


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """Declaration of a field as an option; see `option`."""

    help: str
    group: str
    name: str | None
    argument: bool
    default_text: str
    choices: tuple[str, ...]
    at_least: float | None
    above: float | None
    at_most: float | None
    below: float | None
    settings: Mapping[str, Any]

    @property
    def expected(self) -> str:
        """Allowed values in words, such as "at least 0 and below 1"."""
        if self.choices:
            return f"one of {', '.join(choice or repr('') for choice in self.choices)}"
        if self.at_least is not None and self.at_most is not None:
            return f"{self.at_least:,.15g} to {self.at_most:,.15g}"
        bounds = (("at least", self.at_least), ("more than", self.above), ("at most", self.at_most))
        return " and ".join(
            f"{words} {bound:,.15g}" for words, bound in (*bounds, ("below", self.below)) if bound is not None
        )

    def allows(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        return (  # written so that NaN fails
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )


def option(  # noqa: PLR0913  # each is optional, and declares one thing
    default: Any = dataclasses.MISSING,
    *,
    help: str = "",
    group: str = "",
    name: str | None = None,
    argument: bool = False,
    default_text: str = "",
    choices: tuple[str, ...] = (),
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    **settings: Any,
) -> Any:
    """Declare a dataclass field that is an option of a command; without `default` it is required.

    `group`: heading in --help-all; options without one are in --help as well. `name`: where the option's name is not
    the field's. `argument`: positional. `default_text`: what a default of None stands for. `choices`, and `at_least`
    to `below`: the allowed values. `settings` go to `click.Option` and win over what is derived from the field.
    """
    about = Option(
        help=help, group=group, name=name, argument=argument, default_text=default_text, choices=choices,
        at_least=at_least, above=above, at_most=at_most, below=below, settings=settings,
    )  # fmt: skip
    return dataclasses.field(default=default, metadata={_METADATA: about})


def check_options(config: Any) -> None:
    """Convert all values to the types of their fields, and check them; for `__post_init__`.

    Raises UserError that names the field.
    """
    for field, about, hint in _fields(type(config)):
        value = convert(getattr(config, field.name), hint, field.name)
        if value is not None and not about.allows(value):
            shown = repr(value) if isinstance(value, str) else f"{value:.15g}"
            raise UserError(f"{field.name} is {shown}, expected {about.expected}")
        object.__setattr__(config, field.name, value)


def convert(value: Any, hint: Any, name: str) -> Any:
    """Return `value`, from Python, TOML or the command line, as the type `hint`. Raises UserError that names it.

    >>> convert("a", Path | None, "out"), convert([1, 2], tuple[float, ...], "mean")
    (PosixPath('a'), (1.0, 2.0))
    """
    kinds = _kinds(hint)
    if value is None and kinds != [hint]:
        return None
    if Url in kinds and isinstance(value, str | os.PathLike | Url):
        return location(value)
    kind = kinds[0]
    if len(kinds) > 1 or kind is Any or typing.get_origin(kind) is typing.Literal:  # checked by the config itself
        return value
    if isinstance(value, list | tuple) and typing.get_origin(kind) is tuple:
        return tuple(convert(one, typing.get_args(kind)[0], name) for one in value)
    if isinstance(value, str | os.PathLike | Url) and typing.get_args(kind)[1:] == (...,):  # one of several
        return (convert(value, typing.get_args(kind)[0], name),)
    if kind is Path and isinstance(value, str | os.PathLike):
        return Path(value)
    elif kind in (int, float):
        is_number = isinstance(value, numbers.Integral if kind is int else numbers.Real)
        if is_number and not isinstance(value, bool) and not math.isnan(value):
            return kind(value)
    elif isinstance(kind, type) and isinstance(value, kind):
        return value
    expected = {float: "a number", int: "a whole number", bool: "true or false", str: "a text", Path: "a path"}
    what = expected.get(kind) or ("a table" if dataclasses.is_dataclass(kind) else "a list")
    raise UserError(f"{name} is {value!r}, expected {what}")


def check_names(given: Iterable[str], known: Iterable[str], *, function: str) -> None:
    """Raise UserError, naming the nearest option, if a name is not known.

    `known`: a nested option is listed with its full name, and found by its last part as well.

    >>> check_names(["epoch"], ["epochs", "lr"], function="train")
    Traceback (most recent call last):
    vidshard.util.errors.UserError: train has no option 'epoch'; did you mean 'epochs'?
    """
    known = set(known)
    full_names = {name.rpartition(".")[2]: name for name in sorted(known, reverse=True)}
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name.rpartition(".")[2], full_names, n=1)
            hint = f"; did you mean {full_names[near[0]]!r}?" if near else ""
            raise UserError(f"{function} has no option {name!r}{hint}" if known else f"{function} takes no options")


def make_config(config: type[T], options: Mapping[str, Any], *, function: str) -> T:
    """Make a config from `options`, nested ones included; `function` names their receiver in messages.

    Raises UserError if an option is unknown or has an invalid value.
    """
    nested = _nested(config)
    known = set(typing.get_type_hints(config))
    known |= {f"{name}.{part}" for name, kind in nested.items() for part in typing.get_type_hints(kind)}
    tables = {name for name, value in options.items() if name in nested and isinstance(value, Mapping)}
    given = [*options, *(f"{name}.{part}" for name in tables for part in options[name])]
    check_names(given, known, function=function)
    try:
        return config(**_converted(config, options))
    except ValueError as error:  # of a config that checks its values itself
        raise UserError(str(error)) from error


def _converted(config: type[Any], options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return `options` with the types of their fields; a table of nested options becomes a config."""
    hints, nested = typing.get_type_hints(config), _nested(config)
    defaults: dict[str, Any] = {field.name: field.default_factory for field in dataclasses.fields(config)}
    fields = {}
    for name, value in options.items():
        if name in nested and isinstance(value, Mapping):
            fields[name] = dataclasses.replace(defaults[name](), **_converted(nested[name], value, f"{prefix}{name}."))
        else:
            fields[name] = convert(value, hints[name], prefix + name)
    return fields


def _fields(config: type[Any]) -> list[tuple[dataclasses.Field[Any], Option, Any]]:
    """Return the fields of a config that are options, each with its declaration and type."""
    hints = typing.get_type_hints(config)
    fields = [(field, field.metadata.get(_METADATA), hints[field.name]) for field in dataclasses.fields(config)]
    return [(field, about, hint) for field, about, hint in fields if about is not None]


def _nested(config: type[Any]) -> dict[str, type[Any]]:
    """Return the fields of a config that are configs themselves; their options belong to it too."""
    hints = typing.get_type_hints(config)
    return {
        field.name: hints[field.name]
        for field in dataclasses.fields(config)
        if field.default_factory is not dataclasses.MISSING and dataclasses.is_dataclass(hints[field.name])
    }


def _kinds(hint: Any) -> list[Any]:
    """Return the types that a field allows, except None.

    >>> _kinds(int | None), _kinds(str)
    ([<class 'int'>], [<class 'str'>])
    """
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return [kind for kind in (typing.get_args(hint) if is_union else (hint,)) if kind is not types.NoneType]


def option_names(config: type[Any]) -> set[str]:
    """Return the names of the options of a config, nested configs included, as click passes them to a command."""
    return {name for name, *_ in _options(config)}


def _options(config: type[Any]) -> Iterator[tuple[str, dataclasses.Field[Any], Option, Any]]:
    known = {field.name: (field, about, hint) for field, about, hint in _fields(config)}
    nested = _nested(config)
    for field in dataclasses.fields(config):
        if field.name in known:
            yield known[field.name][1].name or field.name, *known[field.name]
        elif field.name in nested:
            yield from _options(nested[field.name])


def from_options(config: type[T], values: Mapping[str, Any], **fields: Any) -> T:
    """Make a config, nested ones included, of those `values` of a command that are its options, and of `fields`."""
    given = {
        field.name: values[about.name or field.name]
        for field, about, _ in _fields(config)
        if (about.name or field.name) in values
    }
    nested = {name: from_options(kind, values) for name, kind in _nested(config).items() if _fields(kind)}
    return config(**{**given, **nested, **fields})


def given_options() -> set[str]:
    """Return the names of the options that the user gave on the command line."""
    context = click.get_current_context()
    return {name for name in context.params if context.get_parameter_source(name) is not ParameterSource.DEFAULT}


# --- click --------------------------------------------------------------------------------------------------------


class GroupedOption(click.Option):
    """A click option that --help leaves out if it has a group."""

    def __init__(self, *args: Any, group: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


def _types_of_values(hint: Any) -> tuple[list[Any], bool]:
    """Return the types of a value of a field, and whether the field holds any number of values."""
    kinds = _kinds(hint)
    if typing.get_args(kinds[0])[1:] == (...,):
        return _kinds(typing.get_args(kinds[0])[0]), True
    return kinds, False


def _parameter(
    name: str, field: dataclasses.Field[Any], about: Option, hint: Any, changes: Mapping[str, Any]
) -> click.Parameter:
    """Make the click parameter of a field, with `changes`."""
    flag = f"--{name.replace('_', '-')}"
    kinds, many = _types_of_values(hint)
    kind = kinds[0]
    required = field.default is dataclasses.MISSING
    settings: dict[str, Any] = {"required": required} if required else {"default": field.default}
    if isinstance(field.default, tuple) and not many:  # given as one text, such as 0.7,0.1,0.2
        settings["default"] = ",".join(map(str, field.default))
    if about.choices:
        settings["type"] = click.Choice(about.choices)
    elif Url in kinds:
        settings |= {"type": location, "metavar": "PLACE"}
    elif kind is Path:
        settings["type"] = LOCAL_PATH
    elif kind is not bool:
        settings["type"] = kind
    if about.argument:
        return click.Argument([name], **{**settings, **about.settings, **changes})
    if kind is bool and field.default:
        flag = f"{flag}/--no-{flag[2:]}"
    elif kind is bool:
        settings["is_flag"] = True
    text = f"{about.help}  [default: {about.default_text}]" if about.default_text else about.help
    settings |= {"multiple": many, "help": text, "group": about.group}
    settings["show_default"] = not (required or field.default is False or field.default in (None, "", ()))
    settings |= {**about.settings, **changes}
    if settings.get("is_flag") is False:  # a flag that may have a value has no default of that value's type
        settings["default"] = None
    return GroupedOption([flag, name], **settings)


class Command(click.Command):
    """A command whose --help shows the options that matter, and an example; --help-all shows every option."""

    def __init__(self, *args: Any, example: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.example = example
        flag: dict[str, Any] = {"is_flag": True, "expose_value": False, "is_eager": True}
        self.params += [
            GroupedOption(
                ["-q", "--quiet"], **flag, callback=_show_from(logging.WARNING), group="Messages",
                help="Show only results, warnings and errors.",
            ),
            GroupedOption(
                ["-v", "--verbose"], **flag, callback=_show_from(logging.DEBUG), group="Messages",
                help="Show debug messages as well.",
            ),
            click.Option(["--help-all"], **flag, callback=_show_all, help="Show all options."),
        ]  # fmt: skip

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            group = getattr(parameter, "group", "")
            if record is not None and (not group or ctx.meta.get(_SHOW_ALL)):
                sections.setdefault(group, []).append(record)
        for group, records in sections.items():
            with formatter.section(group or "Options"):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Example"):
            for line in self.example.splitlines():
                formatter.write(f"{' ' * formatter.current_indent}{line}\n")


def _show_from(level: int) -> Callable[[click.Context, click.Parameter, bool], None]:
    def callback(_context: click.Context, _option: click.Parameter, given: bool) -> None:
        if given:
            console.show_logs(level)

    return callback


def _show_all(context: click.Context, _option: click.Parameter, given: bool) -> None:
    if given:
        context.meta[_SHOW_ALL] = True
        click.echo(context.get_help(), color=context.color)
        context.exit()


def command(*, example: str) -> Callable[[Callable[..., Any]], Command]:
    """Turn a function into a command, whose help ends with `example`."""
    return click.command(cls=Command, example=example)


def config_options(config: type[Any], *names: str, **changes: Any) -> Callable[[F], F]:
    """Give a command the options of `config`, or only those named; `changes` go to `click.Option`.

    They reach the function by name, as keywords, from which `from_options` makes the config.
    """

    def decorate(function: F) -> F:
        parameters = [_parameter(*found, changes) for found in _options(config) if not names or found[0] in names]
        # click.command() reverses the list, to which decorators add from the bottom up.
        vars(function).setdefault("__click_params__", []).extend(reversed(parameters))
        return function

    return decorate


def config_command(config: type[Any], *, example: str) -> Callable[[Callable[..., Any]], Command]:
    """Turn a function of a config into a command with the options of `config`, whose help ends with `example`."""

    def decorate(function: Callable[..., Any]) -> Command:
        @functools.wraps(function)
        def run(**options: Any) -> Any:
            return function(from_options(config, options))

        return command(example=example)(config_options(config)(run))

    return decorate


class CommandGroup(ExitCodeGroup):
    """Commands in the order given, each imported on first use from the module of its name in `package`."""

    def __init__(self, *args: Any, package: str, names: tuple[str, ...], **kwargs: Any) -> None:
        kwargs["commands"] = {name: click.Command(name) for name in names}  # click suggests near names from these
        super().__init__(*args, **kwargs)
        self.package = package

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.commands:
            return None
        name = cmd_name.replace("-", "_")
        made: click.Command = getattr(importlib.import_module(f"{self.package}.{name}"), name)
        return made
