"""All errors of gibil-bot: a message for people, a stable code for programs, an exit status for shells.

A task that exits with 1 is a result, not an error. An error means that gibil-bot itself could not do something. Adapters
translate the exceptions of their libraries into these errors, in the adapter and nowhere else.
"""

from __future__ import annotations


class GibilError(Exception):
    """Something could not be done. The message is one line: what failed, where, what to do next."""

    code = "INTERNAL"
    exit_status = 1

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code


class UsageError(GibilError):
    """The arguments of a call are invalid."""

    code = "USAGE"
    exit_status = 2


class InvalidWorkflow(GibilError):
    """An invalid workflow file. The message is `path:line:column: problem`; lines and columns are counted from 1.

    It is the first problem; `others` has the other problems of the file, in the order of the file.
    """

    code = "WORKFLOW_INVALID"
    exit_status = 2

    def __init__(self, path: str, line: int, column: int, problem: str) -> None:
        super().__init__(f"{path}:{line}:{column}: {problem}")
        self.path, self.line, self.column, self.problem = path, line, column, problem
        self.others: tuple[InvalidWorkflow, ...] = ()
        self.partial: object = None
        """The valid part of the value, so that it can be checked for further problems."""

    @property
    def all(self) -> tuple[InvalidWorkflow, ...]:
        """Every problem of the file, this one first."""
        return (self, *self.others)


class ProviderError(GibilError):
    """The provider could not create, list or destroy a machine."""

    code = "PROVIDER"
    exit_status = 3


class Unavailable(ProviderError):
    """The provider can't create any machine on this host. `remedies`: what to do about it, one line each."""

    code = "PROVIDER_UNAVAILABLE"

    def __init__(self, message: str, remedies: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.remedies = remedies


class MachineNotFound(ProviderError):
    """No machine has that name. Usually the name was mistyped, so the exit status is that of a usage error."""

    code = "SERVER_NOT_FOUND"
    exit_status = 2


class NameTaken(ProviderError):
    """Another machine has the requested name."""

    code = "NAME_TAKEN"


class MachineLost(GibilError):
    """The machine, or the connection to it, was lost while it was needed. Never a result of the work on it."""

    code = "MACHINE_LOST"
    exit_status = 4


class JobLost(MachineLost):
    """The machine answers, but how a job ended is unknown, because processes on it killed the job's supervisor.

    A new machine wouldn't help: the same work would do the same to it.
    """

    code = "JOB_LOST"


class JobNotStarted(GibilError):
    """The machine answered, but could not start a job, usually because its disk is full. A new machine would fill up, too."""

    code = "JOB_NOT_STARTED"
    exit_status = 4


class SSHError(GibilError):
    """The machine rejects the login, or isn't the machine that we created."""

    code = "SSH"
    exit_status = 4


class CommandTimeout(SSHError, TimeoutError):
    """A command on a machine took longer than its time limit and was killed. It is a TimeoutError, too."""


class AnotherHost(SSHError):
    """The host that answers doesn't show the pinned host key. There was no login."""


class GitHubError(GibilError):
    """GitHub rejected a request, or could not be reached."""

    code = "GITHUB"
    exit_status = 5

    def __init__(self, message: str, *, status: int = 0, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status; 0 if there was no answer."""
        self.retry_after_s = retry_after_s
        """Seconds after which to try again; None if trying again wouldn't help."""


class NotAskedYet(GitHubError):
    """No request was sent, to stay below GitHub's rate limit, or because another bot may send it; try again after
    `retry_after_s`. Not a failure.
    """


class NoWriteAccess(GitHubError):
    """The App may not write to the repository: a missing permission, or a fork on which it isn't installed."""

    code = "NO_WRITE_ACCESS"


class RefRejected(GitHubError):
    """GitHub doesn't let the App create or move a branch, because of a protection rule or because it exists."""

    code = "REF_REJECTED"
    is_collision = False
    """Another write had the branch at this moment."""


class NotFastForward(RefRejected):
    """The branch has moved, and moving it to the commit would remove commits from it."""

    code = "NOT_FAST_FORWARD"


class ConfigurationError(GibilError):
    """Invalid settings. `problems` has all of them, one line each."""

    code = "CONFIGURATION"
    exit_status = 6

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class BudgetExceeded(GibilError):
    """A call of a model would exceed a budget. The message names the limit, its number and what was spent.

    `limit`: task | run | person | repository, and what it counts, as in `run: USD`.
    """

    code = "BUDGET"
    exit_status = 6

    def __init__(self, message: str, *, limit: str) -> None:
        super().__init__(message)
        self.limit = limit


class UnknownModelPrice(GibilError):
    """A model has no price, so no budget could hold it."""

    code = "MODEL_PRICE"
    exit_status = 6


class StoreError(GibilError):
    """The database cannot be opened or written."""

    code = "STORE"
    exit_status = 6


class DatabaseUnreachable(StoreError):
    """The server of the database can't be reached at present, or doesn't answer."""


class DatabaseFull(StoreError):
    """The disk of the database is full, so nothing can be stored."""


class ClaimLost(GibilError):
    """Another process has claimed the run. The caller must stop working on it, and writes nothing more."""

    code = "CLAIM_LOST"


class InvalidDelivery(GibilError):
    """A delivery whose payload isn't as GitHub documents it for its event."""

    code = "DELIVERY_INVALID"


class HostUnavailable(GibilError):
    """Another host that shares the database has the wanted file, but can't be asked for it."""

    code = "HOST_UNAVAILABLE"
