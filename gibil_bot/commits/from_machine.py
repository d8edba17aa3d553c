"""Fetches commits from a machine and pushes them with the user's credentials; the machine has no credentials.

The machine isn't trusted. The push target is the label that we put on the machine, not what its git reports. The commits arrive
as a bundle, which is unpacked and checked in a separate repository, without any hooks. Only then are they pushed, with the
user's own credentials and never by force.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from gibil_bot import git
from gibil_bot.commits import outbox
from gibil_bot.commits.checks import CommitPolicy, CommitRejected, check
from gibil_bot.commits.collected import CHECKED_OUT, MOST_BUNDLE_BYTES, NotCollected, collect, outbox_branch
from gibil_bot.commits.credentials import for_git
from gibil_bot.commits.git_errors import reason
from gibil_bot.commits.local_repository import branch_of
from gibil_bot.commits.paths import PROTECTED
from gibil_bot.commits.remotes import ask_ref, check_branch
from gibil_bot.config import Settings
from gibil_bot.errors import UsageError
from gibil_bot.git import FOREIGN, GitError, Limits
from gibil_bot.humanize import count
from gibil_bot.model import Machine
from gibil_bot.ports import Shell
from gibil_bot.ssh.answers import printable

MOST_FILES = 20_000
MOST_COMMITS = 20_000

_PUSH = Limits(memory_bytes=1024**3, address_bytes=4 * 1024**3, cpu_s=600)
"""Higher, because git also reads the repository's own history, which is trusted."""
_PATH = 200
"""Maximum length of a path in a message."""
_INSTALLED = (".venv", "venv", "node_modules", "__pycache__", ".tox", "site-packages")
"""Folders with files that tools install, which are rarely meant to be committed."""


class NotPushed(NotCollected):
    """The machine's commits can't be pushed, or the server rejects them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commits:
    """The commits made on a machine since its creation, checked, in a repository on this host."""

    repository: Path
    url: str
    branch: str
    base: str
    head: str
    subjects: tuple[str, ...]
    """First lines of the commit messages, newest first."""
    files: tuple[str, ...]
    """Every changed path; for a moved file both."""
    warnings: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    """Environment of the git that connects to `url`."""
    waiting: outbox.Waiting | None = None
    """How they were pushed on the machine. None: they are those of its HEAD."""


SHOWN_SUBJECTS = 20
SHOWN_FILES = 100
"""Limits for the JSON; `files_total` is the number of all."""


def pushed_lines(found: Commits) -> list[str]:
    """Return what was pushed, for people."""
    subjects = [f"  {printable(subject[:200])}" for subject in found.subjects[:SHOWN_SUBJECTS]]
    left_out = len(found.subjects) - len(subjects)
    return [
        *subjects,
        *([f"  … and {left_out} more"] if left_out else []),
        *(f"warning: {warning}" for warning in found.warnings),
        f"{count(len(found.subjects), 'commit')}, {count(len(found.files), 'file')}, pushed to {found.branch} of {found.url}",
    ]


def pushed_view(found: Commits) -> dict[str, object]:
    """Return what was pushed, as JSON."""
    return {
        "repo": found.url,
        "branch": found.branch,
        "commit": found.head,
        "commits": len(found.subjects),
        "files": [path.encode("utf-8", "replace").decode() for path in found.files[:SHOWN_FILES]],
        "files_total": len(found.files),
        "warnings": list(found.warnings),
    }


@contextlib.asynccontextmanager
async def fetch(
    machine: Machine,
    shell: Shell,
    branch: str | None,
    *,
    with_workflows: bool,
    settings: Settings,
) -> AsyncIterator[Commits]:
    """Fetch and check the commits for the duration of the block.

    Commits that were pushed on the machine (outbox.py) have precedence over its HEAD. Without `branch` they are for
    `gibil/NAME`, whatever is checked out on the machine. Raises UsageError if there is nothing to push, NotPushed for commits
    that must not be pushed.
    """
    url, base = machine.labels.get("repo"), machine.labels.get("commit")
    if not url or not base:
        raise UsageError(f"{machine.name} was created without a repository, so there is no remote to push to")
    is_chosen = branch is not None
    branch = check_branch(branch) if branch is not None else f"gibil/{machine.name}"
    waiting = await outbox.waiting(shell)
    if waiting is not None and waiting.head == base:
        waiting = None
    environment = {**await git.ssh_environment(), **await for_git(url, settings.github_url)}
    with tempfile.TemporaryDirectory(prefix="gibil-push-") as scratch:
        repository = Path(scratch) / "repository.git"
        bundle = Path(scratch) / "commits.bundle"
        source = CHECKED_OUT if waiting is None else outbox_branch(waiting.branch)
        collected = await collect(shell, base, bundle, name=machine.name, source=source, descends=False)
        if collected is None:
            raise UsageError(f"there is no new commit on {machine.name}: its HEAD is the commit that it was created from")
        if waiting is not None:
            waiting = outbox.Waiting(branch=waiting.branch, head=collected.head)
        try:
            await git.create_repository(repository)
            if not is_chosen:
                default, _ = await ask_ref(repository, url, "HEAD", environment)
                if branch_of(default) == branch:
                    raise UsageError(f"{branch} is the default branch of {url}: set the branch to push to with --branch")
            await git.run(
                "fetch", "-q", "--no-tags", "--no-write-fetch-head", "--", url,
                "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*", git_dir=repository, extra=environment,
            )  # fmt: skip
        except GitError as error:
            raise NotPushed(f"{url} can't be read: {reason(error)}") from error
        if not await _has(repository, base):
            raise NotPushed(f"{machine.name} was created from commit {base[:7]}, which is not in {url}: push that first")
        try:
            checked = await check(
                repository, collected, policy_of_push(with_workflows, settings.protected_paths), name=machine.name
            )
        except CommitRejected as error:
            is_protected = any(problem.code in ("PROTECTED", "GIT_SETTINGS", "SUBMODULE") for problem in error.problems)
            advice = "; review the changes, then push with --with-workflows" if is_protected else ""
            raise NotPushed(f"the commits of {machine.name} can't be pushed: {error.message}{advice}") from error
        except GitError as error:
            raise NotPushed(f"the commits of {machine.name} can't be checked: {reason(error)}") from error
        yield Commits(
            repository=repository, url=url, branch=branch, base=base, head=checked.head, subjects=checked.subjects,
            files=checked.files, warnings=warnings_of(checked.files, checked.unscanned), environment=environment,
            waiting=waiting,
        )  # fmt: skip


def policy_of_push(with_workflows: bool, protected: Sequence[str] = ()) -> CommitPolicy:
    """Return what a user may push: any number of files, and merges of other branches.

    `with_workflows`: the user has reviewed changes of protected files and of git's settings. `protected`: further globs.
    """
    return CommitPolicy(
        most_files=MOST_FILES,
        most_bytes=MOST_BUNDLE_BYTES,
        most_commits=MOST_COMMITS,
        protected=() if with_workflows else (*PROTECTED, *protected),
        git_settings=with_workflows,
        linear=False,
    )


def warnings_of(files: Sequence[str], unscanned: Sequence[str] = ()) -> tuple[str, ...]:
    """Return a warning for each folder of installed files among the paths, and for files that weren't searched for secrets."""
    counts: dict[str, int] = {}
    for path in files:
        parts = path.split("/")
        for position, part in enumerate(parts[:-1]):
            if part in _INSTALLED:
                folder = "/".join(parts[: position + 1])
                counts[folder] = counts.get(folder, 0) + 1
                break
    found = [
        f"the commits change {counts[folder]} file{'' if counts[folder] == 1 else 's'} in {printable(folder, _PATH)}/, "
        "which contains installed files: should it be in .gitignore?"
        for folder in sorted(counts, key=lambda folder: -counts[folder])[:5]
    ]
    found += [f"{printable(path, _PATH)} is too large to be searched for secrets" for path in unscanned[:5]]
    if len(unscanned) > 5:
        found.append(f"too large for that, too: {count(len(unscanned) - 5, 'other file')}")
    return tuple(found)


