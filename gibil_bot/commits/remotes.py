"""Remote repositories: the commit of a ref, and valid branch names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gibil_bot import git
from gibil_bot.errors import UsageError
from gibil_bot.limits import is_branch_name


def check_branch(branch: str) -> str:
    """Return the name. Raises UsageError for invalid branch names (git-check-ref-format(1)) and forced refspecs."""
    if not is_branch_name(branch):
        raise UsageError(f"{branch[:80]!r} is not a valid branch name")
    return branch


async def ask_ref(repository: Path, url: str, wanted: str, environment: Mapping[str, str | None]) -> tuple[str, str]:
    """Return (ref, commit) of a ref at `url`: a symbolic ref is resolved, and the commit is empty if the ref doesn't exist.

    Raises GitError.
    """
    answer = await git.text("ls-remote", "--symref", "--", url, wanted, git_dir=repository, extra=environment)
    ref, sha = wanted, ""
    for line in answer.split("\n"):
        value, _, name = line.partition("\t")
        if name == wanted:
            if value.startswith("ref: "):
                ref = value.removeprefix("ref: ")
            else:
                sha = value
    return ref, sha
