"""`gibil try`: the bot's run of a local checkout, before a push."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gibil_bot.demo import agent_scene
from gibil_bot.demo.model_double import ModelDouble, model_double
from gibil_bot.demo.model_script import Read, Run, Say, Script, Step, Write
from gibil_bot.providers.local.provider import LocalProvider
from tests.doubles import prefork
from tests.doubles.machines import lent_data_dir
from tests.doubles.patience import patient

pytestmark = pytest.mark.usefixtures("local_machines")

GIBIL_YML = (
    "tasks:\n  - {name: one, run: 'cat word.txt; test \"$(cat word.txt)\" = good'}\n"
    "  - {name: two, run: 'git status --porcelain'}\n"
)
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("GIBIL_", "HCLOUD_"))}


@pytest.fixture
async def checkout(tmp_path: Path) -> AsyncIterator[Path]:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "word.txt").write_text("good\n")
    (folder / ".gibil.yml").write_text(GIBIL_YML)
    git = ["git", "-C", str(folder), "-c", "user.name=Ada", "-c", "user.email=ada@example.com"]
    for arguments in (["init", "-q"], ["add", "--all"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    async with lent_data_dir(tmp_path):
        yield folder


async def gibil(folder: Path, *arguments: str, **settings: str) -> tuple[int, str, str]:
    environment = {**ENVIRONMENT, "GIBIL_DATA_DIR": str(folder.parent / "data"), **settings}
    done = await asyncio.to_thread(prefork.run, ("try", str(folder), *arguments), env=environment, timeout=patient(60))
    return done.returncode, done.stdout, done.stderr


async def nothing_left(folder: Path) -> bool:
    provider = LocalProvider(folder.parent / "data")
    try:
        return await provider.list_machines() == []
    finally:
        await provider.close()


async def test_the_committed_head_is_run(checkout: Path) -> None:
    (checkout / "word.txt").write_text("bad, and not committed\n")
    status, _, shown = await gibil(checkout)
    assert status == 0, shown
    assert "test: success" in shown
    assert await nothing_left(checkout)


async def test_a_condition_on_the_environment_sees_the_tasks_environment(checkout: Path) -> None:
    (checkout / ".gibil.yml").write_text(
        "env: {MODE: fast}\n"
        "tasks:\n"
        '  - {name: says, run: \'echo PAGE=made >>"$GITHUB_ENV"; echo x=1 >>"$GITHUB_OUTPUT"\'}\n'
        "  - {name: file, if: env.MODE == 'fast', run: 'true'}\n"
        "  - {name: earlier, if: env.PAGE == 'made', run: 'true'}\n"
        "  - {name: own, if: env.MODE == 'slow', env: {MODE: slow}, run: 'true'}\n"
        "  - {name: absent, if: env.PAGES, run: 'true'}\n"
    )
    subprocess.run(
        ["git", "-C", str(checkout), "-c", "user.name=A", "-c", "user.email=a@b.c", "commit", "-qam", "x"], check=True
    )
    status, out, shown = await gibil(checkout, "--json")
    assert status == 0, shown
    tasks = {task["name"]: task["status"] for task in json.loads(out)["tasks"]}
    assert tasks == dict.fromkeys(("says", "file", "earlier", "own"), "success") | {"absent": "skipped"}


async def test_dirty_includes_uncommitted_changes_and_new_files_without_changing_the_checkout(checkout: Path) -> None:
    (checkout / "word.txt").write_text("bad\n")
    (checkout / "new.txt").write_text("new\n")
    before = subprocess.run(["git", "-C", str(checkout), "status", "--porcelain"], check=True, capture_output=True).stdout
    status, out, shown = await gibil(checkout, "--dirty", "--json")
    assert status == 1
    result = json.loads(out)
    assert result["conclusion"] == "failure"
    assert [task["status"] for task in result["tasks"]] == ["failure", "skipped"]
    assert "bad" in shown
    after = subprocess.run(["git", "-C", str(checkout), "status", "--porcelain"], check=True, capture_output=True).stdout
    assert after == before
    refs = subprocess.run(["git", "-C", str(checkout), "for-each-ref"], check=True, capture_output=True).stdout.decode()
    assert "gibil" not in refs


async def test_a_workflow_file_with_inputs_can_be_tried(checkout: Path) -> None:
    workflow = checkout.parent / "shout.yml"
    workflow.write_text(
        "name: Shout\non: {command: shout}\ninputs:\n  word: {required: true}\n"
        "tasks:\n  - {name: say, run: 'echo \"<$GIBIL_INPUT_WORD>\"'}\n"
    )
    status, _, shown = await gibil(checkout, "-w", str(workflow), "--input", "word=a b; false")
    assert status == 0, shown
    assert "<a b; false>" in shown
    status, out, _ = await gibil(checkout, "-w", str(workflow), "--json")
    assert status == 2
    assert "word" in json.loads(out)["error"]


async def test_blocked_connections_end_a_tasks_log_without_secrets(checkout: Path) -> None:
    workflow = checkout.parent / "reach.yml"
    workflow.write_text("""
