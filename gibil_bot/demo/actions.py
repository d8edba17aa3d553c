"""Actions on GitHub: a push, a pull request, a comment, a check run; each with all its consequences.

Users (through the Python and the control API) and the App (through the REST API) use the same functions.
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
    ReviewLines,
    User,
)
from gibil_bot.demo.state import State

_NOTHING = "0" * 40
_UPDATE = re.compile(rb"([0-9a-f]{40}) ([0-9a-f]{40}) refs/heads/([^\0\n ]+?)(?=\0|\n|[0-9a-f]{4}[0-9a-f]{40} |$)")


@dataclass(frozen=True, slots=True)
class Hub:
    """State, repositories and webhooks, which every action needs."""

    state: State
    git: GitStore
    hooks: Hooks


def install(hub: Hub, account: User) -> Installation:
    """Install the App on an account, or return the existing installation."""
    state = hub.state
    existing = next((each for each in state.installations.values() if each.account is account), None)
    if existing is not None:
        return existing
    new = Installation(state.new_id(), account, dict(state.permissions), tuple(state.events))
    state.installations[new.id] = new
    state.touch()
    return new


# --- commits and pull requests ----------------------------------------------------------------------------------


async def push(
    hub: Hub, repository: Repository, branch: str, files: Files, author: User, *, message: str, force: bool = False
) -> str:
    """Add a commit to a branch. A new branch starts at the default branch; with `force` the commit replaces the branch's last
    one.

    Pull requests and checks of the branch are updated.
    """
    tip = await hub.git.resolve(repository.full_name, f"refs/heads/{branch}")
    if tip is None:
        parent = await hub.git.resolve(repository.full_name, f"refs/heads/{repository.default_branch}")
    else:
        parent = await hub.git.resolve(repository.full_name, f"{tip}^") if force else tip
    sha = await hub.git.commit(repository.full_name, branch, files, message=message, author=author.login, parent=parent)
    await after_push(hub, repository, author, [(branch, tip or _NOTHING, sha)], forced=force)
    return sha


async def reset_branch(hub: Hub, repository: Repository, branch: str, sha: str, sender: User) -> None:
    """Force-push an existing commit."""
    tip = await hub.git.resolve(repository.full_name, f"refs/heads/{branch}")
    await hub.git.set_ref(repository.full_name, f"refs/heads/{branch}", sha)
    await after_push(hub, repository, sender, [(branch, tip or _NOTHING, sha)], forced=True)


def pushed_branches(receive_pack: bytes) -> list[tuple[str, str, str]]:
    """Return (branch, before, after) for each update that a git client requests: https://git-scm.com/docs/pack-protocol#_reference_update_request_and_packfile_transfer"""
    commands, _, _ = receive_pack.partition(b"0000PACK")
    return [(name.decode(), old.decode(), new.decode()) for old, new, name in _UPDATE.findall(commands)]


async def after_push(
    hub: Hub, repository: Repository, sender: User, branches: list[tuple[str, str, str]], *, forced: bool = False
) -> None:
    """Update pull requests after a push, whether by git or by the API.

    https://docs.github.com/en/webhooks/webhook-events-and-payloads#pull_request: action `synchronize`. `branches` are
    (name, commit before, commit after); a push that git rejected isn't in the branches.
    """
    at = hub.state.moment_of_push()
    for branch, before, after in branches:
        if await hub.git.resolve(repository.full_name, f"refs/heads/{branch}") != after:
            continue
        repository.pushed_at = at
        kind = "branch_creation" if before == _NOTHING else "force_push" if forced else "push"
        repository.activity.append(Activity(hub.state.new_id(), f"refs/heads/{branch}", before, after, sender, at, kind))
        _suite_for_push(hub, repository, after, branch, sender)
    for home in list(hub.state.repositories.values()):
        for pull in home.pull_requests():
            if pull.state == "open" and pull.head_repository is repository:
                await _follow_branch(hub, home, pull, sender)
    hub.state.touch()


