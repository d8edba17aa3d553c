"""What processes of a real machine reach while an agent works on it, on its forks, and after that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gibil_bot.ports import Filtering, Forking, Restricting
from gibil_bot.registries import hosts
from gibil_bot.views import blocked_view
from tests.doubles.machines import LocalLodging, guest_lodging

pytestmark = pytest.mark.usefixtures("local_machines")

_REACH = """
import socket, ssl, sys, urllib.request
def reach(target):
    try:
        if target.startswith("https:"):
            return str(urllib.request.urlopen(target, timeout=20).status)
        host, _, port = target.partition(":")
        with socket.create_connection((host, int(port)), 1) as tried:
            tried.settimeout(5)
            tried.sendall(b"SSH-2.0-x    ")
            return tried.recv(100).decode() or "ended"
    except OSError:
        return "blocked"
"""
_PYPI, _NPM = "https://pypi.org/simple/six/", "https://registry.npmjs.org/left-pad"

# A process of an earlier task, with an open connection: it tries again when its folder has the file `go`.
_LEFT_BEHIND = f"""
import os, time
open_before = socket.create_connection(("registry.npmjs.org", 443), 20)
open("/tmp/left", "w").write("ready")
while not os.path.exists("/tmp/go"):
    time.sleep(0.02)
open_before.settimeout(20)
try:
    ended = "ended" if open_before.recv(1) == b"" else "open"
except ConnectionError:
    ended = "ended"
open("/tmp/.left", "w").write(ended + " " + reach({_NPM!r}))
os.rename("/tmp/.left", "/tmp/left")
"""


@pytest.fixture
async def lodging(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalLodging]:
    async with guest_lodging(tmp_path_factory) as lodging:
        yield lodging


async def test_a_machine_and_its_forks_reach_only_the_allow_list_until_it_is_lifted(lodging: LocalLodging, egress: str) -> None:
    provider = lodging.provider
    assert isinstance(provider, Restricting)
    assert isinstance(provider, Forking)
    assert isinstance(provider, Filtering)

    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"private")
        writer.close()

    async def reached(name: str, *targets: str) -> list[str]:
        machine = await provider.get(name)
        assert machine is not None
        script = _REACH + f"print(*map(reach, {targets!r}))"
        return str((await lodging.run(machine, "python3 -", input=script, check=True)).stdout).split()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    loopback = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        allowed = (*filter(None, egress.split(",")), loopback)
        spec = lodging.spec("worker", egress_allow=allowed)
        machine = await provider.create(spec)
        await lodging.run(machine, "cat >/tmp/left.py", input=_REACH + _LEFT_BEHIND, check=True)
        start = "nohup python3 /tmp/left.py >/tmp/left.log 2>&1 & until test -s /tmp/left; do sleep 0.02; done"
        await lodging.run(machine, start, check=True)
        assert await reached("worker", _PYPI, _NPM, loopback) == ["200", "200", "private"]

        await provider.restrict_egress("worker", hosts(["pypi"]), shell=None)  # type: ignore[arg-type]
        left = "touch /tmp/go; while grep -q ready /tmp/left; do sleep 0.02; done; cat /tmp/left"
        assert (await lodging.run(machine, left, check=True)).stdout == "ended blocked"
        targets = _PYPI, _NPM, loopback, "169.254.169.254:80", "1.1.1.1:22", "1.1.1.1:443"
        only_pypi = ["200", "blocked", "ended", "blocked", "blocked", "blocked"]
        assert await reached("worker", *targets) == only_pypi
        (blocked, *_others) = blocked_view(await provider.refusals("worker", 0))
        assert "registry.npmjs.org" in blocked
        assert loopback in blocked
        assert "1.1.1.1:22" in blocked
        assert "pypi.org" not in blocked

        layer = await provider.fork_layer("worker", "0123456789abcdef", stop=True)
        await provider.create(lodging.spec("fork", egress_allow=allowed, layer=layer.id))
        assert await reached("fork", *targets[:3]) == only_pypi[:3]
        assert await reached("worker", *targets[:3]) == only_pypi[:3], "it was started again"
        await provider.lift_egress("worker", shell=None)  # type: ignore[arg-type]
        assert await reached("worker", *targets[:3]) == ["200", "200", "private"]
        assert await reached("fork", _NPM) == ["blocked"]
