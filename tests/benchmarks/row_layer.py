"""A machine that starts from the disk of another one, against a plain machine; and keeping a disk, against destroying it."""

from __future__ import annotations

import time

import uvloop

from gibil_bot.ports import Layering, Shell
from tests.benchmarks.comparison import Comparison, at_most
from tests.benchmarks.context import Context
from tests.benchmarks.machines import TTL_S, Yard, yard

ROUNDS = 12
FILES = 30_000
FILE_BYTES = 17_000
"""Half a gigabyte together"""
_FILL = f"mkdir -p /root/d && cd /root/d && head -c {FILES * FILE_BYTES} /dev/zero | split -b {FILE_BYTES} -a 4"


def layer(context: Context) -> list[Comparison]:
    """Rounds alternate between both kinds of machine, so that noise affects both."""
    return uvloop.run(_layer(context))


async def _layer(context: Context) -> list[Comparison]:
    created: dict[str, list[float]] = {"plain": [], "layer": []}
    ended: dict[str, list[float]] = {"destroyed": [], "kept": []}
    async with yard(context.folder("d")) as machines:
        provider = machines.factory.provider
        assert isinstance(provider, Layering)
        for number in range(4):
            how = "kept" if number % 2 else "destroyed"
            name, shell, _spent = await _ready(machines, None)
            assert (await shell.run(_FILL, timeout_s=300)).exit_status == 0
            await shell.close()
            begun = time.perf_counter()
            if how == "kept":
                await provider.save_layer(name, f"{number:08x}")
            else:
                await machines.factory.destroy(name)
            ended[how].append((time.perf_counter() - begun) * 1000)
        for number in range(2 * ROUNDS + 4):
            how = "layer" if number % 2 else "plain"
            name, shell, spent = await _ready(machines, "00000001" if how == "layer" else None)
            if how == "layer":
                assert (await shell.run("ls /root/d | wc -l")).stdout == f"{FILES}\n".encode()
            await shell.close()
            await machines.factory.destroy(name)
            if number >= 4:
                created[how].append(spent * 1000)
        for info in reversed(await provider.layers()):
            await provider.delete_layer(info.id)
    return [
        Comparison(
            what=f"create from a layer of {FILES:,} files, {FILES * FILE_BYTES // 10**6} MB, connect, first command",
            peer="plain machine", unit="ms",
            ours=created["layer"], peers=created["plain"], aim=at_most(1.2),
        ),
        Comparison(
            what="keep a machine's disk as a layer", peer="destroy it", unit="ms",
            ours=ended["kept"], peers=ended["destroyed"], aim=None,
        ),
    ]  # fmt: skip


async def _ready(machines: Yard, layer: str | None) -> tuple[str, Shell, float]:
    """Create a machine and run a command on it; return its name, its connection and the seconds."""
    begun = time.perf_counter()
    created, shell = await machines.factory.create(machines.new_name(), machines.owner, TTL_S, layer=layer)
    result = await shell.run("echo ready > /root/file; cat /root/file")
    spent = time.perf_counter() - begun
    assert result.stdout == b"ready\n"
    return created.name, shell, spent
