"""Scripts that compare and apply what agents changed in the workspace of a machine."""

from __future__ import annotations

import re

from gibil_bot.scripts.clone import WORKSPACE
from gibil_bot.scripts.templates import script

_TREE = re.compile(r"[0-9a-f]{40}")


def changes_script(before: str = "", *, most_patch: int = 0) -> str:
    """Return a script that prints the tree of the workspace. `before`: an earlier one, to compare with.

    `most_patch`: it prints a patch, cut after one byte more; 0: none.
    """
    if before and not _TREE.fullmatch(before):
        raise ValueError(f"not the name of a tree: {before!r}")
    return script("agent_changes", FOLDER=WORKSPACE, BEFORE=before, MOST=str(most_patch + 1 if most_patch else 0))


APPLY = f"""\
cd {WORKSPACE} && patch=$(mktemp) && cat >"$patch" || exit
apply() {{ git -c core.hooksPath=/dev/null apply --binary --whitespace=nowarn "$@" "$patch"; }}
apply --reverse --check 2>/dev/null || apply
status=$?
rm -f "$patch"
exit $status
"""
"""POSIX sh that applies the patch on stdin to the workspace, unless it is applied already."""
