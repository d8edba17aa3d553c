"""`gibil run`: a command on a machine, with the streams and exit status of a local one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING

import click

from gibil_bot.cli import stdin as our_stdin
from gibil_bot.cli.machine import StreamCopier, env_file_option, name_argument, opened, provider_option, run_async
from gibil_bot.cli.output import json_option, print_json, print_message, print_text
from gibil_bot.errors import UsageError

if TYPE_CHECKING:
    from gibil_bot.machines.session import MachineSession, Outcome, PacedOutput

HOME = "/root"
"""Working directory of commands."""
_SECONDS = re.compile(r"\d{1,9}(\.\d{1,3})?", re.ASCII)


class _Run(click.Command):
    """Parses everything after `--` as the command, including options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        args, words = split_words(args)
        given = list(args)
        try:
            left = super().parse_args(ctx, args)
        except click.UsageError as error:
            if words is None and _is_unquoted(error, given):
                message = f"{error.format_message().rstrip('.')}. {self._advice(given)}"
                raise click.UsageError(message, ctx) from None
            raise
        if words is not None:
            if ctx.params.get("command") is not None:
                raise click.UsageError("the command is given twice, before and after `--`: remove one.", ctx)
            ctx.params["command"] = as_line(words)
        elif ctx.params.get("command") is None and not ctx.resilient_parsing:
            raise click.MissingParameter(ctx=ctx, param=next(each for each in self.params if each.name == "command"))
        return left

    def _advice(self, args: list[str]) -> str:
        """Return how to quote the user's command; a general example if it is unclear where the command begins."""
        ours = {option for each in self.params for option in each.opts if option.startswith("-")}
        if len(args) < 3 or args[0].startswith("-") or ours.intersection(args):
            args = ["NAME", "ls", "-la"]
        name, *words = args
        line = shlex.join(words)
        return f"Quote the command (gibil run {name} {shlex.quote(line)}), or write it after -- (gibil run {name} -- {line})."


def split_words(args: list[str]) -> tuple[list[str], list[str] | None]:
    """Return the arguments before `--` and those after it; None if there is no `--`."""
    cut = args.index("--") if "--" in args else None
    return (args, None) if cut is None else (args[:cut], args[cut + 1 :])


def as_line(words: Sequence[str]) -> str:
    """Return a line of shell. A single word is such a line; several words are a program and its arguments, which are quoted."""
    return words[0] if len(words) == 1 else shlex.join(words)


def _is_unquoted(error: click.UsageError, args: list[str]) -> bool:
    """Return whether words of the command were parsed as gibil's options and arguments. (A word with a blank was quoted.)"""
    if isinstance(error, click.NoSuchOption):
        return not any(" " in word for word in args)
    return type(error) is click.UsageError and error.message.startswith("Got unexpected extra argument")


@click.command(cls=_Run, options_metavar="[OPTIONS]")
@name_argument
@click.argument("command", metavar="COMMAND", required=False)
@click.option(
    "--timeout",
    metavar="DURATION",
    help="Kill the command after this time: 90s, 5m; a bare number is seconds. Exit status 124.",
)
@click.option(
    "--background", is_flag=True, help="Start a background job and print its id; it survives this command and its connection."
)
@click.option("--env", "env", multiple=True, metavar="NAME=VALUE", help="A variable for this command; repeatable.")
@env_file_option
@click.option(
    "--stdin/--no-stdin",
    "wants_stdin",
    default=None,
    help=f"Wait for stdin without a limit, or don't pass it on. By default a pipe that stays silent for "
    f"{our_stdin.FIRST_BYTE_S:g} s counts as empty.",
)
@provider_option
@json_option
def run(
    name: str,
    command: str,
    timeout: str | None,
    background: bool,
    env: tuple[str, ...],
    env_files: tuple[str, ...],
    wants_stdin: bool | None,
    provider: str | None,
    as_json: bool,
) -> None:
    """Run a command on a machine, in /root.

    COMMAND is one line of shell: quote it. Or write a program and its arguments after `--`. stdout and stderr are passed on
    unchanged, stdin too if it is a pipe or a file, Ctrl-C interrupts the command (a second one kills it), and the exit status
    is the command's. A background job has no stdin: see `gibil jobs` and `gibil logs`.

    The exit statuses of gibil itself (2: no such machine, wrong use; 3: provider; 4: SSH) may also be the command's.
    Messages of gibil itself begin with `gibil:` on stderr; with --json, its failures have a `code` and results don't. In a loop
    that reads a list from stdin, use --no-stdin, or the command reads the list.

    \b
    gibil run agent-task "cd /root/project && pnpm install && pnpm test"
    gibil run agent-task -- ls -la "/root/my project"
    gibil run agent-task "test -f /root/.gibil-ready" && echo ready
    gibil run agent-task "bash -s" < script.sh
    gibil run agent-task "python train.py" --background
    gibil run agent-task "pytest -q" --timeout 10m --json | jq -r .stdout
    """
    from gibil_bot.machines import validation as words

    words.check_command(command)
    if background and wants_stdin:
        raise UsageError("a background job has no stdin: send the file first (gibil run NAME 'cat > file' < file)")
    stdin = None if background else our_stdin.forward(wants_stdin)
    variables = words.environment(env, env_files)
    sys.exit(run_async(_run(name, command, timeout_seconds(timeout), background, variables, stdin, provider, as_json)))


def timeout_seconds(text: str | None) -> float | None:
    """Parse --timeout. Raises UsageError."""
    if text is None:
        return None
    from gibil_bot.machines import validation as words

    seconds = float(text) if _SECONDS.fullmatch(text) else float(words.duration_seconds(text))
    if seconds <= 0:
        raise UsageError("--timeout must be longer than 0 seconds")
    return seconds


