"""Output of commands and jobs, piece by piece, as an asynchronous iterator."""

from __future__ import annotations

import asyncio
import codecs
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from types import TracebackType
from typing import Any, Literal, TypeVar

from gibil_bot.cancellation import uncancelled
from gibil_bot.errors import GibilError
from gibil_bot.machines.session import MAX_OUTPUT_BYTES, OnOutput
from gibil_bot.sdk.results import CommandFailed, Output, Result

T = TypeVar("T")
Follow = Callable[[OnOutput], Awaitable[Result]]
"""Runs to the end of a command, and passes its output on."""
Failure = Callable[[Result], CommandFailed | None]


class AsyncStream:
    """The output of a command, as it arrives: `async for output in stream`. It begins with the first iteration.

    After the last piece, `result` has the exit code. A block `async with stream:` ends the command when it is left early;
    otherwise the command continues until the machine is closed. A command that is 64 MiB ahead of the program is ended.
    """

    def __init__(self, follow: Follow, running: set[asyncio.Task[Result]], failure: Failure = lambda result: None) -> None:
        self._follow = follow
        self._running = running
        self._failure = failure
        self._task: asyncio.Task[Result] | None = None
        self._pieces: deque[Output] = deque()
        self._unread = 0
        self._arrived = asyncio.Event()
        decoder = codecs.getincrementaldecoder("utf-8")
        self._decoders = {"stdout": decoder("replace"), "stderr": decoder("replace")}
        self._result: Result | None = None
        self._ended = False

    @property
    def result(self) -> Result:
        """The result; only after the last piece."""
        if self._result is None:
            raise GibilError("the command has not ended: iterate to its end, or call wait()", code="NOT_ENDED")
        return self._result

    async def wait(self) -> Result:
        """Drop the rest of the output, and return the result."""
        async for _ in self:
            pass
        return self.result

    async def close(self) -> None:
        """End the command, if it runs. (Of a job, only following it ends.)"""
        self._ended = True
        self._pieces.clear()
        task, self._task = self._task, None
        if task is not None:
            await cancel_all({task})
        self._arrived.set()

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Output:
        if self._ended:
            raise StopAsyncIteration
        if self._task is None:
            self._task = asyncio.create_task(self._run())
            self._running.add(self._task)
            self._task.add_done_callback(self._done)
        task = self._task
        while not self._pieces and not task.done():
            self._arrived.clear()
            await self._arrived.wait()
        if self._pieces:
            piece = self._pieces.popleft()
            self._unread -= len(piece.data)
            return piece
        self._ended, self._task = True, None
        if task.cancelled():
            raise GibilError("the machine was closed before the command ended", code="CLOSED")
        self._result = task.result()
        if (error := self._failure(self._result)) is not None:
            raise error
        raise StopAsyncIteration

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self) -> Result:
        result = await self._follow(self._receive)
        for stream in ("stdout", "stderr"):
            self._add(stream, b"", final=True)
        return result

    def _done(self, task: asyncio.Task[Result]) -> None:
        self._running.discard(task)
        self._arrived.set()  # not in `_run`, which never begins if it is cancelled first

    def _receive(self, stream: str, data: bytes) -> None:
        self._unread += len(data)
        if self._unread > MAX_OUTPUT_BYTES:
            raise GibilError(
                f"more than {MAX_OUTPUT_BYTES // 1024**2} MiB of output were not read, so the command was ended: "
                "read it faster, or write it to a file",
                code="OUTPUT_UNREAD",
            )
        self._add(stream, data)

    def _add(self, stream: str, data: bytes, *, final: bool = False) -> None:
        text = self._decoders[stream].decode(data, final)
        if data or text:
            name: Literal["stdout", "stderr"] = "stdout" if stream == "stdout" else "stderr"
            self._pieces.append(Output(stream=name, data=data, text=text))
            self._arrived.set()


async def run_all(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all at once and return the results. The first exception ends the others, which clean up before it is raised."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        await uncancelled(cancel_all(tasks))
        raise


async def cancel_all(running: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks, and wait until they have cleaned up."""
    tasks = list(running)
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # counts as retrieved
