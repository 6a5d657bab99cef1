"""Options of a split. Does not import NumPy, because --help needs them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vidshard.util.errors import UserError
from vidshard.util.options import check_options, option


def parse_fractions(text: str) -> tuple[float, float, float]:
    """Return the three numbers of a text. Raises UserError unless it has three.

    >>> parse_fractions("0.7,0.1,0.2")
    (0.7, 0.1, 0.2)
    """
    try:
        train, validation, test = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"fractions are {text!r}, expected three numbers, such as 0.7,0.1,0.2") from error
    return train, validation, test


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Options of a split. `source`: a folder of videos, as `vidshard build` takes it, or a shard folder."""

    source: Path
    out: Path = option(help="Folder for Train.txt, Validation.txt and Test.txt.", required=False)
    fractions: tuple[float, float, float] = option(
        (0.7, 0.1, 0.2),
        help="Shares of Train, Validation and Test; must sum to 1.",
        type=parse_fractions,
        metavar="A,B,C",
    )
    source_groups: Path | None = option(
        None, help="CSV or JSON that maps each video to its recording (fields: file, source).", metavar="FILE"
    )
    seed: int = option(0, help="Random seed for ordering recordings of equal size.")

    def __post_init__(self) -> None:
        check_options(self)
        if min(self.fractions) < 0 or abs(sum(self.fractions) - 1) > 1e-6:
            shown = ",".join(f"{fraction:g}" for fraction in self.fractions)
            raise UserError(
                f"fractions are {shown}, expected three non-negative numbers that sum to 1, such as 0.7,0.1,0.2"
            )
