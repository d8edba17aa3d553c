"""From a stored delivery to what follows from it: runs queued, runs cancelled, answers given, all in one transaction.

Deliveries of one repository are handled one after another, in the order in which they came; different repositories do not
wait for each other, so one that GitHub is slow to answer for holds up nobody else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gibil_bot.errors import ClaimLost, GitHubError, InvalidDelivery, StoreError, UsageError
from gibil_bot.github import commands, replies, webhook
from gibil_bot.model import (
    Command,
    CommentCreated,
    Conclusion,
    Delivery,
    Event,
    Ignored,
    NewRun,
    Plan,
    PullRequest,
    PullRequestChanged,
    Repository,
    RerunRequested,
    Run,
    RunState,
    Source,
    Telling,
    Trust,
)
from gibil_bot.planning import plan as planning
from gibil_bot.ports import GitHub, Settlement, Store
from gibil_bot.runs.reports import as_queued, queued_check_run

log = logging.getLogger("gibil.intake")

LEASE_S = 600.0
POLL_S = 5.0
AT_ONCE = 64
"""Deliveries in hand at one time."""
GITHUB_TRIES = 8
FAULT_TRIES = 3
MAY_COMMAND = frozenset({"admin", "write"})


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What the operator allows."""

    allowed_accounts: frozenset[str] | None
    untrusted_refused: str | None
    """The provider that does not take code of people without write permission; None: it may run here."""
    max_ttl_s: int
    public_url: str
    run_id: Callable[[bytes, str], str]
    """(payload, distinction) → a run's id: the same for the same payload, so that a replay queues nothing twice."""
    operator_workflows: Callable[[], Mapping[str, bytes]]


@dataclass(kw_only=True)
class _Outcome:
    """What one delivery comes to, while it is being found out."""

    delivery: Delivery
    runs: list[NewRun] = field(default_factory=list)
    cancel: list[tuple[str, str]] = field(default_factory=list)
    tellings: list[Telling] = field(default_factory=list)

    def settlement(self) -> Settlement:
        return Settlement(runs=self.runs, cancel=self.cancel, tellings=self.tellings)


def what_it_asks(delivery: Delivery, allowed_accounts: frozenset[str] | None) -> Event:
    """The event of a delivery; Ignored when nothing follows from it, as from most. Raises InvalidDelivery.

    Quick, and asks nobody: the door calls it too, so that what nothing follows from is stored and never looked at again.
    """
    event = webhook.narrow(delivery.event, delivery.payload)
    if isinstance(event, Ignored):
        log.debug("delivery %s: %s", delivery.guid, event.reason)
        return event
    if allowed_accounts is not None and event.repository.owner.lower() not in allowed_accounts:
        log.info("delivery %s: %s is not among GIBIL_ALLOWED_ACCOUNTS", delivery.guid, event.repository.owner)
        return Ignored(reason=f"{event.repository.owner} is not served here")
    if isinstance(event, CommentCreated) and not commands.parse(event.body):
        return Ignored(reason="a comment without a command")
    return event


class Refused(Exception):
    """The command is not obeyed; the message is the answer to the person."""


