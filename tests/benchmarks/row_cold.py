"""From nothing to the first command at a prompt: `gibil create` and `gibil run`, with no gibil process running before.

Compared with the same by hand: an overlay with bubblewrap, and OpenSSH's client, which logs in for each command.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

from gibil_bot.providers.local.paths import LocalPaths
from tests.benchmarks.comparison import Comparison, LeftOut, at_most
from tests.benchmarks.context import Context
from tests.benchmarks.machines import end_daemon
from tests.benchmarks.openssh import login, sshd
from tests.benchmarks.row_machine import by_hand
from tests.benchmarks.servers import bare_environment

ROUNDS = 10


def cold(context: Context) -> list[Comparison]:
    """Wall-clock time of whole processes. The base tree of machines exists: it is built once per computer."""
    return asyncio.run(_cold(context))


async def _cold(context: Context) -> list[Comparison]:
    gibil = Path(sys.executable).with_name("gibil")
    if not gibil.exists():
        raise LeftOut(f"{gibil} does not exist: install the package into the Python that runs this")
    data_dir = context.folder("d")
    environment = bare_environment(context.folder("home")) | {"GIBIL_DATA_DIR": str(data_dir), "GIBIL_CONNECTION_IDLE": "0"}
    both: list[float] = []
    runs: list[float] = []
    overlays: list[float] = []
    logins: list[float] = []
    async with sshd(context.folder("s")) as server:
        try:
            for number in range(ROUNDS + 1):
                name = f"cold-{number}"
                created = await took([str(gibil), "create", "--name", name], environment)
                ran = await took([str(gibil), "run", name, "true"], environment)
                logged_in = await took([*login(server), "true"], environment)
                with by_hand(context.folder(f"o{number}")) as overlay:
                    pass
                await took([str(gibil), "destroy", name], environment)
                await end_daemon(data_dir)
                if number > 0:
                    both.append(created + ran)
                    runs.append(ran)
                    logins.append(logged_in)
                    overlays.append(overlay.first_s * 1000)
        finally:
            if LocalPaths(data_dir).local.is_dir():
                await took([str(gibil), "destroy", "--all"], environment)
                await end_daemon(data_dir)
    what = "`gibil create`, then `gibil run … true`, nothing running before"
    return [
        Comparison(what=what, peer="`ssh … true`, a new login", unit="ms", ours=both, peers=logins, aim=at_most(2)),
        Comparison(what=what, peer="overlay + bubblewrap", unit="ms", ours=both, peers=overlays, aim=None),
        Comparison(what="`gibil run … true`", peer="`ssh … true`, a new login", unit="ms", ours=runs, peers=logins, aim=None),
    ]


async def took(words: list[str], environment: dict[str, str]) -> float:
    """Return how long a process took, in milliseconds. Raises LeftOut if it fails."""
    begun = time.perf_counter()
    done = await asyncio.to_thread(
        subprocess.run, words, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    took = (time.perf_counter() - begun) * 1000
    if done.returncode != 0:
        raise LeftOut(f"{' '.join(words[:2])} failed: {done.stderr.decode(errors='replace').strip()}")
    return took
