"""Agents work on pull requests: a real bot and real machines, with a scripted model or a scripted program."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gibil_bot.demo.model_double import ModelDouble, model_double
from gibil_bot.demo.model_script import Say, Script
from gibil_bot.demo.records import CheckRun
from tests.doubles.bot import REPOSITORY, Journey, journey
from tests.doubles.repositories import git

NEEDS_CURL = pytest.mark.skipif(
    shutil.which("curl") is None, reason="curl isn't installed, with which the programs call a model"
)
pytestmark = [pytest.mark.usefixtures("local_machines"), NEEDS_CURL]

FILES = {"engine.py": "POWER = 1\n", "test.sh": "grep -q 'POWER = 3' engine.py || { echo 'POWER is wrong'; exit 1; }\n"}

ASK = """\
curl -sS --fail-with-body "$GIBIL_MODEL_URL/v1/messages" -H "x-api-key: $GIBIL_MODEL_KEY" -H 'anthropic-version: 2023-06-01' \
  -H 'content-type: application/json' \
  -d '{"model": "claude-sonnet-4-5", "max_tokens": 100, "messages": [{"role": "user", "content": "What is next?"}]}'
"""
"""One call of the model in a program of the engine `command`."""


def workflow(command: str, more: str = "") -> str:
    indented = command.replace("\n", "\n          ")
    return f"""\
on: {{command: fix}}
tasks:
  - {{name: test, run: sh test.sh}}
  - name: fix
    if: failure()
    agent:
      engine: command
      prompt: Make the test pass.
      model: claude-sonnet-4-5
      until: test
      rounds: 2
      command: |
          {indented}
{more}
commit: Mend the engine
"""


@asynccontextmanager
async def agents(
    folder: Path,
    workflows: dict[str, str],
    *scripts: Script,
    files: dict[str, str] = FILES,
    **settings: str,
) -> AsyncIterator[tuple[Journey, ModelDouble]]:
    async with model_double(*(scripts or (Script(steps=(Say("Done."),)),))) as model:
        configured = {"GIBIL_MODEL_KEY_ANTHROPIC": model.key, "GIBIL_MODEL_URL_ANTHROPIC": model.url, **settings}
        async with journey(folder, files, workflows=workflows, settings=configured) as world:
            yield world, model


def listening_ports(pid: int) -> int:
    """Return on how many TCP ports a process listens."""
    sockets = {os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir() if each.is_symlink()}
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return sum(row[3] == "0A" and f"socket:[{row[9]}]" in sockets for row in rows)


async def test_a_failing_test_is_made_to_pass_and_the_change_is_committed(tmp_path: Path) -> None:
    command = f"grep -x 'Keep `POWER` a number.' || exit 9; {ASK}\necho; echo I repair it.\nsed -i 's/= 2/= 3/' engine.py"
    async with agents(tmp_path, {"fix.yml": workflow(command)}) as (world, model):
        number = await world.github.open_pull_request(REPOSITORY, "topic", {"engine.py": "POWER = 2\n"}, "ada")
        before = world.github.head_sha(REPOSITORY, number)
        assert listening_ports(world.bot.pid) == 1, "the model proxy listens before a run has an agent"
        world.github.comment(REPOSITORY, number, "ada", "Keep `POWER` a number.\n\n/gibil fix")
        check = await world.closed_check()
        await world.all_published()
        assert listening_ports(world.bot.pid) == 2
        assert check.conclusion == "success", f"{check.summary}\n{check.text}\n{world.bot.text()}"
        assert "The agent made test pass." in f"{check.summary}"
        assert "1 call, " in f"{check.summary}"
        assert world.github.head_sha(REPOSITORY, number) != before
        assert len(model.calls) == 1
        await world.assert_nothing_left()


async def test_what_a_failed_agent_changed_is_stored_as_a_patch(tmp_path: Path) -> None:
    command = "cat >/dev/null; sed -i 's/= 2/= 4/' engine.py; exit 3"
    async with agents(tmp_path, {"fix.yml": workflow(command).replace("rounds: 2", "rounds: 1")}) as (world, _):
        number = await world.github.open_pull_request(REPOSITORY, "topic", {"engine.py": "POWER = 2\n"}, "ada")
        before = world.github.head_sha(REPOSITORY, number)
        world.github.comment(REPOSITORY, number, "ada", "/gibil fix")
        check = await world.closed_check()
        assert check.conclusion == "failure", check.summary
        assert "What the agent changed so far (1 file) is stored with the run as a patch." in f"{check.summary}"
        (folder,) = (world.bot.data_dir / "logs").iterdir()
        assert "+POWER = 4" in (folder / "1.patch").read_text()
        assert world.github.head_sha(REPOSITORY, number) == before


async def test_of_attempts_side_by_side_the_smallest_change_that_passes_is_used(tmp_path: Path) -> None:
    # The machines of attempts differ in their names only.
    command = """\
