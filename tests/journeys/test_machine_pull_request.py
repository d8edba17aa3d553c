"""An agent commits on a machine; the pull request is opened from the user's host, which has the token, and the bot tests it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gibil_bot.demo.records import PullRequest
from tests.doubles.bot import REPOSITORY, Journey, journey
from tests.doubles.commandline import CommandLine

pytestmark = pytest.mark.usefixtures("local_machines")

WORKFLOW = "name: greet\non: {pull_request: [opened]}\ntasks: [{name: greet, run: 'test -f parser.py'}]\n"
WHO = "git config user.name Agent; git config user.email agent@example.com"


@dataclass
class UserHost:
    """A user's host: the command line, with the user's token for a GitHub on which the bot is installed."""

    world: Journey
    line: CommandLine
    token: str
    output: list[str] = field(default_factory=list)
    """Everything that was printed."""

    async def gibil(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {"GIBIL_GITHUB_URL": self.world.github.url, "GH_ENTERPRISE_TOKEN": self.token, **more}
        done = await asyncio.to_thread(self.line.gibil, *arguments, **environment)
        self.output += [done.stdout, done.stderr]
        return done

    async def json_result(self, *arguments: str, **more: str) -> tuple[int, Any]:
        done = await self.gibil(*arguments, "--json", **more)
        return done.returncode, json.loads(done.stdout)

    async def on_machine(self, script: str, name: str = "m") -> str:
        done = await self.gibil("run", name, f"set -e; cd /root/project; {WHO}; {script}")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def pulls(self, repository: str = REPOSITORY) -> list[PullRequest]:
        return self.world.github.state.repository(repository).pull_requests()


@contextlib.asynccontextmanager
async def user_host(tmp_path: Path) -> AsyncIterator[UserHost]:
    """Create a private repository with write access for `wes`; `git.log` records every git command line of that user."""
    async with journey(tmp_path, {"README.md": "an engine\n"}, workflows={"greet.yml": WORKFLOW}) as world:
        world.github.state.repository(REPOSITORY).private = True
        world.github.set_permission(REPOSITORY, "wes", "write")
        line = CommandLine(tmp_path)
        line.here.mkdir()
        (tmp_path / "bin").mkdir()
        git = tmp_path / "bin" / "git"
        git.write_text(f'#!/bin/sh\necho "$*" >>"{tmp_path}/git.log"\nexec {shutil.which("git")} "$@"\n')
        git.chmod(0o755)
        yield UserHost(world, line, world.github.personal_token("wes"))
        line.end()


async def test_a_machines_commits_become_a_pull_request_that_the_bot_tests_without_a_token_on_the_machine(
    tmp_path: Path,
) -> None:
    async with user_host(tmp_path) as wes:
        github = wes.world.github
        made = await wes.gibil("create", "--name", "m", "--repo", REPOSITORY, "--wait", "ready")
        assert made.returncode == 0, made.stderr
        head = await wes.on_machine(
            "git checkout -q -b agent/parser; echo 2 >parser.py; git add -A; git commit -qm 'Parse faster'; git rev-parse HEAD"
        )

        assert (await wes.json_result("pr", "create", "m", GH_ENTERPRISE_TOKEN=""))[1]["code"] == "GITHUB"
        wrong = await wes.json_result("pr", "create", "m", GH_ENTERPRISE_TOKEN="github_pat_made_up")
        assert (wrong[0], wrong[1]["exit_code"], "GH_ENTERPRISE_TOKEN" in wrong[1]["error"]) == (5, 5, True)
        assert not wes.pulls()

        status, view = await wes.json_result("pr", "create", "m")
        url = f"{github.url}/{REPOSITORY}"
        assert (status, view) == (
            0,
            {
                "name": "m", "repo": f"{url}.git", "branch": "gibil/m", "into": REPOSITORY, "base": "main", "commit": head,
                "number": 1, "url": f"{url}/pull/1", "draft": False, "already_existed": False,
            },
        )  # fmt: skip
        (pull,) = wes.pulls()
        assert (pull.title, pull.author.login, pull.head_sha, pull.base_ref) == ("Parse faster", "wes", head, "main")
        assert (await wes.world.closed_check(1)).conclusion == "success"

        more = await wes.on_machine("echo 3 >parser.py; git commit -qam 'And safer'; git rev-parse HEAD")
        status, view = await wes.json_result("pr", "create", "m", "--title", "Other")
        assert (status, view["number"], view["already_existed"], view["commit"]) == (0, 1, True, more)
        assert (pull.title, github.head_sha(REPOSITORY, 1)) == ("Parse faster", more)

        await wes.on_machine("git checkout -q main; git merge -q --no-ff -m Merge agent/parser; git checkout -q --detach")
        refused = await wes.json_result("pr", "create", "m", "--branch", "main", "--title", "x")
        assert (refused[0], "also the target of the pull request" in refused[1]["error"]) == (2, True)
        refused = await wes.json_result("pr", "create", "m", "--branch", "two")
        assert (refused[0], "3 new commits: describe them with --title" in refused[1]["error"]) == (2, True)
        (wes.line.here / "notes.md").write_text("Why\n")
        drafted = await wes.gibil(
            "pr", "create", "m", "--branch", "two", "--title", "Both", "--body-file", "notes.md", "--draft", "--base", "main"
        )  # fmt: skip
        assert (drafted.returncode, drafted.stdout) == (0, f"{url}/pull/2\n"), drafted.stderr
        assert [(it.draft, it.title, it.body) for it in wes.pulls()[1:]] == [(True, "Both", "Why\n")]

        halves = wes.token[:30], wes.token[30:]
        found = await wes.on_machine(
            f"a={halves[0]}; b={halves[1]}; echo $a$b >/root/here; grep -rlsF $a$b /root /etc /tmp /var /proc/*/environ || true"
        )
        assert found == "/root/here"
        assert wes.token not in "".join([*wes.output, (tmp_path / "git.log").read_text(), wes.world.bot.text()])
        assert "push" in (tmp_path / "git.log").read_text()


FORK = "wes/engine"


@contextlib.asynccontextmanager
async def forked(tmp_path: Path) -> AsyncIterator[UserHost]:
    """The same host, with a public repository, in which `wes` can only write to a fork."""
    async with user_host(tmp_path) as wes:
        github = wes.world.github
        repository = github.state.repository(REPOSITORY)
        repository.private = False
        github.set_permission(REPOSITORY, "wes", "read")
        await github.fork(REPOSITORY, "wes")
        # Pushed after the fork was created: only the parent has this branch, and new pull requests use it by default.
        await github.push(REPOSITORY, "trunk", {"trunk": "1"})
        repository.default_branch = "trunk"
        yield wes


async def test_commits_pushed_to_a_fork_become_a_pull_request_in_its_parent(tmp_path: Path) -> None:
    async with forked(tmp_path) as wes:
        github = wes.world.github
        made = await wes.gibil("create", "--name", "m", "--repo", FORK, "--wait", "ready")
        assert made.returncode == 0, made.stderr
        head = await wes.on_machine(
            "git checkout -q -b agent/parser; echo 2 >parser.py; git add -A; git commit -qm 'Parse faster'; git rev-parse HEAD"
        )

        opened = await wes.gibil("pr", "create", "m", "--json")
        assert "pull request #1 to main of ada/engine is open" in opened.stderr
        view = json.loads(opened.stdout)
        assert view == {
            "name": "m", "repo": f"{github.url}/{FORK}.git", "branch": "gibil/m", "into": REPOSITORY, "base": "main",
            "commit": head, "number": 1, "url": f"{github.url}/{REPOSITORY}/pull/1", "draft": False, "already_existed": False,
        }  # fmt: skip
        (pull,) = wes.pulls()
        assert pull.head_repository is github.state.repository(FORK)
        assert (pull.head_ref, pull.head_sha, pull.base_ref, pull.author.login) == ("gibil/m", head, "main", "wes")
        assert not wes.pulls(FORK)

        more = await wes.on_machine("echo 3 >parser.py; git commit -qam 'And safer'; git rev-parse HEAD")
        again = await wes.gibil("pr", "create", "m", "--json")
        assert "pull request #1 to main of ada/engine was already open" in again.stderr
        view = json.loads(again.stdout)
        assert (view["number"], view["into"], view["already_existed"]) == (1, REPOSITORY, True)
        assert (len(wes.pulls()), github.head_sha(REPOSITORY, 1)) == (1, more)

        for existed in (False, True):
            status, view = await wes.json_result("pr", "create", "m", "--into", "WES/engine", "--title", "For me first")
            assert (status, view["into"], view["number"], view["already_existed"]) == (0, FORK, 1, existed)
        (own,) = wes.pulls(FORK)
        assert (own.head_repository, own.head_sha, len(wes.pulls())) == (pull.head_repository, more, 1)

        to_trunk = await wes.json_result("pr", "create", "m", "--base", "trunk", "--title", "Both")
        assert (to_trunk[0], to_trunk[1]["number"], wes.pulls()[1].base_ref) == (0, 2, "trunk")


async def test_a_branch_missing_from_the_forks_parent_is_replaced_by_the_default_branch(tmp_path: Path) -> None:
    async with forked(tmp_path) as wes:
        await wes.world.github.push(FORK, "work", {"begun": "1"})
        made = await wes.gibil("create", "--name", "m", "--repo", FORK, "--branch", "work", "--wait", "ready")
        assert made.returncode == 0, made.stderr
        await wes.on_machine("echo 2 >done; git add -A; git commit -qm Done")
        status, view = await wes.json_result("pr", "create", "m")
        assert (status, view["into"], view["branch"], view["base"]) == (0, REPOSITORY, "gibil/m", "trunk")


async def test_an_impossible_pull_request_of_a_fork_is_reported_in_one_line_with_a_remedy(tmp_path: Path) -> None:
    async with forked(tmp_path) as wes:
        github = wes.world.github
        await github.add_repository("eve/other", {"a": "1"})
        made = await wes.gibil("create", "--name", "m", "--repo", FORK, "--wait", "ready")
        assert made.returncode == 0, made.stderr
        await wes.on_machine("git checkout -q -b topic; echo 2 >a; git add -A; git commit -qm Better")

        async def refused(status: int, *options: str, **more: str) -> str:
            done, view = await wes.json_result("pr", "create", "m", *options, **more)
            assert (done, view["exit_code"], "\n" in view["error"]) == (status, status, False), view
            return str(view["error"])

        assert "write --into OWNER/REPO" in await refused(2, "--into", f"{github.url}/{REPOSITORY}")
        assert "eve/other is not related to wes/engine" in await refused(2, "--into", "eve/other")
        absent = await refused(5, "--into", "ada/absent")
        assert ("the repository ada/absent doesn't exist" in absent, "--into" in absent) == (True, False)
        assert "no branch absent in ada/engine" in await refused(2, "--base", "absent")
        github.fault("GET", f"/repos/{REPOSITORY}$", "error_before", status=404)
        way_out = "--into wes/engine opens the pull request in the fork itself"
        gone = await refused(5)
        assert ("wes/engine is a fork, and the repository ada/engine doesn't exist" in gone, way_out in gone) == (True, True)
        github.state.repository(REPOSITORY).archived = True
        archived = await refused(5)
        assert ("ada/engine is archived" in archived, way_out in archived) == (True, True)
        github.state.repository(REPOSITORY).archived = False
        pushed = await asyncio.to_thread(
            subprocess.run, ["git", "ls-remote", f"{github.url}/{FORK}.git", "gibil/m"], capture_output=True, check=True
        )
        assert pushed.stdout == b""

        narrow = await refused(5, GH_ENTERPRISE_TOKEN=github.personal_token("wes", only=[FORK]))
        assert narrow.startswith(
            "gibil/m was pushed, but the pull request was not opened: the token from GH_ENTERPRISE_TOKEN may"
        )
        assert ("in ada/engine" in narrow, "a classic one" in narrow, way_out in narrow) == (True, True, True)
        github.state.repository(REPOSITORY).private = True
        github.set_permission(REPOSITORY, "wes", "none")
        hidden = await refused(5)
        assert ("a fork of a repository that GitHub doesn't show" in hidden, way_out in hidden) == (True, True)
        assert not wes.pulls()
        assert (await wes.json_result("pr", "create", "m", "--into", FORK))[1]["into"] == FORK
