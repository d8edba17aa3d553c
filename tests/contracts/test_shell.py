"""The contract of every Shell (ports.Shell): commands, files, connections. Jobs are in test_shell_jobs.py."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncssh
import pytest

from gibil_bot.errors import CommandTimeout, MachineLost, SSHError, UsageError
from gibil_bot.model import Endpoint, Result
from gibil_bot.ssh.client import SSHShell, connect
from tests.contracts.shells import Far, alive
from tests.doubles import sshd
from tests.doubles.cable import cable
from tests.doubles.patience import patient


@pytest.fixture
def folder() -> Iterator[Path]:
    """Create a directory with `home` in it. Its path is short, because a Unix socket's path has at most 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="gibil-", dir="/tmp"))
    (path / "home").mkdir()
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize(
    ("script", "status"), [("true", 0), ("false", 1), ("exit 77", 77), ("kill -9 $$", 137), ("kill $$", 143)]
)
async def test_a_command_returns_its_exit_status(shell: SSHShell, script: str, status: int) -> None:
    assert (await shell.run(script)).exit_status == status


async def test_a_commands_output_is_exact_and_its_streams_are_separate(shell: SSHShell) -> None:
    every_byte = "".join(f"\\{number:03o}" for number in range(256))
    heard: dict[str, bytes] = {"stdout": b"", "stderr": b""}

    def listen(stream: str, data: bytes) -> None:
        heard[stream] += data

    result = await shell.run(f"printf '{every_byte}'; printf 'caf\\303\\251\\n' >&2", on_output=listen)
    assert (result.stdout, result.stderr) == (bytes(range(256)), "café\n".encode())
    assert heard == {"stdout": result.stdout, "stderr": result.stderr}


async def test_a_command_gets_its_stdin_and_environment(shell: SSHShell) -> None:
    odd = "quote ' \" $HOME `id` \\ \n second line\tüñ\x01\x81end "
    stdin = secrets.token_bytes(300_000)
    result = await shell.run('printf %s "$ODD" >&2; cat', env={"ODD": odd, "e": "1"}, stdin=stdin)
    assert result.stderr.decode() == odd
    assert result.stdout == stdin


async def test_a_commands_environment_appears_in_no_argv(shell: SSHShell) -> None:
    token = secrets.token_hex(16)
    command = asyncio.create_task(shell.run("sh -c 'echo \"${#TOKEN}\"; sleep 0.5'", env={"TOKEN": token}))
    await asyncio.sleep(0.2)
    assert await alive(shell, token) == 0
    assert (await command).stdout == b"32\n"


async def test_an_environment_that_shells_cannot_hold_is_rejected(shell: SSHShell) -> None:
    for env in ({"A B": "x"}, {"A;id": "x"}, {"A": "\0"}):
        with pytest.raises(UsageError):
            await shell.run("true", env=env)


async def test_a_failing_output_callback_does_not_break_the_connection(shell: SSHShell) -> None:
    def broken(stream: str, data: bytes) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await shell.run("echo x", on_output=broken)
    assert (await shell.run("echo y")).stdout == b"y\n"


@pytest.mark.parametrize(
    "escape", ["sleep {}", "setsid sleep {} & sleep {}", "(setsid sleep {} &) ; sleep {}", "exec sleep {}"]
)
async def test_a_timeout_kills_the_whole_process_tree(shell: SSHShell, escape: str) -> None:
    marker = f"30000.{secrets.randbelow(10**9)}"
    with pytest.raises(CommandTimeout, match=r"did not finish a command within 0\.3 s") as caught:
        await shell.run(escape.format(marker, marker), timeout_s=0.3)
    assert isinstance(caught.value, TimeoutError)
    assert await alive(shell, marker) == 0
    assert (await shell.run("echo on")).stdout == b"on\n"


async def test_a_command_cancelled_at_any_moment_is_killed(shell: SSHShell) -> None:
    marker = f"30000.{secrets.randbelow(10**9)}"
    for delay in (0.0, 0.001, 0.002, 0.003, 0.005, 0.02):
        command = asyncio.create_task(shell.run(f"setsid sleep {marker} & sleep {marker}"))
        await asyncio.sleep(delay)
        command.cancel()
        with pytest.raises(asyncio.CancelledError):
            await command
        assert await alive(shell, marker) == 0, f"cancelled after {delay} s"


async def test_a_signal_reaches_all_processes_of_a_tagged_command_and_no_others(shell: SSHShell) -> None:
    marker, tag = f"30000.{secrets.randbelow(10**9)}", f"command-{secrets.token_hex(8)}"
    up = {"INT": asyncio.Event(), "KILL": asyncio.Event(), "other": asyncio.Event()}

    def start(name: str, script: str) -> asyncio.Task[Result]:
        return asyncio.create_task(shell.run(script, tag=f"{tag}{name}", on_output=lambda stream, data: up[name].set()))

    script = f"env -i sleep {marker} & setsid sleep {marker} & echo up; wait"
    interrupted = start("INT", "trap 'exit 7' INT; echo up; while :; do sleep 0.05; done")
    killed, other = start("KILL", script), start("other", "echo up; sleep 60")
    async with asyncio.timeout(patient(20)):
        for event in up.values():
            await event.wait()
    await shell.signal(f"{tag}INT", "INT")
    await shell.signal(f"{tag}KILL", "KILL")
    assert (await interrupted).exit_status == 7
    assert (await killed).exit_status == 137
    assert await alive(shell, marker) == 0
    assert not other.done()
    other.cancel()
    with pytest.raises(asyncio.CancelledError):
        await other


