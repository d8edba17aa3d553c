"""A git server that takes the connection and never says a word."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gibil_bot import git
from gibil_bot.git import GitError
from tests.doubles.machines import processes_with
from tests.doubles.patience import patient


async def test_a_server_that_never_answers_is_given_up_and_nothing_of_git_is_left(tmp_path: Path) -> None:
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
        while processes_with(url):  # no event tells of the end of another's child
            await asyncio.sleep(0.01)
