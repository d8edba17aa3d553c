"""The second run of a project, against its bare test command on a prepared, clean checkout on this host, with the same runtime.

`gibil try` is measured as a whole process; the bot from the comment until the check run is completed, at GitHub's double.

    python -m tests.benchmarks.row_second FOLDER PREPARE TEST [--rounds N]

measures another repository: PREPARE and TEST are what its people run, for example `npm ci` and `npm test`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

from gibil_bot.demo.github_double import GitHubDouble
from gibil_bot.providers.local.paths import LocalPaths
from tests.benchmarks.comparison import Comparison, LeftOut, at_most, table
from tests.benchmarks.context import Context
from tests.benchmarks.machines import end_daemon
from tests.benchmarks.peers import Peers
from tests.benchmarks.second_projects import Project, any_project, environment, npm_project, runtime_in, uv_project
from tests.benchmarks.servers import SECRET, gibil_server

ROUNDS = 3
WITHIN_S = 600.0
AIM = 1.15
REPOSITORY = "ada/shop"


def second(context: Context) -> list[Comparison]:
    rows: list[Comparison] = []
    projects: list[Callable[[], Project]] = [
        lambda: npm_project(context.folder("npm")),
        lambda: uv_project(context.folder("uv"), context.peers.uv()),
    ]
    for project in projects:
        rows += measure(context, project(), ROUNDS)
    return rows


def measure(context: Context, project: Project, rounds: int) -> list[Comparison]:
    """Alternate the bare command, `gibil try` and the bot; each has run once before."""
    gibil = Path(sys.executable).with_name("gibil")
    if not gibil.exists():
        raise LeftOut(f"{gibil} does not exist: install the package into the Python that runs this")
    data_dir = context.folder(f"gibil-{project.name}") / "data"
    try:
        return asyncio.run(_measure(context, project, rounds, gibil, data_dir))
    finally:
        if LocalPaths(data_dir).local.is_dir():
            subprocess.run([gibil, "cache", "clear"], env=environment() | {"GIBIL_DATA_DIR": str(data_dir)}, check=False)
            asyncio.run(end_daemon(data_dir))


async def _measure(context: Context, project: Project, rounds: int, gibil: Path, data_dir: Path) -> list[Comparison]:
    bare: list[float] = []
    tried: list[float] = []
    bot: list[float] = []
    project.bare(project.prepare)
    prepared = project.untracked()
    first_bare = await asyncio.to_thread(project.bare, project.test)
    first_s, output = await asyncio.to_thread(_try, gibil, project, data_dir)
    facts: dict[str, object] = {
        "first_try_s": first_s, "runtime": [runtime_in(first_bare), runtime_in(output)], "packages": project.packages,
    }  # fmt: skip
    if runtime_in(first_bare) != runtime_in(output):
        raise LeftOut(f"{project.name}: this host has {runtime_in(first_bare)}, a machine {runtime_in(output)}")
    async with _commented(context, project, data_dir) as comment:
        facts["first_run_s"] = await comment()
        for _ in range(rounds):
            await asyncio.to_thread(project.clean, prepared)
            begun = time.perf_counter()
            await asyncio.to_thread(project.bare, project.test)
            bare.append(time.perf_counter() - begun)
            took, output = await asyncio.to_thread(_try, gibil, project, data_dir)
            if "prepared machine" not in output:
                raise RuntimeError(f"{project.name}: the second run installed everything again:\n{output[-3000:]}")
            tried.append(took)
            bot.append(await comment())
    peer = f"bare tests, {project.name} project, {runtime_in(first_bare)}"
    if project.packages is not None:
        peer += f", {project.packages} packages"
    return [
        Comparison(what=what, peer=peer, unit="s", ours=ours, peers=bare, aim=at_most(AIM), facts=facts)
        for what, ours in (("second `gibil try`", tried), ("second run of the bot", bot))
    ]


def _try(gibil: Path, project: Project, data_dir: Path) -> tuple[float, str]:
    """Return the seconds of the whole command, and its output. Raises RuntimeError if it isn't green."""
    begun = time.perf_counter()
    done = subprocess.run(
        [gibil, "try", project.folder], env=environment() | {"GIBIL_DATA_DIR": str(data_dir)}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=WITHIN_S, check=False,
    )  # fmt: skip
    took = time.perf_counter() - begun
    output = done.stdout.decode(errors="replace")
    if done.returncode != 0:
        raise RuntimeError(f"gibil try {project.name} ended with {done.returncode}:\n{output[-3000:]}")
    return took, output


@contextlib.asynccontextmanager
async def _commented(context: Context, project: Project, data_dir: Path) -> AsyncIterator[Callable[[], Awaitable[float]]]:
    """The bot with the project as a repository; the function comments `/gibil test`, and returns the seconds to the result."""
    folder = data_dir.parent
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=project.folder, capture_output=True, check=True).stdout
    files = {name: (project.folder / name).read_bytes() for name in listed.decode().split("\0") if name}
    async with GitHubDouble.start(context.folder(f"github-{project.name}"), webhook_secret=SECRET) as github:
        await github.add_repository(REPOSITORY, files)
        number = await github.open_pull_request(REPOSITORY, "change", {"change.txt": "changed\n"}, "ada")
        settings = {"GIBIL_GITHUB_APP_ID": str(github.app_id), "GIBIL_EGRESS_ALLOW": os.environ.get("GIBIL_EGRESS_ALLOW", "")}
        with contextlib.ExitStack() as stack:
            server = await asyncio.to_thread(
                stack.enter_context, gibil_server(folder, github.private_key_pem, github.url, **settings)
            )
            os.sched_setaffinity(server.pid, os.sched_getaffinity(0))
            github.webhook_url = f"http://127.0.0.1:{server.port}{server.webhook}"
            sha = github.head_sha(REPOSITORY, number)

            async def comment() -> float:
                before = len(github.check_runs(REPOSITORY, sha))
                begun = time.perf_counter()
                github.comment(REPOSITORY, number, "ada", "/gibil test")

                def is_finished() -> bool:
                    checks = github.check_runs(REPOSITORY, sha)
                    return len(checks) > before and all(check.status == "completed" for check in checks)

                await github.wait_for(is_finished, WITHIN_S)
                took = time.perf_counter() - begun
                conclusions = [check.conclusion for check in github.check_runs(REPOSITORY, sha)]
                if set(conclusions) != {"success"}:
                    raise RuntimeError(f"the bot's run of {project.name} ended as {conclusions}")
                return took

            yield comment
            await asyncio.to_thread(stack.close)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.row_second", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("prepare")
    parser.add_argument("test")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="gibil-bench-") as scratch:
        context = Context(scratch=Path(scratch), peers=Peers(Path(scratch) / "peers"))
        project = any_project(arguments.folder, Path(scratch) / "project", arguments.prepare, arguments.test)
        rows = measure(context, project, arguments.rounds)
    print(table(rows))
    for name, value in rows[0].facts.items():
        print(f"{name}: {value}")
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
