"""A fork of a machine with 2 GB on its disk, against a copy of the same files on this computer, and against a new machine."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path

import uvloop

from gibil_bot.config import Settings
from gibil_bot.errors import Unavailable
from gibil_bot.machines.request import CreateRequest
from gibil_bot.machines.service import MachineService, open_machines
from gibil_bot.machines.session import MachineSession
from tests.benchmarks.comparison import Comparison, LeftOut, at_most
from tests.benchmarks.context import Context
from tests.benchmarks.machines import end_daemon
from tests.benchmarks.row_cold import took

ROUNDS = 5
"""Each adds a layer below the machine, and a machine has at most eight."""
FILES, FILE_BYTES = 2_000, 1_000_000
NEEDED_BYTES = 3 * FILES * FILE_BYTES
_FILL = f"mkdir -p /root/files && cd /root/files && head -c {FILES * FILE_BYTES} /dev/zero | split -b {FILE_BYTES} -a 4"


def fork(context: Context) -> list[Comparison]:
    return uvloop.run(_fork(context))


async def _fork(context: Context) -> list[Comparison]:
    forks: list[float] = []
    copies: list[float] = []
    plain: list[float] = []
    data_dir, files = context.folder("d"), context.folder("fork") / "files"
    free = shutil.disk_usage(data_dir).free
    if free < NEEDED_BYTES:
        raise LeftOut(f"needs {NEEDED_BYTES / 10**9:g} GB of free space, and there are {free / 10**9:.1f}")
    try:
        async with open_machines(Settings(data_dir=data_dir, database_url="")) as machines:
            try:
                await machines.factory.provider.probe()
            except Unavailable as error:
                raise LeftOut(error.message) from None
            session = await machines.create(CreateRequest(name="full"))
            try:
                assert (await session.run(_FILL, timeout_s=600)).exit_code == 0
                await session.close()
                await asyncio.to_thread(_fill, files)
                for number in range(ROUNDS + 1):
                    times = (
                        await _forked(machines, f"fork-{number}"),
                        await _created(machines, f"plain-{number}"),
                        await took(["cp", "-a", "--reflink=auto", str(files), f"{files}-{number}"], {"PATH": "/usr/bin:/bin"}),
                    )
                    await asyncio.to_thread(shutil.rmtree, f"{files}-{number}")
                    if number > 0:
                        for series, spent in zip((forks, plain, copies), times, strict=True):
                            series.append(spent)
            finally:
                await machines.destroy(["full"])
    finally:
        await end_daemon(data_dir)
    what = f"fork a machine with {FILES * FILE_BYTES / 10**9:g} GB in {FILES:,} files, first command"
    copy = "`cp -a --reflink=auto` of such files"
    return [
        Comparison(what=what, peer=copy, unit="ms", ours=forks, peers=copies, aim=at_most(0.2)),
        Comparison(what=what, peer="`create` of a plain machine, first command", unit="ms", ours=forks, peers=plain, aim=None),
    ]


async def _forked(machines: MachineService, name: str) -> float:
    begun = time.perf_counter()
    (session,) = await machines.fork("full", name)
    machines.mark_reported(name)
    return await _first_command(machines, session, begun, f"{FILES}\n")


async def _created(machines: MachineService, name: str) -> float:
    begun = time.perf_counter()
    return await _first_command(machines, await machines.create(CreateRequest(name=name)), begun, "0\n")


async def _first_command(machines: MachineService, session: MachineSession, begun: float, expected: str) -> float:
    result = await session.run("mkdir -p /root/files; ls /root/files | wc -l")
    spent = (time.perf_counter() - begun) * 1000
    assert result.stdout == expected, result
    await session.close()
    await machines.destroy([session.name])
    return spent


def _fill(folder: Path) -> None:
    folder.mkdir()
    for number in range(FILES):
        (folder / f"{number}").write_bytes(bytes(FILE_BYTES))
