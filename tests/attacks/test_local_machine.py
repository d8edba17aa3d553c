"""Attacks by a local machine's root on PID 1, on the host and on the machine's limits. Every one is executed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gibil_bot.providers.local.paths import own_privilege, read_daemon
from tests.doubles.machines import LocalLodging, alive, children_of, local_lodging, shared_folder, until
from tests.doubles.patience import patient

pytestmark = pytest.mark.usefixtures("local_machines")


@pytest.fixture
async def fresh(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalLodging]:
    """Local machines with a daemon that the test itself starts."""
    async with local_lodging(tmp_path / "data", shared_folder(tmp_path_factory)) as lodging:
        yield lodging


_LIBC = "import ctypes, os; libc = ctypes.CDLL(None, use_errno=True); "


async def python(lodging: LocalLodging, name: str, script: str) -> str:
    """Return the script's output and errors on the machine."""
    machine = await lodging.provider.create(lodging.spec(name))
    result = await lodging.run(machine, "python3 - 2>&1", input=script)
    return str(result.stdout)


async def test_pid_1_cannot_be_traced(lodging: LocalLodging) -> None:
    script = _LIBC + "print('attach', libc.ptrace(16, 1, 0, 0), ctypes.get_errno())"
    assert await python(lodging, "tracer", script) == "attach -1 1\n"


@pytest.mark.parametrize("secret", ["environ", "mem", "fd", "root", "cwd", "maps"])
async def test_pid_1_reveals_nothing_of_the_host_process_that_started_it(lodging: LocalLodging, secret: str) -> None:
    machine = await lodging.provider.create(lodging.spec("reader"))
    command = f"ls /proc/1/{secret}/ && exit 0; cat /proc/1/{secret}"
    result = await lodging.run(machine, command)
    assert result.exit_status != 0
    assert result.stdout == ""
    assert "ermission denied" in str(result.stderr)


async def test_the_bots_environment_is_nowhere_inside(fresh: LocalLodging, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIBIL_SECRET_DEPLOY", "hunter-of-secrets")
    machine = await fresh.provider.create(fresh.spec("searcher"))
    result = await fresh.run(machine, "env; cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n'")
    assert "hunter" not in str(result.stdout)
    for pid in (fresh.daemon_pid(), fresh.fork_server_pid()):
        assert b"hunter" not in Path(f"/proc/{pid}/environ").read_bytes()


async def test_mounts_cannot_be_created_or_remounted_writable(lodging: LocalLodging) -> None:
    machine = await lodging.provider.create(lodging.spec("mounter"))
    attacks = [
        "mount -o remount,bind,rw /sys",
        "mount -t proc proc /mnt",
        "mount -t tmpfs tmpfs /mnt",
        "mount --bind /root /mnt",
        "umount /usr",
        "unshare -Ur true",
        "unshare -r -m mount -o remount,bind,rw /sys",
        "unshare -m true",
        "chroot / unshare -U true",
        "nsenter -t 1 -m true",
        "echo 1 > /proc/sys/user/max_user_namespaces",
        "pivot_root /mnt /mnt",
    ]
    async with lodging.connect(machine) as connection:
        for attack in attacks:
            result = await connection.run(attack)
            assert result.exit_status not in (0, None), attack


async def test_a_read_only_bind_stays_read_only(fresh: LocalLodging, tmp_path: Path) -> None:
    """As when the host's only Python is outside of /usr: its folder is mounted inside, and writable for the user outside."""
    prefix = tmp_path / "python"
    (prefix / "bin").mkdir(parents=True)
    treasure = prefix / "treasure"
    treasure.write_text("whole")
    (prefix / "bin/python3.99").symlink_to("/usr/bin/python3")
    launcher = f"""
import os, sys
from gibil_bot.providers.local import base_tree
real = base_tree.survey
outside = base_tree.PythonOutside({str(prefix)!r}, {str(prefix / "bin/python3.99")!r})
base_tree.survey = lambda privilege: real(privilege)._replace(python=outside)
from gibil_bot.providers.local.daemon import main
main({str(fresh.data_dir)!r})
"""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})\n{launcher}"
    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], check=True, timeout=patient(60))
    machine = await fresh.provider.create(fresh.spec("writer"))
    async with fresh.connect(machine) as connection:
        seen = await connection.run(f"cat {treasure}; readlink /usr/local/bin/python3; python3 -c 'print(6*7)'")
        assert seen.stdout == f"whole{prefix}/bin/python3.99\n42\n", seen.stderr
        for attack in (
            f"echo broken > {treasure}",
            f"mount -o remount,bind,rw {prefix} && echo broken > {treasure}",
            f"chmod 777 {treasure}",
            f"rm {treasure}",
        ):
            assert (await connection.run(attack)).exit_status not in (0, None), attack
    assert treasure.read_text() == "whole"


