"""The daemon's counter: where requests come in over the control socket, and are answered."""

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
    """`ending` is set when the daemon should go: nothing kept and nothing asked for `idle_s` seconds."""

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
            pass  # they went away, or never said anything
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
            answer = Answer(problem=problem_of(UsageError(f"the daemon cannot read the request: {error}")))
        except GibilError as error:
            request = None
            answer = Answer(problem=problem_of(error))
        except Exception as error:
            request = None
            asyncio.get_running_loop().call_exception_handler({"message": "a request failed", "exception": error})
            text = f"the daemon of local machines failed ({type(error).__name__}); its log says more"
            answer = Answer(problem=problem_of(ProviderError(text)))
        tethered = answer.machine if answer.done and request and request.spec and request.spec.tethered else None
        try:
            writer.write(msgspec.json.encode(answer) + b"\n")
            await writer.drain()
            if tethered:
                await reader.read()  # until they close it, or are killed
        except OSError:
            pass
        finally:
            if tethered:
                await self._registry.destroy(tethered.name, only=tethered)

    async def _do(self, request: Request) -> Answer:
        registry = self._registry
        match request:
            case Request(verb="create", spec=spec) if spec is not None:
                machine, made = await registry.create(spec)
                return Answer(machine=machine, done=made)
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
            case Request(verb="cause"):
                return Answer(cause=await registry.cause(request.name))
            case Request(verb="ping"):
                return Answer(count=registry.count)
            case Request(verb="quit"):
                return Answer(done=self._quit())
        raise UsageError(f"the daemon does not know the request {request.verb!r}")

    def _quit(self) -> bool:
        """For a daemon of another version that takes our place: only while there is nothing to lose."""
        if self._registry.count:
            return False
        self._ending.set()
        return True

    async def watch_idleness(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self._registry.count or self._busy:
                self._last = loop.time()
            left = self._last + self._idle_s - loop.time()
            if left <= 0:
                self._ending.set()
                return
            await asyncio.sleep(min(left, 1.0))

    async def finish(self) -> None:
        """Let those who were already here have their answers; tethers are cut."""
        if self._busy:
            _done, waiting = await asyncio.wait(self._busy, timeout=2.0)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
