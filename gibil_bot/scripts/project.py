"""Scripts that read the checked-out commit on a machine, and parsers for their output. No I/O.

They run before any task, so the programs on the machine are those of its image. The names and contents of the files are from a
repository that anyone may have written.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from gibil_bot.scripts.clone import WORKSPACE
from gibil_bot.scripts.templates import script

MOST_PATHS = 20_000
LISTING_BYTES = 2 * 1024 * 1024
MOST_FILES = 400
FILE_BYTES = 256 * 1024
CONTENT_BYTES = 4 * 1024 * 1024

_HEADER_BYTES = 128
"""More than the line in front of an object."""
_ENTRY = re.compile(rb"(100644|100755|120000) blob ([0-9a-f]{40}|[0-9a-f]{64}) +([0-9]{1,15}|-|BAD)\t([^\0]+)")
_SUBMODULE = re.compile(rb"160000 commit ([0-9a-f]{40}|[0-9a-f]{64}) +-\t([^\0]+)")
_OBJECT = re.compile(rb"([0-9a-f]{40,64}) blob ([0-9]{1,15})\n")
_LINK = b"120000"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedFile:
    """A file of the commit."""

    path: str
    object_id: str
    size: int | None
    """Bytes; None if its content can't be read as a file: it is a symbolic link, or git doesn't have it."""


def list_script(workspace: str = WORKSPACE) -> str:
    """Return a script that lists the files; `parse_listing` reads its output."""
    return script("project_list", WORKSPACE=shlex.quote(workspace), BYTES=str(LISTING_BYTES))


def read_script(workspace: str = WORKSPACE) -> str:
    """Return a script that prints the objects whose ids are its input, one on a line; `parse_objects` reads its output."""
    return script("project_read", WORKSPACE=shlex.quote(workspace), BYTES=str(CONTENT_BYTES + MOST_FILES * _HEADER_BYTES))


def parse_listing(output: bytes) -> tuple[ListedFile, ...]:
    """Return the listed files, at most MOST_PATHS.

    Names that aren't printable UTF-8 are left out: no tool reads its configuration from such a file. So is an entry that is cut
    off, and everything that isn't a file, such as submodules.
    """
    found: dict[str, ListedFile] = {}
    for entry in output.split(b"\0")[:-1]:
        if len(found) >= MOST_PATHS:
            break
        match = _ENTRY.fullmatch(entry)
        if match is None:
            continue
        try:
            path = match[4].decode("utf-8")
        except UnicodeDecodeError:
            continue
        if path.isprintable():
            size = int(match[3]) if match[3].isdigit() and match[1] != _LINK else None
            found[path] = ListedFile(path=path, object_id=match[2].decode(), size=size)
    return tuple(found.values())


def submodule_commits(output: bytes) -> dict[str, str]:
    """Return path → commit of the listed submodules, as far as their names are text."""
    found = (_SUBMODULE.fullmatch(entry) for entry in output.split(b"\0")[:-1])
    return {match[2].decode("utf-8", "replace"): match[1].decode() for match in found if match is not None}


def affordable(files: Sequence[ListedFile]) -> tuple[ListedFile, ...]:
    """Return the files that may be read, in this order, within the limits for one file and for all together."""
    chosen: list[ListedFile] = []
    room = CONTENT_BYTES
    for file in files:
        if file.size is not None and file.size <= min(FILE_BYTES, room) and len(chosen) < MOST_FILES:
            chosen.append(file)
            room -= file.size
    return tuple(chosen)


def parse_objects(output: bytes, files: Sequence[ListedFile]) -> dict[str, bytes]:
    """Return path → content from the output of `read_script` for these files. Raises ValueError."""
    contents: dict[str, bytes] = {}
    position = 0
    for file in files:
        match = _OBJECT.match(output, position)
        if match is None or match[1].decode() != file.object_id or int(match[2]) != file.size:
            raise ValueError(f"git on the machine didn't return the object {file.object_id}")
        end = match.end() + int(match[2])
        if output[end : end + 1] != b"\n":
            raise ValueError(f"git on the machine returned only a part of the object {file.object_id}")
        contents[file.path] = output[match.end() : end]
        position = end + 1
    return contents
