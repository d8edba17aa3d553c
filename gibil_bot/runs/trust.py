"""Decides whether the head of a pull request is trusted, and what it may therefore do.

A run is trusted only if everyone who put its commit there has write permission: the pull request's author, the account that
pushed the commit, and the requester. Code in a fork is untrusted, unless the fork belongs to a user with write permission and
every push to it was seen and came from people with write permission. Whatever is unknown counts as untrusted.

Commits that the bot pushed for a trusted run count as pushed by the requester of that run, whatever its tasks downloaded. If
they were rebased onto a newer head, those who pushed that head count as well. Commits that it pushed for an untrusted run are
untrusted, even if a user with write permission pressed the button.

Commits that an agent wrote are untrusted, because a text that it read may have instructed it, and no user has reviewed them.
The people who asked for it still count as those who pushed, so that further commits may be pushed on top. A commit of a user
with write permission on top makes the head trusted again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from msgspec.structs import replace

from gibil_bot.github import trust_replies
from gibil_bot.model import BranchPush, HeadHistory, HeadSeen, Person, PullRequest, Repository, Trust
from gibil_bot.ports import GitHub, Inbox, RunStore
from gibil_bot.runs import heads

MAY_COMMAND = frozenset({"admin", "write"})
MOST_PEOPLE = 20
"""Maximum number of accounts whose permission one decision queries; a fork with more pushers is untrusted."""


@dataclass(frozen=True, kw_only=True)
class TrustDecision:
    """What is known about the head of one pull request, for one requester."""

    trust: Trust
    is_branch: bool
    """The head is a branch of the repository itself, where only users with write permission can push."""
    because: str = ""
    """Why it is untrusted: a clause of Markdown without a full stop; empty if it is trusted."""
    starts_automatically: bool = False
    """It runs without a command: trusted, or pushed by users with write permission and Apps that the operator named."""
    is_by_agent: bool = False
    """It is untrusted only because an agent wrote its newest commits."""
    approved_by: str | None = None
    head_is_unmoved: bool = True
    """The head certainly was the head already when the request was written."""
    history: HeadHistory = field(default_factory=HeadHistory)
    observed: tuple[HeadSeen | BranchPush, ...] = ()
    """Observations made during the decision, to be stored."""


class TrustEvaluator:
    """Queries the store and GitHub. Permissions are always current: only the bot's own login is cached between decisions."""

    def __init__(self, inbox: Inbox, runs: RunStore, github: GitHub, trusted_apps: frozenset[str]) -> None:
        self._inbox = inbox
        self._runs = runs
        self._github = github
        self._trusted_apps = trusted_apps
        self._login: str | None = None

    async def evaluate(
        self,
        installation_id: int,
        repository: Repository,
        pull: PullRequest,
        *,
        requester: Person,
        permission: str,
        written_at: datetime | None = None,
        thread_updated_at: datetime | None = None,
        is_timed: bool = False,
        stated: Sequence[HeadSeen | BranchPush] = (),
    ) -> TrustDecision:
        """Decide about the head of a pull request. Raises GitHubError, StoreError.

        `permission` is the requester's, read just now. `is_timed`: the request was written at `written_at`, and refers to the
        head at that time. `stated`: what the delivery itself reveals about heads.
        """
        is_branch = pull.head_repository_id is not None and pull.head_repository_id == repository.id
        fork_id = None if is_branch else pull.head_repository_id
        history = await self._inbox.head_history(repository.id, pull.number, pull.head_sha, fork_id)
        history = heads.with_delivery(history, stated)
        own = await self._own_pushes(repository, pull.number, is_branch=is_branch)
        observed: tuple[HeadSeen | BranchPush, ...] = heads.seen_now(repository.id, pull, history)
        as_written = not is_timed or heads.was_head_at(history, pull, written_at, thread_updated_at=thread_updated_at)
        pushers: tuple[Person, ...] | None = None
        if is_branch:
            pushers = heads.branch_pushers(history, pull, own)
            if not pushers or not as_written:
                newest = await self._github.branch_push(installation_id, repository, pull.head_ref, pull.head_sha)
                if newest is not None:
                    observed = (*observed, newest)
                    pushers = pushers or heads.branch_pushers(replace(history, pushes=(newest,)), pull, own)
                    as_written = as_written or heads.was_head_at(history, pull, written_at, newest_push=newest)
        people = _Permissions(self._github, installation_id, repository.full_name, {requester.login.lower(): permission})
        if is_branch:
            because = await self._why_untrusted_branch(people, pull, requester, pushers or ())
        else:
            because = await self._why_untrusted_fork(people, history, pull, requester, own)
        is_by_agent = not because and heads.is_by_agent(pull.head_sha, own)
        if is_by_agent:
            because = trust_replies.agent_wrote()
        approval = heads.valid_approval(history, pull.head_sha)
        if approval is not None and not (because and await people.may_write(Person(login=approval.by))):
            approval = None
        return TrustDecision(
            trust=Trust.UNTRUSTED if because else Trust.TRUSTED,
            is_branch=is_branch,
            because=because,
            starts_automatically=not because
            or (is_branch and await self._may_start(people, (requester, pull.author), pushers or ())),
            is_by_agent=is_by_agent,
            approved_by=approval.by if approval else None,
            head_is_unmoved=as_written,
            history=history,
            observed=observed,
        )

    async def is_own(self, person: Person) -> bool:
        """Return whether it is the bot itself. Raises GitHubError."""
        return person.is_bot and person.login.lower() == (await self._own_login()).lower()

    async def _own_login(self) -> str:
        if self._login is None:
            self._login = f"{await self._github.who_am_i()}[bot]"
        return self._login

    async def _own_pushes(self, repository: Repository, number: int, *, is_branch: bool) -> heads.OwnPushes:
        """Return what the bot pushed for runs that people with write permission are responsible for: to the pull request, and
        for a fork, also to others from it.
        """
        runs = await self._runs.of_repository(repository.id, number=number)
        if not is_branch:
            runs = [*runs, *await self._runs.of_repository(repository.id)]
        commits = {
            run.commit.created: heads.OwnCommit(
                requester=Person(login=run.source.actor),
                rebased_onto=None if run.commit.expected == run.source.sha else run.commit.expected,
                is_by_agent=run.source.is_by_agent or run.plan.has_agent,
            )
            for run in runs
            if run.commit is not None
            and run.commit.created is not None
            and (run.source.trust is Trust.TRUSTED or run.source.is_by_agent)
        }
        return heads.OwnPushes(login=await self._own_login(), commits=commits) if commits else heads.NO_OWN_PUSHES

    async def _why_untrusted_branch(
        self, people: _Permissions, pull: PullRequest, requester: Person, pushers: tuple[Person, ...]
    ) -> str:
        if not await people.may_write(pull.author):
            return trust_replies.author_cannot_write(pull.author)
        if not pushers:
            return trust_replies.pusher_unknown(pull.head_ref)
        return await self._why_untrusted_people(people, pushers, pull.head_ref, requester)

    async def _why_untrusted_fork(
        self, people: _Permissions, history: HeadHistory, pull: PullRequest, requester: Person, own: heads.OwnPushes
    ) -> str:
        if pull.head_repository is None or pull.head_owner is None:
            return trust_replies.fork_gone()
        fork = pull.head_repository
        if not pull.head_owner_is_user:
            return trust_replies.fork_of_organization(fork)
        owners = [Person(login=owner) for owner in heads.fork_owners(history, pull)]
        for owner in owners[:MOST_PEOPLE]:
            if not await people.may_write(owner):
                return trust_replies.fork_of_stranger(fork, owner)
        if not await people.may_write(pull.author):
            return trust_replies.author_cannot_write(pull.author)
        pushers = heads.fork_pushers(history, pull, own)
        if pushers is None or len(pushers) + len(owners) > MOST_PEOPLE:
            return trust_replies.fork_pusher_unknown(fork)
        return await self._why_untrusted_people(people, pushers, fork, requester)

    async def _why_untrusted_people(
        self, people: _Permissions, pushers: Iterable[Person], pushed_to: str, requester: Person
    ) -> str:
        for pusher in pushers:
            if not await people.may_write(pusher):
                return trust_replies.pusher_cannot_write(pusher, pushed_to)
        return "" if await people.may_write(requester) else trust_replies.requester_cannot_write(requester)

    async def _may_start(self, people: _Permissions, first: Iterable[Person], pushers: tuple[Person, ...]) -> bool:
        """Return whether all of them have write permission or are Apps that the operator named; False if no pusher is known."""
        for person in (*first, *pushers):
            is_named = person.is_bot and person.login.lower() in self._trusted_apps
            if not is_named and not await people.may_write(person):
                return False
        return bool(pushers)


class _Permissions:
    """Which accounts have write permission, read once per account and decision. An App has no permission as a collaborator."""

    def __init__(self, github: GitHub, installation_id: int, repository: str, by_login: dict[str, str]) -> None:
        self._github = github
        self._installation_id = installation_id
        self._repository = repository
        self._by_login = by_login

    async def may_write(self, person: Person) -> bool:
        if person.is_bot:
            return False
        login = person.login.lower()
        if login not in self._by_login:
            self._by_login[login] = await self._github.permission(self._installation_id, self._repository, person.login)
        return self._by_login[login] in MAY_COMMAND