async def push(commits: Commits, shell: Shell) -> None:
    """Push the commits; on the machine they no longer wait then. Raises NotPushed with the server's message."""
    arguments = ["push", "-q"]
    if await asyncio.to_thread(_is_checkout, commits.url):
        # The hooks of a working checkout are for its user's own commits; those of a bare repository are a server's rules.
        arguments.append(
            "--receive-pack=git -c core.hooksPath=/dev/null -c core.fsmonitor=false -c receive.autogc=false receive-pack"
        )
    try:
        await git.run(
            *arguments, "--", commits.url, f"{commits.head}:refs/heads/{commits.branch}",
            git_dir=commits.repository, extra=commits.environment, limits=_PUSH,
        )  # fmt: skip
    except GitError as error:
        raise NotPushed(f"{commits.branch} was not pushed to {commits.url}: {reason(error)}") from error
    if commits.waiting is not None:
        await outbox.forget(shell, commits.waiting)


def _is_checkout(url: str) -> bool:
    """Return whether a URL is a local folder with a working tree, whose git directory is .git."""
    path = Path(unquote(urlsplit(url).path)) if url.startswith("file://") else Path(url)
    return path.is_absolute() and (path.name == ".git" or (path / ".git").exists())


async def check_base(commits: Commits, base: str) -> None:
    """Check that the commits can be merged into that branch. Raises UsageError."""
    ref = f"refs/heads/{base}"
    if not await _has(commits.repository, ref):
        raise UsageError(f"there is no branch {base} in {commits.url}; set the target branch with --base")
    if not await git.text("rev-list", "--max-count=1", commits.head, f"^{ref}", git_dir=commits.repository, limits=FOREIGN):
        raise UsageError(f"{base} of {commits.url} already has every commit of this machine")


async def _has(repository: Path, name: str) -> bool:
    try:
        await git.run("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}", git_dir=repository)
    except GitError:
        return False
    return True
