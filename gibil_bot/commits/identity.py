"""The author of commits on a machine: the identity that the user's own git would use."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gibil_bot import git
from gibil_bot.git import NO_FETCH, GitError

_QUERY_S = 10.0
_LONGEST = 200
_IDENTITY = re.compile(r"([^<>]+) <([^<>]+)> \d+ [+-]\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Name and email for commits, checked."""

    name: str
    email: str


async def identity(git_dir: Path | None = None) -> Identity | None:
    """Return the identity that the user's git would use, in that repository or in general; None if git would ask for it.

    It is the committer's: in a hook, git's environment has the author of some other commit.
    """
    settings = ("user.useConfigOnly=true",)
    try:
        if git_dir is None:
            ident = await git.text("var", "GIT_COMMITTER_IDENT", settings=settings, within_s=_QUERY_S)
        else:
            ident = await git.text(
                "var", "GIT_COMMITTER_IDENT", git_dir=git_dir, extra=NO_FETCH, settings=settings, within_s=_QUERY_S
            )
    except GitError:
        return None
    match = _IDENTITY.fullmatch(ident)
    if match is None or not all(part.isprintable() and len(part) <= _LONGEST for part in match.groups()):
        return None
    return Identity(name=match[1], email=match[2])
