"""The daemon's side of the fork server: starts it, orders machines, and knows when every process of one is dead."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Callable

from gibil_bot.errors import ProviderError
from gibil_bot.providers.local.disk_usage import DiskUsage
from gibil_bot.providers.local.isolated_python import start_python
from gibil_bot.providers.local.mounts import SpawnRequest


class SpawnedMachine:
    """A machine that was ordered: `pid` of its PID 1 on the host, and `dead` when nothing of it runs any more."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.pid: asyncio.Future[int] = loop.create_future()
        self.dead = asyncio.Event()


class ForkClient:
    """One running fork server. When it dies all its machines are dying: then `on_lost` is called once."""

    def __init__(self, process: subprocess.Popen[bytes], link: socket.socket) -> None:
        self._process, self._link = process, link
        self._machines: dict[int, SpawnedMachine] = {}
        self._looks: dict[int, asyncio.Future[DiskUsage | None]] = {}
        self._count = 0
        self._on_lost: Callable[[], None] = lambda: None
        self.lost = False

    @classmethod
    def start(cls) -> ForkClient:
        """Call in the main thread: the fork server dies with the thread that started it. Needs no event loop yet."""
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

    async def look(self, folder: str, most_files: int, seconds: float) -> DiskUsage | None:
        """Measure a folder in a separate process, with the rights of its owner whatever its modes; None: that failed."""
        self._count += 1
        number = self._count
        look: asyncio.Future[DiskUsage | None] = asyncio.get_running_loop().create_future()
        self._looks[number] = look
        request = {"look": number, "folder": folder, "files": most_files, "seconds": seconds}
        try:
            if self.lost:
                return None
            await self._send(json.dumps(request).encode(), [])
            return await look
        except OSError:
            return None
        finally:
            self._looks.pop(number, None)

    async def spawn(self, request: SpawnRequest, control: socket.socket, disk: int | None = None) -> tuple[int, SpawnedMachine]:
        """Order a machine; (its number here, the forging). PID 1 itself says on `control` whether it came to be."""
        self._count += 1
        number = self._count
        self._machines[number] = machine = SpawnedMachine()
        message = json.dumps({"spawn": number, "request": request}).encode()
        try:
            await self._send(message, [control.fileno(), *([] if disk is None else [disk])])
        except OSError as error:
            del self._machines[number]
            raise ProviderError(f"the fork server of local machines is gone ({error.strerror}); try again") from error
        return number, machine

    async def kill(self, number: int) -> None:
        """Kill the machine; returns when every process of it is dead."""
        machine = self._machines.get(number)
        if machine is None:
            return
        if not self.lost:
            with contextlib.suppress(OSError):  # it is gone: the reader sees that too
                await self._send(json.dumps({"kill": number}).encode(), [])
        await machine.dead.wait()

    async def stop(self) -> None:
        """For the daemon's own end: the fork server leaves when its link closes."""
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
                await asyncio.sleep(0.002)  # it is forking for somebody else
            else:
                return
        raise TimeoutError(110, "the fork server does not take orders")

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
        self._process.wait()  # its end of the link closed as it died: there is nothing to wait for
        for machine in self._machines.values():
            machine.pid.cancel()
            machine.dead.set()  # PID 1 of each was sent SIGKILL by the kernel; their folders' locks tell when it is over
        self._machines.clear()
        for look in self._looks.values():
            if not look.done():
                look.set_result(None)
        self._on_lost()
