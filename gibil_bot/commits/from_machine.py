"""Fetches commits from a machine and pushes them with the user's credentials; the machine has no credentials.

The machine isn't trusted. The push target is the label that we put on the machine, not what its git reports. The commits arrive
as a bundle, which is unpacked and checked in a separate repository, without any hooks. Only then are they pushed, with the
user's own credentials and never by force.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shlex
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from gibil_bot import git
from gibil_bot.commits.credentials import for_git
from gibil_bot.commits.git_errors import reason
from gibil_bot.commits.local_repository import branch_of
from gibil_bot.commits.remotes import ask_ref, check_branch
from gibil_bot.errors import GibilError, UsageError
from gibil_bot.git import FOREIGN, GitError, Limits, TooExpensive
from gibil_bot.model import Machine
from gibil_bot.ports import Shell
from gibil_bot.scripts.clone import WORKSPACE
from gibil_bot.ssh.answers import last_line, printable

MOST_BYTES = 256 * 1024 * 1024
"""Limit for a bundle."""
MOST_FILES = 20_000
MOST_COMMITS = 20_000
MOST_NAME_BYTES = 8 * 1024 * 1024
"""Limit for all paths, and for all subjects of commits."""

_DIFFERENCE = Limits(memory_bytes=96 * 1024**2)
"""Enough for about 200,000 paths."""
_PUSH = Limits(memory_bytes=1024**3, address_bytes=4 * 1024**3, cpu_s=600)
"""Higher, because git also reads the repository's own history, which is trusted."""
_PATH = 200
"""Maximum length of a path in a message."""
_QUERY_S = 60.0
_BUNDLE_S = 600.0
_CHECK_S = 300.0
_OUTGOING = "refs/gibil/outgoing"
_MOST_MESSAGE_BYTES = 64 * 1024
_SHA = re.compile(r"[0-9a-f]{40}")
# Paths that decide what runs with the repository's secrets, on GitHub's machines or on gibil's.
PROTECTED = (".github/workflows/", ".github/actions/", ".gibil/", ".gibil.yml", ".gibil.yaml")
_PROTECTED_NAMES = frozenset({".github", *(each.rstrip("/") for each in PROTECTED)})
_PROTECTED_FOLDERS = tuple(each for each in PROTECTED if each.endswith("/"))
_INSTALLED = (".venv", "venv", "node_modules", "__pycache__", ".tox", "site-packages")
"""Folders with files that tools install, which are rarely meant to be committed."""


class NotPushed(GibilError):
    """The machine's commits can't be pushed, or the server rejects them."""

    code = "NOT_PUSHED"


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


@contextlib.asynccontextmanager
async def fetch(
    machine: Machine, shell: Shell, branch: str | None, *, with_workflows: bool, github_url: str
) -> AsyncIterator[Commits]:
    """Fetch and check the commits for the duration of the block.

    Without `branch` they are for `gibil/NAME`, whatever is checked out on the machine. Raises UsageError if there is nothing to
    push, NotPushed for commits that must not be pushed.
    """
    url, base = machine.labels.get("repo"), machine.labels.get("commit")
    if not url or not base:
        raise UsageError(f"{machine.name} was created without a repository, so there is no remote to push to")
    is_chosen = branch is not None
    branch = check_branch(branch) if branch is not None else f"gibil/{machine.name}"
    head = await _head_of(machine, shell)
    if head == base:
        raise UsageError(f"there is no new commit on {machine.name}: its HEAD is the commit that it was created from")
    environment = {**await git.ssh_environment(), **await for_git(url, github_url)}
    with tempfile.TemporaryDirectory(prefix="gibil-push-") as scratch:
        repository = Path(scratch) / "repository.git"
        bundle = Path(scratch) / "commits.bundle"
        await _save_bundle(machine, shell, head, base, bundle)
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
            subjects, files = await unpack(repository, bundle, base=base, head=head, name=machine.name)
        except GitError as error:
            raise NotPushed(f"the commits of {machine.name} can't be checked: {reason(error)}") from error
        touched = [path for path in files if is_protected(path)]
        if touched and not with_workflows:
            raise NotPushed(
                f"the commits change {printable(touched[0], _PATH)}, which decides what runs with the repository's secrets; "
                "review it, then push with --with-workflows"
            )
        yield Commits(
            repository=repository, url=url, branch=branch, base=base, head=head, subjects=subjects, files=files,
            warnings=warnings_of(files), environment=environment,
        )  # fmt: skip


def is_protected(path: str) -> bool:
    """Return whether a path decides what runs with the repository's secrets. Ignores case, as some file systems do."""
    folded = path.casefold()
    # A symbolic link, a submodule or a file in place of one of the folders counts too.
    return folded in _PROTECTED_NAMES or folded.startswith(_PROTECTED_FOLDERS)


def warnings_of(files: Sequence[str]) -> tuple[str, ...]:
    """Return a warning for each folder of installed files among the paths."""
    counts: dict[str, int] = {}
    for path in files:
        parts = path.split("/")
        for position, part in enumerate(parts[:-1]):
            if part in _INSTALLED:
                folder = "/".join(parts[: position + 1])
                counts[folder] = counts.get(folder, 0) + 1
                break
    return tuple(
        f"the commits change {counts[folder]} file{'' if counts[folder] == 1 else 's'} in {printable(folder, _PATH)}/, "
        "which contains installed files: should it be in .gitignore?"
        for folder in sorted(counts, key=lambda folder: -counts[folder])[:5]
    )


