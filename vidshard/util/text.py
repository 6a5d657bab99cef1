"""Text for people, and the bytes of names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def counted(count: int, noun: str) -> str:
    """Format a number of things.

    >>> counted(1, "clip"), counted(2_000, "clip")
    ('1 clip', '2,000 clips')
    """
    return f"{count:,} {noun}" + "s" * (count != 1)


def first_of(names: Iterable[object], most: int) -> str:
    """Join the first `most` names by commas.

    >>> first_of(["a", "b", "c"], 2), first_of([1, 2], 2)
    ('a, b, …', '1, 2')
    """
    texts = list(map(str, names))
    return ", ".join(texts[:most]) + (", …" if len(texts) > most else "")


def aligned(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Return the lines of a table, whose columns are aligned to the left but for the numbers `right`.

    >>> aligned([["class", "videos"], ["Abuse", "7"]], right=[1])
    ['class  videos', 'Abuse       7']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = enumerate(zip(row, widths, strict=True))
        lines.append("  ".join(text.rjust(w) if n in right else text.ljust(w) for n, (text, w) in cells).rstrip())
    return lines


def path_bytes(path: str) -> bytes:
    """Return the bytes of a name, which order names alike on every system."""
    return path.encode("utf-8", "surrogateescape")
