"""One computer behind the Hetzner double, as its hypervisor provides it: a local machine whose processes have root's rights.

Real: all capabilities, because processes enter the machine's namespaces from outside (nsenter(1)) and so aren't limited to
those of a local machine's jobs; a network card `eth0` with the default route of Hetzner's servers; the metadata address,
with HTTP on the documented paths, over that card; a reboot with a network card that has no state of the last boot.

Replaced: the kernel is the host's, and capabilities apply within the machine's namespaces; the card is one end of a veth
pair, behind which a router has the metadata address and no further route; connections from outside are relayed from a
socket on the host to one in the machine's network.

Everything ends with the machine and this process: a network namespace lasts as long as something is open in it.

https://docs.hetzner.cloud/reference/cloud#server-metadata, https://docs.hetzner.com/cloud/servers/static-configuration/
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gibil_bot.providers.local import syscalls as sc
from gibil_bot.providers.local.init import ENVIRONMENT

T = TypeVar("T")

METADATA = "169.254.169.254"
_ROUTER = "172.31.1.1"
_ADDRESS = "203.0.113.7"
"""Every computer's address, because each has a separate router. RFC 5737, TEST-NET-3."""


@dataclass(frozen=True, slots=True)
class Done:
    """The result of a script on the computer."""

    exit_status: int
    stdout: str
    stderr: str


