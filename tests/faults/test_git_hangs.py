"""A git server that accepts the connection and sends nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gibil_bot import git
from gibil_bot.git import GitError
from tests.doubles.machines import processes_with
from tests.doubles.patience import patient


async def test_a_silent_server_times_out_and_leaves_no_git_process(tmp_path: Path) -> None:
    waiting = asyncio.Event()
    gone = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        waiting.set()
        while await reader.read(4096):
            pass
        writer.close()
        gone.set()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/ada/engine.git"
    async with server, asyncio.timeout(patient(20)):
        with pytest.raises(GitError, match=r"git clone in .* didn't end within 1 s"):
            await git.run("clone", "-q", url, folder=tmp_path, within_s=1)
        assert waiting.is_set()
        await gone.wait()  # the helper that held the connection has ended, too

        waiting.clear()
        cloning = asyncio.create_task(git.run("clone", "-q", url, "again", folder=tmp_path))
        await waiting.wait()
        cloning.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cloning
        while processes_with(url):  # another process's child: there is no event to wait for
            await asyncio.sleep(0.01)
