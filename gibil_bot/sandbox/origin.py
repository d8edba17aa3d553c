"""Where the code of a machine comes from, found out before anything is forged: its commit, its `.gibil.yml`, the way there.

What anybody may read is cloned by the machine itself. Everything else (a checkout on this box, a private repository, an SSH
address) is read here, where the credentials are, and sent to the machine over SSH: no credential goes along.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from gibil_bot.errors import UsageError
from gibil_bot.planning.schema import parse_repository_file
from gibil_bot.planning.workflow import REPOSITORY_FILE, RepositoryFile
from gibil_bot.runs.sources import SourceError, git
from gibil_bot.sandbox.credentials import for_git, web_address
from gibil_bot.sandbox.git_words import reason

UNREADABLE = "REPOSITORY_UNREADABLE"

_ASK_S = 60.0
_COPY_S = 900.0
_FILE_LIMIT_BYTES = 64 * 1024 + 1

_GITHUB = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,38})/[A-Za-z0-9._-]{1,100}")
_SCP_LIKE = re.compile(r"[A-Za-z0-9._-]+@[A-Za-z0-9.-]+:(?!//).+")
_BRANCH = re.compile(r"(?![-+/])[^\x00-\x20\x7f~^:?*\[\\]{1,200}(?<![/.])")

_QUIETLY = {"GIT_TERMINAL_PROMPT": "0", "GIT_SSH_COMMAND": "ssh -oBatchMode=yes", "LC_ALL": "C"}
_ANONYMOUS = {
    **_QUIETLY,
    "GIT_ASKPASS": "",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_ALLOW_PROTOCOL": "http:https",
}
"""As the machine will be: without the person's helpers and rewritten addresses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """One commit of one repository. Exactly one of `clone_url` and `checkout` is set."""

    repo: str
    """As people know it; a label of the machine."""
    branch: str | None
    """None: the commit is on no branch that we know."""
    sha: str
    file: RepositoryFile | None
    clone_url: str | None = None
    """The machine can clone it, without credentials."""
    checkout: Path | None = None
    """A repository on this box that has the commit."""
    remote_url: str | None = None
    """What `origin` should be on the machine."""


def check_branch(branch: str) -> str:
    """Raises UsageError for what git takes as no branch (git-check-ref-format(1)), or as a forced refspec."""
    if not _BRANCH.fullmatch(branch) or ".." in branch or "@{" in branch or "//" in branch or branch.endswith(".lock"):
        raise UsageError(f"{branch[:80]!r} cannot be the name of a branch")
    return branch


@contextlib.asynccontextmanager
async def read_origin(repo: str, branch: str | None, github_url: str) -> AsyncIterator[Origin]:
    """The origin, for as long as the block lasts: a private repository is copied to a temporary folder meanwhile.

    Raises UsageError, also for a repository that cannot be read, and InvalidWorkflow for its `.gibil.yml`.
    """
    if branch is not None:
        check_branch(branch)
    place = await asyncio.to_thread(_place, repo, github_url)
    if isinstance(place, Path):
        yield await _local(place, repo, branch)
        return
    with tempfile.TemporaryDirectory(prefix="gibil-origin-") as scratch:
        yield await _remote(place, branch, Path(scratch), github_url)


def _place(repo: str, github_url: str) -> Path | str:
    """A folder, or an address for git."""
    if repo.startswith("file://"):
        url = urlsplit(repo)
        if url.netloc not in ("", "localhost"):
            raise UsageError(f"{repo!r} names another host; a file:// address is file:///path")
        return Path(unquote(url.path))
    if "://" in repo:
        url = urlsplit(repo)
        if url.scheme not in ("http", "https", "ssh", "git") or not url.hostname:
            raise UsageError(f"{repo.split('?')[0]!r} is no address of a repository: write https://, ssh:// or file://")
        if url.password is not None or (url.username is not None and url.scheme != "ssh"):
            raise UsageError("the address of a repository must not hold credentials; let git's credential helper keep them")
        return repo
    if _SCP_LIKE.fullmatch(repo):
        return repo
    path = Path(os.path.expanduser(repo))  # and not Path.expanduser, which raises for a user that does not exist
    if repo and path.is_dir():
        return path
    if _GITHUB.fullmatch(repo) and not repo.startswith("."):
        return f"{web_address(github_url)}/{repo.removesuffix('.git')}.git"
    raise UsageError(f"{repo!r} is neither a folder here, nor owner/repo on GitHub, nor the address of a repository")


# A repository on this box


