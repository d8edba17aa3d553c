"""The pure parts of local machines: limits, control groups, layout, seccomp filter, removal."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gibil_bot.errors import NameTaken, ProviderError, Unavailable
from gibil_bot.model import MachineSpec
from gibil_bot.providers.local import base_tree, init_client, seccomp, ssh_session
from gibil_bot.providers.local.base_tree import Piece
from gibil_bot.providers.local.control_protocol import error_of, problem_of
from gibil_bot.providers.local.detached_jobs import Jobs
from gibil_bot.providers.local.diagnostics import explain
from gibil_bot.providers.local.disk_usage import measure_folder
from gibil_bot.providers.local.expiry import Expiry
from gibil_bot.providers.local.fd_passing import receive
from gibil_bot.providers.local.init_client import SpawnFailed
from gibil_bot.providers.local.limits import (
    Groups,
    Hierarchy,
    Limits,
    find_hierarchies,
    floor_mb,
    limits_of,
    share_of_processors,
)
from gibil_bot.providers.local.rmtree import remove_tree
from tests.doubles.patience import patient


def spec(size: str = "small", **more: int) -> MachineSpec:
    return MachineSpec(name="m", owner="o", ttl_s=1, authorized_key="", host_key="", size=size, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "memory_mb"), [("small", 2048), ("medium", 4096), ("large", 8192)])
def test_a_size_sets_limits(size: str, memory_mb: int) -> None:
    assert limits_of(spec(size)) == Limits(memory_mb=memory_mb, pids=2048, disk_mb=10240)


@pytest.mark.parametrize(
    ("memory_mb", "host_mb", "processors", "count"),
    [(2048, 262_144, 64, 2), (8192, 65_536, 64, 8), (2048, 24_000, 2, 2), (2048, 24_000, 1, 1), (99_999, 24_000, 4, 4)],
)
def test_a_machine_has_a_share_of_the_processors_like_its_share_of_the_memory(
    memory_mb: int, host_mb: int, processors: int, count: int
) -> None:
    chosen = share_of_processors(memory_mb, host_mb, range(10, 10 + processors))
    assert len(set(chosen)) == count
    assert set(chosen) <= set(range(10, 10 + processors))


def test_limits_of_the_spec_override_those_of_the_size() -> None:
    limits = limits_of(spec(memory_mb=300, pids=20, disk_mb=100))
    assert limits == Limits(memory_mb=300, pids=20, disk_mb=100)
    assert limits.disk_in_memory
    assert not limits_of(spec(memory_mb=300, disk_mb=200)).disk_in_memory, "it would leave too little memory for the jobs"
    assert not limits_of(spec()).disk_in_memory


@pytest.mark.parametrize("refused", [spec("huge"), spec(memory_mb=1), spec(pids=1), spec(disk_mb=1)])
def test_limits_that_are_too_small_are_rejected(refused: MachineSpec) -> None:
    with pytest.raises(ProviderError):
        limits_of(refused)


def unified(tmp_path: Path) -> tuple[str, Path]:
    """Create a cgroup v2 tree as systemd does; return mountinfo and its root."""
    root = tmp_path / "cgroup"
    for folder, enabled in (("", "cpu memory pids"), ("user.slice", "memory pids"), ("user.slice/app.slice", "pids")):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / "cgroup.controllers").write_text("cpu io memory pids\n")
        (root / folder / "cgroup.subtree_control").write_text(enabled)
        (root / folder / "cgroup.procs").write_text("")
    (root / "user.slice/app.slice/keeper.service").mkdir()
    return f"30 1 0:20 / {root} rw - cgroup2 cgroup2 rw", root


def test_cgroup_v2_groups_are_siblings_and_missing_controllers_are_enabled(tmp_path: Path) -> None:
    mountinfo, root = unified(tmp_path)
    found = find_hierarchies(mountinfo, "0::/user.slice/app.slice/keeper.service")
    assert found == [Hierarchy(root / "user.slice/app.slice", 2, frozenset(("cpu", "memory", "pids")))]
    assert (root / "user.slice/app.slice/cgroup.subtree_control").read_text() == "+memory", (
        "the last controller that was written"
    )
    groups = Groups(found, "gibil-1")
    assert groups.memory == "cgroup-v2"
    folder = root / "user.slice/app.slice/gibil-1-m"
    folder.mkdir()
    for name in ("memory.max", "memory.swap.max", "pids.max", "cpu.weight"):
        (folder / name).write_text("max")
    groups.create("m", Limits(memory_mb=64, pids=99, disk_mb=1))
    groups.weigh("m")
    (folder / "cgroup.procs").write_text("")
    groups.join("m", 4711)
    assert (folder / "cgroup.procs").read_text() == "4711"
    assert (folder / "memory.max").read_text() == str(64 * 1024 * 1024)
    assert (folder / "memory.swap.max").read_text() == "0"
    assert (folder / "pids.max").read_text() == "99"
    assert (folder / "cpu.weight").read_text() == "25"
    assert groups.shares_cpu
    (folder / "memory.events").write_text("low 0\nhigh 0\nmax 7\noom 3\noom_kill 2\n")
    (folder / "pids.events").write_text("max 5\n")
    assert (groups.oom_kills("m"), groups.refused_forks("m")) == (2, 5)
    (root / "user.slice/app.slice/memory.max").write_text(str(100 << 20))
    assert groups.host_memory_mb() == 100
    (root / "user.slice/app.slice/memory.max").write_text("max")
    assert groups.host_memory_mb() > 100
    assert groups.leftovers() == ["m"]
    (folder / "memory.current").write_text(str(50 << 20))
    stat = f"anon {20 << 20}\nfile {25 << 20}\nshmem {5 << 20}\ninactive_file {15 << 20}\nactive_file {5 << 20}\n"
    (folder / "memory.stat").write_text(f"{stat}slab_reclaimable {4 << 20}\n")
    assert groups.memory_used_mb("m") == 26


def test_cgroup_v1_controllers_in_separate_mounts_are_all_found(tmp_path: Path) -> None:
    for controller in ("memory", "pids", "cpu"):
        (tmp_path / controller / "own").mkdir(parents=True)
    mountinfo = "\n".join(
        f"3{number} 1 0:2{number} / {tmp_path / name} rw - cgroup cgroup rw,{name}"
        for number, name in enumerate(("memory", "pids", "cpu,cpuacct"))
    )
    (tmp_path / "cpu").rename(tmp_path / "cpu,cpuacct")
    found = find_hierarchies(mountinfo, "3:memory:/own\n2:pids:/own\n1:cpu,cpuacct:/own\n0::/")
    assert {(one.folder, one.version, one.controllers) for one in found} == {
        (tmp_path / "memory/own", 1, frozenset(("memory",))),
        (tmp_path / "pids/own", 1, frozenset(("pids",))),
        (tmp_path / "cpu,cpuacct/own", 1, frozenset(("cpu",))),
    }
    groups = Groups(found, "x")
    assert groups.memory == "cgroup-v1"
    groups.create("m", Limits(memory_mb=64, pids=99, disk_mb=1))
    groups.weigh("m")
    assert (tmp_path / "cpu,cpuacct/own/x-m/cpu.shares").read_text() == "256"
    (tmp_path / "memory/own/x-m/memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 4\n")
    assert groups.oom_kills("m") == 4
    (tmp_path / "memory/own/x-m/memory.usage_in_bytes").write_text(str(50 << 20))
    stat = f"inactive_file 1\nactive_file 1\ntotal_inactive_file {15 << 20}\ntotal_active_file {5 << 20}\n"
    (tmp_path / "memory/own/x-m/memory.stat").write_text(stat)
    assert groups.memory_used_mb("m") == 30


def test_memory_is_polled_without_control_groups() -> None:
    assert find_hierarchies("30 1 0:20 / / rw - ext4 /dev/vda rw", "0::/") == []
    assert Groups([], "x").memory == "polled"
    assert Groups([], "x").memory_used_mb("m") is None


def test_mounts_below_usr_split_it_for_a_user_and_overlay_it_for_root(tmp_path: Path) -> None:
    below = next(entry.path for entry in sorted(os.scandir("/usr/share"), key=lambda e: e.name) if entry.is_dir())
    mounts = ["/", "/proc", below]
    layout = base_tree.survey("user", mounts)
    assert layout.opened[:2] == ("/usr", "/usr/share")
    assert Piece("/usr/bin", optional=False) in layout.pieces
    assert Piece(below, optional=True) in layout.pieces
    assert not {"/usr", "/usr/share"} & {piece.path for piece in layout.pieces}
    assert base_tree.survey("root", mounts).pieces[:2] == (Piece("/usr", optional=False), Piece(below, optional=True))
    assert base_tree.survey("user", ["/"]).pieces[0] == Piece("/usr", optional=False)
    assert base_tree.name_of("user", layout) != base_tree.name_of("user", base_tree.survey("user", ["/"]))


def answer(program: bytes, arch: int, number: int, *arguments: int) -> int:
    """Return the kernel's verdict on a call, by executing the few BPF instructions that the filter uses."""
    code = list(struct.iter_unpack("=HBBI", program))
    data, accumulator, at = {0: number, 4: arch}, 0, 0
    for index, argument in enumerate(arguments):  # struct seccomp_data, little-endian halves
        data |= {16 + 8 * index: argument & 0xFFFFFFFF, 20 + 8 * index: argument >> 32 & 0xFFFFFFFF}
    while True:
        operation, then, otherwise, value = code[at]
        at += 1
        if operation == 0x20:
            accumulator = data[value]
        elif operation == 0x15:
            at += then if accumulator == value else otherwise
        elif operation == 0x35:
            at += then if accumulator >= value else otherwise
        else:
            assert operation == 0x06
            return int(value)


