from __future__ import annotations

import errno
import io
import logging

import click
import pytest

from vidshard.util import console
from vidshard.util.console import ExitCodeGroup, Progress
from vidshard.util.errors import FormatError, UserError
from vidshard.util.options import command


@click.group(cls=ExitCodeGroup)
def cli() -> None:
    pass


@cli.command()
@click.argument("what")
def run(what: str) -> int | None:
    if what == "user":
        raise UserError("no folder x: build it first")
    if what == "disk":
        raise OSError(errno.ENOSPC, "No space left on device", "shard-000000.tar")
    if what in ("limit", "read"):
        fault = OSError(errno.EMFILE, "Too many open files", "index.npz" if what == "limit" else None)
        raise FormatError("index.npz is damaged; build again") from fault
    if what == "interrupt":
        raise KeyboardInterrupt
    if what == "bug":
        raise OSError(errno.ENOTSOCK, "a bug")
    return 2 if what == "partly" else None


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["run", "well"], 0, ""),
        (["run", "partly"], 2, ""),
        (["run"], 1, "Missing argument"),
        (["run", "well", "--no-such"], 1, "No such option"),
        (["nothing"], 1, "No such command"),
        (["--help"], 0, ""),
        (["run", "user"], 1, "error: no folder x: build it first\n"),
        (["run", "disk"], 1, "error: No space left on device: shard-000000.tar; free some space and run the same"),
        (
            ["run", "limit"],
            1,
            "error: Too many open files: index.npz; raise the limit of open files (ulimit -n) and run",
        ),
        (["run", "read"], 1, "error: Too many open files: index.npz is damaged; raise the limit of open files (ulimit"),
        (["run", "interrupt"], 1, "interrupted; run the same command again"),
    ],
)
def test_exit_codes_and_texts(arguments: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == code
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("what", ["interrupt", "disk"])
def test_a_command_may_explain_how_to_continue(
    what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(_: object) -> None:
        error = KeyboardInterrupt() if what == "interrupt" else OSError(errno.ENOSPC, "No space left on device")
        error.add_note("add --resume")
        raise error

    monkeypatch.setattr(cli.commands["run"], "callback", lambda **_: stop(None))
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", what])
    assert ended.value.code == 1
    assert capsys.readouterr().err.strip().endswith("add --resume")


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (OSError(errno.EMFILE, "Too many open files", "a"), "Too many open files: a; raise the limit of open files"),
        (OSError(errno.ENFILE, "Too many open files", "a"), "Too many open files: a; raise the limit of open files"),
        (OSError(errno.ESTALE, "Stale file handle", "a"), "Stale file handle: a; check the network disk"),
        (OSError(errno.ETIMEDOUT, "Connection timed out", "a"), "Connection timed out: a; check the network disk"),
        (OSError(errno.EIO, "Input/output error", "a\nb\x1b[2J"), r"Input/output error: a\nb\x1b[2J; check the disk"),
        (MemoryError(), "the memory is used up; free some, or use smaller batches,"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "the memory is used up; free some"),
    ],
)
def test_a_fault_of_the_machine_is_one_line(
    error: Exception, what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli.commands["run"], "callback", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "x"])
    assert ended.value.code == 1
    told = capsys.readouterr().err
    assert told.startswith(f"error: {what}")
    assert told.count("\n") == 1
    assert "the same command again" in told


def test_an_error_that_is_ours_keeps_its_traceback() -> None:
    with pytest.raises(OSError, match="a bug"):
        cli.main(["run", "bug"])


def test_without_a_terminal_progress_is_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("vidshard.util.console.FIRST_LINE_SECONDS", 0.0)
    with Progress("Building", total=3, unit="video", stream=stream) as progress:
        progress.advance()
        progress.advance(2, note="1 failed")
    first, last = stream.getvalue().splitlines()
    assert first.startswith("Building: 1/3 videos, 0 s, 0 s left")
    assert last == "Building: 3/3 videos, 0 s, 1 failed"


@command(example="talk")
def talk() -> None:
    """Log at all levels."""
    logger = logging.getLogger("vidshard.some.module")
    logger.debug("a detail")
    logger.info("a message")
    logger.warning("a doubt")
    logger.error("a fault")
    click.echo("the result")


@pytest.mark.parametrize(
    ("options", "out"),
    [
        ([], "a message\nthe result\n"),
        (["--quiet"], "the result\n"),
        (["--verbose"], "a detail\na message\nthe result\n"),
    ],
)
def test_log_messages_are_shown_from_the_level_asked_for(
    options: list[str], out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    group = ExitCodeGroup(commands={"talk": talk})
    with pytest.raises(SystemExit):
        group.main(["talk", *options])
    assert capsys.readouterr() == (out, "WARNING: a doubt\nerror: a fault\n")


def test_quiet_hides_progress() -> None:
    console.show_logs(logging.WARNING)
    try:
        stream = io.StringIO()
        with Progress("Decoding", total=1, unit="video", stream=stream) as progress:
            progress.advance()
        assert stream.getvalue() == ""
    finally:
        console.show_logs(logging.INFO)
