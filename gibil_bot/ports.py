"""Protocols for everything outside this process, with their calling rules.

Implementations raise only `gibil_bot.errors`. They are used from one event loop and must never block it. Every method may be
cancelled at any await; `destroy`, `sweep` or the end of a lease cleans up what it had created.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Literal, Protocol, runtime_checkable

from gibil_bot.agent_task import Account, Balance, Limit, ModelCall, Spent
from gibil_bot.model import (
    Approval,
    BranchPush,
    CancelRequest,
    Capabilities,
    Chunk,
    Claim,
    CommitProgress,
    Conclusion,
    Delivery,
    DueNotification,
    EgressRestriction,
    Exit,
    FilePart,
    HeadHistory,
    HeadSeen,
    Host,
    HostSeen,
    Job,
    LayerInfo,
    Machine,
    MachineSpec,
    NewRun,
    Notification,
    Person,
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
    Template,
    Usage,
)


class Provider(Protocol):
    """Creates and destroys machines. Its own list is authoritative; no second list is stored."""

    name: str
    is_local: bool
    """Whether only processes of this host reach its machines."""

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
        on_output: Callable[[str, bytes], Awaitable[None] | None] | None = None,
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


@runtime_checkable
class Restricting(Protocol):
    """A provider that can limit what a running machine reaches to an allow-list, while an agent works on it.

    What is on the machine, its loopback ports, and SSH connections to it aren't affected.
    """

    async def restrict_egress(self, name: str, allow: tuple[str, ...], shell: Shell) -> EgressRestriction:
        """Let all processes of the machine, and of machines that are forked from it, reach only what is in `allow`.

        It has the syntax of GIBIL_EGRESS_ALLOW (registries.hosts returns it), and opens nothing that the machine couldn't
        reach before. When this returns, connections that were open have ended. It holds until `lift_egress`, also after the
        end of this process, which may be killed in between; the next one calls it again. What is blocked is in
        Filtering.refusals. Safe to repeat, also with another list. After an error no agent may start: raises MachineNotFound,
        ProviderError, SSHError, ConfigurationError for an invalid entry.
        """

    async def lift_egress(self, name: str, shell: Shell) -> None:
        """Let the machine reach what it could before. Safe to repeat. Raises as `restrict_egress` does."""


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
class Templating(Protocol):
    """A provider that can keep copies of machines' disks by name, from which new machines start."""

    async def save_template(self, name: str, template: str, *, stop: bool = False) -> Template:
        """Keep a copy of the machine's disk; the machine goes on.

        Where that ends its processes, they must have ended, or `stop` is set. Raises MachineNotFound, ProviderError, and
        UsageError with the code MACHINE_BUSY if processes run, TEMPLATE_EXISTS for a name that is taken.
        """

    async def templates(self) -> list[Template]:
        """Return all templates, oldest first."""

    async def delete_template(self, template: str) -> bool:
        """Delete a template; False if it doesn't exist. Machines that started from it aren't changed. Raises ProviderError."""


@runtime_checkable
class Forking(Protocol):
    """A provider whose machines can start from the disk that another one has now."""

    async def fork_layer(self, name: str, layer_id: str, *, stop: bool = False) -> LayerInfo:
        """Make the machine's disk a layer of that id, on which the machine and new ones (`MachineSpec.layer`) go on.

        It is complete, since no process runs meanwhile: they must have ended, or `stop` ends them. What is in memory (/run,
        /dev/shm) is lost, and SSH connections close. The layer is deleted after the last machine that is based on it. Safe to
        repeat. Raises MachineNotFound, ProviderError, and UsageError, with the code MACHINE_BUSY if processes run.
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

    async def repository(self, full_name: str) -> tuple[int, Repository] | None:
        """Return the App's installation on a repository, and the repository; None if there is none that it may see."""

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

    def git_data(self, installation_id: int) -> GitData:
        """Return the client that writes commits with the rights of that installation."""

    def pull_request_contents(self, installation_id: int) -> PullRequestContents:
        """Return the client that reads what an agent gets to see, with the rights of that installation."""

    async def who_am_i(self) -> str:
        """Return the App's slug. Raises GitHubError with the problem of the key, the id or the URL."""

    async def close(self) -> None: ...


