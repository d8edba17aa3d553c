"""Work on one machine, synchronously: the classes of async_machine.py, whose methods wait in the calling thread.

The methods may be called from several threads at once. The parameters and errors are those of the asynchronous classes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, overload

from gibil_bot.machines.session import MAX_OUTPUT_BYTES, TaskOutcome
from gibil_bot.machines.tools import transfer
from gibil_bot.machines.tools.copy_report import MOST_BYTES, Transfer
from gibil_bot.machines.tools.file_scripts import Entry
from gibil_bot.machines.validation import Duration
from gibil_bot.model import Template
from gibil_bot.sdk.async_machine import AsyncFiles, AsyncFleet, AsyncJob, AsyncJobs, AsyncMachine, Command
from gibil_bot.sdk.background_loop import BACKGROUND
from gibil_bot.sdk.results import JobOutput, Output, PullRequest, Pushed, Result, Seconds
from gibil_bot.sdk.streams import AsyncStream
from gibil_bot.ssh.jobs import JobEntry

if TYPE_CHECKING:
    from gibil_bot.sdk.opening import Fork, ForkFleet


class Stream:
    """The output of a command, as it arrives: `for output in stream`. See AsyncStream."""

    def __init__(self, stream: AsyncStream) -> None:
        self._stream = stream

    @property
    def result(self) -> Result:
        """The result; only after the last piece."""
        return self._stream.result

    def wait(self) -> Result:
        """Drop the rest of the output, and return the result."""
        return BACKGROUND.call(self._stream.wait())

    def close(self) -> None:
        """End the command, if it runs. (Of a job, only following it ends.)"""
        BACKGROUND.call(self._stream.close())

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Output:
        piece = BACKGROUND.call(self._next())
        if piece is None:
            raise StopIteration
        return piece

    async def _next(self) -> Output | None:
        return await anext(self._stream, None)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


class Machine:
    """A machine that answers."""

    def __init__(self, machine: AsyncMachine) -> None:
        self._machine = machine
        self.files = Files(machine.files)
        self.jobs = Jobs(machine.jobs)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    @property
    def name(self) -> str:
        return self._machine.name

    @property
    def provider(self) -> str:
        return self._machine.provider

    @property
    def created_at(self) -> datetime:
        return self._machine.created_at

    @property
    def expires_at(self) -> datetime:
        """When the machine is destroyed at the latest. `extend` moves it."""
        return self._machine.expires_at

    def run(
        self,
        command: Command,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        input: str | bytes | None = None,
        timeout: Seconds | None = None,
        check: bool = False,
    ) -> Result:
        """Run a command to its end; see AsyncMachine.run. Ctrl-C kills the command."""
        return BACKGROUND.call(
            self._machine.run(command, cwd=cwd, env=env, input=input, timeout=timeout, check=check)
        )  # fmt: skip

    def stream(
        self,
        command: Command,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        input: str | bytes | None = None,
        timeout: Seconds | None = None,
        check: bool = False,
    ) -> Stream:
        """Run a command, and iterate over its output while it runs; see AsyncMachine.stream."""
        return Stream(self._machine.stream(command, cwd=cwd, env=env, input=input, timeout=timeout, check=check))

    def tasks(self) -> list[TaskOutcome]:
        """Return the results of the tasks of `.gibil.yml` that have ended."""
        return BACKGROUND.call(self._machine.tasks())

    def wait_tasks(self) -> list[TaskOutcome]:
        """Wait until all tasks of `.gibil.yml` have ended; return their results."""
        return BACKGROUND.call(self._machine.wait_tasks())

    def push(self, *, branch: str | None = None, with_workflows: bool = False) -> Pushed:
        """Push the commits that were made on the machine, with this host's credentials; see AsyncMachine.push."""
        return BACKGROUND.call(self._machine.push(branch=branch, with_workflows=with_workflows))

    def open_pull_request(
        self,
        *,
        title: str | None = None,
        body: str = "",
        base: str | None = None,
        into: str | None = None,
        branch: str | None = None,
        draft: bool = False,
        with_workflows: bool = False,
    ) -> PullRequest:
        """Push the commits, and open a pull request; see AsyncMachine.open_pull_request."""
        return BACKGROUND.call(
            self._machine.open_pull_request(
                title=title, body=body, base=base, into=into, branch=branch, draft=draft, with_workflows=with_workflows
            )
        )

    def fork(self, *, name: str | None = None, ttl: Duration | None = None, stop: bool = False) -> Fork:
        """Create a copy of the machine's disk for the duration of a block: `with m.fork() as copy:`; see AsyncMachine.fork."""
        return self._machine.fork(name=name, ttl=ttl, stop=stop)

    def fork_fleet(
        self, count: int, *, name: str | None = None, ttl: Duration | None = None, stop: bool = False
    ) -> ForkFleet:  # fmt: skip
        """Create 1 to 20 copies, `NAME-1` …, for the duration of a block: all of them, or none. See `fork`."""
        return self._machine.fork_fleet(count, name=name, ttl=ttl, stop=stop)

    def save_template(self, name: str, *, stop: bool = False) -> Template:
        """Keep a copy of the machine's disk, for `gibil.create(template=name)`; see AsyncMachine.save_template."""
        return BACKGROUND.call(self._machine.save_template(name, stop=stop))

    def extend(self, duration: Duration) -> datetime:
        """Extend the time to live by `"90s"`, `"2h"`, a timedelta, or a number of minutes; return the new expiry."""
        return BACKGROUND.call(self._machine.extend(duration))

    def destroy(self) -> bool:
        """Destroy the machine and close the connection; return whether it still existed."""
        return BACKGROUND.call(self._machine.destroy())

    def close(self) -> None:
        """End the streams and close the connection. The machine exists until its expiry."""
        BACKGROUND.call(self._machine.close())


