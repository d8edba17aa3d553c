"""`/gibil format` and `gibil try --workflow format` with real formatters from the registries."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.doubles.bot import REPOSITORY, journey
from tests.doubles.commandline import CommandLine

pytestmark = pytest.mark.usefixtures("local_machines")

RUFF = {"pyproject.toml": "[tool.ruff.format]\nquote-style = 'single'\n", "engine.py": "POWER = 1\n"}
PRETTIER = {
    "package.json": '{ "name": "x", "private": true, "devDependencies": { "prettier": "^3.3.3" } }\n',
    ".prettierrc": "semi: false\n",
    "a.js": "const  x = {a:1};\n",
}


def registries(egress: str) -> dict[str, str]:
    """Return the settings with which machines reach the registries. A mirror may have its own certificates."""
    bundle = Path("/etc/ssl/certs/ca-certificates.crt")
    more = {"GIBIL_CA_BUNDLE": str(bundle)} if egress and bundle.exists() else {}
    return {"GIBIL_EGRESS_ALLOW": egress, **more}


async def test_ruff_formats_the_pull_request_once(tmp_path: Path, egress: str) -> None:
    async with journey(tmp_path, RUFF, settings=registries(egress)) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": 'POWER  = "2"\n'}, "ada")
        before = world.github.head_sha(REPOSITORY, number)
        world.github.comment(REPOSITORY, number, "ada", "/gibil format")
        check = await world.closed_check()
        assert check.conclusion == "success", (check.summary, check.text)
        assert "Pushed 1 commit with 1 changed file to `faster`" in f"{check.summary}"
        after = world.github.head_sha(REPOSITORY, number)
        commit = await world.github.commit(REPOSITORY, after)
        assert [parent["sha"] for parent in commit["parents"]] == [before]
        assert commit["verification"]["verified"]
        assert commit["message"].startswith("Format the code\n\nCo-authored-by: ada <")
        assert await world.github.changed_files(REPOSITORY, before, after) == ["engine.py"]
        world.github.comment(REPOSITORY, number, "ada", "/gibil format")
        check = await world.closed_check(count=2)
        assert (check.conclusion, world.github.head_sha(REPOSITORY, number)) == ("success", after)
        assert "The tasks changed nothing, so there is no commit." in f"{check.summary}"
        await world.assert_nothing_left()


def test_prettier_changes_the_projects_files_and_not_what_npm_installed(line: CommandLine, egress: str) -> None:
    if shutil.which("node", path="/usr/local/bin:/usr/bin") is None:
        pytest.skip("this host has no node in /usr, and downloading one takes too long: apt-get install nodejs")
    line.repository("web", PRETTIER)  # without a .gitignore
    done = line.gibil("try", "web", "--workflow", "format", "--json", **registries(egress))
    assert done.returncode == 0, done.stderr
    view = json.loads(done.stdout)["commit"]
    assert (view["outcome"], view["commits"], view["files"]) == ("patch", 1, 2), done.stderr
    assert line.bash(view["apply"].replace("git ", "git -c user.name=a -c user.email=a@b.c ", 1)).returncode == 0
    assert (line.here / "web" / "a.js").read_text() == "const x = { a: 1 }\n"
