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
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from gibil_bot.demo import agent_scene, project
from gibil_bot.demo.bot_process import BotProcess, destroy_leftovers, running_bot
from gibil_bot.demo.github_double import GitHubDouble
from gibil_bot.demo.model_double import ModelDouble, model_double
from gibil_bot.demo.narrator import Narrator, Timing
from gibil_bot.demo.records import CheckRun
from gibil_bot.demo.terminal import Terminal, harmless
from gibil_bot.errors import GibilError
from gibil_bot.humanize import precise_duration

DEADLINE_S = 120.0
POLL_S = 0.04
COMMAND, COMMIT_COMMAND, AGENT_COMMAND = "/gibil test", "/gibil format", "/gibil fix"
INTERRUPTED = 130
MISTAKE = """import unittest


class Mistake(unittest.TestCase):
    def test_two_and_two(self):
        self.assertEqual(2 + 2, 5)
"""


OnVerdict = Callable[[dict[str, Any]], None]
"""Called once, when everything was shown: `{"check", "conclusion", "seconds", "pull_request", "github", "bot",
"commit": {"sha", "parent", "branch", "message", "author", "verified", "files"} or None,
"agent": {"engine", "model", "ended", "calls", "tokens", "usd", "budget", "calls_with_key", "key_left_the_bot"} or None,
"timings": [{"what", "seconds", "remark"}]}`.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scene:
    """What is shown: comments, one after another, and how their runs should end."""

    title: str
    comments: tuple[tuple[str, str], ...]
    """Each with the conclusion of its check run."""
    main: int = 0
    """The comment whose run is reported."""
    failing: bool = False
    untidy: bool = False
    shows_commit: bool = False
    shows_agent: bool = False
    live: str = ""
    """Narrator.live"""


_TEST = _Scene(title="a comment becomes a check run", comments=((COMMAND, "success"),))
_FAILING = _Scene(title=_TEST.title, comments=_TEST.comments, failing=True)
_COMMIT = _Scene(
    title="a comment becomes a check run and a commit",
    comments=((COMMIT_COMMAND, "success"),),
    untidy=True,
    shows_commit=True,
)
_AGENT = _Scene(
    title="a test fails, an agent repairs the cause, and its commit passes",
    comments=((COMMAND, "failure"), (AGENT_COMMAND, "success"), (COMMAND, "success")),
    main=1,
    failing=True,
    shows_commit=True,
    shows_agent=True,
    live="fix",
)


@dataclass(slots=True, kw_only=True)
class _Demo:
    """Everything that the demonstration has started."""

    scene: _Scene
    data_dir: Path
    model: ModelDouble | None

    github: GitHubDouble
    bot: BotProcess
    narrator: Narrator
    terminal: Terminal
    keep: bool
    on_verdict: OnVerdict
    first_head: str
    """The pull request's commit when the comment was written."""
    started: datetime
    """When the comment was written whose run is reported."""
    total_s: float = 0.0
    """From this comment to the last report of its run."""
    timings: list[Timing] = field(default_factory=list)
    """Of this run."""
    verdict: int | None = None
    """The exit status, once it is known."""


