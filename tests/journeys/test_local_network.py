"""The network of a local machine for its programs: the machine itself by every name, everything else over a route."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gibil_bot.providers.optional import refusals
from tests.doubles.machines import LocalLodging, guest_lodging, local_lodging, shared_folder
from tests.doubles.patience import patient

pytestmark = pytest.mark.usefixtures("local_machines")


@pytest.fixture
async def lodging(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalLodging]:
    async with guest_lodging(tmp_path_factory) as lodging:
        yield lodging


_SERVER = r"""
import http.server, os, socket, socketserver, sys, threading
class Server(http.server.ThreadingHTTPServer):
    def __init__(self, address, family):
        self.address_family = family
        super().__init__(address, Handler, bind_and_activate=False)
        if family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        self.server_bind()
        self.server_activate()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")
    def log_message(self, *words): pass
for family, address in (socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::"):
    threading.Thread(target=Server((address, 8000), family).serve_forever).start()
open("/tmp/up", "w").close()
"""
_PYTHON = r"""
import socket, sys, urllib.request
try:
    from pip._vendor import requests
except ImportError:
    requests = None
names = ["localhost", "127.0.0.1", "127.0.0.2", "127.0.1.1", "0.0.0.0", "[::1]", socket.gethostname()]
for name in names:
    print(name, urllib.request.urlopen(f"http://{name}:8000/").read().decode())
    if requests:
        assert requests.get(f"http://{name}:8000/").text == "hello", name
if requests:
    assert requests.get("http://127.9.8.7:8000/").text == "hello"
"""


async def test_a_machine_reaches_itself_by_all_its_names_and_addresses(lodging: LocalLodging) -> None:
    machine = await lodging.provider.create(lodging.spec("itself"))
    async with lodging.connect(machine) as connection:
        server = await connection.create_process("python3 -", stderr=-1)
        server.stdin.write(_SERVER)
        server.stdin.write_eof()
        assert (await connection.run("until [ -e /tmp/up ]; do sleep 0.02; done", timeout=patient(30))).exit_status == 0
        asked = await connection.run("python3 -", input=_PYTHON)
        assert (asked.exit_status, asked.stderr) == (0, ""), asked.stderr
        names = ["localhost", "127.0.0.1", "127.0.0.2", "127.0.1.1", "0.0.0.0", "[::1]", "itself"]
        assert asked.stdout == "".join(f"{name} hello\n" for name in names)
        if (await connection.run("command -v curl")).exit_status:
            pytest.skip("curl is missing here; the Python part passed")
        for name in (*names, "app.localhost", "127.9.8.7", "$(hostname)"):
            answer = await connection.run(f"curl -sS -g http://{name}:8000/")
            assert (answer.stdout, answer.stderr) == ("hello", ""), name
        server.terminate()


_OUTSIDE = r"""
import os, socket, time, urllib.request
print(urllib.request.getproxies(), [name for name in os.environ if "proxy" in name.lower()])
for address in "10.255.255.1", "192.168.0.1", "169.254.169.254", "100.100.100.200", "2001:4860::1":
    began = time.monotonic()
    try:
        socket.create_connection((address, 80), 0.5)
    except OSError as error:
        print(type(error).__name__, time.monotonic() - began >= 0.4)
if os.path.exists("/proc/net/if_inet6"):  # what `localhost` is for a server that listens
    print({found[4][0] for found in socket.getaddrinfo("localhost", 80, socket.AF_INET6, flags=socket.AI_ADDRCONFIG)})
for name in ("does-not-exist.invalid", "app.localhost", socket.gethostname()):
    try:
        print(sorted({found[4][0] for found in socket.getaddrinfo(name, 80)}))
    except socket.gaierror as error:
        print(error.errno == socket.EAI_NONAME)
"""


async def test_the_network_looks_like_that_of_other_computers(lodging: LocalLodging) -> None:
    machine = await lodging.provider.create(lodging.spec("ordinary"))
    printed = str((await lodging.run(machine, "python3 - 2>&1", input=_OUTSIDE)).stdout).splitlines()
    silent = "TimeoutError True"
    localhost = ["{'::1'}"] if os.path.exists("/proc/net/if_inet6") else []
    assert printed == ["{} []", *[silent] * 4, "OSError False", *localhost, "True", "['127.0.0.1', '::1']", "['127.0.1.1']"]


async def test_names_and_addresses_outside_are_reached_without_a_proxy(lodging: LocalLodging) -> None:
    """The server is on the host, whose own addresses the operator has to allow."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this host has no address but loopback")
        own = probe.getsockname()[0]

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"the server speaks first")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(greet, own, 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        ask = f"import socket; print(socket.create_connection(({own!r}, {port}), 5).recv(99).decode(), end='')"
        allowed = await lodging.provider.create(lodging.spec("allowed", egress_allow=(f"{own}:{port}",)))
        assert (await lodging.run(allowed, "python3 -", input=ask)).stdout == "the server speaks first"
        blocked = await lodging.provider.create(lodging.spec("blocked"))
        began = time.monotonic()
        assert (await lodging.run(blocked, "python3 -", input=ask)).exit_status != 0
        blocked_connections = await refusals(lodging.provider, "blocked", began)
        assert [(refusal.host, refusal.port) for refusal in blocked_connections.refused] == [(own, port)]


_WITHOUT_NF_TABLES = """
import ctypes, platform, struct, sys
from gibil_bot.providers.local import seccomp, syscalls
call = seccomp._SOCKET_CALLS["socket"][0 if platform.machine() == "x86_64" else 1]
code = [(0x20, 0, 0, 0), (0x15, 0, 5, call), (0x20, 0, 0, 16), (0x15, 0, 3, 16), (0x20, 0, 0, 32), (0x15, 0, 1, 12)]
code += [(0x06, 0, 0, 0x50000 | 93), (0x06, 0, 0, 0x7FFF0000)]
raw = b"".join(struct.pack("=HBBI", *each) for each in code)
buffer = ctypes.create_string_buffer(raw, len(raw))
syscalls.prctl(38, 1)
record = seccomp._Program(len(code), ctypes.addressof(buffer))
syscalls.prctl(22, 2, ctypes.addressof(record))
from gibil_bot.providers.local.daemon import main
main(sys.argv[1])
"""
"""Starts a daemon that can open no netlink socket of the packet filter: EPROTONOSUPPORT, as on a kernel without one."""


async def test_without_nf_tables_programs_find_the_proxy_in_their_configuration(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with local_lodging(tmp_path / "data", shared_folder(tmp_path_factory)) as lodging:
        command = [sys.executable, "-c", _WITHOUT_NF_TABLES, str(lodging.data_dir)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        await asyncio.to_thread(subprocess.run, command, check=True, env=environment, timeout=patient(60))
        machine = await lodging.provider.create(lodging.spec("old"))
        script = "env | grep -i proxy; git config --get http.proxy; getent hosts example.com; cat /proc/net/route | wc -l; "
        script += "cat .config/pip/pip.conf .npmrc .yarnrc.yml .cargo/config.toml | grep -c 127.0.0.1:3128; stat -c %a /root"
        done = await lodging.run(machine, script)
        assert str(done.stdout).split() == ["http://127.0.0.1:3128", "1", "6", "700"], done.stderr
        blocked = await lodging.run(
            machine,
            "printf 'CONNECT 10.9.8.7:443 HTTP/1.1\\r\\n\\r\\n' | bash -c "
            "'exec 3<>/dev/tcp/127.0.0.1/3128; cat >&3; head -1 <&3'",
        )
        assert "403" in str(blocked.stdout)


async def test_a_program_that_asks_the_proxy_for_the_machine_itself_gets_an_explanation(lodging: LocalLodging) -> None:
    machine = await lodging.provider.create(lodging.spec("asker"))
    script = r"""
import os, urllib.request
os.environ["http_proxy"] = "http://127.0.0.1:3128"
for host in ("127.0.0.1", "0.0.0.0", "[::1]", "asker", "x.localhost"):
    try:
        urllib.request.urlopen(f"http://{host}:9/")
    except urllib.error.HTTPError as error:
        print(error.code, error.read().decode().strip())
"""
    printed = str((await lodging.run(machine, "python3 - 2>&1", input=script)).stdout).splitlines()
    assert len(printed) == 5
    for line in printed:
        assert line.startswith("403 gibil: ")
        assert " is this machine itself: connect to it without the proxy" in line
        assert "GIBIL_EGRESS_ALLOW" not in line
