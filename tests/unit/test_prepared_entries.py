"""Entries of prepared machines: which are used, which are deleted. With a provider that keeps its layers in memory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from gibil_bot.clock import now
from gibil_bot.errors import ProviderError
from gibil_bot.model import LayerInfo, PreparedKey, PreparedMachine
from gibil_bot.runs.prepared import FORMAT, TRUSTED, PreparedMachines, Scope

OWN = "pull request 5 at abc"


@dataclass
class Shelf:
    """A Layering: layer → its size in MB."""

    stored: dict[str, int] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    in_use: set[str] = field(default_factory=set)
    age: timedelta = timedelta()

    async def save_layer(self, name: str, layer_id: str) -> LayerInfo:
        self.stored[layer_id] = int(name)
        return (await self.layers())[-1]

    async def layers(self) -> list[LayerInfo]:
        return [
            LayerInfo(id=name, parent=self.parents.get(name), depth=1, size_mb=size, created_at=now() - self.age)
            for name, size in self.stored.items()
        ]

    async def delete_layer(self, layer_id: str) -> bool:
        if layer_id in self.in_use or layer_id in self.parents.values():
            raise ProviderError("in use")
        self.parents.pop(layer_id, None)
        return self.stored.pop(layer_id, None) is not None


def entry(number: int, *, scope: str = TRUSTED, repository: str = "github 7") -> PreparedMachine:
    return PreparedMachine(
        format=FORMAT,
        layer=f"{number:08x}",
        repository=repository,
        repository_name="o/r",
        scope=scope,
        workflow="test",
        key=PreparedKey(kind="kind", files="files", tree="tree"),
        whole_tree=False,
        env={},
        paths=(),
        prepared_in_s=5.0,
        size_mb=0,
        depth=1,
        created_at=now(),
    )


def opened(tmp_path: Path, shelf: Shelf, *, total_mb: int = 100, repository_mb: int = 50, free_mb: int = 0) -> PreparedMachines:
    return PreparedMachines(tmp_path / "prepared", shelf, total_mb=total_mb, repository_mb=repository_mb, free_mb=free_mb)


async def save(prepared: PreparedMachines, tmp_path: Path, size_mb: int, kept: PreparedMachine) -> None:
    """Save an entry, which is the last used one."""
    await prepared.save(str(size_mb), kept)
    path = tmp_path / f"prepared/{kept.layer}.json"
    if path.exists():
        os.utime(path, (int(kept.layer, 16), int(kept.layer, 16)))


def numbers(layers: Iterable[str]) -> list[int]:
    return sorted(int(layer, 16) for layer in layers)


async def test_a_repository_and_all_together_have_a_limit(tmp_path: Path) -> None:
    shelf = Shelf()
    prepared = opened(tmp_path, shelf)
    for number in range(1, 4):
        await save(prepared, tmp_path, 20, entry(number))
    assert numbers(shelf.stored) == [2, 3]
    for number in range(4, 8):
        await save(prepared, tmp_path, 20, entry(number, repository=f"github {number}"))
    assert numbers(shelf.stored) == [3, 4, 5, 6, 7], "the last used are 100 MB together"


async def test_what_is_in_use_stays_and_the_next_one_is_deleted(tmp_path: Path) -> None:
    shelf = Shelf(in_use={f"{1:08x}"}, parents={f"{3:08x}": f"{2:08x}"})
    prepared = opened(tmp_path, shelf)
    for number in (1, 2):
        await save(prepared, tmp_path, 20, entry(number))
    await save(prepared, tmp_path, 5, entry(3))
    await save(prepared, tmp_path, 30, entry(4))
    assert numbers(shelf.stored) == [1, 4], "the one below another is deleted after it"


async def test_untrusted_runs_cannot_evict_what_trusted_runs_left(tmp_path: Path) -> None:
    shelf = Shelf()
    prepared = opened(tmp_path, shelf)
    await save(prepared, tmp_path, 40, entry(1))
    for number in range(2, 6):
        await save(prepared, tmp_path, 45, entry(number, scope=f"pull request {number} at abc", repository="github 7"))
    await save(prepared, tmp_path, 45, entry(6, scope=OWN, repository="github 8"))
    assert 1 in numbers(shelf.stored)
    assert numbers(shelf.stored) == [1, 6]
    await save(prepared, tmp_path, 45, entry(7, scope=OWN))
    assert numbers(shelf.stored) == [1, 7], "the one that was just saved stays for its run"
    await prepared.evict()
    assert numbers(shelf.stored) == [1]


async def test_limits_that_were_lowered_hold_from_the_start(tmp_path: Path) -> None:
    shelf = Shelf()
    large = opened(tmp_path, shelf)
    for number in range(1, 4):
        await save(large, tmp_path, 10, entry(number))
    small = opened(tmp_path, shelf, repository_mb=15)
    assert await small.maintain(whole=False) == []
    assert numbers(await small.maintain(whole=True)) == [1, 2]


async def test_a_full_disk_costs_prepared_machines(tmp_path: Path) -> None:
    shelf = Shelf()
    prepared = opened(tmp_path, shelf)
    for number in range(1, 4):
        await save(prepared, tmp_path, 10, entry(number))
    status = os.statvfs(tmp_path)
    if status.f_bavail > status.f_blocks // 20:
        assert await opened(tmp_path, shelf, free_mb=10**9).maintain(whole=False) == []
        assert len(shelf.stored) == 3, "a twentieth of the disk is free"

    class OnFullDisk(PreparedMachines):
        def _missing_mb(self) -> int:
            return 15

    full = OnFullDisk(tmp_path / "prepared", shelf)
    assert numbers(await full.maintain(whole=False)) == [1, 2]
    assert numbers(shelf.stored) == [3]


async def test_without_prepared_machines_the_provider_is_left_alone(tmp_path: Path) -> None:
    class Unavailable(Shelf):
        async def layers(self) -> list[LayerInfo]:
            raise ProviderError("it would start a daemon")

    assert await opened(tmp_path, Unavailable()).maintain(whole=True) == []


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "not JSON": lambda data: b"\x00\xff" * 40,
    "another type": lambda data: b"[1, 2]",
    "another layer": lambda data: data.replace(b"00000001", b"00000002"),
    "another format": lambda data: data.replace(b'"format":%d' % FORMAT, b'"format":99'),
    "a field is missing": lambda data: data.replace(b'"key":', b'"kee":'),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_entry_is_never_used_and_its_layer_is_deleted(tmp_path: Path, damage: str) -> None:
    shelf = Shelf()
    prepared = opened(tmp_path, shelf)
    await save(prepared, tmp_path, 10, entry(1))
    scope = Scope(repository="github 7", reads=(TRUSTED,), writes=None)
    assert [found.layer for found in await prepared.readable(scope)] == [f"{1:08x}"]
    path = tmp_path / f"prepared/{1:08x}.json"
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert await prepared.readable(scope) == []
    assert await prepared.get(f"{1:08x}") is None
    await prepared.evict()
    assert numbers(shelf.stored) == [1], "another process may be writing its entry"
    shelf.age = timedelta(hours=1)
    await prepared.maintain(whole=True)
    assert shelf.stored == {}


async def test_an_entry_without_its_layer_is_not_used(tmp_path: Path) -> None:
    shelf = Shelf()
    prepared = opened(tmp_path, shelf)
    await save(prepared, tmp_path, 10, entry(1))
    shelf.stored.clear()
    assert await prepared.readable(Scope(repository="github 7", reads=(TRUSTED,), writes=None)) == []


async def test_two_processes_save_the_same_entry_at_once(tmp_path: Path) -> None:
    shelf = Shelf()
    both = [opened(tmp_path, shelf), opened(tmp_path, shelf)]
    await asyncio.gather(*(prepared.save("10", entry(1)) for prepared in both for _ in range(5)))
    (path,) = (tmp_path / "prepared").iterdir()
    assert msgspec.json.decode(path.read_bytes(), type=PreparedMachine).size_mb == 10
