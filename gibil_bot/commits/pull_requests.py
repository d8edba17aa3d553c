"""A pull request with the commits of a machine: taken off it, checked, pushed and opened from here. No token goes there."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from gibil_bot.commits import from_machine
from gibil_bot.commits.credentials import find_credential, web_address
from gibil_bot.commits.from_machine import Commits
from gibil_bot.commits.remotes import check_branch
from gibil_bot.config import Secret
from gibil_bot.errors import GitHubError, UsageError
from gibil_bot.github.api.user_pull_requests import (
    LONGEST_BODY,
    LONGEST_TITLE,
    NewPullRequest,
    OpenPullRequest,
    Place,
    PullRequests,
    is_same,
)
from gibil_bot.model import Machine
from gibil_bot.ports import Shell

ConnectGitHub = Callable[[Secret, str], PullRequests]
"""Opens the API with a user's token; the second argument says where the token was found."""

_NAME = re.compile(r"[A-Za-z0-9_.-]+/(?!\.{1,2}$)[A-Za-z0-9_.-]+")
_SCP_LIKE = re.compile(r"(?:[^@/]+@)?([^:/]+):(?!/)(.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class PullRequestWish:
    """`title` None: the message of the only commit. `base` None: where the machine was forged from, else the default branch.
    `branch` None: gibil/NAME. `into` (owner/name) None: the repository that the commits are
    pushed to or, where that is a fork, its parent."""

    title: str | None = None
    body: str = ""
    into: str | None = None
    base: str | None = None
    branch: str | None = None
    draft: bool = False
    with_workflows: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PullRequestOpened:
    """`commits` describes what was pushed; its repository on this box is gone. The pull request is in `into` (owner/name)."""

    commits: Commits
    into: str
    base: str
    number: int
    url: str
    draft: bool
    already_existed: bool


async def open_pull_request(
    machine: Machine, shell: Shell, wish: PullRequestWish, github_url: str, connect: ConnectGitHub
) -> PullRequestOpened:
    """Or find the open one from that branch to that base, which then has the new commits; its title and text stay as they are.

    Raises UsageError, NotPushed, and GitHubError, after which nothing or the branch alone was pushed: it can be called again.
    """
    _check(wish)
    label = machine.labels.get("repo")
    if not label:
        raise UsageError(f"{machine.name} was forged without a repository: there is nowhere to open a pull request")
    repository = github_repository(label, github_url)
    credential = await find_credential(github_url, repository)
    github = connect(credential.token, credential.source)
    try:
        pushed = await github.place(repository)
        if pushed.is_archived:
            raise GitHubError(f"{pushed.full_name} is archived: nothing can be pushed to it")
        into = await _into(github, wish, pushed)
        async with from_machine.fetch(
            machine, shell, wish.branch, with_workflows=wish.with_workflows, github_url=github_url
        ) as found:
            base = await _base(github, machine, wish, found, pushed, into)
            existing = await github.find(into.full_name, pushed.full_name, found.branch, base)
            title = _title(machine, wish, found) if existing is None else ""
            await from_machine.push(found)
        is_new = False
        if existing is None:
            existing, is_new = await _opened(github, pushed, into, wish, found, base, title)
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
    """owner/name by an address that git knows, if it is at that GitHub. Raises UsageError."""
    web = urlsplit(web_address(github_url))
    scp = _SCP_LIKE.fullmatch(url) if "://" not in url else None
    if scp is not None:
        host, path = scp[1], scp[2]
    else:
        parts = urlsplit(url)
        # The port of SSH is another one than that of the web.
        host = parts.netloc.rpartition("@")[2] if parts.scheme in ("http", "https") else parts.hostname or ""
        path = unquote(parts.path).removeprefix(web.path)
    ours = web.netloc if scp is None and urlsplit(url).scheme in ("http", "https") else web.hostname or ""
    name = path.strip("/").removesuffix(".git")
    # ssh.github.com: https://docs.github.com/en/authentication/troubleshooting-ssh/using-ssh-over-the-https-port
    known = {f"{prefix}{ours.lower()}" for prefix in ("", "ssh.", "www.")}
    if host.lower() not in known or not _NAME.fullmatch(name):
        raise UsageError(
            f"the machine was forged from {url}, which is no repository at GitHub ({web.geturl()}, by GIBIL_GITHUB_URL): "
            "`gibil push` pushes the commits"
        )
    return name


def _check(wish: PullRequestWish) -> None:
    """What GitHub would refuse, before anything is done."""
    if wish.title is not None and not wish.title.strip():
        raise UsageError("the title of a pull request cannot be empty")
    if len(wish.title or "") > LONGEST_TITLE:
        raise UsageError(f"the title has {len(wish.title or '')} characters; GitHub takes {LONGEST_TITLE}")
    if len(wish.body) > LONGEST_BODY:
        raise UsageError(f"the body has {len(wish.body)} characters; GitHub takes {LONGEST_BODY}")
    if wish.into is not None and not _NAME.fullmatch(wish.into):
        raise UsageError(f"{wish.into[:80]!r} is no repository that a pull request can go to: say --into OWNER/REPO")
    for branch in (wish.base, wish.branch):
        if branch is not None:
            check_branch(branch)


async def _into(github: PullRequests, wish: PullRequestWish, pushed: Place) -> Place:
    """The repository that the pull request goes to: one of the network of the one that is pushed to."""
    name = wish.into or (pushed.parent if pushed.is_fork else pushed.full_name)
    if name is None:
        raise GitHubError(
            f"{pushed.full_name} is a fork of a repository that GitHub does not show to the token: {_elsewhere(pushed)}"
        )
    if is_same(name, pushed.full_name):
        return pushed
    try:
        into = await github.place(name)
    except GitHubError as error:
        raise _with_a_way_out(error, wish, pushed, f"{pushed.full_name} is a fork, and {error.message}") from None
    if None not in (into.root, pushed.root) and into.root != pushed.root:
        raise UsageError(
            f"{into.full_name} has nothing to do with {pushed.full_name}: --into takes its parent, or another fork of that"
        )
    if into.is_archived:
        way_out = "" if wish.into else f"; {_elsewhere(pushed)}"
        raise GitHubError(f"{into.full_name} is archived: it takes no pull requests{way_out}")
    return into


def _with_a_way_out(error: GitHubError, wish: PullRequestWish, pushed: Place, text: str) -> GitHubError:
    """Where the token may not go to the parent, the option that goes elsewhere. It is named to those who did not use it."""
    may_not = wish.into is None and error.status in (403, 404) and error.retry_after_s is None
    return GitHubError(
        f"{text}; {_elsewhere(pushed)}" if may_not else error.message, status=error.status, retry_after_s=error.retry_after_s
    )


def _elsewhere(pushed: Place) -> str:
    return f"--into {pushed.full_name} opens the pull request in the fork itself"


async def _base(
    github: PullRequests, machine: Machine, wish: PullRequestWish, found: Commits, pushed: Place, into: Place
) -> str:
    """A branch that is there, and that lacks commits of the machine as far as this box can know. Raises UsageError."""
    forged_from = machine.labels.get("branch")
    if into is not pushed:
        if wish.base is not None:
            if not await github.has_branch(into.full_name, wish.base):
                raise UsageError(
                    f"there is no branch {wish.base} in {into.full_name}; say with --base where the commits should go"
                )
            return wish.base
        # Also the branch that the commits are on: main of a fork goes to main of its parent.
        if forged_from and await github.has_branch(into.full_name, forged_from):
            return forged_from
        return into.default_branch
    base = wish.base or (forged_from if forged_from not in (None, found.branch) else into.default_branch)
    assert base is not None
    if base == found.branch:
        raise UsageError(
            f"the commits are for {base}, where the pull request would go to: leave --branch out, or name another one"
        )
    await from_machine.check_base(found, base)
    return base


def _title(machine: Machine, wish: PullRequestWish, found: Commits) -> str:
    if wish.title is not None:
        return _whole(wish.title)
    if len(found.subjects) != 1 or not found.subjects[0].strip():
        raise UsageError(f"{machine.name} has {len(found.subjects)} new commits: say with --title what they do together")
    return _whole(found.subjects[0])[:LONGEST_TITLE]


async def _opened(
    github: PullRequests, pushed: Place, into: Place, wish: PullRequestWish, found: Commits, base: str, title: str
) -> tuple[OpenPullRequest, bool]:
    new = NewPullRequest(
        repository=into.full_name,
        head_repository=pushed.full_name,
        head=found.branch,
        base=base,
        title=title,
        body=_whole(wish.body),
        draft=wish.draft,
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
            text += "; a fine-grained token is for the repositories of one owner, a classic one for all that you see"
        raise _with_a_way_out(failure, wish, pushed, text) from None


def _whole(text: str) -> str:
    """Bytes that are no UTF-8 come from git, and from the command line, as what JSON cannot hold."""
    return text.encode("utf-8", "replace").decode()
