"""Scripts that collect, create and rebase commits in the workspace of a machine. The machine needs no credentials."""

from __future__ import annotations

import re
import shlex

from gibil_bot.scripts.clone import WORKSPACE
from gibil_bot.scripts.templates import script

NOT_DESCENDED = 4
"""Exit status: the commits don't descend from the base."""
CONFLICT = 5
"""Exit status: the commits don't apply to the newer ones."""

PUSHED_ALL = 6
"""Exit status: the pushed commit contains all of the workspace."""

OUTGOING = "refs/gibil/outgoing"
"""The head in a bundle."""
REBASED = "refs/gibil/rebased"

_FETCHED = "refs/gibil/target"
_SHA = re.compile(r"[0-9a-f]{40}")


def pack_script(folder: str, revision: str, base: str, *, descends: bool) -> str:
    """Return a script that prints a commit's name and a bundle. `descends`: fail with NOT_DESCENDED for rewritten history."""
    return script(
        "commits_pack", FOLDER=shlex.quote(folder), REVISION=shlex.quote(revision), BASE=_checked(base),
        DESCENDS="yes" if descends else "no", OUTGOING=OUTGOING,
    )  # fmt: skip


def pushed_script(base: str, pushed: str) -> str:
    """Return a script that compares the workspace with a pushed commit. Status 0: HEAD contains it."""
    return script("commits_pushed", FOLDER=WORKSPACE, BASE=_checked(base), PUSHED=_checked(pushed))


def create_script() -> str:
    """Return a script that commits changed files, with the message on stdin."""
    return script("commits_create", FOLDER=WORKSPACE)


def rebase_script(base: str, head: str, target: str) -> str:
    """Return a script that rebases base..head onto `target`, which is in the bundle on stdin. The result is REBASED."""
    return script(
        "commits_rebase", FOLDER=WORKSPACE, BASE=_checked(base), HEAD=_checked(head), TARGET=_checked(target),
        OUTGOING=OUTGOING, FETCHED=_FETCHED, REBASED=REBASED,
    )  # fmt: skip


def _checked(sha: str) -> str:
    if not _SHA.fullmatch(sha):
        raise ValueError(f"not the name of a commit: {sha!r}")
    return sha
