"""`gibil run`: a command on a machine, as if it ran here."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
import time
from typing import TYPE_CHECKING

import click

from gibil_bot.cli.machine import PassedOn, name_argument, opened, provider_option, run_async
from gibil_bot.cli.output import json_option, print_json, print_text, say
from gibil_bot.errors import UsageError

if TYPE_CHECKING:
    from gibil_bot.sandbox.live import LiveMachine, Outcome

_SECONDS = re.compile(r"\d{1,9}(\.\d{1,3})?", re.ASCII)


@click.command()
@name_argument
@click.argument("command", metavar="COMMAND")
@click.option("--timeout", metavar="DURATION", help="Kill it after that: 90s, 5m; a bare number is seconds. Exit status 124.")
@click.option("--background", is_flag=True, help="Print a job's id at once; it goes on whatever becomes of us.")
@click.option("--env", "env", multiple=True, metavar="NAME=VALUE", help="For this command; repeatable.")
@provider_option
@json_option
def run(
    name: str, command: str, timeout: str | None, background: bool, env: tuple[str, ...], provider: str | None, as_json: bool
) -> None:
    """Run a command on a machine, in /root.

    COMMAND is one line of shell: quote it. Both streams come through as they are written, Ctrl-C goes to the command (a
    second one kills it), and the exit status is the command's. In the background it survives the connection: `gibil jobs`
    and `gibil logs` show it.

    \b
    gibil run agent-task "cd /root/project && pnpm install && pnpm test"
    gibil run agent-task "test -f /root/.gibil-ready" && echo ready
    gibil run agent-task "python train.py" --background
    gibil run agent-task "pytest -q" --timeout 10m --json | jq -r .stdout
    """
    from gibil_bot.sandbox import words

    sys.exit(run_async(_run(name, command, _timeout_s(timeout), background, words.environment(env), provider, as_json)))


def _timeout_s(text: str | None) -> float | None:
    if text is None:
        return None
    from gibil_bot.sandbox import words

    seconds = float(text) if _SECONDS.fullmatch(text) else float(words.duration_seconds(text))
    if seconds <= 0:
        raise UsageError("--timeout: a command needs some time")
    return seconds


async def _run(
    name: str,
    command: str,
    timeout_s: float | None,
    background: bool,
    env: dict[str, str],
    provider: str | None,
    as_json: bool,
) -> int:
    if "\0" in command:
        raise UsageError("a command cannot hold a NUL byte")
    async with opened(name, provider) as live:
        if background:
            job_id = await live.start(command, timeout_s=timeout_s, env=env)
            if as_json:
                print_json({"stdout": "", "stderr": "", "exit_code": None, "job_id": job_id})
            else:
                print_text(f"{job_id}\n")
                say(f"follow it: gibil logs {name} {job_id} -f", sys.stderr)
            return 0
        if not as_json:
            return await run_live(live, command, timeout_s, env)
        began = time.monotonic()
        outcome = await _interruptible(live, command, timeout_s, env, None)
        await say_blocked(live, began)
        print_json(outcome_view(outcome))
        return outcome.exit_code


def outcome_view(outcome: Outcome) -> dict[str, object]:
    view: dict[str, object] = {"stdout": outcome.stdout, "stderr": outcome.stderr, "exit_code": outcome.exit_code}
    if outcome.timed_out:
        view["timed_out"] = True
    return view


async def run_live(live: LiveMachine, command: str, timeout_s: float | None, env: dict[str, str]) -> int:
    """With both streams passed through. Raises ReaderGone when nobody reads ours; the command is killed then."""
    task = asyncio.current_task()
    assert task is not None
    passed_on = PassedOn(task.cancel)
    began = time.monotonic()
    try:
        outcome = await _interruptible(live, command, timeout_s, env, passed_on)
    except asyncio.CancelledError:
        if passed_on.broken is not None:
            task.uncancel()
            raise passed_on.broken from None
        raise
    await say_blocked(live, began)
    if outcome.timed_out:
        say(f"the command took longer than {timeout_s:g} s, and was killed", sys.stderr)
    return outcome.exit_code


async def say_blocked(live: LiveMachine, since: float) -> None:
    """On stderr, what the machine was kept from reaching: the programs on it seldom say why."""
    for line in await live.blocked(since):
        say(line, sys.stderr)


async def _interruptible(
    live: LiveMachine, command: str, timeout_s: float | None, env: dict[str, str], passed_on: PassedOn | None
) -> Outcome:
    """The first Ctrl-C is the command's to handle; the second one kills it."""
    from gibil_bot.sandbox.live import new_tag

    tag = new_tag()
    running = asyncio.create_task(
        live.run(command, timeout_s=timeout_s, env=env, on_output=passed_on, keep_output=passed_on is None, tag=tag)
    )
    interrupts: list[asyncio.Task[None]] = []

    def interrupt() -> None:
        if interrupts:
            running.cancel()
        else:
            interrupts.append(asyncio.create_task(live.interrupt(tag)))

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        return await running
    except asyncio.CancelledError:
        if not running.done():
            running.cancel()
            await asyncio.wait({running})
        raise
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        await asyncio.gather(*interrupts, return_exceptions=True)
