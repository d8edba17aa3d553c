"""`from gibil_bot import machines`: programs use machines, and none is left."""

from __future__ import annotations

import asyncio
import dataclasses
import pydoc
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gibil_bot import machines
from gibil_bot.config import Settings, load_settings
from gibil_bot.errors import GibilError, MachineNotFound, NameTaken, UsageError
from gibil_bot.machines.service import MachineService, open_machines
from gibil_bot.model import Machine
from gibil_bot.providers.local.limits import Groups, find_hierarchies
from gibil_bot.providers.local.paths import LocalPaths, groups_prefix
from tests.doubles.machines import end_daemon, lend_base_tree, shared_folder
from tests.doubles.patience import patient

needs_machines = pytest.mark.usefixtures("local_machines")


@pytest.fixture
async def settings(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Settings]:
    data_dir = tmp_path / "data"
    await asyncio.to_thread(lend_base_tree, data_dir, shared_folder(tmp_path_factory))
    yield load_settings({"GIBIL_DATA_DIR": str(data_dir)})
    await end_daemon(LocalPaths(data_dir))


def left_of(settings: Settings) -> tuple[list[str], list[str]]:
    """Return folders and control groups of machines."""
    paths = LocalPaths(settings.data_dir)
    return sorted(path.name for path in paths.machines.iterdir()), Groups(find_hierarchies(), groups_prefix(paths)).leftovers()


@needs_machines
async def test_a_machine_exists_for_the_block_and_is_destroyed_at_its_end(settings: Settings) -> None:
    async with machines.create(name="m", env={"WHO": "ada"}, settings=settings) as m:
        result = await m.run("echo hello $WHO; echo oops >&2; exit 4")
        assert (result.stdout, result.stderr, result.exit_code, result.timed_out) == ("hello ada\n", "oops\n", 4, False)
        assert await m.wait_tasks() == []
        async with machines.connect(settings=settings) as connected:
            assert [machine.name for machine in await connected.list()] == ["m"]
            with pytest.raises(NameTaken):
                async with connected.create(name="m"):
                    pass
        async with machines.open_machine("m", settings=settings) as same:
            assert (await same.run("echo again")).stdout == "again\n"
    with pytest.raises(MachineNotFound):
        async with machines.open_machine("m", settings=settings):
            pass
    assert left_of(settings) == ([], [])


@needs_machines
async def test_a_machine_destroyed_during_the_login_is_not_found(settings: Settings) -> None:
    async with machines.create(name="m", settings=settings), open_machines(settings) as opened:
        provider = opened.factory.provider

        class DestroyedAfterLookup:
            """Another process destroys the machine right after the lookup."""

            async def get(self, name: str) -> Machine | None:
                found = await provider.get(name)
                await provider.destroy(name)
                return found

        there: Any = DestroyedAfterLookup()
        late = MachineService(settings, dataclasses.replace(opened.factory, provider=there), "ada")
        with pytest.raises(MachineNotFound, match="'m' not found"):
            await late.open("m")


@needs_machines
async def test_an_error_or_a_cancellation_in_the_block_destroys_the_machine(settings: Settings) -> None:
    with pytest.raises(ZeroDivisionError):
        async with machines.create(settings=settings):
            raise ZeroDivisionError
    assert left_of(settings) == ([], [])
    inside = asyncio.Event()

    async def work() -> None:
        async with machines.create(settings=settings) as m:
            inside.set()
            await m.run("sleep 600")

    task = asyncio.create_task(work())
    async with asyncio.timeout(patient(20)):
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert left_of(settings) == ([], [])


