"""Explains why git failed, for the user whose credentials it used. Pure."""

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
    """Return the reason in one line, including the server's own messages (`remote: …`)."""
    stderr = error.stderr
    if not stderr or isinstance(error, TooExpensive):
        return error.message
    rejected = _REJECTED.search(stderr)
    if rejected is not None and rejected["why"] in _BEHIND:
        return (
            "the remote branch has commits that the machine doesn't have, and gibil never pushes by force: "
            "merge them on the machine, or choose another --branch"
        )
    lines = [line.strip() for line in stderr.splitlines()]
    lines = [line for line in lines if line and not line.startswith("hint:")]
    if any(line.startswith(_BY_SSH) for line in lines):
        # SSH's message is before this line, hints about the cause are after it.
        end = next(number for number, line in enumerate(lines) if line.startswith(_BY_SSH))
        lines = lines[: max(end, 1)]
    remote = [line.removeprefix("remote:").removeprefix(" error:").strip() for line in lines if line.startswith("remote:")]
    remote_message = "; ".join(line for line in remote if line)[:300]
    if rejected is not None:
        return f"the server rejected it: {rejected['why']}" + (f" ({remote_message})" if remote_message else "")
    last = lines[-1] if lines else "no reason given"
    shown = f" ({remote_message or last})"
    if any(words in stderr for words in _NO_CREDENTIALS):
        return (
            "git has no credentials for it; for GitHub, log in with `gh auth login`, or set GH_TOKEN "
            "(GH_ENTERPRISE_TOKEN for an Enterprise Server)"
        )
    if any(words in stderr for words in _WRONG_CREDENTIALS):
        return f"the server doesn't accept git's credentials{shown}"
    if any(words in stderr for words in _FORBIDDEN):
        return f"permission denied for git's account{shown}"
    return f"{last} ({remote_message})" if remote_message and remote_message not in last else last