class Computer:
    """`init`: host pid of the machine's PID 1. `answer(path)`: the metadata service's response, None for 404."""

    def __init__(self, init: int, answer: Callable[[str], str | None]) -> None:
        self._init = init
        self._answer = answer
        self._network = os.open(f"/proc/{init}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._router: int | None = None
        self._metadata: asyncio.Server | None = None
        self._group: Path | None = None
        self.read: list[str] = []
        """The paths of the metadata service that were requested since the computer was switched on."""

    async def start(self, script: str, *, delegated: bool = False) -> asyncio.subprocess.Process:
        """Start `script` in the machine, in a new session, with all capabilities.

        `delegated`: with control groups that the machine's root may divide, as a container engine needs.
        """
        words = ["nsenter", "-t", str(self._init), "-U", "-m", "-u", "-i", "-n", "-p"]
        if delegated:
            if self._group is None:
                self._group = _new_control_group(self._init)
            into = ["sh", "-c", 'echo $$ >"$0" && exec "$@"', f"{self._group}/cgroup.procs"]
            words = [*into, *words, "--", "unshare", "-C"]
        else:
            words += ["-C", "--"]
        return await asyncio.create_subprocess_exec(
            *(*words, "sh", "-c", script),
            env=ENVIRONMENT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )

    async def run(self, script: str, stdin: bytes = b"", *, delegated: bool = False) -> Done:
        """Run a script to its end; kill it if cancelled."""
        process = await self.start(script, delegated=delegated)
        try:
            out, err = await process.communicate(stdin)
        except BaseException:
            await kill(process)
            raise
        assert process.returncode is not None
        return Done(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))

    async def must(self, script: str, stdin: bytes = b"") -> None:
        done = await self.run(script, stdin)
        assert done.exit_status == 0, done.stderr

    async def connect(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to a TCP port of the computer over its network card."""
        sock = _within(self._network, _new_socket)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
            return await asyncio.open_connection(sock=sock)
        except BaseException:
            sock.close()
            raise

    async def plug_in(self) -> None:
        """Add a network card as at every boot, without the configuration of the last boot."""
        await self.unplug()
        self.read.clear()
        router = self._router = _new_network()
        await _ip(
            router,
            f"link add lan type veth peer name eth0 netns {self._init}",
            "link set lan up",
            f"address add {_ROUTER}/32 dev lan",
            f"address add {METADATA}/32 dev lan",
            f"route add {_ADDRESS}/32 dev lan",
            "route add unreachable default",
        )
        await _ip(
            self._network,
            "route flush type blackhole",
            "link set eth0 up",
            f"address add {_ADDRESS}/32 dev eth0",
            f"route add {_ROUTER} dev eth0",
            f"route add default via {_ROUTER} dev eth0",
        )
        listener = _within(router, lambda: socket.create_server((METADATA, 80)))
        self._metadata = await asyncio.start_server(self._serve, sock=listener)

    async def unplug(self) -> None:
        """A veth exists as long as the namespaces of both ends, and a namespace as long as something is open in it."""
        if self._metadata is not None:
            self._metadata.close()
            self._metadata = None
        if self._router is not None:
            with contextlib.suppress(AssertionError):  # the machine's namespace took its end along, and so this one
                await _ip(self._router, "link delete lan")
            os.close(self._router)
            self._router = None

    async def close(self) -> None:
        """Clean up after the machine has ended."""
        await self.unplug()
        os.close(self._network)
        if self._group is not None:
            for group in sorted((path for path in self._group.rglob("*") if path.is_dir()), reverse=True):
                group.rmdir()
            self._group.rmdir()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ", 2)[1].decode()
            self.read.append(path)
            text = self._answer(path)
            body = (text if text is not None else "not found").encode()
            status = "200 OK" if text is not None else "404 Not Found"
            writer.write(f"HTTP/1.0 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            await writer.drain()
        writer.close()


async def kill(process: asyncio.subprocess.Process) -> None:
    """Kill nsenter and its children, which share a process group inside and outside."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
    await asyncio.to_thread(_reap_group, process.pid)


def _reap_group(group: int) -> None:
    """If the tests are PID 1, as in a container, nsenter's child becomes their child, and as a zombie it keeps its machine."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-group, 0)


def missing_tools() -> str | None:
    """Return what this host lacks for the double, in one line."""
    for tool, package in (("nsenter", "util-linux"), ("ip", "iproute2")):
        if shutil.which(tool) is None:
            return f"servers of the Hetzner double need {tool}: apt-get install {package}"
    try:
        os.close(_new_network())
    except OSError as error:
        return f"servers of the Hetzner double need a network of their own: {error.strerror}"
    return None


def control_groups() -> Path | None:
    """Return the host's cgroup v2 mount, if groups can be created in it."""
    for mount in Path("/proc/self/mounts").read_text().splitlines():
        _device, folder, kind, options, *_ = mount.split()
        if kind == "cgroup2" and "rw" in options.split(","):
            return Path(folder)
    return None


def _new_control_group(init: int) -> Path:
    """Create a group below the host's own; the machine's root owns it."""
    root = control_groups()
    assert root is not None
    owner = int(Path(f"/proc/{init}/uid_map").read_text().split()[1])
    group = Path(tempfile.mkdtemp(prefix="gibil-double-", dir=root))
    for path in (group, group / "cgroup.procs", group / "cgroup.subtree_control", group / "cgroup.threads"):
        os.chown(path, owner, owner)
    return group


def _new_network() -> int:
    """Create a network namespace; return its descriptor. Packets for elsewhere get "unreachable" and aren't dropped."""

    def make() -> int:
        sc.unshare(sc.CLONE_NEWNET)
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    return _and_back(make)


def _within(network: int, work: Callable[[], T]) -> T:
    def enter() -> T:
        sc.setns(network, sc.CLONE_NEWNET)
        return work()

    return _and_back(enter)


def _and_back(work: Callable[[], T]) -> T:
    """Not in another thread: a cancelled task would lose the thread's result, and the call takes no time."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            return work()
        finally:
            sc.setns(own, sc.CLONE_NEWNET)
    finally:
        os.close(own)


def may_enter_networks() -> bool:
    """Root of a container or of a local machine may not."""
    try:
        return _and_back(lambda: True)
    except OSError:
        return False


def _new_socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


async def _ip(network: int, *commands: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *("nsenter", f"--net=/proc/self/fd/{network}", "ip", "-batch", "-"),
        pass_fds=(network,),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _out, err = await process.communicate("".join(f"{command}\n" for command in commands).encode())
    assert process.returncode == 0, err.decode()
