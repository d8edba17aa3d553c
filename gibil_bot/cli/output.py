"""How the command line speaks: one JSON value on stdout or words on stderr, colours only on a terminal."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import sys
from typing import TextIO

import click

from gibil_bot.errors import ConfigurationError, GibilError, MachineNotFound, Unavailable

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON value on stdout, everything else on stderr.")


_NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF))
"""Of a stream, a file has its name in the exception."""


class ReaderGone(Exception):
    """Whoever read our output has gone. Not BrokenPipeError: click would make wrong use of it."""


class Interrupted(Exception):
    """Ctrl-C, SIGTERM or a closed terminal ended the work; the message says what that left behind."""


class NoStream(io.StringIO):
    """For a stream that was closed before we were started."""

    def write(self, text: str) -> int:
        return len(text)


_has_printed = False
"""Whether the one JSON value of this command is on stdout."""


def print_json(value: object) -> None:
    global _has_printed
    print_text(json.dumps(value, ensure_ascii=False, default=str) + "\n")
    _has_printed = True


def print_text(text: str) -> None:
    """To stdout, whole. Raises ReaderGone when nobody reads it, GibilError when it cannot be stored."""
    if sys.stdout is None:  # started with stdout closed
        raise ReaderGone
    try:
        try:
            sys.stdout.write(text)
        except UnicodeEncodeError:
            sys.stdout.write(text.encode("ascii", "backslashreplace").decode())
        sys.stdout.flush()
    except BrokenPipeError:
        raise ReaderGone from None
    except OSError as error:
        _drop_stdout()
        raise GibilError(f"stdout cannot be written: {error.strerror}", code="OUTPUT") from error


def _drop_stdout() -> None:
    """Python would complain once more while it flushes at exit."""
    if sys.stdout is not None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def fail(error: BaseException, *, as_json: bool) -> int:
    """Say what happened; the exit status. With `as_json` also on stdout, unless the command's value is there already: a signal
    may come, or closing a connection may fail, after that."""
    as_json = as_json and not _has_printed
    if isinstance(error, OSError) and isinstance(error.__context__, KeyboardInterrupt):
        error = error.__context__  # click wants to end the line with the ^C, and our terminal is gone
    if isinstance(error, (KeyboardInterrupt, click.Abort, Interrupted)):
        message = str(error) if isinstance(error, Interrupted) else "interrupted"
        say(message, sys.stderr)
        if as_json:
            with contextlib.suppress(ReaderGone, GibilError):
                print_json({"error": "interrupted", "code": "INTERRUPTED", "message": message, "exit_code": 130})
        return 130
    if isinstance(error, (ReaderGone, BrokenPipeError)):
        _drop_stdout()
        return 141
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, click.exceptions.NoArgsIsHelpError) and not as_json:
        with contextlib.suppress(OSError, AttributeError):
            sys.stderr.write(f"{error.format_message()}\n")
        return 2
    code, status, lines = _describe(error)
    if code == "OUTPUT":
        _drop_stdout()
    if as_json:
        try:
            print_json({"error": lines[0], "code": code, "message": "; ".join(map(str.strip, lines)), "exit_code": status})
        except ReaderGone as gone:
            return fail(gone, as_json=False)
        except GibilError as full:
            lines = [*lines, full.message]
    for line in lines:
        say(line, sys.stderr)
    if code == "INTERNAL" and not isinstance(error, GibilError) and sys.stderr is not None:
        import traceback

        traceback.print_exception(error)
    return status


def _describe(error: BaseException) -> tuple[str, int, list[str]]:
    match error:
        case ConfigurationError():
            return error.code, error.exit_status, list(error.problems)
        case Unavailable():
            return error.code, error.exit_status, [error.message, *(f"  {remedy}" for remedy in error.remedies)]
        case MachineNotFound():
            return error.code, error.exit_status, [error.message, "`gibil list` shows the machines that there are"]
        case GibilError():
            return error.code, error.exit_status, [error.message]
        case click.UsageError():
            hint = f" Try: {error.ctx.command_path} --help" if error.ctx is not None else ""
            return "USAGE", 2, [error.format_message() + hint]
        case click.ClickException():
            return "USAGE", 2, [error.format_message()]
        case OSError() if error.filename is None and error.errno in _NO_ROOM:
            return "OUTPUT", 1, [f"what there is to say cannot be written: {error.strerror}"]
        case _:
            return "INTERNAL", 1, [f"a fault of gibil's own: {type(error).__name__}: {error}"]


def say(line: str, stream: TextIO | None) -> None:
    """Nobody may be there to read it: that is no failure."""
    if stream is None:
        return
    with contextlib.suppress(OSError):
        stream.write(f"gibil: {line}\n")
        stream.flush()


def write_err(text: str) -> None:
    """As it is, to stderr, if somebody is there."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()


def colours(stream: TextIO | None) -> bool:
    """https://no-color.org."""
    return stream is not None and stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class Paint:
    """Colours for one stream, or none."""

    def __init__(self, stream: TextIO | None) -> None:
        self._on = colours(stream)

    def _wrap(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._on else text

    def good(self, text: str) -> str:
        return self._wrap("32", text)

    def bad(self, text: str) -> str:
        return self._wrap("31", text)

    def warn(self, text: str) -> str:
        return self._wrap("33", text)

    def quiet(self, text: str) -> str:
        return self._wrap("2", text)

    def bold(self, text: str) -> str:
        return self._wrap("1", text)
