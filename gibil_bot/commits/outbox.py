"""What was pushed on a machine and waits to be collected: the branch in its outbox (scripts/outbox.py).

The machine isn't trusted: its answer is only the name of a commit, which is checked like its HEAD.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from gibil_bot.ports import Shell
from gibil_bot.scripts.outbox import OUTBOX

_QUERY_S = 60.0
_MOST_BYTES = 64 * 1024
_LINE = re.compile(r"([0-9a-f]{40}) refs/heads/([^\x00-\x20\x7f~^:?*\[\\]{1,200})")


@dataclass(frozen=True, slots=True)
class Waiting:
    """A branch that was pushed to the outbox, and its commit. Both are what the machine says."""

    branch: str
    head: str


async def waiting(shell: Shell) -> Waiting | None:
    """Return what waits in the outbox; None if nothing was pushed, or the machine has no outbox. Raises MachineLost."""
    command = (
        f"git --git-dir={OUTBOX} for-each-ref --count=1 --format='%(objectname) %(refname)' refs/heads 2>/dev/null || true"
    )
    answer = await shell.run(command, timeout_s=_QUERY_S, most_bytes=_MOST_BYTES)
    found = _LINE.fullmatch(answer.stdout.decode("utf-8", "replace").split("\n", 1)[0])
    return Waiting(branch=found[2], head=found[1]) if found else None


async def forget(shell: Shell, collected: Waiting) -> None:
    """Empty the outbox after its commits were collected, unless others were pushed meanwhile. Raises MachineLost."""
    ref = shlex.quote(f"refs/heads/{collected.branch}")
    command = f"git --git-dir={OUTBOX} -c core.hooksPath=/dev/null update-ref -d {ref} {collected.head} 2>/dev/null || true"
    await shell.run(command, timeout_s=_QUERY_S)
