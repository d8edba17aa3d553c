"""Creating a server at Hetzner: the requests, their order, and the reaction to each answer."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from datetime import UTC, datetime, timedelta

from gibil_bot.errors import NameTaken, ProviderError
from gibil_bot.model import MachineSpec
from gibil_bot.providers.cloudinit import user_data
from gibil_bot.providers.hetzner import labels
from gibil_bot.providers.hetzner.api import NO_ROOM, HetznerApi, Rejected, action_error
from gibil_bot.providers.hetzner.boot_wait import BootWait, is_ready
from gibil_bot.providers.hetzner.delete import ServerDeleter
from gibil_bot.providers.hetzner.project import ProjectResources, ensure_resources
from gibil_bot.providers.hetzner.rebuild_pool import RebuildPool, delete_one, reuse_value
from gibil_bot.providers.hetzner.server_types import SOLD_OUT, Candidate, Catalogue, Json
from gibil_bot.providers.hetzner.servers import find_server, is_ours

_log = logging.getLogger(__name__)

DEFAULT_IMAGE = "ubuntu-24.04"

_ELSEWHERE = NO_ROOM | {"maintenance", "service_error"}
"""Rejections of one server type in one location: another candidate may succeed."""
_FAILED_STARTS = 3
"""The creation fails after that many servers that don't start, because a started hour of each is billed."""


