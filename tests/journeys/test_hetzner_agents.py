"""What an agent on a cloud server reaches: real rules of the packet filter, and the proxy over real SSH."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gibil_bot.errors import MachineNotFound
from gibil_bot.providers.hetzner.agent_network import AgentNetworks
from gibil_bot.providers.keyring import ProjectKeyring
from gibil_bot.providers.lifecycle import MachineFactory, port_forwarder, script_runner
from gibil_bot.providers.local.outbound import Outbound
from gibil_bot.registries import hosts
from gibil_bot.ssh import client
from tests.doubles.gatekit import http_server
from tests.doubles.hetzner import hetzner_double
from tests.doubles.hetzner_guests import Image, local_guests
from tests.doubles.hetzner_state import State
from tests.doubles.machines import shared_folder
from tests.doubles.tools import needs

_REACHED = """python3 -c '
import socket, urllib.request
def direct(host, port):
    try:
        socket.create_connection((host, port), 5).close()
        return "reached"
    except OSError:
        return "blocked"
def asked(url):
    try:
        return urllib.request.urlopen(url, timeout=20).read().decode()
    except OSError as error:
        return str(getattr(error, "code", "blocked"))
print(direct("1.1.1.1", 443), direct("169.254.169.254", 80), asked("http://pypi.org/"), asked("http://evil.example/"))
'"""


@needs("jq", "curl", "tmux")  # missing packages are installed at boot, which takes long
async def test_an_agent_on_a_server_reaches_its_allow_list_over_the_proxy_and_nothing_else(
    hetzner_image: Image, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, egress: str
) -> None:
    async with (
        local_guests(tmp_path / "data", shared_folder(tmp_path_factory), hetzner_image) as guests,
        hetzner_double(State(guests=guests)) as double,
        http_server(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nserved") as public,
    ):

        async def resolve(_host: str, _port: int) -> list[tuple[Any, ...]]:
            return [("127.0.0.1", public.port)]

        guests.egress = tuple(filter(None, egress.split(",")))  # nftables is installed from the registry
        keyring = ProjectKeyring(tmp_path / "keys", double.token)
        provider = double.provider(ssh_port=guests.port, run_on=script_runner(keyring, client.connect))

        def of_a_process() -> AgentNetworks:
            outbound = Outbound(("pypi.org", "evil.example"), resolve=resolve)
            return AgentNetworks(provider._api, port_forwarder(keyring), 0.02, lambda: outbound)

        networks = of_a_process()
        factory = MachineFactory(provider=provider, keyring=keyring, connect_shell=client.connect)
        try:
            machine, shell = await factory.create("worker", "tests", 600)

            async def printed(script: str, **more: Any) -> list[str]:
                done = await shell.run(f"{{ {script}\n}} 2>/dev/null", **more)
                return done.stdout.decode().split()

            def outgoing() -> list[list[str]]:
                """Return where the server's firewalls let traffic go; empty if everywhere."""
                (server,) = double.state.servers.values()
                applied = [each["id"] for each in server["public_net"]["firewalls"] if each["status"] == "applied"]
                rules = [rule for number in applied for rule in double.state.firewalls[number]["rules"]]
                return [rule["destination_ips"] for rule in rules if rule["direction"] == "out"]

            assert (await printed(_REACHED))[0] == "reached"
            assert outgoing() == []
            limited = await networks.limit(machine, hosts(["pypi"]), shell)
            assert outgoing() == [["192.0.2.1/32"]]
            assert await printed(_REACHED, env=limited.environment) == ["blocked", "blocked", "served", "403"]
            assert [refusal.host for refusal in networks.refusals("worker", 0).refused] == ["evil.example"]
            await networks.close()
            networks = of_a_process()
            assert await networks.limit(machine, hosts([]), shell) == limited, "programs that go on use the same port"
            assert await printed(_REACHED, env=limited.environment) == ["blocked", "blocked", "403", "403"]

            for _again in range(2):
                await networks.lift(machine, shell)
                assert outgoing() == []
            assert (await printed(_REACHED, env=limited.environment))[::2] == ["reached", "blocked"], "the proxy is gone"
            with pytest.raises(MachineNotFound):
                await provider.restrict_egress("another", (), shell)
            await shell.close()
        finally:
            await networks.close()
            await factory.close()
