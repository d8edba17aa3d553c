"""Which of the two ways of forging is used here; decided by who we are, and never silently another."""

from __future__ import annotations

import os

from gibil_bot.providers.local.paths import LocalPaths


def own_privilege() -> str:
    """`root` for root, `user` for everybody else."""
    return "root" if os.geteuid() == 0 else "user"


def groups_prefix(paths: LocalPaths) -> str:
    """Control groups of different data directories lie side by side."""
    return f"gibil-{paths.key}"
