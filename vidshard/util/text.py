"""Text for people."""


def counted(count: int, noun: str) -> str:
    """Format a number of things.

    >>> counted(1, "clip"), counted(2_000, "clip")
    ('1 clip', '2,000 clips')
    """
    return f"{count:,} {noun}" + "s" * (count != 1)
