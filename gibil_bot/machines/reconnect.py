"""A connection that was lost in the middle of something: made again, for as long as its machine is there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gibil_bot.errors import GibilError, MachineLost, SSHError
from gibil_bot.model import Machine
from gibil_bot.ports import Shell
from gibil_bot.providers.lifecycle import CREATION, MachineFactory

Tell = Callable[[str], None]
"""Called with a sentence for people."""

_TRIES_S = ((0.0, 1.0), (0.2, 2.0), (0.5, 4.0), (1.0, 8.0), (3.0, 10.0))
"""(pause before it, how long it may take); the last one again and again. Each begins by asking whether the machine is there."""
_ANSWERS_S = 10.0
_MOMENT_S = 1.0
"""What is over sooner is not worth a word."""


async def answers(shell: Shell) -> bool:
    """Whether the connection is alive after all: then it was not that."""
    try:
        await shell.run("true", timeout_s=_ANSWERS_S)
    except (GibilError, TimeoutError):
        return False
    return True


async def connect_again(factory: MachineFactory, lost: Machine, *, within_s: float, tell: Tell) -> tuple[Machine, Shell]:
    """The machine as it is now, and a new connection to it.

    Raises MachineLost when it is gone, or cannot be reached in time, and SSHError when something else stands in its place.
    """
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + within_s
    said: list[str] = []

    def say_lost() -> None:
        said.append(f"the connection to {lost.name} is lost; making it again …")
        tell(said[0])

    telling = loop.call_later(_MOMENT_S, say_lost)
    attempt = 0
    try:
        while True:
            pause_s, try_s = _TRIES_S[min(attempt, len(_TRIES_S) - 1)]
            attempt += 1
            await asyncio.sleep(pause_s)
            found = await _connect(factory, lost, try_s)
            if found is not None:
                if said:
                    tell(f"the connection to {lost.name} is restored")
                return found
            if loop.time() > ends_at:
                raise MachineLost(f"machine {lost.name} cannot be reached any more")
    finally:
        telling.cancel()


async def _connect(factory: MachineFactory, lost: Machine, within_s: float) -> tuple[Machine, Shell] | None:
    """None: not now."""
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
