"""Protocols for everything outside this process, with their calling rules.

Implementations raise only `gibil_bot.errors`. They are used from one event loop and must never block it. Every method may be
cancelled at any await; what it has created by then is found by `destroy`, `sweep` or the end of a lease.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Protocol, runtime_checkable

from gibil_bot.model import (
    Approval,
    BranchPush,
    CancelRequest,
    Capabilities,
    Chunk,
    Claim,
    Conclusion,
    Delivery,
    DueNotification,
    Exit,
    HeadHistory,
    HeadSeen,
    Job,
    Machine,
    MachineSpec,
    NewRun,
    Notification,
    Priority,
    PullRequest,
    Refusals,
    Repository,
    Result,
    Run,
    SizeOffer,
    Spending,
    TaskResult,
    Usage,
)


class Provider(Protocol):
    """Creates and destroys machines. Its own list is the truth about which exist; no second list is stored."""

    name: str

    async def probe(self) -> Capabilities:
        """Check that machines can be created, by creating one if that costs nothing. Raises Unavailable with every remedy."""

    async def create(self, spec: MachineSpec) -> Machine:
        """Create a machine. Idempotent on `spec.name`: with the same spec it returns the existing machine.

        Returns when the machine exists, which may be before SSH answers. When it raises or is cancelled, either nothing exists
        or `destroy(spec.name)` removes it. If its boot data is readable on the machine, it boots with `spec.first_host_key`,
        and `endpoint.first_host_key` is set. Raises Unavailable, NameTaken, ProviderError.
        """

    async def get(self, name: str) -> Machine | None:
        """Return the machine of that name, if it exists."""

    async def list_machines(self, owner: str | None = None) -> list[Machine]:
        """Return all our machines (of that owner), oldest first, including expired ones that still exist."""

    async def extend(self, name: str, expires_at: datetime) -> Machine:
        """Move the expiry. Raises MachineNotFound."""

    async def destroy(self, name: str) -> bool:
        """Destroy a machine; returns when it certainly doesn't exist any more. False if it didn't exist, which isn't an error.

        Callers shield it: it is awaited even while they are cancelled.
        """

    async def sweep(self, owner: str) -> list[str]:
        """Remove what a crash has left (folders of dead machines, expired machines); return the names of the machines."""

    async def close(self) -> None:
        """Close connections. Machines continue to run, except tethered ones."""


class Shell(Protocol):
    """One open SSH connection to one machine. Any method raises MachineLost when the connection is gone."""

    @property
    def is_closed(self) -> bool:
        """Whether the connection is known to be closed."""

    async def run(
        self,
        script: str,
        *,
        timeout_s: float = 60.0,
        stdin: bytes | AsyncIterator[bytes] = b"",
        env: Mapping[str, str] | None = None,
        on_output: Callable[[str, bytes], None] | None = None,
        keep_output: bool = True,
        most_bytes: int = 1024 * 1024,
        tag: str | None = None,
    ) -> Result:
        """Run a short script in `sh -c` and wait. The process tree dies on timeout (TimeoutError) and on cancel.

        At most `most_bytes` of output are kept: beyond that the process tree dies, and SSHError is raised. Raises UsageError
        for a script of blanks. An iterator for `stdin` is read no faster than the script reads, and closed when the script
        ends before it.

        `env` goes over stdin's side channel of the implementation, never argv. `on_output(stream, data)` is called as
        output comes; the result holds it all the same, unless `keep_output` is False: then output of any size passes through.

        `tag` names the script for `signal`: a plain file name that no other command or job has.
        """

    async def signal(self, tag: str, signal: str) -> None:
        """Send a signal (INT, KILL …) to the whole process tree of the script that runs under that tag, if it runs.

        Raises TimeoutError.
        """

    async def start(self, job: Job) -> None:
        """Start a detached job. Idempotent on `job.id`: a job that was started is not started again.

        Raises JobNotStarted when the machine answers that it cannot (a full disk).
        """

    def attach(self, job_id: str, *, stdout_from: int = 0, stderr_from: int = 0) -> AsyncGenerator[Chunk | Exit, None]:
        """Follow a job's output from those offsets; exactly one Exit comes last. May be called again at any time.

        Raises JobLost when the job vanished without an exit status (its supervisor was killed).
        """

    async def wait(self, job_id: str) -> Exit:
        """The end of a job, without its output. Raises JobLost as `attach` does."""

    async def kill(self, job_id: str, *, grace_s: float = 5.0) -> None:
        """SIGTERM, then after `grace_s` SIGKILL, to the job's whole tree, setsid escapees too. Idempotent."""

    async def put(self, path: str, content: AsyncIterator[bytes] | bytes, *, mode: int = 0o644) -> None:
        """Write a file on the machine, whole or not at all."""

    async def close(self) -> None:
        """Close the connection. Detached jobs go on."""