class Files:
    """Files on a machine. Paths are absolute, or relative to the code's directory (/root without code); `~` is /root."""

    def __init__(self, files: AsyncFiles) -> None:
        self._files = files

    def read(self, path: str) -> str:
        """Return a text file, up to 64 MiB; see AsyncFiles.read."""
        return BACKGROUND.call(self._files.read(path))

    def read_bytes(self, path: str) -> bytes:
        """Return a file's content, up to 64 MiB."""
        return BACKGROUND.call(self._files.read_bytes(path))

    def write(self, path: str, content: str | bytes) -> bool:
        """Write a whole file, at once for its readers; return whether it is new. See AsyncFiles.write."""
        return BACKGROUND.call(self._files.write(path, content))

    def list(self, path: str = ".", glob: str | None = None) -> list[Entry]:
        """Return the entries of a directory, or the files below it that match `glob` (`**/*.py`), sorted by name."""
        return BACKGROUND.call(self._files.list(path, glob))

    def upload(
        self, local: str | os.PathLike[str], remote: str, *, timeout: Seconds = transfer.TIMEOUT_S
    ) -> Transfer:  # fmt: skip
        """Copy a local file, or a local directory's content; see AsyncFiles.upload."""
        return BACKGROUND.call(self._files.upload(local, remote, timeout=timeout))

    def download(
        self,
        remote: str,
        local: str | os.PathLike[str],
        *,
        timeout: Seconds = transfer.TIMEOUT_S,
        most_bytes: int = MOST_BYTES,
    ) -> Transfer:
        """Copy a file or a directory to this host; see AsyncFiles.download."""
        return BACKGROUND.call(self._files.download(remote, local, timeout=timeout, most_bytes=most_bytes))


class Jobs:
    """Background jobs: commands that continue when the program ends."""

    def __init__(self, jobs: AsyncJobs) -> None:
        self._jobs = jobs

    def start(
        self,
        command: Command,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: Seconds | None = None,
    ) -> BackgroundJob:
        """Start a job; see AsyncJobs.start."""
        return BackgroundJob(BACKGROUND.call(self._jobs.start(command, cwd=cwd, env=env, timeout=timeout)))

    def list(self) -> list[JobEntry]:
        """Return the state of all jobs, oldest first."""
        return BACKGROUND.call(self._jobs.list())

    def get(self, job_id: str) -> BackgroundJob:
        """Return a job that was started before, also by another program. Raises UsageError (JOB_NOT_FOUND)."""
        return BackgroundJob(BACKGROUND.call(self._jobs.get(job_id)))


class BackgroundJob:
    """A background job."""

    def __init__(self, job: AsyncJob) -> None:
        self._job = job
        self.id = job.id

    def __repr__(self) -> str:
        return repr(self._job).replace("AsyncJob", type(self).__name__)

    def state(self) -> JobEntry:
        """Return whether it is running, and its exit status."""
        return BACKGROUND.call(self._job.state())

    def wait(self, *, timeout: Seconds | None = None) -> int:
        """Wait for its end; return its exit code. Raises WaitTimeout, after which the job continues."""
        return BACKGROUND.call(self._job.wait(timeout=timeout))

    def output(self, *, most_bytes: int = MAX_OUTPUT_BYTES) -> JobOutput:
        """Return its output so far. Of more than `most_bytes`, the middle is left out."""
        return BACKGROUND.call(self._job.output(most_bytes=most_bytes))

    def follow(self) -> Stream:
        """Iterate over its output, from the beginning to its end."""
        return Stream(self._job.follow())

    def stop(self) -> None:
        """End it with all its processes: SIGTERM, and after five seconds SIGKILL."""
        BACKGROUND.call(self._job.stop())


class Fleet(Sequence[Machine]):
    """Equal machines, `NAME-1` …"""

    def __init__(self, fleet: AsyncFleet) -> None:
        self._fleet = fleet
        self._machines = tuple(Machine(machine) for machine in fleet)

    def run(
        self,
        command: Command,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        input: str | bytes | None = None,
        timeout: Seconds | None = None,
        check: bool = False,
    ) -> list[Result]:
        """Run a command on all machines at once; see AsyncMachine.run. The first exception ends the other commands."""
        return BACKGROUND.call(
            self._fleet.run(command, cwd=cwd, env=env, input=input, timeout=timeout, check=check)
        )  # fmt: skip

    @overload
    def __getitem__(self, index: int) -> Machine: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Machine, ...]: ...
    def __getitem__(self, index: int | slice) -> Machine | tuple[Machine, ...]:
        return self._machines[index]

    def __len__(self) -> int:
        return len(self._machines)

    def __iter__(self) -> Iterator[Machine]:
        return iter(self._machines)
