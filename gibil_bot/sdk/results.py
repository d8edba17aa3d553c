"""Values that the SDK returns, and the error for a command that failed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, TypeAlias

from gibil_bot.errors import GibilError, UsageError

if TYPE_CHECKING:
    from gibil_bot.commits.from_machine import Commits
    from gibil_bot.commits.pull_requests import PullRequestOpened

Seconds: TypeAlias = float | timedelta
"""A time limit: seconds, or a timedelta."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The end of a command. Bytes that aren't UTF-8 are U+FFFD. After `stream`, `stdout` and `stderr` are empty."""

    stdout: str
    stderr: str
    exit_code: int
    """128 + N when signal N ended it; 124 when it took longer than its time limit."""
    timed_out: bool
    duration_s: float

    @property
    def ok(self) -> bool:
        return self.exit_code == 0


class CommandFailed(GibilError):
    """A command ended with another exit code than 0, and the call had `check=True`. The code is COMMAND_FAILED or TIMEOUT."""

    code = "COMMAND_FAILED"

    def __init__(self, message: str, result: Result, *, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.result = result


class WaitTimeout(GibilError, TimeoutError):
    """What the program waited for took longer than its time limit. It is a TimeoutError, too."""

    code = "TIMEOUT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A piece of a command's output, as it arrived. `text` never ends within a character."""

    stream: Literal["stdout", "stderr"]
    data: bytes
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOutput:
    """The output of a job so far."""

    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """Commits that were pushed to `branch` of `repository` (its address). `subjects`: the first lines of their messages, newest
    first."""

    repository: str
    branch: str
    commit: str
    subjects: tuple[str, ...]
    files: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PullRequest:
    """An open pull request in `repository` (owner/name), with the commits that were pushed for it."""

    repository: str
    number: int
    url: str
    base: str
    draft: bool
    already_existed: bool
    pushed: Pushed


def pushed(commits: Commits) -> Pushed:
    return Pushed(
        repository=commits.url,
        branch=commits.branch,
        commit=commits.head,
        subjects=commits.subjects,
        files=commits.files,
        warnings=commits.warnings,
    )


def pull_request(opened: PullRequestOpened) -> PullRequest:
    return PullRequest(
        repository=opened.into,
        number=opened.number,
        url=opened.url,
        base=opened.base,
        draft=opened.draft,
        already_existed=opened.already_existed,
        pushed=pushed(opened.commits),
    )


def seconds(timeout: Seconds | None, name: str = "timeout") -> float | None:
    """Return a time limit in seconds. Raises UsageError."""
    if timeout is None:
        return None
    if isinstance(timeout, timedelta):
        timeout = timeout.total_seconds()
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
        raise UsageError(f"{name}={timeout!r} is not allowed; write a number of seconds above 0, or a timedelta")
    return float(timeout)
