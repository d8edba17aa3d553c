"""Waits for servers to run: however many are being waited for, one list answers for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from gibil_bot.errors import GibilError
from gibil_bot.machines.hetzner_api import Json

_MISSES = 3
"""A server that was just made may be missing from a list or two; one that stays away is gone."""


@dataclass(eq=False, slots=True)
class _Waiter:
    server_id: int
    future: asyncio.Future[Json | None]
    misses: int = 0


class Watch:
    """`list_servers` brings all of ours; it is called every `every_s` while somebody waits."""

    def __init__(self, list_servers: Callable[[], Awaitable[list[Json]]], every_s: float) -> None:
        self._list_servers = list_servers
        self._every_s = every_s
        self._waiters: set[_Waiter] = set()
        self._looking: asyncio.Task[None] | None = None

    async def running(self, server_id: int) -> Json | None:
        """The server once it runs; None if it is gone. Bound the wait yourself. Raises what the list raises."""
        waiter = _Waiter(server_id, asyncio.get_running_loop().create_future())
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
            try:
                servers = {server["id"]: server for server in await self._list_servers()}
            except GibilError as error:
                for waiter in waiters:
                    if not waiter.future.done():
                        waiter.future.set_exception(error)
                continue
            for waiter in waiters:
                if not waiter.future.done():
                    _judge(waiter, servers.get(waiter.server_id))


def _judge(waiter: _Waiter, server: Json | None) -> None:
    if server is None or server["status"] == "deleting":
        waiter.misses += 1
        if waiter.misses == _MISSES:
            waiter.future.set_result(None)
    elif server["status"] == "running":
        waiter.future.set_result(server)
