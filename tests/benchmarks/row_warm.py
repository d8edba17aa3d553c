"""`gibil run` while a connection to the machine is held, compared with `ssh` through a ControlMaster: whole processes."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.benchmarks.comparison import Comparison, LeftOut, at_most
from tests.benchmarks.context import Context
from tests.benchmarks.machines import end_daemon
from tests.benchmarks.openssh import master, sshd
from tests.benchmarks.row_cold import took
from tests.benchmarks.servers import bare_environment

ROUNDS = 40
_WARMS_UP = 50


def warm(context: Context) -> list[Comparison]:
    return asyncio.run(_warm(context))


async def _warm(context: Context) -> list[Comparison]:
    gibil = Path(sys.executable).with_name("gibil")
    if not gibil.exists():
        raise LeftOut(f"{gibil} does not exist: install the package into the Python that runs this")
    data_dir = context.folder("d")
    environment = bare_environment(context.folder("home")) | {"GIBIL_DATA_DIR": str(data_dir)}
    run = [str(gibil), "run", "warm", "true"]
    runs: list[float] = []
    logins: list[float] = []
    pythons: list[float] = []
    async with sshd(context.folder("s")) as server:
        try:
            await took([str(gibil), "create", "--name", "warm"], environment)
            for _ in range(_WARMS_UP):
                await took(run, environment)
                if any((data_dir / "connections").glob("*.sock")):
                    break
            with master(server) as login:
                for number in range(ROUNDS + 1):
                    times = (
                        await took(run, environment),
                        await took([*login, "true"], environment),
                        await took([sys.executable, "-c", "pass"], environment),
                    )
                    if number > 0:
                        for series, time in zip((runs, logins, pythons), times, strict=True):
                            series.append(time)
        finally:
            await took([str(gibil), "destroy", "warm"], environment)
            await end_daemon(data_dir)
    what = "`gibil run … true`, the connection is held"
    return [
        Comparison(what=what, peer="`ssh … true` through ControlMaster", unit="ms", ours=runs, peers=logins, aim=at_most(1.2)),
        Comparison(what=what, peer="`python -c pass`", unit="ms", ours=runs, peers=pythons, aim=None),
    ]