async def test_a_tag_must_be_a_plain_name(shell: SSHShell) -> None:
    with pytest.raises(UsageError):
        await shell.run("true", tag="a; id")
    with pytest.raises(UsageError):
        await shell.signal("a'b", "INT")


async def test_a_background_process_does_not_delay_its_command(shell: SSHShell) -> None:
    began = time.monotonic()
    result = await shell.run("sleep 60 & echo done")
    assert (result.stdout, result.exit_status) == (b"done\n", 0)
    assert time.monotonic() - began < patient(10)


async def test_a_hundred_commands_share_one_connection(shell: SSHShell) -> None:
    results = await asyncio.gather(*(shell.run(f"echo {number}; exit {number % 7}") for number in range(100)))
    assert [(int(result.stdout), result.exit_status) for result in results] == [(n, n % 7) for n in range(100)]


async def test_twenty_megabytes_arrive_exactly(shell: SSHShell) -> None:
    script = "i=0; while [ $i -lt 20 ]; do i=$((i+1)); head -c 1000000 /dev/zero | tr '\\0' \"$((i % 10))\"; done"
    result = await shell.run(script, most_bytes=32 * 1024 * 1024)
    wanted = b"".join(b"%d" % (number % 10) * 1_000_000 for number in range(1, 21))
    assert hashlib.sha256(result.stdout).digest() == hashlib.sha256(wanted).digest()


async def test_a_lost_connection_is_an_error(far: Far) -> None:
    async with cable(far.endpoint, far.folder) as line:
        shell = await far.connect(line.endpoint)
        command = asyncio.create_task(shell.run("echo ready; sleep 30", on_output=lambda stream, data: line.cut()))
        with pytest.raises(MachineLost):
            await command
        with pytest.raises(MachineLost):
            await shell.run("true")
        with pytest.raises(MachineLost):
            await shell.start(far.job(far.name("late"), "true"))
        await shell.close()


async def test_a_file_arrives_completely_with_its_mode(far: Far, shell: SSHShell) -> None:
    content = os.urandom(3_000_001)

    async def blocks() -> AsyncIterator[bytes]:
        for start in range(0, len(content), 70_000):
            yield content[start : start + 70_000]

    sources: tuple[bytes | AsyncIterator[bytes], ...] = (content, b"", blocks())
    for number, source in enumerate(sources):
        path = f"{far.home}/it's a file {number}"
        await shell.put(path, source, mode=0o750)
        result = await shell.run('stat -c %a "$P"; cat "$P"', env={"P": path}, most_bytes=32 * 1024 * 1024)
        assert result.stdout == b"750\n" + (b"" if source == b"" else content)


async def test_an_incomplete_upload_changes_nothing(far: Far, shell: SSHShell) -> None:
    path = f"{far.home}/f"
    await shell.put(path, b"before")

    async def breaks_off() -> AsyncIterator[bytes]:
        yield b"x" * 100_000
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await shell.put(path, breaks_off())
    for bad in (f"{far.home}/no/such/folder", far.home):
        with pytest.raises(SSHError, match="cannot write"):
            await shell.put(bad, b"content")
    result = await shell.run(f"cd {far.home}; cat f; ls -A | grep gibil- || true")
    assert result.stdout == b"before"


async def test_an_upload_on_a_lost_connection_changes_nothing(far: Far, shell: SSHShell) -> None:
    async with cable(far.endpoint, far.folder) as line:
        doomed = await far.connect(line.endpoint)

        async def cut_in_the_middle() -> AsyncIterator[bytes]:
            yield b"x" * 100_000
            await asyncio.sleep(0.1)
            line.cut()
            yield b"y" * 100_000

        with pytest.raises(MachineLost):
            await doomed.put(f"{far.home}/f", cut_in_the_middle())
        await doomed.close()
    assert (await shell.run(f"ls {far.home}/f")).exit_status != 0


async def test_a_wrong_host_key_is_rejected(far: Far) -> None:
    _, other_key = sshd.new_key()
    endpoint = Endpoint(
        host_key=other_key,
        username=far.endpoint.username,
        host=far.endpoint.host,
        port=far.endpoint.port,
        unix_path=far.endpoint.unix_path,
    )
    began = time.monotonic()
    with pytest.raises(SSHError, match="another host"):
        await connect(endpoint, far.client_key)
    assert time.monotonic() - began < patient(5)  # immediately: waiting doesn't make the key right


async def test_a_wrong_client_key_is_rejected(far: Far) -> None:
    other_key, _ = sshd.new_key()
    with pytest.raises(SSHError, match="rejects the key"):
        await connect(far.endpoint, other_key)


