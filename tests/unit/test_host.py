"""The identity of a host whose bot shares a database with others, and how its bot notices that the others take it for dead."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gibil_bot.errors import ConfigurationError, StoreError
from gibil_bot.model import Host, HostSeen
from gibil_bot.runs.host import hold_data_dir, this_host
from gibil_bot.runs.presence import Presence
from tests.doubles.patience import patient

HERE = Host(id="a" * 16, name="fir-1")


def test_a_host_has_one_id_however_many_processes_ask_first(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        found = set(threads.map(lambda _: this_host(tmp_path, "http://a:1").id, range(32)))
    assert len(found) == 1
    assert this_host(tmp_path, "").id in found
    assert this_host(tmp_path, "http://a:1").url == "http://a:1"
    assert (tmp_path / "host.id").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["host.id"]


@pytest.mark.parametrize("content", [b"", b"fir-1\n", b"A" * 16, b"\xff" * 16, b"0" * 17])
def test_a_damaged_host_id_is_reported(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "host.id").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"host\.id: expected 16 hexadecimal digits, got '.*'; delete the file"):
        this_host(tmp_path, "")


def test_a_data_directory_has_one_bot(tmp_path: Path) -> None:
    held = hold_data_dir(tmp_path)
    with pytest.raises(ConfigurationError, match=rf"`gibil serve` .process {os.getpid()}. holds .*serve\.lock; stop it"):
        hold_data_dir(tmp_path)
    os.close(held)
    os.close(hold_data_dir(tmp_path))
    with pytest.raises(ConfigurationError, match="GIBIL_DATA_DIR"):
        hold_data_dir(tmp_path / "missing")


class Hosts:
    """ports.Hosts that fail on request. `others`: the answers of `all`, one after another."""

    def __init__(self, *others: list[HostSeen]) -> None:
        self.fails = False
        self.calls: list[str] = []
        self.seen = asyncio.Event()
        self._others = list(others)

    async def start(self, host: Host, process: str) -> None:
        self.calls.append("start")

    async def present(self, host: Host, process: str) -> None:
        if self.fails:
            raise StoreError("the database doesn't answer")
        self.calls.append("present")
        self.seen.set()

    async def leave(self, process: str) -> None:
        raise StoreError("the database doesn't answer")

    async def all(self) -> list[HostSeen]:
        return self._others.pop(0) if self._others else []


async def test_a_bot_knows_how_many_are_running() -> None:
    three = [*other("fir-1", 1), *other("fir-2", 1), *other("fir-3", 1, is_away=True)]
    hosts, counted = Hosts([], three[:1], three), asyncio.Event()
    numbers: list[int] = []

    def count(bots: int) -> None:
        numbers.append(bots)
        counted.set()

    presence = Presence(hosts, HERE, "p", on_bots=[count], every_s=0.01)
    await presence.start()
    counted.clear()
    running = asyncio.create_task(presence.run())
    await asyncio.wait_for(counted.wait(), patient(10))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert numbers[:2] == [1, 2]


async def test_a_bot_that_cannot_reach_the_database_stops_its_work_until_it_can() -> None:
    hosts, lapsed = Hosts(), asyncio.Event()
    presence = Presence(hosts, HERE, "p", on_lapse=[lapsed.set], every_s=0.02, unseen_s=0.3)
    await presence.start()
    running = asyncio.create_task(presence.run())
    try:
        async with asyncio.timeout(patient(10)):
            for _ in range(2):
                await hosts.seen.wait()
                hosts.fails = True
                await lapsed.wait()
                lapsed.clear()
                await lapsed.wait()  # again, in case that something was claimed meanwhile
                hosts.seen.clear()
                hosts.fails = False
            await hosts.seen.wait()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    await presence.leave()  # the others notice it later
    assert hosts.calls[:2] == ["start", "present"]


async def test_a_bot_stops_before_the_others_continue_its_work_even_if_the_computer_was_suspended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, hosts, lapsed = [1000.0], Hosts(), asyncio.Event()
    monkeypatch.setattr("gibil_bot.runs.presence.passed_s", lambda: now[0])
    presence = Presence(hosts, HERE, "p", on_lapse=[lapsed.set], every_s=0.01, unseen_s=30.0)
    await presence.start()
    hosts.fails = True
    running = asyncio.create_task(presence.run())
    try:
        await asyncio.sleep(0)
        now[0] += 24.0
        await asyncio.sleep(0.03)
        assert not lapsed.is_set()
        now[0] += 2.0
        await asyncio.wait_for(lapsed.wait(), patient(10))
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def other(name: str, second: int, *, is_away: bool = False) -> list[HostSeen]:
    seen_at = datetime(2026, 11, 23, 12, 0, second, tzinfo=UTC)
    return [HostSeen(host=Host(id=HERE.id, name=name), seen_at=seen_at, bots=0 if is_away else 1, machines=0)]


async def test_a_copied_data_directory_is_reported() -> None:
    copied = Presence(Hosts(other("fir-2", 1), other("fir-2", 11)), HERE, "p", every_s=0.01)
    with pytest.raises(ConfigurationError, match=r"fir-2 has the same host id a{16}.* delete host.id"):
        await copied.start()


@pytest.mark.parametrize(
    "answers",
    [
        [other("fir-1", 1)],
        [other("fir-2", 1, is_away=True)],
        [other("fir-2", 1), other("fir-2", 1)],
    ],
)
async def test_a_host_may_have_a_new_name_after_a_crash(answers: list[list[HostSeen]]) -> None:
    hosts = Hosts(*answers)
    await Presence(hosts, HERE, "p", every_s=0.01).start()
    assert hosts.calls == ["start"]
