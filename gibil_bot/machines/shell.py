"""Commands, detached jobs and files on one machine: ports.Shell over one SSH connection.

OpenSSH's server kills nothing when a channel is closed (measured: not on close, not on a signal request), so every command
carries a tag in its environment and is killed by a second command that looks for the tag. What happens on the far side is
the text in remote_scripts.py and job_scripts.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any

from gibil_bot.errors import JobNotStarted, MachineLost, SSHError, UsageError
from gibil_bot.machines import job_scripts, remote_scripts
from gibil_bot.machines.channel import Channel
from gibil_bot.machines.connection import Connection, blocks
from gibil_bot.machines.follow import Follow
from gibil_bot.model import Chunk, Exit, Job, Result

_CLEANUP_S = 15.0
_START_S = 60.0
_UNATTACHED_S = 5.0
"""How long the output of a job that was just started is kept flowing for an attach that is about to come."""
_REATTACHES = 5


class SSHShell:
    """ports.Shell over asyncssh."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._background: set[asyncio.Task[None]] = set()
        self._kept: dict[str, Follow] = {}

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
    ) -> Result:
        """See ports.Shell. An exception of `on_output` is raised at the end, it does not disturb the connection."""
        tag = f"run-{secrets.token_hex(8)}"
        command = remote_scripts.run_command(tag, script, with_env=bool(env))
        if env:
            first = remote_scripts.export_line(env)
            stdin = first + stdin if isinstance(stdin, bytes) else _after(first, stdin)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._connection.execute(command, stdin, on_output, keep_output=keep_output)
        except (TimeoutError, asyncio.CancelledError):
            await self._see_through(self._kill_run(tag))
            raise

    async def start(self, job: Job) -> None:
        """See ports.Shell. The same command goes on to send the output, for the attach that usually follows."""
        command, stdin = job_scripts.start_command(job)
        follow = Follow("stdout", 0)
        follow.separate = not job.merged
        try:
            async with asyncio.timeout(_START_S):
                follow.channel = await self._connection.open(command, follow.on_data)
                async for block in blocks(stdin):
                    await follow.channel.send(block)
                follow.channel.end_input()
                follow.channel.ended.add_done_callback(lambda _: follow.wake.set())
                while follow.started is None and not follow.failed and not follow.channel.ended.done():
                    await follow.wake.wait()
                    follow.wake.clear()
        except TimeoutError:
            follow.close()
            raise MachineLost(f"{self._connection.where} did not start job {job.id} within {_START_S:g} s") from None
        except BaseException:
            follow.close()
            raise
        if follow.started:
            follow.wake.set()  # what came together with the handshake
            self._keep(job.id, follow)
            return
        follow.close()
        if follow.started is None and follow.failed:
            raise JobNotStarted(f"The machine could not start job {job.id}: {follow.failed}")
        if follow.started is None:
            raise MachineLost(f"{self._connection.where} could not start job {job.id}: the connection ended")

    async def attach(self, job_id: str, *, stdout_from: int = 0, stderr_from: int = 0) -> AsyncIterator[Chunk | Exit]:
        """See ports.Shell."""
        remote_scripts.check_job_id(job_id)
        kept = self._kept.pop(job_id, None)
        if kept is not None and (stdout_from > 0 or (kept.broken_off and not kept.complete)):
            kept.close()
            kept = None
        wake = asyncio.Event()
        follows = [kept or await self._follow(job_id, "stdout", stdout_from)]
        reattaches = 0
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
                        self._raise_if_gone(job_id, follow)
                        reattaches += 1
                        if reattaches > _REATTACHES:
                            raise MachineLost(
                                f"the output of job {job_id} on {self._connection.where} breaks off again and again"
                            )
                        follows[index] = await self._follow(job_id, follow.stream, follow.offset)
                        wake.set()
                if follows[0].separate and len(follows) == 1:
                    follows.append(await self._follow(job_id, "stderr", stderr_from))
                    wake.set()
                if all(follow.complete for follow in follows):
                    assert follows[0].exit_status is not None
                    yield Exit(follows[0].exit_status, follows[0].files)
                    return
                await wake.wait()
                wake.clear()
        finally:
            for follow in follows:
                follow.close()

    async def kill(self, job_id: str, *, grace_s: float = 5.0) -> None:
        """See ports.Shell. An unknown job is not a failure. Raises SSHError when something of it does not die."""
        try:
            async with asyncio.timeout(grace_s + _CLEANUP_S):
                result = await self._connection.execute(remote_scripts.kill_job_command(job_id, grace_s))
        except TimeoutError:
            raise SSHError(f"job {job_id} on {self._connection.where} could not be killed in time") from None
        if result.exit_status != 0:
            raise SSHError(f"something of job {job_id} on {self._connection.where} does not die; burn the machine")

    async def put(self, path: str, content: AsyncIterator[bytes] | bytes, *, mode: int = 0o644) -> None:
        """See ports.Shell. The folder has to exist. Raises SSHError when the machine cannot store it (no folder, disk full)."""
        if not path or "\0" in path:
            raise UsageError(f"{path!r} is not a path on a machine")
        tag = f"gibil-{secrets.token_hex(8)}"
        try:
            if isinstance(content, bytes):
                result = await self._connection.execute(remote_scripts.put_command(path, mode, tag, len(content)), content)
                self._check_stored(path, result)
                return
            sent = 0

            async def counted() -> AsyncIterator[bytes]:
                nonlocal sent
                async for block in content:
                    sent += len(block)
                    yield block

            # Only we know that all was sent, so the file is moved into place by a command of its own.
            result = await self._connection.execute(remote_scripts.put_command(path, mode, tag, None), counted())
            self._check_stored(path, result)
            if int(result.stdout) != sent:
                raise MachineLost(f"not all of {path} arrived on {self._connection.where}: the connection ended")
            result = await self._connection.execute(remote_scripts.put_commit_command(path, mode, tag))
            self._check_stored(path, result)
        except SSHError:
            raise  # the command has cleaned up itself
        except BaseException:
            await self._see_through(self._try_execute(remote_scripts.put_abandon_command(path, tag)))
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
            reason = result.stderr.decode("utf-8", "replace").strip().replace("\n", "; ") or "not all of it arrived"
            raise SSHError(f"cannot write {path} on {self._connection.where}: {reason}")

    # --- jobs ---------------------------------------------------------------------------------------------------

    async def _follow(self, job_id: str, stream: str, offset: int) -> Follow:
        follow = Follow(stream, offset)
        follow.channel = await self._connection.open(job_scripts.attach_command(job_id, stream, offset), follow.on_data)
        return follow

    def _keep(self, job_id: str, follow: Follow) -> None:
        self._kept[job_id] = follow

        def drop() -> None:
            if self._kept.get(job_id) is follow:
                self._kept.pop(job_id).close()

        asyncio.get_running_loop().call_later(_UNATTACHED_S, drop)

    def _raise_if_gone(self, job_id: str, follow: Follow) -> None:
        if follow.lost:
            raise MachineLost(
                f"job {job_id} on {self._connection.where} vanished without an exit status: its supervisor was killed"
            )
        if follow.unknown:
            raise MachineLost(f"there is no job {job_id} on {self._connection.where}")
        if self._connection.is_closed:
            raise self._connection.gone()

    # --- ends ---------------------------------------------------------------------------------------------------

    def _gone(self) -> MachineLost:
        return MachineLost(f"the connection to {self._connection.where} ended before the command did")

    async def _kill_run(self, tag: str) -> None:
        await self._try_execute(remote_scripts.kill_run_command(tag))

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


async def _after(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for block in rest:
        yield block
