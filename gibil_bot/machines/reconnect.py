"""Reconnecting to a machine whose connection was lost, as long as the machine exists."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gibil_bot.errors import GibilError, MachineLost, SSHError
from gibil_bot.model import Machine
from gibil_bot.ports import Shell
from gibil_bot.providers.lifecycle import CREATION, MachineFactory

Report = Callable[[str], None]
"""Called with a message for people."""

_TRIES_S = ((0.0, 1.0), (0.2, 2.0), (0.5, 4.0), (1.0, 8.0), (3.0, 10.0))
"""(pause before the attempt, its timeout); the last entry repeats. Each attempt first asks whether the machine exists."""
_ANSWERS_S = 10.0
_SILENT_S = 1.0
"""A shorter interruption isn't reported."""


async def answers(shell: Shell) -> bool:
    """Return whether the connection still works, so that it isn't the cause of a failure."""
    try:
        await shell.run("true", timeout_s=_ANSWERS_S)
    except (GibilError, TimeoutError):
        return False
    return True


async def reconnect(factory: MachineFactory, lost: Machine, *, within_s: float, report: Report) -> tuple[Machine, Shell]:
    """Return the machine as it is now, and a new connection to it.

    Raises MachineLost when the machine is gone or can't be reached in time, SSHError when another host answers.
    """
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + within_s
    is_reported = False

    def report_lost() -> None:
        nonlocal is_reported
        is_reported = True
        report(f"the connection to {lost.name} is lost; reconnecting …")

    report_timer = loop.call_later(_SILENT_S, report_lost)
    attempt = 0
    try:
        while True:
            pause_s, try_s = _TRIES_S[min(attempt, len(_TRIES_S) - 1)]
            attempt += 1
            await asyncio.sleep(pause_s)
            found = await _connect(factory, lost, try_s)
            if found is not None:
                if is_reported:
                    report(f"the connection to {lost.name} is restored")
                return found
            if loop.time() > ends_at:
                raise MachineLost(f"machine {lost.name} can't be reached any more")
    finally:
        report_timer.cancel()


async def _connect(factory: MachineFactory, lost: Machine, within_s: float) -> tuple[Machine, Shell] | None:
    """Try once to connect; None: try again. Raises MachineLost, SSHError."""
    try:
        async with asyncio.timeout(within_s):
            machine = await factory.get(lost.name)
            if machine is None or machine.labels.get(CREATION) != lost.labels.get(CREATION):
                raise _Gone(f"machine {lost.name} is gone: it was destroyed, or it expired")
            return machine, await factory.open(machine)
    except (_Gone, SSHError):
        raise
    except (GibilError, TimeoutError):
        return None


class _Gone(MachineLost):
    pass