class ServerCreator:
    """Creates servers. `rebuild_pool`: None if paid hours aren't reused. `boot_s`: how long a server may take until it runs."""

    def __init__(
        self,
        api: HetznerApi,
        catalogue: Catalogue,
        boot_wait: BootWait,
        deleter: ServerDeleter,
        rebuild_pool: RebuildPool | None,
        boot_s: float,
    ) -> None:
        self._api, self._catalogue, self._boot_wait, self._deleter = api, catalogue, boot_wait, deleter
        self._rebuild_pool = rebuild_pool
        self._boot_s = boot_s
        self._resources: asyncio.Task[ProjectResources] | None = None
        self._marking: set[asyncio.Task[int | None]] = set()

    async def create(self, spec: MachineSpec) -> Json:
        """Return the running server. Raises what `ports.Provider.create` may; `destroy` finds a server that exists then."""
        candidates = await self._catalogue.candidates_for(spec)
        if self._rebuild_pool is not None:
            rebuilt = await self._create_from_pool(self._rebuild_pool, spec, candidates)
            if rebuilt is not None:
                return rebuilt
        rejections: list[Rejected] = []
        try:
            return await self._create_first(candidates, spec, rejections)
        finally:
            if any(error.reason in ("invalid_input", "not_found") for error in rejections):
                self._catalogue.mark_outdated()

    async def _create_first(self, candidates: list[Candidate], spec: MachineSpec, rejections: list[Rejected]) -> Json:
        """Return the server of the first candidate that Hetzner accepts, and add the rejections of others to `rejections`."""
        cpu_types = {candidate: await self._catalogue.cpu_type(candidate) for candidate in candidates}
        deadline = time.monotonic() + self._boot_s
        at_limit: set[str] = set()
        for candidate in candidates:
            if cpu_types[candidate] in at_limit:
                continue
            try:
                return await self._create_candidate(spec, candidate, candidates[0], deadline)
            except Rejected as error:
                rejections.append(error)
                if error.reason == "resource_limit_exceeded":  # it may apply to dedicated cores only, or to shared ones
                    at_limit.add(cpu_types[candidate])
                elif _subject_of(error) in ("candidate", "unknown"):
                    self._catalogue.mark_sold_out(candidate)
                else:
                    raise
                _log.warning("machine %s: %s is not available (%s)", spec.name, candidate, error.reason)
                if sum(_is_failed_start(each) for each in rejections) == _FAILED_STARTS:
                    raise
        raise _none_left(spec, candidates, rejections)

    async def close(self) -> None:
        if self._resources is not None:
            await asyncio.wait({self._resources})
            self._resources.exception()  # retrieved here, because the callers that waited for it have raised it
        if self._marking:
            await asyncio.wait(self._marking)

    async def _create_candidate(self, spec: MachineSpec, candidate: Candidate, first: Candidate, deadline: float) -> Json:
        """Create a server of one candidate. Raises Rejected.

        It is tried again after a pooled server was deleted to make room below a limit of the project, and after project
        resources that had been deleted were created again.
        """
        checked = False
        while True:
            project = await self._project()
            try:
                return await self._create(spec, candidate, first, project, deadline)
            except Rejected as error:
                if error.reason == "resource_limit_exceeded":
                    dedicated_only = "dedicated" in error.message
                    if not await delete_one(self._api, self._deleter, self._rebuild_pool, dedicated_only):
                        raise
                elif not checked and _subject_of(error) in ("project", "unknown"):
                    checked = True
                    if await self._project(instead_of=project) == project:
                        raise
                else:
                    raise

    async def _create(
        self, spec: MachineSpec, candidate: Candidate, first: Candidate, project: ProjectResources, deadline: float
    ) -> Json:
        doing = f"create machine {spec.name}"
        expiry, written = self._labels(spec)
        if candidate != first:
            written["instead-of"] = f"{first.server_type}.{first.location}"
        body = {
            "name": spec.name,
            "server_type": candidate.server_type,
            "location": candidate.location,
            "image": await self._catalogue.image(spec.image or DEFAULT_IMAGE, candidate),
            "labels": written,
            "user_data": user_data(spec, expiry),
            "firewalls": [{"firewall": project.firewall_id}],
            "ssh_keys": [project.key_id],
            "public_net": {"enable_ipv4": True, "enable_ipv6": False},
            "start_after_create": True,
        }
        actions: tuple[int, ...] = ()
        try:
            answer = await self._api.call("POST", "/servers", doing, body=body)
        except Rejected as error:
            if error.reason != "uniqueness_error":
                raise
            server = await self._adopt(spec)
            if is_ready(server):
                return server
        else:
            server = answer["server"]
            actions = tuple(int(each["id"]) for each in (answer["action"], *answer["next_actions"]))
        marking = asyncio.create_task(self._deleter.mark_address(server))
        self._marking.add(marking)
        marking.add_done_callback(self._marking.discard)
        try:
            return await self._until_running(server, actions, doing, deadline)
        except Rejected as error:
            if error.status == 0:  # its action failed and it still exists: the next candidate needs its name
                await self._deleter.delete(server)
            raise
        finally:
            await asyncio.wait({marking})

    async def _until_running(self, server: Json, actions: tuple[int, ...], doing: str, deadline: float) -> Json:
        """Return the server when it runs. Raises Rejected with status 0 when one of its actions failed or it stays off."""
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                found = await self._boot_wait.running(server["id"], actions, doing)
                if found is not None and found["status"] == "off":
                    found = await self._power_on(server["id"], doing)
        except TimeoutError:
            raise ProviderError(
                f"cannot {doing}: after {self._boot_s:.0f} s its server doesn't run yet, or its firewall isn't applied"
            ) from None
        if found is None:
            raise await self._reason_gone(actions, doing)
        if found["status"] == "off":
            detail = "its server doesn't stay switched on"
            raise Rejected(f"cannot {doing}: {detail}", code="PROVIDER", reason="off", status=0, detail=detail)
        return found

    async def _power_on(self, number: int, doing: str) -> Json | None:
        """Start a server that stayed off although its creation should start it (hetznercloud/terraform-provider-hcloud#505)."""
        path = f"/servers/{number}"
        actions: tuple[int, ...] = ()
        if (await self._api.call("GET", path, doing))["server"]["status"] == "off":
            answer = await self._api.call("POST", f"{path}/actions/poweron", doing)
            actions = (int(answer["action"]["id"]),)
        return await self._boot_wait.running(number, actions, doing)

    def _labels(self, spec: MachineSpec) -> tuple[datetime, dict[str, str]]:
        """Return the expiry by Hetzner's clock, and the labels of the server."""
        expiry = datetime.now(UTC) + timedelta(seconds=spec.ttl_s) + timedelta(seconds=self._api.clock_ahead_s)
        written = labels.machine_labels(spec, expiry)
        if self._rebuild_pool is not None and (reuse := reuse_value(spec)) is not None:
            written[labels.REUSE] = reuse
        return expiry, written

    async def _create_from_pool(self, rebuild_pool: RebuildPool, spec: MachineSpec, candidates: list[Candidate]) -> Json | None:
        """Rebuild a pooled server of this repository as the machine. None if there is none, or if the rebuild failed."""
        server = rebuild_pool.acquire(spec, candidates)
        if server is None:
            return None
        expiry, written = self._labels(spec)
        try:
            async with asyncio.timeout(self._boot_s):
                candidate = Candidate(server["server_type"]["name"], server["location"]["name"])
                image = await self._catalogue.image(spec.image or DEFAULT_IMAGE, candidate)
                actions = await rebuild_pool.rebuild(server, spec.name, written, image, user_data(spec, expiry))
                running = await self._boot_wait.running(server["id"], actions, f"create machine {spec.name}")
            if running is None or running["status"] != "running":
                raise ProviderError("the rebuilt server isn't switched on")
        except (ProviderError, TimeoutError) as error:
            _log.info("machine %s: a pooled server could not be rebuilt (%s)", spec.name, error)
            await self._deleter.delete(server)
            return None
        except asyncio.CancelledError:
            await self._deleter.delete(server)  # it may not have the name yet that `destroy` looks for
            raise
        return running

    async def _adopt(self, spec: MachineSpec) -> Json:
        """Return the server that has the name, if an earlier request of the same creation created it. Raises NameTaken."""
        server = await find_server(self._api, spec.name)
        if server is None:  # deleted between the two requests
            raise ProviderError(
                f"cannot create machine {spec.name}: another server with that name has just been deleted; try again"
            )
        if not is_ours(server) or server["labels"].get(labels.SPEC) != labels.spec_value(spec):
            raise NameTaken(f"the name {spec.name!r} is taken by another server at Hetzner; choose another name")
        return server

    async def _reason_gone(self, actions: tuple[int, ...], doing: str) -> ProviderError:
        """Return why a server vanished: Hetzner removes a server that it finds no host for, and its action says so."""
        for number in actions:
            found = (await self._api.call("GET", f"/actions/{number}", f"read why Hetzner did not {doing}"))["action"]
            if (failed := action_error(found, doing)) is not None:
                return failed
        return ProviderError(f"cannot {doing}: its server was deleted by another client while it booted; try again")

    async def _project(self, instead_of: ProjectResources | None = None) -> ProjectResources:
        """Return the project resources, created by the first caller that needs them. A failure isn't cached.

        `instead_of`: resources that don't exist any more; they are read again, once for all callers.
        """
        task = self._resources
        if (
            task is None
            or (task.done() and (task.cancelled() or task.exception()))
            or (instead_of is not None and task.done() and task.result() is instead_of)
        ):
            task = self._resources = asyncio.create_task(ensure_resources(self._api))
        return await asyncio.shield(task)


