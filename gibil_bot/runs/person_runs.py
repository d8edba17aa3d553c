"""Runs as people use them over the bot's API: with the permissions, limits and trust rules of a comment.

A request to run becomes a delivery in the inbox, so that it is handled in order with the repository's other deliveries, and is
repeated if GitHub fails. Whatever a person may not see doesn't exist for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime

from gibil_bot.errors import GibilError, GitHubError, HostUnavailable, StoreError, UsageError
from gibil_bot.model import Delivery, Person, Run, RunRequested, RunState, TaskResult, TaskStatus
from gibil_bot.ports import Decision, GitHub, Store
from gibil_bot.runs import rate_limit
from gibil_bot.runs.context import Policy
from gibil_bot.runs.log_pages import LogPage, LogRequest, file_of, page_of
from gibil_bot.runs.run_files import RunFiles
from gibil_bot.runs.trust import MAY_COMMAND

DECIDED_WITHIN_S = 50.0
"""Clients of the protocol's libraries wait for 60 s."""
_POLL_S = 1.0
"""How often the decision is looked for, because another process may have handled the request."""
_READ_CACHED_S = 30.0
"""How long a permission to read is cached: clients poll. A permission to write is always current."""
_MOST_CACHED = 10_000
ATTEMPTS_PER_HOUR = 120
"""Requests to run of one person, over all repositories: each costs requests to GitHub, also if it is rejected."""
_MOST_INPUTS = 50
_MOST_CHARACTERS = 10_000


class NotPermitted(GibilError):
    """The person may not do this, or the rules of comments forbid it."""

    code = "REFUSED"


