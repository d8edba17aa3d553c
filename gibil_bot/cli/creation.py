"""Shared by `gibil create` and `gibil branch`: progress during creation, and messages after an interruption."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gibil_bot.cli.machine import on_end
from gibil_bot.cli.output import Interrupted, ReaderGone, fail, print_json, print_message, print_text
from gibil_bot.cli.progress import Progress
from gibil_bot.errors import GibilError

if TYPE_CHECKING:
    from gibil_bot.machines.request import CreateRequest
    from gibil_bot.machines.service import MachineService
    from gibil_bot.machines.session import MachineSession


async def keep_interrupted(
    machines: MachineService,
    sessions: Sequence[MachineSession],
    view: dict[str, object],
    doing: str,
    as_json: bool,
    *,
    named: bool = True,
) -> int:
    """Leave ready machines running after an interruption, and print how to use them.

    `named`: print their names to stdout, as without the interruption. If that fails (the terminal is closed), they are
    destroyed, because the user couldn't know their names, and Interrupted is raised. Returns the exit status.
    """
    from gibil_bot.views import timestamp

    # A second Ctrl-C must not stop this message, which must be printed exactly once.
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, lambda: None)
    names = [session.name for session in sessions]
    it, remain = ("it", "exists") if len(names) == 1 else ("them", "exist")
    first, until = names[0], timestamp(min(session.machine.expires_at for session in sessions))
    message = (
        f"interrupted while {doing}; {', '.join(names)} {remain} until {until}: use {it} (gibil ssh {first}, "
        f"gibil logs {first} -f), or destroy {it} (gibil destroy {' '.join(names)})"
    )
    try:
        if as_json:
            print_json({"error": "interrupted", "code": "INTERRUPTED", "message": message, "exit_code": 130, **view})
        elif named:
            print_text("".join(f"{name}\n" for name in names))
    except (ReaderGone, GibilError):
        await asyncio.shield(asyncio.ensure_future(machines.destroy(names)))
        raise Interrupted(f"interrupted; {', '.join(names)} {'is' if len(names) == 1 else 'are'} destroyed") from None
    print_message(message)
    machines.mark_reported(*names)
    return 130


async def create_machines(
    machines: MachineService, request: CreateRequest, fleet: int | None, as_json: bool
) -> list[MachineSession]:
    """Create machines and show the progress. Raises Interrupted after destroying the machines created so far."""
    started: list[str] = []
    async with Progress() as progress:

        def on_phase(name: str, phase: str, seconds: float | None) -> None:
            if phase == "forge" and seconds is None:
                started.append(name)
            progress.phase(name, phase, seconds)

        creating = asyncio.create_task(machines.create_several(request, fleet, on_phase))
        try:
            sessions, notes = await asyncio.shield(creating)
        except asyncio.CancelledError:
            progress.pause()
            raise Interrupted(await _cancel_creation(machines, creating, started, as_json)) from None
        for note in notes:
            progress.print_line(f"gibil: {note}")
    return sessions


async def _cancel_creation(machines: MachineService, creating: asyncio.Task[Any], names: list[str], as_json: bool) -> str:
    """End an interrupted creation; return a sentence about its machines."""
    from gibil_bot.machines.validation import natural

    names = sorted(names, key=natural)
    many = len(names) > 1
    if names:
        print_message(
            f"interrupted before {', '.join(names)} {'were' if many else 'was'} ready: destroying {'them' if many else 'it'} … "
            "(press Ctrl-C again to leave that to the next gibil command)"
        )

    def leave() -> None:
        # Otherwise a cloud's response would be awaited until its timeout. The creation record's lock ends with the process.
        os._exit(fail(Interrupted(_left_message(names)), as_json=as_json))

    # The loop must read the first signal from its pipe before this, or it would count as the second one.
    await asyncio.sleep(0.05)
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, leave)
    on_end(lambda: None)  # it became ready at that moment
    creating.cancel()
    await asyncio.wait({creating})
    if creating.cancelled() or creating.exception() is not None:
        if not creating.cancelled() and isinstance(creating.exception(), GibilError):
            print_message(str(creating.exception()))
    else:  # it became ready at that moment
        for session in creating.result()[0]:
            await session.close()
        await machines.destroy(names)
    if not names:
        return _left_message([])
    left = names
    with contextlib.suppress(GibilError):  # the provider's state; it may not answer
        left = [name for name in names if await machines.factory.get(name) is not None]
    if not left:
        return f"interrupted; {', '.join(names)} {'are' if many else 'is'} destroyed"
    return _left_message(left)


def _left_message(names: list[str]) -> str:
    if not names:
        return "interrupted before a machine was created"
    return f"interrupted; {', '.join(names)} may still exist: the next gibil command destroys the rest"