# What only some providers can do


@runtime_checkable
class Explains(Protocol):
    """A provider that knows why machines end."""

    async def cause(self, name: str, since: datetime | None = None) -> str | None:
        """Return why the machine ended, or why its limits killed processes on it, for people.

        None if that isn't known or happened before `since`.
        """


@runtime_checkable
class Filtering(Protocol):
    """A provider whose machines reach the network through a proxy that refuses some connections."""

    async def refusals(self, name: str, since: float) -> Refusals:
        """Return what the machine was refused since that moment of time.monotonic(). Raises MachineNotFound."""


@runtime_checkable
class Metered(Protocol):
    """A provider whose machines have limits below what the operating system on them shows."""

    async def usage(self, name: str) -> Usage | None:
        """Return a machine's limits and how much of them it uses; None if unknown. Raises MachineNotFound."""


@runtime_checkable
class Noticing(Protocol):
    """A provider that reports to all `listeners` what it is doing when that is rare and takes long."""

    listeners: dict[Callable[[str], None], set[str]]
    """Listener → the messages that it has received"""


class Price(Protocol):
    """Net of VAT. Every started hour is billed whole."""

    @property
    def hourly(self) -> Decimal: ...
    @property
    def monthly(self) -> Decimal: ...
    @property
    def currency(self) -> str: ...


@runtime_checkable
class Priced(Protocol):
    """A provider whose machines cost money."""

    async def price_of(self, machine: Machine) -> Price | None:
        """Return the price of a machine; None if the provider lists none."""

    async def cost_so_far(self, machine: Machine) -> Decimal | None:
        """Return what the machine has cost since its creation."""


@runtime_checkable
class Offering(Protocol):
    """A provider that lists what it creates for each size."""

    async def sizes(self) -> list[SizeOffer]: ...


class GitHub(Protocol):
    """What we ask GitHub. Safe to repeat. Raises GitHubError; a 404 that means "no" is an answer, not an error."""

    async def permission(self, installation_id: int, repository: str, login: str) -> str:
        """admin | write | read | none, fresh (GET /repos/…/collaborators/{login}/permission)."""

    async def pull_request(self, installation_id: int, repository: str, number: int) -> PullRequest:
        """The pull request as it is now."""

    async def pull_requests_of(self, installation_id: int, repository: str, sha: str) -> list[PullRequest]:
        """Open pull requests whose head is that commit (forks have none in a check's payload)."""

    async def branch_push(self, installation_id: int, repository: Repository, branch: str, sha: str) -> BranchPush | None:
        """The newest push to a branch of the repository itself, if it put `sha` there."""

    async def comment_time(self, installation_id: int, repository: str, comment_id: int) -> datetime | None:
        """When a comment in a conversation was written; None when it is gone."""

    async def check_runs(self, installation_id: int, repository: str, sha: str) -> list[tuple[str, str | None]]:
        """(name, conclusion) of our own check runs of a commit, the newest of each name; None while it is not completed."""

    async def workflow_files(self, installation_id: int, repository: str, ref: str) -> dict[str, bytes]:
        """`.gibil.yml` and `.gibil/workflows/*.yml` at that ref: path → content; {} where there are none.

        A file above 64 KiB is handed over cut at 64 KiB + 1, so that planning can refuse it by name.
        """

    async def clone_token(self, installation_id: int, repository: Repository) -> str:
        """A token of `contents: read` for that one repository. The caller revokes it."""

    async def revoke_token(self, token: str) -> None:
        """Make a token useless. Never raises: a token that cannot be revoked expires within the hour."""

    async def failed_deliveries(self, since: datetime) -> list[tuple[int, str]]:
        """(GitHub's number, GUID) of deliveries that never reached us (GET /app/hook/deliveries)."""

    async def redeliver(self, delivery_number: int) -> None:
        """Ask for one of them again (POST /app/hook/deliveries/{id}/attempts)."""

    async def who_am_i(self) -> str:
        """The App's slug. Raises GitHubError with what is wrong with the key, the id or the address."""

    async def close(self) -> None: ...


