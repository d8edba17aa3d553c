"""Filling the store of runtimes from a machine that runs nothing but `gibil-runtime`."""

from __future__ import annotations

import asyncio
import re
import secrets
import shlex
import tempfile
from pathlib import Path

from gibil_bot.config import STORED_RUNTIMES
from gibil_bot.errors import ProviderError
from gibil_bot.model import MachinePlan
from gibil_bot.providers.lifecycle import MachineFactory
from gibil_bot.providers.local.runtime_store import ENTRY_BYTES, InvalidTree, RuntimeStore
from gibil_bot.scripts.runtimes import LOCAL_TOOL_PATH

_INSTALL_S = 900.0
_COPY_S = 300.0
_VERSION = re.compile(r"([0-9][0-9A-Za-z.-]{0,39})?", re.ASCII)

# The newest tree.
_NAME_OF_TREE = "cd /opt/gibil && ls -td {name}-[0-9]* 2>/dev/null | head -n 1"


async def fill(
    factory: MachineFactory, store: RuntimeStore, name: str, version: str, owner: str, egress_allow: tuple[str, ...] = ()
) -> str | None:
    """Store a runtime unless a stored one satisfies; return the entry's name, or None for what isn't installed as one tree.

    None also if the host's own program satisfies. Raises ProviderError if it can't be obtained, with the sentence of
    `gibil-runtime`, and what creating a machine raises.
    """
    if name not in STORED_RUNTIMES or not _VERSION.fullmatch(version):
        return None
    if found := await asyncio.to_thread(store.request, name, version):
        return found
    machine = f"runtime-{secrets.token_hex(5)}"
    try:
        _machine, shell = await factory.create(
            machine, owner, ttl_s=int(_INSTALL_S + _COPY_S), plan=MachinePlan(), egress_allow=egress_allow, tethered=True
        )
        try:
            done = await shell.run(shlex.join((LOCAL_TOOL_PATH, name, version)), timeout_s=_INSTALL_S)
            if done.exit_status != 0:
                raise ProviderError(_last_line(done.stderr).removeprefix("gibil: "))
            tree = _last_line((await shell.run(_NAME_OF_TREE.format(name=name))).stdout)
            if not tree:
                return None
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
