"""The `local` provider: copy-on-write machines on this host, which a daemon process creates and runs.

All requests go to the daemon over its control socket. Without a daemon no machine exists; only `create` and `probe` start one.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from pathlib import Path

from gibil_bot.errors import MachineNotFound, ProviderError, UsageError
from gibil_bot.model import (
    Capabilities,
    EgressRestriction,
    LayerInfo,
    Machine,
    MachineSpec,
    Refusals,
    SizeOffer,
    Template,
    Usage,
)
from gibil_bot.ports import Shell
from gibil_bot.providers.local import daemon_start
from gibil_bot.providers.local.control_protocol import Answer, ControlConnection, Request, Unanswered
from gibil_bot.providers.local.egress_policy import parse_rules
from gibil_bot.providers.local.end_causes import read_cause
from gibil_bot.providers.local.layers import gone
from gibil_bot.providers.local.limits import DISK_MB, NO_ROOM, SIZES_MB, Groups, find_hierarchies
from gibil_bot.providers.local.paths import (
    PROTOCOL,
    DaemonRecord,
    LocalPaths,
    clear_dead_machine,
    code_version,
    groups_prefix,
    locked,
    own_privilege,
    read_daemon,
)
from gibil_bot.providers.local.trash import empty_trash
from gibil_bot.retry import RetryPolicy

_ATTEMPTS = 4
_CHANGING_S = 15.0
"""How long a daemon that holds its lock may not answer, because it is starting or ending."""
_LOOK_AGAIN_S = 0.1
_NOTICE_S = 0.25
"""After this, a request that still waits looks for the reason."""
PREPARING = "preparing the root file system of machines, once per data directory"
_ROOM_POLL_S = 0.5


class LocalProvider:
    """Implements ports.Provider, Explains, Filtering, Forking, Layering, Metered, Noticing, Offering, Restricting and
    Templating.

    `daemon_idle_s`: how long a daemon that this provider starts runs without machines. `room_wait_s`: how long `create` waits
    for memory that is promised to other machines.
    """

    name = "local"
    is_local = True

    def __init__(self, data_dir: Path, *, daemon_idle_s: float = daemon_start.IDLE_S, room_wait_s: float = 0.0) -> None:
        self._paths = LocalPaths(data_dir.absolute())
        self._daemon_idle_s = daemon_idle_s
        self._waiting_for_room = RetryPolicy(
            attempts=None, first_wait_s=_ROOM_POLL_S, factor=1, jitter=(0.8, 1.2), within_s=room_wait_s
        )
        self._unwanted: set[str] = set()
        """Machines that are destroyed while their creation waits for memory."""
        self._version = code_version()
        self._tethers: dict[str, ControlConnection] = {}
        self._creating: dict[str, asyncio.Task[Machine]] = {}
        self.listeners: dict[Callable[[str], None], set[str]] = {}
        """See ports.Noticing."""

    async def probe(self) -> Capabilities:
        answer = await self._ask_started(Request(verb="probe"))
        assert answer.capabilities is not None
        return answer.capabilities

    async def prepare(self) -> None:
        """Build the base tree of machines, unless it exists. See ports.Noticing."""
        from gibil_bot.providers.local import base_tree  # commands don't need it

        def is_prepared() -> bool:
            privilege = own_privilege()
            return (self._paths.local / base_tree.name_of(privilege, base_tree.survey(privilege))).is_dir()

        if not await asyncio.to_thread(is_prepared):
            await self.probe()

    async def sizes(self) -> list[SizeOffer]:
        """Return the sizes, which are limits on this host."""
        return [
            SizeOffer(size=size, what=f"{memory_mb // 1024} GB of memory, {DISK_MB // 1024} GB of disk at most")
            for size, memory_mb in SIZES_MB.items()
        ]

    async def create(self, spec: MachineSpec) -> Machine:
        """Continues in the background when it is cancelled, so that `destroy` finds the whole machine or nothing."""
        if earlier := self._creating.get(spec.name):
            await asyncio.wait([earlier])
        task = asyncio.get_running_loop().create_task(self._create(spec))
        self._creating[spec.name] = task
        task.add_done_callback(lambda done: self._created(spec.name, done))
        return await asyncio.shield(task)

    def _created(self, name: str, task: asyncio.Task[Machine]) -> None:
        if self._creating.get(name) is task:
            del self._creating[name]
        if not task.cancelled():
            task.exception()  # retrieved: a caller that waits for the task raises it

    async def _create(self, spec: MachineSpec) -> Machine:
        def retry_after_s(error: Exception) -> float | None:
            lacks_room = isinstance(error, ProviderError) and error.code == NO_ROOM
            return 0.0 if lacks_room and spec.name not in self._unwanted else None

        request, tether = Request(verb="create", spec=spec), spec.name if spec.tethered else None
        answer = await self._waiting_for_room.call(
            lambda: self._ask_started(request, tether=tether), retry_after_s=retry_after_s
        )
        assert answer.machine is not None
        if answer.machine.layer != spec.layer and answer.done:  # a daemon of an earlier version doesn't know layers
            await self._ask_or_clear(Request(verb="destroy", name=spec.name), only=spec.name)
            raise gone(str(spec.layer), "the daemon of an earlier version still has machines")
        return answer.machine

    async def get(self, name: str) -> Machine | None:
        answer = await self._ask(Request(verb="get", name=name))
        return answer.machine if answer else None

    async def list_machines(self, owner: str | None = None) -> list[Machine]:
        answer = await self._ask(Request(verb="list", owner=owner))
        return answer.machines if answer else []

    async def usage(self, name: str) -> Usage | None:
        """As Metered.usage; None from a daemon of an earlier version that doesn't know this request."""
        try:
            return (await self._ask_about(Request(verb="usage", name=name))).usage
        except UsageError:  # an earlier version, which is used as long as it has machines
            return None

    async def refusals(self, name: str, since: float) -> Refusals:
        """As `Filtering.refusals`; empty from a daemon of an earlier version."""
        try:
            return (await self._ask_about(Request(verb="refusals", name=name, since=since))).refusals or Refusals()
        except UsageError:  # a daemon of an earlier version
            return Refusals()

    async def restrict_egress(self, name: str, allow: tuple[str, ...], shell: Shell | None = None) -> EgressRestriction:
        """As Restricting.restrict_egress. The daemon does it, so nothing of the machine takes part in it."""
        await self._ask_about_egress(Request(verb="restrict_egress", name=name, allow=allow))
        return EgressRestriction()

    async def lift_egress(self, name: str, shell: Shell | None = None) -> None:
        await self._ask_about_egress(Request(verb="lift_egress", name=name))

    async def _ask_about_egress(self, request: Request) -> None:
        parse_rules(request.allow or ())
        try:
            await self._ask_about(request)
        except UsageError as error:
            raise ProviderError(
                f"machine {request.name} was created by the daemon of an earlier version, which can't limit what an agent "
                "reaches; destroy the machines of this data directory, and try again"
            ) from error

    async def cause(self, name: str, since: datetime | None = None) -> str | None:
        """As Explains.cause. Also known of a machine that doesn't exist any more, for a day."""
        try:
            answer = await self._ask(Request(verb="cause", name=name))
        except UsageError:  # a daemon of an earlier version
            answer = None
        last = answer.cause if answer else await asyncio.to_thread(read_cause, self._paths, name)
        found = answer.causes if answer and answer.causes else [last] if last else []
        return "; ".join(cause.text for cause in found if since is None or cause.at >= since) or None

    async def extend(self, name: str, expires_at: datetime) -> Machine:
        answer = await self._ask_about(Request(verb="extend", name=name, expires_at=expires_at))
        assert answer.machine is not None
        return answer.machine

    async def layers(self) -> list[LayerInfo]:
        return (await self._ask_started(Request(verb="layers"))).layers

    async def save_layer(self, name: str, layer_id: str) -> LayerInfo:
        answer = await self._ask_about(Request(verb="save_layer", name=name, layer=layer_id))
        if tether := self._tethers.pop(name, None):
            await tether.close()
        (info,) = answer.layers
        return info

    async def fork_layer(self, name: str, layer_id: str, *, stop: bool = False) -> LayerInfo:
        (info,) = (await self._ask_about(Request(verb="branch_layer", name=name, layer=layer_id, stop=stop))).layers
        return info

    async def save_template(self, name: str, template: str, *, stop: bool = False) -> Template:
        request = Request(verb="branch_layer", name=name, layer=secrets.token_hex(16), template=template, stop=stop)
        (info,) = (await self._ask_about(request)).layers
        return _template(info)

    async def templates(self) -> list[Template]:
        return [_template(info) for info in (await self._ask_started(Request(verb="kept_layers"))).layers]

    async def delete_template(self, template: str) -> bool:
        return (await self._ask_started(Request(verb="delete_template", template=template))).done

    async def delete_layer(self, layer_id: str) -> bool:
        return (await self._ask_started(Request(verb="delete_layer", layer=layer_id))).done

    async def destroy(self, name: str) -> bool:
        if creating := self._creating.get(name):
            self._unwanted.add(name)
            try:
                await asyncio.wait([creating])
            finally:
                self._unwanted.discard(name)
        try:
            return (await self._ask_or_clear(Request(verb="destroy", name=name), only=name)).done
        finally:
            if tether := self._tethers.pop(name, None):
                await tether.close()

    async def sweep(self, owner: str) -> list[str]:
        return (await self._ask_or_clear(Request(verb="sweep", owner=owner))).names

    async def close(self) -> None:
        for task in tuple(self._creating.values()):
            await asyncio.wait([task])
        while self._tethers:
            _name, line = self._tethers.popitem()
            await line.close()

    # The daemon

    async def _ask(self, request: Request) -> Answer | None:
        """Send a request to the running daemon; None if none runs."""
        for _attempt in range(2):  # a daemon that was ending may have been replaced
            daemon = await asyncio.to_thread(read_daemon, self._paths)
            if daemon is None:
                return None
            try:
                async with _connected(daemon) as line:
                    return await line.ask(request)
            except Unanswered:
                continue
        return None

    async def _ask_about(self, request: Request) -> Answer:
        """As `_ask`. Raises MachineNotFound if no daemon runs."""
        answer = await self._ask(request)
        if answer is None:
            raise MachineNotFound(f"no local machine named {request.name} exists")
        return answer

    async def _ask_or_clear(self, request: Request, *, only: str | None = None) -> Answer:
        """As `_ask`. Without a daemon, remove what is left of all machines, or only of that one.

        A daemon that is starting or ending is waited for.
        """
        deadline = time.monotonic() + _CHANGING_S
        while True:
            answer = await self._ask(request)
            if answer is not None:
                return answer
            gone = await asyncio.to_thread(self._clear_without_daemon, only)
            if gone is not None:
                return Answer(names=gone, done=only in gone)
            if time.monotonic() > deadline:
                raise ProviderError(f"the local-machine daemon is starting or hangs; see {self._paths.local}/keeper.log")

    async def _ask_started(self, request: Request, *, tether: str | None = None) -> Answer:
        """As `_ask`, but start a daemon if none runs. `tether`: keep the connection open under that name."""
        noticing = asyncio.get_running_loop().create_task(self._notice())
        try:
            return await self._ask_started_quietly(request, tether)
        finally:
            noticing.cancel()

    async def _notice(self) -> None:
        """Notify the listeners while the daemon builds the base tree of machines, which shows as a temporary folder."""
        while True:
            await asyncio.sleep(_NOTICE_S)
            for draft in await asyncio.to_thread(lambda: sorted(self._paths.local.glob(".skeleton-*"))):
                for listener, received in tuple(self.listeners.items()):
                    if draft.name not in received:
                        received.add(draft.name)
                        listener(PREPARING)

    async def _ask_started_quietly(self, request: Request, tether: str | None) -> Answer:
        reason = ""
        for attempt in range(_ATTEMPTS):
            daemon = await self._current_daemon(start=attempt > 0)
            try:
                if tether is None:
                    async with _connected(daemon) as line:
                        return await line.ask(request)
                return await self._ask_tethered(daemon, request, tether)
            except Unanswered as error:
                reason = str(error)
        raise ProviderError(f"the local-machine daemon does not answer ({reason}); see {self._paths.local}/keeper.log")

    async def _ask_tethered(self, daemon: DaemonRecord, request: Request, name: str) -> Answer:
        line = await ControlConnection.open(daemon.socket)
        try:
            answer = await line.ask(request)
        except BaseException:
            await line.close()
            raise
        if name in self._tethers:  # requested again: the first connection holds it
            await line.close()
        else:
            self._tethers[name] = line
        return answer

    async def _current_daemon(self, *, start: bool) -> DaemonRecord:
        """Return a daemon that can create machines. `start`: the recorded one doesn't answer.

        A daemon of another version is replaced if it has no machines, and used if it has some and the same protocol.
        """
        daemon = await asyncio.to_thread(read_daemon, self._paths)
        if daemon is not None and not start:
            if daemon.version == self._version and daemon.protocol == PROTOCOL:
                return daemon
            with contextlib.suppress(Unanswered):
                async with _connected(daemon, any_protocol=True) as line:
                    if not (await line.ask(Request(verb="quit"))).done:  # it has machines
                        _same_protocol(daemon)
                        return daemon
                # It answers until it has ended, and must not be mistaken for the new one.
                await asyncio.to_thread(self._await_end)
        await asyncio.to_thread(daemon_start.start, self._paths, self._daemon_idle_s)
        daemon = await asyncio.to_thread(read_daemon, self._paths)
        if daemon is None:
            raise ProviderError(f"the local-machine daemon did not start; see {self._paths.local}/keeper.log")
        return daemon

    def _await_end(self) -> None:
        with locked(self._paths.local / "keeper.lock", wait_s=daemon_start.START_S):
            pass

    def _clear_without_daemon(self, only: str | None) -> list[str] | None:
        """Remove what is left of machines, holding the daemon's lock so that none starts. None if a daemon runs."""
        if not self._paths.machines.is_dir():
            return []
        with locked(self._paths.local / "keeper.lock", wait_s=_LOOK_AGAIN_S) as mine:
            if not mine:
                return None
            groups = Groups(find_hierarchies(), groups_prefix(self._paths))
            gone = []
            for name in sorted({*(path.name for path in self._paths.machines.iterdir()), *groups.leftovers()}):
                if only in (None, name) and clear_dead_machine(self._paths, name):
                    groups.remove(name)
                    gone.append(name)
            with contextlib.suppress(OSError):  # the next daemon tries again
                empty_trash(self._paths.trash)
            return gone


def _template(info: LayerInfo) -> Template:
    return Template(
        name=info.template, provider=LocalProvider.name, id=info.id, size_mb=info.size_mb, created_at=info.created_at,
        labels=info.labels, layer=info.id,
    )  # fmt: skip


@contextlib.asynccontextmanager
async def _connected(daemon: DaemonRecord, *, any_protocol: bool = False) -> AsyncIterator[ControlConnection]:
    """Connect to the daemon. Raises Unanswered, and ProviderError for another protocol; `quit` is the same in all protocols."""
    line = await ControlConnection.open(daemon.socket)
    try:
        if not any_protocol:
            _same_protocol(daemon)
        yield line
    finally:
        await line.close()


def _same_protocol(daemon: DaemonRecord) -> None:
    if daemon.protocol != PROTOCOL:
        raise ProviderError(
            f"the local-machine daemon of another version (protocol {daemon.protocol}, not {PROTOCOL}) has machines; "
            f"destroy them with that version, or end process {daemon.pid}"
        )