ALLOW, ERRNO = 0x7FFF0000, 0x00050000


@pytest.mark.parametrize(
    ("machine", "arch", "chown", "setuid", "read", "bpf"),
    [("x86_64", 0xC000003E, 260, 105, 0, 321), ("aarch64", 0xC00000B7, 54, 146, 63, 280)],
)
def test_the_filter_fakes_denies_and_allows_calls(
    machine: str, arch: int, chown: int, setuid: int, read: int, bpf: int
) -> None:
    pretending = seccomp.program(machine, pretend_root=True)
    honest = seccomp.program(machine, pretend_root=False)
    for call in (chown, setuid):
        assert answer(pretending, arch, call) == ERRNO
        assert answer(honest, arch, call) == ALLOW
    for program in (pretending, honest):
        assert answer(program, arch, read) == ALLOW
        assert answer(program, arch, bpf) == ERRNO | errno.EPERM
        assert answer(program, arch, 425) == ERRNO | errno.EPERM
        assert answer(program, 0x40000003, read) == ERRNO | errno.ENOSYS, "another architecture's system call numbers pass"
        assert answer(program, arch, 0x40000000 | read) == ERRNO | errno.ENOSYS, "and those of x32"


@pytest.mark.parametrize(("machine", "arch", "calls"), [("x86_64", 0xC000003E, (41, 53)), ("aarch64", 0xC00000B7, (198, 199))])
@pytest.mark.parametrize("pretend_root", [True, False])
def test_the_filter_allows_only_socket_families_that_network_namespaces_separate(
    machine: str, arch: int, calls: tuple[int, int], pretend_root: bool
) -> None:
    program = seccomp.program(machine, pretend_root=pretend_root)
    for call in calls:  # socket, socketpair
        for family in (*range(64), 0xFFFFFFFF):
            allowed = family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)
            expected = ALLOW if allowed else ERRNO | errno.EAFNOSUPPORT
            assert answer(program, arch, call, family, socket.SOCK_STREAM, 0) == expected, (call, family)
            # The kernel reads an int: the upper half of the register must not matter.
            assert answer(program, arch, call, family | 1 << 32, socket.SOCK_STREAM, 0) == expected, (call, family)


