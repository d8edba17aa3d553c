"""Requests to GitHub's API for one commented `/gibil test`, from the comment until nothing is asked any more.

Counted at the GitHub double, for a bot that has just started and for the next run on a new pull request. The repository has one
`.gibil.yml` on its base branch; the pull request is a member's, from a branch, and was opened while the bot listened. Git's own
requests (the clone) are not API calls. Tokens are credentials and not something that people see, so they count as calls and
not as writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter

from gibil_bot.demo.github_double import GitHubDouble
from tests.benchmarks.comparison import Comparison, at_most
from tests.benchmarks.context import Context
from tests.benchmarks.machines import yard
from tests.benchmarks.servers import SECRET, Server, gibil_server

REPOSITORY = "ada/engine"
WORKFLOW = "tasks:\n  - {name: build, run: make build}\n  - {name: check, run: make check}\n"
FILES = {".gibil.yml": WORKFLOW, "Makefile": "build:\n\t@echo built\ncheck:\n\t@echo checked\n"}
MOST_CALLS, MOST_WRITES = 9, 4
WITHIN_S = 90.0
_VARIABLE = re.compile(r"/(\d+|[0-9a-f]{40})(?=/|$)")


def calls(context: Context) -> list[Comparison]:
    return asyncio.run(_calls(context))


async def _calls(context: Context) -> list[Comparison]:
    async with yard(context.folder("gibil") / "data"):  # says when there can be no machines, and destroys what is left
        async with GitHubDouble.start(context.folder("github"), webhook_secret=SECRET) as github:
            await github.add_repository(REPOSITORY, FILES)
            with contextlib.ExitStack() as stack:
                settings = {"GIBIL_GITHUB_APP_ID": str(github.app_id)}
                gibil = await asyncio.to_thread(
                    stack.enter_context, gibil_server(context.folder("gibil"), github.private_key_pem, github.url, **settings)
                )
                github.webhook_url = f"http://127.0.0.1:{gibil.port}{gibil.webhook}"
                first = await _run(github, gibil, "first")
                second = await _run(github, gibil, "second")
                await asyncio.to_thread(stack.close)
    return [row for name, counted in (("the first run", first), ("the next run", second)) for row in _rows(name, counted)]


def _rows(name: str, counted: Counter[str]) -> list[Comparison]:
    facts: dict[str, object] = dict(sorted(counted.items()))
    writes = sum(number for call, number in counted.items() if not call.startswith("GET ") and "token" not in call)
    for call, number in sorted(counted.items()):
        print(f"  {name}: {number} × {call}", flush=True)
    return [
        Comparison(
            what=f"{what}, {name} of a bot",
            peer="what was promised",
            unit="requests",
            ours=[float(number)],
            peers=[float(most)],
            aim=at_most(1),
            facts=facts,
        )
        for what, number, most in (
            ("API calls", counted.total(), MOST_CALLS),
            ("API calls that write", writes, MOST_WRITES),
        )
    ]


async def _run(github: GitHubDouble, gibil: Server, branch: str) -> Counter[str]:
    """One commented command; what it asked GitHub, by method and path without its numbers."""
    number = await github.open_pull_request(REPOSITORY, branch, {f"{branch}.txt": "changed\n"}, "ada")
    await github.settled()
    sha = github.head_sha(REPOSITORY, number)
    before = await _quiet(github)
    github.comment(REPOSITORY, number, "ada", "/gibil test")

    def is_finished() -> bool:
        checks = github.check_runs(REPOSITORY, sha)
        return bool(checks) and all(check.status == "completed" for check in checks)

    await github.wait_for(is_finished, WITHIN_S)
    conclusions = [check.conclusion for check in github.check_runs(REPOSITORY, sha)]
    if conclusions != ["success"]:
        raise RuntimeError(f"the run on {gibil.name} ended as {conclusions}")
    after = await _quiet(github)
    made = [
        request for request in github.requests[before:after] if request.path.startswith("/") and "/git-" not in request.path
    ]
    return Counter(f"{request.method} {_VARIABLE.sub('/N', request.path)}" for request in made if ".git/" not in request.path)


async def _quiet(github: GitHubDouble) -> int:
    """How many requests there were, once none has come for a second: a run's last ones follow its check run."""
    count = -1
    while count != len(github.requests):
        count = len(github.requests)
        await asyncio.sleep(1.0)
    return count
