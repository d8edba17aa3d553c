"""Commands, detached jobs and files on one machine: ports.Shell over one SSH connection.

OpenSSH's server kills nothing when a channel is closed (measured: neither on close nor on a signal request), so every command
carries a tag in its environment and is killed by a second command that searches for the tag. scripts/commands.py and
scripts/jobs.py contain the scripts that run on the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any

from gibil_bot.errors import CommandTimeout, JobLost, JobNotStarted, MachineLost, SSHError, UsageError
from gibil_bot.model import Chunk, Exit, Job, Result
from gibil_bot.scripts import commands, jobs
from gibil_bot.ssh.answers import MOST_ANSWERED, BadAnswer, number, printable
from gibil_bot.ssh.channel import Channel
from gibil_bot.ssh.connection import Connection, OnOutput, blocks
from gibil_bot.ssh.job_requests import JOB_STATUS, SERVER_VERSION, START_JOB, read_status, start_request
from gibil_bot.ssh.jobs import JobFollower
from gibil_bot.ssh.lean_asyncssh import asyncssh

_CLEANUP_S = 15.0
_START_S = 60.0
_UNATTACHED_S = 5.0
"""How long a started job's output is read ahead for the attach that usually follows."""
_REATTACHES = 5
_STATUS_LAG_S = 1.0
"""How much later than the scripts that follow a job the server may learn of its end."""
_SILENT_S = 15.0
"""How long a script that follows a job may stay silent after the job's end is known: other processes may have stopped it."""
_STALLS_S = 120.0
"""How long a machine may take to store one block of a file."""


