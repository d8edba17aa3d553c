"""Protocols for everything outside this process, with their calling rules.

Implementations raise only `gibil_bot.errors`. They are used from one event loop and must never block it. Every method may be
cancelled at any await; `destroy`, `sweep` or the end of a lease cleans up what it had created.
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
    LayerInfo,
    Machine,
    MachineSpec,
    NewRun,
    Notification,
    Plan,
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
    """Creates and destroys machines. Its own list is authoritative; no second list is stored."""

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
        """Destroy a machine; return when it certainly no longer exists. False if it didn't exist, which isn't an error.

        Callers shield it: it is awaited even while they are cancelled.
        """

    async def sweep(self, owner: str) -> list[str]:
        """Remove the remains of crashes (folders of dead machines, expired machines); return the names of the machines."""

    async def close(self) -> None:
        """Close connections. Machines continue to run, except tethered ones."""


class Shell(Protocol):
    """One open SSH connection to one machine. Any method raises MachineLost if the connection is lost."""

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

        At most `most_bytes` of output are returned: above that the process tree dies, and SSHError is raised. Raises UsageError
        for a blank script. An iterator for `stdin` is read no faster than the script reads, and closed if the script ends
        before it.

        `env` is sent over a side channel of the implementation, never in argv. `on_output(stream, data)` is called as output
        arrives; the result has it too, unless `keep_output` is False: then output of any size is passed through.

        `tag` names the script for `signal`: a plain file name that no other command or job has.
        """

    async def signal(self, tag: str, signal: str) -> None:
        """Send a signal (INT, KILL …) to the whole process tree of the script that runs under that tag, if it runs.

        Raises TimeoutError.
        """

    async def start(self, job: Job) -> None:
        """Start a detached job. Idempotent on `job.id`: a job that was started isn't started again.

        Raises JobNotStarted if the machine answers that it can't (a full disk).
        """

    def attach(self, job_id: str, *, stdout_from: int = 0, stderr_from: int = 0) -> AsyncGenerator[Chunk | Exit, None]:
        """Follow a job's output from those offsets; exactly one Exit comes last. May be called again at any time.

        Raises JobLost if the job vanished without an exit status (its supervisor was killed).
        """

    async def wait(self, job_id: str) -> Exit:
        """Wait for the end of a job, without its output. Raises JobLost as `attach` does."""

    async def kill(self, job_id: str, *, grace_s: float = 5.0) -> None:
        """Send SIGTERM, then after `grace_s` SIGKILL, to the job's whole tree, including setsid escapees. Idempotent."""

    async def put(self, path: str, content: AsyncIterator[bytes] | bytes, *, mode: int = 0o644) -> None:
        """Write a file on the machine, completely or not at all."""

    async def close(self) -> None:
        """Close the connection. Detached jobs continue."""


# Optional abilities of providers


@runtime_checkable
class Explains(Protocol):
    """A provider that knows why machines end."""

    async def cause(self, name: str, since: datetime | None = None) -> str | None:
        """Return why the machine ended, and which of its limits killed processes or were reached, for people: the last first.

        None if that isn't known or happened before `since`.
        """


@runtime_checkable
class Filtering(Protocol):
    """A provider whose machines reach the network through a proxy that refuses some connections."""

    async def refusals(self, name: str, since: float) -> Refusals:
        """Return what the machine was refused since that moment of time.monotonic(). Raises MachineNotFound."""


LAYER_GONE = "LAYER_GONE"
"""Code of the ProviderError of `create` for a layer that doesn't exist, is damaged, or fits this host no longer."""


@runtime_checkable
class Layering(Protocol):
    """A provider that can keep the disk of a machine as a read-only layer, from which new machines start (`MachineSpec.layer`).

    `create` raises ProviderError with code LAYER_GONE if the layer can't be used any more; then nothing was created.
    """

    async def save_layer(self, name: str, layer_id: str) -> LayerInfo:
        """End the machine and keep its disk under that id of 8 to 40 hexadecimal digits. Afterwards the machine doesn't exist.

        Safe to repeat. The layer is complete or doesn't exist; it may be lost if this host or the provider ends within the next
        seconds. Raises MachineNotFound, ProviderError, and UsageError for a machine that can't become a layer: that continues.
        """

    async def layers(self) -> list[LayerInfo]:
        """Return all layers, oldest first."""

    async def delete_layer(self, layer_id: str) -> bool:
        """Delete a layer; False if it doesn't exist. Raises ProviderError with code LAYER_IN_USE while a machine or another
        layer is based on it.
        """


