"""The context of a decision about one pull request: its people, its workflows, and the operator's policy, as of now."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gibil_bot.caps import Caps
from gibil_bot.github import replies, trust_replies
from gibil_bot.model import Notification, PullRequest, Repository, Trust
from gibil_bot.planning import plan as planning
from gibil_bot.planning.services import ServiceCapabilities
from gibil_bot.planning.workflow import Input
from gibil_bot.ports import GitHub
from gibil_bot.runs.trust import TrustDecision


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What the operator allows."""

    allowed_accounts: frozenset[str] | None
    untrusted: str
    """Whether untrusted code may run on the machines: allow | approve (only a commit that a writer approved) | refuse."""
    provider: str
    trusted_apps: frozenset[str] = frozenset()
    """Apps whose pushes to the repository's own branches run without a command and without secrets; lower case."""
    max_ttl_s: int
    caps: Caps
    public_url: str
    commands_per_hour: int
    """Limit per person and repository."""
    run_id: Callable[[bytes, str], str]
    """(Delivery.digest, suffix) → a run's id. It depends on the body only, so a replayed body queues nothing twice."""
    operator_workflows: Callable[[], Mapping[str, bytes]]
    service_capabilities: ServiceCapabilities | None = None
    """What the machines support for services."""
    agents: planning.AgentSupport = field(default_factory=planning.AgentSupport)


class Refused(Exception):
    """The command is rejected; the message is the reply to its author."""


class NeedsApproval(Refused):
    """The commit waits for a writer: for an approval or, on a branch of the repository itself, for any command."""


@dataclass(frozen=True, kw_only=True)
class PullRequestContext:
    """One pull request, its workflows, and the decision whether it is trusted."""

    installation_id: int
    catalogue: planning.Catalogue
    event: planning.EventContext
    decision: TrustDecision

    def check_may_run(self, policy: Policy, *, asked: bool, is_approved: bool = False) -> None:
        """Raise Refused or NeedsApproval unless the head may run.

        `asked`: a person with write permission asked for exactly this commit to run. That counts as a review for a branch of
        the repository itself, but not for a fork.
        """
        if not self.event.pull_request.is_open:
            raise Refused(replies.pull_request_closed(self.event.pull_request.number))
        decision = self.decision
        if decision.trust is Trust.TRUSTED or policy.untrusted == "allow":
            return
        if policy.untrusted == "refuse":
            raise Refused(replies.untrusted_refused(decision.because, policy.provider))
        if decision.starts_automatically or decision.approved_by or is_approved or (asked and decision.is_branch):
            return
        if decision.is_branch:
            raise NeedsApproval(trust_replies.untrusted_branch_waits(self.event.sha, decision.because))
        raise NeedsApproval(trust_replies.needs_approval(self.event.sha, decision.because))

    def problem_notices(self) -> list[Notification]:
        """Return a comment about invalid workflow files, at most one per pull request."""
        if not self.catalogue.problems:
            return []
        text = replies.workflow_problems([problem.message for problem in self.catalogue.problems])
        return [
            replies.notice(self.installation_id, self.event.repository, self.event.pull_request.number, "problems", text),
        ]


async def read_context(
    github: GitHub,
    policy: Policy,
    installation_id: int,
    repository: Repository,
    pull_request: PullRequest,
    actor: str,
    decision: TrustDecision,
    event_name: str,
) -> PullRequestContext:
    """Read everything that a decision about one pull request needs. Raises GitHubError."""
    # The base branch as it is now, not the base commit recorded in the pull request: workflows that were fixed since then
    # count.
    files = await github.workflow_files(installation_id, repository.full_name, pull_request.base_ref)
    catalogue = await read_catalogue(policy, files, pull_request.base_ref)
    may_commit = not planning.may_need_to_commit(catalogue) or await github.git_data(installation_id).may_write()
    return PullRequestContext(
        installation_id=installation_id,
        catalogue=catalogue,
        event=planning.EventContext(
            repository=repository,
            pull_request=pull_request,
            sha=pull_request.head_sha,
            actor=actor,
            trust=decision.trust,
            event_name=event_name,
            max_ttl_s=policy.max_ttl_s,
            caps=policy.caps,
            service_capabilities=policy.service_capabilities,
            untrusted_because=decision.because,
            is_by_agent=decision.is_by_agent,
            may_commit=may_commit,
            agents=policy.agents,
        ),
        decision=decision,
    )


async def read_catalogue(policy: Policy, files: Mapping[str, bytes], base_ref: str) -> planning.Catalogue:
    """Parse the workflow files in a thread: a hostile file may take long to parse."""
    return await asyncio.to_thread(_catalogue, policy, files, base_ref)


def _catalogue(policy: Policy, files: Mapping[str, bytes], base_ref: str) -> planning.Catalogue:
    return planning.catalogue(policy.operator_workflows(), files, base_ref=base_ref, engines=policy.agents.engines)


def help_text(catalogue: planning.Catalogue) -> str:
    entries = []
    for command in planning.commands(catalogue):
        inputs = tuple(_usage(each) for each in sorted(command.inputs, key=lambda each: each.type == "text"))
        title = f"{command.title}: {command.description}" if command.description else command.title
        entries.append(replies.HelpEntry(word=command.word, title=title, inputs=inputs, source=command.path))
    return replies.help_text(entries, [problem.message for problem in catalogue.problems])


def _usage(each: Input) -> str:
    """Return how to write an input after its command."""
    if each.type == "text":
        return f"<{each.name}>" if each.required else f"[{each.name}]"
    return f"{each.name}={each.default if each.default is not None else '…'}"
