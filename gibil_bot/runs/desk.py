"""One pull request as it lies before us: its people and their permissions, the workflows that exist for it, read fresh."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from msgspec.structs import replace

from gibil_bot.github import replies
from gibil_bot.model import Plan, PullRequest, Repository, Telling, Trust
from gibil_bot.planning import plan as planning
from gibil_bot.planning.services import Grounds
from gibil_bot.ports import GitHub

MAY_COMMAND = frozenset({"admin", "write"})


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What the operator allows."""

    allowed_accounts: frozenset[str] | None
    untrusted_refused: str | None
    """The provider that does not take code of people without write permission; None: it may run here."""
    max_ttl_s: int
    public_url: str
    commands_per_hour: int
    """Of one person in one repository."""
    run_id: Callable[[bytes, str], str]
    """(payload, distinction) → a run's id: the same for the same payload, so that a replay queues nothing twice."""
    operator_workflows: Callable[[], Mapping[str, bytes]]
    grounds: Grounds | None = None
    """What the machines here can do for services."""


class Refused(Exception):
    """The command is not obeyed; the message is the answer to the person."""


@dataclass(frozen=True, kw_only=True)
class Desk:
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


async def read_desk(
    github: GitHub,
    policy: Policy,
    *,
    installation_id: int,
    repository: Repository,
    pull_request: PullRequest,
    actor: str,
    permission: str,
    event_name: str,
) -> Desk:
    """Everything that a decision about one pull request needs. `permission` is the actor's. Raises GitHubError."""
    author = pull_request.author.login
    if author.lower() != actor.lower():
        permission = await github.permission(installation_id, repository.full_name, author)
    trust = Trust.TRUSTED if permission in MAY_COMMAND else Trust.UNTRUSTED
    # The branch as it is now, and not the commit that the pull request remembers of it: a workflow that was mended counts.
    files = await github.workflow_files(installation_id, repository.full_name, pull_request.base_ref)
    return Desk(
        installation_id=installation_id,
        # In a thread: somebody may have filled the files with what takes long to read.
        catalogue=await asyncio.to_thread(_catalogue, policy, files, pull_request.base_ref),
        facts=planning.Facts(
            repository=repository,
            pull_request=pull_request,
            sha=pull_request.head_sha,
            actor=actor,
            trust=trust,
            event_name=event_name,
            max_ttl_s=policy.max_ttl_s,
            grounds=policy.grounds,
        ),
    )


def _catalogue(policy: Policy, files: Mapping[str, bytes], base_ref: str) -> planning.Catalogue:
    return planning.catalogue(policy.operator_workflows(), files, base_ref=base_ref)


def bound_again(plan: Plan, facts: planning.Facts) -> Plan:
    """The same plan for another commit or another person: what it may touch is decided anew."""
    github = {
        **plan.github,
        "sha": facts.sha,
        "actor": facts.actor,
        "event_name": facts.event_name,
    }
    return replace(plan, github=github, secrets=plan.secrets if facts.trust is Trust.TRUSTED else ())


def help_text(catalogue: planning.Catalogue) -> str:
    entries = []
    for command in planning.commands(catalogue):
        inputs = tuple(f"{each.name}={each.default if each.default is not None else '…'}" for each in command.inputs)
        title = f"{command.title}: {command.description}" if command.description else command.title
        entries.append(replies.HelpEntry(word=command.word, title=title, inputs=inputs, origin=command.path))
    return replies.help_text(entries, [problem.message for problem in catalogue.problems])
