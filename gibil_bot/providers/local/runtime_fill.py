"""Filling the store of runtimes from machines that run nothing but `gibil-runtime`.

What a run installed is only a hint: the same version is obtained again, by a machine that has never run a project's code.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import shlex
import tempfile
from collections.abc import Iterable
from pathlib import Path

from gibil_bot.config import STORED_RUNTIMES
from gibil_bot.errors import GibilError, ProviderError
from gibil_bot.model import MachinePlan
from gibil_bot.providers.lifecycle import MachineFactory
from gibil_bot.providers.local.runtime_store import ENTRY_BYTES, FILLING, InvalidTree, RuntimeStore
from gibil_bot.scripts.runtimes import LOCAL_TOOL_PATH

log = logging.getLogger("gibil.runtimes")

_INSTALL_S = 900.0
_COMPILE_S = 240
_COPY_S = 300.0
_MEMORY_MB = 1024
_VERSION = re.compile(r"([0-9][0-9A-Za-z.-]{0,39})?", re.ASCII)
_TREE = re.compile(r"([a-z][a-z-]*)-([0-9][0-9A-Za-z.-]{0,39})", re.ASCII)
MOST_WAITING = 8
"""Runtimes that wait for being stored; others are stored after a later run."""

# The newest tree.
_NAME_OF_TREE = "cd /opt/gibil && ls -td {name}-[0-9]* 2>/dev/null | head -n 1"


# Otherwise each machine would compile what it imports, because it can't write to the tree. What isn't compiled works as well.
_COMPILE_PYTHON = (
    "cd /opt/gibil/{tree} && read -r folder program _ <.gibil && "
    f"timeout {_COMPILE_S} \"$folder/$program\" -m compileall -q -j 0 -x '/(tests?|idlelib)/' lib >/dev/null 2>&1"
)


async def fill(
    factory: MachineFactory, store: RuntimeStore, name: str, version: str, owner: str, egress_allow: tuple[str, ...] = ()
) -> str | None:
    """Store a runtime unless a stored one satisfies; return the entry's name, or None for what isn't installed as one tree.

    None also if the host's own program satisfies. Takes 25 minutes and 2 GiB at most. Raises ProviderError if it can't be
    obtained, with the sentence of `gibil-runtime`, or if another process is storing a version of it, and what creating a
    machine raises.
    """
    if name not in STORED_RUNTIMES or not _VERSION.fullmatch(version):
        return None
    if found := await asyncio.to_thread(store.request, name, version):
        return found
    async with contextlib.AsyncExitStack() as stack:
        locked = store.filling(name)
        if not await asyncio.to_thread(stack.enter_context, locked):
            raise ProviderError(f"another process is storing {name}")
        if found := await asyncio.to_thread(store.request, name, version):
            return found
        try:
            return await _obtain(factory, store, name, version, owner, egress_allow)
        except (GibilError, OSError, TimeoutError):
            await asyncio.to_thread(store.note_failure, name, version)
            raise


async def _obtain(
    factory: MachineFactory, store: RuntimeStore, name: str, version: str, owner: str, egress_allow: tuple[str, ...]
) -> str | None:
    machine = f"{FILLING}{secrets.token_hex(5)}"
    # Another owner, so that it doesn't count as one of the user's machines.
    owner, plan = f"{owner}{FILLING}", MachinePlan(memory_mb=_MEMORY_MB)
    try:
        _machine, shell = await factory.create(
            machine, owner, ttl_s=int(_INSTALL_S + _COMPILE_S + _COPY_S), plan=plan, egress_allow=egress_allow, tethered=True
        )
        try:
            done = await shell.run(shlex.join((LOCAL_TOOL_PATH, name, version)), timeout_s=_INSTALL_S)
            if done.exit_status != 0:
                raise ProviderError(_last_line(done.stderr).removeprefix("gibil: "))
            tree = _last_line((await shell.run(_NAME_OF_TREE.format(name=name))).stdout)
            if not tree:
                return None
            if name == "python":
                await shell.run(_COMPILE_PYTHON.format(tree=shlex.quote(tree)), timeout_s=_COMPILE_S + 60)
            with tempfile.TemporaryFile() as archive:
                received = 0

                def write(stream: str, data: bytes) -> None:
                    nonlocal received
                    received += len(data) if stream == "stdout" else 0
                    if stream == "stdout" and received <= ENTRY_BYTES:
                        archive.write(data)

                script = f"tar -C /opt/gibil --format gnu --hard-dereference -cf - {shlex.quote(tree)}"
                done = await shell.run(script, timeout_s=_COPY_S, on_output=write, keep_output=False)
                if done.exit_status != 0 or received > ENTRY_BYTES:
                    raise ProviderError(f"the tree of {tree} can't be copied from the machine")
                archive.seek(0)
                try:
                    await asyncio.to_thread(store.add, tree, archive)
                except InvalidTree as error:
                    raise ProviderError(str(error)) from error
            return tree
        finally:
            await shell.close()
    finally:
        await factory.destroy(machine)


def _last_line(output: bytes) -> str:
    return output.decode(errors="replace").strip().rpartition("\n")[2]


def store_of(data_dir: Path) -> RuntimeStore:
    """Return the store of a data directory."""
    return RuntimeStore(data_dir.absolute() / "local" / "runtimes")


def missing(store: RuntimeStore, trees: Iterable[str]) -> list[tuple[str, str]]:
    """Return the name and version of those trees that should be stored; mark the stored ones as used. Blocking.

    `trees`: what a run's machine uses, `node-22.1.0`. The machine chose the names.
    """
    found = []
    for tree in trees:
        parts = _TREE.fullmatch(tree)
        if parts is None or parts[1] not in STORED_RUNTIMES:
            continue
        name, version = parts.groups()
        if store.request(name, version) is None and not store.has_failed(name, version):
            found.append((name, version))
    return found[:MOST_WAITING]


class BackgroundFill:
    """Stores what runs had to install, one after the other, while the bot runs."""

    def __init__(self, factory: MachineFactory, store: RuntimeStore, owner: str, egress_allow: tuple[str, ...]) -> None:
        self._factory, self._store, self._owner, self._egress_allow = factory, store, owner, egress_allow
        self._waiting: asyncio.Queue[tuple[str, ...]] = asyncio.Queue(MOST_WAITING)

    def want(self, trees: Iterable[str]) -> None:
        """Store what of a run's runtimes is missing, later. Neither waits nor raises."""
        with contextlib.suppress(asyncio.QueueFull):
            self._waiting.put_nowait(tuple(trees))

    async def run(self) -> None:
        while True:
            trees = await self._waiting.get()
            await store_missing(self._factory, self._store, trees, self._owner, self._egress_allow)


async def store_missing(
    factory: MachineFactory, store: RuntimeStore, trees: Iterable[str], owner: str, egress_allow: tuple[str, ...]
) -> list[str]:
    """Store what is missing of a run's runtimes; return what was stored. A failure is only logged."""
    stored = []
    for name, version in await asyncio.to_thread(missing, store, trees):
        try:
            tree = await fill(factory, store, name, version, owner, egress_allow)
        except (GibilError, OSError, TimeoutError) as error:
            log.warning("%s %s isn't stored: %s", name, version, str(error) or "it takes too long")
            continue
        if tree is not None:
            log.info("stored %s for later runs", tree)
            stored.append(tree)
    if stored:
        # Links it for machines now, instead of when a run waits for one.
        with contextlib.suppress(GibilError):
            await factory.provider.probe()
    return stored
