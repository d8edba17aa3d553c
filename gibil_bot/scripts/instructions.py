"""Scripts that replace the files that steer agents in a checkout, and put them back: see instruction_files.py."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from gibil_bot.scripts.clone import WORKSPACE
from gibil_bot.scripts.templates import script, text

MOST_NAMES = 200
"""How many names a script prints of each kind."""

_SHA = re.compile(r"[0-9a-f]{40}")


class Printed(NamedTuple):
    """What a script printed."""

    removed: tuple[str, ...] = ()
    unwritten: tuple[str, ...] = ()
    """Files of the base branch that couldn't be written, because a folder of their path is a link or a file."""
    changed: tuple[str, ...] = ()
    """By the agent, or created."""
    deleted: tuple[str, ...] = ()
    moved_head: bool = False
    lost: bool = False


def replace_script(globs: Sequence[str], state: str, *, folder: str = WORKSPACE, above: str = "/") -> str:
    """Return a script that replaces the files by those of the tar archive on its stdin, and stores them at `state`.

    It also deletes instructions in the folders that contain the checkout, up to `above`.
    """
    if not folder.startswith(above.rstrip("/") + "/"):
        raise ValueError(f"{above!r} doesn't contain {folder!r}")
    parents = sorted({part for each in globs if (part := _stem(each).removeprefix("**/")).endswith(".md") and "/" not in part})
    values = {"PARENTS": " -o ".join(f"-iname {shlex.quote(part)}" for part in parents) or "-false"}
    return f"above={shlex.quote(above)}\n{_begin(globs, state, folder, '')}{script('instructions_replace', **values)}"


def put_back_script(globs: Sequence[str], state: str, sha: str, *, folder: str = WORKSPACE) -> str:
    """Return a script that puts the files of `sha` back."""
    if not _SHA.fullmatch(sha):
        raise ValueError(f"not the name of a commit: {sha!r}")
    return _begin(globs, state, folder, sha) + text("instructions_put_back")


def parse(output: bytes) -> Printed:
    """Read what a script printed; lines of another form are skipped."""
    names: dict[str, list[str]] = {kind: [] for kind in "RSCDHL"}
    for record in output.split(b"\0"):
        kind = record[:1].decode("ascii", "replace")
        if kind in names and len(names[kind]) < MOST_NAMES:
            names[kind].append(record[1:].decode("utf-8", "surrogateescape"))
    removed, unwritten, changed, deleted = (tuple(names[kind]) for kind in "RSCD")
    return Printed(removed, unwritten, changed, deleted, moved_head=bool(names["H"]), lost=bool(names["L"]))


def _begin(globs: Sequence[str], state: str, folder: str, sha: str) -> str:
    values = {"folder": folder, "state": state, "sha": sha, "most": str(MOST_NAMES)}
    assigned = "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())
    stems = tuple(dict.fromkeys(_stem(each) for each in globs))
    return assigned + script("instructions_begin", MATCHES=" -o ".join(_tests(stems)), PATHSPECS=" ".join(_pathspecs(stems)))


def _stem(glob: str) -> str:
    """Return the glob of the file or folder itself: a folder counts as a whole."""
    return glob.removeprefix("./").removeprefix("/").removesuffix("**").rstrip("/")


def _tests(stems: Iterable[str]) -> Iterable[str]:
    """Yield tests of find. In its patterns `*` also matches slashes, so they may match more than the glob."""
    for stem in stems:
        name = stem.removeprefix("**/")
        pattern = name.replace("\\", "\\\\").replace("[", "\\[").replace("**", "*")
        if "/" not in name and stem != name:
            yield f"-iname {shlex.quote(pattern)}"
        else:
            yield f"-ipath {shlex.quote(('*/' if stem != name else './') + pattern)}"


def _pathspecs(stems: Iterable[str]) -> Iterable[str]:
    for stem in stems:
        escaped = stem.replace("\\", "\\\\").replace("[", "\\[")
        yield shlex.quote(f":(icase,glob){escaped}")
        yield shlex.quote(f":(icase,glob){escaped}/**")
