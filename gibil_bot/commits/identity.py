"""Whose name the commits on a machine carry: the one that the user's own git would write."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gibil_bot import git
from gibil_bot.git import LOOK, GitError

_ASK_S = 10.0
_LONGEST = 200
_IDENTITY = re.compile(r"([^<>]+) <([^<>]+)> \d+ [+-]\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What git writes into commits, checked."""

    name: str
    email: str


async def identity(git_dir: Path | None = None) -> Identity | None:
    """Whose commits the user's git would make, there or anywhere; None where it would ask.

    The committer: in a hook, git's environment has the author of some commit.
    """
    settings = ("user.useConfigOnly=true",)
    try:
        if git_dir is None:
            said = await git.text("var", "GIT_COMMITTER_IDENT", settings=settings, within_s=_ASK_S)
        else:
            said = await git.text("var", "GIT_COMMITTER_IDENT", git_dir=git_dir, extra=LOOK, settings=settings, within_s=_ASK_S)
    except GitError:
        return None
    match = _IDENTITY.fullmatch(said)
    if match is None or not all(part.isprintable() and len(part) <= _LONGEST for part in match.groups()):
        return None
    return Identity(name=match[1], email=match[2])
