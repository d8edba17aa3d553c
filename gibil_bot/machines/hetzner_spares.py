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
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from gibil_bot.errors import ProviderError
from gibil_bot.machines import hetzner_labels as labels
from gibil_bot.machines.hetzner_api import HetznerApi, Refused
from gibil_bot.machines.hetzner_offers import Json, Offer, started_hours
from gibil_bot.model import MachineSpec

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


class Spares:
    def __init__(self, api: HetznerApi, look_every_s: float) -> None:
        self._api = api
        self._look_every_s = look_every_s
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
            kept = (await self._api.call("PUT", path, doing, body=body, burning=True))["server"]
            switched_off = await self._api.call("POST", f"{path}/actions/poweroff", doing, body={}, burning=True)
            await self._finish(switched_off["action"], doing)
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

    async def rebuild(self, server: Json, name: str, written: dict[str, str], image: str, user_data: str) -> None:
        """Becomes another machine; it boots when this returns. Raises ProviderError."""
        path, doing = f"/servers/{server['id']}", f"rebuild a server as machine {name}"
        await self._api.call("PUT", path, doing, body={"name": name, "labels": written})
        body = {"image": image, "user_data": user_data}
        rebuilt = await self._api.call("POST", f"{path}/actions/rebuild", doing, body=body)
        await self._finish(rebuilt["action"], doing)
        if (await self._api.call("GET", path, doing))["server"]["status"] == "off":
            await self._api.call("POST", f"{path}/actions/poweron", doing, body={})

    def forget_all(self) -> list[Json]:
        """The servers that are set aside, for whoever burns them."""
        servers = [spare.server for spare in self._spares]
        self._spares.clear()
        return servers

    def forget(self, server_id: int) -> None:
        """Somebody burns it."""
        self._spares = [spare for spare in self._spares if spare.server["id"] != server_id]

    async def _finish(self, action: Json, doing: str) -> None:
        while action["status"] == "running":
            await asyncio.sleep(self._look_every_s)
            action = (await self._api.call("GET", f"/actions/{action['id']}", doing, burning=True))["action"]
        if error := action.get("error"):
            reason = str(error["code"])
            raise Refused(f"cannot {doing}: {error['message']} ({reason})", code="PROVIDER", reason=reason, status=0)

    def _paid_until(self, server: Json) -> datetime:
        """By Hetzner's clock, as everything here."""
        created = datetime.fromisoformat(server["created"]).astimezone(UTC)
        return created + timedelta(hours=started_hours(created, self._now()))

    def _now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self._api.clock_ahead_s)