class SSHShell:
    """ports.Shell over asyncssh."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._background: set[asyncio.Task[None]] = set()
        self._unattached: dict[str, JobFollower] = {}

    @property
    def is_closed(self) -> bool:
        """See ports.Shell."""
        return self._connection.is_closed

    def has_hung_up(self) -> bool:
        """Return whether the server has closed the connection, even if this process hasn't noticed that yet."""
        return self._connection.has_hung_up()

    async def run(
        self,
        script: str,
        *,
        timeout_s: float = 60.0,
        stdin: bytes | AsyncIterator[bytes] = b"",
        env: Mapping[str, str] | None = None,
        on_output: OnOutput | None = None,
        keep_output: bool = True,
        most_bytes: int = MOST_ANSWERED,
        tag: str | None = None,
    ) -> Result:
        """See ports.Shell. An exception from `on_output` ends the command and is raised; the connection remains usable."""
        if not script.strip():
            raise UsageError("the script is empty: there is no command to run")
        tag = tag or f"run-{secrets.token_hex(8)}"
        commands.check_job_id(tag)
        command = commands.run_command(tag, script, with_env=bool(env))
        if env:
            first = commands.export_line(env)
            stdin = first + stdin if isinstance(stdin, bytes) else _prepend(first, stdin)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._connection.execute(command, stdin, on_output, keep_output=keep_output, most_bytes=most_bytes)
        except MachineLost:
            raise
        except BaseException as error:  # a timeout, too much output, or a cancellation
            await self._finish_shielded(self._kill_run(tag))
            if isinstance(error, TimeoutError):
                where = self._connection.where
                raise CommandTimeout(f"{where} did not finish a command within {timeout_s:g} s; it was killed") from None
            raise

    async def signal(self, tag: str, signal: str) -> None:
        """See ports.Shell."""
        commands.check_job_id(tag)
        try:
            async with asyncio.timeout(_CLEANUP_S):
                await self._connection.execute(commands.signal_run_command(tag, signal))
        except TimeoutError:
            raise CommandTimeout(f"{self._connection.where} did not send {signal} within {_CLEANUP_S:g} s") from None

    async def start(self, job: Job) -> None:
        """See ports.Shell. The same command then sends the output, for the attach that usually follows.

        On a local machine, PID 1 starts the job.
        """
        command: str | None = None
        if self.has_supervisor:
            subsystem, stdin = START_JOB, start_request(job)
        else:
            subsystem, (command, stdin) = None, jobs.start_command(job)
        follow = JobFollower("stdout", 0)
        follow.separate = not job.merged
        try:
            async with asyncio.timeout(_START_S):
                follow.channel = await self._connection.open(command, follow.on_data, subsystem=subsystem)
                async for block in blocks(stdin):
                    await follow.channel.send(block)
                follow.channel.end_input()
                follow.channel.ended.add_done_callback(lambda _: follow.wake.set())
                while follow.started is None and not follow.failed and not follow.channel.ended.done():
                    await follow.wake.wait()
                    follow.wake.clear()
        except TimeoutError:
            follow.close()
            if not self._connection.is_closed:
                raise JobNotStarted(f"The machine did not start job {job.id} within {_START_S:g} s") from None
            raise MachineLost(f"{self._connection.where} did not start job {job.id} within {_START_S:g} s") from None
        except BaseException:
            follow.close()
            raise
        if follow.started and not self.has_supervisor:
            follow.wake.set()  # output may have come together with the handshake
            self._keep(job.id, follow)
            return
        follow.close()
        if follow.started is not None:
            return
        if follow.failed:
            raise JobNotStarted(f"The machine could not start job {job.id}: {follow.failed}")
        if not self._connection.is_closed and follow.channel.exit_status is not None:
            detail = f": {follow.complaint}" if follow.complaint else ""
            raise JobNotStarted(
                f"The machine could not start job {job.id}: its shell ended with status {follow.channel.exit_status}{detail}"
            )
        raise MachineLost(f"{self._connection.where} could not start job {job.id}: the connection ended")

    async def attach(self, job_id: str, *, stdout_from: int = 0, stderr_from: int = 0) -> AsyncGenerator[Chunk | Exit, None]:
        """See ports.Shell."""
        commands.check_job_id(job_id)
        kept = self._unattached.pop(job_id, None)
        if kept is not None and (stdout_from > 0 or (kept.interrupted and not kept.complete)):
            kept.close()
            kept = None
        wake = asyncio.Event()
        follows = [kept or await self._follow(job_id, "stdout", stdout_from)]
        reattaches = 0
        supervisor = asyncio.create_task(self._supervisor_status(job_id))
        supervisor.add_done_callback(lambda _: wake.set())
        try:
            while True:
                for index, follow in enumerate(follows):
                    if follow.wake is not wake:
                        follow.wake = wake
                        assert follow.channel is not None
                        follow.channel.ended.add_done_callback(lambda _: wake.set())
                        wake.set()
                    if data := follow.take():
                        reattaches = 0
                        yield Chunk(data, follow.offset, follow.stream)
                    if follow.interrupted and not follow.complete:
                        reattaches += 1
                        problem = self._lost_error(job_id, follow, reattaches)
                        if problem is not None:
                            # PID 1 still knows the exit status of a job that it started; the rest of the output is lost.
                            await asyncio.wait({supervisor}, timeout=_STATUS_LAG_S if follow.lost else None)
                            if not supervisor.done() or (status := await supervisor) is None:
                                raise problem
                            yield Exit(status, follows[0].files, output_cut=True)
                            return
                        follows[index] = await self._follow(job_id, follow.stream, follow.offset)
                        wake.set()
                if follows[0].separate and len(follows) == 1:
                    follows.append(await self._follow(job_id, "stderr", stderr_from))
                    wake.set()
                if all(follow.complete for follow in follows):
                    claimed = follows[0].exit_status
                    assert claimed is not None
                    await asyncio.wait({supervisor}, timeout=_STATUS_LAG_S)
                    is_early = not supervisor.done()
                    status = await supervisor
                    if is_early and status is not None:
                        # Another process faked the job's end. The job's output since then is still to come.
                        for index, follow in enumerate(follows):
                            follow.close()
                            follows[index] = await self._follow(job_id, follow.stream, follow.offset)
                        wake.set()
                        continue
                    yield Exit(claimed if status is None else status, follows[0].files, follows[0].cut)
                    return
                if (
                    not await _wait_for(wake, _SILENT_S if supervisor.done() else None)
                    and (status := await supervisor) is not None
                ):
                    yield Exit(status, follows[0].files, output_cut=True)
                    return
                wake.clear()
        finally:
            await _cancel(supervisor)
            for follow in follows:
                follow.close()

    async def wait(self, job_id: str) -> Exit:
        """See ports.Shell."""
        commands.check_job_id(job_id)
        reattaches = 0
        supervisor = asyncio.create_task(self._supervisor_status(job_id))
        try:
            while True:
                follow = JobFollower("stdout", 0)
                follow.channel = await self._connection.open(jobs.wait_command(job_id), follow.on_data)
                try:
                    if (silent := await _ended_or_silent(supervisor, follow.channel)) is not None:
                        return Exit(silent, follow.files, output_cut=True)
                finally:
                    follow.close()
                problem: JobLost | None = None
                if follow.exit_status is None:
                    reattaches += 1
                    problem = self._lost_error(job_id, follow, reattaches)
                    if problem is None:
                        continue
                status = None if follow.lost else await supervisor
                if status is None:
                    if problem is not None:
                        raise problem
                    status = follow.exit_status
                assert status is not None
                return Exit(status, follow.files, follow.cut or problem is not None)
        finally:
            await _cancel(supervisor)

    async def kill(self, job_id: str, *, grace_s: float = 5.0) -> None:
        """See ports.Shell. An unknown job isn't a failure. Raises SSHError when a process of the job can't be killed."""
        try:
            async with asyncio.timeout(grace_s + _CLEANUP_S):
                result = await self._connection.execute(commands.kill_job_command(job_id, grace_s))
        except TimeoutError:
            raise SSHError(f"job {job_id} on {self._connection.where} could not be killed in time") from None
        if result.exit_status != 0:
            raise SSHError(f"some processes of job {job_id} on {self._connection.where} can't be killed; destroy the machine")

    async def put(self, path: str, content: AsyncIterator[bytes] | bytes, *, mode: int = 0o644) -> None:
        """See ports.Shell. The directory has to exist. Raises SSHError when the machine can't store the file (disk full …)."""
        if not path or "\0" in path:
            raise UsageError(f"{path!r} is not a path on a machine")
        tag = f"gibil-{secrets.token_hex(8)}"
        try:
            if isinstance(content, bytes):
                result = await self._connection.execute(
                    commands.put_command(path, mode, tag, len(content)), content, stalls_s=_STALLS_S
                )
                self._check_stored(path, result)
                return
            sent = 0

            async def counted() -> AsyncIterator[bytes]:
                nonlocal sent
                async for block in content:
                    sent += len(block)
                    yield block

            # Only this side knows that everything was sent, so a second command moves the file to its path.
            result = await self._connection.execute(commands.put_command(path, mode, tag, None), counted(), stalls_s=_STALLS_S)
            self._check_stored(path, result)
            if number(result.stdout.strip()) != sent:
                raise MachineLost(f"not all of {path} arrived on {self._connection.where}: the connection ended")
            result = await self._connection.execute(commands.put_commit_command(path, mode, tag), stalls_s=_STALLS_S)
            self._check_stored(path, result)
        except BadAnswer as error:
            raise SSHError(f"cannot write {path} on {self._connection.where}: {error.message}") from None
        except SSHError:
            raise  # the command has removed its temporary file
        except BaseException:
            await self._finish_shielded(self._try_execute(commands.put_abandon_command(path, tag)))
            raise

    async def open_channel(
        self, command: str, on_data: Callable[[str, bytes], None], *, terminal: tuple[str, tuple[int, int]] | None = None
    ) -> Channel:
        """Open an interactive command, on a pty if `terminal` (type, (columns, rows)) is given. Not part of ports.Shell."""
        return await self._connection.open(command, on_data, terminal=terminal)

    async def forward_port(self, bind: str, port: int, host: str, host_port: int) -> asyncssh.SSHListener:
        """Forward a local port through the server. Raises OSError if it can't be listened on. Not part of ports.Shell."""
        return await self._connection.forward_port(bind, port, host, host_port)

    async def listen_on_machine(
        self, host: str, port: int, accept: Callable[[str, int], Callable[..., Awaitable[None]]], *, window: int
    ) -> asyncssh.SSHListener:
        """See Connection.listen_on_machine. Not part of ports.Shell."""
        return await self._connection.listen_on_machine(host, port, accept, window=window)

    async def wait_closed(self) -> None:
        """Wait until the connection is closed or lost. Not part of ports.Shell."""
        await self._connection.wait_closed()

    async def close(self) -> None:
        """See ports.Shell."""
        for job_id in list(self._unattached):
            self._unattached.pop(job_id).close()
        if self._background:
            await asyncio.wait(self._background, timeout=_CLEANUP_S)
        await self._connection.close()

    def _check_stored(self, path: str, result: Result) -> None:
        if result.exit_status != 0:
            reason = printable(result.stderr.decode("utf-8", "replace").strip().replace("\n", "; ")) or "not all of it arrived"
            raise SSHError(f"cannot write {path} on {self._connection.where}: {reason}")

    # --- jobs ---------------------------------------------------------------------------------------------------

    async def _follow(self, job_id: str, stream: str, offset: int) -> JobFollower:
        follow = JobFollower(stream, offset)
        follow.channel = await self._connection.open(jobs.attach_command(job_id, stream, offset), follow.on_data)
        return follow

    def _keep(self, job_id: str, follow: JobFollower) -> None:
        self._unattached[job_id] = follow

        def drop() -> None:
            if self._unattached.get(job_id) is follow:
                self._unattached.pop(job_id).close()

        asyncio.get_running_loop().call_later(_UNATTACHED_S, drop)

    @property
    def has_supervisor(self) -> bool:
        """Whether the server starts jobs itself, and knows their exit status."""
        return self._connection.server_version == SERVER_VERSION

    async def _supervisor_status(self, job_id: str) -> int | None:
        """Wait for a job's end and return its exit status from the server; None: only files on the machine have it."""
        if not self.has_supervisor:
            return None
        answer = bytearray()

        def on_data(stream: str, data: bytes) -> None:
            if stream == "stdout":  # on stderr the server reports to every session what happens to the machine
                answer.extend(data[: 100 - len(answer)])

        channel = await self._connection.open(None, on_data, subsystem=JOB_STATUS)
        try:
            await channel.send(job_id.encode())
            channel.end_input()
            await asyncio.shield(channel.ended)
        finally:
            channel.close()
        if channel.exit_status is None:
            raise self._connection.gone()
        try:
            return read_status(bytes(answer))
        except BadAnswer:
            return None

    def _lost_error(self, job_id: str, follow: JobFollower, reattaches: int) -> JobLost | None:
        """Return why the job can't be followed again; None: try again. Raises MachineLost."""
        if self._connection.is_closed:
            raise self._connection.gone()
        if follow.lost:
            return JobLost(
                f"job {job_id} vanished without an exit status: its supervisor was killed by something on the machine"
            )
        if follow.unknown:
            return JobLost(f"there is no job {job_id} on the machine: it was never started, or its files were deleted")
        if reattaches > _REATTACHES:
            detail = f": {follow.complaint}" if follow.complaint else ""
            return JobLost(f"the output of job {job_id} on the machine can't be followed any more{detail}")
        return None

    # --- cleanup ---------------------------------------------------------------------------------------------------

    async def _kill_run(self, tag: str) -> None:
        await self._try_execute(commands.kill_run_command(tag))

    async def _try_execute(self, command: str) -> None:
        with contextlib.suppress(TimeoutError, MachineLost, SSHError):
            async with asyncio.timeout(_CLEANUP_S):
                await self._connection.execute(command)

    async def _finish_shielded(self, cleanup: Coroutine[Any, Any, None]) -> None:
        """Await a cleanup that continues when the caller is cancelled (again); `close` waits for it."""
        task = asyncio.create_task(cleanup)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        await asyncio.shield(task)


async def _wait_for(event: asyncio.Event, timeout_s: float | None) -> bool:
    """Wait for the event; return False when it isn't set in time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            return await event.wait()
    return False


async def _ended_or_silent(supervisor: asyncio.Task[int | None], channel: Channel) -> int | None:
    """Wait for the channel's end. Return the job's status if that is known and the channel stays open and silent."""
    either: set[asyncio.Future[Any]] = {supervisor, channel.ended}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if channel.ended.done():
        return None
    status = await supervisor
    done, _ = await asyncio.wait({channel.ended}, timeout=None if status is None else _SILENT_S)
    return None if done else status


async def _cancel(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it has ended, ignoring its result."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _prepend(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for block in rest:
        yield block
