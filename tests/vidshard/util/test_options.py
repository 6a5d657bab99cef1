from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from vidshard.util.errors import UserError
from vidshard.util.options import (
    check_options,
    command,
    config_options,
    from_options,
    given_options,
    make_config,
    option,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    share: float = option(0.5, name="inner_share", help="A share.", group="Inner", at_least=0, below=1)

    def __post_init__(self) -> None:
        check_options(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    source: Path = option(argument=True)
    count: int | None = option(None, help="A count.", default_text="all", at_least=1)
    kind: str = option("a", help="A kind.", choices=("a", "b"))
    lists: tuple[Path, ...] = option((), help="Lists.")
    pair: tuple[float, float] = option((1.0, 2.0), help="Two.", type=lambda text: tuple(map(float, text.split(","))))
    quick: bool = option(False, help="Quick.")
    sure: bool = option(True, help="Sure.", group="More")
    inner: Inner = dataclasses.field(default_factory=Inner)
    constant: int = 7

    def __post_init__(self) -> None:
        check_options(self)


MADE: list[Any] = []


@command(example="show x")
@config_options(Config)
def show(**options: Any) -> None:
    MADE[:] = [from_options(Config, options), given_options()]


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(show, arguments, standalone_mode=False)
    if result.exception:
        raise result.exception
    return MADE[0]


def test_a_command_line_makes_the_config() -> None:
    assert run("x") == Config(source=Path("x"))
    made = run("x", "--count", "3", "--kind", "b", "--lists", "l", "--lists", "m", "--pair", "3,4", "--quick",
               "--no-sure", "--inner-share", "0.25")  # fmt: skip
    assert made == Config(
        source=Path("x"), count=3, kind="b", lists=(Path("l"), Path("m")), pair=(3.0, 4.0), quick=True, sure=False,
        inner=Inner(share=0.25),
    )  # fmt: skip
    assert MADE[1] == {"source", "count", "kind", "lists", "pair", "quick", "sure", "inner_share"}


def test_help_hides_groups_and_help_all_shows_them() -> None:
    brief, full = (CliRunner().invoke(show, [flag]).stdout for flag in ("--help", "--help-all"))
    assert "A count.  [default: all]" in brief
    assert "[default: 1.0,2.0]" in brief
    assert "--sure" not in brief
    assert "--inner-share" not in brief
    assert full.index("Inner:") > full.index("More:") > full.index("Options:")
    assert brief.endswith("Example:\n  show x\n")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"count": 0}, "count is 0, expected at least 1"),
        ({"kind": "c"}, "kind is 'c', expected one of a, b"),
        ({"count": "3"}, "count is '3', expected a whole number"),
        ({"quick": 1}, "quick is 1, expected true or false"),
        ({"pair": 1.0}, "pair is 1.0, expected a list"),
    ],
)
def test_values_out_of_range_name_the_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}$"):
        Config(source=Path("x"), **fields)


@pytest.mark.parametrize("share", [-0.1, 1, float("nan")])
def test_both_bounds_are_checked(share: float) -> None:
    with pytest.raises(UserError, match=r"^share is (.*, expected at least 0 and below 1|nan, expected a number)$"):
        Inner(share=share)


def test_text_becomes_a_path() -> None:
    assert Config(source="x") == Config(source=Path("x"))  # type: ignore[arg-type]


def test_keywords_and_tables_make_the_config() -> None:
    given = {"source": "x", "lists": "l", "pair": [3, 4], "inner": {"share": 0}}
    expected = Config(source=Path("x"), lists=(Path("l"),), pair=(3.0, 4.0), inner=Inner(share=0.0))
    assert make_config(Config, given, function="f") == expected
    with pytest.raises(UserError, match=r"^f has no option 'inner.shore'; did you mean 'inner.share'\?$"):
        make_config(Config, {"source": "x", "inner": {"shore": 0}}, function="f")


def test_a_required_option_is_asked_for() -> None:
    with pytest.raises(click.MissingParameter):
        run()
