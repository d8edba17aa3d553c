"""Requests to GitHub's API for one commented `/gibil test`, from the comment until the bot is idle again.

Counted at the GitHub double, in a public and in a private repository with one `.gibil.yml` on the base branch. The pull request
is a member's, from a branch, and was opened while the bot was running; the requests of its opening are facts of the row. Git's
own requests (the clone) aren't API calls. Tokens are credentials that users don't see: they are calls, but not writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import Sequence

from gibil_bot.demo.github_double import GitHubDouble
from gibil_bot.demo.records import RequestRecord
from tests.benchmarks.comparison import Comparison, at_most
from tests.benchmarks.context import Context
from tests.benchmarks.machines import yard
from tests.benchmarks.servers import SECRET, Server, gibil_server, health

REPOSITORIES = {"public": "ada/engine", "private": "ada/secret"}
WORKFLOW = "tasks:\n  - {name: build, run: make build}\n  - {name: check, run: make check}\n"
FILES = {".gibil.yml": WORKFLOW, "Makefile": "build:\n\t@echo built\ncheck:\n\t@echo checked\n"}
_UNFINISHED = ("deliveries_unhandled", "runs_queued", "runs_running", "tellings_due")
MOST_CALLS, MOST_WRITES = 9, 4
WITHIN_S = 90.0
_VARIABLE = re.compile(r"/(\d+|[0-9a-f]{40})(?=/|$)")


def calls(context: Context) -> list[Comparison]:
    return asyncio.run(_calls(context))


async def _calls(context: Context) -> list[Comparison]:
    async with yard(context.folder("gibil") / "data"):  # reports whether machines can be created, and destroys remaining ones
        async with GitHubDouble.start(context.folder("github"), webhook_secret=SECRET) as github:
            for visibility, name in REPOSITORIES.items():
                await github.add_repository(name, FILES, private=visibility == "private")
            with contextlib.ExitStack() as stack:
                settings = {"GIBIL_GITHUB_APP_ID": str(github.app_id)}
                gibil = await asyncio.to_thread(
                    stack.enter_context, gibil_server(context.folder("gibil"), github.private_key_pem, github.url, **settings)
                )
                github.webhook_url = f"http://127.0.0.1:{gibil.port}{gibil.webhook}"
                rows: list[Comparison] = []
                for visibility, name in REPOSITORIES.items():
                    rows += _rows(visibility, *await _run(github, gibil, name))
                await asyncio.to_thread(stack.close)
    return rows


def _rows(visibility: str, opening: Counter[str], counted: Counter[str]) -> list[Comparison]:
    writes = sum(number for call, number in counted.items() if not call.startswith("GET ") and "token" not in call)
    for call, number in sorted(counted.items()):
        print(f"  {visibility}: {number} × {call}", flush=True)
    return [
        Comparison(
            what=f"{what} for a command, {visibility} repository",
            peer="what was promised",
            unit="requests",
            ours=[float(number)],
            peers=[float(most)],
            aim=at_most(1),
            facts={"calls": dict(sorted(counted.items())), "calls_when_opened": dict(sorted(opening.items()))},
        )
        for what, number, most in (("API calls", counted.total(), MOST_CALLS), ("API writes", writes, MOST_WRITES))
    ]


async def _run(github: GitHubDouble, gibil: Server, repository: str) -> tuple[Counter[str], Counter[str]]:
    """Return the requests for opening a pull request and for one command, by method and path without numbers."""
    before = len(github.requests)
    number = await github.open_pull_request(repository, "change", {"change.txt": "changed\n"}, "ada")
    opened = await _idle(github, gibil)
    sha = github.head_sha(repository, number)
    github.comment(repository, number, "ada", "/gibil test")

    def is_finished() -> bool:
        checks = github.check_runs(repository, sha)
        return bool(checks) and all(check.status == "completed" for check in checks)

    await github.wait_for(is_finished, WITHIN_S)
    conclusions = [check.conclusion for check in github.check_runs(repository, sha)]
    if conclusions != ["success"]:
        raise RuntimeError(f"the run on {gibil.name} ended as {conclusions}")
    ended = await _idle(github, gibil)
    return _counted(github.requests[before:opened]), _counted(github.requests[opened:ended])


def _counted(requests: Sequence[RequestRecord]) -> Counter[str]:
    made = [request for request in requests if ".git/" not in request.path and request.path != "/app/hook/deliveries"]
    return Counter(f"{request.method} {_VARIABLE.sub('/N', request.path)}" for request in made)


async def _idle(github: GitHubDouble, gibil: Server) -> int:
    """Return the number of requests, once every delivery is handled and everything is published."""
    await github.webhooks_sent()
    async with asyncio.timeout(WITHIN_S):
        counts = await asyncio.to_thread(health, gibil.port)
        while any(counts[name] for name in _UNFINISHED):
            await asyncio.sleep(0.05)
            counts = await asyncio.to_thread(health, gibil.port)
    return len(github.requests)
