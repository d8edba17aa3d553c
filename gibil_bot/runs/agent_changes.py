"""What an agent changed in the workspace of a machine, by git. The machine may lie: this is for reports and for a choice.

What is committed is checked again, on this host, by `commits`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gibil_bot.ports import Shell
from gibil_bot.scripts.agent_changes import APPLY, changes_script
from gibil_bot.ssh.answers import BadAnswer, last_line, number

MOST_PATCH = 4 * 1024 * 1024
"""Commits of a run have no more new content by default."""
TIMEOUT_S = 120.0
"""Of one comparison: git reads every changed file."""
_TREE = re.compile(rb"[0-9a-f]{40}")
_MOST = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentChanges:
    """The workspace at one moment, and how it differs from an earlier one."""

    tree: str
    files: int = 0
    lines: int = 0
    """Added and removed ones."""
    patch: bytes = b""
    """For `git apply`; empty if it wasn't asked for, or is too large."""
    is_cut: bool = False
    """The patch is too large."""


async def read_changes(shell: Shell, before: str = "", *, most_patch: int = 0) -> AgentChanges:
    """Ask the machine. Raises BadAnswer if it can't say, MachineLost, SSHError, TimeoutError."""
    script = changes_script(before, most_patch=most_patch)
    done = await shell.run(script, timeout_s=TIMEOUT_S, most_bytes=most_patch + 4096)
    if done.exit_status != 0:
        raise BadAnswer(f"git can't compare the checkout: {last_line(done.stderr)}")
    return parse_changes(done.stdout, most_patch=most_patch)


def parse_changes(output: bytes, *, most_patch: int = 0) -> AgentChanges:
    """Read what the script printed. Raises BadAnswer."""
    tree, _, rest = output.partition(b"\n")
    if not _TREE.fullmatch(tree):
        raise BadAnswer("the machine's answer names no tree")
    if not rest:
        return AgentChanges(tree=tree.decode())
    counts, _, patch = rest.partition(b"\n")
    numbers = counts.split(b" ")
    if len(numbers) != 2:
        raise BadAnswer("the machine's answer doesn't count its changes")
    files, lines = (number(each, _MOST) for each in numbers)
    is_cut = len(patch) > most_patch > 0
    return AgentChanges(tree=tree.decode(), files=files, lines=lines, patch=b"" if is_cut else patch, is_cut=is_cut)


async def apply_patch(shell: Shell, patch: bytes) -> None:
    """Apply a patch to the workspace, unless it is applied already.

    Raises BadAnswer if it doesn't apply, MachineLost, SSHError, TimeoutError.
    """
    done = await shell.run(APPLY, stdin=patch, timeout_s=TIMEOUT_S)
    if done.exit_status != 0:
        raise BadAnswer(last_line(done.stderr))
