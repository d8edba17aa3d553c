"""Work on one machine over one open connection: commands, background jobs, logs, extending and destroying it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from gibil_bot.errors import GibilError, MachineLost, MachineNotFound, SSHError, UsageError
from gibil_bot.humanize import duration_setting
from gibil_bot.machines import validation
from gibil_bot.machines.reconnect import Report, answers, reconnect
from gibil_bot.machines.remote_layout import (
    JOB_ID,
    READY,
    STATE,
    TASKS_DONE,
    TASKS_FAILED,
    enter,
    unprefix_line,
    with_prefix,
)
from gibil_bot.model import Exit, Job, Machine
from gibil_bot.ports import Provider, Shell
from gibil_bot.providers.lifecycle import MachineFactory
from gibil_bot.providers.optional import refusals
from gibil_bot.scripts.commands import LOAD_ENVIRONMENT, user_command
from gibil_bot.ssh.answers import exit_status, printable
from gibil_bot.ssh.answers import number as whole_number
from gibil_bot.ssh.jobs import JOBS_BYTES, JobEntry, list_jobs_command, print_job, read_jobs
from gibil_bot.views import blocked_view

T = TypeVar("T")

TIMED_OUT = 124
"""The exit status of timeout(1) for a command that timed out, and ours."""

OnOutput = Callable[[str, bytes], None]
"""Called with "stdout" or "stderr", and the bytes as they arrive."""
PacedOutput = Callable[[str, bytes], Awaitable[None] | None]
"""The same; if it returns an awaitable, more output is read only after that."""

MAX_OUTPUT_BYTES = 64 * 1024 * 1024
"""How much output of a command is stored in memory, unless the caller chooses another limit."""

_STOP_S = 15.0
_BEYOND_EXPIRY_S = 60.0
_CLOUD_INIT_LOG = "/var/log/cloud-init-output.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of a command. Replaces bytes that aren't UTF-8 with U+FFFD."""

    stdout: str
    stderr: str
    exit_code: int
    """128 + N when signal N ended it; 124 when it timed out."""
    timed_out: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOutcome:
    """The result of one task of the `.gibil.yml`. `status`: success, failure, timed_out or skipped."""

    name: str
    status: str
    exit_code: int | None
    duration_s: float


def task_view(task: TaskOutcome) -> dict[str, object]:
    """Return a task's result as JSON, for commands and the MCP tools."""
    return {"name": task.name, "status": task.status, "exit_code": task.exit_code, "duration_s": task.duration_s}


