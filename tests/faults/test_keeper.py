"""Whatever process dies, machines are destroyed: no process or mount remains, and the next process removes leftovers."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncssh
import msgspec
import pytest

from gibil_bot.errors import ProviderError, Unavailable
from gibil_bot.model import MachineSpec
from gibil_bot.providers.local import daemon_start
from gibil_bot.providers.local.control_protocol import ControlConnection, Request
from gibil_bot.providers.local.limits import Groups, find_hierarchies
from gibil_bot.providers.local.paths import PROTOCOL, DaemonRecord, groups_prefix, read_daemon, write_daemon
from gibil_bot.providers.local.provider import LocalProvider
from tests.doubles.machines import LocalLodging, alive, end_daemon, local_lodging, processes_with, shared_folder, until
from tests.doubles.patience import patient

pytestmark = pytest.mark.usefixtures("local_machines")


@pytest.fixture
async def lodging(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalLodging]:
    async with local_lodging(tmp_path / "data", shared_folder(tmp_path_factory)) as lodging:
        yield lodging


async def busy_machine(lodging: LocalLodging, name: str, **more: Any) -> str:
    """Start a plain job, one with setsid and a double-forked daemon on a machine; return the mark in their command lines."""
    machine = await lodging.provider.create(lodging.spec(name, **more))
    mark = f"{os.getpid()}.{abs(hash((str(lodging.data_dir), name))) % 10**9}"
    command = f"sleep 1{mark} & setsid -f sleep 2{mark} </dev/null >/dev/null 2>&1; (setsid sleep 3{mark} & ) >/dev/null 2>&1"
    await lodging.run(machine, f"{command}; exit 0")
    await until(lambda: len(processes_with(mark)) == 3, "the jobs run")
    return mark


def host_mounts(lodging: LocalLodging) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if str(lodging.data_dir) in line or "machines/" in line]


def folders(lodging: LocalLodging) -> list[str]:
    return sorted(path.name for path in lodging.paths.machines.iterdir())


def groups(lodging: LocalLodging) -> list[str]:
    return Groups(find_hierarchies(), groups_prefix(lodging.paths)).leftovers()


async def test_destroying_leaves_no_process_folder_mount_or_group(lodging: LocalLodging) -> None:
    mark = await busy_machine(lodging, "gone")
    assert await lodging.provider.destroy("gone") is True
    assert processes_with(mark) == []
    assert (folders(lodging), host_mounts(lodging), groups(lodging)) == ([], [], [])


@pytest.mark.parametrize("victim", ["daemon", "fork server", "init"])
async def test_killing_the_daemon_fork_server_or_init_kills_every_process_of_the_machine(
    lodging: LocalLodging, victim: str
) -> None:
    mark = await busy_machine(lodging, "chained")
    pids = {"daemon": lodging.daemon_pid(), "fork server": lodging.fork_server_pid(), "init": lodging.init_pid("chained")}
    os.kill(pids[victim], signal.SIGKILL)
    await until(lambda: processes_with(mark) == [], "every job is dead", within_s=10)
    await until(lambda: not alive(pids["init"]), "PID 1 is dead", within_s=10)
    assert host_mounts(lodging) == []
    if victim == "daemon":
        await until(lambda: not alive(pids["fork server"]), "the fork server is dead", within_s=10)
        assert folders(lodging) == ["chained"]
        assert await lodging.provider.list_machines() == []
        assert await lodging.provider.sweep("tests") == ["chained"]
    else:
        await until(lambda: folders(lodging) == [], "the daemon deleted the folder", within_s=10)
        async with asyncio.timeout(patient(10)):
            while await lodging.provider.get("chained"):  # the folder is deleted shortly before the name
                await asyncio.sleep(0.01)
    assert (folders(lodging), groups(lodging)) == ([], [])
    again = await lodging.provider.create(lodging.spec("chained"))
    assert (await lodging.run(again, "echo new")).stdout == "new\n"


async def test_a_new_daemon_removes_what_the_killed_one_left(lodging: LocalLodging) -> None:
    mark = await busy_machine(lodging, "orphan")
    os.kill(lodging.daemon_pid(), signal.SIGKILL)
    fresh = await lodging.provider.create(lodging.spec("fresh"))
    assert processes_with(mark) == []
    assert folders(lodging) == ["fresh"]
    assert [machine.name for machine in await lodging.provider.list_machines()] == ["fresh"]
    assert (await lodging.run(fresh, "true")).exit_status == 0


async def test_a_new_daemon_deletes_the_files_whose_deletion_a_killed_daemon_began(lodging: LocalLodging) -> None:
    lodging.paths.trash.mkdir()
    (lodging.paths.trash / "old.0123/disk/deep").mkdir(parents=True)
    (lodging.paths.trash / "old.0123/disk/deep/file").write_text("x")
    await lodging.provider.create(lodging.spec("fresh"))
    await until(lambda: list(lodging.paths.trash.iterdir()) == [], "the trash is empty", within_s=10)


async def test_destroying_does_not_wait_for_the_deletion_of_files(lodging: LocalLodging) -> None:
    machine = await lodging.provider.create(lodging.spec("full"))
    folder = lodging.paths.machine("full")
    for number in range(200):  # as if its jobs had written them, whatever kind of disk it has
        (folder / f"layer/{number}").mkdir(parents=True)
        for name in range(50):
            (folder / f"layer/{number}/{name}").touch()
    await lodging.provider.destroy(machine.name)
    assert folders(lodging) == []
    os.kill(lodging.daemon_pid(), signal.SIGKILL)
    left = [path.name for path in lodging.paths.trash.iterdir()]
    assert [name.split(".")[0] for name in left] == ["full"], "destroying returned before its 10,000 files were deleted"


async def test_destroy_after_the_daemon_was_killed_removes_the_folder_without_a_new_daemon(lodging: LocalLodging) -> None:
    await busy_machine(lodging, "left")
    os.kill(lodging.daemon_pid(), signal.SIGKILL)
    await lodging.provider.destroy("left")
    assert folders(lodging) == []
    assert await lodging.provider.destroy("left") is False
    assert not alive(lodging.daemon_pid())


async def test_open_connections_end_when_the_daemon_is_killed(lodging: LocalLodging) -> None:
    machine = await lodging.provider.create(lodging.spec("linked"))
    async with lodging.connect(machine) as connection, asyncio.timeout(patient(20)):
        running = asyncio.ensure_future(connection.run("sleep 600"))
        await connection.run("true")
        os.kill(lodging.daemon_pid(), signal.SIGKILL)
        with contextlib.suppress(asyncssh.Error, OSError):
            assert (await running).exit_status is None
        await connection.wait_closed()


_OWNER = """
import asyncio, sys
from pathlib import Path
import msgspec
from gibil_bot.providers.local.provider import LocalProvider
from gibil_bot.model import MachineSpec