async def _local(path: Path, repo: str, branch: str | None) -> Origin:
    try:
        bare = await git(path, "rev-parse", "--is-bare-repository") == "true"
        folder = Path(await git(path, "rev-parse", "--absolute-git-dir" if bare else "--show-toplevel"))
    except (SourceError, OSError) as error:
        raise UsageError(f"{repo} is not a git checkout: {error}") from error
    names = [f"refs/heads/{branch}", f"refs/remotes/origin/{branch}"] if branch is not None else ["HEAD"]
    sha = None
    for name in names:
        with contextlib.suppress(SourceError):
            sha = await git(folder, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
            break
    if sha is None:
        raise UsageError(f"there is no branch {branch} in {folder}" if branch else f"{folder} has no commit yet")
    if branch is None:
        with contextlib.suppress(SourceError):
            branch = await git(folder, "symbolic-ref", "--short", "--quiet", "HEAD")
    remote = await origin_url(folder)
    return Origin(
        repo=remote or str(folder),
        branch=branch,
        sha=sha,
        file=await _repository_file(folder, sha, {}),
        checkout=folder,
        remote_url=remote,
    )


async def origin_url(folder: Path) -> str | None:
    """Of a checkout's `origin`, without credentials; None where it has none."""
    try:
        url = await git(folder, "config", "--get", "remote.origin.url")
    except SourceError:
        return None
    parts = urlsplit(url) if "://" in url else None
    if parts is not None and parts.scheme in ("http", "https") and "@" in parts.netloc:
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return url


# A repository elsewhere


async def _remote(url: str, branch: str | None, scratch: Path, github_url: str) -> Origin:
    if url.startswith(("http://", "https://")):
        with contextlib.suppress(SourceError, TimeoutError):
            async with asyncio.timeout(_ASK_S):
                return await _public(url, branch, scratch)
    try:
        async with asyncio.timeout(_COPY_S):
            return await _private(url, branch, scratch, {**_QUIETLY, **await for_git(url, github_url)})
    except (SourceError, TimeoutError) as error:
        why = reason(error) if isinstance(error, SourceError) else f"not within {_COPY_S:.0f} s"
        raise UsageError(f"the repository {url} cannot be read: {why}", code=UNREADABLE) from error


async def _public(url: str, branch: str | None, scratch: Path) -> Origin:
    """Ask for the head and its `.gibil.yml` alone. Raises SourceError where it takes credentials, or cannot be reached."""
    probe = scratch / "probe.git"
    await git(scratch, "init", "-q", "--bare", "--template=", str(probe))
    await git(probe, "remote", "add", "origin", url)
    ref, sha = await _head(probe, branch, _ANONYMOUS, url)
    await git(
        probe, "fetch", "-q", "--depth=1", "--no-tags", "--filter=blob:none", "origin", f"+{ref}:refs/heads/head",
        environment=_ANONYMOUS,
    )  # fmt: skip
    sha = await git(probe, "rev-parse", "--verify", "refs/heads/head^{commit}") or sha
    return Origin(
        repo=url,
        branch=_branch_of(ref),
        sha=sha,
        file=await _repository_file(probe, sha, _ANONYMOUS),
        clone_url=url,
        remote_url=url,
    )


async def _private(url: str, branch: str | None, scratch: Path, environment: Mapping[str, str]) -> Origin:
    copy = scratch / "copy.git"
    await git(scratch, "clone", "-q", "--bare", "--template=", "--", url, str(copy), environment=environment)
    ref, sha = await _head(copy, branch, environment, url)
    return Origin(
        repo=url,
        branch=_branch_of(ref),
        sha=sha,
        file=await _repository_file(copy, sha, {}),
        checkout=copy,
        remote_url=url,
    )


async def _head(repository: Path, branch: str | None, environment: Mapping[str, str], url: str) -> tuple[str, str]:
    """(ref, commit) of a branch, or of the default branch. Raises UsageError where there is none."""
    wanted = "HEAD" if branch is None else f"refs/heads/{branch}"
    answer = await git(repository, "ls-remote", "--symref", "origin", wanted, environment=environment)
    ref, sha = wanted, ""
    for line in answer.splitlines():
        value, _, name = line.partition("\t")
        if name == wanted:
            if value.startswith("ref: "):
                ref = value.removeprefix("ref: ")
            else:
                sha = value
    if not sha:
        what = f"branch {branch}" if branch is not None else "commit"
        raise UsageError(f"there is no {what} in {url}", code=UNREADABLE)
    return ref, sha


def _branch_of(ref: str) -> str | None:
    return ref.removeprefix("refs/heads/") if ref.startswith("refs/heads/") else None


async def _repository_file(repository: Path, sha: str, environment: Mapping[str, str]) -> RepositoryFile | None:
    """The checked `.gibil.yml` of that commit. Raises InvalidWorkflow."""
    if not await git(repository, "ls-tree", "--name-only", sha, "--", f":(top){REPOSITORY_FILE}", environment=environment):
        return None
    # With its blank lines: problems are told by line.
    text = await git(repository, "show", f"{sha}:{REPOSITORY_FILE}", environment=environment, strip=False)
    return parse_repository_file(REPOSITORY_FILE, text.encode("utf-8", "surrogateescape")[:_FILE_LIMIT_BYTES])
