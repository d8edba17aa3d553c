"""`gibil ssh -L`: how the option is read; and ports of machines that are forwarded (contracts/test_remote_forwarding.py)."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gibil_bot.errors import UsageError
from gibil_bot.model import Result
from gibil_bot.ssh import remote_forwarding
from gibil_bot.ssh.forwarding import Forward, parse_forward
from gibil_bot.ssh.shell import SSHShell
from tests.doubles.patience import patient


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8080:localhost:3000", Forward("127.0.0.1", 8080, "localhost", 3000)),
        ("0:db:5432", Forward("127.0.0.1", 0, "db", 5432)),
        ("0.0.0.0:8080:localhost:3000", Forward("0.0.0.0", 8080, "localhost", 3000)),
        ("localhost:8080:localhost:3000", Forward("127.0.0.1", 8080, "localhost", 3000)),
        ("*:8080:localhost:3000", Forward("", 8080, "localhost", 3000)),
        (":8080:localhost:3000", Forward("", 8080, "localhost", 3000)),
        ("[::1]:8080:[fe80::1]:3000", Forward("::1", 8080, "fe80::1", 3000)),
    ],
)
def test_a_forward_is_written_as_for_ssh(text: str, expected: Forward) -> None:
    assert parse_forward(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "8080", "8080:3000", "8080:localhost", "x:localhost:3000", "8080:localhost:0", "70000:localhost:1", "1:-oX:1", "1::2"],
)
def test_anything_else_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match=r"^-L "):
        parse_forward(text)


class Closing:
    """A machine that closes each connection at once."""

    is_closed = True

    async def run(self, script: str, **_: Any) -> Result:
        return Result(exit_status=0, stdout=b"", stderr=b"")

    async def listen_on_machine(self, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(get_port=lambda: 20_000, close=lambda: None)

    async def wait_closed(self) -> None: ...

    async def close(self) -> None: ...


async def test_a_machine_that_closes_each_connection_at_once_gets_few_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_forwarding, "_RETRY_EVERY_S", 0.02)
    third = asyncio.Event()
    times: list[float] = []

    async def connect() -> SSHShell:
        times.append(time.monotonic())
        if len(times) == 3:
            third.set()
        return cast(SSHShell, Closing())

    async with asyncio.timeout(patient(5)), remote_forwarding.keep_forwarding(connect, 9):
        await third.wait()
    assert times[2] - times[0] >= 0.04