class MachineSession:
    """An open connection to a machine. Close it when done: the machine exists until `destroy` or its expiry."""

    def __init__(self, factory: MachineFactory, machine: Machine, shell: Shell, max_ttl_s: int) -> None:
        self._factory = factory
        self._shell = shell
        self._max_ttl_s = max_ttl_s
        self.machine = machine
        self.may_be_extended = False
        """Other processes may extend the machine while this session is open, so waits end with its longest time to live."""
        self.on_connection: Report = lambda message: None
        """Called when the connection has been lost for more than a moment, and when it is restored."""

    @property
    def name(self) -> str:
        return self.machine.name

    @property
    def provider(self) -> Provider:
        """The provider that created the machine."""
        return self._factory.provider

    @property
    def shell(self) -> Shell:
        """The connection itself, for operations that this class doesn't have: copying files."""
        return self._shell

    # Commands

    async def run(
        self,
        command: str,
        *,
        timeout_s: float | None = None,
        env: Mapping[str, str] | None = None,
        on_output: PacedOutput | None = None,
        keep_output: bool = True,
        most_bytes: int = MAX_OUTPUT_BYTES,
        tag: str | None = None,
        cwd: str | None = None,
        stdin: bytes | AsyncIterator[bytes] = b"",
    ) -> Outcome:
        """Run a shell command and wait for its end. After `timeout_s` the whole process tree is killed; see `timed_out`.

        It runs in `cwd`: an absolute path, or one below the default, which is /root/project on a machine with code, and /root
        on others. If there is no such directory, the exit code is 1 and stderr has the reason. `stdin` is the command's input.

        With `keep_output=False` the outcome has no output, and output of any size passes through `on_output`; otherwise a
        command that prints more than `most_bytes` is killed and SSHError is raised. `tag` names the command for `interrupt`.
        Cancelling kills the whole process tree. Raises UsageError (also for an empty command), SSHError, MachineLost.
        """
        validation.check_command(command)
        change_directory = enter(cwd)
        variables = validation.check_environment(dict(env or {}))
        output = {"stdout": bytearray(), "stderr": bytearray()}

        def receive(stream: str, data: bytes) -> Awaitable[None] | None:
            if keep_output:
                output[stream] += data
                if sum(map(len, output.values())) > most_bytes:
                    raise SSHError(
                        f"the command on {self.name} printed more than {most_bytes // 1024**2} MiB and was stopped; "
                        "write its output to a file, or stream it"
                    )
            return None if on_output is None else on_output(stream, data)

        tag = tag or new_tag()
        script = user_command(command, enter=change_directory, variables=unprefix_line(variables))
        try:
            result = await self._shell.run(
                script,
                timeout_s=timeout_s if timeout_s is not None else self._left_s(),
                stdin=stdin,
                env=with_prefix(variables),
                on_output=receive,
                keep_output=False,
                tag=tag,
            )
        except TimeoutError:
            if timeout_s is None:
                raise MachineLost(f"machine {self.name} expired before the command ended") from None
            exit_code = TIMED_OUT
        except MachineLost:
            raise MachineLost(await self._kill_lost(tag)) from None
        else:
            exit_code = result.exit_status
            timeout_s = None
        stdout, stderr = (output[stream].decode("utf-8", "replace") for stream in ("stdout", "stderr"))
        return Outcome(stdout=stdout, stderr=stderr, exit_code=exit_code, timed_out=timeout_s is not None)

    async def blocked(self, since: float) -> list[str]:
        """Return the connections that the egress proxy rejected since that moment of time.monotonic(), as sentences."""
        return blocked_view(await refusals(self.provider, self.name, since))

    async def interrupt(self, tag: str) -> None:
        """Send SIGINT to the command's whole process tree, as Ctrl-C in a terminal does."""
        await self._shell.signal(tag, "INT")

    async def _kill_lost(self, tag: str) -> str:
        """Kill a command whose connection was lost, because sshd doesn't; return the message for the user."""
        advice = f"for a command that survives a lost connection: gibil run {self.name} COMMAND --background"
        try:
            async with asyncio.timeout(_STOP_S):
                await self._reconnect(_STOP_S)
                for _ in range(5):  # processes may start others while they are being killed
                    await self._shell.signal(tag, "KILL")
        except MachineLost as error:
            return f"{error.message}; the command's exit status is unknown"
        except (GibilError, TimeoutError):
            return f"the connection to {self.name} is lost, and the command may still be running; {advice}"
        return f"the connection to {self.name} was lost, and the command was stopped; {advice}"

    # Background jobs

    async def start(
        self, command: str, *, timeout_s: float | None = None, env: Mapping[str, str] | None = None, cwd: str | None = None
    ) -> str:
        """Start a shell command that keeps running when this process ends; return the job's id. `cwd`: see `run`.

        Raises UsageError for an empty command, JobNotStarted.
        """
        validation.check_command(command)
        variables = validation.check_environment(dict(env or {}))
        job_id = f"run-{secrets.token_hex(4)}"
        limit = f"timeout --kill-after=5 {timeout_s:g} " if timeout_s is not None else ""
        job = Job(  # noqa: S604 (a template, no subprocess)
            id=job_id,
            script=f"{_prelude(variables)}{enter(cwd)}\n{command}\n",
            env=with_prefix(variables),
            working_directory="/root",
            shell=f"{limit}bash {{0}}",
            merged=False,
        )
        await self._shell.start(job)
        return job_id

    async def jobs(self) -> list[JobEntry]:
        """Return all jobs of the machine, oldest first, including the provisioning."""
        result = await self._retry_lost(lambda: self._shell.run(list_jobs_command(), most_bytes=JOBS_BYTES))
        return [replace(job, script=_user_script(job)) for job in read_jobs(result.stdout)]

    async def follow(self, job_id: str, on_output: OnOutput) -> int:
        """Pass on a job's output from its beginning to its end; return its exit status. Reconnects a lost connection.

        Raises UsageError for a job that doesn't exist, MachineLost when the machine is gone.
        """
        if all(job.id != job_id for job in await self.jobs()):
            raise no_job(self.name, job_id)
        offsets = {"stdout": 0, "stderr": 0}

        async def attach() -> int:
            items = self._shell.attach(job_id, stdout_from=offsets["stdout"], stderr_from=offsets["stderr"])
            async for item in items:
                if isinstance(item, Exit):
                    return item.status
                offsets[item.stream] = item.offset
                on_output(item.stream, item.data)
            raise MachineLost(f"the output of job {job_id} ended unexpectedly")

        return await self._retry_lost(attach)

    async def wait_job(self, job_id: str) -> int:
        """Wait for the end of a job without its output; return its exit status. Raises as `follow` does."""
        if all(job.id != job_id for job in await self.jobs()):
            raise no_job(self.name, job_id)
        return (await self._retry_lost(lambda: self._shell.wait(job_id))).status

    async def stop(self, job_id: str) -> None:
        """Stop a job: SIGTERM, and after five seconds SIGKILL, to its whole process tree."""
        await self._shell.kill(job_id)

    async def print_log(self, job_id: str | None, on_output: OnOutput) -> None:
        """Pass on a job's output so far; None: the log of the provisioning and the tasks. Raises UsageError."""
        if job_id is None:
            before = f"[ ! -e {_CLOUD_INIT_LOG} ] || cat {_CLOUD_INIT_LOG}; "
            script = f"{before}({print_job(JOB_ID)}); [ $? -ne 4 ] || true"
        else:
            script = print_job(job_id)
        result = await self._shell.run(script, timeout_s=self._left_s(), on_output=on_output, keep_output=False)
        if result.exit_status == 4:
            assert job_id is not None
            raise no_job(self.name, job_id)

    # `.gibil.yml`

    async def wait_ready(self) -> bool:
        """Wait until the code is cloned and set up (True) or that has failed (False)."""
        wait = f"while [ ! -e {READY} ] && [ ! -e {TASKS_FAILED} ]; do sleep 0.05; done; [ -e {READY} ]"
        result = await self._retry_lost(lambda: self._shell.run(wait, timeout_s=self._left_s()))
        return result.exit_status == 0

    async def is_ready(self) -> bool:
        """Return whether the code is cloned and set up now."""
        return (await self._retry_lost(lambda: self._shell.run(f"[ -e {READY} ]"))).exit_status == 0

    async def has_succeeded(self) -> bool:
        """Return whether the marker of success exists, the one for clients that poll: a failed task may be allowed to fail."""
        return (await self._retry_lost(lambda: self._shell.run(f"[ -e {TASKS_DONE} ]"))).exit_status == 0

    async def wait_tasks(self, on_output: OnOutput | None = None) -> list[TaskOutcome]:
        """Wait until all tasks have ended; `on_output` receives the log. A failure before the tasks is an outcome, too."""
        if any(job.id == JOB_ID for job in await self.jobs()):
            await self.follow(JOB_ID, on_output or (lambda stream, data: None))
        return await self.tasks()

    async def tasks(self) -> list[TaskOutcome]:
        """Return the outcomes of the tasks that have ended, in order."""
        result = await self._retry_lost(lambda: self._shell.run(f"cat {STATE} 2>/dev/null || true"))
        found = []
        for line in result.stdout.decode("utf-8", "replace").split("\n"):
            with contextlib.suppress(ValueError):  # and so BadAnswer: a line that our script didn't write
                number, status, code, milliseconds, name = line.split("\t", 4)
                outcome = TaskOutcome(
                    name=printable(name),
                    status=printable(status, 20),
                    exit_code=exit_status(code) if code else None,
                    duration_s=whole_number(milliseconds) / 1000,
                )
                if number != "0" or status != "success":
                    found.append(outcome)
        return found

    # End

    async def extend(self, duration: validation.Duration) -> Machine:
        """Extend the time to live by `"90s"`, `"2h"`, a timedelta, or a number of minutes. Raises UsageError."""
        seconds = validation.duration_seconds(duration)
        self.machine = await extend_machine(self._factory, self.machine, seconds, self._max_ttl_s)
        return self.machine

    async def destroy(self) -> bool:
        """Destroy the machine; True if it still existed. Cancelling doesn't stop it."""
        return await self._factory.destroy(self.name)

    async def close(self) -> None:
        """Close the connection."""
        await self._shell.close()

    async def reopen(self) -> None:
        """Connect again unless the connection works: copying a machine's disk ends it. Raises MachineLost, SSHError."""
        if not await answers(self._shell):
            await self._reconnect(_STOP_S)

    async def _retry_lost(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Run an idempotent operation; reconnect and repeat it when the connection was lost."""
        while True:
            try:
                return await operation()
            except MachineLost:
                if await answers(self._shell):
                    raise  # the connection isn't the cause
                await self._reconnect(self._left_s())

    async def _reconnect(self, within_s: float) -> None:
        """Replace the connection. Raises MachineLost, SSHError."""
        machine, shell = await reconnect(self._factory, self.machine, within_s=within_s, report=self.on_connection)
        await self._shell.close()
        self._shell, self.machine = shell, machine

    def _left_s(self) -> float:
        """Return the seconds until the machine expires, and a little more: an upper bound for every wait."""
        latest = self.machine.expires_at
        if self.may_be_extended:
            latest = max(latest, self.machine.created_at + timedelta(seconds=self._max_ttl_s))
        return max(0.0, (latest - datetime.now(UTC)).total_seconds()) + _BEYOND_EXPIRY_S


async def extend_machine(factory: MachineFactory, machine: Machine, seconds: int, max_ttl_s: int) -> Machine:
    """Extend a machine's time to live. Raises UsageError beyond `max_ttl_s` in all, MachineNotFound."""
    if seconds <= 0:
        raise UsageError("a machine can only be extended by a duration greater than zero")
    expires_at = machine.expires_at + timedelta(seconds=seconds)
    latest = machine.created_at + timedelta(seconds=max_ttl_s)
    if expires_at > latest:
        left = max(0, int((latest - machine.expires_at).total_seconds()) // 60)
        raise UsageError(
            f"the time to live is at most {duration_setting(max_ttl_s)}: {machine.name} can be extended by {left}m more; "
            "GIBIL_MAX_TTL sets the cap"
        )
    with contextlib.suppress(MachineNotFound):
        return await factory.provider.extend(machine.name, expires_at)
    raise not_found(machine.name)


def new_tag() -> str:
    return f"command-{secrets.token_hex(8)}"


def not_found(name: str) -> MachineNotFound:
    return MachineNotFound(f"Server '{name}' not found")


def no_job(name: str, job_id: str) -> UsageError:
    return UsageError(f"there is no job {job_id} on machine {name}; `gibil jobs {name}` lists them", code="JOB_NOT_FOUND")


def _user_script(job: JobEntry) -> str:
    """Return the user's part of a job's script."""
    first, _, rest = job.script.partition("\n")
    return "" if job.id == JOB_ID else rest.strip() if first.startswith(LOAD_ENVIRONMENT) else job.script.strip()


def _prelude(variables: Mapping[str, str]) -> str:
    """Return POSIX sh that loads the machine's environment, and then the command's variables."""
    return f"{LOAD_ENVIRONMENT}; {unprefix_line(variables)}"
