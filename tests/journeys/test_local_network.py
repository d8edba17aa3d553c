"""The network of a local machine for its programs: the machine itself by every name, everything else through a proxy."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.doubles.machines import LocalLodging, guest_lodging
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
    if name != "[::1]":  # urllib finds it in no list that httpx can read
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
        names = ["localhost", "127.0.0.1", "127.0.0.2", "127.0.1.1", "0.0.0.0", "itself"]
        assert asked.stdout == "".join(f"{name} hello\n" for name in names)
        if (await connection.run("command -v curl")).exit_status:
            pytest.skip("curl is missing here; the Python part passed")
        for name in (*names, "[::1]", "app.localhost", "127.9.8.7", "$(hostname)"):
            answer = await connection.run(f"curl -sS -g http://{name}:8000/")
            assert (answer.stdout, answer.stderr) == ("hello", ""), name
        server.terminate()


async def test_a_program_that_asks_the_proxy_for_the_machine_itself_gets_an_explanation(lodging: LocalLodging) -> None:
    machine = await lodging.provider.create(lodging.spec("asker"))
    script = r"""
import os, urllib.request
for name in ("no_proxy", "NO_PROXY"):
    del os.environ[name]
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
