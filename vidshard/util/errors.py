"""Errors reported to the user as one line, without a traceback."""


class UserError(Exception):
    """Wrong usage or unusable input. The message says what, got, expected, where, and what to do. Exit code 1."""


class FormatError(UserError):
    """A shard folder, index or sample that is damaged or that this version cannot read."""
