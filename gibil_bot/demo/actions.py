"""What happens on GitHub: a push, a pull request, a comment, a check run; each with everything that follows from it.

People (the Python and the control API) and the App (the REST API) act through these same functions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from gibil_bot.demo import payloads, payloads_checks
from gibil_bot.demo.git_store import Files, GitStore
from gibil_bot.demo.hooks import Hooks
from gibil_bot.demo.records import (
    Activity,
    CheckRun,
    CheckSuite,
    Comment,
    Installation,
    Issue,
    PullRequest,
    Reaction,
    Repository,
    Review,
    User,
)
from gibil_bot.demo.state import World

_NOTHING = "0" * 40
_UPDATE = re.compile(rb"([0-9a-f]{40}) ([0-9a-f]{40}) refs/heads/([^\0\n ]+?)(?=\0|\n|[0-9a-f]{4}[0-9a-f]{40} |$)")


@dataclass(frozen=True, slots=True)
class Hub:
    """Memory, repositories and webhooks: what every act needs."""

    world: World
    git: GitStore
    hooks: Hooks


def install(hub: Hub, account: User) -> Installation:
    """Install the App on an account, or find the installation that is there."""
    world = hub.world
    existing = next((each for each in world.installations.values() if each.account is account), None)
    if existing is not None:
        return existing
    new = Installation(world.new_id(), account, dict(world.permissions), tuple(world.events))
    world.installations[new.id] = new
    world.touch()
    return new


# --- commits and pull requests ----------------------------------------------------------------------------------


async def push(
    hub: Hub, repository: Repository, branch: str, files: Files, author: User, *, message: str, force: bool = False
) -> str:
    """One commit on the branch, which grows out of the default branch when it is new. With `force` the commit takes the
    place of the branch's last one. Everything that hangs on the branch follows."""
    tip = await hub.git.resolve(repository.full_name, f"refs/heads/{branch}")
    if tip is None:
        parent = await hub.git.resolve(repository.full_name, f"refs/heads/{repository.default_branch}")
    else:
        parent = await hub.git.resolve(repository.full_name, f"{tip}^") if force else tip
    sha = await hub.git.commit(repository.full_name, branch, files, message=message, author=author.login, parent=parent)
    await after_push(hub, repository, author, [(branch, tip or _NOTHING, sha)], forced=force)
    return sha


async def reset_branch(hub: Hub, repository: Repository, branch: str, sha: str, sender: User) -> None:
    """A force-push of a commit that exists."""
    tip = await hub.git.resolve(repository.full_name, f"refs/heads/{branch}")
    await hub.git.set_ref(repository.full_name, f"refs/heads/{branch}", sha)
    await after_push(hub, repository, sender, [(branch, tip or _NOTHING, sha)], forced=True)


def pushed_branches(receive_pack: bytes) -> list[tuple[str, str, str]]:
    """(branch, before, after) of what a git client asks for: https://git-scm.com/docs/pack-protocol#_reference_update_request_and_packfile_transfer"""
    commands, _, _ = receive_pack.partition(b"0000PACK")
    return [(name.decode(), old.decode(), new.decode()) for old, new, name in _UPDATE.findall(commands)]


async def after_push(
    hub: Hub, repository: Repository, sender: User, branches: list[tuple[str, str, str]], *, forced: bool = False
) -> None:
    """Pull requests follow their branches, wherever the commits came from.

    https://docs.github.com/en/webhooks/webhook-events-and-payloads#pull_request: action `synchronize`. `branches` are
    (name, commit before, commit after); a push that git refused is not among what the branches show.
    """
    at = hub.world.moment_of_push()
    for branch, before, after in branches:
        if await hub.git.resolve(repository.full_name, f"refs/heads/{branch}") != after:
            continue
        repository.pushed_at = at
        kind = "branch_creation" if before == _NOTHING else "force_push" if forced else "push"
        repository.activity.append(Activity(hub.world.new_id(), f"refs/heads/{branch}", before, after, sender, at, kind))
        _suite_for_push(hub, repository, after, branch, sender)
    for home in list(hub.world.repositories.values()):
        for pull in home.pull_requests():
            if pull.state == "open" and pull.head_repository is repository:
                await _follow_branch(hub, home, pull, sender)
    hub.world.touch()


async def _follow_branch(hub: Hub, home: Repository, pull: PullRequest, sender: User) -> None:
    assert pull.head_repository is not None
    tip = await hub.git.resolve(pull.head_repository.full_name, f"refs/heads/{pull.head_ref}")
    if tip is None or tip == pull.head_sha:
        return
    await _keep_head(hub, home, pull, tip)
    before, pull.head_sha = pull.head_sha, tip
    pull.updated_at = pull.head_repository.pushed_at or hub.world.now()
    body = _about_pull(hub, home, pull) | {"before": before, "after": tip}
    hub.hooks.send("pull_request", "synchronize", home, sender, body)


