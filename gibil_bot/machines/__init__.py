"""Machines: the SDK for programs, SSH access, and the providers.

The SDK is `from gibil_bot import machines`:

    async with machines.create(repo="ada/engine", ttl="30m") as m:
        result = await m.run("pytest -q")
        print(result.exit_code, result.stdout)

The block begins once the code is cloned and set up; commands start in its folder. The machine is destroyed when the block
ends, also by an exception; if the program is killed, when its time to live is over. Many machines share the provider and its
limits:

    async with machines.connect() as mine:
        async with asyncio.TaskGroup() as group:
            for seed in range(8):
                group.create_task(explore(mine, seed))      # each: async with mine.create() as m: …

    async with machines.open_machine("box") as m:           # one that exists; it is not destroyed
        await m.extend("30m")

The same functions are behind the command line, so `gibil list` and `gibil run` see these machines, too. Settings come from the
environment and from what `gibil init` saved. Every failure is a `gibil_bot.errors.GibilError` with a message and a code.

The code of the SDK is in gibil_bot/machines/sdk.py and loaded when one of its names is used, as it is above this room.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gibil_bot.machines.sdk import Connected, Creation, MachineSession, Outcome, TaskOutcome, connect, create, open_machine

__all__ = ["Connected", "Creation", "MachineSession", "Outcome", "TaskOutcome", "connect", "create", "open_machine"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gibil_bot.machines import sdk

    return getattr(sdk, name)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