class Publisher(Protocol):
    """Makes GitHub show one notification. Called for one key at a time, and repeated until it succeeds."""

    async def publish(self, due: DueNotification, *, holds: Callable[[], bool] = lambda: True) -> int | None:
        """Create or update the object so that GitHub shows `due.notification`; return GitHub's id of it.

        `holds`: whether the claim of the notification holds. Called directly before each write; if it doesn't, nothing is sent,
        and NotAskedYet is raised.
        Never creates twice: with `attempts > 0` and no remote id it searches first (external_id, marker). Raises GitHubError:
        `retry_after_s` None means that GitHub will never accept it (404, 410, 422), and it is dropped with a log line.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class PullRequestComment:
    """A comment in the conversation, or on a line of the diff (`path`). Bodies of reviews aren't comments."""

    id: int
    author: Person
    body: str
    created_at: datetime
    updated_at: datetime
    """When it was last edited, by its author or by anyone with write permission; else `created_at`. In whole seconds."""
    path: str | None = None
    line: int | None = None
    by_app: bool = False
    """An App wrote it, possibly with a user's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryFile:
    content: bytes
    is_executable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesAt:
    """Some files of a commit."""

    commit: str
    files: Mapping[str, RepositoryFile]
    """By path. A symbolic link is the file of the same commit that it points to."""
    omitted: tuple[str, ...] = ()
    """Files above a limit, and links to anything else than a file of the commit."""
    is_complete: bool = True
    """False: GitHub didn't list all paths of so large a commit."""


class PullRequestContents(Protocol):
    """Texts and files of a pull request, as they are now. Raises GitHubError."""

    async def description(self, repository: str, number: int) -> str:
        """Return the text that its author wrote below the title."""

    async def comments(self, repository: str, number: int) -> list[PullRequestComment]:
        """Return the newest hundreds of comments, oldest first."""

    async def diff(self, repository: str, base: str, head: str, *, most_bytes: int) -> bytes | None:
        """Return the first `most_bytes` of the changes since the merge base of two commits; None if GitHub shows none."""

    async def files(
        self, repository: str, commit: str, is_wanted: Callable[[str], bool], *, most_files: int, most_bytes: int
    ) -> FilesAt:
        """Return the files whose paths are wanted, up to limits of all together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeEntry:
    """An entry of a tree that is to be created: an existing object, or a file with that text.

    With neither, the path is deleted from the base tree.
    """

    path: str
    mode: str = "100644"
    """100644, 100755, 120000 (symbolic link), 040000 (folder) or 160000 (submodule)."""
    sha: str | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GitCommit:
    """A commit at GitHub. `verified`: GitHub shows it as Verified."""

    sha: str
    tree: str
    parents: tuple[str, ...] = ()
    verified: bool = False


class GitData(Protocol):
    """Git objects and branches at GitHub, with the rights of one installation of the App. Repositories are owner/name.

    Every method is safe to repeat: objects are named by their content, and a commit that no branch has is invisible. Waits for
    rate limits, and repeats requests that may have been lost, for some minutes. Raises GitHubError; methods that write raise
    NoWriteAccess.
    """

    async def may_write(self) -> bool:
        """Return whether the installation has `contents: write`; its owner may not have accepted that yet."""

    async def installation_of(self, repository: str) -> int | None:
        """Return the App's installation on that repository, such as a fork; None if it has none."""

    async def noreply_address(self, login: str) -> str | None:
        """Return the address that associates a commit with that user without revealing another one; None if unknown."""

    async def ref(self, repository: str, branch: str) -> str | None:
        """Return the head of a branch."""

    async def contains(self, repository: str, branch: str, sha: str) -> bool:
        """Return whether the commit is the head of the branch or one of its ancestors."""

    async def create_blob(self, repository: str, content: bytes) -> str:
        """Create a file's content; return its hash."""

    async def create_tree(self, repository: str, base_tree: str | None, entries: Sequence[TreeEntry]) -> str:
        """Create a folder: the entries, and what else the base tree has. Returns its hash."""

    async def create_commit(self, repository: str, message: str, tree: str, parents: Sequence[str]) -> GitCommit:
        """Create a commit of which the App is the author, so that GitHub signs it."""

    async def create_ref(self, repository: str, branch: str, sha: str) -> None:
        """Create a branch. Succeeds if it exists with that head; raises RefRejected if it has another one."""

    async def move_ref(self, repository: str, branch: str, sha: str, *, expected: str | None = None) -> None:
        """Move a branch forward. Succeeds if it has the commit already. Raises NotFastForward if it has other commits, or if
        its head isn't `expected`; RefRejected for a protected branch.
        """

    async def open_pull_request(
        self, repository: str, *, head: str, base: str, title: str, body: str = "", draft: bool = False
    ) -> tuple[int, str]:
        """Open a pull request between two branches of the repository; return its number and URL. An open one is returned."""


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
    refusal: str | None = None
    """Why a request of the API (RunRequested) was rejected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What became of a delivery."""

    run_ids: tuple[str, ...]
    """In the order in which they were queued."""
    error: str | None
    rejection: str | None


