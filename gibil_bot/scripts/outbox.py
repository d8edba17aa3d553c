"""The outbox of a machine: a bare repository that `git push` in the workspace goes to, and from which gibil collects commits.

The machine has no credentials, and users and agents push by habit. So the push URL of `origin` is this repository, whose hooks
print that the commits wait for gibil's checks and how they are collected. It accepts one branch that descends from the commit
that the machine started from; deleting that branch withdraws it. Its commits are checked like those of HEAD.
"""

from __future__ import annotations

import shlex

from gibil_bot.scripts.templates import script, text

OUTBOX = "/root/.gibil/outbox.git"


def outbox_function() -> str:
    """Return POSIX sh that defines `create_outbox WORKSPACE COMMIT`, for a workspace whose `origin` has a URL."""
    return script(
        "outbox", UPDATE=shlex.quote(text("outbox_update")), RECEIVED=shlex.quote(text("outbox_received"))
    )  # fmt: skip


def outbox_line(workspace: str, sha: str) -> str:
    """Return POSIX sh that creates the outbox of a workspace unless it exists. A failure is no failure of the script."""
    return f"{outbox_function()}[ -e {OUTBOX} ] || create_outbox {shlex.quote(workspace)} {sha} || true\n"