@pytest.mark.parametrize(("machine", "arch", "call"), [("x86_64", 0xC000003E, 41), ("aarch64", 0xC00000B7, 198)])
def test_the_filter_allows_only_netlink_protocols_of_ordinary_programs(machine: str, arch: int, call: int) -> None:
    program = seccomp.program(machine, pretend_root=True)
    allowed = {0: "ROUTE", 2: "USERSOCK", 4: "SOCK_DIAG", 9: "AUDIT", 15: "KOBJECT_UEVENT", 16: "GENERIC"}
    for protocol in range(32):
        expected = ALLOW if protocol in allowed else ERRNO | errno.EPROTONOSUPPORT
        assert answer(program, arch, call, socket.AF_NETLINK, socket.SOCK_RAW, protocol) == expected, protocol
    assert answer(program, arch, call, socket.AF_INET, socket.SOCK_RAW, 6) == ALLOW, "and no protocols of other families"


def test_removal_ignores_depth_and_modes_and_follows_no_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    tree = tmp_path / "tree"
    (tree / "locked/in").mkdir(parents=True)
    (tree / "locked/in/file").write_text("x")
    (tree / "link").symlink_to(outside)
    (tree / "locked/in").chmod(0)
    (tree / "locked").chmod(0)
    here = os.open(tree, os.O_RDONLY)
    for _ in range(1500):  # deeper than the longest path
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    remove_tree(tree)
    assert not tree.exists()
    assert (outside / "kept").read_text() == "kept"
    remove_tree(tree)  # removing a missing folder does nothing


