"""The context of a decision about one pull request: its people, its workflows, and what the operator allows, as of now."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gibil_bot.caps import Caps
from gibil_bot.github import replies, trust_replies
from gibil_bot.model import Notification, PullRequest, Repository, Trust
from gibil_bot.planning import plan as planning
from gibil_bot.planning.services import ServiceCapabilities
from gibil_bot.ports import GitHub
from gibil_bot.runs.trust import TrustDecision


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What the operator allows."""

    allowed_accounts: frozenset[str] | None
    untrusted: str
    """What untrusted code may do on the machines here: allow | approve (a commit that a writer approved runs) | refuse."""
    provider: str
    trusted_apps: frozenset[str] = frozenset()
    """Apps whose pushes to branches of the repository itself run without a command and without secrets; lower case."""
    max_ttl_s: int
    caps: Caps
    public_url: str
    commands_per_hour: int
    """Of one person in one repository."""
    run_id: Callable[[bytes, str], str]
    """(Delivery.digest, distinction) → a run's id: the same for the same body, so that a replay queues nothing twice."""
    operator_workflows: Callable[[], Mapping[str, bytes]]
    grounds: ServiceCapabilities | None = None
    """What the machines here can do for services."""


class Refused(Exception):
    """The command is rejected; the message is the answer to its author."""


class NeedsApproval(Refused):
    """The commit waits for a writer: for an approval, or, on a branch of the repository itself, for any command."""


@dataclass(frozen=True, kw_only=True)
class PullRequestContext:
    """One pull request, the workflows that exist for it, and what is known of its people."""

    installation_id: int
    catalogue: planning.Catalogue
    facts: planning.EventContext
    standing: TrustDecision

    def check_may_run(self, policy: Policy, *, asked: bool, is_approved: bool = False) -> None:
        """`asked`: a person with write permission asked for this very commit to run, which is a review of a branch of the
        repository itself, and not of a fork. Raises Refused, NeedsApproval."""
        if not self.facts.pull_request.is_open:
            raise Refused(replies.pull_request_closed(self.facts.pull_request.number))
        standing = self.standing
        if standing.trust is Trust.TRUSTED or policy.untrusted == "allow":
            return
        if policy.untrusted == "refuse":
            raise Refused(replies.untrusted_refused(standing.because, policy.provider))
        if standing.starts_alone or standing.approved_by or is_approved or (asked and standing.is_branch):
            return
        if standing.is_branch:
            raise NeedsApproval(trust_replies.untrusted_branch_waits(self.facts.sha, standing.because))
        raise NeedsApproval(trust_replies.needs_approval(self.facts.sha, standing.because))

    def complaints(self) -> list[Notification]:
        """A comment about invalid workflow files, one per pull request."""
        if not self.catalogue.problems:
            return []
        text = replies.workflow_problems([problem.message for problem in self.catalogue.problems])
        return [
            replies.notice(self.installation_id, self.facts.repository, self.facts.pull_request.number, "problems", text),
        ]


async def read_context(
    github: GitHub,
    policy: Policy,
    installation_id: int,
    repository: Repository,
    pull_request: PullRequest,
    actor: str,
    standing: TrustDecision,
    event_name: str,
) -> PullRequestContext:
    """Everything that a decision about one pull request needs. Raises GitHubError."""
    # The branch as it is now, and not the commit that the pull request remembers of it: a workflow that was fixed there counts.
    files = await github.workflow_files(installation_id, repository.full_name, pull_request.base_ref)
    return PullRequestContext(
        installation_id=installation_id,
        catalogue=await read_catalogue(policy, files, pull_request.base_ref),
        facts=planning.EventContext(
            repository=repository,
            pull_request=pull_request,
            sha=pull_request.head_sha,
            actor=actor,
            trust=standing.trust,
            event_name=event_name,
            max_ttl_s=policy.max_ttl_s,
            caps=policy.caps,
            grounds=policy.grounds,
            untrusted_because=standing.because,
        ),
        standing=standing,
    )


async def read_catalogue(policy: Policy, files: Mapping[str, bytes], base_ref: str) -> planning.Catalogue:
    """In a thread: a workflow file may be written to take long to parse."""
    return await asyncio.to_thread(_catalogue, policy, files, base_ref)


def _catalogue(policy: Policy, files: Mapping[str, bytes], base_ref: str) -> planning.Catalogue:
    return planning.catalogue(policy.operator_workflows(), files, base_ref=base_ref)


def help_text(catalogue: planning.Catalogue) -> str:
    entries = []
    for command in planning.commands(catalogue):
        inputs = tuple(f"{each.name}={each.default if each.default is not None else '…'}" for each in command.inputs)
        title = f"{command.title}: {command.description}" if command.description else command.title
        entries.append(replies.HelpEntry(word=command.word, title=title, inputs=inputs, origin=command.path))
    return replies.help_text(entries, [problem.message for problem in catalogue.problems])