cat >/dev/null
case $(hostname) in
  *-1) sed -i 's/= 2/= 3/' engine.py; seq 50 >>notes.txt ;;
  *-2) sed -i 's/= 2/= 3/' engine.py ;;
  *) sed -i 's/= 2/= 4/' engine.py ;;
esac
"""
    text = workflow(command).replace("      until: test\n      rounds: 2\n", "      attempts: 3\n      choose: sh test.sh\n")
    text = text.replace("      model: claude-sonnet-4-5\n", "").replace(
        "run: sh test.sh}", "run: sh test.sh, continue-on-error: true}"
    )
    text = text.replace("if: failure()", "if: always()")
    # One copy at a time, besides the run's machine.
    async with agents(tmp_path, {"fix.yml": text}, GIBIL_MAX_MACHINES="2") as (world, _):
        number = await world.github.open_pull_request(REPOSITORY, "topic", {"engine.py": "POWER = 2\n"}, "ada")
        world.github.comment(REPOSITORY, number, "ada", "/gibil fix")
        check = await world.closed_check()
        await world.all_published()
        assert check.conclusion == "success", f"{check.summary}\n{check.text}\n{world.bot.text()}"
        assert "Attempt 2 of 3 was used" in f"{check.summary}"
        (folder,) = (world.bot.data_dir / "logs").iterdir()
        assert len(list(folder.glob("1-*.patch"))) == 3
        await world.assert_nothing_left()


AGENT_TASKS = f"""\
on: {{command: fix}}
tasks:
  - {{name: test, run: sh test.sh}}
  - name: fix
    agent:
      engine: command
      prompt: Make the test pass.
      model: claude-sonnet-4-5
      until: test
      command: |
          cat >/dev/null; {ASK.replace(chr(10), chr(10) + "          ")}
          sed -i 's/= 2/= 3/' engine.py
          echo FLAVOUR=sweet >>"$GITHUB_ENV"
  - {{name: not needed, if: failure(), run: exit 9}}
  - {{name: after, run: 'echo "flavour=$FLAVOUR trust=$GIBIL_TRUST"'}}
commit: Mend the engine
"""
IMPROVE = """\
on: {command: improve}
tasks:
  - {name: improve, agent: {engine: command, prompt: Improve it., command: 'cat >/dev/null; echo "# $GIBIL_TRUST" >>engine.py'}}
commit: Improve the engine
"""
PROBE = """\
on: {command: probe}
secrets: [TOKEN]
tasks:
  - {name: look, run: 'echo "token=[${TOKEN:+set}] trust=$GIBIL_TRUST"'}
"""


async def test_what_agents_committed_gets_no_secrets_until_a_person_pushed_on_top(tmp_path: Path) -> None:
    workflows = {"fix.yml": AGENT_TASKS, "improve.yml": IMPROVE, "probe.yml": PROBE}
    async with agents(tmp_path, workflows, GIBIL_SECRET_TOKEN="a-very-secret-value") as (world, _):
        number = await world.github.open_pull_request(REPOSITORY, "topic", {"engine.py": "POWER = 2\n"}, "ada")

        async def run(command: str) -> CheckRun:
            head = world.github.head_sha(REPOSITORY, number)
            world.github.comment(REPOSITORY, number, "ada", f"/gibil {command}")
            check = await world.seen(
                lambda: next(
                    (
                        each
                        for each in world.github.check_runs(REPOSITORY, head)
                        if each.name == f"gibil / {command}" and each.status == "completed"
                    ),
                    None,
                )
            )
            assert check is not None
            await world.all_published()
            assert check.conclusion == "success", f"{check.summary}\n{check.text}\n{world.bot.text()}"
            return check

        def printed(check: CheckRun, task: int) -> str:
            return (world.bot.data_dir / "logs" / check.external_id / f"{task}.log").read_text()

        check = await run("fix")
        assert "flavour=sweet trust=trusted" in printed(check, 3)
        assert "an earlier task failed" not in f"{check.summary}"
        # The agent may go on with its own work, which others may not push to.
        await run("improve")
        engine = git(world.github._hub.git.path(REPOSITORY), "show", "refs/heads/topic:engine.py")
        assert engine == "POWER = 3\n# untrusted"
        assert "token=[] trust=untrusted" in printed(await run("probe"), 0)
        await world.github.push(REPOSITORY, number, {"README.md": "reviewed\n"})
        assert "token=[set] trust=trusted" in printed(await run("probe"), 0)
        await world.assert_nothing_left()