class Intake:
    """`run()` for as long as the bot lives."""

    def __init__(self, store: Store, github: GitHub, policy: Policy, process: str) -> None:
        self._store = store
        self._github = github
        self._policy = policy
        self._process = process
        self._lanes: dict[int, asyncio.Queue[tuple[Delivery, Event]]] = {}
        self._workers: dict[int, asyncio.Task[None]] = {}
        self._in_hand = 0

    async def run(self) -> None:
        signal = self._store.changed("deliveries")
        try:
            while True:
                room = AT_ONCE - self._in_hand
                deliveries: list[Delivery] = []
                try:
                    if room > 0:
                        deliveries = await self._store.claim_deliveries(self._process, limit=room, lease_s=LEASE_S)
                    for delivery in deliveries:
                        await self._sort(delivery)
                except StoreError as error:
                    log.error("the database: %s", error.message)
                    await asyncio.sleep(POLL_S)
                if len(deliveries) < room or room <= 0:
                    await signal.wait(POLL_S if room > 0 else 0.05)
        finally:
            for worker in self._workers.values():
                worker.cancel()
            await asyncio.gather(*self._workers.values(), return_exceptions=True)

    async def _sort(self, delivery: Delivery) -> None:
        """Settle at once what nothing follows from; put the rest into its repository's lane."""
        try:
            event = what_it_asks(delivery, self._policy.allowed_accounts)
        except InvalidDelivery as error:
            log.warning("delivery %s: %s", delivery.guid, error.message)
            await self._settle(delivery, Settlement(error=error.message))
            return
        if isinstance(event, Ignored):
            await self._settle(delivery, Settlement())
            return
        lane = event.repository.id
        self._in_hand += 1
        self._lanes.setdefault(lane, asyncio.Queue()).put_nowait((delivery, event))
        if lane not in self._workers:
            self._workers[lane] = asyncio.create_task(self._work(lane), name=f"intake of repository {lane}")

    async def _work(self, lane: int) -> None:
        queue = self._lanes[lane]
        try:
            while not queue.empty():
                delivery, event = queue.get_nowait()
                try:
                    await self._handle(delivery, event)
                finally:
                    self._in_hand -= 1
        finally:
            self._in_hand -= queue.qsize()
            del self._workers[lane], self._lanes[lane]

    async def _settle(self, delivery: Delivery, settlement: Settlement) -> None:
        try:
            await self._store.settle(self._process, delivery.guid, settlement)
        except ClaimLost:
            log.warning("delivery %s: another process handled it", delivery.guid)

    async def _handle(self, delivery: Delivery, event: Event) -> None:
        try:
            outcome = await self._decide(delivery, event)
        except GitHubError as error:
            if error.retry_after_s is not None and delivery.attempts < GITHUB_TRIES:
                delay = max(error.retry_after_s, 2.0**delivery.attempts)
                log.warning("delivery %s: again in %.0f s: %s", delivery.guid, delay, error.message)
                await self._store.postpone(self._process, delivery.guid, error.message, delay_s=delay)
                return
            log.error("delivery %s: %s", delivery.guid, error.message)
            await self._settle(delivery, self._failed(delivery, event, replies.github_failed(error.message)))
        except StoreError as error:
            log.error("delivery %s stays to be handled: %s", delivery.guid, error.message)
        except Exception as error:
            log.exception("delivery %s: a fault of ours", delivery.guid)
            if delivery.attempts < FAULT_TRIES:
                await self._store.postpone(self._process, delivery.guid, repr(error), delay_s=10.0)
                return
            await self._settle(delivery, self._failed(delivery, event, replies.failed_ourselves(delivery.guid)))
        else:
            await self._settle(delivery, outcome.settlement())

    def _failed(self, delivery: Delivery, event: Event, text: str) -> Settlement:
        if not isinstance(event, CommentCreated):
            return Settlement(error=text)
        answer = replies.reply(event, self._origin(delivery), text)
        return Settlement(error=text, tellings=[answer, replies.reaction(event, "confused")])

    # --- what follows from an event ---

    async def _decide(self, delivery: Delivery, event: Event) -> _Outcome:
        outcome = _Outcome(delivery=delivery)
        match event:
            case CommentCreated():
                await self._comment(event, outcome)
            case PullRequestChanged(action="closed"):
                for run in await self._unfinished_of(event.repository, event.pull_request.number):
                    outcome.cancel.append((run.id, "the pull request was closed"))
            case PullRequestChanged():
                await self._push(event, outcome)
            case RerunRequested():
                await self._rerun(event, outcome)
        place = len(await self._store.queued())
        for index, new in enumerate(outcome.runs, start=1):
            outcome.tellings.append(queued_check_run(as_queued(new), place + index, self._policy.public_url))
        return outcome

    async def _comment(self, event: CommentCreated, outcome: _Outcome) -> None:
        origin = self._origin(outcome.delivery)
        await self._store.tell(None, [replies.reaction(event, "eyes")])
        permission = await self._github.permission(event.installation_id, event.repository.full_name, event.author.login)
        if permission not in MAY_COMMAND:
            outcome.tellings += [
                replies.reply(event, origin, replies.permission_refused(event.author.login, permission)),
                replies.reaction(event, "confused"),
            ]
            return
        pull_request = await self._github.pull_request(event.installation_id, event.repository.full_name, event.number)
        desk = await self._desk(
            event.installation_id, event.repository, pull_request, event.author.login, permission, "issue_comment"
        )
        refusals: list[str] = []
        answers: list[str] = []
        for command in commands.parse(event.body):
            try:
                answer = await self._obey(command, event, desk, outcome)
                if answer:
                    answers.append(answer)
            except (Refused, UsageError) as refusal:
                refusals.append(str(refusal))
        if refusals or answers:
            outcome.tellings.append(replies.reply(event, origin, "\n\n".join(refusals + answers)))
        outcome.tellings.append(replies.reaction(event, "confused" if refusals else "rocket"))
        outcome.tellings += desk.complaints()

    async def _obey(self, command: Command, event: CommentCreated, desk: _Desk, outcome: _Outcome) -> str | None:
        """Do what one command says; a text is the answer to it. Raises Refused, UsageError."""
        if command.word == "help":
            return _help(desk.catalogue)
        if command.problem:
            raise Refused(replies.command_unreadable(command.word, command.problem))
        if command.word == "approve":
            raise Refused(replies.approval_unknown())
        unfinished = await self._unfinished_of(event.repository, event.number)
        wanted = command.arguments.get("workflow")
        if command.word == "cancel":
            chosen = [run for run in unfinished if wanted is None or run.plan.workflow == wanted]
            if not chosen:
                raise Refused(
                    "Nothing is running or queued for this pull request" + (f" under the name {wanted}." if wanted else ".")
                )
            outcome.cancel += [(run.id, f"cancelled by {event.author.login}") for run in chosen]
            return None
        desk.check_may_run(self._policy)
        if command.word == "retest":
            plans = await self._plans_to_retest(desk, event, wanted)
        else:
            plans = planning.for_command(desk.catalogue, command, desk.facts)
        for plan in plans:
            self._queue(plan, desk, outcome, comment=event)
        return None

    async def _plans_to_retest(self, desk: _Desk, event: CommentCreated, wanted: str | None) -> Sequence[Plan]:
        """The newest run of the wanted workflow, or of every one that did not succeed, bound to the commit of today."""
        newest: dict[str, Run] = {}
        for run in await self._store.runs_of(event.repository.id, number=event.number):
            newest.setdefault(run.plan.workflow, run)
        ended = [run for run in newest.values() if run.state is RunState.FINISHED]
        if wanted is not None:
            chosen = [run for run in ended if run.plan.workflow == wanted]
        else:
            chosen = [run for run in ended if run.conclusion not in (Conclusion.SUCCESS, Conclusion.SKIPPED)]
        if not chosen and (wanted is not None or not newest):
            raise Refused(replies.nothing_to_retest(wanted))
        if not chosen:
            raise Refused(replies.nothing_failed())
        return [_bound_again(run.plan, desk.facts) for run in chosen]

    async def _push(self, event: PullRequestChanged, outcome: _Outcome) -> None:
        pull_request = event.pull_request
        if not pull_request.is_open:
            return
        permission = await self._github.permission(event.installation_id, event.repository.full_name, event.sender.login)
        desk = await self._desk(
            event.installation_id, event.repository, pull_request, event.sender.login, permission, "pull_request"
        )
        plans = list(planning.for_pull_request(desk.catalogue, event.action, desk.facts))
        older = [
            run
            for run in await self._unfinished_of(event.repository, pull_request.number)
            if run.source.sha != pull_request.head_sha
        ]
        planned = {plan.concurrency_group for plan in plans}
        for run in older:
            if run.plan.cancel_in_progress and run.plan.concurrency_group not in planned:
                outcome.cancel.append((run.id, f"superseded by {pull_request.head_sha[:7]}"))
                # Somebody asked for this workflow on this pull request. The new commit gets it too, if both the
                # pull request's author and whoever pushed may write; code that nobody asked to run never starts by itself.
                if desk.facts.trust is Trust.TRUSTED and permission in MAY_COMMAND:
                    plans.append(_bound_again(run.plan, desk.facts))
                    planned.add(run.plan.concurrency_group)
        if not plans:
            outcome.tellings += desk.complaints()
            return
        try:
            desk.check_may_run(self._policy)
        except Refused as refusal:
            outcome.tellings.append(
                replies.notice(event.installation_id, event.repository, pull_request.number, "refused", str(refusal))
            )
            return
        for plan in plans:
            self._queue(plan, desk, outcome)
        outcome.tellings += desk.complaints()

    async def _rerun(self, event: RerunRequested, outcome: _Outcome) -> None:
        runs = await self._runs_to_repeat(event)
        if not runs:
            log.info("re-run of %s: no run of ours", event.head_sha[:7])
            return
        number = runs[0].source.pull_request.number
        repository = event.repository
        permission = await self._github.permission(event.installation_id, repository.full_name, event.sender.login)

        def refuse(text: str) -> None:
            outcome.tellings.append(replies.notice(event.installation_id, repository, number, "refused", text))

        if permission not in MAY_COMMAND:
            refuse(replies.permission_refused(event.sender.login, permission))
            return
        pull_request = await self._github.pull_request(event.installation_id, repository.full_name, number)
        desk = await self._desk(event.installation_id, repository, pull_request, event.sender.login, permission, "check_run")
        try:
            desk.check_may_run(self._policy)
        except Refused as refusal:
            refuse(str(refusal))
            return
        at_that_commit = replace(desk, facts=replace(desk.facts, sha=event.head_sha))
        for run in runs:
            self._queue(_bound_again(run.plan, at_that_commit.facts), at_that_commit, outcome)

    async def _runs_to_repeat(self, event: RerunRequested) -> list[Run]:
        if event.external_id is not None:
            run = await self._store.run(event.external_id)
            return [run] if run is not None and run.source.repository.id == event.repository.id else []
        newest: dict[tuple[int, str], Run] = {}
        for run in await self._store.runs_of(event.repository.id, sha=event.head_sha):
            newest.setdefault((run.source.pull_request.number, run.plan.workflow), run)
        return [run for run in newest.values() if run.state is RunState.FINISHED]

    # --- helpers ---

    def _origin(self, delivery: Delivery) -> str:
        """Names the answer to a delivery: a replay of its payload under another GUID gets no second one."""
        return self._policy.run_id(delivery.payload, "reply")

    async def _unfinished_of(self, repository: Repository, number: int) -> list[Run]:
        return [
            run
            for run in await self._store.unfinished()
            if run.source.repository.id == repository.id and run.source.pull_request.number == number
        ]

    async def _desk(
        self,
        installation_id: int,
        repository: Repository,
        pull_request: PullRequest,
        actor: str,
        permission: str,
        event_name: str,
    ) -> _Desk:
        """Everything that a decision about one pull request needs, read fresh from GitHub."""
        author = pull_request.author.login
        if author.lower() != actor.lower():
            permission = await self._github.permission(installation_id, repository.full_name, author)
        trust = Trust.TRUSTED if permission in MAY_COMMAND else Trust.UNTRUSTED
        ref = pull_request.base_sha or pull_request.base_ref
        files = await self._github.workflow_files(installation_id, repository.full_name, ref)
        return _Desk(
            installation_id=installation_id,
            # In a thread: somebody may have filled the files with what takes long to read.
            catalogue=await asyncio.to_thread(self._catalogue, files, pull_request.base_ref),
            facts=planning.Facts(
                repository=repository,
                pull_request=pull_request,
                sha=pull_request.head_sha,
                actor=actor,
                trust=trust,
                event_name=event_name,
                max_ttl_s=self._policy.max_ttl_s,
            ),
        )

    def _catalogue(self, files: Mapping[str, bytes], base_ref: str) -> planning.Catalogue:
        return planning.catalogue(self._policy.operator_workflows(), files, base_ref=base_ref)

    def _queue(self, plan: Plan, desk: _Desk, outcome: _Outcome, comment: CommentCreated | None = None) -> None:
        facts = desk.facts
        distinction = f"{plan.workflow}/{len(outcome.runs)}"
        outcome.runs.append(
            NewRun(
                id=self._policy.run_id(outcome.delivery.payload, distinction),
                delivery_guid=outcome.delivery.guid,
                source=Source(
                    installation_id=desk.installation_id,
                    repository=facts.repository,
                    pull_request=facts.pull_request,
                    sha=facts.sha,
                    trust=facts.trust,
                    actor=facts.actor,
                    comment_id=comment.comment_id if comment else None,
                    is_review_comment=comment.is_review_comment if comment else False,
                ),
                plan=plan,
            )
        )


