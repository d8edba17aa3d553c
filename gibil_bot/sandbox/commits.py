"""Commits that were made on a machine, brought to where they come from by somebody who may: no credential is on the machine.

The machine is not trusted. Where to push is what we labelled it with, and not what its git says; what comes is a bundle, which
is unpacked and checked in a repository of its own, without anybody's hooks; and only then is it pushed, with the person's own
credentials, never by force.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gibil_bot.errors import GibilError, UsageError
from gibil_bot.machines.answers import last_line
from gibil_bot.runs.sources import WORKSPACE, SourceError, git
from gibil_bot.sandbox.credentials import for_git
from gibil_bot.sandbox.git_words import reason
from gibil_bot.sandbox.live import LiveMachine
from gibil_bot.sandbox.origin import check_branch

MOST_BYTES = 256 * 1024 * 1024
_TAKE_S = 600.0
_WORKFLOWS = ".github/workflows/"
_QUIETLY = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_SSH_COMMAND": "ssh -oBatchMode=yes",
    "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh",
    "LC_ALL": "C",
}


class NotPushed(GibilError):
    """What the machine has cannot be pushed, or the server does not take it."""

    code = "NOT_PUSHED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Commits:
    """What was made on a machine since it was forged, in a repository on this box, checked."""

    repository: Path
    url: str
    branch: str
    base: str
    head: str
    subjects: tuple[str, ...]
    """First lines of the messages, newest first."""
    files: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    """Of the git that talks to `url`."""


@contextlib.asynccontextmanager
async def take(live: LiveMachine, branch: str | None, *, with_workflows: bool, github_url: str) -> AsyncIterator[Commits]:
    """For as long as the block lasts. Without `branch`, for the one that is checked out on the machine.

    Raises UsageError where there is nothing to push, NotPushed for what must not be.
    """
    url, base = live.machine.labels.get("repo"), live.machine.labels.get("commit")
    if not url or not base:
        raise UsageError(f"{live.name} was forged without a repository: there is nowhere to push to")
    head, current = await _where(live)
    if branch is None and current is None:
        raise UsageError(f"no branch is checked out on {live.name}: say with --branch where to push to")
    branch = check_branch(branch or current or "")
    if head == base:
        raise UsageError(f"there is no new commit on {live.name}: its HEAD is what it was forged with")
    environment = {**_QUIETLY, **await for_git(url, github_url)}
    with tempfile.TemporaryDirectory(prefix="gibil-push-") as scratch:
        repository = Path(scratch) / "repository.git"
        bundle = Path(scratch) / "commits.bundle"
        await asyncio.to_thread(bundle.write_bytes, await _bundle(live, base))
        try:
            await git(
                Path(scratch), "clone", "-q", "--bare", "--template=", "--", url, str(repository), environment=environment
            )
            if not await _has(repository, base):
                raise NotPushed(f"{live.name} was forged from commit {base[:7]}, which is not in {url}: push that first")
            await git(
                repository, "-c", "core.hooksPath=/dev/null", "-c", "fetch.fsckObjects=true",
                "fetch", "-q", "--no-tags", str(bundle), "+HEAD:refs/gibil/incoming",
            )  # fmt: skip
            if await git(repository, "rev-parse", "refs/gibil/incoming") != head:
                raise NotPushed(f"what {live.name} sent is not its HEAD; is somebody committing there? Try again")
            span = f"{base}..{head}"
            subjects = (await git(repository, "log", "--format=%s", span)).splitlines()
            changed = await git(repository, "diff", "--name-only", "-z", base, head)
        except SourceError as error:
            raise NotPushed(f"the commits of {live.name} cannot be taken: {reason(error)}") from error
        files = tuple(path for path in changed.split("\0") if path)
        touched = [path for path in files if path.startswith(_WORKFLOWS)]
        if touched and not with_workflows:
            raise NotPushed(
                f"the commits change {touched[0]}, which runs with the repository's secrets; look, then --with-workflows"
            )
        yield Commits(
            repository=repository, url=url, branch=branch, base=base, head=head, subjects=tuple(subjects), files=files,
            environment=environment,
        )  # fmt: skip


async def push(commits: Commits) -> None:
    """Raises NotPushed with what the server said."""
    try:
        await git(
            commits.repository, "-c", "core.hooksPath=/dev/null", "push", "-q", "--", commits.url,
            f"{commits.head}:refs/heads/{commits.branch}", environment=commits.environment,
        )  # fmt: skip
    except SourceError as error:
        raise NotPushed(f"{commits.branch} was not pushed to {commits.url}: {reason(error)}") from error


async def check_base(commits: Commits, base: str) -> None:
    """Whether the commits can be asked to go there at all. Raises UsageError."""
    ref = f"refs/heads/{base}"
    if not await _has(commits.repository, ref):
        raise UsageError(f"there is no branch {base} in {commits.url}; say with --base where the commits should go")
    if not await git(commits.repository, "rev-list", "--max-count=1", commits.head, f"^{ref}"):
        raise UsageError(f"{base} of {commits.url} has every commit of this machine already")


async def _has(repository: Path, name: str) -> bool:
    try:
        await git(repository, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    except SourceError:
        return False
    return True


async def _where(live: LiveMachine) -> tuple[str, str | None]:
    """(commit, branch) of the workspace; no branch where HEAD is detached."""
    there = await live.run(f"cd {WORKSPACE} && git rev-parse --verify HEAD && {{ git symbolic-ref -q --short HEAD || true; }}")
    lines = there.stdout.split()
    if there.exit_code != 0 or not lines or len(lines[0]) != 40 or not set(lines[0]) <= set("0123456789abcdef"):
        said = last_line(there.stderr.encode(), "is it still being cloned?")
        raise UsageError(f"there is no commit in {WORKSPACE} on {live.name}: {said}")
    return lines[0], lines[1] if len(lines) == 2 else None


async def _bundle(live: LiveMachine, base: str) -> bytes:
    kept: list[bytes] = []
    size = 0
    words: list[bytes] = []

    def take_output(stream: str, data: bytes) -> None:
        nonlocal size
        size += len(data)
        if size > MOST_BYTES:
            raise NotPushed(f"the commits of {live.name} are larger than {MOST_BYTES // 1024**2} MiB")
        (kept if stream == "stdout" else words).append(data)

    # Without the environment of tasks: a PATH of theirs must not decide which git that is.
    command = f"cd {WORKSPACE} && git -c core.hooksPath=/dev/null bundle create -q - HEAD ^{shlex.quote(base)}"
    result = await live.shell.run(command, timeout_s=_TAKE_S, on_output=take_output, keep_output=False)
    if result.exit_status != 0:
        raise NotPushed(f"{live.name} could not pack its commits: {last_line(b''.join(words))}")
    return b"".join(kept)
