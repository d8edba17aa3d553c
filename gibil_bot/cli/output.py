"""How the command line speaks: one JSON value on stdout or words on stderr, colours only on a terminal."""

from __future__ import annotations

import json
import os
import sys
from typing import TextIO

import click

from gibil_bot.errors import ConfigurationError, GibilError, Unavailable

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON value on stdout, everything else on stderr.")


def print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")
    sys.stdout.flush()


def fail(error: BaseException, *, as_json: bool) -> int:
    """Say what happened; the exit status."""
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        say("interrupted", sys.stderr)
        return 130
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has gone. Python would complain once more while it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    code, status, lines = _describe(error)
    if as_json:
        try:
            print_json({"error": lines[0], "code": code, "message": " ".join(lines), "exit_code": status})
        except BrokenPipeError as gone:
            return fail(gone, as_json=False)
    for line in lines:
        say(line, sys.stderr)
    if status == 1 and not isinstance(error, GibilError):
        import traceback

        traceback.print_exception(error)
    return status


def _describe(error: BaseException) -> tuple[str, int, list[str]]:
    match error:
        case ConfigurationError():
            return error.code, error.exit_status, list(error.problems)
        case Unavailable():
            return error.code, error.exit_status, [error.message, *(f"  {remedy}" for remedy in error.remedies)]
        case GibilError():
            return error.code, error.exit_status, [error.message]
        case click.UsageError():
            hint = f" Try: {error.ctx.command_path} --help" if error.ctx is not None else ""
            return "USAGE", 2, [error.format_message() + hint]
        case click.ClickException():
            return "USAGE", 2, [error.format_message()]
        case _:
            return "INTERNAL", 1, [f"a fault of gibil's own: {type(error).__name__}: {error}"]


def say(line: str, stream: TextIO) -> None:
    stream.write(f"gibil: {line}\n")
    stream.flush()


def colours(stream: TextIO) -> bool:
    """https://no-color.org."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class Paint:
    """Colours for one stream, or none."""

    def __init__(self, stream: TextIO) -> None:
        self._on = colours(stream)

    def _wrap(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._on else text

    def good(self, text: str) -> str:
        return self._wrap("32", text)

    def bad(self, text: str) -> str:
        return self._wrap("31", text)

    def quiet(self, text: str) -> str:
        return self._wrap("2", text)

    def bold(self, text: str) -> str:
        return self._wrap("1", text)