class PersonRuns:
    """Any process that shares the store may handle the requests."""

    def __init__(self, store: Store, github: GitHub, policy: Policy, files: RunFiles) -> None:
        self._store = store
        self._github = github
        self._policy = policy
        self._files = files
        self._readers: dict[tuple[str, str], tuple[bool, float]] = {}

    async def start(
        self, login: str, repository: str, number: int, workflow: str, inputs: Mapping[str, str], sha: str | None = None
    ) -> list[Run]:
        """Queue the workflows with that command, and return their runs. `sha`: the head that the person expects, if known.

        Raises UsageError, NotPermitted with the reply that a comment would get, GitHubError, StoreError.
        """
        _check(workflow, inputs)
        spending = await self._store.inbox.spend(
            f"request:{login.lower()}", cost=1, capacity=ATTEMPTS_PER_HOUR, per_s=ATTEMPTS_PER_HOUR / rate_limit.HOUR_S
        )
        if not spending.allowed:
            raise NotPermitted(f"{login} has made too many requests; try again in {spending.wait_s:.0f} s")
        found = None
        if self._serves(repository):
            found = await self._github.repository(repository)
        permission = "none"
        if found is not None:
            permission = await self._github.permission(found[0], found[1].full_name, login)
        if found is None or permission == "none" or not self._serves(found[1].full_name):
            raise UsageError(
                f"there is no repository {repository[:100]!r} that this bot serves and {login} can read", code="NOT_FOUND"
            )
        installation_id, repo = found
        if permission not in MAY_COMMAND:
            raise NotPermitted(f"{login} has {permission} permission on {repo.full_name}, but runs need write permission")
        try:
            pull_request = await self._github.pull_request(installation_id, repo.full_name, number)
        except GitHubError as error:
            if error.status != 404:
                raise
            raise UsageError(f"there is no pull request #{number} in {repo.full_name}", code="NOT_FOUND") from None
        head = pull_request.head_sha
        if sha is not None and (len(sha) < 7 or not head.startswith(sha.lower())):
            raise NotPermitted(f"the head of #{number} is {head[:12]}, not {sha[:64]!r}: nothing was started")
        event = RunRequested(
            installation_id=installation_id,
            repository=repo,
            number=number,
            person=Person(login=login, is_bot=login.endswith("[bot]")),
            workflow=workflow.lower(),
            inputs=dict(inputs),
            head_sha=head,
        )
        decision = await self._decided(event)
        rejection = decision.rejection or decision.error
        if rejection is not None:
            raise NotPermitted(rejection)
        runs = [await self._store.runs.get(run_id) for run_id in decision.run_ids]
        return [run for run in runs if run is not None]

    async def _decided(self, event: RunRequested) -> Decision:
        guid = f"api-{secrets.token_hex(16)}"
        digest = hashlib.sha256(guid.encode()).digest()
        delivery = Delivery(guid=guid, event_name="api", event=event, received_at=datetime.now(UTC), digest=digest)
        signal = self._store.inbox.changed()
        await self._store.inbox.accept(delivery)
        try:
            async with asyncio.timeout(DECIDED_WITHIN_S):
                while True:
                    # The request is stored, so a database that can't be read for a moment only delays the answer.
                    with contextlib.suppress(StoreError):
                        if (decision := await self._store.inbox.decision(guid)) is not None:
                            return decision
                    await signal.wait(_POLL_S)
        except TimeoutError:
            raise GibilError(
                f"the request wasn't handled within {DECIDED_WITHIN_S:g} s; it may still start: see the pull request's checks",
                code="TIMEOUT",
            ) from None

    async def get(self, login: str, run_id: str) -> tuple[Run, list[TaskResult]]:
        """Return a run and the results of its tasks so far. Raises UsageError with code RUN_NOT_FOUND."""
        run = await self._readable(login, run_id)
        return run, await self._store.runs.task_results(run.id, run.machine_attempt)

    async def log(self, login: str, run_id: str, wanted: LogRequest) -> tuple[Run, LogPage]:
        """Return a page of a task's redacted output. Raises UsageError, HostUnavailable."""
        run = await self._readable(login, run_id)
        name = file_of(run, wanted)
        try:
            part, remark = await self._files.read(run.id, run.hosts, name, offset=wanted.offset, most_bytes=wanted.most_bytes)
        except HostUnavailable:
            results = await self._store.runs.task_results(run.id, run.machine_attempt)
            if any(each.index == wanted.task and each.status is not TaskStatus.SKIPPED for each in results):
                raise
            part, remark = None, ""  # it didn't run on any host
        return run, page_of(run, wanted, part, remark)

    async def cancel(self, login: str, run_id: str) -> tuple[Run, bool]:
        """Request that a run stops; return it and whether it was unfinished. Raises UsageError, NotPermitted."""
        run = await self._readable(login, run_id)
        repository = run.source.repository
        spending = await self._store.inbox.spend(
            f"cancel:{repository.id}:{login.lower()}",
            cost=1,
            capacity=self._policy.commands_per_hour,
            per_s=self._policy.commands_per_hour / rate_limit.HOUR_S,
        )
        if not spending.allowed:
            raise NotPermitted(f"{login} has reached the limit of cancellations; try again in {spending.wait_s:.0f} s")
        permission = await self._github.permission(run.source.installation_id, repository.full_name, login)
        if permission not in MAY_COMMAND:
            raise NotPermitted(
                f"{login} has {permission} permission on {repository.full_name}, but cancelling needs write permission"
            )
        requested = await self._store.runs.request_cancel(run.id, f"cancelled by {login}")
        return await self._store.runs.get(run.id) or run, requested and run.state is not RunState.FINISHED

    async def _readable(self, login: str, run_id: str) -> Run:
        run = await self._store.runs.get(run_id) if len(run_id) <= 200 else None
        if run is None or not await self._may_read(login, run):
            raise UsageError(f"there is no run {run_id[:80]!r} that {login} can read", code="RUN_NOT_FOUND")
        return run

    async def _may_read(self, login: str, run: Run) -> bool:
        repository = run.source.repository.full_name
        if not self._serves(repository):
            return False
        key, now_s = (login.lower(), repository.lower()), asyncio.get_running_loop().time()
        cached = self._readers.get(key)
        if cached is None or now_s >= cached[1]:
            permission = await self._github.permission(run.source.installation_id, repository, login)
            if len(self._readers) >= _MOST_CACHED:
                self._readers.clear()
            cached = self._readers[key] = permission != "none", now_s + _READ_CACHED_S
        return cached[0]

    def _serves(self, repository: str) -> bool:
        allowed = self._policy.allowed_accounts
        return allowed is None or repository.partition("/")[0].lower() in allowed


def _check(workflow: str, inputs: Mapping[str, str]) -> None:
    """Reject what can't be a command with its arguments. Raises UsageError."""
    if not workflow or len(workflow) > 100 or not workflow.isprintable():
        raise UsageError(f"{workflow[:40]!r} is not the word of a command, such as test")
    size = sum(len(name) + len(value) for name, value in inputs.items())
    if len(inputs) > _MOST_INPUTS or size > _MOST_CHARACTERS:
        raise UsageError(f"there are at most {_MOST_INPUTS} inputs with {_MOST_CHARACTERS} characters together")
    for name, value in inputs.items():
        if not all(sign.isprintable() or sign in "\t\n\u200c\u200d" for sign in name + value):
            raise UsageError(f"the input {name[:40]!r} contains a control character")
