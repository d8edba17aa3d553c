"""An agent's run of the bot, against the same program and tests by hand: what the bot itself takes of it.

Claude Code repairs a failing test, and its model is a script that answers at once, so the program takes no longer than it must.
The bot is measured from the comment until the check run is completed, at GitHub's double, on a machine that has the program:
clone, failing test, agent, passing test, checked commit. By hand: a clone on this host, the same calls directly to the
scripted model, and `git push`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from gibil_bot.agent_task import AgentPlan
from gibil_bot.agents.engine import Engine
from gibil_bot.agents.engines.loading import load_engines
from gibil_bot.agents.launch import launch
from gibil_bot.demo.github_double import GitHubDouble
from gibil_bot.demo.model_double import ModelDouble, model_double
from gibil_bot.demo.model_script import Run, Say, Script, Write
from gibil_bot.providers.local.paths import LocalPaths
from tests.benchmarks.comparison import Comparison, LeftOut
from tests.benchmarks.context import Context
from tests.benchmarks.machines import end_daemon
from tests.benchmarks.servers import SECRET, bare_environment, gibil_server

ENGINE = "claude"
REPOSITORY = "ada/engine"
ROUNDS = 7
WITHIN_S = 600.0
FILES = {"engine.py": "POWER = 1\n", "test.sh": "grep -q 'POWER = 3' engine.py\n"}
WORKFLOW = """\
on: {command: fix}
tasks:
  - {name: test, run: sh test.sh}
  - {name: fix, if: failure(), agent: {engine: claude, prompt: Make the test pass., until: test}}
