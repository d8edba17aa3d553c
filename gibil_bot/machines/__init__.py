"""Where the work is done: machines, and the way onto them.

For programs, `from gibil_bot import machines` is the SDK: `async with machines.create(repo="ada/engine") as m: …`. It is
documented in gibil_bot/sandbox/sdk.py and loaded when one of its names is used, as it stands above this room.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gibil_bot.sandbox.sdk import Connected, Creation, LiveMachine, Outcome, TaskOutcome, connect, create, open_machine

__all__ = ["Connected", "Creation", "LiveMachine", "Outcome", "TaskOutcome", "connect", "create", "open_machine"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gibil_bot.sandbox import sdk

    return getattr(sdk, name)
