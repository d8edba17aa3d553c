"""The source of a machine's code, resolved before the machine is created: the commit, its `.gibil.yml`, and how to copy it.

The machine itself clones a public repository. Everything else (a checkout on this box, a private repository, an SSH address) is
read here, where the credentials are, and sent to the machine over SSH without credentials.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from gibil_bot import git
from gibil_bot.commits.credentials import for_git, web_address
from gibil_bot.commits.git_errors import reason
from gibil_bot.commits.identity import Identity, identity
from gibil_bot.commits.local_repository import PROMISOR, branch_of, explained, open_repository, set_promisor
from gibil_bot.commits.remotes import ask_ref, check_branch
from gibil_bot.commits.submodules import Modules, Surroundings, surroundings_of
from gibil_bot.errors import UsageError
from gibil_bot.git import GitError
from gibil_bot.limits import REPOSITORY_FILE
from gibil_bot.model import Checkout
from gibil_bot.planning.schema import parse_repository_file
from gibil_bot.planning.workflow import RepositoryFile
from gibil_bot.runs.commit_files import repository_file

UNREADABLE = "REPOSITORY_UNREADABLE"

_ASK_S = 60.0
_COPY_S = 900.0

_GITHUB = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,38})/[A-Za-z0-9._-]{1,100}")
_SCP_LIKE = re.compile(r"[A-Za-z0-9._-]+@[A-Za-z0-9.-]+:(?!//).+")


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeSource:
    """One commit of one repository. Exactly one of `clone_url` and `checkout` is set."""

    repo: str
    """The repository's name for people; a label of the machine."""
    branch: str | None
    """None: the commit isn't on a known branch."""
    sha: str
    file: RepositoryFile | None
    clone_url: str | None = None
    """The machine can clone this URL without credentials."""
    checkout: Path | None = None
    """A repository that we created, with the commit; it exists inside the block of `read_source`."""
    promisor: str | None = None
    """The URL from which a partial clone fetches missing objects."""
    surroundings: Surroundings | None = None
    """Where the submodules and files of Git LFS of `checkout` come from."""
    remote_url: str | None = None
    """URL of the remote `origin` on the machine."""
    identity: Identity | None = None
    """Author of commits on the machine."""

    @property
    def options(self) -> Checkout:
        """Return what of the repository its `.gibil.yml` asks for."""
        return Checkout(**(self.file.checkout if self.file is not None else {}))  # type: ignore[arg-type]  # checked by the schema


@contextlib.asynccontextmanager
async def read_source(repo: str, branch: str | None, github_url: str) -> AsyncIterator[CodeSource]:
    """Resolve a source for the duration of the block, in which a private repository is copied to a temporary directory.

    Raises UsageError, also for a repository that can't be read, and InvalidWorkflow for its `.gibil.yml`.
    """
    if branch is not None:
        check_branch(branch)
    location = await asyncio.to_thread(_locate, repo, github_url)
    if isinstance(location, Path):
        async with _local(location, repo, branch, github_url) as found:
            yield found
        return
    with tempfile.TemporaryDirectory(prefix="gibil-origin-") as scratch:
        yield await _remote(location, branch, Path(scratch), github_url)


def _locate(repo: str, github_url: str) -> Path | str:
    """Return the directory or the git URL that the user means. Raises UsageError."""
    if repo.startswith("file://"):
        url = urlsplit(repo)
        if url.netloc not in ("", "localhost"):
            raise UsageError(f"{repo!r} names another host; a file:// address has the form file:///path")
        return Path(unquote(url.path))
    if "://" in repo:
        url = urlsplit(repo)
        if url.scheme not in ("http", "https", "ssh", "git") or not url.hostname:
            raise UsageError(f"{repo.split('?')[0]!r} isn't the address of a repository: write https://, ssh:// or file://")
        if url.password is not None or (url.username is not None and url.scheme != "ssh"):
            raise UsageError("the address of a repository must not contain credentials; use git's credential helper")
        return repo
    if _SCP_LIKE.fullmatch(repo):
        return repo
    path = Path(os.path.expanduser(repo))  # Path.expanduser raises for a user that doesn't exist
    if repo and path.is_dir():
        return path
    if _GITHUB.fullmatch(repo) and not repo.startswith("."):
        return f"{web_address(github_url)}/{repo.removesuffix('.git')}.git"
    raise UsageError(f"{repo!r} is neither a local directory, nor owner/repo on GitHub, nor the address of a repository")


# Local repositories