name: Reach
on: {command: reach}
tasks:
  - name: first
    run: |
      ask() { exec 3<>/dev/tcp/127.0.0.1/3128; printf 'CONNECT %s HTTP/1.1\\r\\n\\r\\n' "$1" >&3; cat <&3 >/dev/null; }
      for endpoint in 10.9.8.7:443 10.9.8.7:443 127.0.0.2:80; do ask $endpoint; done
      printf unfinished
  - {name: second, run: 'true'}
""")
    status, _, shown = await gibil(checkout, "-w", str(workflow))
    assert status == 0, shown
    assert shown.count("GIBIL_EGRESS_ALLOW=10.9.8.7:443\n") == 1
    assert shown.count("127.0.0.2:80") == 1, "another task's blocked connections aren't repeated"
    first = shown[shown.index("▶ first") : shown.index("▶ second")]
    assert "unfinished\ngibil: blocked because they are not public: 10.9.8.7:443; the operator can allow" in first
    assert "gibil: requested from the proxy, but it is the machine itself: 127.0.0.2:80;" in first


@pytest.mark.parametrize("arguments", [("-w", "absent"), ("--input", "novalue"), ("--input", "x=y")])
async def test_a_usage_error_is_one_line_and_status_2(checkout: Path, arguments: tuple[str, ...]) -> None:
    status, out, shown = await gibil(checkout, *arguments)
    assert (status, out) == (2, "")
    assert len(shown.strip().splitlines()) == 1


async def test_a_folder_without_a_commit_is_rejected(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    status, _, shown = await gibil(empty)
    assert status == 2
    assert "git" in shown


async def test_ctrl_c_destroys_the_machine_and_prints_the_results(checkout: Path) -> None:
    (checkout / ".gibil.yml").write_text("tasks:\n  - {name: long, run: 'echo begun; sleep 300'}\n")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gibil_bot", "try", str(checkout), "--dirty",
        env={**ENVIRONMENT, "GIBIL_DATA_DIR": str(checkout.parent / "data")},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    async with asyncio.timeout(patient(60)):
        while b"begun" not in await process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        _, rest = await process.communicate()
    assert process.returncode == 130
    assert b"cancelled" in rest
    assert await nothing_left(checkout)


@asynccontextmanager
async def agents(folder: Path, *steps: Step) -> AsyncIterator[tuple[ModelDouble, dict[str, str]]]:
    """Serve a model that repairs word.txt, and yield it with the settings for the demonstration's small agent."""
    engines = folder.parent / "engines"
    agent_scene.write_engine(engines)
    repair = (Read("word.txt"), Write("word.txt", "good\n"), Say("It is good again."))
    async with model_double(Script(steps=steps or repair)) as model:
        yield model, agent_scene.settings(model, engines)


