"""Opens a pull request with the commits of a machine: fetched, checked, pushed and opened from this host, without a token
there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from gibil_bot.commits import from_machine
from gibil_bot.commits.credentials import find_credential, web_address
from gibil_bot.commits.from_machine import Commits
from gibil_bot.commits.remotes import check_branch
from gibil_bot.config import Secret, Settings
from gibil_bot.errors import GitHubError, UsageError
from gibil_bot.github.api.user_pull_requests import (
    LONGEST_BODY,
    LONGEST_TITLE,
    NamedRepository,
    NewPullRequest,
    OpenPullRequest,
    PullRequests,
    is_same,
)
from gibil_bot.model import Machine
from gibil_bot.ports import Shell

ConnectGitHub = Callable[[Secret, str], PullRequests]
"""Opens the API with a user's token; the second argument describes where the token was found."""

_NAME = re.compile(r"[A-Za-z0-9_.-]+/(?!\.{1,2}$)[A-Za-z0-9_.-]+")
_SCP_LIKE = re.compile(r"(?:[^@/]+@)?([^:/]+):(?!/)(.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class PullRequestOptions:
    """Options of a new pull request.

    `title` None: the message of the only commit. `base` None: the branch that the machine was created from, else the default
    branch. `branch` None: gibil/NAME. `into` (owner/name) None: the repository that the commits are pushed to, or its parent if
    that is a fork.
    """

    title: str | None = None
    body: str = ""
    into: str | None = None
    base: str | None = None
    branch: str | None = None
    draft: bool = False
    with_workflows: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PullRequestOpened:
    """`commits` describes what was pushed; its repository on this host no longer exists. The pull request is in `into`
    (owner/name).
    """

    commits: Commits
    into: str
    base: str
    number: int
    url: str
    draft: bool
    already_existed: bool


async def open_pull_request(
    machine: Machine, shell: Shell, options: PullRequestOptions, settings: Settings, connect: ConnectGitHub
) -> PullRequestOpened:
    """Push the commits and open a pull request, or find the open one from that branch to that base.

    An existing pull request gets the new commits and keeps its title and text. Raises UsageError, NotPushed, and GitHubError;
    after that, nothing or only the branch was pushed, so it can be called again.
    """
    _check(options)
    label = machine.labels.get("repo")
    if not label:
        raise UsageError(f"{machine.name} was created without a repository, so no pull request can be opened")
    repository = github_repository(label, settings.github_url)
    credential = await find_credential(settings.github_url, repository)
    github = connect(credential.token, credential.source)
    try:
        pushed = await github.repository(repository)
        if pushed.is_archived:
            raise GitHubError(f"{pushed.full_name} is archived: nothing can be pushed to it")
        into = await _into(github, options, pushed)
        async with from_machine.fetch(
            machine, shell, options.branch, with_workflows=options.with_workflows, settings=settings
        ) as found:
            base = await _base(github, machine, options, found, pushed, into)
            existing = await github.find(into.full_name, pushed.full_name, found.branch, base)
            title = _title(machine, options, found) if existing is None else ""
            await from_machine.push(found, shell)
        is_new = False
        if existing is None:
            existing, is_new = await _create(github, pushed, into, options, found, base, title)
    finally:
        await github.close()
    return PullRequestOpened(
        commits=found,
        into=into.full_name,
        base=base,
        number=existing.number,
        url=existing.url,
        draft=existing.draft,
        already_existed=not is_new,
    )


def github_repository(url: str, github_url: str) -> str:
    """Return owner/name for a git URL at that GitHub. Raises UsageError for other URLs."""
    web = urlsplit(web_address(github_url))
    scp = _SCP_LIKE.fullmatch(url) if "://" not in url else None
    if scp is not None:
        host, path = scp[1], scp[2]
    else:
        parts = urlsplit(url)
        # The port for SSH differs from the one for the web.
        host = parts.netloc.rpartition("@")[2] if parts.scheme in ("http", "https") else parts.hostname or ""
        path = unquote(parts.path).removeprefix(web.path)
    github_host = web.netloc if scp is None and urlsplit(url).scheme in ("http", "https") else web.hostname or ""
    name = path.strip("/").removesuffix(".git")
    # ssh.github.com: https://docs.github.com/en/authentication/troubleshooting-ssh/using-ssh-over-the-https-port
    hosts = {f"{prefix}{github_host.lower()}" for prefix in ("", "ssh.", "www.")}
    if host.lower() not in hosts or not _NAME.fullmatch(name):
        raise UsageError(
            f"the machine was created from {url}, which isn't a repository at GitHub ({web.geturl()}, by GIBIL_GITHUB_URL): "
            "`gibil push` pushes the commits"
        )
    return name


def _check(options: PullRequestOptions) -> None:
    """Reject what GitHub would reject, before anything is done."""
    if options.title is not None and not options.title.strip():
        raise UsageError("the title of a pull request can't be empty")
    if len(options.title or "") > LONGEST_TITLE:
        raise UsageError(f"the title has {len(options.title or '')} characters; GitHub allows {LONGEST_TITLE}")
    if len(options.body) > LONGEST_BODY:
        raise UsageError(f"the body has {len(options.body)} characters; GitHub allows {LONGEST_BODY}")
    if options.into is not None and not _NAME.fullmatch(options.into):
        raise UsageError(f"{options.into[:80]!r} is not a repository name: write --into OWNER/REPO")
    for branch in (options.base, options.branch):
        if branch is not None:
            check_branch(branch)


async def _into(github: PullRequests, options: PullRequestOptions, pushed: NamedRepository) -> NamedRepository:
    """Return the pull request's repository, which must be in the same network as the one that is pushed to."""
    name = options.into or (pushed.parent if pushed.is_fork else pushed.full_name)
    if name is None:
        raise GitHubError(
            f"{pushed.full_name} is a fork of a repository that GitHub doesn't show to the token: {_use_fork(pushed)}"
        )
    if is_same(name, pushed.full_name):
        return pushed
    try:
        into = await github.repository(name)
    except GitHubError as error:
        raise _with_alternative(error, options, pushed, f"{pushed.full_name} is a fork, and {error.message}") from None
    if None not in (into.root, pushed.root) and into.root != pushed.root:
        raise UsageError(f"{into.full_name} is not related to {pushed.full_name}: set --into to its parent or a related fork")
    if into.is_archived:
        alternative = "" if options.into else f"; {_use_fork(pushed)}"
        raise GitHubError(f"{into.full_name} is archived: it doesn't accept pull requests{alternative}")
    return into


def _with_alternative(error: GitHubError, options: PullRequestOptions, pushed: NamedRepository, text: str) -> GitHubError:
    """Add the option for another repository, if the token has no access to the parent and the user didn't set --into."""
    may_not = options.into is None and error.status in (403, 404) and error.retry_after_s is None
    return GitHubError(
        f"{text}; {_use_fork(pushed)}" if may_not else error.message, status=error.status, retry_after_s=error.retry_after_s
    )


def _use_fork(pushed: NamedRepository) -> str:
    return f"--into {pushed.full_name} opens the pull request in the fork itself"


async def _base(
    github: PullRequests,
    machine: Machine,
    options: PullRequestOptions,
    found: Commits,
    pushed: NamedRepository,
    into: NamedRepository,
) -> str:
    """Return an existing branch that lacks some of the machine's commits, as far as this host knows. Raises UsageError."""
    created_from = machine.labels.get("branch")
    if into is not pushed:
        if options.base is not None:
            if not await github.has_branch(into.full_name, options.base):
                raise UsageError(f"there is no branch {options.base} in {into.full_name}; set the target branch with --base")
            return options.base
        # This may be the same name as the commits' branch: main of a fork goes to main of its parent.
        if created_from and await github.has_branch(into.full_name, created_from):
            return created_from
        return into.default_branch
    base = options.base or (created_from if created_from not in (None, found.branch) else into.default_branch)
    assert base is not None
    if base == found.branch:
        raise UsageError(
            f"the commits are on {base}, which is also the target of the pull request: omit --branch, or set another branch"
        )
    await from_machine.check_base(found, base)
    return base


def _title(machine: Machine, options: PullRequestOptions, found: Commits) -> str:
    if options.title is not None:
        return _valid_unicode(options.title)
    if len(found.subjects) != 1 or not found.subjects[0].strip():
        raise UsageError(f"{machine.name} has {len(found.subjects)} new commits: describe them with --title")
    return _valid_unicode(found.subjects[0])[:LONGEST_TITLE]


async def _create(
    github: PullRequests,
    pushed: NamedRepository,
    into: NamedRepository,
    options: PullRequestOptions,
    found: Commits,
    base: str,
    title: str,
) -> tuple[OpenPullRequest, bool]:
    new = NewPullRequest(
        repository=into.full_name,
        head_repository=pushed.full_name,
        head=found.branch,
        base=base,
        title=title,
        body=_valid_unicode(options.body),
        draft=options.draft,
    )
    try:
        return await github.create(new)
    except GitHubError as error:
        text = f"{found.branch} was pushed, but the pull request was not opened: {error.message}"
        failure = GitHubError(text, status=error.status, retry_after_s=error.retry_after_s)
        if into is pushed:
            raise failure from None
        if not is_same(into.full_name.partition("/")[0], pushed.full_name.partition("/")[0]):
            # https://docs.github.com/en/authentication/keeping-your-account-and-data-secure/managing-your-personal-access-tokens
            text += "; a fine-grained token covers the repositories of one owner, a classic one all that you can access"
        raise _with_alternative(failure, options, pushed, text) from None


def _valid_unicode(text: str) -> str:
    """Replace bytes that aren't UTF-8: git and the command line pass them as surrogates, which JSON can't represent."""
    return text.encode("utf-8", "replace").decode()