@contextlib.asynccontextmanager
async def _local(path: Path, repo: str, branch: str | None, github_url: str) -> AsyncIterator[CodeSource]:
    async with contextlib.AsyncExitStack() as stack:
        try:
            found = await stack.enter_async_context(open_repository(path))
        except (GitError, OSError) as error:
            raise UsageError(f"{repo} is not a git checkout: {error}") from error
        try:
            sha = await (found.head() if branch is None else found.branch(branch))
            if sha is None:
                problem = f"there is no branch {branch} in {found.folder}" if branch else f"{found.folder} has no commit yet"
                raise UsageError(problem)
            await found.copy_refs(sha)
            remote = found.origin_url()
            current = asyncio.create_task(found.current_branch())
            author_task = asyncio.create_task(identity(found.git_dir))
            try:
                file = await _repository_file(found.view, sha)
            finally:
                await asyncio.gather(current, author_task, return_exceptions=True)
            source = CodeSource(
                repo=remote or str(found.folder),
                branch=branch if branch is not None else current.result(),
                sha=sha,
                file=file,
                checkout=found.view,
                promisor=found.promisor,
                surroundings=surroundings_of(found, github_url),
                remote_url=remote or str(found.folder),  # as `git clone` names it; the machine can't reach it
                identity=author_task.result(),
            )
        except GitError as error:
            raise UsageError(f"can't read {repo}: {explained(error, found.promisor).message}", code=UNREADABLE) from error
        yield source


async def origin_url(folder: Path) -> str | None:
    """Return the URL of a checkout's `origin`, without credentials; None without an `origin`, or without a checkout."""
    try:
        async with open_repository(folder) as found:
            return found.origin_url()
    except (GitError, OSError):
        return None


# Remote repositories


async def _remote(url: str, branch: str | None, scratch: Path, github_url: str) -> CodeSource:
    if url.startswith(("http://", "https://")):
        with contextlib.suppress(GitError, TimeoutError):
            async with asyncio.timeout(_ASK_S):
                found = await _public(url, branch, scratch)
                # The files of Git LFS are fetched here, because they may need credentials.
                if found.file is None or not found.file.checkout.get("lfs"):
                    return found
    try:
        async with asyncio.timeout(_COPY_S):
            environment = {**await git.ssh_environment(), **await for_git(url, github_url)}
            found = await _private(url, branch, scratch, environment)
            return replace(found, surroundings=Surroundings(modules=Modules(remote=url), github_url=github_url))
    except (GitError, TimeoutError) as error:
        why = reason(error) if isinstance(error, GitError) else f"no answer within {_COPY_S:.0f} s"
        raise UsageError(f"can't read the repository {url}: {why}", code=UNREADABLE) from error


async def _public(url: str, branch: str | None, scratch: Path) -> CodeSource:
    """Fetch only the head commit and its `.gibil.yml`. Raises GitError if it needs credentials or the host is unreachable."""
    probe = scratch / "probe.git"
    await git.create_repository(probe)
    anonymous = git.anonymous_environment()
    ref, sha = await _head(probe, branch, anonymous, url)
    await set_promisor(probe, url)
    await git.run(
        "fetch", "-q", "--depth=1", "--no-tags", "--filter=blob:none", PROMISOR, f"+{ref}:refs/heads/head",
        git_dir=probe, extra=anonymous,
    )  # fmt: skip
    sha = await git.text("rev-parse", "--verify", "refs/heads/head^{commit}", git_dir=probe, extra=anonymous) or sha
    return CodeSource(
        repo=url,
        branch=branch_of(ref),
        sha=sha,
        file=await _repository_file(probe, sha, anonymous),
        clone_url=url,
        remote_url=url,
        identity=await identity(),
    )


async def _private(url: str, branch: str | None, scratch: Path, environment: Mapping[str, str]) -> CodeSource:
    copy = scratch / "copy.git"
    await git.create_repository(copy)
    ref, sha = await _head(copy, branch, environment, url)
    await git.run(
        "fetch", "-q", "--no-tags", "--no-write-fetch-head", "--", url,
        "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*", f"+{ref}:refs/gibil/head", git_dir=copy, extra=environment,
    )  # fmt: skip
    sha = await git.text("rev-parse", "--verify", "refs/gibil/head^{commit}", git_dir=copy) or sha
    if (name := branch_of(ref)) is not None:
        await git.run("update-ref", f"refs/remotes/origin/{name}", sha, git_dir=copy)
    return CodeSource(
        repo=url,
        branch=branch_of(ref),
        sha=sha,
        file=await _repository_file(copy, sha),
        checkout=copy,
        remote_url=url,
        identity=await identity(),
    )


async def _head(repository: Path, branch: str | None, environment: Mapping[str, str | None], url: str) -> tuple[str, str]:
    """Return (ref, commit) of a branch, or of the default branch. Raises UsageError if it doesn't exist."""
    ref, sha = await ask_ref(repository, url, "HEAD" if branch is None else f"refs/heads/{branch}", environment)
    if not sha:
        missing = f"branch {branch}" if branch is not None else "commit"
        raise UsageError(f"there is no {missing} in {url}", code=UNREADABLE)
    return ref, sha


async def _repository_file(repository: Path, sha: str, extra: Mapping[str, str | None] | None = None) -> RepositoryFile | None:
    """Return the parsed `.gibil.yml` of a commit, if it has one. Raises InvalidWorkflow, GitError."""
    data = await repository_file(repository, sha, extra or {})
    return parse_repository_file(REPOSITORY_FILE, data) if data is not None else None
