"""The web server while 20 runs are in progress: tasks print, check runs are updated, deliveries arrive.

Probot is measured in alternation, on the same CPU, with the same 20 machines running.
"""

from __future__ import annotations

import asyncio
import contextlib

from gibil_bot.demo.github_double import GitHubDouble
from tests.benchmarks.comparison import Comparison, LeftOut, at_least, at_most
from tests.benchmarks.context import Context
from tests.benchmarks.machines import yard
from tests.benchmarks.row_door import CLIENTS, WARM_UP, Samples, compare
from tests.benchmarks.servers import SECRET, Server, gibil_server, health, post_load, private_key, probot_server

RUNS = 20
ROUNDS = 4
RUNNING_WITHIN_S = 120.0
REST_S = 1.0
REPOSITORY = "ada/engine"
WORKFLOW = """\
name: Busy
on:
  command: busy
machine: {memory: 512m}
tasks:
  - name: print
    run: for number in $(seq 3000); do echo "line $number"; sleep 0.2; done
"""


def busy(context: Context) -> list[Comparison]:
    return asyncio.run(_busy(context))


async def _busy(context: Context) -> list[Comparison]:
    data_dir = context.folder("gibil") / "data"
    async with yard(data_dir):  # reports whether machines can be created, and destroys remaining ones
        return await _measure(context)


async def _measure(context: Context) -> list[Comparison]:
    workflows = context.folder("workflows")
    (workflows / "busy.yml").write_text(WORKFLOW)
    ours, theirs = Samples(), Samples()
    async with GitHubDouble.start(context.folder("github"), webhook_secret=SECRET) as github:
        await github.add_repository(REPOSITORY, {"README.md": "an engine\n"})
        settings = {
            "GIBIL_GITHUB_APP_ID": str(github.app_id),
            "GIBIL_WORKFLOWS": str(workflows),
            "GIBIL_MAX_MACHINES": str(RUNS),
        }
        with contextlib.ExitStack() as stack:
            probot = await asyncio.to_thread(
                stack.enter_context, probot_server(context.folder("probot"), private_key(), context.peers)
            )
            gibil = await asyncio.to_thread(
                stack.enter_context, gibil_server(context.folder("gibil"), github.private_key_pem, github.url, **settings)
            )
            await _start_runs(github, gibil)
            for server in (gibil, probot):
                await asyncio.to_thread(post_load, server, CLIENTS, WARM_UP)
            for _ in range(ROUNDS):
                for server, samples in ((gibil, ours), (probot, theirs)):
                    await asyncio.sleep(REST_S)
                    await asyncio.to_thread(samples.measure, server, quiet=False)
            running = await asyncio.to_thread(_running, gibil.port)
            if running != RUNS:
                raise RuntimeError(f"{running} of {RUNS} runs were still in progress at the end")
            await asyncio.to_thread(stack.close)
    return compare(context, f", {RUNS} runs in progress", ours, theirs, at_least(1.4), at_most(0.9), None)


async def _start_runs(github: GitHubDouble, gibil: Server) -> None:
    github.webhook_url = f"http://127.0.0.1:{gibil.port}{gibil.webhook}"
    for number in range(RUNS):
        opened = await github.open_pull_request(REPOSITORY, f"change-{number}", {"change.txt": f"{number}\n"}, "ada")
        github.comment(REPOSITORY, opened, "ada", "/gibil busy")
    try:
        async with asyncio.timeout(RUNNING_WITHIN_S):
            while await asyncio.to_thread(_running, gibil.port) < RUNS or _cloning(github) > 0:
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise LeftOut(f"{RUNS} runs were not in progress within {RUNNING_WITHIN_S:g} s") from None


def _cloning(github: GitHubDouble) -> int:
    """Return runs whose check run doesn't show a running task yet."""
    return RUNS - sum(check.status == "in_progress" for check in github.check_runs(REPOSITORY, None))


def _running(port: int) -> int:
    return health(port)["runs_running"]