async def run_demo(
    *,
    failing: bool = False,
    commit: bool = False,
    agent: bool = False,
    keep: bool = False,
    out: TextIO,
    on_verdict: OnVerdict = lambda view: None,
) -> int:
    """Run the demonstration on `out`. Returns 0 if the check run is `success`, 1 otherwise, 130 after Ctrl-C.

    With `commit`, a formatter runs, and the status is 0 only if its commit is on the branch and verified.
    With `agent`, an agent with a scripted model repairs what makes a test fail; 0 also means that its commit passes.
    With `keep`, the bot and GitHub run until Ctrl-C, and the status is the one before. Everything is removed at the end.
    """
    terminal = Terminal(out)
    scene = _AGENT if agent else _COMMIT if commit else _FAILING if failing else _TEST
    # Until everything is cleaned up: closing the terminal sends a signal that would otherwise end this process.
    with _interruption() as interrupted:
        folder = Path(tempfile.mkdtemp(prefix="gibil-demo-"))
        try:
            async with _set_up(scene, folder, keep, terminal, on_verdict) as stage:
                return await _run_until(interrupted, stage)
        except GibilError as error:
            terminal.print_line(terminal.style(f"gibil demo: {error.message}", "red"))
            return 1
        finally:
            await asyncio.shield(_clean_up(folder, terminal))


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
async def _set_up(scene: _Scene, folder: Path, keep: bool, terminal: Terminal, on_verdict: OnVerdict) -> AsyncIterator[_Demo]:
    terminal.print_line(f"{terminal.style('gibil demo', 'bold')} – {scene.title}, all on this computer")
    terminal.print_line()
    data_dir = _data_dir(folder)
    async with contextlib.AsyncExitStack() as stack:
        github = await stack.enter_async_context(GitHubDouble.start(folder / "github"))
        model, settings = None, {}
        if scene.shows_agent:
            model = await stack.enter_async_context(model_double(agent_scene.repair()))
            await asyncio.to_thread(agent_scene.write_engine, folder / "engines")
            settings = agent_scene.settings(model, folder / "engines")
        bot = await stack.enter_async_context(running_bot(github, data_dir, settings))
        github.webhook_url = f"{bot.url}/webhook"
        terminal.print_line(f"  the GitHub double     {github.url}")
        terminal.print_line(f"  the bot               {bot.url}   (gibil serve, process {bot.pid})")
        if model is not None:
            terminal.print_line(f"  the model             {model.url}   (a double with a script; the agent is a small program)")
        await github.add_repository(project.FULL_NAME, project.base_files())
        changes = project.changed_files(failing=scene.failing, untidy=scene.untidy)
        number = await github.open_pull_request(
            project.FULL_NAME, project.BRANCH, changes, "ada", title=project.TITLE, body="As the schools of Nippur taught it."
        )
        terminal.print_line(
            f"  pull request          {project.FULL_NAME}#{number} “{project.TITLE}” by ada, {len(changes)} files"
        )
        terminal.print_line()
        await github.webhooks_sent()
        head = github.head_sha(project.FULL_NAME, number)
        started = github.comment(project.FULL_NAME, number, "ada", scene.comments[0][0]).created_at
        narrator = Narrator(github, terminal, project.FULL_NAME, number, data_dir / "logs", started)
        narrator.live = scene.live
        yield _Demo(
            scene=scene,
            data_dir=data_dir,
            model=model,
            github=github,
            bot=bot,
            narrator=narrator,
            terminal=terminal,
            keep=keep,
            on_verdict=on_verdict,
            first_head=head,
            started=started,
        )


def _data_dir(folder: Path) -> Path:
    return folder / "bot"


class _NotFinished(Exception):
    """A run didn't end."""


async def _show(stage: _Demo) -> int:
    scene, narrator = stage.scene, stage.narrator
    try:
        runs = [run async for run in _runs(stage)]
    except _NotFinished as error:
        return _failed(str(error), stage)
    closed = runs[min(scene.main, len(runs) - 1)]
    commit = await _commit(stage)
    is_shown = not scene.shows_commit or (commit is not None and commit["verified"])
    is_expected = [run.conclusion for run in runs] == [conclusion for _, conclusion in scene.comments]
    agent = await _agent(stage, closed)
    is_safe = not scene.shows_agent or (agent is not None and not agent["key_left_the_bot"])
    stage.verdict = 0 if is_expected and is_shown and is_safe else 1
    if commit is not None:
        _print_commit(stage, commit)
    if agent is not None:
        _print_agent(stage, agent)
    _table(stage)
    stage.on_verdict(_view(stage, closed, commit, agent))
    if not stage.keep:
        return stage.verdict
    _print_next_commands(stage)
    while not stage.bot.ended:
        await asyncio.sleep(POLL_S)
        narrator.update()
    return _failed("the bot ended", stage)


async def _runs(stage: _Demo) -> AsyncIterator[CheckRun]:
    """Write the comments one after another, and yield their completed check runs. A run that ends otherwise is the last."""
    narrator, before = stage.narrator, -1
    for number, (command, conclusion) in enumerate(stage.scene.comments):
        if number:
            await stage.github.webhooks_sent()
            narrator.timings.clear()
            comment = stage.github.comment(project.FULL_NAME, narrator.number, "ada", command)
            narrator.asked = comment.created_at
            if number == stage.scene.main:
                stage.started = comment.created_at
        closed = await _finished(stage, before)
        if number <= stage.scene.main:
            stage.timings = list(narrator.timings)
            stage.total_s = (stage.github.state.now() - stage.started).total_seconds()
        yield closed
        before = closed.id
        if closed.conclusion != conclusion:
            return


async def _finished(stage: _Demo, before: int) -> CheckRun:
    """Return the newest check run once it is completed. `before`: the id of the one that is older. Raises _NotFinished."""
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + DEADLINE_S
    while (closed := stage.narrator.finished()) is None or closed.id <= before:
        if stage.bot.ended:
            raise _NotFinished("the bot ended before the run was finished")
        if loop.time() > ends_at:
            raise _NotFinished(f"the check run was not completed within {DEADLINE_S:g} s")
        await asyncio.sleep(POLL_S)
        stage.narrator.update()
    return closed


