"""Work on one machine, asynchronously: commands, files, jobs, commits."""

from __future__ import annotations

import asyncio
import functools
import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Literal, overload

from gibil_bot.cancellation import uncancelled
from gibil_bot.errors import UsageError
from gibil_bot.machines.service import MachineService
from gibil_bot.machines.session import MAX_OUTPUT_BYTES, MachineSession, OnOutput, TaskOutcome
from gibil_bot.machines.tools import files, transfer
from gibil_bot.machines.tools.copy_report import MOST_BYTES, CopyReport, Transfer
from gibil_bot.machines.tools.file_scripts import Entry
from gibil_bot.machines.tools.job_output import find_job
from gibil_bot.machines.tools.truncate import Excerpt
from gibil_bot.machines.validation import Duration
from gibil_bot.model import Template
from gibil_bot.sdk import results
from gibil_bot.sdk.results import CommandFailed, JobOutput, PullRequest, Pushed, Result, Seconds, WaitTimeout, seconds
from gibil_bot.sdk.streams import AsyncStream, cancel_all, run_all
from gibil_bot.ssh.answers import printable
from gibil_bot.ssh.jobs import JobEntry

if TYPE_CHECKING:
    from gibil_bot.commits.pull_requests import PullRequestOptions
    from gibil_bot.sdk.opening import Fork, ForkFleet

Command = str | Sequence[str]
"""A line of shell, or a program and its arguments, which need no quotes."""

_SHOWN = 200