class Publisher(Protocol):
    """Makes GitHub show one notification. Called for one key at a time, and again until it succeeds."""

    async def publish(self, due: DueNotification) -> int | None:
        """Create or update the object so that GitHub shows `due.notification`; returns GitHub's id of it.

        Never creates twice: with `attempts > 0` and no remote id it looks first (external_id, marker). Raises GitHubError:
        `retry_after_s` None means that GitHub will never accept it (404, 410, 422), and it is dropped with a log line.
        """


# --- the store ----------------------------------------------------------------------------------------------------
#
# Every method that writes is durable when it returns. Several processes may share one store, so work is claimed:
#
# - Lease: a claim lasts `lease_s` seconds, and is renewed while the work goes on (`heartbeat` for runs; deliveries and
#   notifications are finished well within their lease). A process that dies stops renewing, and then any process may claim its
#   work. `owner` names the process.
# - Fence: a process that was only slow may go on working after its lease expired and another process claimed the run. The fence
#   counts the claims of a run, and every write about the run names owner and fence. A write with a stale fence changes nothing
#   and raises ClaimLost, so of two processes that work on one run only the later one has any effect.
# - An expired lease alone loses nothing: as long as no other process has claimed the work, its writes still count.


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryOutcome:
    """What follows from a delivery: written in one transaction with the mark that it is handled."""

    runs: Sequence[NewRun] = ()
    """Queued in this order. A new run with `plan.cancel_in_progress` sets `cancel_reason` on every older unfinished run
    of its concurrency group ("superseded by <sha7>")."""
    cancel: Sequence[tuple[str, str]] = ()
    """(run id, reason): stop these."""
    cancel_earlier: Sequence[CancelRequest] = ()
    notifications: Sequence[Notification] = ()
    observed: Sequence[HeadSeen | BranchPush | Approval] = ()
    """What was learned about the heads of pull requests. The same again changes nothing."""
    error: str | None = None
    """Unreadable, or our own failure."""


class Inbox(Protocol):
    """Deliveries, and what they say about pull requests and people. The web server accepts, intake does the rest."""

    async def accept(
        self, delivery: Delivery, *, handled: bool = False, observed: Sequence[HeadSeen | BranchPush] = ()
    ) -> bool:
        """Store a delivery; False if the GUID is stored already (nothing is written then).

        `handled`: nothing follows from it; it is kept, never claimed, and wakes no waiter. `observed`: what it says about
        the heads of pull requests, known to every later decision as soon as this returns."""

    async def claim(self, owner: str, *, limit: int, cancels: int = 0, lease_s: float) -> list[Delivery]:
        """The oldest unhandled deliveries that no process works on, with `attempts` counted up: first at most `cancels` that
        cancel, then at most `limit` others, each in order of arrival."""

    async def complete(self, owner: str, guid: str, outcome: DeliveryOutcome) -> None:
        """Mark a delivery as handled and write what follows, in one transaction. Does nothing for a handled delivery.
        Raises ClaimLost if another process has claimed it since."""

    async def postpone(self, owner: str, guid: str, error: str, *, delay_s: float) -> None:
        """Return a claimed delivery, to be claimed again after the delay. Raises ClaimLost as `complete` does."""

    async def get(self, guid: str) -> tuple[Delivery, bool, str | None] | None:
        """The delivery, whether it is handled, and its error. A payload that was pruned is empty."""

    async def has_earlier(self, guid: str, repository_id: int, number: int) -> bool:
        """Whether a delivery that came before that one, and may be about this pull request, isn't handled yet."""

    async def head_history(self, repository_id: int, number: int, sha: str, fork_id: int | None = None) -> HeadHistory:
        """What is known about the heads of one pull request, and about the pushes of `sha` and to that fork."""

    async def spend(self, key: str, *, cost: float, capacity: float, per_s: float) -> Spending:
        """Take `cost` tokens out of the bucket `key`, which holds `capacity` and gets `per_s` a second; or take none."""

    def changed(self) -> ChangeSignal:
        """Wakes when this process accepted, completed or postponed a delivery."""


class RunRecorder(Protocol):
    """What the process that claimed a run writes about it. Every write raises ClaimLost if another process has claimed the run
    since (`Claim.fence`); then nothing is written, and the caller stops working on the run."""

    async def save_machine(self, claim: Claim, machine: str | None, attempt: int) -> None:
        """A machine of that name is about to exist (before it is created), or is destroyed (None)."""

    async def save_note(self, claim: Claim, note: str) -> None:
        """Replace `Run.note`."""

    async def save_task(self, claim: Claim, result: TaskResult) -> None:
        """Insert or replace the result of (machine_attempt, index)."""

    async def task_results(self, run_id: str, machine_attempt: int) -> list[TaskResult]:
        """In order of index."""

    async def bind_secrets(self, claim: Claim, fingerprint: str) -> bool:
        """Record the fingerprint of a run's secrets before its first machine; afterwards, whether it is still the same."""

    async def record(self, claim: Claim, notifications: Sequence[Notification]) -> None:
        """As Outbox.record, while the claim holds."""

    async def finish(self, claim: Claim, conclusion: Conclusion, notifications: Sequence[Notification]) -> None:
        """FINISHED, with the last notifications, in one transaction."""


