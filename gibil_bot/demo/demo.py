"""`gibil demo`: the whole journey on this computer, from a comment to a closed check run and a burned machine.

Nothing of it is played: a GitHub of our own (real HTTP, real git, real signatures), the bot as it is deployed, a machine that
is really forged. It needs no network, no account, nothing but Python and git.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TextIO

from gibil_bot.demo import project
from gibil_bot.demo.bot_process import BotProcess, burn_leftovers, running_bot
from gibil_bot.demo.github_double import GitHubDouble
from gibil_bot.demo.narrator import Narrator
from gibil_bot.demo.terminal import Terminal, duration, harmless
from gibil_bot.errors import GibilError

DEADLINE_S = 120.0
LOOK_EVERY_S = 0.04
COMMAND = "/gibil test"
INTERRUPTED = 130


async def run_demo(*, failing: bool, keep: bool, out: TextIO) -> int:
    """Show it all on `out`. 0 when the check run is `success`, 1 otherwise, 130 after Ctrl-C. Leaves nothing behind."""
    terminal = Terminal(out)
    folder = Path(tempfile.mkdtemp(prefix="gibil-demo-"))
    data_dir = folder / "bot"
    try:
        with _interruption() as interrupted:
            async with _set_up(folder, data_dir, failing, terminal) as (github, bot, narrator):
                showing = asyncio.create_task(_show(github, bot, narrator, terminal, keep))
                stop = asyncio.create_task(interrupted.wait())
                try:
                    await asyncio.wait({showing, stop}, return_when=asyncio.FIRST_COMPLETED)
                    if showing.done():
                        return showing.result()
                    terminal.say()
                    terminal.say("stopping the bot, burning its machines …")
                    return INTERRUPTED
                finally:
                    for task in (showing, stop):
                        task.cancel()
                    await asyncio.gather(showing, stop, return_exceptions=True)
    except GibilError as error:
        terminal.say(terminal.style(f"gibil demo: {error.message}", "red"))
        return 1
    finally:
        await asyncio.shield(_clean_up(folder, data_dir, terminal))


@contextlib.asynccontextmanager
async def _set_up(
    folder: Path, data_dir: Path, failing: bool, terminal: Terminal
) -> AsyncIterator[tuple[GitHubDouble, BotProcess, Narrator]]:
    terminal.say(terminal.style("gibil demo", "bold") + " – a comment becomes a check run, all of it on this computer")
    terminal.say()
    async with GitHubDouble.start(folder / "github") as github, running_bot(github, data_dir) as bot:
        github.webhook_url = f"{bot.url}/webhook"
        terminal.say(f"  a GitHub of our own   {github.url}")
        terminal.say(f"  the bot               {bot.url}   (gibil serve, process {bot.pid})")
        await github.add_repository(project.FULL_NAME, project.base_files())
        changes = project.changed_files(failing=failing)
        number = await github.open_pull_request(
            project.FULL_NAME, project.BRANCH, changes, "ada", title=project.TITLE, body="As the schools of Nippur taught it."
        )
        terminal.say(f"  pull request          {project.FULL_NAME}#{number} “{project.TITLE}” by ada, {len(changes)} files")
        terminal.say()
        await github.settled()
        begun = github.world.now()
        github.comment(project.FULL_NAME, number, "ada", COMMAND)
        yield github, bot, Narrator(github, terminal, project.FULL_NAME, number, data_dir / "logs", begun)


async def _show(github: GitHubDouble, bot: BotProcess, narrator: Narrator, terminal: Terminal, keep: bool) -> int:
    ends_at = asyncio.get_running_loop().time() + DEADLINE_S
    while (closed := narrator.over()) is None:
        if bot.ended:
            return _failed("the bot ended before its work was done", bot, terminal)
        if asyncio.get_running_loop().time() > ends_at:
            return _failed(f"the check run was not closed within {DEADLINE_S:.0f} s", bot, terminal)
        await asyncio.sleep(LOOK_EVERY_S)
        narrator.look()
    total = (github.world.now() - narrator.begun).total_seconds()
    _table(narrator, total, terminal)
    status = 0 if closed.conclusion == "success" else 1
    if keep:
        _how_to_go_on(github, bot, narrator.number, terminal)
        while not bot.ended:
            await asyncio.sleep(LOOK_EVERY_S)
            narrator.look()
        return _failed("the bot ended", bot, terminal)
    return status


def _failed(reason: str, bot: BotProcess, terminal: Terminal) -> int:
    terminal.say()
    terminal.say(terminal.style(f"gibil demo: {reason}. The end of the bot's log:", "red"))
    for line in bot.log_tail():
        terminal.say("  " + harmless(line))
    terminal.say("`gibil doctor` says what this computer lacks.")
    return 1


def _table(narrator: Narrator, total: float, terminal: Terminal) -> None:
    terminal.say()
    terminal.say(terminal.style("where the time went", "bold"))
    rows = [(timing.label, duration(timing.seconds), timing.remark) for timing in narrator.timings]
    rows.append(("all of it", duration(total), "from the comment to the last word"))
    terminal.table(rows, "  ")


def _how_to_go_on(github: GitHubDouble, bot: BotProcess, number: int, terminal: Terminal) -> None:
    pull = f"{github.url}/_double/repos/{project.FULL_NAME}/pulls/{number}"
    terminal.say()
    terminal.say(terminal.style("Both go on until Ctrl-C. In another terminal:", "bold"))
    push = f'{{"files": {{"sexagesimal/reciprocals.py": {_broken_line()}}}}}'
    for words, command in (
        ("comment again", f'curl -d \'{{"author": "ada", "body": "/gibil test"}}\' {pull}/comments'),
        ("ask for help", f'curl -d \'{{"author": "ada", "body": "/gibil help"}}\' {pull}/comments'),
        ("comment as a stranger", f'curl -d \'{{"author": "stranger", "body": "/gibil test"}}\' {pull}/comments'),
        ("push a commit", f"curl -d '{push}' {pull}/push"),
        ("everything on GitHub", f"curl {github.url}/_double/state"),
        ("the bot's health", f"curl {bot.url}/healthz"),
    ):
        terminal.say(f"  # {words}")
        terminal.say(f"  {command}")
    terminal.say()


def _broken_line() -> str:
    return '"PRIMES = (2, 3)\\n"'


@contextlib.contextmanager
def _interruption() -> Iterator[asyncio.Event]:
    """Set by Ctrl-C, SIGTERM and SIGHUP, so that everything is stopped in good order."""
    interrupted = asyncio.Event()
    loop = asyncio.get_running_loop()
    handled = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        with contextlib.suppress(RuntimeError, ValueError):  # not the main thread: somebody else looks after signals
            loop.add_signal_handler(number, interrupted.set)
            handled.append(number)
    try:
        yield interrupted
    finally:
        for number in handled:
            loop.remove_signal_handler(number)


async def _clean_up(folder: Path, data_dir: Path, terminal: Terminal) -> None:
    try:
        burned = await burn_leftovers(data_dir)
        if burned:
            terminal.say(f"burned: {', '.join(burned)}")
    except GibilError as error:
        terminal.say(terminal.style(f"gibil demo: {error.message}", "red"))
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    if await asyncio.to_thread(folder.exists):
        terminal.say(terminal.style(f"gibil demo: not everything could be removed; look at {folder}", "red"))
