"""`gibil demo` shows the whole journey, exits with the right status, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path

import httpx
import pytest

from gibil_bot.demo import demo as demonstration
from gibil_bot.demo import project
from gibil_bot.demo.agent_scene import NO_KEY
from tests.doubles.patience import patient

TOGETHER_S = 110.0


@pytest.fixture
def room() -> Iterator[Path]:
    """Create a temporary directory with a short path: the paths of sockets in it have at most 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="d-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


class Demo:
    """`gibil demo` as a process, read line by line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def until(self, words: str) -> str:
        """Return the next line that contains this text."""
        assert self.process.stdout is not None
        while line := (await self.process.stdout.readline()).decode():
            self.lines.append(line.rstrip())
            if words in line:
                return self.lines[-1]
        raise AssertionError(f"{words!r} was never said:\n" + "\n".join(self.lines))

    async def end(self) -> int:
        assert self.process.stdout is not None
        self.lines += (await self.process.stdout.read()).decode().splitlines()
        return await self.process.wait()

    @property
    def bot_pid(self) -> int:
        line = next(line for line in self.lines if "gibil serve, process" in line)
        return int(line.rpartition(" ")[2].rstrip(")"))


@contextlib.asynccontextmanager
async def running(room: Path, *options: str) -> AsyncIterator[Demo]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(room), "TMPDIR": str(room), "PYTHONUTF8": "1"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gibil_bot", "demo", *options,
        env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        async with asyncio.timeout(patient(TOGETHER_S)):
            yield Demo(process)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.communicate(), patient(40))
        if process.returncode is None:
            process.kill()
            await process.communicate()


def left_behind(room: Path) -> list[str]:
    return [path.name for path in room.iterdir() if path.name.startswith("gibil-demo-")]


def processes_of(room: Path) -> list[str]:
    """Return the command lines of processes that use a demonstration's folder: its bot and its daemon."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and str(room) in (line := (entry / "cmdline").read_bytes().decode(errors="replace")):
                found.append(line)
    return found


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.usefixtures("local_machines")
async def test_a_comment_becomes_a_visible_check_run(room: Path) -> None:
    async with running(room) as demo:
        assert await demo.end() == 0
        text = "\n".join(demo.lines)
        order = [
            "ada commented:", "delivery accepted by the bot: 202", "creating a machine", "machine created in",
            "code cloned in", "task compile: success", "test_seven_has_none", "task unit tests: success", "4000 = 1,6,40",
            "task smoke: success", "machine destroyed in", "gibil[bot] commented:", "where the time went", "total  ",
        ]  # fmt: skip
        places = [text.find(words) for words in order]
        assert -1 not in places, text
        assert places == sorted(places), text
        assert "preparing the root file system" in text
        assert "reacted with" in text  # published in parallel: before or after the machine's creation starts
        times = [float(found[1]) for line in demo.lines if (found := re.match(r" *(\d+\.\d{3}) s ", line))]
        assert times == sorted(times), text
        accepted = next(line for line in demo.lines if "delivery accepted" in line)
        took_s = float(re.search(r"202 in (\d+) ms", accepted)[1]) / 1000  # type: ignore[index]
        assert float(accepted.split()[0]) >= took_s - 0.001, accepted
        assert "check run gibil / test: success — 3 tasks passed" in text
        assert "\x1b" not in text
        assert left_behind(room) == []
        assert processes_of(room) == []
        assert is_gone(demo.bot_pid)


@pytest.mark.usefixtures("local_machines")
async def test_a_mistake_is_found_and_reported(room: Path) -> None:
    async with running(room, "--failing") as demo:
        assert await demo.end() == 1
        text = "\n".join(demo.lines)
        assert "task unit tests: failure" in text
        assert "check run gibil / test: failure" in text
        assert "ValueError: 1/5 does not end in places of sixty" in text.partition("gibil[bot] commented:")[2]
        assert left_behind(room) == []