class AsyncMachine:
    """A machine that answers. Its methods may be called concurrently, from one event loop."""

    def __init__(self, session: MachineSession, service: MachineService) -> None:
        self._session = session
        self._service = service
        self._settings = service.settings
        self._running: set[asyncio.Task[Result]] = set()
        self.files = AsyncFiles(session)
        self.jobs = AsyncJobs(session, self._running)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    @property
    def name(self) -> str:
        return self._session.name

    @property
    def provider(self) -> str:
        return self._session.machine.provider

    @property
    def created_at(self) -> datetime:
        return self._session.machine.created_at

    @property
    def expires_at(self) -> datetime:
        """When the machine is destroyed at the latest. `extend` moves it."""
        return self._session.machine.expires_at

    @property
    def session(self) -> MachineSession:
        """The connection below, for operations that this class doesn't have."""
        return self._session

    # Commands

    async def run(
        self,
        command: Command,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        input: str | bytes | None = None,
        timeout: Seconds | None = None,
        check: bool = False,
    ) -> Result:
        """Run a command to its end. It starts in `cwd`, by default the code's directory, or /root on a machine without code.

        After `timeout` it is killed with all its processes; `timed_out` is set, and the exit code is 124. `check` raises
        CommandFailed for any other exit code than 0. `input` is its stdin. Cancelling kills the command. Raises UsageError,
        SSHError (more than 64 MiB of output), MachineLost.
        """
        began = time.monotonic()
        outcome = await self._session.run(
            line(command), cwd=cwd, env=env, timeout_s=seconds(timeout), stdin=_bytes(input)
        )  # fmt: skip
        result = Result(
            stdout=outcome.stdout,
            stderr=outcome.stderr,
            exit_code=outcome.exit_code,
            timed_out=outcome.timed_out,
            duration_s=time.monotonic() - began,
        )
        if check and (error := _failure(self.name, command, timeout, result)) is not None:
            raise error
        return result

    def stream(
        self,
        command: Command,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        input: str | bytes | None = None,
        timeout: Seconds | None = None,
        check: bool = False,
    ) -> AsyncStream:
        """Run a command, and iterate over its output while it runs. The parameters are those of `run`.

        With `check`, CommandFailed is raised after the last piece of output.
        """
        text, limit_s, stdin = line(command), seconds(timeout), _bytes(input)

        async def follow(on_output: OnOutput) -> Result:
            began = time.monotonic()
            outcome = await self._session.run(
                text, cwd=cwd, env=env, timeout_s=limit_s, stdin=stdin, on_output=on_output, keep_output=False
            )
            return Result(
                stdout="",
                stderr="",
                exit_code=outcome.exit_code,
                timed_out=outcome.timed_out,
                duration_s=time.monotonic() - began,
            )

        failure = functools.partial(_failure, self.name, command, timeout)
        return AsyncStream(follow, self._running, failure if check else lambda result: None)

    # `.gibil.yml`

    async def tasks(self) -> list[TaskOutcome]:
        """Return the results of the tasks of `.gibil.yml` that have ended."""
        return await self._session.tasks()

    async def wait_tasks(self) -> list[TaskOutcome]:
        """Wait until all tasks of `.gibil.yml` have ended; return their results."""
        return await self._session.wait_tasks()

    # Commits

    async def push(self, *, branch: str | None = None, with_workflows: bool = False) -> Pushed:
        """Push the commits that were made on the machine to `branch` (default: gibil/NAME), with this host's credentials.

        They are copied from the machine and checked; the machine never gets credentials. Raises UsageError if there is nothing
        to push, NotPushed for commits that can't be pushed or that the server rejects.
        """
        from gibil_bot.commits import from_machine

        async with from_machine.fetch(
            self._session.machine,
            self._session.shell,
            branch,
            with_workflows=with_workflows,
            settings=self._settings,
        ) as found:
            await from_machine.push(found, self._session.shell)
        return results.pushed(found)

    async def open_pull_request(
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
        """Push the commits, and open a pull request, with this host's GitHub token; an open one gets the new commits.

        `title`: by default the subject of the only commit. `base`: by default the branch that the machine was created from.
        `into`: owner/name; by default the repository, or the parent of a fork. Raises UsageError, NotPushed, GitHubError.
        """
        from gibil_bot.commits.pull_requests import PullRequestOptions

        options = PullRequestOptions(
            title=title, body=body, base=base, into=into, branch=branch, draft=draft, with_workflows=with_workflows
        )  # fmt: skip
        return await self._open(options)

    async def _open(self, options: PullRequestOptions) -> PullRequest:
        from gibil_bot.commits.pull_requests import open_pull_request
        from gibil_bot.wiring import open_pull_requests

        connect = functools.partial(open_pull_requests, self._settings)
        machine, shell = self._session.machine, self._session.shell
        return results.pull_request(
            await open_pull_request(machine, shell, options, self._settings, connect)
        )  # fmt: skip

    # Copies

    def fork(self, *, name: str | None = None, ttl: Duration | None = None, stop: bool = False) -> Fork:
        """Create a copy of the machine's disk for the duration of a block: `async with m.fork() as copy:`. `m` goes on.

        Nothing is copied on the disk, so it takes milliseconds. Processes don't continue in the copy, and none may run on `m`
        meanwhile: `stop` ends them. `env` stays. `name`: by default this one's and a random suffix. Only for local machines: on
        others use `save_template`. The block raises UsageError (MACHINE_BUSY, NOT_SUPPORTED), NameTaken, ProviderError.
        """
        from gibil_bot.sdk.opening import Fork

        return Fork(self, self._service, name, ttl, stop)

    def fork_fleet(
        self, count: int, *, name: str | None = None, ttl: Duration | None = None, stop: bool = False
    ) -> ForkFleet:  # fmt: skip
        """Create 1 to 20 copies, `NAME-1` …, for the duration of a block: all of them, or none. See `fork`."""
        from gibil_bot.sdk.opening import ForkFleet

        return ForkFleet(count, self, self._service, name, ttl, stop)

    async def save_template(self, name: str, *, stop: bool = False) -> Template:
        """Keep a copy of the machine's disk, for `gibil.create(template=name)`. The machine goes on.

        No process may run on a local machine meanwhile: `stop` ends them. At Hetzner it is a snapshot, with a price for each
        month. It remains until a client's `delete_template`. Raises UsageError (MACHINE_BUSY, TEMPLATE_EXISTS), ProviderError.
        """
        try:
            return await self._service.save_template(self.name, name, stop=stop)
        finally:
            await self._session.reopen()

    # End

    async def extend(self, duration: Duration) -> datetime:
        """Extend the time to live by `"90s"`, `"2h"`, a timedelta, or a number of minutes; return the new expiry."""
        return (await self._session.extend(duration)).expires_at

    async def destroy(self) -> bool:
        """Destroy the machine and close the connection; return whether it still existed. Cancelling doesn't stop it."""
        try:
            return await self._session.destroy()
        finally:
            await uncancelled(self.close())

    async def close(self) -> None:
        """End the streams and close the connection. The machine exists until its expiry."""
        await cancel_all(self._running)
        await self._session.close()


class AsyncFiles:
    """Files on a machine. Paths are absolute, or relative to the code's directory (/root without code); `~` is /root."""

    def __init__(self, session: MachineSession) -> None:
        self._session = session

    async def read(self, path: str) -> str:
        """Return a text file, up to 64 MiB. Raises UsageError: FILE_NOT_FOUND, FILE_TOO_LARGE, BINARY_FILE."""
        try:
            return (await self.read_bytes(path)).decode()
        except UnicodeDecodeError:
            raise UsageError(
                f"{path} on machine {self._session.name} is not UTF-8; read it with read_bytes", code="BINARY_FILE"
            ) from None

    async def read_bytes(self, path: str) -> bytes:
        """Return a file's content, up to 64 MiB. Raises UsageError: FILE_NOT_FOUND, FILE_TOO_LARGE."""
        return await files.read_whole(self._session, path)

    async def write(self, path: str, content: str | bytes) -> bool:
        """Write a whole file, up to 64 MiB, at once for its readers; return whether it is new.

        Missing directories are created, and an existing file keeps its mode. Raises UsageError, SSHError (disk full).
        """
        return await files.write(self._session, path, _bytes(content))

    async def list(self, path: str = ".", glob: str | None = None) -> list[Entry]:
        """Return the entries of a directory, or the files below it that match `glob` (`**/*.py`), sorted by name."""
        found, is_complete = await files.entries(self._session, path, glob)
        if not is_complete:
            raise UsageError(f"{path} on machine {self._session.name} has too many entries: choose a part", code="TOO_LARGE")
        return found

    async def upload(
        self, local: str | os.PathLike[str], remote: str, *, timeout: Seconds = transfer.TIMEOUT_S
    ) -> Transfer:  # fmt: skip
        """Copy a local file to the path `remote` or into that directory, or a local directory's content into `remote`.

        Missing directories are created. A new file has the permissions of its source; a directory's entries keep theirs, their
        links and times, and replace those that exist. Raises UsageError (LOCAL_FILE, NOT_A_FOLDER …), GibilError (FILES,
        TIMEOUT), SSHError.
        """
        report, source = CopyReport(), os.fspath(local)
        return await transfer.upload(self._session, source, remote, report, timeout_s=_required(timeout))

    async def download(
        self,
        remote: str,
        local: str | os.PathLike[str],
        *,
        timeout: Seconds = transfer.TIMEOUT_S,
        most_bytes: int = MOST_BYTES,
    ) -> Transfer:
        """Copy a file to `local` or into that directory, or a directory to `local`, which must not exist or be empty.

        Links out of the directory and special files aren't copied: see `left_out` of the result. Raises UsageError
        (FILE_NOT_FOUND, LOCAL_FILE, TOO_LARGE above `most_bytes`), GibilError (FILES, TIMEOUT). After an error, nothing has
        changed on this computer.
        """
        report = CopyReport(most_bytes)
        return await transfer.download(self._session, remote, os.fspath(local), report, timeout_s=_required(timeout))


class AsyncJobs:
    """Background jobs: commands that continue when the program ends."""

    def __init__(self, session: MachineSession, running: set[asyncio.Task[Result]]) -> None:
        self._session = session
        self._running = running

    async def start(
        self,
        command: Command,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: Seconds | None = None,
    ) -> AsyncJob:
        """Start a job. After `timeout` the machine ends it, with the exit code 124. Raises UsageError, JobNotStarted."""
        job_id = await self._session.start(line(command), timeout_s=seconds(timeout), env=env, cwd=cwd)
        return AsyncJob(self._session, self._running, job_id)

    async def list(self) -> list[JobEntry]:
        """Return the state of all jobs, oldest first. The job `provision` has set the machine up."""
        return await self._session.jobs()

    async def get(self, job_id: str) -> AsyncJob:
        """Return a job that was started before, also by another program. Raises UsageError (JOB_NOT_FOUND)."""
        await find_job(self._session, job_id)
        return AsyncJob(self._session, self._running, job_id)


class AsyncJob:
    """A background job."""

    def __init__(self, session: MachineSession, running: set[asyncio.Task[Result]], job_id: str) -> None:
        self._session = session
        self._running = running
        self.id = job_id

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} on {self._session.name}>"

    async def state(self) -> JobEntry:
        """Return whether it is running, and its exit status."""
        return await find_job(self._session, self.id)

    async def wait(self, *, timeout: Seconds | None = None) -> int:
        """Wait for its end; return its exit code. Raises WaitTimeout, after which the job continues; JobLost, MachineLost."""
        limit_s = seconds(timeout)
        try:
            async with asyncio.timeout(limit_s) as limit:
                return await self._session.wait_job(self.id)
        except TimeoutError:
            if not limit.expired():
                raise
            raise WaitTimeout(f"job {self.id} on machine {self._session.name} has not ended within {limit_s:g} s") from None

    async def output(self, *, most_bytes: int = MAX_OUTPUT_BYTES) -> JobOutput:
        """Return its output so far. Of more than `most_bytes`, the middle is left out."""
        found = {"stdout": Excerpt(most_bytes), "stderr": Excerpt(most_bytes)}
        await self._session.print_log(self.id, lambda stream, data: found[stream].add(data))
        hint = "the rest is on the machine"
        return JobOutput(stdout=found["stdout"].text(hint), stderr=found["stderr"].text(hint))

    def follow(self) -> AsyncStream:
        """Iterate over its output, from the beginning to its end. A lost connection is opened again."""

        async def follow(on_output: OnOutput) -> Result:
            began = time.monotonic()
            exit_code = await self._session.follow(self.id, on_output)
            return Result(
                stdout="", stderr="", exit_code=exit_code, timed_out=False, duration_s=time.monotonic() - began
            )  # fmt: skip

        return AsyncStream(follow, self._running)

    async def stop(self) -> None:
        """End it with all its processes: SIGTERM, and after five seconds SIGKILL."""
        await self._session.stop(self.id)


