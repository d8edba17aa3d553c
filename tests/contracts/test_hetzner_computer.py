"""The computers of the Hetzner double leave no file descriptor behind."""

from __future__ import annotations

import asyncio
import os

import pytest

from tests.doubles.hetzner_computer import Computer, may_enter_networks


@pytest.mark.skipif(not may_enter_networks(), reason="entering a network needs root with CAP_SYS_ADMIN")
async def test_a_connection_cancelled_at_any_moment_leaks_no_descriptor() -> None:
    computer = Computer(os.getpid(), lambda _path: None)
    listener = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    try:
        before = set(os.listdir("/proc/self/fd"))
        for steps in range(6):
            connecting = asyncio.create_task(computer.connect(port))
            for _ in range(steps):
                await asyncio.sleep(0)
            connecting.cancel()
            for answer in await asyncio.gather(connecting, return_exceptions=True):
                if isinstance(answer, asyncio.CancelledError):
                    continue
                if isinstance(answer, BaseException):
                    raise answer
                answer[1].close()
                await answer[1].wait_closed()
        await asyncio.get_running_loop().shutdown_default_executor()
        assert set(os.listdir("/proc/self/fd")) - before == set()
    finally:
        listener.close()
        await computer.close()
