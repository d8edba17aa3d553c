"""Waits for servers to run: however many are waited for, one list answers for all, and one call reads all their actions.

A server that runs is seen in the list. Its actions are read when it looks stuck: while it is `off`, and else ever more rarely,
as a creation that failed may leave its server `initializing` for ever ("An action should be waited upon",
https://docs.hetzner.cloud/reference/cloud#actions).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

from gibil_bot.errors import GibilError
from gibil_bot.providers.hetzner.api import HetznerApi, Json, Refused, action_error

_log = logging.getLogger(__name__)

_MISSES = 3
"""A server that was just made may be missing from a list or two; one that stays away is gone."""
_FIRST_READ = 8
"""After so many rounds actions are read, then again after 1, 2, 4 … more. Those of a server that is `off` are read at once."""
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
    """`list_servers` brings all of ours; it is called every `every_s` while somebody waits."""

    def __init__(self, api: HetznerApi, list_servers: Callable[[], Awaitable[list[Json]]], every_s: float) -> None:
        self._api = api
        self._list_servers = list_servers
        self._every_s = every_s
        self._waiters: set[_Waiter] = set()
        self._looking: asyncio.Task[None] | None = None

    async def running(self, server_id: int, actions: tuple[int, ...] = (), doing: str = "start a server") -> Json | None:
        """The server once it runs and its firewalls are applied; None if it is gone.

        `actions` are those that should make it run. When all have ended and it is `off`, that server is returned. Raises
        Refused when one of them failed, and what the list raises. Bound the wait yourself.
        """
        waiter = _Waiter(server_id, actions, doing, asyncio.get_running_loop().create_future())
        self._waiters.add(waiter)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            return await waiter.future
        finally:
            self._waiters.discard(waiter)

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})

    async def _look(self) -> None:
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
                    _judge(waiter, servers.get(waiter.server_id), actions if waiter in stuck else None)

    async def _read_actions(self, wanted: Collection[int]) -> dict[int, Json]:
        """Those that can't be found are left out: one of many must not fail all who wait."""
        numbers = sorted(wanted)
        found: dict[int, Json] = {}
        for start in range(0, len(numbers), _IDS_PER_CALL):
            query = {"id": numbers[start : start + _IDS_PER_CALL]}
            try:
                answer = await self._api.call("GET", "/actions", "read what servers wait for", query=query)
            except Refused as error:
                if error.reason not in ("not_found", "invalid_input"):
                    raise
                _log.warning("%s", error)
                continue
            found |= {int(action["id"]): action for action in answer["actions"]}
        return found


def is_ready(server: Json) -> bool:
    """It runs, and no firewall of it is still `pending` (https://docs.hetzner.cloud/reference/cloud#servers, `public_net`)."""
    firewalls = server["public_net"].get("firewalls") or ()
    return server["status"] == "running" and all(each.get("status") == "applied" for each in firewalls)


def _judge(waiter: _Waiter, server: Json | None, actions: dict[int, Json] | None) -> None:
    """`actions`: read in this round; None if they weren't."""
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