async def test_an_agent_repairs_what_fails_within_the_budgets_of_the_day(checkout: Path) -> None:
    (checkout / "word.txt").write_text("bad\n")
    async with agents(checkout) as (model, settings):
        status, out, shown = await gibil(checkout, "-w", "fix", "--dirty", "--json", **settings)
        assert status == 0, shown
        for words in (
            "read: word.txt",
            "agent: It is good again.",
            "fix (small, claude-sonnet-4-5); 3 calls, 3,150 tokens, 0.0096 USD",
        ):
            assert words in shown, shown
        view = json.loads(out)
        agent = next(task["agent"] for task in view["tasks"] if task["agent"])
        assert (agent["calls"], agent["ended"], agent["exceeded"]) == (3, "The agent made test pass.", None)
        assert "+good" in Path(view["commit"]["patch"]).read_text()
        assert model.key not in out + shown

        # The day's sum is in the database, which a bot of this data directory uses, too.
        status, _, shown = await gibil(checkout, "-w", "fix", "--dirty", **settings, GIBIL_BUDGET_PERSON="0.01")
        assert status == 1, shown
        assert "today (UTC) is 0.01 USD" in shown
        assert len(model.calls) == 3
    assert await nothing_left(checkout)


async def test_a_review_is_of_what_differs_from_the_base_branch_and_is_printed(checkout: Path) -> None:
    (checkout / "word.txt").write_text("bad\n")
    findings = {"summary": "One error.", "findings": [{"path": "word.txt", "line": 1, "text": "It has to be good."}]}
    write = Run(f"echo {shlex.quote(json.dumps(findings))} >/root/.gibil/agents/0/1/findings.json")
    async with agents(checkout, write, Say("Done.")) as (model, settings):
        status, out, shown = await gibil(checkout, "-w", "review", "--dirty", "--json", **settings)
        assert status == 0, shown
        prompt = model.calls[0].body["messages"][0]["content"]
    assert "-good\n+bad\n" in prompt
    assert "isn't a pull request yet" in prompt
    assert "It has to be good." in shown.partition("the review:")[2]
    (review,) = json.loads(out)["reviews"]
    assert "word.txt" in review


@pytest.mark.parametrize(
    ("workflow", "settings", "problem"),
    [
        ("fix", {}, "no key of a model's vendor is set: set GIBIL_MODEL_KEY_ANTHROPIC"),
        ("explain", {"GIBIL_MODEL_KEY_ANTHROPIC": "k"}, "explain is about a failed run of a pull request"),
        ("fix", {"GIBIL_MODEL_KEY_ANTHROPIC": "k", "GIBIL_ENGINE": "cluade"}, "did you mean 'claude'?"),
    ],
)
async def test_agents_that_can_not_work_are_rejected_before_a_machine_is_created(
    checkout: Path, workflow: str, settings: dict[str, str], problem: str
) -> None:
    status, _, shown = await gibil(checkout, "-w", workflow, **settings)
    assert status in (2, 6)
    assert problem in shown
    assert "creating a machine" not in shown


async def test_ctrl_c_while_an_agent_works_ends_it(checkout: Path) -> None:
    (checkout / "word.txt").write_text("bad\n")
    async with agents(checkout) as (model, settings):
        model.fault("silence", after=1)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gibil_bot", "try", str(checkout), "--dirty", "-w", "fix",
            env={**ENVIRONMENT, "GIBIL_DATA_DIR": str(checkout.parent / "data"), **settings},
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(patient(60)):
            await model.wait_for(lambda: len(model.calls) == 2)
            process.send_signal(signal.SIGINT)
            _, rest = await process.communicate()
    assert process.returncode == 130, rest
    assert b"read: word.txt" in rest
    assert b"fix: cancelled" in rest
    assert await nothing_left(checkout)


async def test_kill_minus_nine_leaves_no_machine(checkout: Path) -> None:
    (checkout / ".gibil.yml").write_text("tasks:\n  - {name: long, run: 'echo begun; sleep 300'}\n")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gibil_bot", "try", str(checkout), "--dirty",
        env={**ENVIRONMENT, "GIBIL_DATA_DIR": str(checkout.parent / "data")},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    async with asyncio.timeout(patient(60)):
        while b"begun" not in await process.stderr.readline():
            pass
        process.kill()
        await process.communicate()
        while not await nothing_left(checkout):
            await asyncio.sleep(0.02)  # the daemon notices by itself: there is no event to wait for