@needs_machines
async def test_fifty_concurrent_machines_are_created_used_and_destroyed(settings: Settings) -> None:
    async def explore(connected: machines.Connected, number: int) -> str:
        async with connected.create(name=f"many-{number}", env={"NUMBER": str(number)}) as m:
            return (await m.run("echo $NUMBER >/root/mine; cat /root/*")).stdout

    # The memory promised to all of them must exist.
    small = dataclasses.replace(settings, max_memory_mb=256, max_machines=50)
    async with machines.connect(settings=small) as connected:
        output = await asyncio.gather(*(explore(connected, number) for number in range(50)))
        assert output == [f"{number}\n" for number in range(50)]
        assert await connected.list() == []
    assert left_of(settings) == ([], [])


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Create a checkout whose set-up takes a moment, and whose `make test` writes only to its own folder."""
    folder = tmp_path / "project"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "here").write_text("sub\n")
    (folder / ".gibil.yml").write_text("packages: []\ntasks: [{name: first, run: 'sleep 0.2; touch first'}]\n")
    for arguments in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        who = ["-c", "user.name=Ada", "-c", "user.email=ada@example.com"]
        subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True)
    return folder


@needs_machines
async def test_commands_start_in_the_code_once_it_exists(settings: Settings, project: Path) -> None:
    async with machines.create(repo=project, settings=settings) as m:
        assert (await m.run("pwd; cat sub/here")).stdout == "/root/project\nsub\n"
        assert (await m.run("pwd; cat here", cwd="sub")).stdout == "/root/project/sub\nsub\n"
        assert (await m.run("pwd", cwd="/tmp")).stdout == "/tmp\n"
        absent = await m.run("pwd", cwd="/no/such folder")
        assert (absent.exit_code, absent.stdout) == (1, "")
        assert "/no/such folder" in absent.stderr
        assert (await m.run("cat", stdin=b"given")).stdout == "given"
        job = await m.start("pwd", cwd="sub")
        output: list[bytes] = []
        assert await m.follow(job, lambda stream, data: output.append(data)) == 0
        assert b"".join(output) == b"/root/project/sub\n"
        with pytest.raises(UsageError, match="empty"):
            await m.run(" ")
        with pytest.raises(UsageError, match="empty"):
            await m.start("")
    async with machines.create(repo=str(project), wait="tasks", settings=settings) as m:
        assert [task.status for task in await m.tasks()] == ["success"]
        assert (await m.run("test -e first")).exit_code == 0
    assert left_of(settings) == ([], [])


@needs_machines
async def test_a_machine_that_does_not_become_ready_raises_the_reason_and_leaves_nothing(
    settings: Settings, project: Path
) -> None:
    (project / ".gibil.yml").write_text("runtime: {python: '3'}\nenv: {PATH: /nowhere}\n")
    subprocess.run(["git", "-C", str(project), "-c", "user.name=A", "-c", "user.email=a@b", "commit", "-qam", "x"], check=True)
    with pytest.raises(GibilError) as caught:
        async with machines.create(name="m", repo=project, settings=settings):
            pass
    assert caught.value.code == "PROVISION"
    assert "machine m didn't become ready: set up (exit code" in caught.value.message
    assert "\n" not in caught.value.message
    assert left_of(settings) == ([], [])


@needs_machines
async def test_a_duration_is_a_text_or_minutes_or_a_timedelta(settings: Settings) -> None:
    async with machines.create(ttl=10, wait=None, settings=settings) as m:
        assert minutes(m) == 10
        await m.extend("30s")
        await m.extend(1.5)
        await m.extend(timedelta(minutes=3))
        assert minutes(m) == 15


def minutes(live: machines.MachineSession) -> float:
    return (live.machine.expires_at - live.machine.created_at).total_seconds() / 60


async def test_the_machine_limit_holds_for_programs(settings: Settings, local_machines: None) -> None:
    settings = dataclasses.replace(settings, max_machines=1)
    async with machines.connect(settings=settings) as connected, connected.create(name="m"):
        with pytest.raises(UsageError) as caught:
            async with connected.create():
                pass
        assert caught.value.code == "MACHINE_LIMIT"
    assert left_of(settings) == ([], [])


def test_dir_and_help_show_the_api() -> None:
    assert set(machines.__all__) <= set(dir(machines))
    assert not [name for name in dir(machines) if not name.startswith("__") and name not in machines.__all__]
    shown = "".join(pydoc.plain(pydoc.render_doc(machines)).split())  # long signatures are wrapped since Python 3.13
    for words in ("create(*,name", "asyncwithmachines.create(", "classMachineSession", "open_machine(name", "wait:"):
        assert words in shown


async def test_invalid_arguments_are_rejected_before_a_machine_is_created(tmp_path: Path) -> None:
    settings = load_settings({"GIBIL_DATA_DIR": str(tmp_path / "data")})
    wrong: dict[str, Any]
    for wrong in (
        {"name": "No"},
        {"ttl": "1s"},
        {"size": "huge"},
        {"env": {"A-B": "1"}},
        {"repo": "absent/"},
        {"ttl": 0.5},
        {"ttl": float("nan")},
        {"ttl": True},
        {"ttl": [1]},
        {"wait": "forever"},
    ):
        with pytest.raises(UsageError):
            async with machines.create(settings=settings, **wrong):
                pass
    assert not (tmp_path / "data" / "local").exists()


def test_importing_the_package_or_the_sdk_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom gibil_bot import machines\n"
        "assert 'asyncio' not in sys.modules, 'at import'\n"
        "machines.create\n"
        "print([name for name in ('asyncssh', 'githubkit', 'hcloud', 'starlette', 'uvicorn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