commit: Mend the engine
"""
SCRIPT = Script(steps=(Run("cat engine.py"), Write("engine.py", "POWER = 3\n", is_new=False), Say("POWER is 3 now.")))


def agent(context: Context) -> list[Comparison]:
    program = context.peers.claude_code(load_engines(None)[ENGINE])
    gibil = Path(sys.executable).with_name("gibil")
    data_dir = context.folder("agent") / "data"
    try:
        return asyncio.run(_agent(context, program, data_dir))
    finally:
        if LocalPaths(data_dir).local.is_dir():
            subprocess.run(
                [gibil, "cache", "clear"], env=bare_environment(data_dir) | {"GIBIL_DATA_DIR": str(data_dir)}, check=False
            )
            asyncio.run(end_daemon(data_dir))


async def _agent(context: Context, program: Path, data_dir: Path) -> list[Comparison]:
    bot: list[float] = []
    by_hand: list[float] = []
    programs: list[float] = []
    own: list[float] = []
    async with model_double(SCRIPT) as model, _commented(context, model, data_dir) as (github, comment):
        hand = _Hand(context, github, model, program)
        facts: dict[str, object] = {"first_run_s": await comment(0), "engine": f"{hand.engine.title} {hand.engine.version}"}
        await hand.repair(0)
        for number in range(1, ROUNDS + 1):
            whole_s, program_s = await hand.repair(number)
            by_hand.append(whole_s)
            programs.append(program_s)
            bot.append(await comment(number))
            own.append(bot[-1] - program_s)
    return [
        Comparison(
            what="an agent's run of the bot, from the comment to the result", unit="s",
            peer=f"{hand.engine.title} {hand.engine.version} and the tests by hand", ours=bot, peers=by_hand, aim=None,
            facts=facts,
        ),
        Comparison(
            what="the bot's own share of that: all but the time of the program", unit="s",
            peer="the program's process", ours=own, peers=programs, aim=None,
        ),
    ]  # fmt: skip


@dataclass
class _Hand:
    """What a person would do without the bot."""

    context: Context
    github: GitHubDouble
    model: ModelDouble
    program: Path

    def __post_init__(self) -> None:
        self.engine: Engine = load_engines(None)[ENGINE]
        self.plan = AgentPlan(engine=ENGINE, prompt="Make the test pass.")

    async def repair(self, number: int) -> tuple[float, float]:
        """Return the seconds of everything, and those of the program's process."""
        await self.github.open_pull_request(REPOSITORY, f"hand-{number}", {"engine.py": "POWER = 2\n"}, "ada")
        folder = self.context.folder(f"hand-{number}")
        begun = time.perf_counter()
        url = f"{self.github.url}/{REPOSITORY}.git"
        await self._run(folder, "git", "clone", "-q", "--branch", f"hand-{number}", url, "project")
        project = folder / "project"
        assert await self._run(project, "sh", "test.sh", fails=True) != 0
        program_s = await self._program(folder, project)
        await self._run(project, "sh", "test.sh")
        await self._run(
            project, "git", "-c", "user.name=a", "-c", "user.email=a@b.example", "commit", "-qam", "Mend the engine"
        )
        token = base64.b64encode(f"x:{self.github.personal_token('ada')}".encode()).decode()
        await self._run(project, "git", "-c", f"http.extraHeader=Authorization: Basic {token}", "push", "-q")
        return time.perf_counter() - begun, program_s

    async def _program(self, folder: Path, project: Path) -> float:
        prompt = folder / "prompt.md"
        prompt.write_text(self.plan.prompt)
        (folder / "home").mkdir()
        started = launch(
            self.engine,
            self.plan,
            url=self.model.url,
            token=self.model.key,
            home=str(folder / "home"),
            prompt_file=str(prompt),
            checkout=str(project),
        )
        begun = time.perf_counter()
        with prompt.open("rb") as stdin:
            process = await asyncio.create_subprocess_exec(
                self.program, *started.argv[1:], cwd=project, env={**bare_environment(folder / "home"), **started.environment},
                stdin=stdin, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        if await process.wait() != 0:
            raise RuntimeError(f"{self.engine.title} ended with {process.returncode}")
        return time.perf_counter() - begun

    async def _run(self, folder: Path, *command: str, fails: bool = False) -> int:
        process = await asyncio.create_subprocess_exec(*command, cwd=folder, env=bare_environment(folder))
        status = await process.wait()
        assert fails or status == 0, command
        return status


@contextlib.asynccontextmanager
async def _commented(
    context: Context, model: ModelDouble, data_dir: Path
) -> AsyncIterator[tuple[GitHubDouble, Callable[[int], Awaitable[float]]]]:
    """The bot; the function opens a pull request, comments `/gibil fix`, and returns the seconds from then to the result."""
    (folder := context.folder("agent-workflows")).joinpath("fix.yml").write_text(WORKFLOW)
    async with GitHubDouble.start(context.folder("github-agent"), webhook_secret=SECRET) as github:
        await github.add_repository(REPOSITORY, FILES)
        settings = {
            "GIBIL_GITHUB_APP_ID": str(github.app_id),
            "GIBIL_EGRESS_ALLOW": os.environ.get("GIBIL_EGRESS_ALLOW", ""),
            "GIBIL_WORKFLOWS": str(folder),
            "GIBIL_MODEL_KEY_ANTHROPIC": model.key,
            "GIBIL_MODEL_URL_ANTHROPIC": model.url,
        }
        with contextlib.ExitStack() as stack:
            server = await asyncio.to_thread(
                stack.enter_context, gibil_server(data_dir.parent, github.private_key_pem, github.url, **settings)
            )
            os.sched_setaffinity(server.pid, os.sched_getaffinity(0))
            github.webhook_url = f"http://127.0.0.1:{server.port}{server.webhook}"

            async def comment(number: int) -> float:
                pull = await github.open_pull_request(REPOSITORY, f"bot-{number}", {"engine.py": "POWER = 2\n"}, "ada")
                sha = github.head_sha(REPOSITORY, pull)
                begun = time.perf_counter()
                github.comment(REPOSITORY, pull, "ada", "/gibil fix")
                await github.wait_for(
                    lambda: [c for c in github.check_runs(REPOSITORY, sha) if c.status == "completed"], WITHIN_S
                )
                took = time.perf_counter() - begun
                (check,) = github.check_runs(REPOSITORY, sha)
                if check.conclusion != "success":
                    if number == 0:
                        raise LeftOut(f"the engine {ENGINE} doesn't work here: {check.summary}")
                    raise RuntimeError(f"the bot's run ended as {check.conclusion}: {check.summary}")
                return took

            yield github, comment
            await asyncio.to_thread(stack.close)
