"""Disposable machines for programs.

    import gibil

    with gibil.create(repo="ada/engine", ttl="30m") as m:
        print(m.run("pytest -q", check=True, timeout=600).stdout)
        m.files.download("build/report.html", "report.html")

    async with gibil.create() as m:
        async for output in m.stream("make"):
            print(output.text, end="")

`with` gives the synchronous classes, `async with` the asynchronous ones, with the same methods. The machine is destroyed when
the block is left, also after an exception; if the program is killed, when the machine expires. `gibil list` and `gibil run`
include these machines. Settings come from the environment, and from what `gibil init` saved.

Every failure is a GibilError with a `message` and a `code`. A command that fails is a result, unless `check=True`.
"""

from gibil_bot.errors import (
    ConfigurationError,
    GibilError,
    GitHubError,
    InvalidWorkflow,
    JobLost,
    JobNotStarted,
    MachineLost,
    MachineNotFound,
    NameTaken,
    ProviderError,
    SSHError,
    Unavailable,
    UsageError,
)
from gibil_bot.machines.session import TaskOutcome
from gibil_bot.machines.tools.copy_report import Transfer
from gibil_bot.machines.tools.file_scripts import Entry as FileEntry
from gibil_bot.model import Machine as MachineInfo
from gibil_bot.model import Template
from gibil_bot.sdk.async_machine import AsyncFiles, AsyncFleet, AsyncJob, AsyncJobs, AsyncMachine
from gibil_bot.sdk.machine import BackgroundJob, Files, Fleet, Jobs, Machine, Stream
from gibil_bot.sdk.opening import (
    AsyncClient,
    Client,
    Connection,
    Creation,
    FleetCreation,
    Fork,
    ForkFleet,
    OpenMachine,
    connect,
    create,
    fleet,
    open,
)
from gibil_bot.sdk.results import CommandFailed, JobOutput, Output, PullRequest, Pushed, Result, WaitTimeout
from gibil_bot.sdk.streams import AsyncStream
from gibil_bot.ssh.jobs import JobEntry as JobState

__all__ = [
    "AsyncClient",
    "AsyncFiles",
    "AsyncFleet",
    "AsyncJob",
    "AsyncJobs",
    "AsyncMachine",
    "AsyncStream",
    "BackgroundJob",
    "Client",
    "CommandFailed",
    "ConfigurationError",
    "Connection",
    "Creation",
    "FileEntry",
    "Files",
    "Fleet",
    "FleetCreation",
    "Fork",
    "ForkFleet",
    "GibilError",
    "GitHubError",
    "InvalidWorkflow",
    "JobLost",
    "JobNotStarted",
    "JobOutput",
    "JobState",
    "Jobs",
    "Machine",
    "MachineInfo",
    "MachineLost",
    "MachineNotFound",
    "NameTaken",
    "OpenMachine",
    "Output",
    "ProviderError",
    "PullRequest",
    "Pushed",
    "Result",
    "SSHError",
    "Stream",
    "TaskOutcome",
    "Template",
    "Transfer",
    "Unavailable",
    "UsageError",
    "WaitTimeout",
    "connect",
    "create",
    "fleet",
    "open",
]
