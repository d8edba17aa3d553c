"""Why git failed, in words for the person whose credentials it used. Pure."""

from __future__ import annotations

import re

from gibil_bot.git import GitError, TooExpensive

_REJECTED = re.compile(r"^ ! \[(?:remote )?rejected\].*\((?P<why>.*)\)$", re.MULTILINE)
_BEHIND = ("fetch first", "non-fast-forward")
_NO_CREDENTIALS = ("could not read Username", "could not read Password", "terminal prompts disabled")
_WRONG_CREDENTIALS = ("Authentication failed", "Invalid username or", "Permission denied (publickey")
_BY_SSH = "fatal: Could not read from remote repository"
_FORBIDDEN = ("returned error: 403", "Permission to ", "Write access to repository not granted")


def reason(error: GitError) -> str:
    """One line. What a server says of itself (`remote: …`) comes with it."""
    said = error.said
    if not said or isinstance(error, TooExpensive):
        return error.message
    rejected = _REJECTED.search(said)
    if rejected is not None and rejected["why"] in _BEHIND:
        return (
            "the branch there has commits that the machine has not, and nothing is pushed by force: "
            "merge them on the machine, or choose another --branch"
        )
    lines = [line.strip() for line in said.splitlines()]
    lines = [line for line in lines if line and not line.startswith("hint:")]
    if any(line.startswith(_BY_SSH) for line in lines):
        # What SSH said comes before it, what could be the matter after it.
        end = next(number for number, line in enumerate(lines) if line.startswith(_BY_SSH))
        lines = lines[: max(end, 1)]
    remote = [line.removeprefix("remote:").removeprefix(" error:").strip() for line in lines if line.startswith("remote:")]
    told = "; ".join(line for line in remote if line)[:300]
    if rejected is not None:
        return f"it was refused: {rejected['why']}" + (f" ({told})" if told else "")
    last = lines[-1] if lines else "no reason given"
    shown = f" ({told or last})"
    if any(words in said for words in _NO_CREDENTIALS):
        return (
            "git has no credentials for it; for GitHub, log in with `gh auth login`, or set GH_TOKEN "
            "(GH_ENTERPRISE_TOKEN for an Enterprise Server)"
        )
    if any(words in said for words in _WRONG_CREDENTIALS):
        return f"the credentials that git has for it are not accepted{shown}"
    if any(words in said for words in _FORBIDDEN):
        return f"permission denied for the account that git logs in with{shown}"
    return f"{last} ({told})" if told and told not in last else last
