"""Reuse of hours that are paid (`GIBIL_REUSE=rebuild`): a burned machine is switched off and kept until its hour is over.

The next machine for the same repository, trust and owner is then that server, rebuilt: Hetzner overwrites its disk with the
image, and it boots with user-data of its own, as any new one. Until then its disk holds what the last run left, which is why
nobody reuses unless told to. Only the process that set a server aside takes it again, so that no two can; when that process
ends it burns its spares, and if it was killed, their label `gibil-expires` has them swept.
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
from gibil_bot.providers.hetzner.api import HetznerApi, Refused, action_error
from gibil_bot.providers.hetzner.delete import ServerDeleter
from gibil_bot.providers.hetzner.server_types import Json, Offer, started_hours

_log = logging.getLogger(__name__)

WORTH_KEEPING = timedelta(minutes=10)
"""With less of its hour left, a server is not set aside, and not taken again."""
BEFORE_THE_HOUR = timedelta(minutes=3)
"""When a spare has to go, so that no further hour begins."""


@dataclass(frozen=True, slots=True)
class _Spare:
    server: Json
    reuse: str
    offer: Offer
    until: datetime


def reuse_value(spec: MachineSpec) -> str | None:
    """Who may have a server after this machine; None: nobody, as it belongs to no repository."""
    repository = spec.labels.get("repository") or spec.labels.get("repo")
    if not repository:
        return None
    text = "\n".join((repository, "untrusted" if spec.untrusted else "trusted", spec.owner))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class RebuildPool:
    """`within_s`: how long switching a server off may take before it is deleted instead."""

    def __init__(self, api: HetznerApi, look_every_s: float, within_s: float) -> None:
        self._api = api
        self._look_every_s, self._within_s = look_every_s, within_s
        self._spares: list[_Spare] = []

    async def set_aside(self, server: Json) -> bool:
        """Instead of burning it: nameless and switched off. False, if that is not worth it or does not work."""
        reuse = server["labels"].get(labels.REUSE)
        until = self._paid_until(server) - BEFORE_THE_HOUR
        if not reuse or until - self._now() < WORTH_KEEPING:
            return False
        marks = {
            labels.CREATED_BY: labels.OURS,
            labels.OWNER: server["labels"].get(labels.OWNER, ""),
            labels.EXPIRES: labels.time_value(until),
            labels.SPARE: "yes",
        }
        path, doing = f"/servers/{server['id']}", f"set machine {server['name']} aside"
        try:
            body = {"name": f"gibil-spare-{server['id']}", "labels": marks}
            async with asyncio.timeout(self._within_s):
                kept = (await self._api.call("PUT", path, doing, body=body, burning=True))["server"]
                switched_off = await self._api.call("POST", f"{path}/actions/poweroff", doing, burning=True)
                await self._finish(switched_off["action"], doing)
        except TimeoutError:
            _log.info("cannot %s: it is not off after %.0f s; burning it", doing, self._within_s)
            return False
        except ProviderError as error:
            _log.info("%s; burning it", error)
            return False
        offer = Offer(kept["server_type"]["name"], kept["location"]["name"])
        self._spares.append(_Spare(kept, reuse, offer, until))
        return True

    def take(self, spec: MachineSpec, offers: list[Offer]) -> Json | None:
        """A server that may become that machine; from now on it is the caller's to rebuild or burn."""
        reuse = reuse_value(spec)
        for spare in tuple(self._spares):
            if spare.until - self._now() < WORTH_KEEPING:
                continue
            if spare.reuse == reuse and spare.offer in offers:
                self._spares.remove(spare)
                return spare.server
        return None

    async def rebuild(self, server: Json, name: str, written: dict[str, str], image: str, user_data: str) -> tuple[int, ...]:
        """Make it another machine, which boots when this returns. Returns the actions to watch. Raises ProviderError.

        It has no time limit of its own.
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
        """Remove and return a server that is set aside and wanted; the caller has to delete it."""
        for spare in self._spares:
            if wanted(spare.server):
                self._spares.remove(spare)
                return spare.server
        return None

    def forget_all(self) -> list[Json]:
        """The servers that are set aside, for whoever burns them."""
        servers = [spare.server for spare in self._spares]
        self._spares.clear()
        return servers

    def forget(self, server_id: int) -> None:
        """Somebody burns it."""
        self._spares = [spare for spare in self._spares if spare.server["id"] != server_id]

    async def _finish(self, action: Json, doing: str) -> None:
        """Wait for its end, without a time limit. Raises Refused when the action fails."""
        pause = self._look_every_s
        while action["status"] == "running":
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 8 * self._look_every_s)
            action = (await self._api.call("GET", f"/actions/{action['id']}", doing, burning=True))["action"]
        if (failed := action_error(action, doing)) is not None:
            raise failed

    def _paid_until(self, server: Json) -> datetime:
        """By Hetzner's clock, as everything here."""
        created = datetime.fromisoformat(server["created"]).astimezone(UTC)
        return created + timedelta(hours=started_hours(created, self._now()))

    def _now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self._api.clock_ahead_s)


async def delete_one(api: HetznerApi, burner: ServerDeleter, spares: RebuildPool | None, dedicated_only: bool) -> bool:
    """Delete a spare server to make room below a limit of the project: one of this process, else any with the label.

    False if none exists. A process whose spare is gone makes a new server instead.
    """

    def is_wanted(server: Json) -> bool:
        is_dedicated = server["server_type"]["cpu_type"] == "dedicated"
        return labels.SPARE in server["labels"] and (is_dedicated or not dedicated_only)

    server = spares.pop(is_wanted) if spares is not None else None
    if server is not None:
        await burner.burn(server)
        return True
    query = {"label_selector": f"{labels.selector()},{labels.SPARE}"}
    for listed in await api.pages("/servers", "servers", "look for spare servers", query=query):
        try:  # another process may have taken it meanwhile
            server = (await api.call("GET", f"/servers/{listed['id']}", "look at a spare server"))["server"]
        except Refused as error:
            if error.reason != "not_found":
                raise
            continue
        if is_wanted(server):
            await burner.burn(server)
            return True
    return False