@dataclass(frozen=True, kw_only=True)
class _Desk:
    """One pull request, the workflows that exist for it, and what is known of its people."""

    installation_id: int
    catalogue: planning.Catalogue
    facts: planning.Facts

    def check_may_run(self, policy: Policy) -> None:
        """Raises Refused."""
        if not self.facts.pull_request.is_open:
            raise Refused(replies.pull_request_closed(self.facts.pull_request.number))
        if self.facts.trust is Trust.UNTRUSTED and policy.untrusted_refused is not None:
            raise Refused(replies.untrusted_refused(self.facts.pull_request.author.login, policy.untrusted_refused))

    def complaints(self) -> list[Telling]:
        """What is wrong with workflow files, told once per pull request in one comment."""
        if not self.catalogue.problems:
            return []
        text = replies.workflow_problems([problem.message for problem in self.catalogue.problems])
        return [
            replies.notice(self.installation_id, self.facts.repository, self.facts.pull_request.number, "problems", text),
        ]


def _help(catalogue: planning.Catalogue) -> str:
    entries = []
    for command in planning.commands(catalogue):
        inputs = tuple(f"{each.name}={each.default if each.default is not None else '…'}" for each in command.inputs)
        title = f"{command.title}: {command.description}" if command.description else command.title
        entries.append(replies.HelpEntry(word=command.word, title=title, inputs=inputs, origin=command.path))
    return replies.help_text(entries, [problem.message for problem in catalogue.problems])


def _bound_again(plan: Plan, facts: planning.Facts) -> Plan:
    """The same plan for another commit or another person: what it may touch is decided anew."""
    github = {
        **plan.github,
        "sha": facts.sha,
        "actor": facts.actor,
        "event_name": facts.event_name,
    }
    return replace(plan, github=github, secrets=plan.secrets if facts.trust is Trust.TRUSTED else ())
