"""What follows from an event: who may, which plans, what is cancelled, what is answered."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from gibil_bot.errors import UsageError
from gibil_bot.github import commands, replies
from gibil_bot.model import (
    Command,
    CommentCreated,
    Conclusion,
    Delivery,
    Event,
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
from gibil_bot.runs import rate_limit
from gibil_bot.runs.desk import MAY_COMMAND, Desk, Policy, Refused, bound_again, help_text, read_desk
from gibil_bot.runs.reports import as_queued, queued_check_run

log = logging.getLogger("gibil.intake")


@dataclass(kw_only=True)
class _Outcome:
    """What one delivery comes to, while it is being found out."""

    delivery: Delivery
    runs: list[NewRun] = field(default_factory=list)
    cancel: list[tuple[str, str]] = field(default_factory=list)
    tellings: list[Telling] = field(default_factory=list)

    def settlement(self) -> Settlement:
        return Settlement(runs=self.runs, cancel=self.cancel, tellings=self.tellings)


class Decisions:
    """Decides one delivery at a time; writes nothing but the first sign that it was seen."""

    def __init__(self, store: Store, github: GitHub, policy: Policy) -> None:
        self._store = store
        self._github = github
        self._policy = policy

    async def settle(self, delivery: Delivery, event: Event) -> Settlement:
        """What to write for this delivery. Raises GitHubError, StoreError."""
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
        return outcome.settlement()

    async def _comment(self, event: CommentCreated, outcome: _Outcome) -> None:
        origin = self.origin(outcome.delivery)
        per_hour = self._policy.commands_per_hour
        refused = await rate_limit.comment_over_limit(self._store, per_hour, outcome.delivery, event, origin)
        if refused is not None:
            outcome.tellings += refused
            return
        permission = await self._github.permission(event.installation_id, event.repository.full_name, event.author.login)
        if permission not in MAY_COMMAND:
            outcome.tellings += await rate_limit.permission_refused(self._store, outcome.delivery, event, origin, permission)
            return
        await self._store.tell(None, [replies.reaction(event, "eyes")])
        asked = commands.parse(event.body)
        if asked and all(command.word == "cancel" and not command.problem for command in asked):
            await self._cancel_only(asked, event, outcome, origin)
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

    async def _cancel_only(self, asked: Sequence[Command], event: CommentCreated, outcome: _Outcome, origin: str) -> None:
        """Without the pull request and its workflow files: what is cancelled costs until it stops."""
        refusals = []
        for command in asked:
            try:
                await self._cancel(command, event, outcome)
            except Refused as refusal:
                refusals.append(str(refusal))
        if refusals:
            outcome.tellings.append(replies.reply(event, origin, "\n\n".join(refusals)))
        outcome.tellings.append(replies.reaction(event, "confused" if refusals else "rocket"))

    async def _cancel(self, command: Command, event: CommentCreated, outcome: _Outcome) -> None:
        """Raises Refused."""
        wanted = command.arguments.get("workflow")
        unfinished = await self._unfinished_of(event.repository, event.number)
        chosen = [run for run in unfinished if wanted is None or run.plan.workflow == wanted]
        if not chosen:
            raise Refused(
                "Nothing is running or queued for this pull request" + (f" under the name {wanted}." if wanted else ".")
            )
        outcome.cancel += [(run.id, f"cancelled by {event.author.login}") for run in chosen]

    async def _obey(self, command: Command, event: CommentCreated, desk: Desk, outcome: _Outcome) -> str | None:
        """Do what one command says; a text is the answer to it. Raises Refused, UsageError."""
        if command.word == "help":
            return help_text(desk.catalogue)
        if command.problem:
            raise Refused(replies.command_unreadable(command.word, command.problem))
        if command.word == "approve":
            raise Refused(replies.approval_unknown())
        if command.word == "cancel":
            await self._cancel(command, event, outcome)
            return None
        wanted = command.arguments.get("workflow")
        desk.check_may_run(self._policy)
        if command.word == "retest":
            plans = await self._plans_to_retest(desk, event, wanted)
        else:
            plans = planning.for_command(desk.catalogue, command, desk.facts)
        for plan in plans:
            self._queue(plan, desk, outcome, comment=event)
        return None

    async def _plans_to_retest(self, desk: Desk, event: CommentCreated, wanted: str | None) -> Sequence[Plan]:
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
        return [bound_again(run.plan, desk.facts) for run in chosen]

    async def _push(self, event: PullRequestChanged, outcome: _Outcome) -> None:
        pull_request = event.pull_request
        if not pull_request.is_open:
            return
        permission = await self._github.permission(event.installation_id, event.repository.full_name, event.sender.login)
        desk = await self._desk(
            event.installation_id, event.repository, pull_request, event.sender.login, permission, "pull_request"
        )
        planned_now, refusals = planning.for_pull_request(desk.catalogue, event.action, desk.facts)
        plans = list(planned_now)
        if refusals:
            text = "\n\n".join(refusals)
            outcome.tellings.append(
                replies.notice(event.installation_id, event.repository, pull_request.number, "machines", text)
            )
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
                    plans.append(bound_again(run.plan, desk.facts))
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

        def refuse(text: str) -> None:
            outcome.tellings.append(replies.notice(event.installation_id, repository, number, "refused", text))

        limit = self._policy.commands_per_hour
        refused = await rate_limit.rerun_over_limit(self._store, limit, outcome.delivery, event)
        if refused is not None:
            if refused:
                refuse(refused)
            return
        permission = await self._github.permission(event.installation_id, repository.full_name, event.sender.login)
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
            self._queue(bound_again(run.plan, at_that_commit.facts), at_that_commit, outcome)

    async def _runs_to_repeat(self, event: RerunRequested) -> list[Run]:
        if event.external_id is not None:
            run = await self._store.run(event.external_id)
            return [run] if run is not None and run.source.repository.id == event.repository.id else []
        newest: dict[tuple[int, str], Run] = {}
        for run in await self._store.runs_of(event.repository.id, sha=event.head_sha):
            newest.setdefault((run.source.pull_request.number, run.plan.workflow), run)
        return [run for run in newest.values() if run.state is RunState.FINISHED]

    # --- helpers ---

    def origin(self, delivery: Delivery) -> str:
        """Names the answer to a delivery: a replay of its payload under another GUID gets no second one."""
        return self._policy.run_id(delivery.payload, "reply")

    async def _unfinished_of(self, repository: Repository, number: int) -> list[Run]:
        return [
            run
            for run in await self._store.unfinished()
            if run.source.repository.id == repository.id and run.source.pull_request.number == number
        ]

    def _queue(self, plan: Plan, desk: Desk, outcome: _Outcome, comment: CommentCreated | None = None) -> None:
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

    async def _desk(
        self,
        installation_id: int,
        repository: Repository,
        pull_request: PullRequest,
        actor: str,
        permission: str,
        event_name: str,
    ) -> Desk:
        return await read_desk(
            self._github,
            self._policy,
            installation_id=installation_id,
            repository=repository,
            pull_request=pull_request,
            actor=actor,
            permission=permission,
            event_name=event_name,
        )
