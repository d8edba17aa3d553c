"""Files on a machine: read page by page, write atomically, edit, list, search.

Paths are absolute, or relative to /root/project (to /root on a machine without code); `~` is /root.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from weakref import WeakValueDictionary

from gibil_bot.errors import GibilError, UsageError
from gibil_bot.machines.remote_layout import from_code
from gibil_bot.machines.session import MachineSession
from gibil_bot.machines.tools import file_scripts as scripts
from gibil_bot.machines.tools.file_scripts import Entry, Match, Page
from gibil_bot.ssh.answers import BadAnswer, fields_of, last_line

MOST_LINES = 2000
MOST_WRITTEN = 64 * 1024 * 1024
_TIMEOUT_S = 60.0
_ANSWER_BYTES = scripts.EDIT_BYTES + 1024 * 1024
"""The largest answer is a file that is being edited."""
_PATH_BYTES = 4096
_MODE = re.compile(rb"[0-7]{1,4}")
_PATTERN_BYTES = 16 * 1024

_writing: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
"""One lock per machine and file name: of two concurrent edits of a file, one would be lost."""


def check_path(path: str) -> str:
    """Return a path in the form that the scripts expect. Raises UsageError."""
    if not path:
        raise UsageError("a path can't be empty")
    if "\0" in path:
        raise UsageError("a path can't contain a NUL byte")
    if len(path.encode("utf-8", "surrogatepass")) > _PATH_BYTES:
        raise UsageError(f"a path has at most {_PATH_BYTES} bytes")
    return from_code(path)


async def check_folder(session: MachineSession, path: str) -> None:
    """Check that a directory exists. Raises UsageError."""
    await _ask(session, scripts.FOLDER, path)


async def read(session: MachineSession, path: str, first: int = 1, limit: int = MOST_LINES) -> Page:
    """Return lines from number `first` on. Raises UsageError: no such file, binary, beyond its end."""
    if first < 1:
        raise UsageError("lines are counted from 1")
    if not 1 <= limit <= MOST_LINES:
        raise UsageError(f"a page has 1 to {MOST_LINES} lines")
    answer = await _ask(session, scripts.read_script(), path, {"gibil_first": str(first), "gibil_lines": str(limit)})
    page = scripts.read_page(answer, path, first, limit)
    if page is None:
        raise UsageError(f"{path} on machine {session.name} is a binary file; look at it with a command", code="BINARY_FILE")
    if first > max(page.total, 1):
        raise UsageError(f"{path} on machine {session.name} has {page.total} lines, so there is no line {first}")
    return page


async def write(session: MachineSession, path: str, content: bytes, *, mode: int | None = None) -> bool:
    """Write a whole file, creating missing directories and keeping its mode. Return whether the file is new; then it has
    `mode`, 644 by default.

    Other processes read either the old or the new content. Raises UsageError, SSHError (disk full).
    """
    if len(content) > MOST_WRITTEN:
        raise UsageError(f"at most {MOST_WRITTEN // 1024**2} MiB can be written at once")
    async with _lock(session, path):
        return await _write(session, path, content, mode)


async def edit(session: MachineSession, path: str, old: str, new: str, *, everywhere: bool = False) -> tuple[int, int]:
    """Replace `old`, which has to occur exactly once, or `everywhere`; return (count, line of the first occurrence).

    Raises UsageError when the text doesn't occur or isn't unique.
    """
    if not old:
        raise UsageError("the old text can't be empty; to create a file, write it whole")
    if old == new:
        raise UsageError("the new text is the same as the old one")
    old_bytes = old.encode("utf-8", "surrogatepass")
    async with _lock(session, path):
        content = await _ask(session, scripts.READ_ALL, path)
        count = content.count(old_bytes)
        if count == 0:
            hint = ", though it is apart from blanks at the ends of lines" if _matches_loosely(content, old) else ""
            raise UsageError(
                f"the old text is not in {path}{hint}: read the file again; nothing was changed", code="TEXT_ABSENT"
            )
        if count > 1 and not everywhere:
            raise UsageError(
                f"the old text is {count} times in {path}: include more of its context, or replace all; nothing was changed",
                code="TEXT_NOT_UNIQUE",
            )
        line = content.count(b"\n", 0, content.index(old_bytes)) + 1
        await _write(session, path, content.replace(old_bytes, new.encode("utf-8", "surrogatepass")))
    return count, line


async def entries(session: MachineSession, path: str, glob: str | None = None) -> tuple[list[Entry], bool]:
    """Return the entries of a directory, or those below it that match a glob (`**/*.py`), and whether they are complete."""
    if glob is not None and (not glob or "\0" in glob or glob.startswith(("/", "~")) or len(glob) > _PATH_BYTES):
        raise UsageError("a glob is a pattern below the path, such as **/*.py")
    return scripts.read_entries(await _ask(session, scripts.list_script(), path, {"gibil_glob": glob or ""}))


async def search(session: MachineSession, pattern: str, path: str, include: str | None = None) -> tuple[list[Match], bool]:
    """Return lines that match a Perl-compatible regular expression, in files whose names match `include`.

    Also returns whether they are complete. Raises UsageError for an invalid pattern.
    """
    if not pattern or "\0" in pattern or "\n" in pattern or len(pattern.encode("utf-8", "surrogatepass")) > _PATTERN_BYTES:
        raise UsageError("a pattern must be one line without NUL bytes, and not empty", code="BAD_PATTERN")
    if include is not None and (not include or "/" in include or "\0" in include or len(include) > _PATH_BYTES):
        raise UsageError("include is a pattern for file names, such as *.py; name a directory with path")
    script, more = scripts.grep(include)
    return scripts.read_matches(await _ask(session, script, path, {"gibil_pattern": pattern, **more}))


async def read_whole(session: MachineSession, path: str) -> bytes:
    """Return a file's content, up to 64 MiB. Raises UsageError: no such file, FILE_TOO_LARGE."""
    return await _ask(session, scripts.READ_WHOLE, path, most_bytes=scripts.WHOLE_BYTES + 1024 * 1024)


