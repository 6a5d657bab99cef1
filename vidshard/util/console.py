"""Terminal behaviour shared by both commands: exit codes, one-line errors, log messages, progress.

Exit codes: 0 success; 2 finished, but some videos or clips failed; 75 (EX_TEMPFAIL of sysexits.h) stopped by SIGTERM
or SIGUSR1 with all finished work kept, so that the same command resumes; 1 any other error, including incorrect usage.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Any, NoReturn, TextIO

import click

from vidshard.util.errors import FormatError, UserError, fault_in
from vidshard.util.location import is_url

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_PARTLY_FAILED = 2
EXIT_STOPPED = 75  # not 0, so that jobs that depend on a finished run do not start
PLAIN_LINE_SECONDS = 10.0  # interval between progress lines without a terminal
FIRST_LINE_SECONDS = 2.0  # until the first, which says how long a long step will take
LOGGERS = ("vidshard", "stage1")
# C0 and C1 but line breaks and tabs, line separators, and what reverses the direction of text.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def with_flags(text: str) -> str:
    """Replace the names of options, in backquotes in the messages of libraries, by those of the command line.

    >>> with_flags("the folder holds another build; choose another `out`, or pass `follow_links`")
    'the folder holds another build; choose another --out, or pass --follow-links'
    """
    return re.sub(r"`([a-z][a-z0-9_]*)`", lambda match: "--" + match[1].replace("_", "-"), text)


def echo(text: str, *, err: bool = False) -> None:
    """Print a text made by a library, on standard output or, with `err`, on standard error."""
    click.echo(shown(with_flags(text)), err=err)


def shown(text: str) -> str:
    r"""Escape what a terminal would not show: control characters of names that others have chosen.

    >>> print(shown("a\x1b[2Jb\r"))
    a\x1b[2Jb\r
    """
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def shown_line(text: str) -> str:
    r"""Escape as `shown`, with line breaks.

    >>> print(shown_line("a\nerror: no"))
    a\nerror: no
    """
    return shown(text).replace("\n", "\\n")


def show_next(*words: object, note: str = "") -> None:
    """Print the command to type next on standard error, with `note` as its comment; --quiet hides it.

    Under torchrun, only the first process prints it.
    """
    if logging.getLogger(LOGGERS[0]).level <= logging.INFO and os.environ.get("RANK", "0") == "0":
        click.echo(f"Next: {shlex.join(map(str, words))}{f'  # {note}' if note else ''}", err=True)


class ConsoleHandler(logging.Handler):
    """Log handler of the commands: messages on standard output, warnings and errors on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        text = shown(with_flags(record.getMessage()))
        if record.levelno < logging.WARNING:
            print(text, flush=True)
        else:
            prefix = "error" if record.levelno >= logging.ERROR else "WARNING"
            print(f"{prefix}: {text}", file=sys.stderr, flush=True)


def show_logs(level: int = logging.INFO) -> None:
    """Show the log messages of both packages from `level` on."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(level)
        if not any(isinstance(handler, ConsoleHandler) for handler in logger.handlers):
            logger.addHandler(ConsoleHandler())


class ExitCodeGroup(click.Group):
    """A click group that maps results and errors to exit codes and prints errors as one line on stderr.

    Each command returns its exit code, or None for 0.
    """

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        for stream in (sys.stdout, sys.stderr):  # file names may not fit the terminal's encoding
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        show_logs()
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.ClickException as error:  # wrong usage: click's exit code 2 becomes 1
            error.show()
        except (click.Abort, KeyboardInterrupt) as error:
            how = with_flags(_note_of(error.__cause__ or error)) or "run the same command again to continue"
            print(f"interrupted; {how}", file=sys.stderr)
        except UserError as error:
            print(f"error: {shown(with_flags(_text(error)))}", file=sys.stderr)
        except BrokenPipeError:  # the reader of a pipe, such as head, has closed it
            sys.stdout = None
        except (OSError, MemoryError, RuntimeError) as error:
            if (text := _system_error(error)) is None:
                raise
            print(f"error: {shown_line(text)}", file=sys.stderr)
        else:
            sys.exit(code if isinstance(code, int) else EXIT_OK)
        sys.exit(EXIT_ERROR)


class LocalPath(click.Path):
    """A local path. URLs are refused, since treating one as a path would create a folder named `s3:`."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and is_url(value):
            what = param.opts[0] if isinstance(param, click.Option) else "the argument"
            raise UserError(f"{what} is a URL, expected a local path (URLs: see docs/OBJECT_STORES.md)")
        return super().convert(value, param, ctx)


LOCAL_PATH = LocalPath()


def _note_of(error: BaseException) -> str:
    """Return the recovery hint that a command attached to `error` with `error.add_note`."""
    return "; ".join(getattr(error, "__notes__", ()))


def _text(error: UserError) -> str:
    """Return the message of an error, or one about the fault of the machine that was taken for a damaged file."""
    fault = fault_in(error)
    if fault is None or (";" in str(error) and not isinstance(error, FormatError)):
        return str(error)
    if fault.filename is None:
        fault.filename = str(error).partition(";")[0]
    return _system_error(fault) or str(error)


def _system_error(error: Exception) -> str | None:
    """Describe an error of the system, and what to do about it; None for a bug, which gets a traceback."""
    how = with_flags(_note_of(error)) or "run the same command again"
    if isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error):
        return f"the memory is used up; free some, or use smaller batches, and {how}"
    if not isinstance(error, OSError) or error.errno not in _REMEDIES:
        return None
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror}{where}; {_REMEDIES[error.errno]} and {how}"


