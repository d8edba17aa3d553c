"""A provider's notices to waiting callers: that the base tree of machines is being built, once per data directory."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from gibil_bot.model import Capabilities
from gibil_bot.ports import Noticing, Provider
from gibil_bot.providers.local import base_tree
from gibil_bot.providers.local.control_protocol import Answer, Request
from gibil_bot.providers.local.paths import PROTOCOL, DaemonRecord, LocalPaths, code_version, own_privilege, write_daemon
from gibil_bot.providers.local.provider import PREPARING, LocalProvider
from gibil_bot.providers.optional import notices, prepare
from tests.doubles.patience import patient
from tests.doubles.provider import MemoryProvider


async def test_every_caller_waiting_for_the_first_machine_is_notified_once(tmp_path: Path) -> None:
    paths = LocalPaths(tmp_path / "data")
    paths.prepare()
    answering = asyncio.Event()

    async def daemon(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert msgspec.json.decode(await reader.readline(), type=Request).verb == "probe"
        await answering.wait()
        can = Capabilities(tier="t", package_installs=True, several_users=True, memory_limit="m", forged_in_s=1.0)
        writer.write(msgspec.json.encode(Answer(capabilities=can)) + b"\n")
        writer.close()

    path = str(tmp_path / "s")
    server = await asyncio.start_unix_server(daemon, path)
    write_daemon(paths, DaemonRecord(pid=1, socket=path, protocol=PROTOCOL, version=code_version()))
    provider = LocalProvider(paths.data_dir)
    first: list[str] = []
    second: list[str] = []
    both = asyncio.Event()

    def tell(what: str) -> None:
        second.append(what)
        both.set()

    async with server, asyncio.timeout(patient(20)):
        with notices(provider, first.append):
            probes = [asyncio.create_task(provider.probe()) for _ in range(2)]
            (paths.local / ".skeleton-user-0123.77").mkdir()
            with notices(provider, tell):
                await both.wait()
            answering.set()
            await asyncio.gather(*probes)
    assert (first, second) == ([PREPARING], [PREPARING])
    assert provider.listeners == {}


async def test_the_first_machine_of_a_data_directory_is_prepared_once(tmp_path: Path) -> None:
    paths = LocalPaths(tmp_path / "data")
    paths.prepare()
    asked: list[str] = []

    async def daemon(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(msgspec.json.decode(await reader.readline(), type=Request).verb)
        privilege = own_privilege()
        (paths.local / base_tree.name_of(privilege, base_tree.survey(privilege))).mkdir()
        can = Capabilities(tier="t", package_installs=True, several_users=True, memory_limit="m", forged_in_s=1.0)
        writer.write(msgspec.json.encode(Answer(capabilities=can)) + b"\n")
        writer.close()

    path = str(tmp_path / "s")
    server = await asyncio.start_unix_server(daemon, path)
    write_daemon(paths, DaemonRecord(pid=1, socket=path, protocol=PROTOCOL, version=code_version()))
    async with server, asyncio.timeout(patient(20)):
        for _ in range(2):
            await prepare(LocalProvider(paths.data_dir), print)
    assert asked == ["probe"]
    await prepare(MemoryProvider(), print)


async def test_a_provider_without_notices_is_supported() -> None:
    provider: Provider = MemoryProvider()
    assert not isinstance(provider, Noticing)
    with notices(provider, print):
        pass
