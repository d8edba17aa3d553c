"""Client of the fork server, used by the daemon:

starts it, spawns and kills machines, reports when all their processes ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from gibil_bot.errors import ProviderError
from gibil_bot.providers.local.disk_usage import DiskUsage
from gibil_bot.providers.local.isolated_python import start_python
from gibil_bot.providers.local.mounts import SpawnRequest


class SpawnedMachine:
    """A machine that was requested. `pid`: host pid of its PID 1. `dead`: set when none of its processes runs any more."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.pid: asyncio.Future[int] = loop.create_future()
        self.dead = asyncio.Event()


class ForkClient:
    """One running fork server. When it dies, all its machines die, and `on_lost` is called once."""

    def __init__(self, process: subprocess.Popen[bytes], link: socket.socket) -> None:
        self._process, self._link = process, link
        self._machines: dict[int, SpawnedMachine] = {}
        self._looks: dict[int, asyncio.Future[DiskUsage | None]] = {}
        self._count = 0
        self._on_lost: Callable[[], None] = lambda: None
        self.lost = False

    @classmethod
    def start(cls) -> ForkClient:
        """Start a fork server. Call in the main thread: it dies with the thread that started it. Needs no event loop yet."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                start_python("gibil_bot.providers.local.fork_server", str(theirs.fileno()), str(os.getpid())),
                env={},
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd="/",
            )
        ours.setblocking(False)
        return cls(process, ours)

    @property
    def pid(self) -> int:
        return self._process.pid

    def attend(self, on_lost: Callable[[], None]) -> None:
        self._on_lost = on_lost
        asyncio.get_running_loop().add_reader(self._link.fileno(), self._read)

    async def measure(self, folder: str, most_files: int, seconds: float) -> DiskUsage | None:
        """Measure a folder in a separate process, whatever the modes of its files; None if that failed."""
        return await self._look({"folder": folder, "files": most_files, "seconds": seconds})

    async def empty_trash(self, folder: str) -> bool:
        """Delete everything in the folder, in a separate process (trash.py). Returns whether that succeeded."""
        return await self._look({"empty": folder}) is not None

    async def _look(self, work: dict[str, Any]) -> DiskUsage | None:
        self._count += 1
        number = self._count
        look: asyncio.Future[DiskUsage | None] = asyncio.get_running_loop().create_future()
        self._looks[number] = look
        request = {"look": number, **work}
        try:
            if self.lost:
                return None
            await self._send(json.dumps(request).encode(), [])
            return await look
        except OSError:
            return None
        finally:
            self._looks.pop(number, None)

    async def spawn(
        self, request: SpawnRequest, control: socket.socket, disks: Sequence[int] = ()
    ) -> tuple[int, SpawnedMachine]:
        """Request a machine; returns its number here and the machine. PID 1 reports on `control` whether it was set up.

        `disks`: see spawn.enter.
        """
        self._count += 1
        number = self._count
        self._machines[number] = machine = SpawnedMachine()
        message = json.dumps({"spawn": number, "request": request}).encode()
        try:
            await self._send(message, [control.fileno(), *disks])
        except OSError as error:
            del self._machines[number]
            raise ProviderError(f"the fork server of local machines has ended ({error.strerror}); try again") from error
        return number, machine

    async def kill(self, number: int) -> None:
        """Kill the machine; returns when every process of it is dead."""
        machine = self._machines.get(number)
        if machine is None:
            return
        if not self.lost:
            with contextlib.suppress(OSError):  # it has ended, which the reader sees as well
                await self._send(json.dumps({"kill": number}).encode(), [])
        await machine.dead.wait()

    async def stop(self) -> None:
        """Stop the fork server, which ends when its link closes."""
        if not self.lost:
            self.lost = True
            asyncio.get_running_loop().remove_reader(self._link.fileno())
            self._link.close()
        await asyncio.to_thread(self._process.wait, 10)

    async def _send(self, message: bytes, fds: list[int]) -> None:
        for _attempt in range(5000):
            try:
                socket.send_fds(self._link, [message], fds)
            except BlockingIOError:
                await asyncio.sleep(0.002)  # it is handling another request
            else:
                return
        raise TimeoutError(110, "the fork server does not accept requests")

    def _read(self) -> None:
        while True:
            try:
                message = self._link.recv(4096)
            except BlockingIOError:
                return
            except ConnectionResetError:
                message = b""
            if not message:
                self._lose()
                return
            answer = json.loads(message)
            if "init" in answer and (machine := self._machines.get(answer["init"])):
                if not machine.pid.done():
                    machine.pid.set_result(answer["pid"])
            elif "look" in answer and (look := self._looks.pop(answer["look"], None)):
                if not look.done():
                    look.set_result(DiskUsage(*answer["tree"]) if answer["tree"] else None)
            elif "dead" in answer and (machine := self._machines.pop(answer["dead"], None)):
                machine.pid.cancel()
                machine.dead.set()

    def _lose(self) -> None:
        self.lost = True
        asyncio.get_running_loop().remove_reader(self._link.fileno())
        self._link.close()
        self._process.wait()  # returns at once, since its end of the link closed when it died
        for machine in self._machines.values():
            machine.pid.cancel()
            machine.dead.set()  # the kernel has sent SIGKILL to each PID 1, and their folders' locks show their end
        self._machines.clear()
        for look in self._looks.values():
            if not look.done():
                look.set_result(None)
        self._on_lost()
