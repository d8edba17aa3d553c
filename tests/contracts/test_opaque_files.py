"""Files that machines send are stored completely or not at all, over real SSH."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gibil_bot.errors import MachineLost
from gibil_bot.runs.opaque_files import Damaged, NotStored, OpaqueFiles
from gibil_bot.ssh.client import SSHShell
from tests.contracts.shells import far_machine

NAME = "0123abcd"


@pytest.fixture
async def shell(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SSHShell]:
    async with far_machine("inside", tmp_path_factory) as far:
        shell = await far.connect()
        yield shell
        await shell.close()


def store(folder: Path, most_bytes: int = 1 << 30, reserve_bytes: int = 0) -> OpaqueFiles:
    return OpaqueFiles(folder / "files", most_bytes=most_bytes, reserve_bytes=reserve_bytes)


async def content(files: OpaqueFiles, name: str = NAME) -> bytes:
    return b"".join([block async for block in files.content(name)])


async def test_what_a_script_prints_is_stored_and_read_again(shell: SSHShell, tmp_path: Path) -> None:
    files = store(tmp_path)
    stored = await files.receive(shell, "seq 500000; echo a warning >&2", NAME, {"depth": "2"}, timeout_s=60)
    expected = "".join(f"{number}\n" for number in range(1, 500001)).encode()
    assert await content(store(tmp_path)) == expected
    assert await store(tmp_path).files() == [await files.verified(NAME)] == [stored]
    assert (stored.size, stored.facts) == (len(expected), {"depth": "2"})
    assert oct((tmp_path / "files" / NAME / "data").stat().st_mode & 0o777) == "0o600"

    await files.receive(shell, "echo replaced", NAME, {}, timeout_s=60)
    assert await content(files) == b"replaced\n"
    assert [await files.delete(NAME), await files.delete(NAME), await files.delete("../files")] == [True, False, False]
    assert list((tmp_path / "files").iterdir()) == []


@pytest.mark.parametrize(
    ("script", "words", "why"),
    [
        pytest.param("echo x; echo its reason >&2; exit 3", {}, "its reason", id="the script fails"),
        pytest.param("cat /dev/zero", {"most_bytes": 10_000_000}, "larger than", id="too large"),
        pytest.param("cat /dev/zero", {"reserve_bytes": 1 << 60}, "No space left", id="full disk"),
    ],
)
async def test_nothing_is_left_of_a_file_that_can_not_be_stored(
    shell: SSHShell, tmp_path: Path, script: str, words: dict[str, int], why: str
) -> None:
    files = store(tmp_path, **words)
    with pytest.raises(NotStored, match=why):
        await files.receive(shell, script, NAME, {}, timeout_s=60)
    assert list((tmp_path / "files").iterdir()) == []
    assert (await shell.run("echo on")).stdout == b"on\n"


async def test_nothing_is_left_after_a_timeout_a_cancellation_and_a_lost_connection(shell: SSHShell, tmp_path: Path) -> None:
    files = store(tmp_path)
    with pytest.raises(NotStored, match="longer than"):
        await files.receive(shell, "echo x; sleep 60", NAME, {}, timeout_s=0.2)
    receiving = asyncio.create_task(files.receive(shell, "echo x; sleep 60", NAME, {}, timeout_s=60))
    while not list((tmp_path / "files").glob(".*/data")):
        await asyncio.sleep(0.005)  # a thread creates it
    receiving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    assert list((tmp_path / "files").iterdir()) == []
    receiving = asyncio.create_task(files.receive(shell, "echo x; sleep 60", NAME, {}, timeout_s=60))
    while not list((tmp_path / "files").glob(".*/data")):
        await asyncio.sleep(0.005)
    await shell.close()
    with pytest.raises(MachineLost):
        await receiving
    assert list((tmp_path / "files").iterdir()) == []


async def test_a_folder_that_is_not_a_file_is_a_file_s_only_while_it_is_written(shell: SSHShell, tmp_path: Path) -> None:
    files = store(tmp_path)
    receiving = asyncio.create_task(files.receive(shell, "echo x; sleep 60", NAME, {}, timeout_s=60))
    while not list((tmp_path / "files").glob(".*/data")):
        await asyncio.sleep(0.005)  # a thread creates it
    (written,) = (tmp_path / "files").iterdir()
    of_a_killed_process = tmp_path / "files" / ".0123abce.11"
    of_a_killed_process.mkdir()
    for folder in (written, of_a_killed_process):
        os.utime(folder, (0, 0))
    assert await files.files() == []
    assert list((tmp_path / "files").iterdir()) == [written]
    receiving.cancel()
    await asyncio.gather(receiving, return_exceptions=True)


async def test_a_damaged_file_is_not_used(shell: SSHShell, tmp_path: Path) -> None:
    files = store(tmp_path)
    await files.receive(shell, "seq 1000", NAME, {}, timeout_s=60)
    data = tmp_path / "files" / NAME / "data"
    with data.open("r+b") as file:
        file.write(b"x")
    with pytest.raises(Damaged, match="changed"):
        await files.verified(NAME)
    os.truncate(data, 10)
    assert await files.files() == []  # it is known without reading it all
    with pytest.raises(Damaged):
        await files.verified(NAME)