@runtime_checkable
class Archiving(Protocol):
    """The alternative to `Layering` for machines that have no layers: a store of what commands changed on them.

    An archive is taken from a machine that continues, and restored on a new machine before its first task has run.
    """

    name: str
    """The provider's name."""

    async def archive(self, shell: Shell, layer_id: str, parent: str | None) -> LayerInfo:
        """Store an archive of the machine under that id of 8 to 40 hexadecimal digits. The machine isn't changed.

        `parent`: the archive that it was restored from. The archive is complete or doesn't exist. Raises ProviderError, and
        MachineLost if the connection is lost.
        """

    async def restore(self, shell: Shell, layer_id: str) -> None:
        """Change a machine that has the commit, and on which no task has run. Safe to repeat.

        Raises ProviderError with code LAYER_GONE if the archive can't be used any more; then the machine is unchanged. After
        SSHError it isn't fit for use. In both cases the archive is deleted if it is the cause. Raises MachineLost if the
        machine was restored from another archive.
        """

    async def restored(self, shell: Shell) -> str | None:
        """Return the archive that the machine was restored from, perhaps incompletely; the machine says it.

        Raises MachineLost.
        """

    async def layers(self) -> list[LayerInfo]:
        """Return all archives, oldest first."""

    async def delete_layer(self, layer_id: str) -> bool:
        """Delete an archive; False if it doesn't exist. A restore that has begun isn't disturbed."""


@runtime_checkable
class Metered(Protocol):
    """A provider whose machines have limits below what the operating system on them shows."""

    async def usage(self, name: str) -> Usage | None:
        """Return a machine's limits and how much of them it uses; None if unknown. Raises MachineNotFound."""


@runtime_checkable
class Noticing(Protocol):
    """A provider that reports rare and slow activities to all `listeners`."""

    listeners: dict[Callable[[str], None], set[str]]
    """Listener → the messages that it has received."""

    async def prepare(self) -> None:
        """Do the work that would delay the first machine of a data directory. Cheap to repeat. Raises as `probe` does."""


class Price(Protocol):
    """Net of VAT. Every started hour is billed in full."""

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
    """Requests to GitHub, safe to repeat. Raises GitHubError; a 404 that means "no" is an answer, not an error."""

    async def permission(self, installation_id: int, repository: str, login: str) -> str:
        """Return admin | write | read | none, never cached (GET /repos/…/collaborators/{login}/permission)."""

    async def pull_request(self, installation_id: int, repository: str, number: int) -> PullRequest:
        """Return the pull request as it is now."""

    async def pull_requests_of(self, installation_id: int, repository: str, sha: str) -> list[PullRequest]:
        """Return open pull requests whose head is that commit (for forks, a check's payload has none)."""

    async def branch_push(self, installation_id: int, repository: Repository, branch: str, sha: str) -> BranchPush | None:
        """Return the newest push to a branch of the repository itself, if it put `sha` there."""

    async def comment_time(self, installation_id: int, repository: str, comment_id: int) -> datetime | None:
        """Return when a comment in a conversation was written; None if it was deleted."""

    async def check_runs(self, installation_id: int, repository: str, sha: str) -> list[tuple[str, str | None]]:
        """Return (name, conclusion) of our check runs of a commit, the newest of each name; None while it isn't completed."""

    async def workflow_files(self, installation_id: int, repository: str, ref: str) -> dict[str, bytes]:
        """Return path → content of `.gibil.yml` and `.gibil/workflows/*.yml` at that ref; {} if there are none.

        A file above 64 KiB is cut at 64 KiB + 1, so that planning can reject it by name.
        """

    async def clone_token(self, installation_id: int, repository: Repository, submodules: tuple[str, ...] = ()) -> str:
        """Return a token with `contents: read` for that repository only, and for `submodules`, names of the same owner.

        The caller revokes it. Raises GitHubError with status 422 if the App isn't installed on one of them.
        """

    async def revoke_token(self, token: str) -> None:
        """Revoke a token. Never raises: a token that can't be revoked expires within the hour."""

    async def failed_deliveries(self, since: datetime) -> list[tuple[int, str]]:
        """Return (GitHub's number, GUID) of deliveries that never reached us (GET /app/hook/deliveries)."""

    async def redeliver(self, delivery_number: int) -> None:
        """Request one of them again (POST /app/hook/deliveries/{id}/attempts)."""

    async def who_am_i(self) -> str:
        """Return the App's slug. Raises GitHubError with the problem of the key, the id or the URL."""

    async def close(self) -> None: ...


