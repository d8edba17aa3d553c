"""Records regularly that this bot is alive, and stops its work when others may have claimed it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Sequence

from gibil_bot.clock import passed_s
from gibil_bot.errors import ConfigurationError, GibilError, StoreError
from gibil_bot.model import Host
from gibil_bot.ports import Hosts
from gibil_bot.runs.sql.hosts import UNSEEN_S

log = logging.getLogger("gibil.presence")

EVERY_S = 10.0
RETRY_S = 2.0
STOPS = 5 / 6
"""Others end the leases of a bot that they haven't seen for UNSEEN_S. This one stops its work after that part of the time, so
that it has stopped when another one continues it.
"""


class Presence:
    """Call `start` before the bot claims anything, `run()` while it is running, and `leave` at its end.

    `on_bots` is called with the number of running bots, this one included. `on_lapse` is called when the database wasn't
    reached for so long that other processes may soon claim this one's work, and repeatedly until it is reached again. The
    time is our own, because the database can't be asked then.
    """

    def __init__(
        self,
        hosts: Hosts,
        host: Host,
        process: str,
        *,
        on_bots: Sequence[Callable[[int], None]] = (),
        on_lapse: Sequence[Callable[[], None]] = (),
        every_s: float = EVERY_S,
        unseen_s: float = UNSEEN_S,
    ) -> None:
        self._hosts, self._host, self._process = hosts, host, process
        self._on_bots, self._on_lapse = on_bots, on_lapse
        self._every_s, self._stops_s = every_s, STOPS * unseen_s
        self._seen_at = -math.inf
        self._has_copy = False

    async def start(self) -> None:
        """Raises ConfigurationError if another running bot has the same host id, StoreError."""
        await self._check_copies()
        began = passed_s()
        await self._hosts.start(self._host, self._process)
        await self._look_around()
        self._seen_at = began

    async def run(self) -> None:
        lapsing = asyncio.create_task(self._watch())
        wait_s = self._every_s
        try:
            while True:
                await asyncio.sleep(wait_s)
                began = passed_s()
                try:
                    await self._hosts.present(self._host, self._process)
                    await self._look_around()
                except StoreError as error:
                    log.error("could not tell the database that this bot is alive: %s", error.message)
                    wait_s = min(RETRY_S, self._every_s)
                else:
                    self._seen_at, wait_s = began, self._every_s
                if lapsing.done():
                    lapsing.result()
        finally:
            lapsing.cancel()
            await asyncio.gather(lapsing, return_exceptions=True)

    def holds(self) -> bool:
        """Return whether no other bot may have ended this one's leases, by our clock. Needs no database."""
        return not self._has_copy and passed_s() < self._seen_at + self._stops_s

    async def leave(self) -> None:
        with contextlib.suppress(GibilError):  # then the others notice it after UNSEEN_S
            await self._hosts.leave(self._process)

    async def _look_around(self) -> None:
        """Count the running bots. While another one has this host's id, this one does nothing: they would stop each other."""
        hosts = await self._hosts.all()
        self._has_copy = any(seen.host.id == self._host.id and seen.bots > 1 for seen in hosts)
        if self._has_copy:
            log.error(
                "another bot runs with the id of this host, %s, because the data directory was copied: both do nothing until "
                "one is stopped; delete host.id in its data directory before it starts again",
                self._host.id,
            )
            for lapsed in self._on_lapse:
                lapsed()
            return
        bots = sum(not seen.is_away for seen in hosts)
        for changed in self._on_bots:
            changed(bots)

    async def _watch(self) -> None:
        while True:
            left_s = self._seen_at + self._stops_s - passed_s()
            if left_s <= 0:
                for lapsed in self._on_lapse:
                    lapsed()
            # A sleep goes on when the computer was suspended, so it is short.
            most_s = min(RETRY_S, self._every_s)
            await asyncio.sleep(min(left_s, most_s) if left_s > 0 else most_s)

    async def _check_copies(self) -> None:
        """A data directory that was copied to another host has this host's id. Two bots with one id would stop each other."""
        if (before := await self._other_name()) is None:
            return
        # A container may have a new name after a crash.
        log.warning("host %s has the id of this one; waiting whether its bot is running", before[0])
        await asyncio.sleep(self._every_s * 1.2)
        after = await self._other_name()
        if after is not None and after[1] > before[1]:
            raise ConfigurationError(
                (
                    f"the bot of host {after[0]} has the same host id {self._host.id}, because the data directory was copied; "
                    "delete host.id in this one, and start again",
                )
            )

    async def _other_name(self) -> tuple[str, float] | None:
        """Return the name of a host with our id and another name whose bot is alive, and when it was seen."""
        for seen in await self._hosts.all():
            if seen.host.id == self._host.id and seen.host.name != self._host.name and not seen.is_away:
                return seen.host.name, seen.seen_at.timestamp()
        return None
