"""Decides what follows from an event: permission, plans, cancellations and replies."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from msgspec import structs

from gibil_bot.clock import now
from gibil_bot.errors import UsageError
from gibil_bot.github import commands, replies, trust_replies
from gibil_bot.github.render import CHECK_PREFIX, check_name
from gibil_bot.model import (
    Approval,
    BranchPush,
    CancelRequest,
    CheckRunUpdate,
    Command,
    CommentCreated,
    Conclusion,
    Delivery,
    Event,
    HeadSeen,
    MergeGroupChecked,
    NewRun,
    Notification,
    PatchRequested,
    Person,
    Plan,
    PullRequest,
    PullRequestChanged,
    Repository,
    RequestText,
    RerunRequested,
    Run,
    RunRequested,
    RunState,
    Source,
    Trust,
)
from gibil_bot.planning import plan as planning
from gibil_bot.planning.schema import DEFAULT_ATTEMPTS
from gibil_bot.ports import DeliveryOutcome, GitHub, Store
from gibil_bot.runs import heads, last_failure, rate_limit
from gibil_bot.runs.context import NeedsApproval, Policy, PullRequestContext, Refused, help_text, read_catalogue, read_context
from gibil_bot.runs.events import only_cancels
from gibil_bot.runs.heads import observed_in
from gibil_bot.runs.queued_reports import as_queued, queued_check_run
from gibil_bot.runs.trust import MAY_COMMAND, TrustDecision, TrustEvaluator

log = logging.getLogger("gibil.intake")

MOST_MERGE_CHECKS = 20
_RUN_NOTHING = frozenset({"help", "cancel", "approve"})
_APPROVABLE = re.compile(r"[0-9a-f]{7,64}")
"""Shorter abbreviations match other commits too easily."""


@dataclass(frozen=True, kw_only=True)
class _Repeat:
    """One workflow of one pull request to run again; `workflow` None: unknown."""

    number: int
    workflow: str | None
    inputs: Mapping[str, str] = field(default_factory=dict)
    request: RequestText | None = None

    @classmethod
    def of(cls, run: Run) -> _Repeat:
        plan, source = run.plan, run.source
        return cls(number=source.pull_request.number, workflow=plan.workflow, inputs=plan.inputs, request=source.request)


@dataclass(kw_only=True)
class _Outcome:
    """The outcome of one delivery while it is being decided."""

    delivery: Delivery
    runs: list[NewRun] = field(default_factory=list)
    cancel: list[tuple[str, str]] = field(default_factory=list)
    cancel_earlier: list[CancelRequest] = field(default_factory=list)
    notifications: list[Notification] = field(default_factory=list)
    observed: list[HeadSeen | BranchPush | Approval] = field(default_factory=list)
    is_approved: bool = False
    """Whether an earlier command of the same comment approved the head."""
    refusal: str | None = None

    def result(self) -> DeliveryOutcome:
        return DeliveryOutcome(
            runs=self.runs,
            cancel=self.cancel,
            cancel_earlier=self.cancel_earlier,
            notifications=self.notifications,
            observed=self.observed,
            refusal=self.refusal,
        )


class EventHandlers:
    """Decides one delivery at a time. Writes nothing except the first reaction to a comment."""

    def __init__(self, store: Store, github: GitHub, policy: Policy) -> None:
        self._inbox, self._runs, self._outbox = store.inbox, store.runs, store.outbox
        self._github = github
        self._policy = policy
        self._trust = TrustEvaluator(store.inbox, store.runs, github, policy.trusted_apps)
        self._context = functools.partial(read_context, github, policy)

    async def decide(self, delivery: Delivery, event: Event) -> DeliveryOutcome:
        """Return the outcome of a delivery, to be stored. Raises GitHubError, StoreError."""
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
            case PatchRequested():
                await self._apply_patch(event, outcome)
            case MergeGroupChecked():
                await self._merge_group(event, outcome)
            case RunRequested():
                try:
                    await self._request(event, outcome)
                except (Refused, UsageError) as refusal:
                    outcome.refusal = str(refusal)
        queued = sum(run.state is RunState.QUEUED for run in await self._runs.unfinished())
        for index, new in enumerate(outcome.runs, start=1):
            outcome.notifications.append(queued_check_run(as_queued(new), queued + index, self._policy.public_url))
        return outcome.result()

    async def _comment(self, event: CommentCreated, outcome: _Outcome) -> None:
        reply_key, asked = self.reply_key(outcome.delivery), commands.parse(event.body)
        per_hour = self._policy.commands_per_hour
        refused = await rate_limit.comment_over_limit(self._inbox, per_hour, outcome.delivery, event, reply_key, asked)
        if refused is not None:
            outcome.notifications += refused
            return
        permission = await self._github.permission(event.installation_id, event.repository.full_name, event.author.login)
        if permission not in MAY_COMMAND:
            outcome.notifications += await rate_limit.permission_refused(
                self._inbox, outcome.delivery, event, reply_key, permission
            )
            return
        if seen := replies.reactions(event, "eyes"):
            await self._outbox.record(seen)
        if only_cancels(asked):
            await self._cancel_only(asked, event, outcome)
            return
        pull_request = await self._github.pull_request(event.installation_id, event.repository.full_name, event.number)
        if event.created_at is None and event.event_name == "issue_comment":
            written_at = await self._github.comment_time(event.installation_id, event.repository.full_name, event.comment_id)
            event = structs.replace(event, created_at=written_at)
        decision = await self._trust_of_comment(event, pull_request, permission, asked)
        outcome.observed += decision.observed
        context = await self._context(
            event.installation_id, event.repository, pull_request, event.author.login, decision, event.event_name
        )
        refusals: list[str] = []
        answers: list[str] = []
        for command in commands.parse(event.body, planning.free_text_words(context.catalogue)):
            try:
                answer = await self._execute(command, event, context, outcome)
                if answer:
                    answers.append(answer)
            except (Refused, UsageError) as refusal:
                if isinstance(refusal, NeedsApproval):
                    await self._ask_for_approval(context, str(refusal), outcome)
                refusals.append(str(refusal))
        self._answer(event, outcome, refusals, answers)
        outcome.notifications += context.problem_notices()

    def _answer(self, event: CommentCreated, outcome: _Outcome, refusals: Sequence[str], answers: Sequence[str] = ()) -> None:
        """Reply once to a comment for all its commands, without repeating a text.

        Executed commands show as check runs, and the comment already has its `eyes` reaction: only a rejection gets another
        one.
        """
        if refusals or answers:
            text = "\n\n".join(dict.fromkeys([*refusals, *answers]))
            outcome.notifications.append(replies.reply(event, self.reply_key(outcome.delivery), text))
        if refusals:
            outcome.notifications += replies.reactions(event, "confused")

    async def _cancel_only(self, asked: Sequence[Command], event: CommentCreated, outcome: _Outcome) -> None:
        """Cancel without reading the pull request and its workflow files: runs cost money until they stop."""
        refusals = []
        for command in asked:
            try:
                await self._cancel(command, event, outcome)
            except Refused as refusal:
                refusals.append(str(refusal))
        self._answer(event, outcome, refusals)

    async def _cancel(self, command: Command, event: CommentCreated, outcome: _Outcome) -> None:
        """Record the cancellation of matching runs. Raises Refused if there are none."""
        wanted, repository = command.arguments.get("workflow"), event.repository
        unfinished = await self._unfinished_of(repository, event.number)
        chosen = [run for run in unfinished if wanted is None or run.plan.workflow == wanted]
        # An earlier command may not have queued its runs yet: a cancellation doesn't wait for it.
        if not chosen and not await self._inbox.has_earlier(outcome.delivery.guid, repository.id, event.number):
            raise Refused(
                "Nothing is running or queued for this pull request" + (f" under the name {wanted}." if wanted else ".")
            )
        reason = f"cancelled by {event.author.login}"
        outcome.cancel_earlier.append(
            CancelRequest(repository_id=repository.id, number=event.number, workflow=wanted, reason=reason)
        )

    async def _trust_of_comment(
        self, event: CommentCreated, pull_request: PullRequest, permission: str, asked: Sequence[Command]
    ) -> TrustDecision:
        """Decide whether the commit is trusted. A command refers to the head at the time it was written; a review names its
        commit.
        """
        decision = await self._trust.evaluate(
            event.installation_id,
            event.repository,
            pull_request,
            requester=event.author,
            permission=permission,
            written_at=event.created_at,
            thread_updated_at=event.thread_updated_at,
            is_timed=event.commit_sha is None and any(command.word not in _RUN_NOTHING for command in asked),
        )
        if event.commit_sha is None:
            return decision
        moved = event.created_at is None or heads.moved_since(decision.history, pull_request.head_sha, event.created_at)
        return replace(decision, head_is_unmoved=event.commit_sha == pull_request.head_sha and not moved)

    async def _execute(
        self, command: Command, event: CommentCreated, context: PullRequestContext, outcome: _Outcome
    ) -> str | None:
        """Execute one command; return the text of a reply. Raises Refused, UsageError."""
        if command.word == "help":
            return help_text(context.catalogue)
        if command.problem:
            raise Refused(replies.command_unreadable(command.word, command.problem))
        if command.word == "approve":
            return await self._approve(command, event, context, outcome)
        if command.word == "cancel":
            await self._cancel(command, event, outcome)
            return None
        wanted = command.arguments.get("workflow")
        if context.event.pull_request.is_open and not context.decision.head_is_unmoved and not outcome.is_approved:
            raise Refused(trust_replies.head_moved(event.number, context.event.sha))
        context.check_may_run(self._policy, asked=True, is_approved=outcome.is_approved)
        if command.word == "retest":
            repeats = await self._to_retest(context, event, wanted)
            self._queue_again(repeats, context, outcome, comment=event)
            return None
        for plan in await self._plans_of(command, context):
            self._queue(plan, context, outcome, comment=event)
        return None

    async def _approve(self, command: Command, event: CommentCreated, context: PullRequestContext, outcome: _Outcome) -> str:
        """Allow the commit that the comment names to run, without secrets. Raises Refused."""
        head, decision = context.event.sha, context.decision
        if not context.event.pull_request.is_open:
            raise Refused(replies.pull_request_closed(event.number))
        sha = command.arguments.get("sha", "").lower()
        if not _APPROVABLE.fullmatch(sha) or set(command.arguments) != {"sha"}:
            raise Refused(trust_replies.approval_needs_sha(head))
        if not head.startswith(sha):
            raise Refused(trust_replies.approval_of_another(sha, head))
        if event.created_at is None or heads.moved_since(decision.history, head, event.created_at):
            raise Refused(trust_replies.approval_too_late(head))
        if decision.trust is Trust.TRUSTED or self._policy.untrusted == "allow":
            return trust_replies.approval_not_needed(head)
        if self._policy.untrusted == "refuse":
            raise Refused(trust_replies.approval_refused_here(self._policy.provider))
        outcome.is_approved = True
        outcome.observed.append(
            Approval(
                repository_id=event.repository.id, number=event.number, sha=head, by=event.author.login, at=event.created_at
            )
        )
        outcome.notifications.append(
            trust_replies.approval_check(
                event.installation_id, event.repository, event.number, head, text="", approved_by=event.author.login, now=now()
            )
        )
        started = await self._start_waiting_workflows(context, outcome)
        return trust_replies.approved(head, started)

    async def _start_waiting_workflows(self, context: PullRequestContext, outcome: _Outcome) -> int:
        """Queue the workflows that would have started automatically and haven't run at this commit; return their number."""
        event = context.event
        pushed = any(seen.action == "synchronize" and seen.sha == event.sha for seen in context.decision.history.heads)
        at_event = replace(context, event=replace(event, event_name="pull_request"))
        plans, refusals = planning.for_pull_request(context.catalogue, "synchronize" if pushed else "opened", at_event.event)
        if refusals:
            raise Refused("\n\n".join(refusals))
        ran = await self._runs.of_repository(event.repository.id, number=event.pull_request.number, sha=event.sha)
        missing = [plan for plan in plans if plan.workflow not in {run.plan.workflow for run in ran}]
        for plan in missing:
            self._queue(plan, at_event, outcome)
        return len(missing)

    async def _ask_for_approval(self, context: PullRequestContext, text: str, outcome: _Outcome) -> None:
        """Record one check run per commit, unless the current one already asks for an approval."""
        repository, number = context.event.repository, context.event.pull_request.number
        wanted = trust_replies.approval_check(
            context.installation_id, repository, number, context.event.sha, text=text, now=now()
        )
        if any(other.key == wanted.key for other in outcome.notifications):
            return
        stored = await self._outbox.get(wanted.key)
        shown = stored[0].notification.update if stored is not None else None
        assert isinstance(wanted.update, CheckRunUpdate)
        if not isinstance(shown, CheckRunUpdate) or shown.conclusion is not wanted.update.conclusion:
            outcome.notifications.append(wanted)

    async def _to_retest(self, context: PullRequestContext, event: CommentCreated, wanted: str | None) -> list[_Repeat]:
        """Return the newest run of the wanted workflow, or of every workflow that didn't succeed. Raises Refused.

        If the store has no runs, our check runs on the commit are used.
        """
        newest: dict[str, Run] = {}
        for run in await self._runs.of_repository(event.repository.id, number=event.number):
            newest.setdefault(run.plan.workflow, run)
        ended: list[tuple[_Repeat, str | None]] = [
            (_Repeat.of(run), run.conclusion) for run in newest.values() if run.state is RunState.FINISHED
        ]
        if not newest:
            checks = await self._github.check_runs(event.installation_id, event.repository.full_name, context.event.sha)
            # A check run that isn't completed never will be: its run is lost.
            ended = [
                (_Repeat(number=event.number, workflow=workflow), conclusion) for workflow, conclusion in _workflows_of(checks)
            ]
        if wanted is not None:
            chosen = [each for each, _ in ended if each.workflow == wanted]
        else:
            chosen = [each for each, how in ended if how not in (Conclusion.SUCCESS, Conclusion.NEUTRAL, Conclusion.SKIPPED)]
        if not chosen and (wanted is not None or not ended):
            raise Refused(replies.nothing_to_retest(wanted))
        if not chosen:
            raise Refused(replies.nothing_failed())
        return chosen

    def _queue_again(
        self, repeats: Sequence[_Repeat], context: PullRequestContext, outcome: _Outcome, comment: CommentCreated | None = None
    ) -> None:
        """Plan those workflows from the current files and queue them.

        Raises UsageError with the reasons why some can't be planned, after the others were queued.
        """
        problems = []
        for repeat in repeats:
            try:
                assert repeat.workflow is not None
                plan = planning.again(context.catalogue, repeat.workflow, repeat.inputs, context.event)
            except UsageError as problem:
                problems.append(problem.message)
            else:
                self._queue(plan, context, outcome, comment=comment, earlier=repeat.request)
        if problems:
            raise UsageError("\n\n".join(problems))

    async def _push(self, event: PullRequestChanged, outcome: _Outcome) -> None:
        pull_request, repository = event.pull_request, event.repository
        if not pull_request.is_open:
            return
        stated = observed_in(event, outcome.delivery.received_at)
        outcome.observed += stated
        is_own = await self._trust.is_own(event.sender)
        cause = await self._cause_of(event) if is_own else None
        if cause is not None:  # it counts as a push by the person who requested the run
            event = structs.replace(event, sender=Person(login=cause.source.actor))
        permission = await self._permission(event.installation_id, repository, event.sender)
        decision = await self._trust.evaluate(
            event.installation_id, repository, pull_request, requester=event.sender, permission=permission, stated=stated
        )
        outcome.observed += decision.observed
        if any(isinstance(seen, HeadSeen) and heads.is_overtaken(decision.history, seen) for seen in stated):
            log.info(
                "%s#%s: %s event arrived late, its commit is no longer the head",
                repository.full_name,
                pull_request.number,
                event.action,
            )
            return
        context = await self._context(
            event.installation_id, repository, pull_request, event.sender.login, decision, "pull_request"
        )
        planned_now, refusals = planning.for_pull_request(context.catalogue, event.action, context.event, is_own_push=is_own)
        plans = list(planned_now)
        if refusals:
            text = "\n\n".join(refusals)
            outcome.notifications.append(
                replies.notice(event.installation_id, repository, pull_request.number, "machines", text)
            )
        if not is_own:
            plans += await self._supersede(context, plans, outcome)
        outcome.notifications += context.problem_notices()
        try:
            context.check_may_run(self._policy, asked=False)
        except NeedsApproval as refusal:
            if plans or not decision.is_branch:
                await self._ask_for_approval(context, str(refusal), outcome)
            return
        except Refused as refusal:
            if plans:
                outcome.notifications.append(
                    replies.notice(event.installation_id, repository, pull_request.number, "refused", str(refusal))
                )
            return
        if not plans:
            return
        at_present = await self._github.pull_request(event.installation_id, repository.full_name, pull_request.number)
        if not at_present.is_open or _trust_basis(at_present) != _trust_basis(pull_request):
            log.info("%s#%s: %s is no longer the head", repository.full_name, pull_request.number, pull_request.head_sha[:7])
            return
        for plan in plans:
            if not (is_own or event.sender.is_bot) or await self._may_start_again(plan, event, outcome):
                self._queue(plan, context, outcome)

    async def _cause_of(self, event: PullRequestChanged) -> Run | None:
        """Return the run whose commits the bot pushed with this event; None if it isn't known any more."""
        head, repository_id = event.pull_request.head_sha, event.repository.id
        for number in (event.pull_request.number, None):  # a run may open another pull request
            for run in await self._runs.of_repository(repository_id, number=number):
                if run.commit is not None and run.commit.created == head:
                    return run
        return None

    async def _may_start_again(self, plan: Plan, event: PullRequestChanged, outcome: _Outcome) -> bool:
        """Return whether an App's push may start the workflow: Apps that answer each other's commits would never stop."""
        if not plan.max_attempts and plan.commit is None:
            return True
        number, most = event.pull_request.number, plan.max_attempts or DEFAULT_ATTEMPTS
        spending = await rate_limit.own_push(self._inbox, event.repository.id, number, plan.workflow, most)
        if spending.first_refusal:
            text = replies.loop_stopped(plan.workflow, most)
            outcome.notifications.append(
                replies.notice(event.installation_id, event.repository, number, f"loop:{plan.workflow}", text)
            )
        return spending.allowed

    async def _supersede(self, context: PullRequestContext, plans: Sequence[Plan], outcome: _Outcome) -> list[Plan]:
        """Cancel runs of older commits, and return plans of their workflows for the new commit.

        The workflows were requested on this pull request, so the new commit gets them too if it may start automatically. Code
        that was never requested to run doesn't start.
        """
        event = context.event
        successors: list[Plan] = []
        planned = {plan.concurrency_group for plan in plans}
        for run in await self._unfinished_of(event.repository, event.pull_request.number):
            old = run.plan
            if run.source.sha == event.sha or not old.cancel_in_progress:
                continue
            outcome.cancel.append((run.id, f"superseded by {event.sha[:7]}"))
            if context.decision.starts_automatically and old.concurrency_group not in planned:
                planned.add(old.concurrency_group)
                try:
                    successors.append(planning.again(context.catalogue, old.workflow, old.inputs, event))
                except UsageError as problem:
                    outcome.notifications.append(
                        replies.notice(
                            context.installation_id, event.repository, event.pull_request.number, "refused", problem.message
                        )
                    )
        return successors

    async def _rerun(self, event: RerunRequested, outcome: _Outcome) -> None:
        repeats = await self._repeats(event)
        if not repeats:
            log.info("re-run of %s: no run and no open pull request found", event.head_sha[:7])
            return
        limit = self._policy.commands_per_hour
        refused = await rate_limit.rerun_over_limit(
            self._inbox, limit, outcome.delivery, event.repository.id, event.sender.login
        )
        if refused is not None:
            if refused:
                outcome.notifications.append(
                    replies.notice(event.installation_id, event.repository, repeats[0].number, "refused", refused)
                )
            return
        permission = await self._permission(event.installation_id, event.repository, event.sender)
        for number in dict.fromkeys(repeat.number for repeat in repeats):
            same = [repeat for repeat in repeats if repeat.number == number]
            try:
                if permission not in MAY_COMMAND:
                    raise Refused(replies.permission_refused(event.sender.login, permission))
                await self._repeat(event, number, same, permission, outcome)
            except (Refused, UsageError) as refusal:
                outcome.notifications.append(
                    replies.notice(event.installation_id, event.repository, number, "refused", str(refusal))
                )

    async def _repeat(
        self, event: RerunRequested, number: int, repeats: Sequence[_Repeat], permission: str, outcome: _Outcome
    ) -> None:
        """Run these workflows of one pull request again. Raises Refused, UsageError."""
        repository = event.repository
        pull_request = await self._github.pull_request(event.installation_id, repository.full_name, number)
        if pull_request.is_open and pull_request.head_sha != event.head_sha:
            raise Refused(trust_replies.rerun_moved(event.head_sha, number, pull_request.head_sha))
        decision = await self._trust.evaluate(
            event.installation_id, repository, pull_request, requester=event.sender, permission=permission
        )
        outcome.observed += decision.observed
        context = await self._context(
            event.installation_id, repository, pull_request, event.sender.login, decision, "check_run"
        )
        try:
            context.check_may_run(self._policy, asked=True)
        except NeedsApproval as refusal:
            await self._ask_for_approval(context, str(refusal), outcome)
            raise
        if any(repeat.workflow is None for repeat in repeats):
            raise Refused(trust_replies.rerun_lost(event.check_name or "", event.head_sha))
        self._queue_again(repeats, context, outcome)

    async def _apply_patch(self, event: PatchRequested, outcome: _Outcome) -> None:
        """Queue a run that commits the stored changes of an earlier one. No code runs for it."""
        run = await self._runs.get(event.run_id)
        if run is None or run.source.repository.id != event.repository.id:
            log.info("a patch was requested of run %s, which is unknown", event.run_id)
            return
        number, plan, progress = run.source.pull_request.number, run.plan, run.commit
        try:
            refused = await rate_limit.rerun_over_limit(
                self._inbox, self._policy.commands_per_hour, outcome.delivery, event.repository.id, event.sender.login
            )
            if refused is not None:
                raise Refused(refused)
            permission = await self._permission(event.installation_id, event.repository, event.sender)
            if permission not in MAY_COMMAND:
                raise Refused(replies.permission_refused(event.sender.login, permission))
            if progress is None or not progress.can_be_applied(plan) or plan.commit is None:
                raise Refused(replies.no_patch(plan.workflow))
            for other in await self._runs.of_repository(event.repository.id, number=number):
                if other.plan.applies == run.id and other.state is not RunState.FINISHED:
                    return  # pressed twice
                if other.plan.applies == run.id and other.commit is not None and other.commit.phase == "moved":
                    raise Refused(replies.patch_applied(plan.workflow, other.commit.branch, other.commit.created or ""))
            pull_request = await self._github.pull_request(event.installation_id, event.repository.full_name, number)
            if not pull_request.is_open:
                raise Refused(replies.no_patch(plan.workflow))
            if run.source.trust is not Trust.TRUSTED and pull_request.head_sha != progress.expected:
                raise Refused(replies.patch_outdated(plan.workflow, progress.expected, pull_request.head_sha))
            if not await self._github.git_data(event.installation_id).may_write():
                raise Refused(replies.may_not_commit(event.repository.full_name))
        except Refused as problem:
            if text := str(problem):
                outcome.notifications.append(replies.notice(event.installation_id, event.repository, number, "refused", text))
            return
        commit = structs.replace(plan.commit, to="head", branch=None, pull_request=None, on_conflict="fail")
        outcome.runs.append(
            NewRun(
                id=self._policy.run_id(outcome.delivery.digest, f"apply/{plan.workflow}"),
                delivery_guid=outcome.delivery.guid,
                source=structs.replace(
                    run.source,
                    pull_request=pull_request,
                    actor=event.sender.login,
                    comment_id=None,
                    request=None,
                    is_by_agent=run.source.is_by_agent or plan.has_agent,
                ),
                plan=structs.replace(
                    plan,
                    tasks=(),
                    secrets=(),
                    commit=commit,
                    applies=run.id,
                    notes=(),
                    detected=None,
                    concurrency_group=f"apply/{run.id}",
                    cancel_in_progress=False,
                ),
            )
        )

    async def _repeats(self, event: RerunRequested) -> list[_Repeat]:
        """Return the workflows that a re-run refers to: from the store, else from the commit and the check run's name."""
        if event.external_id is not None:
            run = await self._runs.get(event.external_id)
            runs = [run] if run is not None and run.source.repository.id == event.repository.id else []
        else:
            runs = await self._runs.of_repository(event.repository.id, sha=event.head_sha)
        newest: dict[tuple[int, str], Run] = {}
        for run in runs:
            newest.setdefault((run.source.pull_request.number, run.plan.workflow), run)
        if newest:
            return [
                _Repeat.of(run) for run in newest.values() if event.external_id is not None or run.state is RunState.FINISHED
            ]
        repository = event.repository.full_name
        pulls = await self._github.pull_requests_of(event.installation_id, repository, event.head_sha)
        if not pulls:
            return []
        # One commit may be the head of several pull requests: its check runs were created for the oldest one.
        number = min(pull.number for pull in pulls)
        if event.external_id is not None:
            names: list[tuple[str, str | None]] = [(event.check_name or "", None)]
        else:
            names = await self._github.check_runs(event.installation_id, repository, event.head_sha)
        workflows: list[str | None] = [workflow for workflow, _ in _workflows_of(names)]
        # A re-run of one of our check runs gets a reply even if no workflow belongs to it.
        if not workflows and (event.external_id is not None or trust_replies.APPROVAL_CHECK in dict(names)):
            workflows = [None]
        return [_Repeat(number=number, workflow=workflow) for workflow in workflows]

    async def _request(self, event: RunRequested, outcome: _Outcome) -> None:
        """Queue what a person asked for over the API, under the rules of a comment. Raises as `_execute` does."""
        repository, person = event.repository, event.person
        limit = self._policy.commands_per_hour
        refused = await rate_limit.request_over_limit(self._inbox, limit, outcome.delivery, event)
        if refused is not None:
            raise Refused(refused)
        permission = await self._permission(event.installation_id, repository, person)
        if permission not in MAY_COMMAND:
            raise Refused(replies.permission_refused(person.login, permission))
        pull_request = await self._github.pull_request(event.installation_id, repository.full_name, event.number)
        if pull_request.is_open and pull_request.head_sha != event.head_sha:
            raise Refused(trust_replies.rerun_moved(event.head_sha, event.number, pull_request.head_sha))
        decision = await self._trust.evaluate(
            event.installation_id, repository, pull_request, requester=person, permission=permission
        )
        outcome.observed += decision.observed
        context = await self._context(
            event.installation_id, repository, pull_request, person.login, decision, "workflow_dispatch"
        )
        try:
            context.check_may_run(self._policy, asked=True)
        except NeedsApproval as refusal:
            await self._ask_for_approval(context, str(refusal), outcome)
            raise
        command = Command(word=event.workflow, arguments=event.inputs)
        for plan in await self._plans_of(command, context):
            self._queue(plan, context, outcome)

    async def _merge_group(self, event: MergeGroupChecked, outcome: _Outcome) -> None:
        """Fail each of our checks at once, saying what to do: a merge queue waits for every required check."""
        files = await self._github.workflow_files(event.installation_id, event.repository.full_name, event.base_ref)
        catalogue = await read_catalogue(self._policy, files, event.base_ref)
        for workflow in catalogue.workflows[:MOST_MERGE_CHECKS]:
            outcome.notifications.append(
                trust_replies.merge_queue_check(
                    event.installation_id, event.repository, event.head_sha, check_name(workflow.name), workflow.name, now=now()
                )
            )

    # --- helpers ---

    def reply_key(self, delivery: Delivery) -> str:
        """Return the key of the reply to a delivery: a replay of its payload under another GUID gets no second reply."""
        return self._policy.run_id(delivery.digest, "reply")

    async def _unfinished_of(self, repository: Repository, number: int) -> list[Run]:
        return [
            run
            for run in await self._runs.unfinished()
            if run.source.repository.id == repository.id and run.source.pull_request.number == number
        ]

    async def _plans_of(self, command: Command, context: PullRequestContext) -> tuple[Plan, ...]:
        """Return the plans of a command. Raises UsageError, Refused."""
        plans = planning.for_command(context.catalogue, command, context.event)
        repository, number = context.event.repository, context.event.pull_request.number
        if any(map(last_failure.is_wanted, plans)) and not await last_failure.last_failed_run(
            self._runs, repository.id, number
        ):
            raise Refused(last_failure.NONE_FAILED)
        return plans

    def _queue(
        self,
        plan: Plan,
        context: PullRequestContext,
        outcome: _Outcome,
        comment: CommentCreated | None = None,
        earlier: RequestText | None = None,
    ) -> None:
        """`earlier`: the text of the request that is repeated, for the case that this one has none."""
        event, request = context.event, None
        if plan.has_agent:
            request = (_request_text(comment, context) if comment is not None else None) or earlier
        suffix = f"{plan.workflow}/{len(outcome.runs)}"
        outcome.runs.append(
            NewRun(
                id=self._policy.run_id(outcome.delivery.digest, suffix),
                delivery_guid=outcome.delivery.guid,
                source=Source(
                    installation_id=context.installation_id,
                    repository=event.repository,
                    pull_request=event.pull_request,
                    sha=event.sha,
                    trust=event.trust,
                    actor=event.actor,
                    comment_id=comment.comment_id if comment and not comment.is_review else None,
                    is_review_comment=comment.is_review_comment if comment else False,
                    is_by_agent=event.is_by_agent,
                    request=request,
                ),
                plan=plan,
            )
        )

    async def _permission(self, installation_id: int, repository: Repository, person: Person) -> str:
        """Return the permission of a user; `none` for an App, which can't be a collaborator."""
        if person.is_bot:
            return "none"
        return await self._github.permission(installation_id, repository.full_name, person.login)


def _trust_basis(pull_request: PullRequest) -> tuple[str, int | None, str | None]:
    """Return what a decision about trust depends on: the commit, its repository and the repository's owner."""
    return pull_request.head_sha, pull_request.head_repository_id, pull_request.head_owner


def _request_text(comment: CommentCreated, context: PullRequestContext) -> RequestText | None:
    """Return what the comment says outside of its commands; None if nothing."""
    words, quotes = commands.around_commands(comment.body, planning.free_text_words(context.catalogue))
    return RequestText(author=comment.author.login, words=words, quotes=quotes) if words or quotes else None


def _workflows_of(checks: Sequence[tuple[str, str | None]]) -> Iterator[tuple[str, str | None]]:
    """Yield (workflow, conclusion) of the check runs that belong to workflows."""
    for name, conclusion in checks:
        if name.startswith(CHECK_PREFIX) and name != trust_replies.APPROVAL_CHECK:
            yield name.removeprefix(CHECK_PREFIX), conclusion