class Publisher(Protocol):
    """Makes GitHub show one notification. Called for one key at a time, and repeated until it succeeds."""

    async def publish(self, due: DueNotification) -> int | None:
        """Create or update the object so that GitHub shows `due.notification`; return GitHub's id of it.

        Never creates twice: with `attempts > 0` and no remote id it searches first (external_id, marker). Raises GitHubError:
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
    """The consequences of a delivery, written in one transaction with the mark that it is handled."""

    runs: Sequence[NewRun] = ()
    """Queued in this order. A new run with `plan.cancel_in_progress` sets `cancel_reason` on every older unfinished run of its
    concurrency group ("superseded by <sha7>").
    """
    cancel: Sequence[tuple[str, str]] = ()
    """(run id, reason) of runs to stop."""
    cancel_earlier: Sequence[CancelRequest] = ()
    notifications: Sequence[Notification] = ()
    observed: Sequence[HeadSeen | BranchPush | Approval] = ()
    """Observations about the heads of pull requests. Repeated ones change nothing."""
    error: str | None = None
    """Why the delivery couldn't be decoded or handled."""


class Inbox(Protocol):
    """Deliveries, and what they reveal about pull requests and people. The web server accepts them, intake does the rest."""

    async def accept(
        self, delivery: Delivery, *, handled: bool = False, observed: Sequence[HeadSeen | BranchPush] = ()
    ) -> bool:
        """Store a delivery; False if the GUID is already stored (then nothing is written).

        `handled`: it has no consequences; it is stored, never claimed, and wakes no waiter. `observed`: what it reveals about
        the heads of pull requests, visible to every later decision once this returns.
        """

    async def claim(self, owner: str, *, limit: int, cancels: int = 0, lease_s: float) -> list[Delivery]:
        """Return the oldest unhandled deliveries that no process works on, with `attempts` incremented.

        First at most `cancels` that cancel, then at most `limit` others, each in order of arrival.
        """

    async def complete(self, owner: str, guid: str, outcome: DeliveryOutcome) -> None:
        """Mark a delivery as handled and write its outcome, in one transaction.

        Does nothing for a handled delivery. Raises ClaimLost if another process has claimed it since.
        """

    async def postpone(self, owner: str, guid: str, error: str, *, delay_s: float) -> None:
        """Return a claimed delivery, to be claimed again after the delay. Raises ClaimLost as `complete` does."""

    async def get(self, guid: str) -> tuple[Delivery, bool, str | None] | None:
        """Return the delivery, whether it is handled, and its error. A payload that was pruned is empty."""

    async def has_earlier(self, guid: str, repository_id: int, number: int) -> bool:
        """Return whether an earlier delivery that may be about this pull request isn't handled yet."""

    async def head_history(self, repository_id: int, number: int, sha: str, fork_id: int | None = None) -> HeadHistory:
        """Return what is known about the heads of one pull request, and about the pushes of `sha` and to that fork."""

    async def spend(self, key: str, *, cost: float, capacity: float, per_s: float) -> Spending:
        """Take `cost` tokens from the bucket `key`, which has `capacity` and is refilled by `per_s` a second; or take none."""

    def changed(self) -> ChangeSignal:
        """Wakes when this process accepted, completed or postponed a delivery."""