async def _keep_head(hub: Hub, home: Repository, pull: PullRequest, sha: str) -> None:
    ref = f"refs/pull/{pull.number}/head"
    if pull.head_repository is home:
        await hub.git.set_ref(home.full_name, ref, sha)
    else:
        assert pull.head_repository is not None
        await hub.git.fetch(home.full_name, pull.head_repository.full_name, sha, ref)


def open_issue(hub: Hub, repository: Repository, author: User, title: str, body: str) -> Issue:
    now = hub.world.now()
    issue = Issue(hub.world.new_id(), _next_number(repository), title, body, author, now, now)
    repository.issues[issue.number] = issue
    hub.world.touch()
    return issue


async def open_pull_request(
    hub: Hub,
    home: Repository,
    head: Repository,
    branch: str,
    author: User,
    *,
    title: str,
    body: str,
    draft: bool,
    base: str | None = None,
) -> PullRequest:
    """From a branch that exists in `head` (the repository, or one of its network) to `base`, or to the default branch."""
    now = hub.world.now()
    base = base or home.default_branch
    head_sha = await hub.git.resolve(head.full_name, f"refs/heads/{branch}")
    base_sha = await hub.git.resolve(home.full_name, f"refs/heads/{base}")
    if head_sha is None or base_sha is None:
        raise KeyError(f"{head.full_name} has no branch {branch}, or {home.full_name} no {base}")
    pull = PullRequest(
        hub.world.new_id(),
        _next_number(home),
        title,
        body,
        author,
        now,
        now,
        head_repository=head,
        head_ref=branch,
        head_sha=head_sha,
        base_ref=base,
        base_sha=base_sha,
        draft=draft,
        maintainer_can_modify=head is not home,
    )
    home.issues[pull.number] = pull
    await _keep_head(hub, home, pull, head_sha)
    hub.hooks.send("pull_request", "opened", home, author, _about_pull(hub, home, pull))
    hub.world.touch()
    return pull


async def retarget(hub: Hub, home: Repository, pull: PullRequest, base: str, sender: User) -> None:
    """Another base branch. https://docs.github.com/en/webhooks/webhook-events-and-payloads#pull_request: action `edited`."""
    base_sha = await hub.git.resolve(home.full_name, f"refs/heads/{base}")
    if base_sha is None:
        raise KeyError(f"{home.full_name} has no branch {base}")
    changes = {"base": {"ref": {"from": pull.base_ref}, "sha": {"from": pull.base_sha}}}
    pull.base_ref, pull.base_sha, pull.updated_at = base, base_sha, hub.world.now()
    hub.hooks.send("pull_request", "edited", home, sender, _about_pull(hub, home, pull) | {"changes": changes})
    hub.world.touch()


async def queue_merge(hub: Hub, home: Repository, pull: PullRequest, sender: User) -> str:
    """Put a pull request into a merge queue: a commit of its own, whose checks the queue asks for; its hash.

    https://docs.github.com/en/webhooks/webhook-events-and-payloads#merge_group
    """
    branch = f"gh-readonly-queue/{pull.base_ref}/pr-{pull.number}-{pull.base_sha}"
    sha = await hub.git.commit(
        home.full_name, branch, {}, message=f"Merge pull request #{pull.number}", author=sender.login, parent=pull.head_sha
    )
    group: payloads.Json = {
        "head_sha": sha,
        "head_ref": f"refs/heads/{branch}",
        "base_sha": pull.base_sha,
        "base_ref": f"refs/heads/{pull.base_ref}",
        "head_commit": {"id": sha},
    }
    hub.hooks.send("merge_group", "checks_requested", home, sender, {"merge_group": group})
    hub.world.touch()
    return sha


def set_pull_request_state(hub: Hub, home: Repository, pull: PullRequest, state: str, sender: User) -> None:
    """`state`: open or closed."""
    if pull.state == state:
        return
    pull.state, pull.updated_at = state, hub.world.now()
    pull.closed_at = pull.updated_at if state == "closed" else None
    action = "closed" if state == "closed" else "reopened"
    hub.hooks.send("pull_request", action, home, sender, _about_pull(hub, home, pull))
    hub.world.touch()


def _about_pull(hub: Hub, home: Repository, pull: PullRequest) -> payloads.Json:
    return {"number": pull.number, "pull_request": payloads.pull_request(hub.world, home, pull)}


def _next_number(repository: Repository) -> int:
    return max(repository.issues, default=0) + 1


# --- comments and reactions --------------------------------------------------------------------------------------


def comment(
    hub: Hub, repository: Repository, number: int, author: User, body: str, *, path: str | None = None, by_app: bool = False
) -> Comment:
    """In the conversation, or (with `path`) on a file of the pull request."""
    now = hub.world.now() if by_app else hub.world.moment_of_comment()
    new = Comment(hub.world.new_id(), number, author, body, now, now, path=path, by_app=by_app)
    repository.comments[new.id] = new
    issue = repository.issues[number]
    issue.updated_at = now
    shown = payloads.comment(hub.world, repository, new)
    if new.is_review:
        assert isinstance(issue, PullRequest)
        pull = payloads.pull_request(hub.world, repository, issue)
        about: payloads.Json = {"pull_request": pull, "comment": shown}
        hub.hooks.send("pull_request_review_comment", "created", repository, author, about)
    else:
        about = {"issue": payloads.issue(hub.world, repository, issue), "comment": shown}
        hub.hooks.send("issue_comment", "created", repository, author, about)
    hub.world.touch()
    return new


