"""Which of the two ways of isolating machines is used; it depends on the user only, and there is no silent fallback."""

from __future__ import annotations

import os

from gibil_bot.providers.local.paths import LocalPaths


def own_privilege() -> str:
    """Return `root` for root, `user` for other users."""
    return "root" if os.geteuid() == 0 else "user"


def groups_prefix(paths: LocalPaths) -> str:
    """Return the prefix of the control groups' names, which differs by data directory."""
    return f"gibil-{paths.key}"
