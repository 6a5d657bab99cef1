"""Terminal behaviour shared by both commands: exit codes, one-line errors, log messages, progress.

Exit codes: 0 success; 2 finished, but some videos or clips failed; 75 (EX_TEMPFAIL of sysexits.h) stopped by SIGTERM
or SIGUSR1 with all finished work kept, so that the same command resumes; 1 any other error, wrong usage included.
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

from vidshard.util.errors import UserError
from vidshard.util.location import is_url

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_PARTLY_FAILED = 2
EXIT_STOPPED = 75  # not 0, so that jobs that depend on a finished run do not start
PLAIN_LINE_SECONDS = 10.0  # interval between progress lines without a terminal
FIRST_LINE_SECONDS = 2.0  # until the first, which says how long a long step will take
LOGGERS = ("vidshard", "stage1")


def with_flags(text: str) -> str:
    """Replace the names of options, in backquotes in the messages of libraries, by those of the command line.

    >>> with_flags("the folder holds another build; choose another `out`, or pass `follow_links`")
    'the folder holds another build; choose another --out, or pass --follow-links'
    """
    return re.sub(r"`([a-z][a-z0-9_]*)`", lambda match: "--" + match[1].replace("_", "-"), text)


def echo(text: str, *, err: bool = False) -> None:
    """Print a text made by a library, on standard output or, with `err`, on standard error."""
    click.echo(with_flags(text), err=err)


def show_next(*words: object, note: str = "") -> None:
    """Print the command to type next on standard error, with `note` as its comment; --quiet hides it.

    Under torchrun, only the first process prints it.
    """
    if logging.getLogger(LOGGERS[0]).level <= logging.INFO and os.environ.get("RANK", "0") == "0":
        click.echo(f"Next: {shlex.join(map(str, words))}{f'  # {note}' if note else ''}", err=True)


class ConsoleHandler(logging.Handler):
    """Log handler of the commands: messages on standard output, warnings and errors on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        text = with_flags(record.getMessage())
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
            print(f"error: {with_flags(str(error))}", file=sys.stderr)
        except BrokenPipeError:  # the reader of a pipe, such as head, has closed it
            sys.stdout = None
        except OSError as error:
            if error.errno not in _ERRORS_OF_THE_SYSTEM:
                raise
            where = f": {error.filename}" if error.filename else ""
            how = with_flags(_note_of(error)) or "run the same command again"
            hint = f"; free some space and {how}" if error.errno == errno.ENOSPC else ""
            print(f"error: {error.strerror}{where}{hint}", file=sys.stderr)
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


# Errors of the disk, of permissions, or of an impossible path are not bugs: they get one line instead of a traceback.
_ERRORS_OF_THE_SYSTEM = {
    errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, getattr(errno, "EDQUOT", -1),
    errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG,
}  # fmt: skip


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
