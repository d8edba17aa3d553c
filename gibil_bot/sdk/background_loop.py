"""The event loop of the synchronous API: one thread for all calls of the process, started by the first one."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from gibil_bot.errors import UsageError

T = TypeVar("T")

_END_S = 5.0
"""How long the end of the program waits for calls of other threads."""


class BackgroundLoop:
    """Runs coroutines for threads that have no event loop. All methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end and return its result.

        An exception in the waiting thread, such as KeyboardInterrupt, cancels it; then it is raised, when the coroutine has
        cleaned up. Raises UsageError if it is called by code that the loop itself runs, which would wait forever.
        """
        loop = self._started()
        if threading.current_thread() is self._thread:
            work.close()
            raise UsageError("the synchronous API can't be called from its own event loop; use the asynchronous one")
        ended: concurrent.futures.Future[T] = concurrent.futures.Future()
        tasks: list[asyncio.Task[T]] = []

        def start() -> None:
            task = loop.create_task(work)
            tasks.append(task)
            task.add_done_callback(lambda task: _copy(task, ended))

        def cancel() -> None:
            for task in tasks:
                task.cancel()
            if not tasks:  # the exception came before the coroutine was started
                work.close()
                ended.set_exception(concurrent.futures.CancelledError())

        try:
            loop.call_soon_threadsafe(start)
            concurrent.futures.wait([ended])
        except BaseException:
            loop.call_soon_threadsafe(cancel)
            concurrent.futures.wait([ended])
            raise
        return ended.result()

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                loop = self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=_run, args=(loop,), name="gibil", daemon=True)
                self._thread.start()
            return self._loop

    def end(self) -> None:
        """Cancel what still runs, and end the thread. A later call starts a new one."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(loop.stop)
        thread.join(_END_S)

    def forget(self) -> None:
        """Forget the loop in a forked process, which has a copy of it without its thread."""
        self._lock = threading.Lock()
        self._loop = self._thread = None


def _copy(task: asyncio.Task[T], ended: concurrent.futures.Future[T]) -> None:
    if task.cancelled():
        ended.set_exception(concurrent.futures.CancelledError())
    elif (error := task.exception()) is not None:
        ended.set_exception(error)
    else:
        ended.set_result(task.result())


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        with contextlib.suppress(BaseException):
            if tasks:
                loop.run_until_complete(asyncio.wait(tasks, timeout=_END_S / 2))
            loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


BACKGROUND = BackgroundLoop()
atexit.register(BACKGROUND.end)
os.register_at_fork(after_in_child=BACKGROUND.forget)
