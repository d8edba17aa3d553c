"""Disposable machines: the SDK for programs, and the service behind the command line and MCP.

The SDK is `from gibil_bot import machines`:

    async with machines.create(repo="ada/engine", ttl="30m") as m:
        result = await m.run("pytest -q")
        print(result.exit_code, result.stdout)

The block begins when the code is cloned and set up; commands start in its directory. The machine is destroyed when the block
ends, also with an exception; if the program is killed, when the machine expires. Many machines share the provider and its
limits:

    async with machines.connect() as mine:
        async with asyncio.TaskGroup() as group:
            for seed in range(8):
                group.create_task(explore(mine, seed))      # each: async with mine.create() as m: …

    async with machines.open_machine("box") as m:           # an existing machine; the block doesn't destroy it
        await m.extend("30m")

The command line uses the same functions, so `gibil list` and `gibil run` include these machines. Settings come from the
environment and from what `gibil init` saved. Every failure is a `gibil_bot.errors.GibilError` with a message and a code.

The SDK's code is in gibil_bot/machines/sdk.py, which is imported when one of its names is first used.
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