class Inbox(Protocol):
    """Deliveries, and what they reveal about pull requests and people. The web server accepts them, intake does the rest."""

    async def accept(
        self, delivery: Delivery, *, handled: bool = False, observed: Sequence[HeadSeen | BranchPush] = ()
    ) -> bool:
        """Store a delivery; False if the GUID is already stored (then nothing is written).

        `handled`: it has no consequences; it is stored, never claimed, and wakes no waiter. `observed`: what it reveals about
        the heads of pull requests, visible to every later decision once this returns.
        """

    async def claim(
        self, owner: str, *, limit: int, cancels: int = 0, lease_s: float, held: Collection[str] | None = None
    ) -> list[Delivery]:
        """Return the oldest unhandled deliveries that no process works on, with `attempts` incremented.

        First at most `cancels` that cancel, then at most `limit` others, each in order of arrival. The others are of
        repositories of which no other process has claimed any, so that one process handles them in order.

        `held`: the GUIDs of all deliveries that `owner` works on. These are never returned, but what it has claimed besides
        them is: the result of that claim was lost. None: it works on all that it has claimed.
        """

    async def complete(self, owner: str, guid: str, outcome: DeliveryOutcome) -> None:
        """Mark a delivery as handled and write its outcome, in one transaction.

        Does nothing for a handled delivery. Raises ClaimLost if another process has claimed it since.
        """

    async def postpone(self, owner: str, guid: str, error: str, *, delay_s: float) -> None:
        """Return a claimed delivery, to be claimed again after the delay. Raises ClaimLost as `complete` does."""

    async def decision(self, guid: str) -> Decision | None:
        """Return the outcome of a handled delivery; None as long as it isn't handled."""

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

    async def save_machine(self, claim: Claim, machine: str | None, attempt: int, host: str | None = None) -> None:
        """Record that a machine of that name is about to be created, or was destroyed (None).

        `host`: id of the only host that will reach it; None: every host does.
        """

    async def count_copies(self, claim: Claim, copies: int, *, max_machines: int | None = None) -> bool:
        """Store how many copies of the run's machine exist, for attempts of an agent; False, and nothing is stored, if the
        machines of all running runs and the copies would be more than `max_machines`. One copy is always possible: the runs
        that have all machines may wait for it. A new claim keeps the number if its host reaches the machine.
        """

    async def save_note(self, claim: Claim, note: str) -> None:
        """Replace `Run.note`."""

    async def save_plan(self, claim: Claim, plan: Plan) -> None:
        """Replace `Run.plan`, before the first task has run. The concurrency group remains the one with which it was queued."""

    async def save_commit(self, claim: Claim, progress: CommitProgress) -> None:
        """Replace `Run.commit`: before the next step of the commits begins, so that another process can continue."""

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

    def changed(self) -> ChangeSignal:
        """Wakes when this process queued or claimed a run, or wrote about one. Renewing a lease doesn't count."""