class RunStore(RunRecorder, Protocol):
    """Runs. The dispatcher claims them and keeps their leases; runners record; everybody reads. Inbox.complete queues."""

    async def claim(self, owner: str, *, lease_s: float, max_machines: int) -> Claim | None:
        """The next run to work on: first a running one whose lease expired, then a queued one that is to be cancelled,
        then, while fewer than `max_machines` runs are running, a queued one such that

        - no other run of its concurrency group is running (groups belong to one repository),
        - no older run of the same pull request *and* group is queued,
        - its repository has the fewest running runs, and among those the one that waited longest since its last turn.

        Claiming makes it RUNNING and counts the fence up.
        """

    async def heartbeat(self, claims: Sequence[Claim], *, lease_s: float) -> dict[str, str | None]:
        """Renew leases; run id → its cancel reason now. A run that another process has claimed is missing from the answer."""

    async def release(self, claim: Claim) -> None:
        """End the lease at once, for a graceful stop: the run stays RUNNING. Raises ClaimLost."""

    async def request_cancel(self, run_id: str, reason: str) -> bool:
        """False if it is finished, or doesn't exist. The first reason stays."""

    async def get(self, run_id: str) -> Run | None: ...

    async def unfinished(self) -> list[Run]:
        """Queued and running, in the order of queueing."""

    async def of_repository(self, repository_id: int, number: int | None = None, sha: str | None = None) -> list[Run]:
        """Newest first, at most 100."""

    def changed(self) -> ChangeSignal:
        """Wakes when this process queued or claimed a run, or wrote about one. Renewing a lease doesn't count."""


class Outbox(Protocol):
    """What GitHub should show: notifications are recorded, claimed, and published until GitHub has them."""

    async def record(self, notifications: Sequence[Notification]) -> None:
        """Record the desired state of these GitHub objects. An unchanged body doesn't create a revision."""

    async def claim(
        self,
        owner: str,
        *,
        limit: int,
        lease_s: float,
        not_keys: Sequence[str] = (),
        up_to: Priority = Priority.REACTION,
    ) -> list[DueNotification]:
        """Pending ones (their newest revision isn't published) that are due and not claimed, except those keys.

        By priority, down to `up_to`; of one priority first those of the repository with the fewest claimed."""

    async def published(self, owner: str, due: DueNotification, remote_id: int | None) -> None:
        """GitHub has revision `due.revision`; a newer one stays pending."""

    async def not_published(
        self, owner: str, due: DueNotification, error: str, *, retry_s: float | None, failed: bool = True
    ) -> None:
        """Due again after `retry_s` seconds; the result of a run that was recorded meanwhile, at once. None: GitHub will never
        accept this revision; it stays with its error, not due. `failed`: counts as a failure."""

    async def get(self, key: str) -> tuple[DueNotification, bool, str | None] | None:
        """Its newest state, whether that is published, and the last error."""

    def changed(self) -> ChangeSignal:
        """Wakes when this process recorded a notification, or what became of one."""


class Store(Protocol):
    """One database. Consumers take the part that they need."""

    @property
    def inbox(self) -> Inbox: ...

    @property
    def runs(self) -> RunStore: ...

    @property
    def outbox(self) -> Outbox: ...

    async def counts(self) -> dict[str, int]:
        """For metrics and the doctor: deliveries_unhandled, deliveries_failed, runs_queued, runs_running,
        runs_finished, tellings_due, tellings_failed."""

    async def prune(self) -> int:
        """Delete old rows, a bounded number at a time: payloads of handled deliveries after 7 days; deliveries, finished runs,
        and the heads of pull requests without any activity, after 90. Returns how many."""

    async def close(self) -> None: ...


class ChangeSignal(Protocol):
    """A subscription to the writes of this process. A write between two waits is never missed. Waiters poll too,
    which finds the writes of other processes."""

    async def wait(self, timeout_s: float) -> bool:
        """Until something was written since the last wait returned (True), or the time is up (False)."""
