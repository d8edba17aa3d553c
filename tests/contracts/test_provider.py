"""The contract of every Provider (ports.Provider). To test another provider, add a fixture to `KITS`."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta

import asyncssh
import pytest

from gibil_bot.errors import GibilError, MachineNotFound, NameTaken, UsageError
from tests.doubles.machines import Lodging, guest_lodging, open_connection, public
from tests.doubles.patience import patient
from tests.doubles.tools import needs

Kit = Callable[[pytest.TempPathFactory], AbstractAsyncContextManager[Lodging]]
KITS: dict[str, Kit] = {"local": guest_lodging}

pytestmark = pytest.mark.usefixtures("local_machines")


@pytest.fixture(params=sorted(KITS))
async def lodging(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lodging]:
    async with KITS[request.param](tmp_path_factory) as lodging:
        yield lodging


async def test_probe_reports_capabilities_and_leaves_no_machine(lodging: Lodging) -> None:
    capabilities = await lodging.provider.probe()
    assert capabilities.tier in ("root", "user", "vm")
    assert capabilities.memory_limit in ("cgroup-v2", "cgroup-v1", "polled", "hardware")
    assert 0 < capabilities.forged_in_s < 60
    assert await lodging.provider.list_machines() == []


async def test_a_machine_is_created_as_requested(lodging: Lodging) -> None:
    before = datetime.now(UTC)
    machine = await lodging.provider.create(lodging.spec("ada", ttl_s=300, labels={"run": "1"}))
    assert (machine.name, machine.provider, machine.labels["run"]) == ("ada", lodging.provider.name, "1")
    assert machine.endpoint.host_key.split()[:2] == public(lodging.host_key).split()[:2]
    assert before <= machine.created_at <= datetime.now(UTC)
    assert abs((machine.expires_at - machine.created_at).total_seconds() - 300) < 2
    result = await lodging.run(machine, "hostname; id -u; echo $HOME; pwd; echo $LANG")
    assert result.stdout == "ada\n0\n/root\n/root\nC.UTF-8\n"


async def test_git_and_python_are_installed(lodging: Lodging) -> None:
    machine = await lodging.provider.create(lodging.spec("tools"))
    result = await lodging.run(machine, "git --version && python3 -c 'import json; print(json.dumps([1]))'")
    assert result.exit_status == 0, result.stderr
    assert str(result.stdout).endswith("[1]\n")


async def test_creating_an_existing_machine_returns_it(lodging: Lodging) -> None:
    spec = lodging.spec("twin")
    first, *others = await asyncio.gather(*(lodging.provider.create(spec) for _ in range(4)))
    assert all(other == first for other in others)
    assert await lodging.provider.list_machines() == [first]


async def test_a_name_with_another_key_is_rejected(lodging: Lodging) -> None:
    await lodging.provider.create(lodging.spec("mine"))
    stranger = asyncssh.generate_private_key("ssh-ed25519")
    with pytest.raises(NameTaken, match="mine"):
        await lodging.provider.create(lodging.spec("mine", authorized_key=public(stranger)))


@pytest.mark.parametrize("name", ["", "..", "a/b", "UPPER", "-dash", "dash-", "x" * 64, "white space"])
async def test_a_name_that_is_not_a_dns_label_is_rejected(lodging: Lodging, name: str) -> None:
    with pytest.raises(UsageError):
        await lodging.provider.create(lodging.spec(name))
    assert await lodging.provider.list_machines() == []


async def test_an_unreadable_key_is_rejected_and_nothing_is_left(lodging: Lodging) -> None:
    with pytest.raises(GibilError, match="key"):
        await lodging.provider.create(lodging.spec("keyless", authorized_key="ssh-ed25519 nonsense"))
    assert await lodging.provider.list_machines() == []
    assert await lodging.provider.destroy("keyless") is False


async def test_get_and_list_return_existing_machines(lodging: Lodging) -> None:
    assert await lodging.provider.get("one") is None
    one = await lodging.provider.create(lodging.spec("one"))
    two = await lodging.provider.create(lodging.spec("two", owner="others"))
    assert await lodging.provider.get("one") == one
    assert await lodging.provider.list_machines() == [one, two]
    assert await lodging.provider.list_machines("others") == [two]


async def test_extend_moves_the_expiry(lodging: Lodging) -> None:
    await lodging.provider.create(lodging.spec("long", ttl_s=60))
    later = datetime.now(UTC) + timedelta(hours=2)
    assert (await lodging.provider.extend("long", later)).expires_at == later
    found = await lodging.provider.get("long")
    assert found is not None
    assert found.expires_at == later
    with pytest.raises(MachineNotFound, match="nobody"):
        await lodging.provider.extend("nobody", later)


async def test_destroy_removes_everything_and_can_be_repeated(lodging: Lodging) -> None:
    machine = await lodging.provider.create(lodging.spec("brief"))
    async with lodging.connect(machine) as connection:
        running = asyncio.ensure_future(connection.run("sleep 600"))
        done = await asyncio.gather(*(lodging.provider.destroy("brief") for _ in range(3)))
        assert sorted(done) == [False, False, True]
        async with asyncio.timeout(patient(20)):
            with contextlib.suppress(asyncssh.Error, OSError):
                assert (await running).exit_status is None
            await connection.wait_closed()
    assert await lodging.provider.get("brief") is None
    assert await lodging.provider.destroy("brief") is False
    assert await lodging.provider.destroy("never-was") is False
    with pytest.raises((OSError, asyncssh.Error)):
        await open_connection(machine, lodging.key)


async def test_a_name_is_free_again_after_destroy(lodging: Lodging) -> None:
    first = await lodging.provider.create(lodging.spec("again"))
    await lodging.run(first, "echo old > /root/trace")
    await lodging.provider.destroy("again")
    second = await lodging.provider.create(lodging.spec("again"))
    assert (await lodging.run(second, "test -e /root/trace")).exit_status == 1


@pytest.mark.parametrize("turns", [0, 1, 2, 5, 20, 60])
async def test_destroy_removes_everything_that_a_cancelled_create_left(lodging: Lodging, turns: int) -> None:
    task = asyncio.ensure_future(lodging.provider.create(lodging.spec("half")))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await lodging.provider.destroy("half")
    assert await lodging.provider.list_machines() == []
    assert await lodging.provider.get("half") is None


async def test_an_expired_machine_is_destroyed_without_a_request(lodging: Lodging) -> None:
    machine = await lodging.provider.create(lodging.spec("moth", ttl_s=600))
    await lodging.provider.extend("moth", datetime.now(UTC) + timedelta(seconds=0.2))
    async with asyncio.timeout(patient(20)):
        while await lodging.provider.get("moth"):
            await asyncio.sleep(0.02)
    with pytest.raises((OSError, asyncssh.Error)):
        await open_connection(machine, lodging.key)


async def test_sweep_leaves_unexpired_machines_alone(lodging: Lodging) -> None:
    machine = await lodging.provider.create(lodging.spec("alive"))
    assert await lodging.provider.sweep("tests") == []
    assert (await lodging.run(machine, "true")).exit_status == 0


async def test_sweep_leaves_machines_in_creation_alone(lodging: Lodging) -> None:
    made = asyncio.Event()

    async def sweep() -> None:
        while not made.is_set():
            assert await lodging.provider.sweep("tests") == []

    async def make(who: str) -> None:
        for number in range(6):
            machine = await lodging.provider.create(lodging.spec(f"{who}-{number}", memory_mb=256))
            assert (await lodging.run(machine, "true")).exit_status == 0

    sweeps = asyncio.gather(*(sweep() for _ in range(4)))
    try:
        await asyncio.gather(make("ada"), make("bob"), make("eve"))
    finally:
        made.set()
        await sweeps


async def test_only_the_right_key_can_log_in_and_only_as_root(lodging: Lodging) -> None:
    machine = await lodging.provider.create(lodging.spec("closed"))
    with pytest.raises(asyncssh.PermissionDenied):
        await open_connection(machine, asyncssh.generate_private_key("ssh-ed25519"))
    with pytest.raises(asyncssh.PermissionDenied):
        await open_connection(machine, lodging.key, username="nobody")
    wrong = asyncssh.generate_private_key("ssh-ed25519").convert_to_public()
    with pytest.raises(asyncssh.HostKeyNotVerifiable):
        await open_connection(machine, lodging.key, known_hosts=([wrong], [], []))


# SSH on a machine behaves alike with every provider.


async def test_exit_statuses_and_both_streams_are_returned(lodging: Lodging) -> None:
    machine = await lodging.provider.create(lodging.spec("shell"))
    async with lodging.connect(machine) as connection:
        result = await connection.run("echo out; echo err >&2; exit 7")
        assert (result.stdout, result.stderr, result.exit_status) == ("out\n", "err\n", 7)
        killed = await connection.run("kill -9 $$")
        assert killed.exit_signal is not None
        assert killed.exit_signal[0] == "KILL"
        assert (await connection.run("/no/such/command")).exit_status == 127


async def test_stdin_arrives_completely(lodging: Lodging) -> None:
    machine = await lodging.provider.create(lodging.spec("stdin"))
    data = bytes(range(256)) * 16 * 1024  # 4 MB: more than any pipe or window buffers
    result = await lodging.run(machine, "cat", input=data, encoding=None)
    assert result.stdout == data
    slow = await lodging.run(machine, "sleep 0.3; sha256sum | cut -c1-4; wc -c", input=data, encoding=None)
    assert slow.exit_status == 0


async def test_output_is_complete_at_the_exit_and_background_processes_do_not_delay_it(lodging: Lodging) -> None:
    machine = await lodging.provider.create(lodging.spec("stdout"))
    async with lodging.connect(machine) as connection:
        for _ in range(5):
            result = await connection.run("head -c 3000000 /dev/zero; head -c 70000 /dev/zero >&2", encoding=None)
            assert (len(result.stdout or b""), len(result.stderr or b"")) == (3000000, 70000)
        began = asyncio.get_running_loop().time()
        result = await connection.run("sleep 30 & echo hi")
        assert (result.stdout, result.exit_status) == ("hi\n", 0)
        assert asyncio.get_running_loop().time() - began < patient(15)


@needs("ps")
async def test_closing_the_channel_ends_the_process(lodging: Lodging) -> None:
    machine = await lodging.provider.create(lodging.spec("killer"))
    async with lodging.connect(machine) as connection:
        async with connection.create_process("echo up; sleep 600 & sleep 601") as process:
            assert await process.stdout.readline() == "up\n"
            process.close()
        async with asyncio.timeout(patient(20)):
            while (await connection.run("ps -eo args | grep -c '[s]leep 60'")).stdout != "0\n":
                await asyncio.sleep(0.05)


@needs("ps")
async def test_a_lost_connection_ends_the_process(lodging: Lodging) -> None:
    machine = await lodging.provider.create(lodging.spec("cut"))
    async with lodging.connect(machine) as connection:
        process = await connection.create_process("echo up; exec sleep 600")
        assert await process.stdout.readline() == "up\n"
    async with lodging.connect(machine) as connection, asyncio.timeout(patient(20)):
        while (await connection.run("ps -eo args | grep -c '[s]leep 600'")).stdout != "0\n":
            await asyncio.sleep(0.05)


@needs("ps")
async def test_detached_processes_outlive_their_session(lodging: Lodging) -> None:
    machine = await lodging.provider.create(lodging.spec("daemon"))
    await lodging.run(machine, "setsid -f sleep 600 </dev/null >/dev/null 2>&1")
    assert (await lodging.run(machine, "ps -eo args | grep -c '[s]leep 600'")).stdout == "1\n"


async def test_signals_reach_the_process(lodging: Lodging) -> None:
    machine = await lodging.provider.create(lodging.spec("signals"))
    async with lodging.connect(machine) as connection, asyncio.timeout(patient(30)):
        process = await connection.create_process("trap 'echo got it; exit 3' USR1; echo up; while :; do sleep 0.05; done")
        assert await process.stdout.readline() == "up\n"
        process.send_signal("USR1")
        result = await process.wait()
        assert (result.stdout, result.exit_status) == ("got it\n", 3)


async def test_a_terminal_can_be_resized_and_closed(lodging: Lodging) -> None:
    machine = await lodging.provider.create(lodging.spec("terminal"))
    async with lodging.connect(machine) as connection, asyncio.timeout(patient(30)):
        process = await connection.create_process(
            "stty size; read line; stty size; tty", term_type="xterm", term_size=(101, 31)
        )
        assert (await process.stdout.readline()).strip() == "31 101"
        process.change_terminal_size(77, 22)
        process.stdin.write("\n")
        result = await process.wait()
        assert "22 77" in str(result.stdout)
        assert "/dev/pts/" in str(result.stdout)
        shell = await connection.create_process(term_type="xterm", term_size=(80, 24))
        shell.stdin.write("echo $((40+2)) $TERM; exit 5\n")
        result = await shell.wait()
        assert "42 xterm" in str(result.stdout)
        assert result.exit_status == 5


async def test_environment_requests_with_valid_names_are_accepted(lodging: Lodging) -> None:
    machine = await lodging.provider.create(lodging.spec("env"))
    env = {"GREETING": "grüß dich $HOME `x`", "LD_PRELOAD": "/x.so", "BAD-NAME": "1"}
    result = await lodging.run(machine, "python3 -c 'import json, os; print(json.dumps(dict(os.environ)))'", env=env)
    seen = json.loads(str(result.stdout))
    assert seen["GREETING"] == env["GREETING"]
    assert "LD_PRELOAD" not in seen
    assert "BAD-NAME" not in seen


async def test_a_thousand_concurrent_commands_are_slow_but_correct(lodging: Lodging) -> None:
    machine = await lodging.provider.create(lodging.spec("crowd", pids=128))
    async with lodging.connect(machine) as connection, asyncio.timeout(patient(120)):
        results = await asyncio.gather(*(connection.run(f"echo {number}") for number in range(1000)))
    assert [result.stdout for result in results] == [f"{number}\n" for number in range(1000)]
    assert {result.exit_status for result in results} == {0}


async def test_an_overlong_command_is_rejected_and_the_machine_survives(lodging: Lodging) -> None:
    machine = await lodging.provider.create(lodging.spec("wordy"))
    async with lodging.connect(machine) as connection:
        result = await connection.run("echo " + "x" * 230_000)
        assert result.exit_status not in (0, None)
        assert "long" in str(result.stderr)
        assert (await connection.run("echo fine")).stdout == "fine\n"


async def test_ssh_allows_no_file_transfer_and_no_port_forwarding(lodging: Lodging) -> None:
    machine = await lodging.provider.create(lodging.spec("narrow"))
    async with lodging.connect(machine) as connection:
        with pytest.raises((asyncssh.Error, OSError)):
            await connection.start_sftp_client()
        with pytest.raises((asyncssh.Error, OSError)):
            await connection.open_connection("127.0.0.1", 22)


async def test_close_keeps_machines_except_tethered_ones(lodging: Lodging) -> None:
    await lodging.provider.create(lodging.spec("free"))
    bound = await lodging.provider.create(lodging.spec("bound", tethered=True))
    assert await lodging.provider.create(lodging.spec("bound", tethered=True)) == bound
    assert (await lodging.run(bound, "echo here")).stdout == "here\n"
    assert await lodging.provider.get("bound") == bound
    await lodging.provider.close()
    async with asyncio.timeout(patient(20)):
        while await lodging.provider.get("bound"):
            await asyncio.sleep(0.02)
    assert await lodging.provider.get("free")
