"""Output of the command line: one JSON value on stdout, messages on stderr, colours only on a terminal."""

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


_UNWRITABLE = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF))
"""Errors of a stream; those of a file have its name in the exception."""


class ReaderGone(Exception):
    """The reader of stdout has closed it. Not a BrokenPipeError, which click would report as wrong use."""


class Interrupted(Exception):
    """Ctrl-C, SIGTERM or a closed terminal ended the work; the message reports what is left."""


class NoStream(io.StringIO):
    """Replaces a stream that was closed before the start."""

    def write(self, text: str) -> int:
        return len(text)


_has_printed = False
"""Whether this command's JSON value is on stdout."""


def print_json(value: object) -> None:
    global _has_printed
    print_text(json_text(value))
    _has_printed = True


def json_text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str) + "\n"


def print_text(text: str) -> None:
    """Write the whole text to stdout. Raises ReaderGone if the reader has closed it, GibilError if it can't be stored."""
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
        raise GibilError(f"stdout can't be written: {error.strerror}", code="OUTPUT") from error


def _drop_stdout() -> None:
    """Discard buffered output: Python would report the error again when it flushes at exit."""
    if sys.stdout is not None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def failure_view(code: str, status: int, lines: list[str]) -> dict[str, object]:
    """Return a failed command's JSON. `lines`: its message."""
    return {"error": lines[0], "code": code, "message": "; ".join(map(str.strip, lines)), "exit_code": status}


def fail(error: BaseException, *, as_json: bool) -> int:
    """Report an error; return the exit status.

    With `as_json` it is also the command's one JSON value, unless that was already printed: a signal, or a failure to close a
    connection, may follow it.
    """
    as_json = as_json and not _has_printed
    if isinstance(error, OSError) and isinstance(error.__context__, KeyboardInterrupt):
        error = error.__context__  # click ends the line with the ^C, and the terminal is closed
    if isinstance(error, (KeyboardInterrupt, click.Abort, Interrupted)):
        message = str(error) if isinstance(error, Interrupted) else "interrupted"
        print_message(message)
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
    code, status, lines = describe(error)
    if code == "OUTPUT":
        _drop_stdout()
    if as_json:
        try:
            print_json(failure_view(code, status, lines))
        except ReaderGone as gone:
            return fail(gone, as_json=False)
        except GibilError as full:
            lines = [*lines, full.message]
    for line in lines:
        print_message(line)
    if code == "INTERNAL" and not isinstance(error, GibilError) and sys.stderr is not None:
        import traceback

        with contextlib.suppress(OSError):  # our terminal may be closed
            traceback.print_exception(error)
    return status


def describe(error: BaseException) -> tuple[str, int, list[str]]:
    """Return the code, the exit status and the lines of an error."""
    match error:
        case ConfigurationError():
            return error.code, error.exit_status, list(error.problems)
        case Unavailable():
            return error.code, error.exit_status, [error.message, *(f"  {remedy}" for remedy in error.remedies)]
        case MachineNotFound():
            return error.code, error.exit_status, [error.message, "`gibil list` shows all machines"]
        case GibilError():
            return error.code, error.exit_status, [error.message]
        case click.UsageError():
            problem = error.format_message()
            if error.ctx is not None:
                end = "" if problem.endswith((".", "?", "!")) else "."
                problem = f"{problem}{end} Try: {error.ctx.command_path} --help"
            return "USAGE", 2, [problem]
        case click.ClickException():
            return "USAGE", 2, [error.format_message()]
        case OSError() if error.filename is None and error.errno in _UNWRITABLE:
            return "OUTPUT", 1, [f"the output can't be written: {error.strerror}"]
        case _:
            return "INTERNAL", 1, [f"internal error: {type(error).__name__}: {error}"]


def print_message(text: str) -> None:
    """Write one line for people to stderr. A closed or full stderr is not a failure."""
    if sys.stderr is None:
        return
    with contextlib.suppress(OSError):
        sys.stderr.write(f"gibil: {text}\n")
        sys.stderr.flush()


def write_err(text: str) -> None:
    """Write text unchanged to stderr. A closed or full stderr is not a failure."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()


def colours(stream: TextIO | None) -> bool:
    """Return whether to use colours; see https://no-color.org."""
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
