"""`gibil try`: the bot's run of a local checkout, before a push."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

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


async def gibil(folder: Path, *arguments: str) -> tuple[int, str, str]:
    environment = {**ENVIRONMENT, "GIBIL_DATA_DIR": str(folder.parent / "data")}
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


async def test_a_run_with_nothing_to_do_is_neutral_and_no_failure(checkout: Path) -> None:
    status, out, err = await gibil(checkout, "-w", "lint", "--json")
    result = json.loads(out)
    assert (status, result["conclusion"]) == (0, "neutral"), err
    assert [(task["status"], task["exit_status"]) for task in result["tasks"]] == [("skipped", 0)]
    assert "found no linter that this project is set up for" in err