async def unpack(repository: Path, bundle: Path, *, base: str, head: str, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Unpack a machine's bundle; return the commits' subjects, newest first, and the paths that differ from `base`.

    Every object is checked, by a git with limited memory and processor time. Raises NotPushed, GitError.
    """
    await git.run(
        "fetch", "-q", "--no-tags", "--no-write-fetch-head", str(bundle), f"+{_OUTGOING}:refs/gibil/incoming",
        git_dir=repository, settings=("fetch.fsckObjects=true",), limits=FOREIGN, within_s=_CHECK_S,
    )  # fmt: skip
    incoming = await git.text("rev-parse", "--verify", "refs/gibil/incoming", git_dir=repository, limits=FOREIGN)
    if incoming != head:
        raise NotPushed(f"the bundle from {name} doesn't contain its HEAD, perhaps because of a concurrent commit; try again")
    return await _subjects(repository, base, head), await _changed(repository, base, head)


async def _subjects(repository: Path, base: str, head: str) -> tuple[str, ...]:
    records = await _records(
        repository, "rev-list", "--encoding=UTF-8", "--format=%s%x00", head, f"^{base}",
        most=MOST_COMMITS, limits=FOREIGN, what="the first lines of the commits' messages are",
        too_many=f"there are more than {MOST_COMMITS:,} new commits: push them in parts, or from another clone",
    )  # fmt: skip
    # `commit SHA`, a line feed, the subject.
    return tuple(record.lstrip("\n").partition("\n")[2] for record in records)


async def _changed(repository: Path, base: str, head: str) -> tuple[str, ...]:
    """Return the changed paths. Limited, because nested trees can describe more paths than fit into any memory."""
    too_many = (
        f"the commits change more than {MOST_FILES:,} files: are installed or built files committed? "
        "The intended changes can be pushed from another clone"
    )
    try:
        records = await _records(
            repository, "diff-tree", "-r", "-z", "--no-renames", "--name-only", "--no-ext-diff", "--no-textconv",
            "--ignore-submodules=none", base, head,
            most=MOST_FILES, limits=_DIFFERENCE, what="the paths that the commits change are", too_many=too_many,
        )  # fmt: skip
    except TooExpensive as error:  # git collects all paths before it prints the first
        raise NotPushed(too_many) from error
    return tuple(records)


async def _records(repository: Path, *arguments: str, most: int, limits: Limits, what: str, too_many: str) -> list[str]:
    """Return git's output as records that end with a NUL byte.

    Raises NotPushed above `most` records (`too_many`) and above MOST_NAME_BYTES (`what` … longer), GitError.
    """
    found: list[bytes] = []
    size = 0
    rest = b""

    def collect(data: bytes) -> None:
        nonlocal size, rest
        size += len(data)
        if size > MOST_NAME_BYTES:
            raise NotPushed(f"{what} longer than {MOST_NAME_BYTES // 1024**2} MiB: push them from another clone")
        *whole, rest = (rest + data).split(b"\0")
        found.extend(whole)
        if len(found) > most:
            raise NotPushed(too_many)

    await git.feed(collect, *arguments, git_dir=repository, limits=limits, within_s=_CHECK_S)
    return [record.decode("utf-8", "surrogateescape") for record in found]


async def push(commits: Commits) -> None:
    """Push the commits. Raises NotPushed with the server's message."""
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


async def _head_of(machine: Machine, shell: Shell) -> str:
    """Return the commit of the workspace."""
    answer = await shell.run(f"cd {WORKSPACE} && git rev-parse --verify HEAD", timeout_s=_QUERY_S)
    head = answer.stdout.decode(errors="replace").split("\n", 1)[0].strip()
    if answer.exit_status != 0 or not _SHA.fullmatch(head):
        why = last_line(answer.stderr, "is it still being cloned?")
        raise UsageError(f"there is no commit in {WORKSPACE} on {machine.name}: {why}")
    return head


async def _save_bundle(machine: Machine, shell: Shell, head: str, base: str, path: Path) -> None:
    """Save the bundle. Raises NotPushed as soon as more than MOST_BYTES arrive: the machine may never stop sending."""
    size = 0
    messages = bytearray()

    with path.open("xb") as file:

        def take_output(stream: str, data: bytes) -> None:
            nonlocal size
            if stream != "stdout":
                messages.extend(data[: _MOST_MESSAGE_BYTES - len(messages)])
                return
            size += len(data)
            if size > MOST_BYTES:
                raise NotPushed(f"the commits of {machine.name} are larger than {MOST_BYTES // 1024**2} MiB")
            file.write(data)

        # Without the environment of tasks, whose PATH must not choose the git. With a separate ref, because a tag or a branch
        # on the machine may be named HEAD.
        command = (
            f"cd {WORKSPACE} && git -c core.hooksPath=/dev/null update-ref {_OUTGOING} {head} && "
            f"git -c core.hooksPath=/dev/null bundle create -q - {_OUTGOING} ^{shlex.quote(base)}"
        )
        result = await shell.run(command, timeout_s=_BUNDLE_S, on_output=take_output, keep_output=False)
    if result.exit_status != 0:
        raise NotPushed(f"{machine.name} could not pack its commits: {last_line(bytes(messages))}")