def test_the_size_of_a_disk_is_its_allocated_size(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").write_bytes(os.urandom(3 * 1024 * 1024))
    with (tmp_path / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 30)
    for number in range(5):
        (tmp_path / f"link{number}").hardlink_to(tmp_path / "a/b/file")
    assert 2 <= measure_folder(str(tmp_path), 1000, 60).kb // 1024 <= 4
    assert measure_folder(str(tmp_path), 3, 60)[1:] == (4, False), "there are more files than allowed"
    assert not measure_folder(str(tmp_path), 1000, -1).complete


def test_a_tree_that_several_remove_at_once_is_gone_afterwards(tmp_path: Path) -> None:
    for number in range(600):
        (tmp_path / f"tree/{number % 30}/{number % 7}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"tree/{number % 30}/{number % 7}/{number}").touch()
    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(remove_tree, tmp_path / "tree") for _ in range(4)]:
            done.result()
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_never_gets_descriptors_is_rejected_with_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init_client, "_PATIENCE_S", 0.05)

    class Starved:
        reason: asyncio.Future[str]

        def descriptors(self) -> list[int]:
            raise OSError(errno.EMFILE, "Too many open files")

        def on_terminal(self, master: int) -> None: ...

        def on_exit(self, status: int) -> None: ...

        def on_refused(self, reason: str) -> None:
            self.reason.set_result(reason)

    async def scenario() -> str:
        command = Starved()
        command.reason = asyncio.get_running_loop().create_future()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        init = init_client.InitClient(ours, lambda: None)
        with theirs:
            init.spawn(command, ["/bin/true"], {})
            async with asyncio.timeout(patient(10)):
                reason = await command.reason
            init.kill_all()  # commands queued behind it are sent
            assert await asyncio.get_running_loop().run_in_executor(None, theirs.recv, 1000) == b'{"kill_all": 9}'
            init.close()
        return reason

    assert "use all file descriptors (Too many open files)" in asyncio.run(scenario())


