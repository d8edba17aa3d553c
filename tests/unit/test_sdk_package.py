"""The SDK without machines: streams, the background loop, arguments, the public names."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import os
import pydoc
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import gibil
import pytest

from gibil_bot.machines.session import MAX_OUTPUT_BYTES, OnOutput
from gibil_bot.sdk.async_machine import line
from gibil_bot.sdk.background_loop import BackgroundLoop
from gibil_bot.sdk.opening import Opening
from gibil_bot.sdk.results import seconds
from gibil_bot.sdk.streams import AsyncStream, cancel_all
from tests.doubles.patience import patient

ENDED = gibil.Result(stdout="", stderr="", exit_code=0, timed_out=False, duration_s=0.0)


def stream_of(*pieces: tuple[str, bytes], tasks: set[asyncio.Task[gibil.Result]] | None = None, **more: Any) -> AsyncStream:
    async def follow(on_output: OnOutput) -> gibil.Result:
        for stream, data in pieces:
            on_output(stream, data)
            await asyncio.sleep(0)
        return ENDED

    return AsyncStream(follow, set() if tasks is None else tasks, **more)


async def test_a_stream_never_cuts_a_character() -> None:
    euro = "€".encode()
    stream = stream_of(("stdout", b"1 " + euro[:1]), ("stderr", b"x"), ("stdout", euro[1:]), ("stdout", b"\xff" + euro[:2]))
    found = [output async for output in stream]
    assert [(output.stream, output.text) for output in found] == [
        ("stdout", "1 "), ("stderr", "x"), ("stdout", "€"), ("stdout", "\ufffd"), ("stdout", "\ufffd"),
    ]  # fmt: skip
    assert b"".join(output.data for output in found if output.stream == "stdout") == b"1 " + euro + b"\xff" + euro[:2]
    assert stream.result == ENDED
    assert [output async for output in stream] == []


async def test_a_stream_has_no_result_before_its_end() -> None:
    stream = stream_of(("stdout", b"x"))
    with pytest.raises(gibil.GibilError) as caught:
        _ = stream.result
    assert caught.value.code == "NOT_ENDED"
    assert await stream.wait() == ENDED


async def test_a_checked_stream_raises_after_its_last_piece() -> None:
    failure = gibil.CommandFailed("failed", ENDED)
    stream = stream_of(("stdout", b"x"), failure=lambda result: failure)
    assert (await anext(stream)).text == "x"
    with pytest.raises(gibil.CommandFailed):
        await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert stream.result == ENDED


async def test_output_that_is_not_read_ends_the_command() -> None:
    block = bytes(MAX_OUTPUT_BYTES // 4)
    passed_on = 0

    async def follow(on_output: OnOutput) -> gibil.Result:
        nonlocal passed_on
        for _ in range(6):  # without a pause, so nothing is read
            on_output("stdout", block)
            passed_on += 1
        return ENDED

    async with asyncio.timeout(patient(10)):
        with pytest.raises(gibil.GibilError) as caught:
            await AsyncStream(follow, set()).wait()
    assert (caught.value.code, passed_on) == ("OUTPUT_UNREAD", 4)


def endless(cleaned_up: asyncio.Event) -> Callable[[OnOutput], Any]:
    async def follow(on_output: OnOutput) -> gibil.Result:
        on_output("stdout", b"begins")
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned_up.set()
        return ENDED

    return follow


async def test_leaving_the_block_of_a_stream_ends_the_command() -> None:
    cleaned_up = asyncio.Event()
    tasks: set[asyncio.Task[gibil.Result]] = set()
    async with AsyncStream(endless(cleaned_up), tasks) as stream:
        async for _ in stream:
            break
        assert len(tasks) == 1
    assert cleaned_up.is_set()
    assert not tasks
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_closing_the_machine_ends_its_streams() -> None:
    cleaned_up = asyncio.Event()
    tasks: set[asyncio.Task[gibil.Result]] = set()
    stream = AsyncStream(endless(cleaned_up), tasks)
    await anext(stream)
    reading = asyncio.create_task(stream.wait())
    await asyncio.sleep(0)
    await cancel_all(tasks)
    async with asyncio.timeout(patient(10)):
        with pytest.raises(gibil.GibilError) as caught:
            await reading
    assert caught.value.code == "CLOSED"


async def test_closing_the_machine_ends_a_stream_whose_command_has_not_begun() -> None:
    tasks: set[asyncio.Task[gibil.Result]] = set()
    reading = asyncio.create_task(stream_of(("stdout", b"x"), tasks=tasks).wait())
    await asyncio.sleep(0)
    await cancel_all(tasks)
    async with asyncio.timeout(patient(10)):
        with pytest.raises(gibil.GibilError) as caught:
            await reading
    assert caught.value.code == "CLOSED"


class Block(Opening[None, None]):
    """A block whose end waits for `go_on`."""

    def __init__(self) -> None:
        super().__init__()
        self.ending = asyncio.Event()
        self.go_on = asyncio.Event()
        self.ended = 0

    async def _open(self) -> None:
        self._stack.push_async_callback(self._close)

    def _synchronous(self, opened: None) -> None: ...

    async def _close(self) -> None:
        self.ending.set()
        await self.go_on.wait()
        self.ended += 1


async def test_leaving_a_block_waits_for_its_end_however_often_it_is_cancelled() -> None:
    block = Block()

    async def use() -> None:
        async with block:
            pass

    async with asyncio.timeout(patient(10)):
        using = asyncio.create_task(use())
        await block.ending.wait()
        again = asyncio.create_task(block._end())
        for _ in range(3):
            using.cancel()
            for _ in range(5):
                await asyncio.sleep(0)
        assert not using.done()
        assert not again.done()
        block.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await using
        await again
        await block._end()
    assert block.ended == 1


@pytest.fixture
def loop() -> Iterator[BackgroundLoop]:
    background = BackgroundLoop()
    yield background
    background.end()


async def thread() -> str:
    return threading.current_thread().name


def test_all_threads_share_one_loop(loop: BackgroundLoop) -> None:
    before = threading.active_count()
    barrier = threading.Barrier(8)

    async def number(n: int) -> tuple[int, asyncio.AbstractEventLoop]:
        await asyncio.sleep(0)
        return n, asyncio.get_running_loop()

    def ask(n: int) -> tuple[int, asyncio.AbstractEventLoop]:
        barrier.wait(patient(10))
        return loop.call(number(n))

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        found = list(threads.map(ask, range(8)))
    assert [n for n, _ in found] == list(range(8))
    assert len({id(running) for _, running in found}) == 1
    assert threading.active_count() == before + 1
    loop.end()
    assert threading.active_count() == before
    assert loop.call(thread()) == "gibil"


def test_a_result_and_an_exception_reach_the_calling_thread(loop: BackgroundLoop) -> None:
    async def fail() -> None:
        raise gibil.UsageError("no")

    assert loop.call(thread()) == "gibil"
    with pytest.raises(gibil.UsageError, match="no"):
        loop.call(fail())


def test_a_call_from_the_loop_itself_is_rejected(loop: BackgroundLoop) -> None:
    async def nested() -> str:
        return loop.call(thread())

    with pytest.raises(gibil.UsageError, match="own event loop"):
        loop.call(nested())


def test_a_keyboard_interrupt_cancels_the_call_and_waits_for_its_cleanup(loop: BackgroundLoop) -> None:
    cleaned_up = threading.Event()
    waiting = threading.get_ident()

    async def work() -> None:
        signal.pthread_kill(waiting, signal.SIGINT)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned_up.set()

    with pytest.raises(KeyboardInterrupt):
        loop.call(work())
    assert cleaned_up.is_set()


def test_a_forked_process_starts_its_own_loop() -> None:
    program = (
        "import os, sys\nfrom gibil_bot.sdk.background_loop import BACKGROUND\n"
        "async def pid(): return os.getpid()\n"
        "BACKGROUND.call(pid())\n"
        "child = os.fork()\n"
        "if child == 0: os._exit(0 if BACKGROUND.call(pid()) == os.getpid() else 1)\n"
        "print(os.waitpid(child, 0)[1])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program],
        capture_output=True, text=True, timeout=patient(60), check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_a_command_is_a_line_or_a_list_of_words() -> None:
    assert line("echo $HOME") == "echo $HOME"
    assert line(["ls", "a b", "$x"]) == "ls 'a b' '$x'"
    wrong: Any
    for wrong in ([], [1], ["a", None]):
        with pytest.raises(gibil.UsageError, match="a line of shell"):
            line(wrong)


def test_a_timeout_is_seconds_or_a_timedelta() -> None:
    assert seconds(None) is None
    assert seconds(2) == 2.0
    assert seconds(timedelta(minutes=1)) == 60.0
    wrong: Any
    for wrong in (0, -1, True, "5", float("inf"), float("nan"), timedelta(0)):
        with pytest.raises(gibil.UsageError, match="timeout="):
            seconds(wrong)


def test_invalid_arguments_are_rejected_before_anything_is_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("GIBIL_DATA_DIR", str(tmp_path / "data"))
    wrong: Any
    for wrong in (0, 21, True, 1.5, "3"):
        with pytest.raises(gibil.UsageError, match="fleet"):
            gibil.fleet(wrong)
    wrong_wait: Any = "forever"
    with pytest.raises(gibil.UsageError, match="forever"):
        gibil.create(wait=wrong_wait)
    with pytest.raises(gibil.UsageError, match="nowhere"):
        gibil.create(provider="nowhere")
    assert not (tmp_path / "data").exists()


def test_the_synchronous_classes_have_the_methods_of_the_asynchronous_ones() -> None:
    pairs = [
        (gibil.Machine, gibil.AsyncMachine), (gibil.Files, gibil.AsyncFiles), (gibil.Jobs, gibil.AsyncJobs),
        (gibil.BackgroundJob, gibil.AsyncJob), (gibil.Fleet, gibil.AsyncFleet), (gibil.Client, gibil.AsyncClient),
        (gibil.Stream, gibil.AsyncStream),
    ]  # fmt: skip
    for synchronous, asynchronous in pairs:
        names = [name for name in vars(asynchronous) if not name.startswith("_") and name != "session"]
        assert names
        for name in names:
            ours, theirs = getattr(synchronous, name), getattr(asynchronous, name)
            if callable(theirs):
                assert list(inspect.signature(ours).parameters.values()) == list(inspect.signature(theirs).parameters.values())
            assert ours.__doc__ or name in ("name", "provider", "created_at")


def test_help_shows_the_public_names_only() -> None:
    shown = "".join(pydoc.plain(pydoc.render_doc(gibil)).split())
    for words in ("create(*,name", "withgibil.create(", "classMachine", "fleet(count", "classCommandFailed"):
        assert words in shown
    assert all(hasattr(gibil, name) for name in gibil.__all__)


def test_importing_gibil_imports_nothing_heavy() -> None:
    script = "import sys, gibil; print([name for name in ('asyncssh', 'githubkit', 'hcloud', 'httpx') if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
