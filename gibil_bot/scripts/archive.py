"""Scripts that archive a cloud machine over SSH, and restore such an archive on another one. No I/O.

An archive is opaque to this host: only machines of the same trust scope read it.
"""

from __future__ import annotations

import re
import shlex

from gibil_bot.scripts.clone import WORKSPACE
from gibil_bot.scripts.templates import script, text

OUTDATED = 3
"""Exit status of `restore_script`: the archive doesn't fit this machine, which is unchanged."""
OTHER = 4
"""Exit status: the machine was restored from another archive."""

_MARK = "/root/.gibil/restored"
_ID = re.compile(r"[0-9a-f]{8,40}")


def begin_functions() -> str:
    """Return shell functions: `ready` records what a new machine is like and lets the first command run."""
    return text("archive_begin")


def save_script(workspace: str = WORKSPACE) -> str:
    """Return a script that prints an archive of the machine."""
    return script("archive_save", FILES=text("archive_files"), WORKSPACE=shlex.quote(workspace))


def restore_script(archive_id: str, workspace: str = WORKSPACE) -> str:
    """Return a script that reads an archive on stdin. Safe to repeat."""
    if not _ID.fullmatch(archive_id):
        raise ValueError(f"{archive_id!r} is not the id of an archive")
    return script("archive_restore", ID=archive_id, WORKSPACE=shlex.quote(workspace), RULES=text("delete_rules"))


def restored_script() -> str:
    """Return a script that prints the archive that the machine was restored from; `parse_restored` reads its output."""
    return f"head -c 100 {_MARK} 2>/dev/null || true"


def parse_restored(output: bytes) -> str | None:
    """Return the id of that archive, which may be restored incompletely; None if there is none."""
    match = _ID.match(output.decode("ascii", "replace"))
    return match[0] if match else None
