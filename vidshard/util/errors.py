"""Errors reported to the user as one line, without a traceback."""


class UserError(Exception):
    """Wrong usage or unusable input; exit code 1.

    The message states what is wrong and where, the value received, the value expected, and what to do.
    """


class FormatError(UserError):
    """A shard folder, index or sample that is damaged or that this version cannot read."""