async def test_loopback_and_abstract_sockets_of_the_host_are_unreachable(lodging: LocalLodging) -> None:
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as abstract:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        abstract.bind(f"\0gibil-test-{os.getpid()}")
        abstract.listen()
        script = f"""
import socket
targets = (socket.AF_INET, ("127.0.0.1", {tcp.getsockname()[1]})), (socket.AF_UNIX, "\\0gibil-test-{os.getpid()}")
for family, address in targets:
    try:
        socket.socket(family).connect(address)
        print("reached", address)
    except ConnectionRefusedError:
        print("refused")
proxy = socket.create_connection(("127.0.0.1", 3128), timeout=10)
proxy.sendall(b"GET http://127.0.0.1:{tcp.getsockname()[1]}/ HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
print(proxy.recv(12).decode())
"""
        assert await python(lodging, "caller", script) == "refused\nrefused\nHTTP/1.1 403\n"


async def test_only_the_allowed_loopback_endpoint_is_reachable(lodging: LocalLodging) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nhello from outside")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        machine = await lodging.provider.create(lodging.spec("guest", egress_allow=(f"127.0.0.1:{port}",)))
        result = await lodging.run(
            machine,
            f"curl -sS http://127.0.0.1:{port}/ || python3 -c 'import urllib.request as u; "
            f'print(u.urlopen("http://127.0.0.1:{port}/").read().decode())\'',
        )
        assert "hello from outside" in str(result.stdout)


