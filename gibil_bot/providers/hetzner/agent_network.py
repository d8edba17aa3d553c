"""What servers reach while an agent works on them: the allow-list, through an egress proxy of this process over SSH.

Everything else is dropped twice: on the server, by its packet filter (scripts/agent_network.py), which also ends connections
that were open, and in front of it, by a firewall of Hetzner, which root on the server can't undo. The proxy connects to public
addresses only, because it is in the network of the bot, which a server has no business with; so of GIBIL_EGRESS_ALLOW only
public hosts count. Without this process there is no way out at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from gibil_bot.errors import ProviderError
from gibil_bot.model import EgressRestriction, Machine, Refusals
from gibil_bot.ports import Shell
from gibil_bot.providers.hetzner.api import HetznerApi, Json
from gibil_bot.providers.hetzner.project import ensure_agent_firewall
from gibil_bot.providers.local.egress_proxy import EgressProxy
from gibil_bot.providers.local.outbound import Outbound, RefusalLog
from gibil_bot.scripts.agent_network import lift_script, limit_script, proxy_environment
from gibil_bot.ssh.answers import last_line

if TYPE_CHECKING:  # it imports an SSH library, and most commands need none
    from gibil_bot.ssh.remote_forwarding import KeptForward

ForwardPort = Callable[[Machine, int], "AbstractAsyncContextManager[KeptForward]"]
"""Forwards a loopback port of a machine to one of this host during the block."""

_FIREWALL_S = 60.0
"""How long Hetzner may take to apply a firewall."""
_SCRIPT_S = 180.0
"""nftables may have to be installed."""


@dataclass(frozen=True)
class _Way:
    """The way out of one server."""

    proxy: EgressProxy
    refusals: RefusalLog
    forward: KeptForward
    """From the server's loopback port."""
    open: contextlib.AsyncExitStack


class AgentNetworks:
    """The servers on which agents of this process work. `forward` None: none can."""

    def __init__(
        self,
        api: HetznerApi,
        forward: ForwardPort | None,
        look_every_s: float,
        outbound: Callable[[], Outbound] = lambda: Outbound(()),
    ) -> None:
        """`outbound`: the way to public addresses; tests pass one to their own."""
        self._api, self._look_every_s = api, look_every_s
        self._forward, self._outbound = forward, outbound
        self._ways: dict[str, _Way] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """One for each machine: a machine may let its own scripts wait, and no others."""

    def _lock(self, machine: Machine) -> asyncio.Lock:
        return self._locks.setdefault(machine.name, asyncio.Lock())

    async def limit(self, machine: Machine, allow: tuple[str, ...], shell: Shell) -> EgressRestriction:
        """See ports.Restricting.restrict_egress."""
        async with self._lock(machine):
            way = self._ways.get(machine.name)
            if way is not None and way.forward.lost.done():
                await self.forget(machine.name)
                way = None
            way = way or await self._open(machine)
            await way.proxy.restrict(allow)
            await _run(machine.name, shell, limit_script())  # installs a package, so it comes before the firewall
            await self._set_firewall(machine, applied=True)
            return EgressRestriction(environment=proxy_environment(way.forward.port))

    async def lift(self, machine: Machine, shell: Shell) -> None:
        """See ports.Restricting.lift_egress."""
        async with self._lock(machine):
            await self._set_firewall(machine, applied=False)
            await _run(machine.name, shell, lift_script())
            await self.forget(machine.name)

    def refusals(self, name: str, since: float) -> Refusals:
        """Return what the proxy blocked. What programs tried without it isn't known."""
        way = self._ways.get(name)
        return way.refusals.since(since) if way is not None else Refusals()

    async def forget(self, name: str) -> None:
        """Close the way out of a server."""
        if way := self._ways.pop(name, None):
            await way.open.aclose()

    async def close(self) -> None:
        for name in tuple(self._ways):
            await self.forget(name)

    async def _set_firewall(self, machine: Machine, *, applied: bool) -> None:
        """Apply or remove the firewall that lets nothing out, and wait until Hetzner has done it."""
        doing = f"limit what {machine.name} reaches" if applied else f"let {machine.name} reach everything"
        firewall = await ensure_agent_firewall(self._api)
        verb = "apply_to" if applied else "remove_from"
        deadline = asyncio.get_running_loop().time() + _FIREWALL_S
        asked = False
        while True:
            server = (await self._api.call("GET", f"/servers/{machine.id}", doing))["server"]
            status = {each["id"]: each["status"] for each in server["public_net"]["firewalls"]}.get(firewall)
            if status == ("applied" if applied else None):
                return
            if not asked and (status is None) is applied:
                body = {verb: [{"type": "server", "server": {"id": int(machine.id)}}]}
                await self._api.call("POST", f"/firewalls/{firewall}/actions/{verb}_resources", doing, body=body)
                asked = True
                continue
            if asyncio.get_running_loop().time() > deadline:
                raise ProviderError(f"cannot {doing}: Hetzner didn't change its firewall within {_FIREWALL_S:.0f} s")
            await asyncio.sleep(self._look_every_s)

    async def _open(self, machine: Machine) -> _Way:
        if self._forward is None:
            raise ProviderError(f"cannot limit what {machine.name} reaches: this process has no key to log in")
        outbound = self._outbound()
        proxy = EgressProxy(outbound, destination=lambda _connection: None)
        await proxy.restrict(())
        async with contextlib.AsyncExitStack() as stack:
            listener = socket.create_server(("127.0.0.1", 0))
            port = listener.getsockname()[1]
            serving = asyncio.create_task(proxy.serve(listener))
            stack.push_async_callback(_end, serving)
            kept = await stack.enter_async_context(self._forward(machine, port))
            way = self._ways[machine.name] = _Way(proxy, outbound.refusals, kept, stack.pop_all())
        return way


def is_limited(server: Json) -> bool:
    """Return whether a server has another firewall than all have, so that it isn't used for a further machine."""
    return len(server["public_net"].get("firewalls") or ()) > 1


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


async def _run(name: str, shell: Shell, script: str) -> None:
    done = await shell.run(script, timeout_s=_SCRIPT_S)
    if done.exit_status != 0:
        raise ProviderError(f"machine {name}: {last_line(done.stderr, f'exit status {done.exit_status}')}")
