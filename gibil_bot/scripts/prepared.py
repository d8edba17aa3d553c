"""Scripts for machines that start from a prepared one, and for the machines that become one. No I/O."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from gibil_bot.scripts.clone import WORKSPACE
from gibil_bot.scripts.templates import script, text

MOST_KNOWN = 5000
_COMPILE_S = 10
"""For each virtual environment. What isn't compiled by then is compiled when it is imported."""
_OBJECT = re.compile(r"[0-9a-f]{40}")
_TREE = re.compile(r"tree ([0-9a-f]{40,64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What a machine is like after its preparation."""

    tree: str
    """The id of all files of the commit; empty if the machine is of no use."""
    is_useless: bool
    """Processes run on it, which would be ended, or the next run's checkout would delete installed files."""
    built: bool
    """Preparing built something from the project's own files, as far as that can be seen."""


def begin_script() -> str:
    """Return a script that removes what an earlier run left for itself. Safe to repeat before the first task."""
    return text("prepared_begin")


def leave_script(workspace: str = WORKSPACE, *, continues: bool = False) -> str:
    """Return a script that checks a prepared machine and, if it is of use, cleans its disk; `parse_left` reads its output.

    `continues`: it is a cloud machine, on which the run continues; nothing is removed.
    """
    others = text("archive_busy" if continues else "prepared_others")
    clean = "" if continues else script("prepared_clean", KNOWN=str(MOST_KNOWN))
    return script("prepared_leave", WORKSPACE=shlex.quote(workspace), OTHERS=others, CLEAN=clean, COMPILE_S=str(_COMPILE_S))


def known_script() -> str:
    """Return a script that creates the folder for our files and prints the objects whose history the machine has."""
    limit = MOST_KNOWN * 41
    return f"mkdir -p /root/.gibil && if test -f /root/.gibil/prepared; then head -c {limit} /root/.gibil/prepared; fi"


def parse_known(output: bytes) -> tuple[str, ...]:
    """Return the ids of these objects. They are only what the machine says."""
    lines = output.decode("ascii", "replace").split("\n")[:MOST_KNOWN]
    return tuple(dict.fromkeys(line for line in lines if _OBJECT.fullmatch(line)))


def parse_left(output: bytes) -> Left | None:
    """Return the result of `leave_script`; None if the machine printed anything else."""
    lines = output[:4096].decode("ascii", "replace").split("\n")
    if lines in (["busy", ""], ["lost", ""]):
        return Left(tree="", is_useless=True, built=False)
    match = _TREE.fullmatch(lines[0])
    if match is None or lines[1:] not in ([""], ["built", ""]):
        return None
    return Left(tree=match[1], is_useless=False, built="built" in lines)
