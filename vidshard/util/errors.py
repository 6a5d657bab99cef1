"""Errors that are meant to be read by the user: one line, no traceback."""


class UserError(Exception):
    """Wrong use or an unusable input: says what, got, expected, where, and what to do. Exit code 1."""


class FormatError(UserError):
    """A shard folder, index or sample that this version cannot read, or that is damaged."""