FORMAT = """\
on: {command: tidy}
tasks:
  - run: |
      sed -i s/good/better/ word.txt
      git -c user.name=A -c user.email=a@b.c commit -qam 'better words'
      echo new >added.txt && echo log >build.log
commit: {message: Tidy, paths: ["*.txt"], to: branch, branch: tidied, pull-request: {title: Tidied}}
"""


def add_workflow(checkout: Path, text: str) -> list[str]:
    git = ["git", "-C", str(checkout), "-c", "user.name=Ada", "-c", "user.email=ada@example.com"]
    (checkout / ".gibil" / "workflows").mkdir(parents=True, exist_ok=True)
    (checkout / ".gibil" / "workflows" / "tidy.yml").write_text(text)
    subprocess.run([*git, "add", "--all"], check=True)
    subprocess.run([*git, "commit", "-qm", "a workflow"], check=True)
    return git


async def test_the_changes_of_a_workflow_with_commit_are_a_patch_that_applies(checkout: Path) -> None:
    git = add_workflow(checkout, FORMAT)
    status, out, shown = await gibil(checkout, "-w", "tidy", "--json")
    assert status == 0, shown
    commit = json.loads(out)["commit"]
    assert commit | {"bytes": 0, "patch": "", "apply": ""} == {
        "outcome": "patch", "to": "branch", "branch": "tidied", "pull_request": "Tidied", "commits": 2, "files": 2, "bytes": 0,
        "left_out": ["build.log"], "problems": [], "patch": "", "apply": "",
    }  # fmt: skip
    assert (
        "commit: 2 commits with 2 changed files would be pushed to the branch tidied, with the pull request 'Tidied'" in shown
    )
    assert "left out, because `paths` doesn't include them: build.log" in shown
    assert f"apply them here: git -C {checkout} am {commit['patch']}\n" in shown
    assert Path(commit["patch"]).stat().st_mode & 0o777 == 0o600
    subprocess.run([*git, *commit["apply"].split()[3:]], check=True, capture_output=True)
    assert (checkout / "word.txt").read_text() == "better\n"
    assert (checkout / "added.txt").read_text() == "new\n"
    log = subprocess.run([*git, "log", "--format=%s", "-2"], check=True, capture_output=True, text=True).stdout
    assert log == "Tidy\nbetter words\n"


async def test_changes_that_the_bot_would_reject_fail_the_trial(checkout: Path) -> None:
    add_workflow(checkout, "on: {command: tidy}\ntasks: [{run: 'echo >>.gibil.yml; echo x >AGENTS.md'}]\ncommit: Tidy\n")
    status, out, shown = await gibil(checkout, "-w", "tidy", "--json")
    assert status == 1, shown
    commit = json.loads(out)["commit"]
    assert (commit["outcome"], commit["patch"], commit["apply"]) == ("rejected", None, None)
    assert "commit: the changes would be rejected:" in shown
    assert len(commit["problems"]) == 2
    assert all(f"  {problem}" in shown for problem in commit["problems"])
    assert {".gibil.yml", "AGENTS.md"} <= {word.strip(",'\"") for problem in commit["problems"] for word in problem.split()}


async def test_the_patch_of_uncommitted_files_applies_to_them(checkout: Path) -> None:
    git = add_workflow(checkout, "on: {command: tidy}\ntasks: [{run: 'sed -i s/bad/fine/ word.txt'}]\ncommit: Tidy\n")
    (checkout / "word.txt").write_text("bad\n")
    status, out, shown = await gibil(checkout, "-w", "tidy", "--dirty", "--json")
    assert status == 0, shown
    apply = json.loads(out)["commit"]["apply"].split()
    assert apply[:4] == ["git", "-C", str(checkout), "apply"]
    subprocess.run([*git, *apply[3:]], check=True)
    assert (checkout / "word.txt").read_text() == "fine\n"


async def test_a_run_with_nothing_to_do_is_neutral_and_no_failure(checkout: Path) -> None:
    status, out, err = await gibil(checkout, "-w", "lint", "--json")
    result = json.loads(out)
    assert (status, result["conclusion"]) == (0, "neutral"), err
    assert [(task["status"], task["exit_status"]) for task in result["tasks"]] == [("skipped", 0)]
    assert "found no linter that this project is set up for" in err
