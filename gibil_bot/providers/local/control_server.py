"""Control-socket server of the local-machine daemon."""

from __future__ import annotations

import asyncio
import os
import socket

import msgspec

from gibil_bot.errors import GibilError, ProviderError, UsageError
from gibil_bot.providers.local.control_protocol import Answer, Request, peer_uid, problem_of
from gibil_bot.providers.local.registry import MachineRegistry

_REQUEST_S = 30.0


class ControlServer:
    """Answers requests. Sets `ending` when the daemon has had no machine and no request for `idle_s` seconds."""

    def __init__(self, registry: MachineRegistry, ending: asyncio.Event, idle_s: float) -> None:
        self._registry, self._ending, self._idle_s = registry, ending, idle_s
        self._busy: set[asyncio.Task[None]] = set()
        self._last = asyncio.get_running_loop().time()

    async def attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._busy.add(task)
        try:
            connection: socket.socket = writer.get_extra_info("socket")
            if peer_uid(connection) == os.geteuid():
                async with asyncio.timeout(_REQUEST_S):
                    line = await reader.readline()
                if line.endswith(b"\n"):
                    await self._answer(line, reader, writer)
        except (OSError, TimeoutError, ValueError):
            pass  # the client closed the connection or sent nothing
        finally:
            self._last = asyncio.get_running_loop().time()
            self._busy.discard(task)
            writer.close()

    async def _answer(self, line: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = msgspec.json.decode(line, type=Request)
            answer = await self._do(request)
        except msgspec.DecodeError as error:
            request = None
            answer = Answer(problem=problem_of(UsageError(f"the local-machine daemon cannot read the request: {error}")))
        except GibilError as error:
            request = None
            answer = Answer(problem=problem_of(error))
        except Exception as error:
            request = None
            asyncio.get_running_loop().call_exception_handler({"message": "a request failed", "exception": error})
            text = f"internal error in the local-machine daemon ({type(error).__name__}); see its log, local/keeper.log"
            answer = Answer(problem=problem_of(ProviderError(text)))
        tethered = answer.machine if answer.done and request and request.spec and request.spec.tethered else None
        try:
            writer.write(msgspec.json.encode(answer) + b"\n")
            await writer.drain()
            if tethered:
                await reader.read()  # until the client closes it or is killed
        except OSError:
            pass
        finally:
            if tethered:
                await self._registry.destroy(tethered.name, only=tethered)

    async def _do(self, request: Request) -> Answer:
        registry = self._registry
        match request:
            case Request(verb="create", spec=spec) if spec is not None:
                machine, created = await registry.create(spec)
                return Answer(machine=machine, done=created)
            case Request(verb="get"):
                return Answer(machine=registry.get(request.name))
            case Request(verb="list"):
                return Answer(machines=registry.list_machines(request.owner))
            case Request(verb="extend", expires_at=expires_at) if expires_at is not None:
                return Answer(machine=registry.extend(request.name, expires_at))
            case Request(verb="destroy"):
                return Answer(done=await registry.destroy(request.name))
            case Request(verb="sweep", owner=owner) if owner is not None:
                return Answer(names=await registry.sweep(owner))
            case Request(verb="probe"):
                return Answer(capabilities=await registry.probe())
            case Request(verb="usage"):
                return Answer(usage=await registry.usage(request.name))
            case Request(verb="refusals"):
                return Answer(refusals=registry.refusals(request.name, request.since))
            case Request(verb="restrict_egress", allow=allow) if allow is not None:
                await registry.restrict_egress(request.name, allow)
                return Answer(done=True)
            case Request(verb="lift_egress"):
                await registry.restrict_egress(request.name, None)
                return Answer(done=True)
            case Request(verb="cause"):
                causes = await registry.causes(request.name)
                return Answer(cause=causes[0] if causes else None, causes=causes)
            case Request(verb="layers"):
                return Answer(layers=registry.layers())
            case Request(verb="save_layer"):
                return Answer(layers=[await registry.save_layer(request.name, request.layer)])
            case Request(verb="branch_layer"):
                return Answer(
                    layers=[await registry.branch_layer(request.name, request.layer, request.template, stop=request.stop)]
                )
            case Request(verb="delete_template"):
                return Answer(done=await registry.delete_template(request.template))
            case Request(verb="kept_layers"):
                return Answer(layers=registry.kept_layers())
            case Request(verb="delete_layer"):
                return Answer(done=await registry.delete_layer(request.layer))
            case Request(verb="ping"):
                return Answer(count=registry.count)
            case Request(verb="quit"):
                return Answer(done=self._quit())
        raise UsageError(f"the local-machine daemon doesn't know the request {request.verb!r}")

    def _quit(self) -> bool:
        """End for a daemon of another version, but only if no machine exists."""
        if self._registry.count:
            return False
        self._ending.set()
        return True

    async def watch_idleness(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self._registry.count or self._registry.is_deleting or self._busy:
                self._last = loop.time()
            left = self._last + self._idle_s - loop.time()
            if left <= 0:
                self._ending.set()
                return
            await asyncio.sleep(min(left, 1.0))

    async def finish(self) -> None:
        """Answer the requests that are in progress, then close the connections of tethered machines."""
        if self._busy:
            _done, waiting = await asyncio.wait(self._busy, timeout=2.0)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
