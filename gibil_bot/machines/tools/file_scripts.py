"""Shell scripts that read, list and search files on a machine, and parsers for their output. No I/O.

The users' values are passed in environment variables `gibil_…`, and are never part of a script. An exit status from 44 on is an
error (see `FILE_ERRORS`). The scripts need GNU coreutils, findutils, grep and bash.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from gibil_bot.machines.remote_layout import TO_PROJECT
from gibil_bot.machines.tools.truncate import decoded
from gibil_bot.scripts.templates import script
from gibil_bot.ssh.answers import BadAnswer, fields_of, number, timestamp

N = TypeVar("N", int, float)

PAGE_BYTES = 256 * 1024
"""How many bytes of a file are fetched for one page."""
PAGE_CHARACTERS = 40_000
LINE_CHARACTERS = 2_000
LISTING_BYTES = 4 * 1024 * 1024
MATCHES_BYTES = 512 * 1024
MATCH_CHARACTERS = 400
EDIT_BYTES = 8 * 1024 * 1024
WHOLE_BYTES = 64 * 1024 * 1024
"""The largest file that is read at once into memory."""

FILE_ERRORS = {
    44: ("FILE_NOT_FOUND", "there is no {path} on machine {machine}"),
    45: ("NOT_A_FILE", "{path} on machine {machine} is a directory, not a file"),
    46: ("NOT_A_FILE", "{path} on machine {machine} is neither a regular file nor a directory"),
    47: ("NOT_A_FOLDER", "{path} on machine {machine} is not a directory"),
    48: (
        "FILE_TOO_LARGE",
        "{path} on machine {machine} is larger than " + f"{EDIT_BYTES // 1024**2} MiB: edit it with a command",
    ),
    50: ("FILE_TOO_LARGE", "{path} on machine {machine} is larger than " + f"{WHOLE_BYTES // 1024**2} MiB: download it"),
    49: ("BAD_PATTERN", "the pattern is not a Perl-compatible regular expression: {reason}"),
}
_LINE_NUMBER = re.compile(rb"[0-9]{1,15}")
_KINDS = {"f": "file", "d": "folder", "l": "link", "p": "pipe", "s": "socket", "c": "device", "b": "device"}
_BEGIN = f"export LC_ALL=C.UTF-8; {TO_PROJECT} || exit 1; p=$gibil_path\n"

FOLDER = f'{_BEGIN}[ -e "$p" ] || exit 44; [ -d "$p" ] || exit 47'

_FILE = f'{_BEGIN}[ -e "$p" ] || exit 44; [ -d "$p" ] && exit 45; [ -f "$p" ] || exit 46\n'


READ_ALL = f'{_FILE}[ "$(stat -Lc %s "$p")" -le {EDIT_BYTES} ] || exit 48; exec cat "$p"'

READ_WHOLE = f'{_FILE}[ "$(stat -Lc %s "$p")" -le {WHOLE_BYTES} ] || exit 50; exec cat "$p"'

_ENTRY = r"%y\0%s\0%T@\0%p\0%l\0"


def read_script() -> str:
    return _FILE + script("file_read", PAGE_BYTES=str(PAGE_BYTES))


def prepare_script() -> str:
    return _BEGIN + script("file_prepare")


def list_script() -> str:
    listing = script("file_list", ENTRY=_ENTRY, BELOW=_ENTRY.replace("%p", "%P"), LISTING_BYTES=str(LISTING_BYTES))
    return f"{_BEGIN}exec bash -c {shlex.quote(listing)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some lines of a text file."""

    path: str
    lines: tuple[str, ...]
    first: int
    """The number of the first line, from 1."""
    total: int
    size: int
    next: int | None
    """The number of the first line after the page; None at the end of the file."""
    cut: int
    """How many lines were truncated."""
    is_utf8: bool
    ends_with_newline: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    name: str
    kind: str
    """file, folder, link, pipe, socket or device."""
    size: int
    modified_s: float
    """Seconds since the epoch."""
    target: str | None
    """The target of a link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    file: str
    line: int
    text: str


def read_page(answer: bytes, path: str, first: int, limit: int) -> Page | None:
    """Parse the output of `read_script`; None: the file is binary. Raises BadAnswer."""
    newlines, size, kind, end, data = fields_of(answer, 5)
    if kind != b"text":
        return None
    total = number(newlines.strip()) + (end.strip() not in (b"", b"0a"))
    ends = end.strip() in (b"", b"0a")
    lines = data.split(b"\n")
    if lines[-1] == b"" or (len(data) >= PAGE_BYTES and len(lines) > 1):
        lines.pop()  # what follows the last newline, or an incomplete line
    shown: list[str] = []
    room, cut, lossless = PAGE_CHARACTERS, 0, True
    for raw in lines[:limit]:
        line = decoded(raw)
        lossless = lossless and "\ufffd" not in line
        if len(line) > LINE_CHARACTERS:
            line = f"{line[:LINE_CHARACTERS]} [... the line is longer]"
            cut += 1
        if shown and len(line) + 1 > room:
            break
        room -= len(line) + 1
        shown.append(line)
    following = first + len(shown)
    return Page(
        path=path, lines=tuple(shown), first=first, total=total, size=number(size.strip()),
        next=following if following <= total else None, cut=cut, is_utf8=lossless, ends_with_newline=ends,
    )  # fmt: skip


def _within(read: Callable[[str], N], text: str) -> N | int:
    """Parse a number, 0 if it is out of bounds: one file with an odd size or time must not hide the others."""
    try:
        return read(text)
    except BadAnswer:
        return 0


def read_entries(answer: bytes) -> tuple[list[Entry], bool]:
    """Parse the output of `list_script`: the entries sorted by name, and whether they are complete."""
    fields = answer.split(b"\0")
    complete = len(answer) < LISTING_BYTES
    entries = []
    for start in range(0, len(fields) - 5, 5):
        kind, size, modified, name, target = (decoded(field) for field in fields[start : start + 5])
        entries.append(
            Entry(
                name=name.removeprefix("./"), kind=_KINDS.get(kind, "unknown"), size=_within(number, size),
                modified_s=_within(timestamp, modified), target=target or None,
            )
        )  # fmt: skip
    return sorted(entries, key=lambda entry: entry.name), complete


def grep(include: str | None) -> tuple[str, dict[str, str]]:
    """Return the script that searches, and its additional environment variables."""
    names = {f"gibil_include{number}": glob for number, glob in enumerate(_alternatives(include or ""))} if include else {}
    includes = " ".join(f'--include="${name}"' for name in names)
    return _BEGIN + script("file_search", INCLUDES=includes, MATCHES_BYTES=str(MATCHES_BYTES)), names


def _alternatives(glob: str) -> list[str]:
    """Expand braces: `*.{ts,tsx}` is two patterns for grep."""
    found = re.search(r"\{([^{}]*,[^{}]*)\}", glob)
    if found is None:
        return [glob]
    return [
        each
        for word in found[1].split(",")
        for each in _alternatives(f"{glob[: found.start()]}{word}{glob[found.end() :]}")
    ]  # fmt: skip


def read_matches(answer: bytes) -> tuple[list[Match], bool]:
    """Parse the output of the search: the matches by file and line, and whether they are complete."""
    lines = answer.split(b"\n")
    complete = len(answer) < MATCHES_BYTES
    lines.pop()  # what follows the last newline, or an incomplete line
    matches = []
    for line in lines:
        file, _, rest = line.partition(b"\0")
        line_number, _, text = rest.partition(b":")
        if _LINE_NUMBER.fullmatch(line_number):
            shown = decoded(text.rstrip(b"\r"))
            if len(shown) > MATCH_CHARACTERS:
                shown = f"{shown[:MATCH_CHARACTERS]} [...]"
            matches.append(Match(file=posixpath.normpath(decoded(file)), line=int(line_number), text=shown))
    return sorted(matches, key=lambda match: (match.file, match.line)), complete
