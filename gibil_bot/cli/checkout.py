"""A local checkout as something that can be run: its commit, its workflow files, and a run of one of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from gibil_bot.config import Settings
from gibil_bot.errors import GibilError, UsageError
from gibil_bot.model import Claim, Delivery, NewRun, Person, Plan, PullRequest, Repository, Source, Trust
from gibil_bot.planning import plan as planning
from gibil_bot.ports import Settlement, Store
from gibil_bot.runs.sources import SourceError, git
from gibil_bot.wiring import machine_caps, operator_workflows, service_grounds

WORKFLOW_LIMIT_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class Checkout:
    """One commit of a folder. With uncommitted changes it is a commit that no branch names."""

    folder: Path
    sha: str
    branch: str
    name: str
    """`owner/name` of its origin, or the folder's name."""
    person: str
    files: Mapping[str, bytes]
    """`.gibil.yml` and `.gibil/workflows/*.yml` of that commit."""


async def read(path: Path, *, dirty: bool) -> Checkout:
    """Raises UsageError where there is no commit to run."""
    try:
        folder = Path(await git(path, "rev-parse", "--show-toplevel"))
        head = await git(folder, "rev-parse", "--verify", "HEAD^{commit}")
    except SourceError as error:
        raise UsageError(f"{path} is not a git checkout with a commit: {error.message}") from error
    sha = await _commit_of_what_lies_there(folder, head) if dirty else head
    branch = await git(folder, "rev-parse", "--abbrev-ref", "HEAD")
    return Checkout(
        folder=folder,
        sha=sha,
        branch=branch,
        name=await _name(folder),
        person=await _config(folder, "user.name") or os.environ.get("USER", "you"),
        files=await _workflow_files(folder, sha),
    )


async def _commit_of_what_lies_there(folder: Path, head: str) -> str:
    """A commit of the working tree, new files included, through an index of its own: nothing of the person's is touched."""
    with tempfile.TemporaryDirectory(prefix="gibil-index-") as scratch:
        environment = {"GIT_INDEX_FILE": f"{scratch}/index"}
        await git(folder, "read-tree", head, environment=environment)
        await git(folder, "add", "--all", environment=environment)
        tree = await git(folder, "write-tree", environment=environment)
    author = {"GIT_AUTHOR_NAME": "gibil", "GIT_AUTHOR_EMAIL": "gibil@localhost"}
    committer = {"GIT_COMMITTER_NAME": "gibil", "GIT_COMMITTER_EMAIL": "gibil@localhost"}
    return await git(folder, "commit-tree", tree, "-p", head, "-m", "uncommitted changes", environment={**author, **committer})


async def _name(folder: Path) -> str:
    url = await _config(folder, "remote.origin.url")
    words = url.removesuffix(".git").replace(":", "/").rstrip("/").split("/")
    return "/".join(words[-2:]) if len(words) >= 2 and all(words[-2:]) else folder.name


async def _config(folder: Path, key: str) -> str:
    with contextlib.suppress(SourceError):
        return await git(folder, "config", "--get", key)
    return ""


async def _workflow_files(folder: Path, sha: str) -> dict[str, bytes]:
    listing = await git(folder, "ls-tree", "-r", "--name-only", sha, "--", ".gibil.yml", ".gibil/workflows")
    files = {}
    for path in listing.splitlines():
        if path == ".gibil.yml" or path.endswith((".yml", ".yaml")):
            # With its blank lines: problems are told by line.
            text = await git(folder, "show", f"{sha}:{path}", strip=False)
            files[path] = text.encode("utf-8", "surrogateescape")[: WORKFLOW_LIMIT_BYTES + 1]
    return files


async def plan(checkout: Checkout, settings: Settings, workflow: str, inputs: Mapping[str, str]) -> Plan:
    """The plan of a workflow named by its name, its command or its file. Raises UsageError, InvalidWorkflow."""
    operator = dict(await asyncio.to_thread(operator_workflows(settings)))
    if workflow.endswith((".yml", ".yaml")):
        path = Path(workflow)
        workflow = path.stem
        try:
            operator[path.name] = await asyncio.to_thread(path.read_bytes)
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from error
    catalogue = planning.catalogue(operator, checkout.files, base_ref=checkout.branch)
    by_command = {each.command: each.name for each in catalogue.workflows if each.command}
    names = {each.name for each in catalogue.workflows}
    name = workflow if workflow in names else by_command.get(workflow, workflow)
    return planning.for_workflow(catalogue, name, inputs, _facts(checkout, settings))


def _facts(checkout: Checkout, settings: Settings) -> planning.Facts:
    return planning.Facts(
        repository=_repository(checkout),
        pull_request=_pull_request(checkout),
        sha=checkout.sha,
        actor=checkout.person,
        trust=Trust.TRUSTED,
        event_name="issue_comment",
        max_ttl_s=settings.max_ttl_s,
        caps=machine_caps(settings),
        grounds=service_grounds(settings),
    )


def _repository(checkout: Checkout) -> Repository:
    return Repository(id=0, full_name=checkout.name, clone_url="", default_branch=checkout.branch, private=True)


def _pull_request(checkout: Checkout) -> PullRequest:
    return PullRequest(
        number=0,
        title=checkout.branch,
        author=Person(login=checkout.person),
        head_sha=checkout.sha,
        head_ref=checkout.branch,
        head_repository=checkout.name,
        base_ref=checkout.branch,
        base_sha=checkout.sha,
    )


def new_run(checkout: Checkout, plan: Plan) -> NewRun:
    return NewRun(
        id=secrets.token_hex(8),
        delivery_guid="try",
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


async def queue_and_claim(store: Store, process: str, new: NewRun) -> Claim:
    """Through the same doors as the bot's runs: a delivery, its settlement, a claim."""
    await store.accept(Delivery(guid=new.delivery_guid, event="try", payload=b"{}", received_at=datetime.now(UTC)))
    await store.claim_deliveries(process, limit=1, lease_s=60)
    await store.settle(process, new.delivery_guid, Settlement(runs=[new]))
    claim = await store.claim_run(process, lease_s=new.plan.machine.ttl_s + 3600.0, max_machines=1)
    if claim is None:
        raise GibilError("the run could not be claimed in a store of its own")
    return claim