# Errors of the disk, of permissions, of limits, or of an impossible path are not bugs.
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, getattr(errno, "EDQUOT", -1)), "free some space"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "change the permissions, or choose another place,"),
    **dict.fromkeys((errno.EIO, errno.ENODEV, errno.ENXIO), "check the disk"),
    **dict.fromkeys((getattr(errno, "ESTALE", -1), errno.ETIMEDOUT), "check the network disk"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit of open files (ulimit -n)"),
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG), "choose another path"),
    errno.ENOMEM: "free some memory",
}


class Progress:
    """A progress bar with ETA on a terminal; otherwise a plain line after two seconds, every ten, and at the end.

    >>> with Progress("Building", total=3, unit="video", stream=sys.stdout) as progress:
    ...     for _ in range(3):
    ...         progress.advance()
    Building: 3/3 videos, 0 s
    """

    def __init__(self, title: str, *, total: int, unit: str, stream: TextIO | None = None, shown: bool = True) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.shown = shown and logging.getLogger(LOGGERS[0]).level <= logging.INFO
        self.stream = stream if stream is not None else sys.stderr
        self.done = 0
        self.note = ""
        self._start = time.monotonic()
        self._next_line = self._start + FIRST_LINE_SECONDS
        self._bar: Any = None
        if self.shown and self.stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=title, unit=unit, file=self.stream, dynamic_ncols=True)

    def __enter__(self) -> Progress:
        return self

    def advance(self, count: int = 1, note: str = "") -> None:
        """Add `count` finished items. `note` is shown after the count (loss, clips/s, failures)."""
        self.done += count
        self.note = note or self.note
        if self._bar is not None:
            self._bar.set_postfix_str(self.note, refresh=False)
            self._bar.update(count)
        elif time.monotonic() >= self._next_line and self.done < self.total:
            self._next_line = time.monotonic() + PLAIN_LINE_SECONDS
            self._print_line()

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.close()
        else:
            self._print_line()

    def _print_line(self) -> None:
        if not self.shown:
            return
        seconds = time.monotonic() - self._start
        left = f", {seconds / self.done * (self.total - self.done):.0f} s left" if 0 < self.done < self.total else ""
        note = f", {self.note}" if self.note else ""
        plural = "" if self.total == 1 else "s"
        line = f"{self.title}: {self.done}/{self.total} {self.unit}{plural}, {seconds:.0f} s{left}{note}"
        print(line, file=self.stream, flush=True)


def time_text(seconds: float) -> str:
    """Format a duration for people.

    >>> time_text(7.25), time_text(62), time_text(3725)
    ('7.2 s', '1:02', '1:02:05')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"
