"""The Hetzner double for tests that wait for processes: its event loop runs in a separate thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.doubles.hetzner import HetznerDouble, hetzner_double
from tests.doubles.hetzner_guests import Image, LocalGuests, local_guests
from tests.doubles.hetzner_state import State
from tests.doubles.patience import patient

T = TypeVar("T")


class Cloud:
    """Read `double.state` and `double.api` from the test's thread; change them with `do`."""

    def __init__(self, double: HetznerDouble, loop: asyncio.AbstractEventLoop) -> None:
        self.double, self._loop = double, loop

    @property
    def settings(self) -> dict[str, str]:
        return {"HCLOUD_TOKEN": self.double.token, "HCLOUD_ENDPOINT": self.double.endpoint}

    @property
    def names(self) -> set[str]:
        return {server["name"] for server in list(self.double.state.servers.values())}

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(patient(60))

    def cut(self, name: str) -> int:
        """Close every SSH connection of a server at once; return their number."""

        async def cut() -> int:
            return self._guests.cut(name)

        return self.do(cut())

    def cut_next(self, name: str) -> None:
        """Like `cut`, as soon as a connection exists."""
        self.do(self._guests.cut_next(name))

    def unplug(self, name: str) -> None:
        """Like `cut`, and accept no connection until `plug_in`."""
        self.do(self._guests.unplug(name))

    def plug_in(self, name: str) -> None:
        self.do(self._guests.plug_in(name))

    def run_past_ssh(self, name: str, script: str) -> None:
        """Run a script in the machine without its sshd, as the hypervisor can."""
        done = self.do(self._guests.run(name, script))
        assert done.exit_status == 0, done.stderr

    @property
    def _guests(self) -> LocalGuests:
        guests = self.double.state.guests
        assert isinstance(guests, LocalGuests)
        return guests


@contextlib.contextmanager
def cloud(folder: Path | None = None, shared: Path = Path(), image: Image | None = None) -> Iterator[Cloud]:
    """With an image, servers boot it, on machines in `folder`; without, they never boot. Skips if port 22 is in use."""
    ready = threading.Event()
    came: list[Cloud | BaseException] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        async with contextlib.AsyncExitStack() as stack:
            state = State()
            if image is not None:
                assert folder is not None
                state.guests = await stack.enter_async_context(local_guests(folder, shared, image, port=22))
            double = await stack.enter_async_context(hetzner_double(state))
            came.append(Cloud(double, loop))
            ready.set()
            await loop.run_in_executor(None, left.wait)

    def in_thread() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:
            came.append(error)
        finally:
            ready.set()

    left = threading.Event()
    thread = threading.Thread(target=in_thread, name="cloud")
    thread.start()
    try:
        ready.wait()
        first = came[0]
        if isinstance(first, RuntimeError):
            pytest.skip(f"{first}: this host's own sshd uses it")
        if isinstance(first, BaseException):
            raise first
        yield first
    finally:
        left.set()
        thread.join()
    assert len(came) == 1, came[1]
