"""Commands, detached jobs and files on one machine: ports.Shell over one SSH connection.

OpenSSH's server kills nothing when a channel is closed (measured: not on close, not on a signal request), so every command
carries a tag in its environment and is killed by a second command that looks for the tag. What happens on the far side is
the text in scripts/commands.py and scripts/jobs.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from typing import Any

from gibil_bot.errors import CommandTimeout, JobLost, JobNotStarted, MachineLost, SSHError, UsageError
from gibil_bot.model import Chunk, Exit, Job, Result
from gibil_bot.scripts import commands, jobs
from gibil_bot.ssh.answers import MOST_ANSWERED, BadAnswer, number, printable
from gibil_bot.ssh.channel import Channel
from gibil_bot.ssh.connection import Connection, blocks
from gibil_bot.ssh.job_requests import JOB_STATUS, SERVER_VERSION, START_JOB, read_status, start_request
from gibil_bot.ssh.jobs import JobFollower

_CLEANUP_S = 15.0
_START_S = 60.0
_UNATTACHED_S = 5.0
"""How long the output of a job that was just started is kept flowing for an attach that is about to come."""
_REATTACHES = 5
_AGREES_S = 1.0
"""How much later the end of a job may be known to the server than to the scripts that follow it."""
_SILENT_S = 15.0
"""How long what follows a job may say nothing after the job is known to have ended: processes of the machine may stop it."""
_STALLS_S = 120.0
"""How long a machine may take to store one block of a file."""


class SSHShell:
    """ports.Shell over asyncssh."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._background: set[asyncio.Task[None]] = set()
        self._kept: dict[str, JobFollower] = {}

    @property
    def is_closed(self) -> bool:
        """See ports.Shell."""
        return self._connection.is_closed

    async def run(
        self,
        script: str,
        *,
        timeout_s: float = 60.0,
        stdin: bytes | AsyncIterator[bytes] = b"",
        env: Mapping[str, str] | None = None,
        on_output: Callable[[str, bytes], None] | None = None,
        keep_output: bool = True,
        most_bytes: int = MOST_ANSWERED,
        tag: str | None = None,
    ) -> Result:
        """See ports.Shell. An exception of `on_output` ends the command and is raised; the connection stays as it is."""
        if not script.strip():
            raise UsageError("there is no command: the script is empty")
        tag = tag or f"run-{secrets.token_hex(8)}"
        commands.check_job_id(tag)
        command = commands.run_command(tag, script, with_env=bool(env))
        if env:
            first = commands.export_line(env)
            stdin = first + stdin if isinstance(stdin, bytes) else _after(first, stdin)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._connection.execute(command, stdin, on_output, keep_output=keep_output, most_bytes=most_bytes)
        except MachineLost:
            raise
        except BaseException as error:  # it takes too long, prints too much, or is cancelled
            await self._see_through(self._kill_run(tag))
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
        """See ports.Shell. The same command goes on to send the output, for the attach that usually follows.

        A local machine's own PID 1 starts the job.
        """
        command: str | None = None
        if self._has_supervisor:
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
        if follow.started and not self._has_supervisor:
            follow.wake.set()  # what came together with the handshake
            self._keep(job.id, follow)
            return
        follow.close()
        if follow.started is not None:
            return
        if follow.failed:
            raise JobNotStarted(f"The machine could not start job {job.id}: {follow.failed}")
        if not self._connection.is_closed and follow.channel.exit_status is not None:
            said = f": {follow.said}" if follow.said else ""
            raise JobNotStarted(
                f"The machine could not start job {job.id}: its shell ended with status {follow.channel.exit_status}{said}"
            )
        raise MachineLost(f"{self._connection.where} could not start job {job.id}: the connection ended")

    async def attach(self, job_id: str, *, stdout_from: int = 0, stderr_from: int = 0) -> AsyncGenerator[Chunk | Exit, None]:
        """See ports.Shell."""
        commands.check_job_id(job_id)
        kept = self._kept.pop(job_id, None)
        if kept is not None and (stdout_from > 0 or (kept.broken_off and not kept.complete)):
            kept.close()
            kept = None
        wake = asyncio.Event()
        follows = [kept or await self._follow(job_id, "stdout", stdout_from)]
        reattaches = 0
        known = asyncio.create_task(self._known_status(job_id))
        known.add_done_callback(lambda _: wake.set())
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
                    if follow.broken_off and not follow.complete:
                        reattaches += 1
                        problem = self._what_is_gone(job_id, follow, reattaches)
                        if problem is not None:
                            # PID 1 knows the end all the same, of a job that it started; the rest of the output is lost
                            await asyncio.wait({known}, timeout=_AGREES_S if follow.lost else None)
                            if not known.done() or (status := await known) is None:
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
                    await asyncio.wait({known}, timeout=_AGREES_S)
                    is_early = not known.done()
                    status = await known
                    if is_early and status is not None:
                        # Another process claimed that it had ended. What it has printed since is still to come.
                        for index, follow in enumerate(follows):
                            follow.close()
                            follows[index] = await self._follow(job_id, follow.stream, follow.offset)
                        wake.set()
                        continue
                    yield Exit(claimed if status is None else status, follows[0].files, follows[0].cut)
                    return
                if not await _wake(wake, _SILENT_S if known.done() else None) and (status := await known) is not None:
                    yield Exit(status, follows[0].files, output_cut=True)
                    return
                wake.clear()
        finally:
            await _drop(known)
            for follow in follows:
                follow.close()

    async def wait(self, job_id: str) -> Exit:
        """See ports.Shell."""
        commands.check_job_id(job_id)
        reattaches = 0
        known = asyncio.create_task(self._known_status(job_id))
        try:
            while True:
                follow = JobFollower("stdout", 0)
                follow.channel = await self._connection.open(jobs.wait_command(job_id), follow.on_data)
                try:
                    if (silent := await _ended_or_silent(known, follow.channel)) is not None:
                        return Exit(silent, follow.files, output_cut=True)
                finally:
                    follow.close()
                problem: JobLost | None = None
                if follow.exit_status is None:
                    reattaches += 1
                    problem = self._what_is_gone(job_id, follow, reattaches)
                    if problem is None:
                        continue
                status = None if follow.lost else await known
                if status is None:
                    if problem is not None:
                        raise problem
                    status = follow.exit_status
                assert status is not None
                return Exit(status, follow.files, follow.cut or problem is not None)
        finally:
            await _drop(known)

    async def kill(self, job_id: str, *, grace_s: float = 5.0) -> None:
        """See ports.Shell. An unknown job is not a failure. Raises SSHError when something of it does not die."""
        try:
            async with asyncio.timeout(grace_s + _CLEANUP_S):
                result = await self._connection.execute(commands.kill_job_command(job_id, grace_s))
        except TimeoutError:
            raise SSHError(f"job {job_id} on {self._connection.where} could not be killed in time") from None
        if result.exit_status != 0:
            raise SSHError(f"some processes of job {job_id} on {self._connection.where} can't be killed; destroy the machine")

    async def put(self, path: str, content: AsyncIterator[bytes] | bytes, *, mode: int = 0o644) -> None:
        """See ports.Shell. The folder has to exist. Raises SSHError when the machine cannot store it (no folder, disk full)."""
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

            # Only we know that all was sent, so the file is moved into place by a command of its own.
            result = await self._connection.execute(commands.put_command(path, mode, tag, None), counted(), stalls_s=_STALLS_S)
            self._check_stored(path, result)
            if number(result.stdout.strip()) != sent:
                raise MachineLost(f"not all of {path} arrived on {self._connection.where}: the connection ended")
            result = await self._connection.execute(commands.put_commit_command(path, mode, tag), stalls_s=_STALLS_S)
            self._check_stored(path, result)
        except BadAnswer as error:
            raise SSHError(f"cannot write {path} on {self._connection.where}: {error.message}") from None
        except SSHError:
            raise  # the command has cleaned up itself
        except BaseException:
            await self._see_through(self._try_execute(commands.put_abandon_command(path, tag)))
            raise

    async def open_channel(
        self, command: str, on_data: Callable[[str, bytes], None], *, terminal: tuple[str, tuple[int, int]] | None = None
    ) -> Channel:
        """A command that somebody talks with, for a terminal's type and (columns, rows) on a pty. Beyond ports.Shell."""
        return await self._connection.open(command, on_data, terminal=terminal)

    async def close(self) -> None:
        """See ports.Shell."""
        for job_id in list(self._kept):
            self._kept.pop(job_id).close()
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
        self._kept[job_id] = follow

        def drop() -> None:
            if self._kept.get(job_id) is follow:
                self._kept.pop(job_id).close()

        asyncio.get_running_loop().call_later(_UNATTACHED_S, drop)

    @property
    def _has_supervisor(self) -> bool:
        """Whether the server starts jobs itself, and knows how they end."""
        return self._connection.server_version == SERVER_VERSION

    async def _known_status(self, job_id: str) -> int | None:
        """How a job ended, once it has, from the server that waits for it; None: only the machine's files record it."""
        if not self._has_supervisor:
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

    def _what_is_gone(self, job_id: str, follow: JobFollower, reattaches: int) -> JobLost | None:
        """Why it can't be followed again. Raises MachineLost."""
        if self._connection.is_closed:
            raise self._connection.gone()
        if follow.lost:
            return JobLost(
                f"job {job_id} vanished without an exit status: its supervisor was killed by something on the machine"
            )
        if follow.unknown:
            return JobLost(f"there is no job {job_id} on the machine: it was never started, or its files were removed")
        if reattaches > _REATTACHES:
            said = f": {follow.said}" if follow.said else ""
            return JobLost(f"the output of job {job_id} on the machine cannot be followed any more{said}")
        return None

    # --- ends ---------------------------------------------------------------------------------------------------

    async def _kill_run(self, tag: str) -> None:
        await self._try_execute(commands.kill_run_command(tag))

    async def _try_execute(self, command: str) -> None:
        with contextlib.suppress(TimeoutError, MachineLost, SSHError):
            async with asyncio.timeout(_CLEANUP_S):
                await self._connection.execute(command)

    async def _see_through(self, cleanup: Coroutine[Any, Any, None]) -> None:
        """Await a cleanup that goes on when we are cancelled (again); `close` waits for it."""
        task = asyncio.create_task(cleanup)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        await asyncio.shield(task)


async def _wake(event: asyncio.Event, timeout_s: float | None) -> bool:
    """Wait for the event; False when it is not set within that time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            return await event.wait()
    return False


async def _ended_or_silent(known: asyncio.Task[int | None], channel: Channel) -> int | None:
    """Wait for the channel's end. The job's status, when that is known and the channel doesn't end in spite of it."""
    either: set[asyncio.Future[Any]] = {known, channel.ended}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if channel.ended.done():
        return None
    status = await known
    done, _ = await asyncio.wait({channel.ended}, timeout=None if status is None else _SILENT_S)
    return None if done else status


async def _drop(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for its end, whatever it is."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _after(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for block in rest:
        yield block