@pytest.mark.usefixtures("local_machines")
async def test_a_commit_comes_back_verified_and_with_its_co_author(room: Path) -> None:
    async with running(room, "--commit", "--json") as demo:
        assert await demo.end() == 0
        text = "\n".join(demo.lines)
        order = [
            "ada commented:", "/gibil format", "task format: success", "gibil[bot] pushed", "checked and committed in",
            "machine destroyed in", "1 commit pushed to reciprocals", "the commit that came back", "by gibil[bot]   ✓ Verified",
            "Indent with spaces", "Co-authored-by: ada <", "Gibil-Run: ", "changes committed",
        ]  # fmt: skip
        places = [text.find(words) for words in order]
        assert -1 not in places, text
        assert places == sorted(places), text
        commit = json.loads(next(line for line in demo.lines if line.startswith('{"check"')))["commit"]
        assert (commit["verified"], commit["author"], commit["branch"]) == (True, "gibil[bot]", project.BRANCH)
        assert commit["files"] == ["sexagesimal/reciprocals.py", "tests/test_reciprocals.py"]
        assert left_behind(room) == []


@pytest.mark.usefixtures("local_machines")
async def test_an_agent_repairs_what_fails_and_its_verified_commit_passes(room: Path) -> None:
    async with running(room, "--agent", "--json") as demo:
        assert await demo.end() == 0
        text = "\n".join(demo.lines)
        order = [
            "/gibil test", "task unit tests: failure", "check run gibil / test: failure", "/gibil fix",
            "task unit tests: failure", "read: sexagesimal/reciprocals.py", "ran: grep", f"    {NO_KEY}",
            "changed: sexagesimal/reciprocals.py (update)", "-PRIMES = (2, 3)", "+PRIMES = (2, 3, 5)", "agent: PRIMES",
            "gibil: unit tests, after round 1", "task fix: success", "gibil[bot] pushed", "1 commit pushed to reciprocals (0.0",
            "/gibil test", "task unit tests: success", "check run gibil / test: success", "by gibil[bot]   ✓ Verified",
            "Co-authored-by: ada <", "5 calls of the model, ", "2.00 USD (task)", "found none", "task: fix",
        ]  # fmt: skip
        place = 0
        for words in order:
            place = text.find(words, place)
            assert place >= 0, f"{words!r} is missing or at another place:\n{text}"
        view = json.loads(next(line for line in demo.lines if line.startswith('{"check"')))
        assert (view["check"], view["conclusion"], view["commit"]["verified"]) == ("gibil / fix", "success", True)
        assert view["commit"]["files"] == ["sexagesimal/reciprocals.py"]
        agent = view["agent"]
        assert (agent["engine"], agent["calls"], agent["calls_with_key"], agent["key_left_the_bot"]) == ("small", 5, 5, False)
        assert Decimal(agent["usd"]) > 0
        assert left_behind(room) == []
        assert processes_of(room) == []


@pytest.mark.usefixtures("local_machines")
async def test_ctrl_c_while_an_agent_works_stops_and_removes_everything(room: Path) -> None:
    async with running(room, "--agent") as demo:
        await demo.until("read: sexagesimal/reciprocals.py")
        demo.process.send_signal(signal.SIGINT)
        assert await demo.end() == 130
        assert left_behind(room) == []
        assert processes_of(room) == []
        assert is_gone(demo.bot_pid)


@pytest.mark.usefixtures("local_machines")
async def test_ctrl_c_during_a_run_stops_and_removes_everything(room: Path) -> None:
    async with running(room) as demo:
        await demo.until("task unit tests")
        demo.process.send_signal(signal.SIGINT)
        assert await demo.end() == 130
        assert "destroyed: gibil-" in "\n".join(demo.lines)
        assert left_behind(room) == []
        assert processes_of(room) == []
        assert is_gone(demo.bot_pid)