async def target_of(session: MachineSession, path: str) -> tuple[str, int, bool]:
    """Prepare writing a file: return its path without links, its mode, and whether it's new. Creates missing directories."""
    target, mode, new, _ = fields_of(await _ask(session, scripts.prepare_script(), path), 4)
    if not _MODE.fullmatch(mode):
        raise BadAnswer(f"machine {session.name} answered {mode[:20]!r} where the mode of a file was expected")
    return target.decode("utf-8", "surrogateescape"), int(mode, 8), bool(new)


async def _write(session: MachineSession, path: str, content: bytes, new_mode: int | None = None) -> bool:
    target, mode, new = await target_of(session, path)
    await session.shell.put(target, content, mode=new_mode if new and new_mode is not None else mode)
    return new


def _lock(session: MachineSession, path: str) -> asyncio.Lock:
    key = (session.name, check_path(path).rstrip("/").rpartition("/")[2])  # a directory can be written in many ways
    lock = _writing.get(key)
    if lock is None:
        lock = _writing[key] = asyncio.Lock()
    return lock


def _matches_loosely(content: bytes, old: str) -> bool:
    def bare(text: str) -> str:
        return "\n".join(line.strip() for line in text.strip().splitlines())

    return bare(old) in bare(content.decode("utf-8", "replace"))


async def _ask(
    session: MachineSession, script: str, path: str, more: Mapping[str, str] | None = None, *, most_bytes: int = _ANSWER_BYTES
) -> bytes:
    env = {"gibil_path": check_path(path), **(more or {})}
    try:
        result = await session.shell.run(script, timeout_s=_TIMEOUT_S, env=env, most_bytes=most_bytes)
    except TimeoutError:
        raise GibilError(
            f"{path} on machine {session.name}: no answer within {_TIMEOUT_S:g} s; ask for less", code="TIMEOUT"
        ) from None
    if result.exit_status == 0:
        return result.stdout
    raise failure_of(session, path, result.exit_status, result.stderr)


def failure_of(session: MachineSession, path: str, exit_status: int, stderr: bytes) -> GibilError:
    """Return the error of a script in file_scripts.py that failed."""
    reason = last_line(stderr, f"exit status {exit_status}")
    if exit_status in scripts.FILE_ERRORS:
        code, sentence = scripts.FILE_ERRORS[exit_status]
        return UsageError(sentence.format(path=path, machine=session.name, reason=reason.removeprefix("grep: ")), code=code)
    return GibilError(f"{path} on machine {session.name}: {reason}", code="FILES")