class RunStore(RunRecorder, Protocol):
    """Runs. The dispatcher claims them and renews their leases, runners record, all parts read. Inbox.complete queues."""

    async def claim(
        self, owner: str, *, lease_s: float, max_machines: int, host: str = "", away_s: float = math.inf
    ) -> Claim | None:
        """Claim the next run to work on, which becomes RUNNING with a new fence.

        First a running one whose lease expired, then a queued one that is to be cancelled, then, while running runs and copies
        of their machines are fewer than `max_machines`, a queued one for which

        - no other run of its concurrency group is running (groups belong to one repository),
        - no older run of the same pull request *and* group is queued,
        - its repository has the fewest running runs, and among those waited longest since its last turn.

        `host`: id of this process's host. A running run whose machine only another host reaches is claimed when that host
        wasn't seen for `away_s` seconds; for one minute if the run is to be cancelled.
        """

    async def heartbeat(self, claims: Sequence[Claim], *, lease_s: float) -> dict[str, str | None]:
        """Renew leases; return run id → its current cancel reason. Runs that another process has claimed are missing."""

    async def release(self, claim: Claim) -> None:
        """End the lease at once, for a graceful stop: the run stays RUNNING. Raises ClaimLost."""

    async def record_queued(self, reports: Mapping[str, Notification]) -> None:
        """Same as Outbox.record, for the reports (run id → check run) of those runs that are still queued.

        Another process may have claimed a run, and even finished it, since the caller has read it.
        """

    async def request_cancel(self, run_id: str, reason: str) -> bool:
        """Request cancellation; False if the run is finished or doesn't exist. The first reason stays."""

    async def get(self, run_id: str) -> Run | None: ...

    async def unfinished(self) -> list[Run]:
        """Return queued and running runs, in order of queueing."""

    async def of_repository(self, repository_id: int, number: int | None = None, sha: str | None = None) -> list[Run]:
        """Return at most 100 runs, newest first."""


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


class Ledger(Protocol):
    """What agents spend: calls of models, and machine time, summed up by attempt, task, run, person's day and repository's day.

    A call is reserved at its worst before it is sent, and booked at its price afterwards. Each method is one transaction, so
    that parallel calls, of any number of processes, exceed no limit together. Only a call that uses more than was reserved for
    it can exceed a limit. The day is that of UTC at the reservation.
    """

    async def reserve(
        self,
        reservation: str,
        account: Account,
        limits: Sequence[Limit],
        *,
        usd: Decimal,
        input_tokens: int,
        output_tokens: int,
        seconds: float = 0.0,
    ) -> list[Balance]:
        """Reserve a call under an id that the caller generated, or nothing. Returns the limits that it would exceed.

        `seconds`: machine time since the last call, which is booked first, in either case. Reservations that are older than an
        hour are booked at their estimates, because their process is gone.
        """

    async def book(self, reservation: str, account: Account, call: ModelCall) -> None:
        """Replace the reservation, or the estimate that was booked for it, by the call and its price.

        Repeating it changes nothing. Without a reservation it books the call.
        """

    async def cancel(self, reservation: str) -> None:
        """Delete a reservation whose call was never sent. Does nothing if there is none."""

    async def refused(self, account: Account, call: ModelCall) -> None:
        """Count a call that the proxy rejected. The first 100 of a task are stored."""

    async def add_time(self, account: Account, seconds: float) -> None:
        """Book machine time on the present day."""

    async def book_estimates(self, run_id: str) -> int:
        """Book all reservations of a run at their estimates, when another process continues it. Returns how many there were."""

    async def balances(self, account: Account, limits: Sequence[Limit]) -> list[Balance]:
        """Return how much of each limit is used at present."""

    async def spent(self, run_id: str, task: int | None = None, attempt: int | None = None) -> Spent:
        """Return what a run spent, or one of its tasks, or one attempt of a task. Reservations don't count."""

    async def spent_on(self, day: date, scope: Literal["person", "repository"]) -> dict[str, Spent]:
        """Return what was spent on a day (UTC): login or owner/name → sum, the highest first."""

    async def calls(self, run_id: str, task: int | None = None) -> list[ModelCall]:
        """Return at most 10,000 calls that have ended, in the order of their beginning."""

    def changed(self) -> ChangeSignal:
        """Wakes when this process wrote to the ledger."""


