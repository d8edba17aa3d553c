"""What `gibil create` and `gibil branch` share: progress while machines are created, and what an interruption leaves."""

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
    """Keep machines that can be used already when the wait for them is interrupted, and print how to go on.


    `named`: print their names to stdout, as without the interruption. If that fails (the terminal is closed), they are
    destroyed, since their names would stay unknown, and Interrupted is raised. Returns the exit status.
    """
    from gibil_bot.views import timestamp

    # A second Ctrl-C must not stop this message, which has to be printed exactly once.
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, lambda: None)
    names = [session.name for session in sessions]
    it, kept = ("it", "is kept") if len(names) == 1 else ("them", "are kept")
    first, until = names[0], timestamp(min(session.machine.expires_at for session in sessions))
    message = (
        f"interrupted while {doing}; {', '.join(names)} {kept} until {until}: use {it} (gibil ssh {first}, "
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
    """Create machines and show the progress. Raises Interrupted after the machines created so far are destroyed."""
    begun: list[str] = []
    async with Progress() as progress:

        def on_phase(name: str, phase: str, seconds: float | None) -> None:
            if phase == "forge" and seconds is None:
                begun.append(name)
            progress.phase(name, phase, seconds)

        making = asyncio.create_task(machines.create_several(request, fleet, on_phase))
        try:
            sessions, notes = await asyncio.shield(making)
        except asyncio.CancelledError:
            progress.pause()
            raise Interrupted(await _cancel_creation(machines, making, begun, as_json)) from None
        for note in notes:
            progress.say(f"gibil: {note}")
    return sessions


async def _cancel_creation(machines: MachineService, making: asyncio.Task[Any], names: list[str], as_json: bool) -> str:
    """End an interrupted creation. Returns a sentence about its machines."""
    from gibil_bot.machines.validation import natural

    names = sorted(names, key=natural)
    many = len(names) > 1
    if names:
        print_message(
            f"interrupted before {', '.join(names)} {'were' if many else 'was'} ready: destroying {'them' if many else 'it'} … "
            "(Ctrl-C again leaves that to the next gibil command)"
        )

    def leave() -> None:
        # Otherwise a request to a cloud would be awaited until its timeout. The creation record's lock ends with the process.
        os._exit(fail(Interrupted(_left_message(names)), as_json=as_json))

    # The loop has to read the first signal from its pipe before, or it would take it for the second.
    await asyncio.sleep(0.05)
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, leave)
    on_end(lambda: None)  # a closed terminal sends more than one signal
    making.cancel()
    await asyncio.wait({making})
    if making.cancelled() or making.exception() is not None:
        if not making.cancelled() and isinstance(making.exception(), GibilError):
            print_message(str(making.exception()))
    else:  # it became ready at that moment
        for session in making.result()[0]:
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
    return f"interrupted; {', '.join(names)} may still exist: the next gibil command destroys what is left"
