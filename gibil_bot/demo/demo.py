"""`gibil demo`: from a comment to a closed check run and a destroyed machine, on this computer alone.

Nothing is simulated on the bot's side: a GitHub double (real HTTP, real git, real signatures), the bot as it is deployed, a
real machine. It needs no network and no account, only Python and git.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from gibil_bot.demo import project
from gibil_bot.demo.bot_process import BotProcess, destroy_leftovers, running_bot
from gibil_bot.demo.github_double import GitHubDouble
from gibil_bot.demo.narrator import Narrator
from gibil_bot.demo.records import CheckRun
from gibil_bot.demo.terminal import Terminal, harmless
from gibil_bot.errors import GibilError
from gibil_bot.humanize import precise_duration

DEADLINE_S = 120.0
POLL_S = 0.04
COMMAND = "/gibil test"
INTERRUPTED = 130
MISTAKE = """import unittest


class Mistake(unittest.TestCase):
    def test_two_and_two(self):
        self.assertEqual(2 + 2, 5)
"""


OnVerdict = Callable[[dict[str, Any]], None]
"""Called once, when the first check run is closed: `{"check", "conclusion", "seconds", "pull_request", "github", "bot",
"timings": [{"what", "seconds", "remark"}]}`.
"""


@dataclass(slots=True)
class _Demo:
    """Everything that the demonstration has started."""

    github: GitHubDouble
    bot: BotProcess
    narrator: Narrator
    terminal: Terminal
    keep: bool
    on_verdict: OnVerdict
    verdict: int | None = None
    """The exit status, once the first check run is closed."""


async def run_demo(*, failing: bool, keep: bool, out: TextIO, on_verdict: OnVerdict = lambda view: None) -> int:
    """Run the demonstration on `out`. Returns 0 if the check run is `success`, 1 otherwise, 130 after Ctrl-C.

    With `keep`, the bot and GitHub run until Ctrl-C, and the status is the first check run's. Everything is removed at the end.
    """
    terminal = Terminal(out)
    # Until everything is cleaned up: closing the terminal sends a signal that would otherwise end this process.
    with _interruption() as interrupted:
        folder = Path(tempfile.mkdtemp(prefix="gibil-demo-"))
        data_dir = folder / "bot"
        try:
            async with _set_up(folder, data_dir, failing, keep, terminal, on_verdict) as stage:
                return await _run_until(interrupted, stage)
        except GibilError as error:
            terminal.print_line(terminal.style(f"gibil demo: {error.message}", "red"))
            return 1
        finally:
            await asyncio.shield(_clean_up(folder, data_dir, terminal))


async def _run_until(interrupted: asyncio.Event, stage: _Demo) -> int:
    showing, stop = asyncio.create_task(_show(stage)), asyncio.create_task(interrupted.wait())
    try:
        await asyncio.wait({showing, stop}, return_when=asyncio.FIRST_COMPLETED)
        if showing.done():
            return showing.result()
        with contextlib.suppress(OSError):  # Ctrl-C has also ended the reader of our pipe, or the terminal is closed
            stage.narrator.flush()
            stage.terminal.print_line()
            stage.terminal.print_line("stopping the bot, destroying its machines …")
        return INTERRUPTED if stage.verdict is None else stage.verdict
    finally:
        for task in (showing, stop):
            task.cancel()
        await asyncio.gather(showing, stop, return_exceptions=True)


@contextlib.asynccontextmanager
async def _set_up(
    folder: Path, data_dir: Path, failing: bool, keep: bool, terminal: Terminal, on_verdict: OnVerdict
) -> AsyncIterator[_Demo]:
    terminal.print_line(terminal.style("gibil demo", "bold") + " – a comment becomes a check run, all on this computer")
    terminal.print_line()
    async with GitHubDouble.start(folder / "github") as github, running_bot(github, data_dir) as bot:
        github.webhook_url = f"{bot.url}/webhook"
        terminal.print_line(f"  the GitHub double     {github.url}")
        terminal.print_line(f"  the bot               {bot.url}   (gibil serve, process {bot.pid})")
        await github.add_repository(project.FULL_NAME, project.base_files())
        changes = project.changed_files(failing=failing)
        number = await github.open_pull_request(
            project.FULL_NAME, project.BRANCH, changes, "ada", title=project.TITLE, body="As the schools of Nippur taught it."
        )
        terminal.print_line(
            f"  pull request          {project.FULL_NAME}#{number} “{project.TITLE}” by ada, {len(changes)} files"
        )
        terminal.print_line()
        await github.webhooks_sent()
        started = github.comment(project.FULL_NAME, number, "ada", COMMAND).created_at
        narrator = Narrator(github, terminal, project.FULL_NAME, number, data_dir / "logs", started)
        yield _Demo(github, bot, narrator, terminal, keep, on_verdict)


async def _show(stage: _Demo) -> int:
    loop, narrator = asyncio.get_running_loop(), stage.narrator
    ends_at = loop.time() + DEADLINE_S
    while (closed := narrator.finished()) is None:
        if stage.bot.ended:
            return _failed("the bot ended before the run was finished", stage)
        if loop.time() > ends_at:
            return _failed(f"the check run was not completed within {DEADLINE_S:g} s", stage)
        await asyncio.sleep(POLL_S)
        narrator.update()
    stage.verdict = 0 if closed.conclusion == "success" else 1
    _table(stage)
    stage.on_verdict(_view(stage, closed))
    if not stage.keep:
        return stage.verdict
    _print_next_commands(stage)
    while not stage.bot.ended:
        await asyncio.sleep(POLL_S)
        narrator.update()
    return _failed("the bot ended", stage)


def _failed(reason: str, stage: _Demo) -> int:
    terminal = stage.terminal
    stage.narrator.flush()
    terminal.print_line()
    terminal.print_line(terminal.style(f"gibil demo: {reason}. The end of the bot's log:", "red"))
    for line in stage.bot.log_tail():
        terminal.print_line("  " + harmless(line))
    terminal.print_line("`gibil doctor` shows what is missing on this computer.")
    return 1


def _view(stage: _Demo, closed: CheckRun) -> dict[str, Any]:
    narrator = stage.narrator
    return {
        "check": closed.name,
        "conclusion": closed.conclusion,
        "seconds": round((closed.changed_at - narrator.started).total_seconds(), 3),
        "pull_request": narrator.number,
        "github": stage.github.url,
        "bot": stage.bot.url,
        "timings": [
            {"what": timing.label, "seconds": round(timing.seconds, 3), "remark": timing.remark} for timing in narrator.timings
        ],
    }


def _table(stage: _Demo) -> None:
    terminal, narrator = stage.terminal, stage.narrator
    total = (stage.github.state.now() - narrator.started).total_seconds()
    terminal.print_line()
    terminal.print_line(terminal.style("where the time went", "bold"))
    rows = [(timing.label, precise_duration(timing.seconds), timing.remark) for timing in narrator.timings]
    rows.append(("total", precise_duration(total), "from the comment to the last report"))
    terminal.table(rows, "  ")


def _print_next_commands(stage: _Demo) -> None:
    terminal, github = stage.terminal, stage.github
    pull = f"{github.url}/_double/repos/{project.FULL_NAME}/pulls/{stage.narrator.number}"
    mistake = json.dumps({"files": {"tests/test_mistake.py": MISTAKE}, "message": "A mistake"})
    terminal.print_line()
    terminal.print_line(terminal.style("Both run until Ctrl-C. In another terminal:", "bold"))
    for words, command in (
        ("comment again", f"curl -d '{_comment_json('ada', COMMAND)}' {pull}/comments"),
        ("ask for help", f"curl -d '{_comment_json('ada', '/gibil help')}' {pull}/comments"),
        ("comment as a stranger", f"curl -d '{_comment_json('stranger', COMMAND)}' {pull}/comments"),
        ("push a mistake, which starts a run", f"curl -d '{mistake}' {pull}/push"),
        ("everything on GitHub", f"curl {github.url}/_double/state"),
        ("the bot's health", f"curl {stage.bot.url}/healthz"),
    ):
        terminal.print_line(terminal.style(f"  # {words}", "dim"))
        terminal.print_line(f"  {command}")
    terminal.print_line()


def _comment_json(author: str, body: str) -> str:
    return json.dumps({"author": author, "body": body})


@contextlib.contextmanager
def _interruption() -> Iterator[asyncio.Event]:
    """Yield an event that Ctrl-C, SIGTERM and SIGHUP set, so that everything is stopped in order."""
    interrupted = asyncio.Event()
    loop = asyncio.get_running_loop()
    handled = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        with contextlib.suppress(RuntimeError, ValueError):  # not the main thread, which handles signals
            loop.add_signal_handler(number, interrupted.set)
            handled.append(number)
    try:
        yield interrupted
    finally:
        for number in handled:
            loop.remove_signal_handler(number)


async def _clean_up(folder: Path, data_dir: Path, terminal: Terminal) -> None:
    """Remove everything, even if the reader of the output has ended."""
    messages = []
    try:
        destroyed = await destroy_leftovers(data_dir)
        if destroyed:
            messages.append(f"destroyed: {', '.join(destroyed)}")
    except GibilError as error:
        messages.append(terminal.style(f"gibil demo: {error.message}", "red"))
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    if await asyncio.to_thread(folder.exists):
        messages.append(terminal.style(f"gibil demo: some files could not be removed; see {folder}", "red"))
    with contextlib.suppress(OSError):
        for line in messages:
            terminal.print_line(line)