async def test_the_hosts_files_are_not_visible(lodging: LocalLodging, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s")
    neighbour = await lodging.provider.create(lodging.spec("neighbour"))
    await lodging.run(neighbour, "echo private > /root/private")
    machine = await lodging.provider.create(lodging.spec("spy"))
    paths = [secret, lodging.data_dir, lodging.paths.machine("neighbour"), "/run/gibil", "/tmp/gibil-0", Path.home() / ".ssh"]
    async with lodging.connect(machine) as connection:
        for path in paths:
            assert (await connection.run(f"ls -a {path}")).exit_status != 0, path
        found = await connection.run("ls -A /home /root /mnt /media /opt /srv /tmp /var/tmp | grep -v : | grep -v '^$'")
        assert found.stdout == "gibil\n", "only gibil's /opt/gibil, and nothing of the host"
        assert (await connection.run("find / -xdev -name private -o -xdev -name machine.json 2>/dev/null")).stdout == ""
        shadow = await connection.run("cut -d: -f2 /etc/shadow | sort -u")
        assert shadow.stdout == "*\n"
        processes = await connection.run("ls /proc | grep -c '^[0-9]'")
        assert int(str(processes.stdout)) < 8


async def test_changes_to_the_system_affect_only_the_machine(lodging: LocalLodging) -> None:
    machine = await lodging.provider.create(lodging.spec("vandal"))
    async with lodging.connect(machine) as connection:
        await connection.run("rm -rf /usr/share/doc /etc/passwd; echo gone > /usr/bin/gibil-was-here")
        assert (await connection.run("cat /usr/bin/gibil-was-here")).stdout == "gone\n"
    assert Path("/etc/passwd").exists()
    assert not Path("/usr/bin/gibil-was-here").exists()
    other = await lodging.provider.create(lodging.spec("other"))
    assert (await lodging.run(other, "test -e /etc/passwd && test ! -e /usr/bin/gibil-was-here")).exit_status == 0


async def test_kernel_switches_devices_and_control_groups_are_denied(lodging: LocalLodging) -> None:
    machine = await lodging.provider.create(lodging.spec("prodder"))
    attacks = [
        "echo x > /proc/sys/kernel/core_pattern",
        "echo b > /proc/sysrq-trigger",
        "echo 3 > /proc/sys/vm/drop_caches",
        "mknod /root/disk b 254 0 && head -c 1 /root/disk",
        "mknod /dev/mem c 1 1 && head -c 1 /dev/mem",
        "mkdir /sys/fs/cgroup/x",
        "echo max > /sys/fs/cgroup/pids/pids.max",
        "echo max > /sys/fs/cgroup/pids.max",
        "head -c 1 /proc/kcore",
        "dmesg",
        "ip link add x type dummy",
        "ip link set lo down",
    ]
    async with lodging.connect(machine) as connection:
        for attack in attacks:
            assert (await connection.run(attack)).exit_status not in (0, None), attack


@pytest.mark.parametrize(
    ("call", "arguments"),
    [("keyctl", "250, 0, -3, 0"), ("bpf", "321, 0, 0, 0"), ("io_uring_setup", "425, 8, 0"), ("userfaultfd", "323, 0")],
)
async def test_kernel_interfaces_that_builds_never_need_are_closed(lodging: LocalLodging, call: str, arguments: str) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("the system call numbers are x86_64's")
    script = _LIBC + f"print(libc.syscall({arguments}), ctypes.get_errno())"
    assert await python(lodging, "caller", script) == "-1 1\n", call


_FAMILIES = """
import errno, socket
for family in range(46):
    for make in (socket.socket, socket.socketpair):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
            try:
                made = make(family, kind)
            except OSError as error:
                if error.errno != errno.EAFNOSUPPORT:
                    print(family, make.__name__, "known", error.errno)
            else:
                print(family, make.__name__, "made")
"""


async def test_no_socket_family_that_the_host_shares_exists_inside(lodging: LocalLodging) -> None:
    """VSOCK, ALG and others have no network namespace: their ports and keys would be the host's and the other machines'."""
    seen = {int(line.split()[0]) for line in (await python(lodging, "plugger", _FAMILIES)).splitlines()}
    assert seen == {socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK}


async def test_sockets_cannot_be_opened_by_system_calls_of_another_architecture(lodging: LocalLodging) -> None:
    """x32's numbers, and i386's socketcall through the 32-bit system call entry."""
    if os.uname().machine != "x86_64":
        pytest.skip("only x86_64 has these system call entries")
    script = (
        _LIBC
        + """
import mmap
print("x32", libc.syscall(0x40000000 | 41, 1, 1, 0), ctypes.get_errno())
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
# push rbx; mov eax, 359 (i386's socket); mov ebx, 1; mov ecx, 1; xor edx, edx; int 0x80; pop rbx; ret
page.write(bytes.fromhex("53b867010000bb01000000b90100000031d2cd805bc3"))
call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
print("i386", call())
"""
    )
    assert await python(lodging, "foreigner", script) == "x32 -1 38\ni386 -38\n"


async def test_a_fork_bomb_is_stopped_and_can_be_killed(lodging: LocalLodging) -> None:
    machine = await lodging.provider.create(lodging.spec("bomber", pids=100))
    quiet = await lodging.provider.create(lodging.spec("bystander", pids=100))
    async with lodging.connect(machine) as connection, asyncio.timeout(patient(90)):
        bomb = await connection.create_process("bomb() { bomb | bomb & sleep 60; }; bomb 2>/dev/null; sleep 60")
        await until(lambda: len(_all_below(lodging.init_pid("bomber"))) > 50, "the fork bomb is running")
        # Some end and others begin during a walk through them: those of two walks existed at the same time, between the two.
        first, second = (set(_all_below(lodging.init_pid("bomber"))) for _ in range(2))
        assert len(first & second) <= 101
        assert (await lodging.run(quiet, "for i in 1 2 3; do (true); done; echo fine")).stdout == "fine\n"
        bomb.close()
        assert await lodging.provider.destroy("bomber") is True
    assert (await lodging.run(quiet, "echo still")).stdout == "still\n"


def _all_below(pid: int) -> list[int]:
    found = children_of(pid)
    for child in tuple(found):
        found += _all_below(child)
    return found


_HOG = "python3 -c 'x = []\nwhile True: x.append(b\"x\" * 4000000)'"


async def test_only_the_process_with_too_much_memory_is_killed(lodging: LocalLodging) -> None:
    machine = await lodging.provider.create(lodging.spec("hog", memory_mb=256))
    async with lodging.connect(machine) as connection, asyncio.timeout(patient(60)):
        bystander = await connection.create_process("echo up; exec sleep 60")
        assert await bystander.stdout.readline() == "up\n"
        assert (await connection.run(f"{_HOG}; echo $?")).stdout == "137\n"
        assert bystander.exit_status is None
        assert (await connection.run("echo alive")).stdout == "alive\n"
    assert alive(lodging.daemon_pid())


async def test_a_process_that_outlives_its_command_and_uses_too_much_memory_is_killed(lodging: LocalLodging) -> None:
    """An idle machine isn't checked; one with processes is, even if their command has ended."""
    machine = await lodging.provider.create(lodging.spec("sleeper", memory_mb=256, disk_mb=200))
    await lodging.run(machine, "true")
    hog = shlex.quote(f"{_HOG}; echo $? >/root/status")
    assert (await lodging.run(machine, f"setsid sh -c {hog} >/dev/null 2>&1 </dev/null &")).exit_status == 0
    wait = "for n in $(seq 600); do [ -s /root/status ] && break; sleep 0.05; done; cat /root/status"
    assert (await lodging.run(machine, wait)).stdout == "137\n"


async def test_a_full_disk_is_an_error_and_the_machine_continues(lodging: LocalLodging) -> None:
    machine = await lodging.provider.create(lodging.spec("filler", disk_mb=64))
    async with lodging.connect(machine) as connection, asyncio.timeout(patient(60)):
        result = await connection.run("dd if=/dev/zero of=/root/big bs=1M count=200")
        assert result.exit_status not in (0, None)
        assert "No space left" in str(result.stderr)
        many = await connection.run('python3 -c \'for i in range(10**6): open(f"/tmp/{i}", "w").close()\'')
        assert "No space left" in str(many.stderr)
        assert (await connection.run("rm -rf /root/big && echo fine")).stdout == "fine\n"


async def test_a_disk_that_is_not_in_memory_is_bounded(lodging: LocalLodging) -> None:
    machine = await lodging.provider.create(lodging.spec("spender", memory_mb=128, disk_mb=100))
    async with lodging.connect(machine) as connection, asyncio.timeout(patient(60)):
        fill = "for i in 1 2 3; do head -c 60M /dev/zero >/root/$i || exit 3; done; sync; exec sleep 60"
        result = await connection.run(fill)
        if result.exit_signal is None:  # a file system of this size
            assert result.exit_status == 3
            assert "No space left" in str(result.stderr)
        else:
            assert result.exit_signal[0] == "KILL"
            assert "disk of 100 MB is full" in str(result.stderr)


async def test_a_tree_that_resists_removal_is_removed(lodging: LocalLodging) -> None:
    machine = await lodging.provider.create(lodging.spec("digger"))
    script = """
import os
os.chdir("/root")
for depth in range(3000):
    os.mkdir("d")
    os.chdir("d")
open("f", "w").close()
os.chmod(".", 0)
os.makedirs("/root/locked/in/here")
os.chmod("/root/locked/in", 0)
os.chmod("/root/locked", 0)
os.symlink("/", "/root/everything")
print("dug")
"""
    assert (await lodging.run(machine, "python3 -", input=script)).stdout == "dug\n"
    assert await lodging.provider.destroy("digger") is True
    assert not lodging.paths.machine("digger").exists()
    assert Path("/etc/passwd").exists()


async def test_two_machines_of_root_share_no_user_id(lodging: LocalLodging) -> None:
    if own_privilege() != "root":
        pytest.skip("separate user ids for machines need root")
    for name in ("left", "right"):
        await lodging.provider.create(lodging.spec(name))
    uids = [
        Path(f"/proc/{lodging.init_pid(name)}/status").read_text().split("Uid:")[1].split()[0] for name in ("left", "right")
    ]
    assert len({*uids, "0"}) == 3


async def test_invalid_data_on_the_control_socket_has_no_effect(lodging: LocalLodging) -> None:
    await lodging.provider.create(lodging.spec("steady"))
    daemon = read_daemon(lodging.paths)
    assert daemon is not None
    for garbage in (b"\n", b"{}\n", b"[1]\n", b'{"verb": "create"}\n', b'{"verb": "\xff"}\n', b"x" * 3_000_000, b""):
        reader, writer = await asyncio.open_unix_connection(daemon.socket)
        with contextlib.suppress(OSError):
            writer.write(garbage)
            writer.write_eof()
            async with asyncio.timeout(patient(10)):
                await reader.read()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    assert [machine.name for machine in await lodging.provider.list_machines()] == ["steady"]
    assert Path(daemon.socket).stat().st_mode & 0o077 == 0
    assert Path(daemon.socket).parent.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "call",
    [
        "prlimit --pid 1 --nofile=8:8",
        "renice -n 19 -p 1",
        "ionice -c 3 -p 1",
        "taskset -p 1 1",
        "chrt --idle -p 0 1",
        "python3 -c 'import resource; resource.prlimit(1, resource.RLIMIT_NOFILE, (8, 8))'",
    ],
)
async def test_the_limits_and_the_scheduling_of_pid_1_cannot_be_changed(lodging: LocalLodging, call: str) -> None:
    machine = await lodging.provider.create(lodging.spec("limits"))
    try:
        result = await lodging.run(machine, call)
        assert result.exit_status != 0
        assert "not permitted" in str(result.stderr)
        assert (
            await lodging.run(machine, f"{call.replace(' 1', ' $$').replace('(1,', '(0,')} >/dev/null; echo on")
        ).stdout == "on\n"
    finally:
        await lodging.provider.destroy("limits")


async def test_descriptors_and_memory_of_other_processes_cannot_be_taken(lodging: LocalLodging) -> None:
    script = (
        _LIBC + "import platform; child = os.fork()\n"
        "if not child:\n    import time; time.sleep(60)\n"
        "fd = os.pidfd_open(child)\n"
        "print(libc.syscall(438, fd, 0, 0), ctypes.get_errno())\n"
        "class V(ctypes.Structure): _fields_ = [('base', ctypes.c_void_p), ('size', ctypes.c_size_t)]\n"
        "b = ctypes.create_string_buffer(8); v = V(ctypes.addressof(b), 8)\n"
        "print(libc.process_vm_readv(child, ctypes.byref(v), 1, ctypes.byref(v), 1, 0), ctypes.get_errno())\n"
        "print(libc.process_vm_writev(child, ctypes.byref(v), 1, ctypes.byref(v), 1, 0), ctypes.get_errno())\n"
        "os.kill(child, 9)\n"
    )
    assert await python(lodging, "reach", script) == "-1 1\n-1 1\n-1 1\n"
