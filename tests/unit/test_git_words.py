"""Git's output after a failed push or clone becomes one line that says what to do."""

from __future__ import annotations

import pytest

from gibil_bot.commits.git_errors import reason
from gibil_bot.git import GitError

BEHIND = """To https://github.com/ada/engine.git
 ! [rejected]        2f1d2c4 -> topic (non-fast-forward)
error: failed to push some refs to 'https://github.com/ada/engine.git'
hint: Updates were rejected because a pushed branch tip is behind its remote
hint: See the 'Note about fast-forwards' in 'git push --help' for details."""
PROTECTED = """remote: error: GH006: Protected branch update failed for refs/heads/main.
remote: error: Changes must be made through a pull request.
To https://github.com/ada/engine.git
 ! [remote rejected] 2f1d2c4 -> main (protected branch hook declined)
error: failed to push some refs to 'https://github.com/ada/engine.git'"""
NOBODY = """fatal: could not read Username for 'https://github.com': terminal prompts disabled"""
WRONG = """remote: Invalid username or token. Password authentication is not supported for Git operations.
fatal: Authentication failed for 'https://github.com/ada/engine.git/'"""
FORBIDDEN = """remote: Permission to ada/engine.git denied to eve.
fatal: unable to access 'https://github.com/ada/engine.git/': The requested URL returned error: 403"""
HIDDEN = """remote: Repository not found.
fatal: repository 'https://github.com/ada/engine.git/' not found"""
BY_SSH = """Host key verification failed.
fatal: Could not read from remote repository.

Please make sure you have the correct access rights
and the repository exists."""
NO_KEY = """git@github.com: Permission denied (publickey).
fatal: Could not read from remote repository.

Please make sure you have the correct access rights
and the repository exists."""
AWAY = """fatal: unable to access 'https://github.com/ada/engine.git/': Could not resolve host: github.com"""


@pytest.mark.parametrize(
    ("output", "parts"),
    [
        (BEHIND, ("never pushes by force", "--branch")),
        (PROTECTED, ("protected branch hook declined", "GH006", "through a pull request")),
        (NOBODY, ("no credentials", "GH_TOKEN")),
        (WRONG, ("doesn't accept", "Invalid username or token")),
        (FORBIDDEN, ("permission denied", "denied to eve")),
        (HIDDEN, ("not found",)),
        (BY_SSH, ("Host key verification failed",)),
        (NO_KEY, ("doesn't accept", "Permission denied (publickey)")),
        (AWAY, ("Could not resolve host",)),
        ("", ("git push failed",)),
        ("hint: only hints", ("no reason given",)),
    ],
)
def test_one_line_reports_the_reason_and_a_remedy(output: str, parts: tuple[str, ...]) -> None:
    line = reason(GitError("git push failed in /tmp/somewhere: x", stderr=output))
    assert "\n" not in line
    assert "hint:" not in line
    assert [part for part in parts if part not in line] == []