def start_holder(name: str) -> None:
    """Start a process that keeps a connection to the machine for later commands (connection_holder.py), unless that is switched
    off.
    """
    from gibil_bot import warm_run as warm
    from gibil_bot.config import load_settings

    if load_settings().connection_idle_s > 0 and sys.platform.startswith("linux") and not warm.is_served(os.environ):
        import subprocess

        with contextlib.suppress(OSError):
            subprocess.Popen(
                [sys.executable, "-P", "-m", "gibil_bot.cli.connection_holder", warm.socket_name(os.environ), name],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", start_new_session=True,
            )  # fmt: skip


async def _run(
    name: str,
    command: str,
    timeout_s: float | None,
    background: bool,
    env: dict[str, str],
    stdin: AsyncIterator[bytes] | None,
    provider: str | None,
    as_json: bool,
) -> int:
    async with opened(name, provider) as session:
        if background:
            job_id = await session.start(command, timeout_s=timeout_s, env=env, cwd=HOME)
            if as_json:
                print_json({"stdout": "", "stderr": "", "exit_code": None, "job_id": job_id})
            else:
                print_text(f"{job_id}\n")
                print_message(f"follow it: gibil logs {name} {job_id} -f")
            return 0
        if provider is None:  # which the holder declines
            start_holder(name)
        if not as_json:
            return await run_in_session(session, command, timeout_s, env, stdin)
        began = time.monotonic()
        outcome = await _interruptible(session, command, timeout_s, env, stdin, None)
        await print_blocked(session, began)
        print_json(outcome_view(outcome))
        return outcome.exit_code


def report_lost_holder(arguments: list[str], tag: str) -> int:
    """Report that the process that held the connection has ended during a command, and kill that. Return the exit status."""
    from gibil_bot.cli import _wants_json
    from gibil_bot.cli.output import fail
    from gibil_bot.errors import GibilError, SSHError

    async def kill() -> None:
        async with opened(arguments[1], None) as session:
            await session.shell.signal(tag, "KILL")

    state = "the command was killed"
    try:
        run_async(kill())
    except (GibilError, TimeoutError):
        state = "the command may still be running"
    lost = SSHError(
        f"the process that held the connection to {arguments[1]} has ended; {state}, and its exit status is unknown"
    )
    return fail(lost, as_json=_wants_json(arguments))


def outcome_view(outcome: Outcome) -> dict[str, object]:
    view: dict[str, object] = {"stdout": outcome.stdout, "stderr": outcome.stderr, "exit_code": outcome.exit_code}
    if outcome.timed_out:
        view["timed_out"] = True
    return view


async def run_in_session(
    session: MachineSession, command: str, timeout_s: float | None, env: dict[str, str], stdin: AsyncIterator[bytes] | None
) -> int:
    """Run a command and copy both streams. Raises ReaderGone, and kills the command, when our stdout has no reader."""
    task = asyncio.current_task()
    assert task is not None
    copier = StreamCopier(task.cancel)
    began = time.monotonic()
    try:
        outcome = await _interruptible(session, command, timeout_s, env, stdin, copier)
    except asyncio.CancelledError:
        if copier.broken is not None:
            task.uncancel()
            raise copier.broken from None
        raise
    await print_blocked(session, began)
    if outcome.timed_out:
        print_message(f"the command took longer than {timeout_s:g} s and was killed")
    return outcome.exit_code


async def print_blocked(session: MachineSession, since: float) -> None:
    """Print the hosts that the machine was not allowed to reach: programs on it rarely report the reason."""
    for line in await session.blocked(since):
        print_message(line)


async def _interruptible(
    session: MachineSession,
    command: str,
    timeout_s: float | None,
    env: dict[str, str],
    stdin: AsyncIterator[bytes] | None,
    copier: PacedOutput | None,
) -> Outcome:
    """Run a command; the first Ctrl-C interrupts it, the second one kills it."""
    loop = asyncio.get_running_loop()
    try:
        return await run_interruptible(
            session, command, timeout_s, env, stdin, copier, lambda interrupt: loop.add_signal_handler(signal.SIGINT, interrupt)
        )
    finally:
        loop.remove_signal_handler(signal.SIGINT)


async def run_interruptible(
    session: MachineSession,
    command: str,
    timeout_s: float | None,
    env: dict[str, str],
    stdin: AsyncIterator[bytes] | None,
    copier: PacedOutput | None,
    listen: Callable[[Callable[[], None]], None],
    tag: str | None = None,
) -> Outcome:
    """Run a command. `listen` receives a function to call for each Ctrl-C: the first interrupts the command, others kill it."""
    from gibil_bot.machines.session import new_tag

    tag = tag or new_tag()
    running = asyncio.create_task(
        session.run(
            command,
            timeout_s=timeout_s,
            env=env,
            on_output=copier,
            keep_output=copier is None,
            tag=tag,
            cwd=HOME,
            stdin=stdin if stdin is not None else b"",
        )
    )
    interrupts: list[asyncio.Task[None]] = []

    def interrupt() -> None:
        if interrupts:
            running.cancel()
        else:
            interrupts.append(asyncio.create_task(session.interrupt(tag)))

    listen(interrupt)
    try:
        return await running
    except asyncio.CancelledError:
        if not running.done():
            running.cancel()
            await asyncio.wait({running})
        raise
    finally:
        await asyncio.gather(*interrupts, return_exceptions=True)
