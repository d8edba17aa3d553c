"""A local git checkout that can be run: its commit, its workflow files, and a run of one of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gibil_bot.caps import Caps
from gibil_bot.commits.local_repository import explained, open_repository
from gibil_bot.commits.submodules import Surroundings, surroundings_of
from gibil_bot.errors import UsageError
from gibil_bot.git import GitError
from gibil_bot.model import NewRun, Person, Plan, PullRequest, Repository, Source, Trust
from gibil_bot.planning import plan as planning
from gibil_bot.planning.services import ServiceCapabilities
from gibil_bot.runs import last_failure
from gibil_bot.runs.commit_files import workflow_files


@dataclass(frozen=True, kw_only=True)
class Checkout:
    """One commit of a checkout. With uncommitted changes it is a commit that no branch contains."""

    repository: Path
    """A repository that we created, with the commit. `promisor`: where a partial clone fetches missing objects."""
    promisor: str | None
    sha: str
    folder: Path
    """Its top folder, on this computer."""
    branch: str
    """Empty if HEAD is detached."""
    name: str
    """`owner/name` from its origin's URL, or the folder's name."""
    person: str
    files: Mapping[str, bytes]
    """`.gibil.yml` and `.gibil/workflows/*.yml` of that commit."""
    surroundings: Surroundings
    """Where its submodules and its files of Git LFS come from."""

    @property
    def identity(self) -> str:
        """What distinguishes it from every other checkout on this computer; its name is only what its configuration says."""
        return os.path.realpath(self.folder)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the operator allows a run on this host."""

    operator_workflows: Callable[[], Mapping[str, bytes]]
    max_ttl_s: int
    caps: Caps
    service_capabilities: ServiceCapabilities
    agents: planning.AgentSupport = field(default_factory=planning.AgentSupport)


@contextlib.asynccontextmanager
async def read(path: Path, *, dirty: bool, github_url: str = "") -> AsyncIterator[Checkout]:
    """Open a checkout for the duration of the block. Raises UsageError if it has no commit to run."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            found = await stack.enter_async_context(open_repository(path))
            head = None if found.is_bare else await found.head()
        except (GitError, OSError) as error:
            raise UsageError(f"{path} is not a git checkout with a commit: {error}") from error
        if found.is_bare:
            raise UsageError(f"{path} is a bare repository: it has no working tree to try")
        if head is None:
            raise UsageError(f"{path} is not a git checkout with a commit: its HEAD doesn't point to one")
        try:
            sha = await found.commit_of_working_tree(head) if dirty else head
            await found.copy_refs(head)
            checkout = Checkout(
                repository=found.view,
                promisor=found.promisor,
                sha=sha,
                folder=found.folder,
                branch=await found.current_branch() or "",
                name=_name(found.origin_url() or "", found.folder),
                person=found.config("user.name") or os.environ.get("USER", "you"),
                files=await workflow_files(found.view, sha),
                surroundings=surroundings_of(found, github_url),
            )
        except GitError as error:
            raise UsageError(f"{path} can't be read: {explained(error, found.promisor).message}") from error
        yield checkout


def _name(url: str, folder: Path) -> str:
    words = url.removesuffix(".git").replace(":", "/").rstrip("/").split("/")
    return "/".join(words[-2:]) if len(words) >= 2 and all(words[-2:]) else folder.name


async def plan(checkout: Checkout, workflow: str, inputs: Mapping[str, str], limits: Limits) -> Plan:
    """Return the plan of a workflow given by its name, command or file. Raises UsageError, InvalidWorkflow."""
    operator = dict(await asyncio.to_thread(limits.operator_workflows))
    if workflow.endswith((".yml", ".yaml")):
        path = Path(workflow)
        workflow = path.stem
        try:
            operator[path.name] = await asyncio.to_thread(path.read_bytes)
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from error
    base, engines = checkout.branch or checkout.sha[:7], limits.agents.engines
    catalogue = planning.catalogue(operator, checkout.files, base_ref=base, engines=engines)
    by_command = {each.command: each.name for each in catalogue.workflows if each.command}
    names = {each.name for each in catalogue.workflows}
    name = workflow if workflow in names else by_command.get(workflow, workflow)
    found = planning.for_workflow(catalogue, name, inputs, _event_context(checkout, limits))
    if last_failure.is_wanted(found):
        raise UsageError(f"{workflow} is about a failed run of a pull request, and runs of `gibil try` are not stored")
    return found


def _event_context(checkout: Checkout, limits: Limits) -> planning.EventContext:
    return planning.EventContext(
        repository=_repository(checkout),
        pull_request=_pull_request(checkout),
        sha=checkout.sha,
        actor=checkout.person,
        trust=Trust.TRUSTED,
        event_name="issue_comment",
        max_ttl_s=limits.max_ttl_s,
        caps=limits.caps,
        service_capabilities=limits.service_capabilities,
        agents=limits.agents,
    )


def _repository(checkout: Checkout) -> Repository:
    return Repository(id=0, full_name=checkout.name, clone_url="", default_branch=checkout.branch, private=True)


def _pull_request(checkout: Checkout) -> PullRequest:
    return PullRequest(
        number=0,
        title=checkout.branch or f"commit {checkout.sha[:7]}",
        author=Person(login=checkout.person),
        head_sha=checkout.sha,
        head_ref=checkout.branch,
        head_repository=checkout.name,
        base_ref=checkout.branch,
        base_sha=checkout.sha,
    )


def new_run(checkout: Checkout, plan: Plan) -> NewRun:
    """Return a run that no delivery requested."""
    return NewRun(
        id=secrets.token_hex(8),
        delivery_guid="",
        source=Source(
            installation_id=0,
            repository=_repository(checkout),
            pull_request=_pull_request(checkout),
            sha=checkout.sha,
            trust=Trust.TRUSTED,
            actor=checkout.person,
        ),
        plan=plan,
    )
