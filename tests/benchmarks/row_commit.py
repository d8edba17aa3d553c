"""The changed files of a run as a commit at GitHub, compared with `git push` of the same files; and requests to the API."""

from __future__ import annotations

import asyncio
import base64
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gibil_bot.commits.checks import CommitPolicy
from gibil_bot.demo.github_double import GitHubDouble
from gibil_bot.github.api.client import GitHubClient
from gibil_bot.github.api.session import Session
from gibil_bot.model import CommitPlan, NewRun, Person, Plan, PullRequest, Repository, Source, TaskPlan, Trust
from gibil_bot.ports import Shell
from gibil_bot.runs.commit_steps import CommitTools
from gibil_bot.runs.memory import MemoryRuns
from gibil_bot.runs.redact import Redactor
from gibil_bot.runs.run_commits import RunCommits
from gibil_bot.runs.sources import LocalBundle
from gibil_bot.scripts.clone import WORKSPACE
from tests.benchmarks.comparison import Comparison, at_most
from tests.benchmarks.context import Context
from tests.benchmarks.machines import yard
from tests.doubles.repositories import git

NAME = "ada/engine"
FILES, LINES, ROUNDS, WARM_UPS = 20, 200, 9, 2
MOST_CALLS = 10
"""For one commit, tokens included."""


def commit(context: Context) -> list[Comparison]:
    return asyncio.run(_commit(context))


async def _commit(context: Context) -> list[Comparison]:
    ours: list[float] = []
    pushes: list[float] = []
    calls: list[float] = []
    counted: Counter[str] = Counter()
    folder = context.folder("commit")
    async with yard(context.folder("d")) as machines, GitHubDouble.start(folder / "github") as github:
        await github.add_repository(NAME, {"README.md": "an engine\n", **_files(0)})
        client = GitHubClient(Session(github.url, str(github.app_id), github.private_key_pem))
        try:
            _, shell = await machines.create()
            repository = folder / "github" / "repositories" / f"{NAME}.git"
            base = git(repository, "rev-parse", "main")
            assert await LocalBundle(repository, base).send(shell) == ()
            git(folder, "clone", "-q", str(repository), "theirs")
            tools = CommitTools(github=client, git_data=client.git_data, policy=CommitPolicy(), logs=folder / "logs")
            scene = _Scene(github=github, tools=tools, repository=repository, base=base, folder=folder)
            for number in range(1, WARM_UPS + ROUNDS + 1):
                took, requests = await scene.by_gibil(shell, number)
                pushed = await scene.by_push(number)
                if number > WARM_UPS:
                    ours.append(took * 1000)
                    pushes.append(pushed * 1000)
                    calls.append(float(len(requests)))
                    counted = Counter(requests)
            await shell.close()
        finally:
            await client.close()
    for call, times in sorted(counted.items()):
        print(f"  {times} × {call}", flush=True)
    return [
        Comparison(
            what=f"changed files of a machine to a commit of {FILES} files on the branch, checked", unit="ms",
            peer="`git push` of such a commit", ours=ours, peers=pushes, aim=None,
        ),
        Comparison(
            what="API calls of that", peer="what was promised", unit="requests",
            ours=calls, peers=[float(MOST_CALLS)], aim=at_most(1), facts={"calls": dict(counted)},
        ),
    ]  # fmt: skip


def _files(number: int) -> dict[str, str]:
    return {f"src/module{n}.py": "".join(f"{line} of {number} in {n}\n" for line in range(LINES)) for n in range(FILES)}


@dataclass(kw_only=True)
class _Scene:
    github: GitHubDouble
    tools: CommitTools
    repository: Path
    """The bare repository of the double."""
    base: str
    folder: Path

    async def by_gibil(self, shell: Shell, number: int) -> tuple[float, Sequence[str]]:
        """Return the seconds from the changed files on the machine to the branch that has them, and the requests."""
        branch, plan = self._branch(f"ours-{number}"), CommitPlan(message="Change", to="branch", branch=f"ours-{number}")
        await shell.run(_change_script(self.base, number))
        runs = MemoryRuns()
        runs.queue(self._new_run(number, plan))
        claim = await runs.claim("benchmark", lease_s=600, max_machines=1)
        assert claim is not None
        before, begun = len(self.github.requests), time.perf_counter()
        async with self.tools.steps(claim.run, Redactor(())) as steps:
            progress = await RunCommits(steps, runs, claim, plan, self.folder / "logs" / claim.run.id, redact=str).from_machine(
                shell
            )
        took = time.perf_counter() - begun
        assert (progress.phase, progress.files, progress.branch) == ("moved", FILES, branch), progress
        made = [request for request in self.github.requests[before:] if ".git/" not in request.path]
        return took, [f"{request.method} {request.path.partition(NAME)[2] or request.path}" for request in made]

    async def by_push(self, number: int) -> float:
        """Return the seconds of `git push` for such a commit, by a user with a token."""
        branch, checkout = self._branch(f"theirs-{number}"), self.folder / "theirs"
        git(checkout, "checkout", "-q", "--detach", self.base)
        for path, text in _files(number).items():
            (checkout / path).write_text(text)
        git(checkout, "commit", "-qam", "Change")
        token = base64.b64encode(f"x:{self.github.personal_token('ada')}".encode()).decode()
        command = (
            "git", "-C", str(checkout), "-c", f"http.extraHeader=Authorization: Basic {token}",
            "push", "-q", f"{self.github.url}/{NAME}.git", f"HEAD:refs/heads/{branch}",
        )  # fmt: skip
        begun = time.perf_counter()
        process = await asyncio.create_subprocess_exec(*command)
        assert await process.wait() == 0
        return time.perf_counter() - begun

    def _branch(self, name: str) -> str:
        git(self.repository, "update-ref", f"refs/heads/{name}", self.base)
        return name

    def _new_run(self, number: int, plan: CommitPlan) -> NewRun:
        repository = Repository(
            id=self.github.state.repository(NAME).id, full_name=NAME, clone_url=f"{self.github.url}/{NAME}.git",
            default_branch="main",
        )  # fmt: skip
        pull = PullRequest(
            number=1, title="A change", author=Person(login="ada"), head_sha=self.base, head_ref="main", head_repository=NAME,
            base_ref="main", base_sha=self.base,
        )  # fmt: skip
        source = Source(
            installation_id=self.github.installation(NAME).id, repository=repository, pull_request=pull, sha=self.base,
            trust=Trust.TRUSTED, actor="ada",
        )  # fmt: skip
        tasks = (TaskPlan(name="change", run=":"),)
        return NewRun(
            id=f"{number:016x}", delivery_guid="", source=source,
            plan=Plan(workflow="change", title="change", path="change", tasks=tasks, commit=plan),
        )  # fmt: skip


def _change_script(base: str, number: int) -> str:
    return f"""cd {WORKSPACE} && git checkout -q -f --detach {base} && for n in $(seq 0 {FILES - 1}); do
    seq 0 {LINES - 1} | sed "s/$/ of {number} in $n/" >src/module$n.py
done"""
