"""Every failure of ours, as one tree: a sentence for people, a stable code for programs, an exit status for shells.

A task that exits with 1 is a result and never comes through here. An exception means that *we* could not do
something. Adapters translate the exceptions of their libraries into these, in the adapter and nowhere else.
"""

from __future__ import annotations


class GibilError(Exception):
    """Something could not be done. The message is one line: what happened, where, what to do next."""

    code = "INTERNAL"
    exit_status = 1

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code


class UsageError(GibilError):
    """The words of the call are off."""

    code = "USAGE"
    exit_status = 2


class InvalidWorkflow(GibilError):
    """A workflow file that can't be accepted: `path:line:column: message`, lines and columns counted from 1.

    The message is the first problem's; `others` holds the rest of the same file, in the order of the file.
    """

    code = "WORKFLOW_INVALID"
    exit_status = 2

    def __init__(self, path: str, line: int, column: int, problem: str) -> None:
        super().__init__(f"{path}:{line}:{column}: {problem}")
        self.path, self.line, self.column, self.problem = path, line, column, problem
        self.others: tuple[InvalidWorkflow, ...] = ()
        self.partial: object = None
        """What could be read of the value all the same, so that it can be checked for further problems."""

    @property
    def all(self) -> tuple[InvalidWorkflow, ...]:
        """Every problem of the file, this one first."""
        return (self, *self.others)


class ProviderError(GibilError):
    """The provider could not forge, list or burn a machine."""

    code = "PROVIDER"
    exit_status = 3


class Unavailable(ProviderError):
    """This provider cannot forge anything here at all. `remedies` are the ways out, one line each."""

    code = "PROVIDER_UNAVAILABLE"

    def __init__(self, message: str, remedies: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.remedies = remedies


class MachineNotFound(ProviderError):
    """No machine of that name: as a rule, a name that was mistyped, hence the exit status of wrong use."""

    code = "SERVER_NOT_FOUND"
    exit_status = 2


class NameTaken(ProviderError):
    """A machine of that name exists and is not what was asked for."""

    code = "NAME_TAKEN"


class MachineLost(GibilError):
    """The machine, or the way to it, went away while it was needed. Never a result of the work on it."""

    code = "MACHINE_LOST"
    exit_status = 4


class JobLost(MachineLost):
    """The machine answers, and nothing on it knows how a job ended: what runs there killed or removed what watched it.

    A new machine would not help: the same work would do the same to it.
    """

    code = "JOB_LOST"


class JobNotStarted(GibilError):
    """The machine answered, and could not start a job: its disk is full, most often. A new machine would fill up, too."""

    code = "JOB_NOT_STARTED"
    exit_status = 4


class SSHError(GibilError):
    """The machine does not let us in, or is not the machine that we made."""

    code = "SSH"
    exit_status = 4


class AnotherHost(SSHError):
    """What answers there does not show the host key that is pinned. Nobody logged in."""


class GitHubError(GibilError):
    """GitHub refused, or could not be reached."""

    code = "GITHUB"
    exit_status = 5

    def __init__(self, message: str, *, status: int = 0, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status; 0 when there was no answer."""
        self.retry_after_s = retry_after_s
        """Seconds after which it is worth trying again; None: trying again would not help."""


class NotAskedYet(GitHubError):
    """GitHub was not asked, so that it need not limit us: try again after `retry_after_s`. Not a failure."""


class ConfigurationError(GibilError):
    """Settings that cannot work. `problems` holds every one of them, one line each."""

    code = "CONFIGURATION"
    exit_status = 6

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class StoreError(GibilError):
    """The database cannot be opened or written."""

    code = "STORE"
    exit_status = 6


class ClaimLost(GibilError):
    """Another process holds this run now: whoever gets this stops working on it and writes nothing more."""

    code = "CLAIM_LOST"


class InvalidDelivery(GibilError):
    """A delivery whose payload is not what GitHub documents for its event."""

    code = "DELIVERY_INVALID"
