"""Scripts that list the files of Git LFS in a checkout and replace their pointers by their objects, and a parser. No I/O.

They run before any task. What they print is from a repository that anyone may have written.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from gibil_bot.humanize import visible
from gibil_bot.lfs.pointers import POINTER_BYTES, Pointer, parse_pointer
from gibil_bot.scripts.clone import WORKSPACE
from gibil_bot.scripts.templates import script, text

LISTING_BYTES = 8 * 1024 * 1024
"""Of the entries of one repository, and of the contents of its pointers."""
OUTPUT_BYTES = 32 * 1024 * 1024
MOST_FILES = 20_000
MOST_BYTES = 8 * 1024**3
"""All objects together."""

_SHOWN = 200
_HEADER = re.compile(rb"gibil-lfs: ([0-9]{1,9}) ([0-9]{1,9}) ([0-9]{1,9}) ([0-9]{1,9}) ([0-9]{1,9})\n")
_ENTRY = re.compile(rb"(100644|100755) ([0-9a-f]{40}) 0\t([^\0]+)")
_OBJECT = re.compile(rb"([0-9a-f]{40}) blob ([0-9]{1,4})\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class LfsRepository:
    """The superproject or a submodule, with its files of Git LFS."""

    folder: str
    """Relative to the workspace; `.` is the superproject."""
    url: str
    lfs_url: str
    """From its .lfsconfig; usually empty."""
    files: dict[str, Pointer]
    """Path → pointer. Paths that aren't UTF-8 contain surrogates."""

    @property
    def pointers(self) -> list[Pointer]:
        return sorted(set(self.files.values()))


def list_script(*, submodules: bool, workspace: str = WORKSPACE) -> str:
    """Return a script that lists the files; `parse_listing` reads its output."""
    return script(
        "lfs_list",
        WORKSPACE=shlex.quote(workspace),
        SUBMODULES="yes" if submodules else "no",
        BYTES=str(LISTING_BYTES),
        POINTER=str(POINTER_BYTES),
    )


def store_script(folder: str, *, workspace: str = WORKSPACE) -> str:
    """Return a script that stores the objects of the tar archive on stdin in the repository in that folder."""
    return script("lfs_store", FOLDER=_folder(workspace, folder))


def checkout_script(folder: str, *, workspace: str = WORKSPACE) -> str:
    """Return a script that replaces the pointers, whose paths are its input, in the repository in that folder."""
    program = f"{workspace}/.git/gibil-lfs"
    if shlex.quote(program) != program:
        raise ValueError(f"the workspace {workspace!r} has characters with a meaning in the shell")
    return script("lfs_checkout", FOLDER=_folder(workspace, folder), PROGRAM=program, FILTER=shlex.quote(text("lfs_filter")))


def _folder(workspace: str, folder: str) -> str:
    if folder != "." and (folder.startswith("/") or ".." in folder.split("/") or "\0" in folder):
        raise ValueError(f"{folder!r} is not a folder of the checkout")
    return shlex.quote(workspace if folder == "." else f"{workspace}/{folder}")


def parse_listing(output: bytes) -> list[LfsRepository]:
    """Return the repositories that have files of Git LFS. Raises ValueError, with a sentence for people."""
    found, position, total = [], 0, 0
    while position < len(output):
        header = _HEADER.match(output, position)
        if header is None:
            raise ValueError("the machine's list of its files of Git LFS is incomplete")
        parts, position = [], header.end()
        for length in header.groups():
            parts.append(output[position : position + int(length)])
            position += int(length)
        folder, url, lfs_url, entries, contents = parts
        if max(len(entries), len(contents)) >= LISTING_BYTES or position > len(output):
            raise ValueError("the commit has too many files of Git LFS")
        files = _files(entries, contents)
        total += len(files)
        if total > MOST_FILES:
            raise ValueError(f"the commit has more than {MOST_FILES} files of Git LFS")
        if files:
            words = [part.decode("utf-8", "surrogateescape") for part in (folder, url, lfs_url)]
            found.append(LfsRepository(folder=words[0], url=words[1].strip("\n"), lfs_url=words[2].strip("\n"), files=files))
    size = sum(pointer.size for repository in found for pointer in repository.pointers)
    if size > MOST_BYTES:
        raise ValueError(f"the files of Git LFS have {size} bytes, and at most {MOST_BYTES} are fetched")
    return found


def _files(entries: bytes, contents: bytes) -> dict[str, Pointer]:
    pointers: dict[bytes, Pointer] = {}
    unusable: dict[bytes, str] = {}
    position = 0
    while (match := _OBJECT.match(contents, position)) is not None:
        end = match.end() + int(match[2])
        try:
            pointer = parse_pointer(contents[match.end() : end])
        except ValueError as error:
            unusable[match[1]] = str(error)
        else:
            if pointer is not None:
                pointers[match[1]] = pointer
        position = end + 1
    files: dict[str, Pointer] = {}
    for entry in entries.split(b"\0"):
        found = _ENTRY.fullmatch(entry)
        if found is None:
            continue
        path = found[3].decode("utf-8", "surrogateescape")
        if found[2] in unusable:
            raise ValueError(f"{shown(path)} can't be fetched from Git LFS: {unusable[found[2]]}")
        if found[2] in pointers:
            files[path] = pointers[found[2]]
    return files


def shown(path: str) -> str:
    """Return a path in quotes for a message; anyone may have written it."""
    return f"'{visible(path[:_SHOWN])}'"