def _failed(reason: str, stage: _Demo) -> int:
    terminal = stage.terminal
    stage.narrator.flush()
    terminal.print_line()
    terminal.print_line(terminal.style(f"gibil demo: {reason}. The end of the bot's log:", "red"))
    for line in stage.bot.log_tail():
        terminal.print_line("  " + harmless(line))
    terminal.print_line("`gibil doctor` shows what is missing on this computer.")
    return 1


async def _commit(stage: _Demo) -> dict[str, Any] | None:
    """Return the commit that the bot pushed; None if it pushed none, or wasn't asked to."""
    github, number = stage.github, stage.narrator.number
    sha = github.head_sha(project.FULL_NAME, number)
    if not stage.scene.shows_commit or sha == stage.first_head:
        return None
    shown = await github.commit(project.FULL_NAME, sha)
    parent = shown["parents"][0]["sha"]
    return {
        "sha": sha,
        "parent": parent,
        "branch": project.BRANCH,
        "message": shown["message"],
        "author": shown["author"]["name"],
        "verified": shown["verification"]["verified"],
        "files": await github.changed_files(project.FULL_NAME, parent, sha),
    }


def _print_commit(stage: _Demo, commit: dict[str, Any]) -> None:
    terminal = stage.terminal
    terminal.print_line()
    terminal.print_line(terminal.style("the commit that came back", "bold"))
    terminal.print_line(
        f"  {commit['sha'][:7]} on {commit['branch']}, after {commit['parent'][:7]}, by {commit['author']}   "
        + (terminal.style("✓ Verified", "green") if commit["verified"] else terminal.style("✗ Unverified", "red"))
    )
    for line in (*commit["message"].rstrip().splitlines(), "", *commit["files"]):
        terminal.print_line(f"  {terminal.style('│', 'blue')} {harmless(line)}".rstrip())


async def _agent(stage: _Demo, closed: CheckRun) -> dict[str, Any] | None:
    """Return what the agent did and used, as the bot stored it; None without one."""
    if stage.model is None:
        return None
    result = await agent_scene.result_of(stage.data_dir, closed.external_id)
    return None if result is None else await agent_scene.usage_view(stage.model, result, stage.data_dir)


def _print_agent(stage: _Demo, agent: dict[str, Any]) -> None:
    terminal = stage.terminal
    terminal.print_line()
    terminal.print_line(terminal.style("the agent", "bold"))
    for label, text in agent_scene.rows(agent):
        terminal.print_line(f"  {label:<8}  {harmless(text)}")


def _view(stage: _Demo, closed: CheckRun, commit: dict[str, Any] | None, agent: dict[str, Any] | None) -> dict[str, Any]:
    narrator = stage.narrator
    return {
        "check": closed.name,
        "conclusion": closed.conclusion,
        "seconds": round((closed.changed_at - stage.started).total_seconds(), 3),
        "pull_request": narrator.number,
        "github": stage.github.url,
        "bot": stage.bot.url,
        "commit": commit,
        "agent": agent,
        "timings": [
            {"what": timing.label, "seconds": round(timing.seconds, 3), "remark": timing.remark} for timing in stage.timings
        ],
    }


def _table(stage: _Demo) -> None:
    terminal = stage.terminal
    command = f" ({stage.scene.comments[stage.scene.main][0]})" if len(stage.scene.comments) > 1 else ""
    terminal.print_line()
    terminal.print_line(terminal.style(f"where the time went{command}", "bold"))
    rows = [(timing.label, precise_duration(timing.seconds), timing.remark) for timing in stage.timings]
    rows.append(("total", precise_duration(stage.total_s), "from the comment to the last report"))
    terminal.table(rows, "  ")


def _print_next_commands(stage: _Demo) -> None:
    terminal, github = stage.terminal, stage.github
    pull = f"{github.url}/_double/repos/{project.FULL_NAME}/pulls/{stage.narrator.number}"
    mistake = json.dumps({"files": {"tests/test_mistake.py": MISTAKE}, "message": "A mistake"})
    terminal.print_line()
    terminal.print_line(terminal.style("Both run until Ctrl-C. In another terminal:", "bold"))
    for words, command in (
        ("comment again", f"curl -d '{_comment_json('ada', COMMAND)}' {pull}/comments"),
        ("have the code formatted", f"curl -d '{_comment_json('ada', COMMIT_COMMAND)}' {pull}/comments"),
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
    """Yield an event that Ctrl-C, SIGTERM and SIGHUP set, so that everything is stopped in order.

    After one of them the process only has to report its exit status, and a further one doesn't replace it.
    """
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
        before = signal.pthread_sigmask(signal.SIG_BLOCK, handled)
        for number in handled:
            loop.remove_signal_handler(number)
            if interrupted.is_set():
                signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def _clean_up(folder: Path, terminal: Terminal) -> None:
    """Remove everything, even if the reader of the output has ended."""
    messages = []
    try:
        destroyed = await destroy_leftovers(_data_dir(folder))
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