@pytest.mark.usefixtures("local_machines")
async def test_keep_lets_the_demonstration_continue_with_the_printed_commands(room: Path) -> None:
    async with running(room, "--keep") as demo:
        await demo.until("comment again")
        command = (await demo.until("curl -d")).strip()
        assert command.startswith("curl -d '")
        body, _, url = command.removeprefix("curl -d '").partition("' ")
        await demo.until("push a mistake")
        push = (await demo.until("curl -d")).strip()
        await demo.until("/healthz")
        async with httpx.AsyncClient(trust_env=False) as http:
            answer = await http.post(url, content=body)
            assert answer.status_code == 201, answer.text
            assert answer.json()["body"] == json.loads(body)["body"] == "/gibil test"
            await demo.until("machine destroyed in")
            await demo.until("check run gibil / test: success")
            assert (await http.post(url, content=_says("/gibil tset"))).status_code == 201
            shown = await demo.until("is unknown")
            assert all(f"{word}" in shown for word in ("lint", "test", "retest", "cancel", "help"))
            assert (await http.post(url, content=_says("/gibil lint"))).status_code == 201
            assert "●" in await demo.until("check run gibil / lint: neutral")
            mistake, _, place = push.removeprefix("curl -d '").partition("' ")
            assert (await http.post(place, content=mistake)).is_success
            await demo.until("ada pushed")
            await demo.until("AssertionError: 4 != 5")
            await demo.until("check run gibil / push: failure")
        demo.process.send_signal(signal.SIGINT)
        assert await demo.end() == 0  # the first check run succeeded
        assert left_behind(room) == []
        assert processes_of(room) == []
        assert is_gone(demo.bot_pid)


def _says(body: str) -> str:
    return json.dumps({"author": "ada", "body": body})


@pytest.mark.usefixtures("local_machines")
async def test_a_closed_terminal_or_pipe_leaves_nothing_behind(room: Path) -> None:
    """As with `gibil demo --keep | tee log`: Ctrl-C also ends `tee`, and then the terminal is closed."""
    async with running(room, "--keep") as demo:
        await demo.until("task unit tests")
        demo.process.stdout._transport.close()  # type: ignore[union-attr]
        demo.process.send_signal(signal.SIGINT)
        for _ in range(200):  # during the cleanup, which takes a second or two
            with contextlib.suppress(TimeoutError, ProcessLookupError):
                os.kill(demo.process.pid, signal.SIGHUP)  # send_signal would take the exit status from asyncio
                await asyncio.wait_for(demo.process.wait(), 0.05)
                break
        assert await demo.process.wait() in (130, 141), "interrupted, or a closed pipe: whichever was noticed first"
        assert left_behind(room) == []
        assert processes_of(room) == []
        assert is_gone(demo.bot_pid)


async def test_a_bot_that_does_not_start_is_reported(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = room / "python"
    script.write_text("#!/bin/sh\necho 'no such luck' >&2\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(tempfile, "tempdir", str(room))
    out = io.StringIO()
    assert await demonstration.run_demo(failing=False, keep=False, out=out) == 1
    assert "the bot ended before it was listening; its last log lines: no such luck" in out.getvalue()
    assert left_behind(room) == []


async def test_a_run_that_does_not_end_is_aborted_with_the_bots_log(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(room))
    monkeypatch.setattr(demonstration, "DEADLINE_S", 0.0)
    out = io.StringIO()
    assert await demonstration.run_demo(failing=False, keep=False, out=out) == 1
    assert "was not completed within 0 s" in out.getvalue()
    assert "listening on http://127.0.0.1:" in out.getvalue().partition("The end of the bot's log:")[2]
    assert left_behind(room) == []


async def test_a_cancelled_demonstration_leaves_nothing_behind(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(room))
    out = io.StringIO()
    showing = asyncio.create_task(demonstration.run_demo(failing=False, keep=False, out=out))
    async with asyncio.timeout(patient(TOGETHER_S)):
        while "ada commented" not in out.getvalue() and not showing.done():
            await asyncio.sleep(0.02)  # another task's output: there is no event to wait for
    showing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await showing
    assert left_behind(room) == []


def test_the_projects_own_tests_pass_and_fail_with_the_mistake(tmp_path: Path) -> None:
    for failing in (False, True):
        folder = tmp_path / str(failing)
        for path, content in (project.base_files() | project.changed_files(failing=failing, untidy=True)).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        tests = subprocess.run(
            [sys.executable, "-m", "unittest", "discover", "-s", "tests", "-t", "."],
            cwd=folder, capture_output=True, text=True, timeout=patient(60), check=False,
        )  # fmt: skip
        assert (tests.returncode != 0) == failing, tests.stderr
        assert "Ran 17 tests" in tests.stderr