def review(
    hub: Hub, home: Repository, pull: PullRequest, author: User, body: str, *, state: str, commit_sha: str | None = None
) -> Review:
    """Submit a review on the head, or on the commit that the reviewer had before them.

    https://docs.github.com/en/webhooks/webhook-events-and-payloads#pull_request_review
    """
    now = hub.world.moment_of_comment()
    new = Review(hub.world.new_id(), pull.number, author, body, state, commit_sha or pull.head_sha, now)
    pull.updated_at = now
    _tell_review(hub, home, pull, new, "submitted", author)
    return new


def edit_review(hub: Hub, home: Repository, pull: PullRequest, it: Review, body: str) -> None:
    edited = replace(it, body=body)
    _tell_review(hub, home, pull, edited, "edited", it.author)


def _tell_review(hub: Hub, home: Repository, pull: PullRequest, it: Review, action: str, sender: User) -> None:
    shown = payloads.review(hub.world, home, it)
    about: payloads.Json = {"review": shown, "pull_request": payloads.pull_request(hub.world, home, pull)}
    hub.hooks.send("pull_request_review", action, home, sender, about)
    hub.world.touch()


def edit_comment(hub: Hub, repository: Repository, it: Comment, body: str, editor: User) -> None:
    before, it.body = it.body, body
    it.updated_at = hub.world.now()
    it.edits += 1
    issue = payloads.issue(hub.world, repository, repository.issues[it.number])
    shown = payloads.comment(hub.world, repository, it)
    changes: payloads.Json = {"changes": {"body": {"from": before}}, "issue": issue, "comment": shown}
    hub.hooks.send("issue_comment", "edited", repository, editor, changes)
    hub.world.touch()


def delete_comment(hub: Hub, repository: Repository, it: Comment, by: User) -> None:
    del repository.comments[it.id]
    issue = payloads.issue(hub.world, repository, repository.issues[it.number])
    about: payloads.Json = {"issue": issue, "comment": payloads.comment(hub.world, repository, it)}
    hub.hooks.send("issue_comment", "deleted", repository, by, about)
    hub.world.touch()


def react(hub: Hub, it: Comment, who: User, content: str) -> tuple[Reaction, bool]:
    """The reaction, and whether it is new: one person has each reaction once."""
    for reaction in it.reactions:
        if reaction.user is who and reaction.content == content:
            return reaction, False
    new = Reaction(hub.world.new_id(), who, content, hub.world.now())
    it.reactions.append(new)
    hub.world.touch()
    return new, True


# --- checks -----------------------------------------------------------------------------------------------------


def suite_of(hub: Hub, repository: Repository, sha: str, branch: str | None = None) -> tuple[CheckSuite, bool]:
    """The App's suite for that commit, made when there is none: one per App and commit.
    https://docs.github.com/en/rest/guides/using-the-rest-api-to-interact-with-checks#about-check-suites"""
    for suite in repository.check_suites.values():
        if suite.head_sha == sha:
            return suite, False
    now = hub.world.now()
    suite = CheckSuite(hub.world.new_id(), sha, branch, now, now)
    repository.check_suites[suite.id] = suite
    return suite, True


def _suite_for_push(hub: Hub, home: Repository, sha: str, branch: str, sender: User) -> None:
    """The first push of a commit makes a suite and says so to Apps with checks:write; pushes to forks are not looked at
    (same page)."""
    if home.installation_id is None:
        return
    suite, new = suite_of(hub, home, sha, branch)
    if new:
        _tell_suite(hub, home, suite, "requested", sender)


def _tell_suite(hub: Hub, home: Repository, suite: CheckSuite, action: str, sender: User) -> None:
    body: payloads.Json = {"check_suite": payloads_checks.check_suite(hub.world, home, suite)}
    hub.hooks.send("check_suite", action, home, sender, body)


def tell_check_run(hub: Hub, home: Repository, run: CheckRun, action: str, sender: User) -> None:
    shown = payloads_checks.check_run(hub.world, home, run)
    shown["check_suite"] = payloads_checks.check_suite(hub.world, home, home.check_suites[run.suite_id])
    hub.hooks.send("check_run", action, home, sender, {"check_run": shown})
    hub.world.touch()


def rerequest_check_run(hub: Hub, home: Repository, run: CheckRun, sender: User) -> None:
    """Only the webhook: the run itself stays as it is. https://docs.github.com/en/rest/checks/runs#rerequest-a-check-run"""
    tell_check_run(hub, home, run, "rerequested", sender)


def rerequest_suite(hub: Hub, home: Repository, suite: CheckSuite, sender: User) -> None:
    _tell_suite(hub, home, suite, "rerequested", sender)
    hub.world.touch()