async def main() -> None:
    provider = LocalProvider(Path(sys.argv[1]))
    await provider.create(msgspec.json.decode(sys.stdin.buffer.readline(), type=MachineSpec))
    print("forged", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def created_by_another_process(lodging: LocalLodging, spec: MachineSpec) -> asyncio.subprocess.Process:
    owner = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _OWNER,
        str(lodging.data_dir),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    assert owner.stdin is not None
    assert owner.stdout is not None
    owner.stdin.write(msgspec.json.encode(spec) + b"\n")
    async with asyncio.timeout(patient(60)):
        assert await owner.stdout.readline() == b"forged\n"
    return owner


async def test_a_tethered_machine_is_destroyed_when_its_creator_is_killed(lodging: LocalLodging) -> None:
    owner = await created_by_another_process(lodging, lodging.spec("tethered", tethered=True))
    machine = await lodging.provider.get("tethered")
    assert machine is not None
    mark = await busy_machine(lodging, "tethered")
    assert await lodging.provider.get("tethered") == machine
    owner.kill()
    await owner.wait()
    await until(lambda: processes_with(mark) == [] and folders(lodging) == [], "the machine is destroyed")
    async with asyncio.timeout(patient(10)):
        while await lodging.provider.get("tethered"):
            await asyncio.sleep(0.01)


async def test_an_untethered_machine_survives_when_its_creator_is_killed(lodging: LocalLodging) -> None:
    owner = await created_by_another_process(lodging, lodging.spec("survivor"))
    machine = await lodging.provider.get("survivor")
    assert machine is not None
    await lodging.run(machine, "echo state > /root/state")
    owner.kill()
    await owner.wait()
    assert await LocalProvider(lodging.data_dir).get("survivor") == machine
    assert (await lodging.run(machine, "cat /root/state")).stdout == "state\n"


async def test_a_machine_without_connections_ends_at_its_expiry(lodging: LocalLodging) -> None:
    mark = await busy_machine(lodging, "mayfly", ttl_s=2)
    await lodging.provider.close()
    await until(lambda: processes_with(mark) == [] and folders(lodging) == [], "the machine is destroyed", within_s=15)


async def test_thirty_concurrent_machines_work_and_none_is_left(lodging: LocalLodging) -> None:
    names = [f"herd-{number}" for number in range(30)]
    specs = [lodging.spec(name, memory_mb=256) for name in names]  # the memory promised to all of them must exist
    machines = await asyncio.gather(*(lodging.provider.create(spec) for spec in specs))
    results = await asyncio.gather(*(lodging.run(machine, "hostname") for machine in machines))
    assert [result.stdout for result in results] == [f"{name}\n" for name in names]
    inits = [lodging.init_pid(name) for name in names]
    assert all(await asyncio.gather(*(lodging.provider.destroy(name) for name in names)))
    assert [pid for pid in inits if alive(pid)] == []
    assert (await lodging.provider.list_machines(), folders(lodging), host_mounts(lodging), groups(lodging)) == ([], [], [], [])


async def test_a_daemon_without_machines_ends_and_a_new_one_starts_when_needed(lodging: LocalLodging) -> None:
    impatient = LocalProvider(lodging.data_dir, daemon_idle_s=0.3)
    await impatient.create(lodging.spec("first"))
    pid = lodging.daemon_pid()
    assert alive(pid)
    await impatient.destroy("first")
    await until(lambda: not alive(pid), "the daemon ended")
    assert await impatient.list_machines() == []
    assert not alive(lodging.daemon_pid())
    await impatient.create(lodging.spec("second"))
    assert lodging.daemon_pid() != pid


async def test_without_a_daemon_no_machine_exists_and_none_is_started(tmp_path: Path) -> None:
    provider = LocalProvider(tmp_path / "never")
    assert await provider.list_machines() == []
    assert await provider.get("x") is None
    assert await provider.destroy("x") is False
    assert await provider.sweep("tests") == []
    await provider.close()
    assert not (tmp_path / "never" / "local" / "keeper.json").exists()


async def test_providers_that_start_a_daemon_concurrently_share_one(lodging: LocalLodging) -> None:
    providers = [LocalProvider(lodging.data_dir, daemon_idle_s=60) for _ in range(5)]
    machines = await asyncio.gather(*(one.create(lodging.spec(f"m{number}")) for number, one in enumerate(providers)))
    assert len(await lodging.provider.list_machines()) == len(machines) == 5
    daemons = [pid for pid in processes_with(str(lodging.data_dir)) if pid != os.getpid()]
    assert daemons == [lodging.daemon_pid()]


async def test_concurrent_prestarts_start_one_daemon_that_creations_use(lodging: LocalLodging) -> None:
    code = (
        "import sys, pathlib; from gibil_bot.providers.local import daemon_start; daemon_start.begin(pathlib.Path(sys.argv[1]))"
    )
    words = [sys.executable, "-c", code, str(lodging.data_dir)]
    starters = [await asyncio.create_subprocess_exec(*words) for _ in range(4)]
    machine = await lodging.provider.create(lodging.spec("first"))
    assert [await starter.wait() for starter in starters] == [0, 0, 0, 0]
    assert (await lodging.run(machine, "true")).exit_status == 0
    daemons = [pid for pid in processes_with(str(lodging.data_dir)) if pid != os.getpid()]
    assert daemons == [lodging.daemon_pid()]
    with (lodging.paths.local / "starting.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the daemon doesn't hold it for ever


async def test_a_daemon_that_cannot_start_is_reported_by_the_creation(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no folder\n")
    daemon_start.begin(tmp_path / "data")
    with pytest.raises(Unavailable, match="cannot create the folder"):
        await LocalProvider(tmp_path / "data").create(LocalLodging(LocalProvider(tmp_path / "data")).spec("never"))


async def test_a_daemon_of_another_version_is_replaced_when_it_has_no_machines(lodging: LocalLodging) -> None:
    await lodging.provider.probe()
    old = read_daemon(lodging.paths)
    assert old is not None
    write_daemon(lodging.paths, msgspec.structs.replace(old, version="older"))
    await lodging.provider.create(lodging.spec("new"))
    assert lodging.daemon_pid() != old.pid
    await until(lambda: not alive(old.pid), "the old daemon has ended")


async def test_a_daemon_of_another_version_with_machines_is_used_if_its_protocol_is_the_same(lodging: LocalLodging) -> None:
    machine = await lodging.provider.create(lodging.spec("old"))
    old = read_daemon(lodging.paths)
    assert old is not None
    write_daemon(lodging.paths, msgspec.structs.replace(old, version="older"))
    await lodging.provider.create(lodging.spec("new"))
    assert lodging.daemon_pid() == old.pid
    write_daemon(lodging.paths, msgspec.structs.replace(old, protocol=PROTOCOL + 1))
    with pytest.raises(ProviderError, match=f"protocol {PROTOCOL + 1}.*{old.pid}"):
        await lodging.provider.create(lodging.spec("newer"))
    write_daemon(lodging.paths, old)
    assert await lodging.provider.get("old") == machine


async def test_a_daemon_of_another_protocol_without_machines_is_replaced(lodging: LocalLodging) -> None:
    await lodging.provider.probe()
    old = read_daemon(lodging.paths)
    assert old is not None
    write_daemon(lodging.paths, msgspec.structs.replace(old, version="older", protocol=PROTOCOL + 1))
    await lodging.provider.create(lodging.spec("new"))
    assert lodging.daemon_pid() != old.pid


async def test_the_daemon_holds_no_descriptor_of_its_starter(lodging: LocalLodging) -> None:
    """A pipe that the daemon holds open would make `gibil create | cat` hang."""
    owner = await created_by_another_process(lodging, lodging.spec("detached"))
    owner.kill()
    assert owner.stdout is not None
    async with asyncio.timeout(patient(10)):
        assert await owner.stdout.read() == b""
    await owner.wait()
    assert os.getsid(lodging.daemon_pid()) == lodging.daemon_pid()
    log = lodging.paths.local / "keeper.log"
    assert log.stat().st_mode & 0o077 == 0
    assert log.read_text() == ""


async def test_a_folder_of_another_user_is_rejected_with_a_remedy(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can create a folder of another user")
    (tmp_path / "local").mkdir()
    os.chown(tmp_path / "local", 12345, 12345)
    with pytest.raises(Unavailable, match="12345") as caught:
        await LocalProvider(tmp_path).probe()
    assert "GIBIL_DATA_DIR" in caught.value.remedies[0]


async def test_a_file_instead_of_the_data_directory_is_reported(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(Unavailable, match="data"):
        await LocalProvider(tmp_path / "data").probe()


async def test_a_stopped_daemon_answers_requests_in_progress(lodging: LocalLodging) -> None:
    mark = await busy_machine(lodging, "last")
    daemon = read_daemon(lodging.paths)
    assert isinstance(daemon, DaemonRecord)
    line = await ControlConnection.open(daemon.socket)
    assert (await line.ask(Request(verb="ping"))).count == 1
    await line.close()
    await end_daemon(lodging.paths)
    assert processes_with(mark) == []
    assert folders(lodging) == []