def _subject_of(error: Rejected) -> str:
    """Return what Hetzner rejected: the `candidate`, the `project` resources, the `request`, or `unknown`.

    An `invalid_input` may name fields. For something that doesn't exist, only the message says what is wrong:
    "unsupported location for server type" (autobase-tech/autobase#1403), "image has incompatible architecture".
    """
    if error.status == 0 or error.reason in _ELSEWHERE:
        return "candidate"
    if error.reason not in ("invalid_input", "not_found"):
        return "request"
    if error.fields:
        if error.fields & {"server_type", "location"}:
            return "candidate"
        return "project" if error.fields & {"firewalls", "ssh_keys"} else "request"
    detail = error.detail.lower()
    for what, pattern in (
        ("candidate", r"server.?type|location"),
        ("project", r"firewall|ssh.?key"),
        ("request", r"image|user.?data|label|name"),
    ):
        if re.search(pattern, detail):
            return what
    return "unknown"


def _is_failed_start(error: Rejected) -> bool:
    return error.status == 0 and error.reason not in NO_ROOM


def _none_left(spec: MachineSpec, candidates: list[Candidate], rejections: list[Rejected]) -> ProviderError:
    """Return one error about all candidates that were tried."""
    limits = [error for error in rejections if error.reason == "resource_limit_exceeded"]
    if limits or len(rejections) == 1:
        return limits[0] if limits else rejections[0]
    tried = ", ".join(map(str, candidates))
    if all(error.reason in NO_ROOM for error in rejections):
        why, code = f"Hetzner has no room for {tried}", SOLD_OUT
    else:
        last = rejections[-1]
        why, code = f"Hetzner rejected {tried}; the last answer was: {last.detail} ({last.reason})", last.code
    return ProviderError(f"cannot create machine {spec.name}: {why}; choose another size or location, or wait", code=code)