class Hosts(Protocol):
    """The hosts and processes that share the database. Each process says regularly that it is alive."""

    async def start(self, host: Host, process: str) -> None:
        """Record a new process of that host, and end the leases of all earlier ones: a host has one process at a time."""

    async def present(self, host: Host, process: str) -> None:
        """Record that the process is alive; call it every 10 seconds. Ends the leases of processes not seen for 30 seconds."""

    async def leave(self, process: str) -> None:
        """End the leases of a process that stops in order."""

    async def all(self) -> list[HostSeen]:
        """Return the hosts of the last week, and those on which machines of unfinished runs are, by name."""


class HostFiles(Protocol):
    """The files of runs that other hosts have."""

    async def read(self, host: Host, run_id: str, name: str, *, offset: int | None, most_bytes: int) -> FilePart | None:
        """Ask a host for a part of a file; `offset` None: its end. None: the host has no such file.

        Takes at most 10 seconds. runs.run_files has the names of files. Raises HostUnavailable.
        """


class Store(Protocol):
    """One database. Consumers receive only the part that they need."""

    @property
    def is_shared(self) -> bool:
        """Whether other processes may use it, and claim what this one has claimed once its leases have ended."""

    @property
    def inbox(self) -> Inbox: ...

    @property
    def runs(self) -> RunStore: ...

    @property
    def outbox(self) -> Outbox: ...

    @property
    def ledger(self) -> Ledger: ...

    @property
    def hosts(self) -> Hosts: ...

    async def agree(self, name: str, value: str, *, replace: bool = False) -> str:
        """Store a value that all bots of the database have to share, unless one of that name is stored; return the stored one.

        `replace`: overwrite it. runs.agreements has the names.
        """

    async def check_writable(self) -> None:
        """Store as much as an ordinary delivery needs, and delete it. Raises StoreError as `Inbox.accept` would.

        DatabaseFull: the disk is full.
        """

    async def counts(self) -> dict[str, int]:
        """Return counts for metrics and the doctor: deliveries_unhandled, deliveries_failed, runs_queued, runs_running,
        runs_finished, tellings_due, tellings_failed.
        """

    async def prune(self, on_step: Callable[[str, int], None] | None = None) -> dict[str, int]:
        """Delete old rows, a bounded number at a time, and return how many of each kind.

        `on_step(kind, deleted)` is called before each step, which may have to wait for other writes.

        Payloads of handled deliveries are deleted after 7 days; deliveries, finished runs, calls of models, and the heads of
        inactive pull requests after 90; the daily sums of what agents spent after 400.
        """

    async def close(self) -> None: ...


class ChangeSignal(Protocol):
    """A subscription to the writes of this process. A write between two waits is never missed. Waiters also poll, to find the
    writes of other processes.
    """

    async def wait(self, timeout_s: float) -> bool:
        """Wait for a write since the last wait returned (True), or for the timeout (False)."""