async def test_no_login_is_attempted_on_a_wrong_host(folder: Path) -> None:
    logins: list[str] = []
    async with sshd.inside(folder / "home", on_login=logins.append) as server:
        wrong = Endpoint(host_key=sshd.new_key()[1], unix_path=server.endpoint.unix_path)
        with pytest.raises(SSHError):
            await connect(wrong, server.client_key)
        assert logins == []
        await (await connect(server.endpoint, server.client_key)).close()
        assert logins == ["root"]


async def test_a_booting_machine_is_waited_for(folder: Path) -> None:
    if reason := sshd.why_no_openssh():
        pytest.skip(reason)
    port = sshd.free_port()
    keys = sshd.new_key(), sshd.new_key()
    endpoint = Endpoint(host_key=keys[1][1], username=sshd.user_name(), host="127.0.0.1", port=port)
    connecting = asyncio.create_task(connect(endpoint, keys[0][0], timeout_s=20))
    await asyncio.sleep(0.3)
    assert not connecting.done()
    async with sshd.openssh(folder / "home", port=port, keys=keys):
        shell = await connecting
        assert (await shell.run("echo up")).stdout == b"up\n"
        await shell.close()


async def test_a_machine_that_never_answers_is_an_error() -> None:
    _, host_key = sshd.new_key()
    key, _ = sshd.new_key()
    with pytest.raises(MachineLost, match="does not answer"):
        await connect(Endpoint(host_key=host_key, host="127.0.0.1", port=sshd.free_port()), key, timeout_s=0.5)

    hung_up = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        hung_up.set()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    began = time.monotonic()
    with pytest.raises(MachineLost, match="does not answer"):
        await connect(Endpoint(host_key=host_key, host="127.0.0.1", port=port), key, timeout_s=0.5)
    assert time.monotonic() - began < patient(5)
    await asyncio.wait_for(hung_up.wait(), patient(5))
    server.close()
    await server.wait_closed()


async def test_commands_beyond_the_servers_limit_wait_their_turn(folder: Path) -> None:
    if reason := sshd.why_no_openssh():
        pytest.skip(reason)
    async with sshd.openssh(folder / "home", max_sessions=3) as server:
        shell = await connect(server.endpoint, server.client_key)
        results = await asyncio.gather(*(shell.run(f"echo {number}; sleep 0.05") for number in range(12)))
        assert [int(result.stdout) for result in results] == list(range(12))
        await shell.close()


class _Clearing(asyncssh.SSHServer):
    """Accepts every login, and rejects the first sessions, as sshd does while it cleans up ended ones."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals

    def begin_auth(self, username: str) -> bool:
        return False

    def session_requested(self) -> asyncssh.SSHServerSession[str] | bool:
        self.refusals -= 1
        return False if self.refusals >= 0 else _Done()


class _Done(asyncssh.SSHServerSession[str]):
    def connection_made(self, chan: asyncssh.SSHServerChannel[str]) -> None:
        self._channel = chan

    def exec_requested(self, command: str) -> bool:
        return True

    def session_started(self) -> None:
        self._channel.write("done")
        self._channel.exit(0)


async def test_a_session_rejected_during_clean_up_is_requested_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(folder / "s")
    host_key, host_public = sshd.new_key()
    servers = iter((_Clearing(3), _Clearing(10**6)))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    keys = [asyncssh.import_private_key(host_key)]
    async with asyncssh.listen(sock=listener, server_factory=lambda: next(servers), server_host_keys=keys):
        shell = await connect(Endpoint(host_key=host_public, unix_path=path), sshd.new_key()[0])
        assert (await shell.run("true")).stdout == b"done"
        await shell.close()

        monkeypatch.setattr("gibil_bot.ssh.connection._RELEASE_S", 0.2)
        shell = await connect(Endpoint(host_key=host_public, unix_path=path), sshd.new_key()[0])
        with pytest.raises(SSHError, match="doesn't run any command"):
            await shell.run("true")
        await shell.close()


class _Ending(asyncssh.SSHServer):
    """Accepts every login and command, and closes the connection as soon as it has accepted a command."""

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn

    def begin_auth(self, username: str) -> bool:
        return False

    def session_requested(self) -> asyncssh.SSHServerSession[str]:
        return _Ended(self._connection)


class _Ended(asyncssh.SSHServerSession[str]):
    def __init__(self, connection: asyncssh.SSHServerConnection) -> None:
        self._connection = connection

    def exec_requested(self, command: str) -> bool:
        return True

    def session_started(self) -> None:
        self._connection.disconnect(asyncssh.DISC_BY_APPLICATION, "the machine ends")


async def test_a_connection_that_ends_when_a_command_was_accepted_is_lost(folder: Path) -> None:
    path = str(folder / "s")
    host_key, host_public = sshd.new_key()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    keys = [asyncssh.import_private_key(host_key)]
    async with asyncssh.listen(sock=listener, server_factory=_Ending, server_host_keys=keys):
        for _ in range(10):
            shell = await connect(Endpoint(host_key=host_public, unix_path=path), sshd.new_key()[0])
            with pytest.raises(MachineLost):
                await shell.run("true")
            await shell.close()