class AsyncFleet(Sequence[AsyncMachine]):
    """Equal machines, `NAME-1` …"""

    def __init__(self, machines: Sequence[AsyncMachine]) -> None:
        self._machines = tuple(machines)

    async def run(
        self,
        command: Command,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        input: str | bytes | None = None,
        timeout: Seconds | None = None,
        check: bool = False,
    ) -> list[Result]:
        """Run a command on all machines at once; see `AsyncMachine.run`. The first exception ends the other commands."""
        found = await run_all(
            machine.run(command, cwd=cwd, env=env, input=input, timeout=timeout) for machine in self._machines
        )
        for machine, result in zip(self._machines, found, strict=True):
            if check and (error := _failure(machine.name, command, timeout, result)) is not None:
                raise error
        return found

    @overload
    def __getitem__(self, index: int) -> AsyncMachine: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[AsyncMachine, ...]: ...
    def __getitem__(self, index: int | slice) -> AsyncMachine | tuple[AsyncMachine, ...]:
        return self._machines[index]

    def __len__(self) -> int:
        return len(self._machines)

    def __iter__(self) -> Iterator[AsyncMachine]:
        return iter(self._machines)


def line(command: Command) -> str:
    """Return a line of shell. Raises UsageError."""
    if isinstance(command, str):
        return command
    words = list(command)
    if not words or not all(isinstance(word, str) for word in words):
        raise UsageError("a command is a line of shell, or a list with a program and its arguments")
    return shlex.join(words)


def _bytes(text: str | bytes | None) -> bytes:
    if text is None:
        return b""
    return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else bytes(text)


def _required(timeout: Seconds) -> float:
    limit_s = seconds(timeout)
    if limit_s is None:
        raise UsageError("timeout=None is not allowed here; write a number of seconds")
    return limit_s


def _failure(name: str, command: Command, timeout: Seconds | None, result: Result) -> CommandFailed | None:
    """Return the error of a command that didn't end with 0. The message has the command, without its environment."""
    if result.exit_code == 0 and not result.timed_out:
        return None
    shown = printable(" ".join(line(command).split()), _SHOWN)
    code: Literal["TIMEOUT", "COMMAND_FAILED"] = "TIMEOUT" if result.timed_out else "COMMAND_FAILED"
    ended = f"took longer than {seconds(timeout):g} s" if result.timed_out else f"ended with exit code {result.exit_code}"
    last = next((each.strip() for each in reversed(result.stderr.splitlines()) if each.strip()), "")
    reason = f": {printable(last, _SHOWN)}" if last else ""
    return CommandFailed(f"{shown!r} on machine {name} {ended}{reason}", result, code=code)
