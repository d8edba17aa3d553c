"""Waiting for servers to run: one list and one call for actions serve all waiting callers.

The list shows when a server runs. Its actions are read when it looks stuck: in each round while it is `off`, otherwise less and
less often, because a failed creation may leave its server `initializing` for ever ("An action should be waited upon",
https://docs.hetzner.cloud/reference/cloud#actions).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

from gibil_bot.errors import GibilError
from gibil_bot.providers.hetzner.api import HetznerApi, Json, Rejected, action_error

_log = logging.getLogger(__name__)

_MISSES = 3
"""A new server may be missing from a list or two. One that is missing from this many is gone."""
_FIRST_READ = 8
"""Actions are read after this many rounds, then after 1, 2, 4 … more; those of a server that is `off` in the next round."""
_IDS_PER_CALL = 25


@dataclass(eq=False, slots=True)
class _Waiter:
    server_id: int
    actions: tuple[int, ...]
    doing: str
    future: asyncio.Future[Json | None]
    misses: int = 0
    rounds: int = 0
    read_at: int = _FIRST_READ
    pause: int = 1


class BootWait:
    """Waits for servers. `list_servers` returns all our servers; it is called every `every_s` seconds while a caller waits."""

    def __init__(self, api: HetznerApi, list_servers: Callable[[], Awaitable[list[Json]]], every_s: float) -> None:
        self._api = api
        self._list_servers = list_servers
        self._every_s = every_s
        self._waiters: set[_Waiter] = set()
        self._polling: asyncio.Task[None] | None = None

    async def running(self, server_id: int, actions: tuple[int, ...] = (), doing: str = "start a server") -> Json | None:
        """Return the server once it runs and its firewalls are applied, or None if it is gone.

        `actions` are those that should start it. When all have ended and the server is `off`, it is returned as well. Raises
        Rejected when one of them failed, and what the list raises. There is no time limit; the caller sets one.
        """
        waiter = _Waiter(server_id, actions, doing, asyncio.get_running_loop().create_future())
        self._waiters.add(waiter)
        if self._polling is None or self._polling.done():
            self._polling = asyncio.create_task(self._poll())
        try:
            return await waiter.future
        finally:
            self._waiters.discard(waiter)

    async def close(self) -> None:
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.wait({self._polling})

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            waiters = {waiter for waiter in self._waiters if not waiter.future.done()}
            if not waiters:
                return
            stuck = [waiter for waiter in waiters if waiter.rounds >= waiter.read_at]
            try:
                # Before the list: a server that the list shows as off although its actions have ended is really off.
                actions = await self._read_actions({number for waiter in stuck for number in waiter.actions})
                servers = {server["id"]: server for server in await self._list_servers()}
            except GibilError as error:
                for waiter in waiters:
                    if not waiter.future.done():
                        waiter.future.set_exception(error)
                continue
            for waiter in waiters:
                if not waiter.future.done():
                    _update_waiter(waiter, servers.get(waiter.server_id), actions if waiter in stuck else None)

    async def _read_actions(self, wanted: Collection[int]) -> dict[int, Json]:
        """Return the actions by ID. Those that don't exist are left out, so that one server can't fail the others."""
        numbers = sorted(wanted)
        found: dict[int, Json] = {}
        for start in range(0, len(numbers), _IDS_PER_CALL):
            query = {"id": numbers[start : start + _IDS_PER_CALL]}
            try:
                answer = await self._api.call("GET", "/actions", "read the actions of servers", query=query)
            except Rejected as error:
                if error.reason not in ("not_found", "invalid_input"):
                    raise
                _log.warning("%s", error)
                continue
            found |= {int(action["id"]): action for action in answer["actions"]}
        return found


def is_ready(server: Json) -> bool:
    """Return whether the server runs and all its firewalls are applied.

    https://docs.hetzner.cloud/reference/cloud#servers, `public_net`
    """
    firewalls = server["public_net"].get("firewalls") or ()
    return server["status"] == "running" and all(each.get("status") == "applied" for each in firewalls)


def _update_waiter(waiter: _Waiter, server: Json | None, actions: dict[int, Json] | None) -> None:
    """Apply what one round has shown. `actions` is None if they weren't read in this round."""
    waiter.rounds += 1
    if actions is not None:
        waiter.read_at, waiter.pause = waiter.rounds + waiter.pause, 2 * waiter.pause
    status = None if server is None else server["status"]
    if server is None or status == "deleting":
        waiter.misses += 1
        if waiter.misses == _MISSES:
            waiter.future.set_result(None)
    elif status == "running":
        if is_ready(server):
            waiter.future.set_result(server)
    elif actions is not None:
        own = [actions[number] for number in waiter.actions if number in actions]
        failed = next((error for action in own if (error := action_error(action, waiter.doing))), None)
        if failed is not None:
            waiter.future.set_exception(failed)
        elif status == "off" and all(action["status"] == "success" for action in own):
            waiter.future.set_result(server)
    elif status == "off" and waiter.pause == 1:
        waiter.read_at = waiter.rounds  # in the next round
