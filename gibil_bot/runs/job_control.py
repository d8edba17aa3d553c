"""Follows a detached job of a machine until it ends, or stops it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol

from gibil_bot.errors import GibilError, JobLost, MachineLost, SSHError
from gibil_bot.model import Exit, Job, TaskPlan, TaskStatus
from gibil_bot.ports import Shell
from gibil_bot.runs.returned_files import read_tail
from gibil_bot.scripts.task_script import working_folder
from gibil_bot.ssh.answers import BadAnswer

AFTER_KILL_S = 10.0
"""How long the rest of a job's output is read after the job was stopped."""
SKIPPED_TAIL_BYTES = 64 * 1024

Stop = Callable[[], Coroutine[Any, Any, TaskStatus]]
"""Returns when the job should be stopped, and as what."""


class Sink(Protocol):
    """What takes a job's output."""

    @property
    def raw_offset(self) -> int:
        """The offset to attach at."""

    @property
    def is_full(self) -> bool:
        """Whether it takes no more; then only the end of the output is read, when the job has ended."""

    async def feed(self, data: bytes, next_offset: int) -> None:
        """Take raw output; `next_offset` is the machine's offset after it."""

    async def skip(self, tail: bytes, size: int) -> None:
        """Take the last bytes of output that wasn't fed; `size` is the length of the whole output."""


def job_of(
    task: TaskPlan, job_id: str, env: Mapping[str, str], *, most_output_bytes: int, returns: tuple[str, ...] = ()
) -> Job:
    """Return the job that runs a task's script."""
    return Job(
        id=job_id,
        script=task.run,
        env=env,
        working_directory=working_folder(task),
        shell=task.shell,
        tty=task.tty,
        returns=returns,
        most_output_bytes=most_output_bytes,
    )


def left_s(deadline: float) -> float:
    """Return how many seconds are left until a time of the event loop's clock."""
    return max(0.0, deadline - asyncio.get_running_loop().time())


async def disconnect(shell: Shell) -> None:
    """Close a connection that isn't needed any more, so that its errors don't matter."""
    with contextlib.suppress(GibilError):
        await shell.close()


async def kill(shell: Shell, job_id: str, *, grace_s: float = 5.0) -> None:
    """Kill a job, and what it started, as far as the machine allows it; the rest ends with the machine."""
    with contextlib.suppress(SSHError, JobLost):
        await shell.kill(job_id, grace_s=grace_s)


async def follow(
    shell: Shell,
    job_id: str,
    sink: Sink,
    timeout_s: float,
    *,
    on_output: Callable[[], None],
    on_error: Callable[[bytes], None] | None = None,
    stops: Sequence[Stop] = (),
) -> tuple[Exit | None, TaskStatus | None]:
    """Follow a job until it ends. On timeout, or when one of `stops` returns, kill it and read its output for AFTER_KILL_S.

    `on_error` takes the standard error of a job that isn't merged. Returns the status as which it was stopped, if it was, and
    no Exit if the rest of its output took longer than that. Raises MachineLost, JobLost.
    """
    follower = asyncio.create_task(_copy_output(shell, job_id, sink, on_output, on_error))
    watchers = [asyncio.create_task(stop()) for stop in stops]
    stopped: TaskStatus | None = None
    try:
        done, _ = await asyncio.wait({follower, *watchers}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if follower not in done:
            stopped = next((watcher.result() for watcher in watchers if watcher in done), TaskStatus.TIMED_OUT)
            await kill(shell, job_id)
            done, _ = await asyncio.wait({follower}, timeout=AFTER_KILL_S)
            if follower not in done:
                return None, stopped
        try:
            return await follower, stopped
        except JobLost:
            if stopped is None:
                raise
            return None, stopped
    finally:
        for task in (follower, *watchers):
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task


async def _copy_output(
    shell: Shell, job_id: str, sink: Sink, on_output: Callable[[], None], on_error: Callable[[bytes], None] | None
) -> Exit:
    if not sink.is_full:
        async with contextlib.aclosing(shell.attach(job_id, stdout_from=sink.raw_offset)) as items:
            async for item in items:
                if isinstance(item, Exit):
                    return item
                if item.stream == "stderr":
                    if on_error is not None:
                        on_error(item.data)
                    continue
                await sink.feed(item.data, item.offset)
                on_output()
                if sink.is_full:
                    break
            else:
                raise MachineLost("The connection to the machine was lost during a task")
    ended = await shell.wait(job_id)
    with contextlib.suppress(SSHError, TimeoutError, BadAnswer):
        data, size = await read_tail(shell, job_id, SKIPPED_TAIL_BYTES)
        await sink.skip(data, size)
    return ended
