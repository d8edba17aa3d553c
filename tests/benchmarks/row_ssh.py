"""Commands on a machine: the Shell against bare asyncssh on the same machine, and against OpenSSH's master connection."""

from __future__ import annotations

import asyncio
import subprocess
import time

import uvloop

from gibil_bot.model import Exit, Job
from gibil_bot.ports import Shell
from gibil_bot.ssh import client
from tests.benchmarks.comparison import Comparison, at_least, at_most
from tests.benchmarks.context import Context
from tests.benchmarks.machines import connect_by_hand, yard
from tests.benchmarks.openssh import master, sshd

COMMANDS = 60
WARM_UP = 5
STREAMS = 5
STREAM_BYTES = 100_000_000
FIRSTS = 10


def command(context: Context) -> list[Comparison]:
    """`true`, repeated, on an open connection."""
    return uvloop.run(_command(context))


async def _command(context: Context) -> list[Comparison]:
    ours: list[float] = []
    bare: list[float] = []
    theirs: list[float] = []
    async with yard(context.folder("d")) as machines, sshd(context.folder("s")) as server:
        machine, shell = await machines.create()
        connection = await machines.connect_by_hand(machine)
        with master(server) as call:
            for number in range(COMMANDS + WARM_UP):
                keep = number >= WARM_UP
                begun = time.perf_counter()
                result = await shell.run("true")
                _note(ours, begun, keep, result.exit_status)
                begun = time.perf_counter()
                completed = await connection.run("true")
                _note(bare, begun, keep, completed.exit_status)
                begun = time.perf_counter()
                status = await asyncio.to_thread(_call, [*call, "true"])
                _note(theirs, begun, keep, status)
        connection.close()
        await connection.wait_closed()
        await shell.close()
    return [
        Comparison(
            what="a command on an open connection", peer="bare asyncssh, same machine", unit="ms",
            ours=ours, peers=bare, aim=at_most(1.15),
        ),
        Comparison(
            what="a command on an open connection", peer="OpenSSH ControlMaster, sshd", unit="ms",
            ours=ours, peers=theirs, aim=at_most(0.4),
        ),
    ]  # fmt: skip


def output(context: Context) -> list[Comparison]:
    """100 MB of output: of a command, and of a detached job like those of tasks."""
    return uvloop.run(_output(context))


async def _output(context: Context) -> list[Comparison]:
    script = f"head -c {STREAM_BYTES} /dev/zero"
    ours: list[float] = []
    jobs: list[float] = []
    theirs: list[float] = []
    async with yard(context.folder("d")) as machines, sshd(context.folder("s")) as server:
        _machine, shell = await machines.create()
        with master(server) as call:
            for number in range(STREAMS + 1):
                begun = time.perf_counter()
                result = await shell.run(script)
                assert len(result.stdout) == STREAM_BYTES
                _rate(ours, begun, number)
                begun = time.perf_counter()
                assert await _job_bytes(shell, Job(id=f"stream-{number}", script=script)) == STREAM_BYTES
                _rate(jobs, begun, number)
                begun = time.perf_counter()
                assert await asyncio.to_thread(_call, [*call, script]) == 0
                _rate(theirs, begun, number)
        await shell.close()
    peer = "OpenSSH ControlMaster, sshd"
    return [
        Comparison(what="100 MB of a command's output", peer=peer, unit="MB/s", ours=ours, peers=theirs, aim=at_least(1)),
        Comparison(what="100 MB of a task's output", peer=peer, unit="MB/s", ours=jobs, peers=theirs, aim=at_least(1)),
    ]


def first_command(context: Context) -> list[Comparison]:
    """The first command after the login, over TCP: sshd's Nagle algorithm against the client's acknowledgements."""
    return uvloop.run(_first_command(context))


async def _first_command(context: Context) -> list[Comparison]:
    ours: list[float] = []
    bare: list[float] = []
    async with sshd(context.folder("s")) as server:
        for number in range(FIRSTS + 1):
            shell = await client.connect(server.endpoint, server.client_key)
            begun = time.perf_counter()
            result = await shell.run("true")
            _note(ours, begun, number > 0, result.exit_status)
            await shell.close()
            connection = await connect_by_hand(server.endpoint, server.client_key)
            begun = time.perf_counter()
            completed = await connection.run("true")
            _note(bare, begun, number > 0, completed.exit_status)
            connection.close()
            await connection.wait_closed()
    return [
        Comparison(
            what="the first command over TCP, sshd", peer="bare asyncssh", unit="ms", ours=ours, peers=bare, aim=at_most(0.25)
        )
    ]


async def _job_bytes(shell: Shell, job: Job) -> int:
    await shell.start(job)
    size = 0
    async for item in shell.attach(job.id):
        if isinstance(item, Exit):
            assert item.status == 0
        else:
            size += len(item.data)
    return size


def _call(words: list[str]) -> int:
    return subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=60).returncode


def _note(samples: list[float], begun: float, keep: bool, status: int | None) -> None:
    if keep:
        samples.append((time.perf_counter() - begun) * 1000)
    if status != 0:
        raise RuntimeError(f"`true` ended with {status}")


def _rate(samples: list[float], begun: float, number: int) -> None:
    if number > 0:
        samples.append(STREAM_BYTES / 1e6 / (time.perf_counter() - begun))
