"""The machines that the Shell contract is tested on: three kinds of machine, and one way to inspect each."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gibil_bot.errors import Unavailable
from gibil_bot.model import Chunk, Endpoint, Exit, Job
from gibil_bot.ports import Shell
from gibil_bot.ssh.client import SSHShell, connect
from tests.doubles import sshd
from tests.doubles.machines import guest_lodging
from tests.doubles.patience import patient

KINDS = ("inside", "openssh", "local")


@dataclass(frozen=True)
class Far:
    """A machine, its key, and the home directory on it."""

    endpoint: Endpoint
    client_key: str
    home: str
    folder: Path
    """A directory with a short path on this host, for this test only."""
    mark: str = field(default_factory=lambda: secrets.token_hex(4))

    def name(self, word: str) -> str:
        """Return a job id that no other test uses at the same time.

        A job is killed by its tag, found anywhere in /proc. For "inside" and "openssh" that is this host, where root sees the
        processes of every other test and of every local machine.
        """
        return f"{word}-{self.mark}"

    async def connect(self, endpoint: Endpoint | None = None) -> SSHShell:
        return await connect(endpoint or self.endpoint, self.client_key)

    def job(self, job_id: str, script: str, **more: object) -> Job:
        return Job(id=job_id, script=script, working_directory=self.home, **more)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def far_machine(kind: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Far]:
    """Start a machine. Paths are short: a Unix socket's path has at most 107 bytes, and pytest's directories use most of it."""
    folder = Path(tempfile.mkdtemp(prefix="gibil-", dir="/tmp"))
    try:
        if kind == "local":
            async with _local(folder, tmp_path_factory) as far:
                yield far
            return
        if kind == "openssh" and (reason := sshd.why_no_openssh()):
            pytest.skip(reason)
        home = folder / "home"
        home.mkdir()
        async with sshd.openssh(home) if kind == "openssh" else sshd.inside(home) as server:
            yield Far(server.endpoint, server.client_key, str(home), folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.asynccontextmanager
async def _local(folder: Path, factory: pytest.TempPathFactory) -> AsyncIterator[Far]:
    async with guest_lodging(factory) as lodging:
        try:
            machine = await lodging.provider.create(lodging.spec("far", ttl_s=600))
        except Unavailable as error:
            pytest.skip(f"no local machines here: {error}")
        yield Far(machine.endpoint, lodging.key.export_private_key().decode(), "/root", folder)


@pytest.fixture(params=KINDS)
async def far(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Far]:
    async with far_machine(request.param, tmp_path_factory) as machine:
        yield machine


@pytest.fixture
async def shell(far: Far) -> AsyncIterator[SSHShell]:
    connection = await far.connect()
    yield connection
    await connection.close()


async def end_of(shell: Shell, job_id: str, *, within_s: float = 20.0) -> Exit:
    """Follow a job until it ends."""
    async with asyncio.timeout(patient(within_s)):
        items = [item async for item in shell.attach(job_id)]
    assert isinstance(items[-1], Exit)
    return items[-1]


async def followed(shell: Shell, job_id: str) -> tuple[bytes, bytes, int]:
    """Follow a job until it ends; return stdout, stderr and status. Check that offsets add up and that Exit comes last."""
    output = {"stdout": b"", "stderr": b""}
    status: int | None = None
    async for item in shell.attach(job_id):
        assert status is None
        if isinstance(item, Exit):
            status = item.status
        else:
            assert isinstance(item, Chunk)
            output[item.stream] += item.data
            assert item.offset == len(output[item.stream])
    assert status is not None
    return output["stdout"], output["stderr"], status


async def alive(shell: Shell, marker: str) -> int:
    """Return how many processes on the machine have the marker in their arguments. The search itself gets it on stdin."""
    result = await shell.run("grep -lzs -F -f - /proc/[0-9]*/cmdline | wc -l", stdin=marker.encode() + b"\n")
    return int(result.stdout)