def test_a_clock_that_is_set_back_does_not_extend_a_machine() -> None:
    clocks: dict[str, Any] = {"now": datetime(2026, 1, 1, tzinfo=UTC), "boot": 1000.0}
    expiry = Expiry(clocks["now"] + timedelta(hours=1), now=lambda: clocks["now"], boot_s=lambda: clocks["boot"])
    assert expiry.left_s() == 3600
    clocks |= {"now": clocks["now"] - timedelta(days=1), "boot": 1000.0 + 600}
    assert expiry.left_s() == 3000
    clocks |= {"now": clocks["now"] + timedelta(days=2)}
    assert expiry.left_s() < 0, "the announced expiry has passed when the clock is set forward"
    clocks |= {"now": clocks["now"] - timedelta(days=2), "boot": 1000.0 + 3601}
    assert expiry.left_s() < 0


def test_the_reserve_of_free_space_depends_on_the_disk() -> None:
    assert floor_mb(1000) == 20
    assert floor_mb(10**6) == 512


def test_an_error_keeps_its_code_over_the_control_socket() -> None:
    error = error_of(problem_of(ProviderError("full", code="NO_ROOM")))
    assert (type(error), error.code) == (ProviderError, "NO_ROOM")
    assert error_of(problem_of(NameTaken("n"))).code == "NAME_TAKEN"


def test_a_host_that_forbids_machines_gets_every_remedy_and_one_out_of_resources_its_own() -> None:
    refused = explain(SpawnFailed("entering a user namespace", errno.EPERM, "unshare: Operation not permitted"), "user", "/d")
    assert isinstance(refused, Unavailable)
    assert "Operation not permitted" in refused.message
    assert any("sudo" in way for way in refused.remedies)
    assert isinstance(explain(SpawnFailed("entering a user namespace", errno.ENOSPC, "unshare"), "user", "/d"), Unavailable)
    root = explain(SpawnFailed("entering namespaces", errno.EPERM, "unshare"), "root", "/d")
    assert isinstance(root, Unavailable)
    assert any("--privileged" in way for way in root.remedies)
    full = explain(SpawnFailed("mounting the machine's layers", errno.ENOSPC, "mkdir: No space left"), "user", "/d")
    assert not isinstance(full, Unavailable)


def test_input_that_arrives_during_resume_reading_is_written_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """asyncssh delivers buffered data and the end from within `resume_reading`."""
    monkeypatch.setattr(ssh_session, "_STDIN_HIGH", 32 * 1024)  # the rest fits into the pipe at once

    class Channel:
        def __init__(self) -> None:
            self.buffered = [b"b" * 2_000_000]
            self.paused = False
            self.session: Any = None

        def get_environment(self) -> dict[str, str]:
            return {}

        def pause_reading(self) -> None:
            self.paused = True

        def resume_reading(self) -> None:
            self.paused = False
            while self.buffered and not self.paused:
                self.session.data_received(self.buffered.pop(0), None)
                if not self.buffered:
                    self.session.eof_received()

        def exit(self, status: int) -> None: ...

    async def scenario() -> int:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        init = init_client.InitClient(ours, lambda: None)
        channel = Channel()
        channel.session = shell = ssh_session.Session(init, lambda ended: None, Jobs(init))
        shell.connection_made(channel)  # type: ignore[arg-type]
        shell.exec_requested("cat")
        with theirs:
            shell.session_started()
            _message, (stdin, stdout, stderr) = receive(theirs, 65536, 3)
            shell.data_received(b"a" * 100_000, None)
            assert channel.paused, "more is buffered than allowed"
            read = await asyncio.get_running_loop().run_in_executor(None, _read_all, stdin)
            for fd in (stdout, stderr):
                os.close(fd)
            shell.connection_lost(None)
            init.close()
        return read

    assert asyncio.run(scenario()) == 2_100_000


def _read_all(fd: int) -> int:
    """Read in pieces of the pipe's size, so that each pending write finds the pipe empty."""
    total = 0
    while data := os.read(fd, 65536):
        total += len(data)
    os.close(fd)
    return total
