"""Reuse of paid hours (`GIBIL_REUSE=rebuild`): a destroyed machine's server is stopped and pooled until its paid hour ends.

The next machine of the same repository, trust and owner gets that server, rebuilt: Hetzner overwrites its disk with the image,
and it boots with its own user-data like a new one. Until then its disk holds what the last run left, which is why reuse is off
by default. Only the process that added a server to the pool can take it, so no two processes do. When that process ends, it
deletes its pooled servers; if it was killed, a sweep deletes them, because their label `gibil-expires` is set to that hour.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from gibil_bot.errors import ProviderError
from gibil_bot.model import MachineSpec
from gibil_bot.providers.hetzner import labels
from gibil_bot.providers.hetzner.api import HetznerApi, Rejected, action_error
from gibil_bot.providers.hetzner.delete import ServerDeleter
from gibil_bot.providers.hetzner.server_types import Candidate, Json, started_hours

_log = logging.getLogger(__name__)

WORTH_KEEPING = timedelta(minutes=10)
"""A server with less of its paid hour left is neither added to the pool nor taken from it."""
BEFORE_THE_HOUR = timedelta(minutes=3)
"""How long before the hour ends a pooled server is deleted, so that no further hour is billed."""


@dataclass(frozen=True, slots=True)
class _PooledServer:
    server: Json
    reuse: str
    candidate: Candidate
    until: datetime


def reuse_value(spec: MachineSpec) -> str | None:
    """Return a digest of who may reuse the machine's server; None if it belongs to no repository."""
    repository = spec.labels.get("repository") or spec.labels.get("repo")
    if not repository:
        return None
    text = "\n".join((repository, "untrusted" if spec.untrusted else "trusted", spec.owner))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class RebuildPool:
    """The pooled servers of this process. `within_s`: how long switching a server off may take; then it is deleted instead."""

    def __init__(self, api: HetznerApi, look_every_s: float, within_s: float) -> None:
        self._api = api
        self._look_every_s, self._within_s = look_every_s, within_s
        self._servers: list[_PooledServer] = []

    async def add(self, server: Json) -> bool:
        """Switch the server off and rename it. False if its paid hour is nearly over or a call failed."""
        reuse = server["labels"].get(labels.REUSE)
        until = self._paid_until(server) - BEFORE_THE_HOUR
        if not reuse or until - self._now() < WORTH_KEEPING:
            return False
        marks = {
            labels.CREATED_BY: labels.OURS,
            labels.OWNER: server["labels"].get(labels.OWNER, ""),
            labels.EXPIRES: labels.time_value(until),
            labels.POOLED: "yes",
        }
        path, doing = f"/servers/{server['id']}", f"keep the server of machine {server['name']}"
        try:
            body = {"name": f"gibil-spare-{server['id']}", "labels": marks}
            async with asyncio.timeout(self._within_s):
                updated = (await self._api.call("PUT", path, doing, body=body, deleting=True))["server"]
                switched_off = await self._api.call("POST", f"{path}/actions/poweroff", doing, deleting=True)
                await self._finish(switched_off["action"], doing)
        except TimeoutError:
            _log.info("cannot %s: it is not off after %.0f s; deleting it", doing, self._within_s)
            return False
        except ProviderError as error:
            _log.info("%s; deleting it", error)
            return False
        candidate = Candidate(updated["server_type"]["name"], updated["location"]["name"])
        self._servers.append(_PooledServer(updated, reuse, candidate, until))
        return True

    def acquire(self, spec: MachineSpec, candidates: list[Candidate]) -> Json | None:
        """Remove and return a server that may become that machine. The caller has to rebuild or delete it."""
        reuse = reuse_value(spec)
        for pooled in tuple(self._servers):
            if pooled.until - self._now() < WORTH_KEEPING:
                continue
            if pooled.reuse == reuse and pooled.candidate in candidates:
                self._servers.remove(pooled)
                return pooled.server
        return None

    async def rebuild(self, server: Json, name: str, written: dict[str, str], image: str, user_data: str) -> tuple[int, ...]:
        """Rebuild the server as another machine, which boots when this returns. Returns the IDs of the actions to wait for.

        Raises ProviderError. There is no time limit; the caller sets one.
        """
        path, doing = f"/servers/{server['id']}", f"rebuild a server as machine {name}"
        await self._api.call("PUT", path, doing, body={"name": name, "labels": written})
        body = {"image": image, "user_data": user_data}
        rebuilt = await self._api.call("POST", f"{path}/actions/rebuild", doing, body=body)
        await self._finish(rebuilt["action"], doing)
        if (await self._api.call("GET", path, doing))["server"]["status"] != "off":
            return ()
        return (int((await self._api.call("POST", f"{path}/actions/poweron", doing))["action"]["id"]),)

    def pop(self, wanted: Callable[[Json], bool]) -> Json | None:
        """Remove and return the first server for which `wanted` is true. The caller has to delete it."""
        for pooled in self._servers:
            if wanted(pooled.server):
                self._servers.remove(pooled)
                return pooled.server
        return None

    def forget_all(self) -> list[Json]:
        """Remove and return all servers. The caller has to delete them."""
        servers = [pooled.server for pooled in self._servers]
        self._servers.clear()
        return servers

    def forget(self, server_id: int) -> None:
        """Remove a server that the caller is deleting."""
        self._servers = [pooled for pooled in self._servers if pooled.server["id"] != server_id]

    async def _finish(self, action: Json, doing: str) -> None:
        """Wait for the end of an action, without a time limit. Raises Rejected when it fails."""
        pause = self._look_every_s
        while action["status"] == "running":
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 8 * self._look_every_s)
            action = (await self._api.call("GET", f"/actions/{action['id']}", doing, deleting=True))["action"]
        if (failed := action_error(action, doing)) is not None:
            raise failed

    def _paid_until(self, server: Json) -> datetime:
        """Return when the paid hour ends, by Hetzner's clock like all times here."""
        created = datetime.fromisoformat(server["created"]).astimezone(UTC)
        return created + timedelta(hours=started_hours(created, self._now()))

    def _now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self._api.clock_ahead_s)


async def delete_one(api: HetznerApi, deleter: ServerDeleter, pool: RebuildPool | None, dedicated_only: bool) -> bool:
    """Delete a pooled server to make room below a limit of the project: one of this process, else any with the label.

    False if none exists. A process whose pooled server is gone creates a new server instead.
    """

    def is_wanted(server: Json) -> bool:
        is_dedicated = server["server_type"]["cpu_type"] == "dedicated"
        return labels.POOLED in server["labels"] and (is_dedicated or not dedicated_only)

    server = pool.pop(is_wanted) if pool is not None else None
    if server is not None:
        await deleter.delete(server)
        return True
    query = {"label_selector": f"{labels.selector()},{labels.POOLED}"}
    for listed in await api.pages("/servers", "servers", "list pooled servers", query=query):
        try:  # another process may have rebuilt it meanwhile
            server = (await api.call("GET", f"/servers/{listed['id']}", "read a pooled server"))["server"]
        except Rejected as error:
            if error.reason != "not_found":
                raise
            continue
        if is_wanted(server):
            await deleter.delete(server)
            return True
    return False