async def _follow_branch(hub: Hub, home: Repository, pull: PullRequest, sender: User) -> None:
    assert pull.head_repository is not None
    tip = await hub.git.resolve(pull.head_repository.full_name, f"refs/heads/{pull.head_ref}")
    if tip is None or tip == pull.head_sha:
        return
    await _keep_head(hub, home, pull, tip)
    before, pull.head_sha = pull.head_sha, tip
    pull.updated_at = pull.head_repository.pushed_at or hub.state.now()
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
    now = hub.state.now()
    issue = Issue(hub.state.new_id(), _next_number(repository), title, body, author, now, now)
    repository.issues[issue.number] = issue
    hub.state.touch()
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
    """Open a pull request from an existing branch of `head` (the repository, or one of its network).

    `base`: the default branch by default.
    """
    now = hub.state.now()
    base = base or home.default_branch
    head_sha = await hub.git.resolve(head.full_name, f"refs/heads/{branch}")
    base_sha = await hub.git.resolve(home.full_name, f"refs/heads/{base}")
    if head_sha is None or base_sha is None:
        raise KeyError(f"{head.full_name} has no branch {branch}, or {home.full_name} no {base}")
    pull = PullRequest(
        hub.state.new_id(),
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
    hub.state.touch()
    return pull


async def retarget(hub: Hub, home: Repository, pull: PullRequest, base: str, sender: User) -> None:
    """Change the base branch. https://docs.github.com/en/webhooks/webhook-events-and-payloads#pull_request: action `edited`."""
    base_sha = await hub.git.resolve(home.full_name, f"refs/heads/{base}")
    if base_sha is None:
        raise KeyError(f"{home.full_name} has no branch {base}")
    changes = {"base": {"ref": {"from": pull.base_ref}, "sha": {"from": pull.base_sha}}}
    pull.base_ref, pull.base_sha, pull.updated_at = base, base_sha, hub.state.now()
    hub.hooks.send("pull_request", "edited", home, sender, _about_pull(hub, home, pull) | {"changes": changes})
    hub.state.touch()


async def queue_merge(hub: Hub, home: Repository, pull: PullRequest, sender: User) -> str:
    """Put a pull request into a merge queue, which requests checks of a new commit. Returns its hash.

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
    hub.state.touch()
    return sha


def set_pull_request_state(hub: Hub, home: Repository, pull: PullRequest, state: str, sender: User) -> None:
    """Set the state: open or closed."""
    if pull.state == state:
        return
    pull.state, pull.updated_at = state, hub.state.now()
    pull.closed_at = pull.updated_at if state == "closed" else None
    action = "closed" if state == "closed" else "reopened"
    hub.hooks.send("pull_request", action, home, sender, _about_pull(hub, home, pull))
    hub.state.touch()


def _about_pull(hub: Hub, home: Repository, pull: PullRequest) -> payloads.Json:
    return {"number": pull.number, "pull_request": payloads.pull_request(hub.state, home, pull)}


def _next_number(repository: Repository) -> int:
    return max(repository.issues, default=0) + 1


# --- comments and reactions --------------------------------------------------------------------------------------


def comment(
    hub: Hub,
    repository: Repository,
    number: int,
    author: User,
    body: str,
    *,
    path: str | None = None,
    lines: ReviewLines | None = None,
    by_app: bool = False,
) -> Comment:
    """Comment in the conversation, or (with `path`) on a file of the pull request."""
    now = hub.state.now() if by_app else hub.state.moment_of_comment()
    new = Comment(hub.state.new_id(), number, author, body, now, now, path=path, lines=lines, by_app=by_app)
    repository.comments[new.id] = new
    issue = repository.issues[number]
    issue.updated_at = now
    shown = payloads.comment(hub.state, repository, new)
    if new.is_review:
        assert isinstance(issue, PullRequest)
        pull = payloads.pull_request(hub.state, repository, issue)
        about: payloads.Json = {"pull_request": pull, "comment": shown}
        hub.hooks.send("pull_request_review_comment", "created", repository, author, about)
    else:
        about = {"issue": payloads.issue(hub.state, repository, issue), "comment": shown}
        hub.hooks.send("issue_comment", "created", repository, author, about)
    hub.state.touch()
    return new


def review(
    hub: Hub,
    home: Repository,
    pull: PullRequest,
    author: User,
    body: str,
    *,
    state: str,
    commit_sha: str | None = None,
    by_app: bool = False,
) -> Review:
    """Submit a review of the head, or of the commit that the reviewer saw.

    https://docs.github.com/en/webhooks/webhook-events-and-payloads#pull_request_review
    """
    now = hub.state.now() if by_app else hub.state.moment_of_comment()
    new = Review(hub.state.new_id(), pull.number, author, body, state, commit_sha or pull.head_sha, now)
    pull.updated_at = now
    home.reviews[new.id] = new
    _send_review(hub, home, pull, new, "submitted", author)
    return new


def edit_review(hub: Hub, home: Repository, pull: PullRequest, it: Review, body: str) -> None:
    home.reviews[it.id] = edited = replace(it, body=body)
    _send_review(hub, home, pull, edited, "edited", it.author)


def _send_review(hub: Hub, home: Repository, pull: PullRequest, it: Review, action: str, sender: User) -> None:
    shown = payloads.review(hub.state, home, it)
    about: payloads.Json = {"review": shown, "pull_request": payloads.pull_request(hub.state, home, pull)}
    hub.hooks.send("pull_request_review", action, home, sender, about)
    hub.state.touch()


def edit_comment(hub: Hub, repository: Repository, it: Comment, body: str, editor: User) -> None:
    before, it.body = it.body, body
    it.updated_at = hub.state.now()
    it.edits += 1
    issue = payloads.issue(hub.state, repository, repository.issues[it.number])
    shown = payloads.comment(hub.state, repository, it)
    changes: payloads.Json = {"changes": {"body": {"from": before}}, "issue": issue, "comment": shown}
    hub.hooks.send("issue_comment", "edited", repository, editor, changes)
    hub.state.touch()


def delete_comment(hub: Hub, repository: Repository, it: Comment, by: User) -> None:
    del repository.comments[it.id]
    issue = payloads.issue(hub.state, repository, repository.issues[it.number])
    about: payloads.Json = {"issue": issue, "comment": payloads.comment(hub.state, repository, it)}
    hub.hooks.send("issue_comment", "deleted", repository, by, about)
    hub.state.touch()


def react(hub: Hub, it: Comment, who: User, content: str) -> tuple[Reaction, bool]:
    """Return the reaction, and whether it is new: a user has each reaction once."""
    for reaction in it.reactions:
        if reaction.user is who and reaction.content == content:
            return reaction, False
    new = Reaction(hub.state.new_id(), who, content, hub.state.now())
    it.reactions.append(new)
    hub.state.touch()
    return new, True


# --- checks -----------------------------------------------------------------------------------------------------


def suite_of(hub: Hub, repository: Repository, sha: str, branch: str | None = None) -> tuple[CheckSuite, bool]:
    """Return the App's suite for that commit, and whether it is new: there is one per App and commit.

    https://docs.github.com/en/rest/guides/using-the-rest-api-to-interact-with-checks#about-check-suites
    """
    for suite in repository.check_suites.values():
        if suite.head_sha == sha:
            return suite, False
    now = hub.state.now()
    suite = CheckSuite(hub.state.new_id(), sha, branch, now, now)
    repository.check_suites[suite.id] = suite
    return suite, True


def _suite_for_push(hub: Hub, home: Repository, sha: str, branch: str, sender: User) -> None:
    """Create a suite for the first push of a commit and notify Apps with checks:write; ignore forks (same page)."""
    if home.installation_id is None:
        return
    suite, new = suite_of(hub, home, sha, branch)
    if new:
        _send_suite(hub, home, suite, "requested", sender)


def _send_suite(hub: Hub, home: Repository, suite: CheckSuite, action: str, sender: User) -> None:
    body: payloads.Json = {"check_suite": payloads_checks.check_suite(hub.state, home, suite)}
    hub.hooks.send("check_suite", action, home, sender, body)


def send_check_run(hub: Hub, home: Repository, run: CheckRun, action: str, sender: User, **more: payloads.Json) -> None:
    shown = payloads_checks.check_run(hub.state, home, run)
    shown["check_suite"] = payloads_checks.check_suite(hub.state, home, home.check_suites[run.suite_id])
    hub.hooks.send("check_run", action, home, sender, {"check_run": shown, **more})
    hub.state.touch()


def press_button(hub: Hub, home: Repository, run: CheckRun, identifier: str, sender: User) -> None:
    """https://docs.github.com/en/webhooks/webhook-events-and-payloads?actionType=requested_action#check_run"""
    if not any(action.get("identifier") == identifier for action in run.actions):
        raise KeyError(identifier)
    send_check_run(hub, home, run, "requested_action", sender, requested_action={"identifier": identifier})


def rerequest_check_run(hub: Hub, home: Repository, run: CheckRun, sender: User) -> None:
    """Send only the webhook: the run itself doesn't change. https://docs.github.com/en/rest/checks/runs#rerequest-a-check-run"""
    send_check_run(hub, home, run, "rerequested", sender)


def rerequest_suite(hub: Hub, home: Repository, suite: CheckSuite, sender: User) -> None:
    _send_suite(hub, home, suite, "rerequested", sender)
    hub.state.touch()