class RunRecorder(Protocol):
    """Writes of the process that has claimed a run.

    Every write raises ClaimLost if another process has claimed the run since (`Claim.fence`); then nothing is written, and the
    caller stops working on the run.
    """

    async def save_machine(self, claim: Claim, machine: str | None, attempt: int) -> None:
        """Record that a machine of that name is about to be created, or was destroyed (None)."""

    async def save_note(self, claim: Claim, note: str) -> None:
        """Replace `Run.note`."""

    async def save_plan(self, claim: Claim, plan: Plan) -> None:
        """Replace `Run.plan`, before the first task has run. The concurrency group remains the one with which it was queued."""

    async def save_task(self, claim: Claim, result: TaskResult) -> None:
        """Insert or replace the result of (machine_attempt, index)."""

    async def task_results(self, run_id: str, machine_attempt: int) -> list[TaskResult]:
        """Return the results in order of index."""

    async def bind_secrets(self, claim: Claim, fingerprint: str) -> bool:
        """Record the fingerprint of a run's secrets before its first machine; later, return whether it is still the same."""

    async def record(self, claim: Claim, notifications: Sequence[Notification]) -> None:
        """Same as Outbox.record, while the claim holds."""

    async def finish(self, claim: Claim, conclusion: Conclusion, notifications: Sequence[Notification]) -> None:
        """Set the run to FINISHED, with the last notifications, in one transaction."""


class RunStore(RunRecorder, Protocol):
    """Runs. The dispatcher claims them and renews their leases, runners record, all parts read. Inbox.complete queues."""

    async def claim(self, owner: str, *, lease_s: float, max_machines: int) -> Claim | None:
        """Claim the next run to work on, which becomes RUNNING with a new fence.

        First a running one whose lease expired, then a queued one that is to be cancelled, then, while fewer than
        `max_machines` runs are running, a queued one for which

        - no other run of its concurrency group is running (groups belong to one repository),
        - no older run of the same pull request *and* group is queued,
        - its repository has the fewest running runs, and among those waited longest since its last turn.
        """

    async def heartbeat(self, claims: Sequence[Claim], *, lease_s: float) -> dict[str, str | None]:
        """Renew leases; return run id → its current cancel reason. Runs that another process has claimed are missing."""

    async def release(self, claim: Claim) -> None:
        """End the lease at once, for a graceful stop: the run stays RUNNING. Raises ClaimLost."""

    async def request_cancel(self, run_id: str, reason: str) -> bool:
        """Request cancellation; False if the run is finished or doesn't exist. The first reason stays."""

    async def get(self, run_id: str) -> Run | None: ...

    async def unfinished(self) -> list[Run]:
        """Return queued and running runs, in order of queueing."""

    async def of_repository(self, repository_id: int, number: int | None = None, sha: str | None = None) -> list[Run]:
        """Return at most 100 runs, newest first."""

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
        """Claim notifications that are pending (their newest revision isn't published), due and not claimed, except those keys.

        By priority, down to `up_to`; within one priority, first those of the repository with the fewest claimed.
        """

    async def published(self, owner: str, due: DueNotification, remote_id: int | None) -> None:
        """Record that GitHub has revision `due.revision`; a newer one stays pending."""

    async def not_published(
        self, owner: str, due: DueNotification, error: str, *, retry_s: float | None, failed: bool = True
    ) -> None:
        """Record a failure and make it due again after `retry_s` seconds; at once if a run's result was recorded meanwhile.

        `retry_s` None: GitHub will never accept this revision; it stays with its error, not due. `failed`: counts as a failure.
        """

    async def get(self, key: str) -> tuple[DueNotification, bool, str | None] | None:
        """Return the newest state, whether that is published, and the last error."""

    def changed(self) -> ChangeSignal:
        """Wakes when this process recorded a notification, or the result of publishing one."""


class Store(Protocol):
    """One database. Consumers receive only the part that they need."""

    @property
    def inbox(self) -> Inbox: ...

    @property
    def runs(self) -> RunStore: ...

    @property
    def outbox(self) -> Outbox: ...

    async def counts(self) -> dict[str, int]:
        """Return counts for metrics and the doctor: deliveries_unhandled, deliveries_failed, runs_queued, runs_running,
        runs_finished, tellings_due, tellings_failed.
        """

    async def prune(self) -> int:
        """Delete old rows, a bounded number at a time, and return how many.

        Payloads of handled deliveries are deleted after 7 days; deliveries, finished runs, and the heads of inactive pull
        requests after 90.
        """

    async def close(self) -> None: ...


class ChangeSignal(Protocol):
    """A subscription to the writes of this process. A write between two waits is never missed. Waiters also poll, to find the
    writes of other processes.
    """

    async def wait(self, timeout_s: float) -> bool:
        """Wait for a write since the last wait returned (True), or for the timeout (False)."""
